//! Mount points inside a root: found, or made where they are missing, and taken away again afterwards.
//!
//! ```text
//! path ─▶ open in root ─▶ (missing) ─▶ make part after part ─▶ descriptor + Stub per part
//!                                       … the step runs …
//! Stubs::remove: last first; only what is still empty; times of the parent put back
//! ```
//!
//! Everything happens by descriptor inside the mounted root, so no link that the image or the step made can lead
//! the maker or the cleaner elsewhere.
//!
//! Differs: BuildKit puts back the times that the parent has after the step, which making the mount points has changed
//! already; here a folder that the step left alone keeps its times, so that layers do not depend on the clock.

use std::ffi::{CString, OsStr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::{Errno, Result};

use crate::filesystem::open_in_root;

/// Links followed while a target is made; the kernel's own limit.
const MAX_LINKS: usize = 40;

/// What kind of mount point is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// For a directory.
    Directory,
    /// For anything else.
    File,
}

/// Who owns directories that are made, when it is not root.
pub(crate) type Owner = Option<(u32, u32)>;

/// One file or directory that was made as a mount point.
#[derive(Debug)]
pub(crate) struct Stub {
    parent: OwnedFd,
    name: CString,
    kind: Kind,
    is_last: bool,
    before: Timestamps,
    after: Timestamps,
}

