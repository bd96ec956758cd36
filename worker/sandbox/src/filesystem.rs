//! Mounts as descriptors: made detached, attached by descriptor, never by a path that somebody could change.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::{self, MountAttributes};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Result;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// One option of a file system.
pub(crate) enum FsOption<'a> {
    /// `key`
    Flag(&'a CStr),
    /// `key=value`
    Value(&'a CStr, &'a CStr),
}

/// A new file system of type `kind`, detached. Does not allocate; `init` uses it.
///
/// # Errors
/// Those of fsopen(2), fsconfig(2) and fsmount(2).
pub(crate) fn create(kind: &CStr, options: &[FsOption<'_>], attributes: MountAttrFlags) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    // What mount(8) and df(1) show in the first column; without it they show `none`.
    fsconfig_set_string(&context, c"source", kind)?;
    for option in options {
        match option {
            FsOption::Flag(key) => fsconfig_set_flag(&context, *key)?,
            FsOption::Value(key, value) => fsconfig_set_string(&context, *key, *value)?,
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a detached mount onto what `target` refers to. Does not allocate.
///
/// # Errors
/// Those of move_mount(2).
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// A detached copy of the tree at `source`, with what is mounted below it. Does not allocate.
///
/// # Errors
/// Those of open_tree(2) and mount_setattr(2).
pub(crate) fn copy(source: impl AsFd) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(source, c"", flags)?;
    // Where the host's mounts are shared, as systemd has them, the copy would follow them.
    let private = MountAttributes::propagate(libc::MS_PRIVATE);
    sys::mount_setattr(tree.as_fd(), private)
        .map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))?;
    Ok(tree)
}

/// Opens `path` as if `root` were `/`: links are followed inside, nothing leads out. Does not allocate for a `&CStr`.
///
/// # Errors
/// Those of openat2(2).
pub(crate) fn open_in_root<P: rustix::path::Arg>(root: impl AsFd, path: P, flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Opens `path` beneath `dir` without following any link; for the kernel's own trees. Does not allocate.
///
/// # Errors
/// Those of openat2(2).
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// What the kernel says beyond the error number of a failed fsconfig(2).
pub(crate) fn log_of(context: BorrowedFd<'_>) -> String {
    let mut text = String::new();
    let mut line = [0_u8; 512];
    while let Ok(length) = rustix::io::read(context, &mut line) {
        if length == 0 {
            break;
        }
        let said = String::from_utf8_lossy(&line[..length]);
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(said.trim_end().trim_start_matches(['e', 'w', 'i']).trim_start());
    }
    if text.is_empty() {
        "no details".into()
    } else {
        text
    }
}

/// `text` for the kernel.
///
/// # Errors
/// `InvalidInput` when it holds a zero byte.
pub(crate) fn c_string(text: impl Into<Vec<u8>>) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
