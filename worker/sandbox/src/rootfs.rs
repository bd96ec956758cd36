//! The staging area of one step, and layers mounted in it as one tree.
//!
//! ```text
//! (a tmpfs over the old root; gone with it)
//!   root/        the container's root is mounted here, then becomes /
//!   m/<n>/       further overlays
//!   l/<n>        links to layer directories: short names, so that any number fits in the kernel's page
//!   f/<n>        files that exist in memory only: secrets, hosts, resolv.conf
//!   empty/       bound read-only over masked directories
//! ```

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::error::Step;
use crate::filesystem::{self, FsOption, c_string};
use crate::spec::Overlay;
use crate::wire::{During, Failure};

/// What the kernel was found to support; learned once, kept by the spawner.
#[derive(Debug)]
pub(crate) struct OverlaySupport {
    /// `lowerdir+`, from 6.7 on.
    appends: Cell<bool>,
    /// `volatile`, from 5.10 on.
    volatile: Cell<bool>,
    /// Whether overlay's attributes are kept under `user.`, as a user namespace needs.
    pub(crate) userxattr: bool,
}

impl OverlaySupport {
    /// Assumes the best of this kernel's version until the kernel says otherwise.
    pub(crate) fn new(userxattr: bool) -> Self {
        Self {
            // Asking an older one would work too, and leave a line in its log each time.
            appends: Cell::new(
                rustix::system::uname()
                    .release()
                    .to_str()
                    .is_ok_and(|release| at_least(release, (6, 7))),
            ),
            volatile: Cell::new(true),
            userxattr,
        }
    }
}

/// Tells whether a kernel of this `release`, as `6.1.0-56-cloud-amd64`, is of that version or newer.
fn at_least(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok());
    let major = numbers.next().unwrap_or(0);
    (major, numbers.next().unwrap_or(0)) >= version
}

/// The staging area; the working directory of the spawner while it lives.
pub(crate) struct Stage {
    dir: OwnedFd,
    links: Cell<usize>,
    trees: Cell<usize>,
    files: Cell<usize>,
}

