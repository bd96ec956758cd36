//! The mounts a step asks for: opened, copied by descriptor, restricted, attached.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::MountAttrFlags;

use crate::error::Step;
use crate::filesystem::{self, FsOption, c_string};
use crate::rootfs::{OverlaySupport, Stage};
use crate::spec::{Mount, MountFlags, Source};
use crate::sys::{self, MountAttributes};
use crate::targets::{self, Kind, Stub};
use crate::wire::{During, Failure};

/// Mounts `mount` inside the attached `root`.
pub(crate) fn apply(
    mount: &Mount,
    root: BorrowedFd<'_>,
    stage: &Stage,
    support: &OverlaySupport,
    stubs: &mut Vec<Stub>,
) -> Result<(), Failure> {
    check_target(&mount.target)?;
    let tree = detached(mount, stage, support)?;
    let is_dir = FileType::from_raw_mode(
        rustix::fs::fstat(&tree)
            .during(|| Step::Mount {
                target: mount.target.clone(),
            })?
            .st_mode,
    ) == FileType::Directory;
    let attributes = attributes(mount.readonly, mount.flags);
    if attributes != 0 {
        sys::mount_setattr(tree.as_fd(), MountAttributes::set(attributes)).during(|| Step::Mount {
            target: mount.target.clone(),
        })?;
    }
    let kind = if is_dir { Kind::Directory } else { Kind::File };
    attach_at(&tree, &mount.target, kind, root, stubs)
}

/// Attaches `tree` at `target` inside `root`, which is made when missing.
pub(crate) fn attach_at(
    tree: &OwnedFd,
    target: &str,
    kind: Kind,
    root: BorrowedFd<'_>,
    stubs: &mut Vec<Stub>,
) -> Result<(), Failure> {
    let place = targets::ensure(root, target, kind, None, stubs).during(|| Step::Target {
        target: target.into(),
    })?;
    filesystem::attach(tree, place).during(|| Step::Mount {
        target: target.into(),
    })
}

/// The kernel's own trees are mounted after everything else; nothing may lie in them.
fn check_target(target: &str) -> Result<(), Failure> {
    let parts: Vec<_> = target
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    match parts.first() {
        Some(&("proc" | "sys")) => Err(Failure::Invalid(format!(
            "mount target {target:?} lies in a file system of the kernel"
        ))),
        Some(_) if target.starts_with('/') => Ok(()),
        _ => Err(Failure::Invalid(format!(
            "mount target {target:?} is not an absolute path below /"
        ))),
    }
}

fn attributes(readonly: bool, flags: MountFlags) -> u64 {
    [
        (readonly, libc::MOUNT_ATTR_RDONLY),
        (flags.nosuid, libc::MOUNT_ATTR_NOSUID),
        (flags.nodev, libc::MOUNT_ATTR_NODEV),
        (flags.noexec, libc::MOUNT_ATTR_NOEXEC),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(0, |all, (_, bit)| all | bit)
}

fn detached(mount: &Mount, stage: &Stage, support: &OverlaySupport) -> Result<OwnedFd, Failure> {
    let target = &mount.target;
    match &mount.source {
        Source::Bind { path, subpath } => {
            let base = open_source(path, target)?;
            copy_below(&base, subpath, target)
        }
        Source::Overlay { overlay, subpath } => {
            let base = stage.tree(overlay, support)?;
            copy_below(&base, subpath, target)
        }
        Source::Tmpfs { size_bytes, mode } => tmpfs(target, *size_bytes, *mode),
        Source::Secret(secret) => {
            let file = stage
                .file(&secret.content, secret.mode, (secret.uid, secret.gid))
                .during(|| Step::Secret {
                    target: target.clone(),
                })?;
            filesystem::copy(file).during(|| Step::Mount {
                target: target.clone(),
            })
        }
        Source::Socket { path, uid, gid, mode } => {
            let socket = open_source(path, target)?;
            own_socket(path, (*uid, *gid), *mode).during(|| Step::Socket(path.clone()))?;
            filesystem::copy(socket).during(|| Step::Mount {
                target: target.clone(),
            })
        }
    }
}

fn open_source(path: &Path, target: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty()).during(|| Step::Source {
        path: path.into(),
        target: target.into(),
    })
}

fn copy_below(base: &OwnedFd, subpath: &str, target: &str) -> Result<OwnedFd, Failure> {
    let subpath = subpath.trim_start_matches('/');
    let step = || Step::Mount {
        target: target.into(),
    };
    if subpath.is_empty() {
        return filesystem::copy(base).during(step);
    }
    let below = filesystem::open_in_root(base, subpath, OFlags::PATH).during(|| Step::Subpath {
        subpath: subpath.into(),
        target: target.into(),
    })?;
    filesystem::copy(below).during(step)
}

/// A file system in memory, detached.
pub(crate) fn tmpfs(target: &str, size_bytes: Option<u64>, mode: u32) -> Result<OwnedFd, Failure> {
    let step = || Step::Filesystem {
        fs: "tmpfs".into(),
        target: target.into(),
    };
    let mode = c_string(format!("{:o}", mode & 0o7777)).during(step)?;
    let size = c_string(size_bytes.unwrap_or(0).to_string()).during(step)?;
    let options = [FsOption::Value(c"mode", &mode), FsOption::Value(c"size", &size)];
    let used = if size_bytes.is_some() { 2 } else { 1 };
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    filesystem::create(c"tmpfs", &options[..used], attributes).during(step)
}

fn own_socket(path: &Path, owner: (u32, u32), mode: u32) -> std::io::Result<()> {
    std::os::unix::fs::lchown(path, Some(owner.0), Some(owner.1))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_lie_where_they_can_be_seen() {
        for good in ["/a", "/processes", "/dev/x", "/a/../proc-like"] {
            assert!(check_target(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "relative", "/proc", "/sys/fs", "//proc/x", "/./sys"] {
            assert!(check_target(bad).is_err(), "{bad}");
        }
    }
}