/// Opens `path` inside `root`, making what is missing; what was made is added to `stubs`.
///
/// # Errors
/// Those of openat2(2) and mkdirat(2); `ENOTDIR` or `EISDIR` when something of the other kind is there.
pub(crate) fn ensure(
    root: BorrowedFd<'_>,
    path: &str,
    kind: Kind,
    owner: Owner,
    stubs: &mut Vec<Stub>,
) -> Result<OwnedFd> {
    let mut wanted = PathBuf::from(path);
    for _ in 0..MAX_LINKS {
        match open_in_root(root, &wanted, OFlags::PATH) {
            Ok(found) => return check_kind(found, kind),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        match make(root, &wanted, kind, owner, stubs)? {
            Made::Done(target) => return Ok(target),
            Made::Link(instead) => wanted = instead,
        }
    }
    Err(Errno::LOOP)
}

fn check_kind(found: OwnedFd, kind: Kind) -> Result<OwnedFd> {
    let is_dir = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Directory;
    match (kind, is_dir) {
        (Kind::Directory, false) => Err(Errno::NOTDIR),
        (Kind::File, true) => Err(Errno::ISDIR),
        _ => Ok(found),
    }
}

enum Made {
    Done(OwnedFd),
    /// A dangling link was met; this is the path with the link replaced.
    Link(PathBuf),
}

fn make(root: BorrowedFd<'_>, path: &Path, kind: Kind, owner: Owner, stubs: &mut Vec<Stub>) -> Result<Made> {
    let parts: Vec<&OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            Component::ParentDir => Some(OsStr::new("..")),
            _ => None,
        })
        .collect();
    let mut parent = open_in_root(root, c".", OFlags::PATH | OFlags::DIRECTORY)?;
    let mut sofar = PathBuf::new();
    for (index, name) in parts.iter().enumerate() {
        sofar.push(name);
        let is_last = index + 1 == parts.len();
        match open_in_root(root, &sofar, OFlags::PATH) {
            Ok(next) => {
                parent = next;
                continue;
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let part = if is_last { kind } else { Kind::Directory };
        match make_one(&parent, name, part, owner) {
            Ok((next, mut stub)) => {
                stub.is_last = is_last;
                stubs.push(stub);
                parent = next;
            }
            Err(Errno::EXIST) => {
                let mut instead = read_link(&parent, name, &sofar)?;
                instead.extend(&parts[index + 1..]);
                return Ok(Made::Link(instead));
            }
            Err(error) => return Err(error),
        }
    }
    check_kind(parent, kind).map(Made::Done)
}

fn make_one(parent: &OwnedFd, name: &OsStr, kind: Kind, owner: Owner) -> Result<(OwnedFd, Stub)> {
    let parent = rustix::fs::openat(parent, c".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let before = times(&rustix::fs::fstat(&parent)?);
    match kind {
        Kind::Directory => rustix::fs::mkdirat(&parent, &name, Mode::from(0o755))?,
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            drop(rustix::fs::openat(&parent, &name, flags, Mode::from(0o755))?);
        }
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&parent, &name, flags, Mode::empty())?;
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(&made, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    let after = times(&rustix::fs::fstat(&parent)?);
    Ok((
        made,
        Stub {
            parent,
            name,
            kind,
            is_last: false,
            before,
            after,
        },
    ))
}

fn read_link(parent: &OwnedFd, name: &OsStr, sofar: &Path) -> Result<PathBuf> {
    let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
    let target = Path::new(OsStr::from_bytes(target.as_bytes()));
    // An absolute target replaces what is pushed onto, which is what a link in this root means.
    let mut instead = sofar.to_path_buf();
    instead.pop();
    instead.push(target);
    Ok(instead)
}

fn times(stat: &Stat) -> Timestamps {
    let spec = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: spec(stat.st_atime as _, stat.st_atime_nsec as _),
        last_modification: spec(stat.st_mtime as _, stat.st_mtime_nsec as _),
    }
}

/// Removes what was made and is still empty, last first. A stub that the step filled stays, and so do its parents.
/// With `parents` unset only the mount points themselves go.
pub(crate) fn remove(stubs: Vec<Stub>, parents: bool) {
    for stub in stubs.into_iter().rev().filter(|stub| parents || stub.is_last) {
        // What cannot be removed is in use by the step's own files and stays; there is nobody to tell.
        let _kept = remove_one(&stub);
    }
}

fn remove_one(stub: &Stub) -> Result<()> {
    let now = rustix::fs::statat(&stub.parent, &stub.name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(now.st_mode);
    let flags = match (stub.kind, kind) {
        (Kind::Directory, FileType::Directory) => AtFlags::REMOVEDIR,
        (Kind::File, FileType::RegularFile) if now.st_size == 0 => AtFlags::empty(),
        _ => return Ok(()),
    };
    let found = times(&rustix::fs::fstat(&stub.parent)?);
    rustix::fs::unlinkat(&stub.parent, &stub.name, flags)?;
    let untouched = same_time(&found.last_modification, &stub.after.last_modification);
    rustix::fs::futimens(&stub.parent, if untouched { &stub.before } else { &found })
}

fn same_time(a: &Timespec, b: &Timespec) -> bool {
    a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn temporary(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("sandbox-targets-{name}-{}", std::process::id()));
        let _absent = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("temporary directory");
        path
    }

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).expect("open").into()
    }

    #[test]
    fn what_was_made_goes_and_times_come_back() {
        let dir = temporary("times");
        fs::create_dir(dir.join("run")).expect("mkdir");
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        open_file(&dir.join("run")).set_modified(old).expect("times");
        let mut stubs = Vec::new();
        let root = open(&dir);
        ensure(
            root.as_fd(),
            "/run/secrets/deep/key",
            Kind::File,
            None,
            &mut stubs,
        )
        .expect("made");
        ensure(root.as_fd(), "/run/cache", Kind::Directory, None, &mut stubs).expect("made");
        assert!(dir.join("run/secrets/deep/key").is_file());
        remove(stubs, true);
        assert_eq!(fs::read_dir(dir.join("run")).expect("list").count(), 0);
        assert_eq!(dir.join("run").metadata().expect("stat").mtime(), 1000);
        fs::remove_dir_all(dir).expect("cleaned");
    }

    fn open_file(path: &Path) -> fs::File {
        fs::File::open(path).expect("open")
    }

    #[test]
    fn what_the_step_filled_stays_with_its_parents() {
        let dir = temporary("filled");
        let mut stubs = Vec::new();
        let root = open(&dir);
        ensure(root.as_fd(), "/a/b/c", Kind::Directory, None, &mut stubs).expect("made");
        fs::write(dir.join("a/b/mine"), "x").expect("write");
        remove(stubs, true);
        assert!(dir.join("a/b/mine").is_file() && !dir.join("a/b/c").exists());
        fs::remove_dir_all(dir).expect("cleaned");
    }

    #[test]
    fn links_stay_inside_the_root() {
        let dir = temporary("links");
        let root_dir = dir.join("root");
        fs::create_dir_all(root_dir.join("in")).expect("mkdir");
        symlink("/in", root_dir.join("absolute")).expect("link");
        symlink("../../../../in", root_dir.join("up")).expect("link");
        symlink("/in/made", root_dir.join("dangling")).expect("link");
        let root = open(&root_dir);
        let mut stubs = Vec::new();
        for (path, made) in [
            ("/absolute/x", "in/x"),
            ("/up/y", "in/y"),
            ("/dangling/z", "in/made/z"),
        ] {
            ensure(root.as_fd(), path, Kind::Directory, None, &mut stubs).expect(path);
            assert!(root_dir.join(made).is_dir(), "{path}");
        }
        assert_eq!(
            fs::read_dir(&dir).expect("list").count(),
            1,
            "nothing beside the root"
        );
        remove(stubs, true);
        assert_eq!(fs::read_dir(root_dir.join("in")).expect("list").count(), 0);
        fs::remove_dir_all(dir).expect("cleaned");
    }

    #[test]
    fn kinds_are_not_mixed_up() {
        let dir = temporary("kinds");
        fs::write(dir.join("file"), "").expect("write");
        let root = open(&dir);
        let mut stubs = Vec::new();
        let error = ensure(root.as_fd(), "/file", Kind::Directory, None, &mut stubs).expect_err("a file");
        assert_eq!(error, Errno::NOTDIR);
        let error = ensure(root.as_fd(), "/", Kind::File, None, &mut stubs).expect_err("a directory");
        assert_eq!(error, Errno::ISDIR);
        fs::remove_dir_all(dir).expect("cleaned");
    }
}
