//! Mode, owner, times and extended attributes of what lies beneath a [`Root`], never through a link.
//!
//! Linux has no call for some of these on a link-free descriptor, so they go through `/proc/self/fd/<parent>/<name>`:
//! the parent is a descriptor of ours, the name one component, and the call one that does not follow the last link.

use std::{collections::BTreeMap, os::fd::AsFd, os::fd::AsRawFd};

use rustix::{
    fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::{Kind, Result, Root, RootPath, Timestamp};

/// The largest value of one extended attribute that Linux stores, in bytes.
const MAX_XATTR_BYTES: usize = 64 * 1024;

impl Root {
    /// Sets the permission bits (0 to 07777). Links have none: nothing happens for them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_mode(&self, path: &RootPath, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        if path.is_root() {
            return rustix::fs::fchmod(self, mode).map_err(|cause| self.error("set mode of", path, cause));
        }
        if self.metadata(path)?.kind() == Some(Kind::Symlink) {
            return Ok(());
        }
        let (parent, name) = self.parent_of("set mode of", path)?;
        // fchmodat follows a last link; that it is none was just looked at, and only we write beneath this root.
        rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())
            .map_err(|cause| self.error("set mode of", path, cause))
    }

    /// Sets owner and group of the path itself. Clears setuid bits, so call it before [`Root::set_mode`].
    ///
    /// # Errors
    /// The kernel's; `EPERM` or `EINVAL` where ids are not ours to give.
    pub fn set_owner(&self, path: &RootPath, uid: u32, gid: u32) -> Result<()> {
        if uid == u32::MAX || gid == u32::MAX {
            return Err(self.error("set owner of", path, Errno::INVAL)); // -1 would mean "leave"
        }
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        if path.is_root() {
            return rustix::fs::fchown(self, uid, gid)
                .map_err(|cause| self.error("set owner of", path, cause));
        }
        let (parent, name) = self.parent_of("set owner of", path)?;
        rustix::fs::chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|cause| self.error("set owner of", path, cause))
    }

    /// Sets access and modification time of the path itself to `mtime`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_mtime(&self, path: &RootPath, mtime: Timestamp) -> Result<()> {
        let time = Timespec {
            tv_sec: mtime.secs,
            tv_nsec: mtime.nanos.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        if path.is_root() {
            return rustix::fs::futimens(self, &times)
                .map_err(|cause| self.error("set time of", path, cause));
        }
        let (parent, name) = self.parent_of("set time of", path)?;
        rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|cause| self.error("set time of", path, cause))
    }

    /// Calls `with` with a path of the kernel's that names `path` without following links.
    fn by_proc<T>(
        &self,
        action: &'static str,
        path: &RootPath,
        with: impl FnOnce(&[u8]) -> rustix::io::Result<T>,
    ) -> Result<T> {
        if path.is_root() {
            let spelled = format!("/proc/self/fd/{}/.", self.as_fd().as_raw_fd());
            return with(spelled.as_bytes()).map_err(|cause| self.error(action, path, cause));
        }
        let (parent, name) = self.parent_of(action, path)?;
        let mut spelled = format!("/proc/self/fd/{}/", parent.as_fd().as_raw_fd()).into_bytes();
        spelled.extend_from_slice(name);
        with(&spelled).map_err(|cause| self.error(action, path, cause))
    }

    /// All extended attributes by name; none where the file system has no such thing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn xattrs(&self, path: &RootPath) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        self.by_proc("read attributes of", path, read_xattrs)
    }

    /// One extended attribute; none if it is not set.
    ///
    /// # Errors
    /// The kernel's.
    pub fn xattr(&self, path: &RootPath, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.by_proc("read attribute of", path, |spelled| get_xattr(spelled, name))
    }

    /// Sets one extended attribute.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_xattr(&self, path: &RootPath, name: &[u8], value: &[u8]) -> Result<()> {
        self.by_proc("set attribute of", path, |spelled| {
            rustix::fs::lsetxattr(spelled, name, value, XattrFlags::empty())
        })
    }
}

fn read_xattrs(spelled: &[u8]) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut small = [0_u8; 256];
    let names = match rustix::fs::llistxattr(spelled, &mut small[..]) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(found),
        Ok(length) => small[..length].to_vec(),
        Err(Errno::RANGE) => {
            let mut large = vec![0_u8; MAX_XATTR_BYTES];
            let length = rustix::fs::llistxattr(spelled, &mut large[..])?;
            large.truncate(length);
            large
        }
        Err(other) => return Err(other),
    };
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if let Some(value) = get_xattr(spelled, name)? {
            found.insert(name.to_vec(), value);
        }
    }
    Ok(found)
}

fn get_xattr(spelled: &[u8], name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut value = vec![0_u8; 1024];
    loop {
        match rustix::fs::lgetxattr(spelled, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => return Ok(None),
            Err(Errno::RANGE) if value.len() < MAX_XATTR_BYTES => value.resize(MAX_XATTR_BYTES, 0),
            Err(other) => return Err(other),
        }
    }
}