impl Stage {
    /// Puts a fresh staging area over `/` and enters it.
    pub(crate) fn create() -> Result<Self, Failure> {
        let step = || Step::Filesystem {
            fs: "tmpfs".into(),
            target: "the staging area".into(),
        };
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID;
        let options = [FsOption::Value(c"mode", c"0755"), FsOption::Flag(c"noswap")];
        let dir = filesystem::create(c"tmpfs", &options, attributes)
            .or_else(|_| filesystem::create(c"tmpfs", &options[..1], attributes))
            .during(step)?;
        let here = rustix::fs::openat(
            rustix::fs::CWD,
            c"/",
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .during(step)?;
        filesystem::attach(&dir, here).during(step)?;
        rustix::process::fchdir(&dir).during(step)?;
        for name in [c"root", c"m", c"l", c"f", c"empty"] {
            rustix::fs::mkdirat(&dir, name, Mode::from(0o755)).during(step)?;
        }
        Ok(Self {
            dir,
            links: Cell::new(0),
            trees: Cell::new(0),
            files: Cell::new(0),
        })
    }

    /// Opens something in the staging area.
    pub(crate) fn open(&self, name: &CStr) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(&self.dir, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }

    /// A file in memory with this content and owner; bind it to where it is wanted.
    pub(crate) fn file(&self, content: &[u8], mode: u32, owner: (u32, u32)) -> std::io::Result<OwnedFd> {
        let name = format!("f/{}", next(&self.files));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, &name, flags, Mode::from(0o600))?;
        let mut file = std::fs::File::from(file);
        std::io::Write::write_all(&mut file, content)?;
        if owner != (0, 0) {
            std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777))?;
        Ok(self.open(&c_string(name)?)?)
    }

    /// An empty directory that is read-only wherever it is bound.
    pub(crate) fn empty(&self) -> rustix::io::Result<OwnedFd> {
        let plain = self.open(c"empty")?;
        let mount = filesystem::copy(&plain)?;
        let attributes = crate::sys::MountAttributes::set(libc::MOUNT_ATTR_RDONLY);
        crate::sys::mount_setattr(mount.as_fd(), attributes)
            .map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))?;
        filesystem::attach(&mount, &plain)?;
        Ok(mount)
    }

    /// Mounts `overlay` in the staging area and returns its root.
    pub(crate) fn tree(&self, overlay: &Overlay, support: &OverlaySupport) -> Result<OwnedFd, Failure> {
        let place = format!("m/{}", next(&self.trees));
        rustix::fs::mkdirat(&self.dir, &place, Mode::from(0o755)).during(|| failed(overlay, "staging"))?;
        self.tree_at(overlay, support, &place)
    }

    /// Mounts `overlay` as the root to be.
    pub(crate) fn root(&self, overlay: &Overlay, support: &OverlaySupport) -> Result<OwnedFd, Failure> {
        self.tree_at(overlay, support, "root")
    }

    fn tree_at(&self, overlay: &Overlay, support: &OverlaySupport, place: &str) -> Result<OwnedFd, Failure> {
        let place = c_string(place).during(|| failed(overlay, "staging"))?;
        let mount = match (overlay.lowers.as_slice(), &overlay.upper) {
            ([], None) => self.bind(Path::new("empty"), true)?,
            ([only], None) => self.bind(only, true)?,
            ([], Some(upper)) => self.bind(&upper.dir, false)?,
            _ => return self.mount_overlay(overlay, support, &place),
        };
        let target = self.open(&place).during(|| failed(overlay, "staging"))?;
        filesystem::attach(&mount, target).during(|| failed(overlay, "attach"))?;
        Ok(mount)
    }

    fn bind(&self, path: &Path, readonly: bool) -> Result<OwnedFd, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let step = || Step::Layer(path.into());
        let source = rustix::fs::openat(&self.dir, path, flags, Mode::empty()).during(step)?;
        let mount = filesystem::copy(source).during(step)?;
        if readonly {
            let attributes = crate::sys::MountAttributes::set(libc::MOUNT_ATTR_RDONLY);
            crate::sys::mount_setattr(mount.as_fd(), attributes).during(step)?;
        }
        Ok(mount)
    }

    fn mount_overlay(
        &self,
        overlay: &Overlay,
        support: &OverlaySupport,
        place: &CStr,
    ) -> Result<OwnedFd, Failure> {
        let mut lowers = Vec::with_capacity(overlay.lowers.len());
        for lower in &overlay.lowers {
            lowers.push(self.link(lower)?);
        }
        let upper = match &overlay.upper {
            Some(upper) => Some((self.link(&upper.dir)?, self.link(&upper.work)?)),
            None => None,
        };
        let options = Options {
            lowers: &lowers,
            upper: upper.as_ref(),
        };
        let mounted = self.mount_either(overlay, support, &options, place);
        mounted.map_err(|failure| explained(overlay, failure))
    }

    fn mount_either(
        &self,
        overlay: &Overlay,
        support: &OverlaySupport,
        options: &Options<'_>,
        place: &CStr,
    ) -> Result<OwnedFd, Failure> {
        if !support.appends.get() {
            return self.mount_old(overlay, support, options, place);
        }
        match self.mount_new(overlay, support, options, place) {
            // Kernels before 6.7 take `lowerdir+` in silence and refuse the whole; the string they know tells whether
            // that was the reason.
            Err(refused @ Failure::Setup(_, libc::EINVAL)) => {
                let mounted = self
                    .mount_old(overlay, support, options, place)
                    .map_err(|_| refused)?;
                support.appends.set(false);
                Ok(mounted)
            }
            other => other,
        }
    }

    fn mount_new(
        &self,
        overlay: &Overlay,
        support: &OverlaySupport,
        options: &Options<'_>,
        place: &CStr,
    ) -> Result<OwnedFd, Failure> {
        let context =
            fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).during(|| failed(overlay, "not supported"))?;
        let configured = configure(&context, support, options);
        let mount = configured
            .and_then(|()| fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()));
        let mount = mount.during(|| failed(overlay, &filesystem::log_of(context.as_fd())))?;
        let target = self.open(place).during(|| failed(overlay, "staging"))?;
        filesystem::attach(&mount, target).during(|| failed(overlay, "attach"))?;
        Ok(mount)
    }

    /// As kernels before 6.7 need it: one string of options, at most a page; the links keep it short.
    fn mount_old(
        &self,
        overlay: &Overlay,
        support: &OverlaySupport,
        options: &Options<'_>,
        place: &CStr,
    ) -> Result<OwnedFd, Failure> {
        let detail = "by mount(2)";
        loop {
            let text = c_string(options.text(support)).during(|| failed(overlay, detail))?;
            let done = rustix::mount::mount(
                c"overlay",
                place,
                c"overlay",
                MountFlags::empty(),
                Some(text.as_c_str()),
            );
            match done {
                Err(rustix::io::Errno::INVAL) if support.volatile.get() && options.upper.is_some() => {
                    support.volatile.set(false);
                }
                other => break other.during(|| failed(overlay, detail))?,
            }
        }
        self.open(place).during(|| failed(overlay, detail))
    }

    /// A short name for a directory with a long one.
    fn link(&self, path: &Path) -> Result<CString, Failure> {
        let step = || Step::Layer(path.into());
        let name = c_string(format!("l/{}", next(&self.links))).during(step)?;
        rustix::fs::symlinkat(path, &self.dir, name.as_c_str()).during(step)?;
        Ok(name)
    }

    /// The staging area itself.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

fn next(counter: &Cell<usize>) -> usize {
    counter.replace(counter.get() + 1)
}

fn failed(overlay: &Overlay, detail: &str) -> Step {
    Step::Overlay {
        lowers: overlay.lowers.len(),
        detail: detail.into(),
    }
}

/// Says what to do where the store lies on an overlay itself, as it does in most containers.
fn explained(overlay: &Overlay, failure: Failure) -> Failure {
    const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
    let on_overlay = overlay
        .upper
        .as_ref()
        .and_then(|upper| rustix::fs::statfs(&upper.dir).ok())
        .is_some_and(|about| u64::try_from(about.f_type).is_ok_and(|kind| kind == OVERLAYFS_SUPER_MAGIC));
    match failure {
        Failure::Setup(Step::Overlay { lowers, .. }, errno) if on_overlay => {
            let detail =
                "the store lies on an overlay itself, as in a container, and those do not stack: give it a \
                          volume or a tmpfs (--root or BUILDER_ROOT)"
                    .into();
            Failure::Setup(Step::Overlay { lowers, detail }, errno)
        }
        other => other,
    }
}

/// The names by which the layers are known in the staging area.
struct Options<'a> {
    lowers: &'a [CString],
    upper: Option<&'a (CString, CString)>,
}

/// Nothing in a layer may redirect to elsewhere: `nofollow`, and the others off for the same reason.
const FIXED: [(&CStr, &CStr); 3] = [
    (c"redirect_dir", c"nofollow"),
    (c"index", c"off"),
    (c"metacopy", c"off"),
];

fn configure(context: &OwnedFd, support: &OverlaySupport, options: &Options<'_>) -> rustix::io::Result<()> {
    fsconfig_set_string(context, c"source", c"overlay")?;
    for lower in options.lowers {
        fsconfig_set_string(context, c"lowerdir+", lower.as_c_str())?;
    }
    if let Some((upper, work)) = options.upper {
        fsconfig_set_string(context, c"upperdir", upper.as_c_str())?;
        fsconfig_set_string(context, c"workdir", work.as_c_str())?;
        fsconfig_set_flag(context, c"volatile")?;
    }
    for (key, value) in FIXED {
        fsconfig_set_string(context, key, value)?;
    }
    if support.userxattr {
        fsconfig_set_flag(context, c"userxattr")?;
    }
    fsconfig_create(context)
}

impl Options<'_> {
    fn text(&self, support: &OverlaySupport) -> String {
        let lowers: Vec<_> = self.lowers.iter().map(|lower| lower.to_string_lossy()).collect();
        let mut text = format!("lowerdir={}", lowers.join(":"));
        if let Some((upper, work)) = self.upper {
            text += &format!(
                ",upperdir={},workdir={}",
                upper.to_string_lossy(),
                work.to_string_lossy()
            );
            if support.volatile.get() {
                text += ",volatile";
            }
        }
        for (key, value) in FIXED {
            text += &format!(",{}={}", key.to_string_lossy(), value.to_string_lossy());
        }
        if support.userxattr {
            text += ",userxattr";
        }
        text
    }
}

/// The directory that holds everything of the step's root on the host, for messages.
pub(crate) fn name_of(root: &crate::spec::Root) -> PathBuf {
    match root {
        crate::spec::Root::Directory { path, .. } => path.clone(),
        crate::spec::Root::Overlay(overlay) => overlay
            .upper
            .as_ref()
            .map(|upper| upper.dir.clone())
            .unwrap_or_else(|| "read-only layers".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::at_least;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, expected) in [
            ("6.1.0-56-cloud-amd64", false),
            ("6.6.87.2-microsoft-standard-WSL2", false),
            ("5.15.0-1-generic", false),
            ("4.18.0-553.el8.x86_64", false),
            ("6.7.0", true),
            ("6.7-rc1", true),
            ("6.10.3", true),
            ("7.0", true),
            ("10", true),
            ("", false),
            ("strange", false),
        ] {
            assert_eq!(at_least(release, (6, 7)), expected, "{release}");
        }
    }
}
