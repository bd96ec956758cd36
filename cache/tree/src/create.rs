//! Making and removing things beneath a [`Root`]. Nothing that exists is ever replaced silently.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

use crate::{
    Kind, Result, Root, RootPath,
    root::{list, metadata_of},
};

impl Root {
    /// Makes one directory with exactly these permission bits, whatever the umask.
    ///
    /// # Errors
    /// The kernel's; `EEXIST` if there is anything already.
    pub fn create_dir(&self, path: &RootPath, mode: u32) -> Result<()> {
        let (parent, name) = self.parent_of("create directory", path)?;
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))
            .map_err(|cause| self.error("create directory", path, cause))?;
        if mode & 0o7777 != 0o700 {
            self.set_mode(path, mode)?;
        }
        Ok(())
    }

    /// Makes the directory and all that lead to it, those missing with mode `mode`.
    ///
    /// # Errors
    /// The kernel's; `ENOTDIR` if something on the way is no directory.
    pub fn create_dir_all(&self, path: &RootPath, mode: u32) -> Result<()> {
        for dir in path
            .ancestors()
            .chain([path.clone()])
            .filter(|dir| !dir.is_root())
        {
            match self.create_dir(&dir, mode) {
                Ok(()) => {}
                Err(error)
                    if error
                        .io()
                        .is_some_and(|io| io.kind() == std::io::ErrorKind::AlreadyExists) =>
                {
                    if !self.metadata(&dir)?.is_dir() {
                        return Err(self.error("create directory", &dir, Errno::NOTDIR));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes a new file, open for writing, with permission bits `mode` (setuid bits are set by
    /// [`Root::set_mode`] after the contents, since writing clears them).
    ///
    /// # Errors
    /// The kernel's; `EEXIST` if there is anything already.
    pub fn create_file(&self, path: &RootPath, mode: u32) -> Result<File> {
        let (parent, name) = self.parent_of("create", path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|cause| self.error("create", path, cause))?;
        if mode & 0o777 != 0o600 {
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode & 0o777))
                .map_err(|cause| self.error("set mode of", path, cause))?;
        }
        Ok(File::from(fd))
    }

    /// Makes a symbolic link whose target is `target`, as written.
    ///
    /// # Errors
    /// The kernel's; `EEXIST` if there is anything already.
    pub fn symlink(&self, target: &[u8], path: &RootPath) -> Result<()> {
        let (parent, name) = self.parent_of("create link", path)?;
        rustix::fs::symlinkat(target, &parent, name).map_err(|cause| self.error("create link", path, cause))
    }

    /// Gives the file `existing` the further name `path`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn hard_link(&self, existing: &RootPath, path: &RootPath) -> Result<()> {
        let (from, from_name) = self.parent_of("hard link from", existing)?;
        let (to, to_name) = self.parent_of("hard link to", path)?;
        rustix::fs::linkat(&from, from_name, &to, to_name, AtFlags::empty())
            .map_err(|cause| self.error("hard link to", path, cause))
    }

    /// Makes `path` a further name of the file of the same path in another root of the same file system.
    ///
    /// # Errors
    /// The kernel's; `EXDEV` and `EMLINK` where a copy must be made instead.
    pub fn link_from(&self, other: &Root, path: &RootPath) -> Result<()> {
        self.link_from_as(other, path, path)
    }

    /// As [`Root::link_from`], of the file `existing` of the other root.
    ///
    /// # Errors
    /// As [`Root::link_from`].
    pub fn link_from_as(&self, other: &Root, existing: &RootPath, path: &RootPath) -> Result<()> {
        let (from, from_name) = other.parent_of("link from", existing)?;
        let (to, to_name) = self.parent_of("link", path)?;
        rustix::fs::linkat(&from, from_name, &to, to_name, AtFlags::empty())
            .map_err(|cause| self.error("link", path, cause))
    }

    /// Makes a device or a named pipe.
    ///
    /// # Errors
    /// The kernel's; `EPERM` for devices without privilege. [`Errno::INVAL`] for any other kind.
    pub fn mknod(&self, path: &RootPath, kind: Kind, mode: u32, rdev: (u32, u32)) -> Result<()> {
        let file_type = match kind {
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            Kind::File | Kind::Dir | Kind::Symlink | Kind::HardLink => {
                return Err(self.error("create node", path, Errno::INVAL));
            }
        };
        let (parent, name) = self.parent_of("create node", path)?;
        let device = rustix::fs::makedev(rdev.0, rdev.1);
        rustix::fs::mknodat(&parent, name, file_type, Mode::from_raw_mode(0o600), device)
            .map_err(|cause| self.error("create node", path, cause))?;
        self.set_mode(path, mode)
    }

    /// Removes one file, link or node.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_file(&self, path: &RootPath) -> Result<()> {
        let (parent, name) = self.parent_of("remove", path)?;
        rustix::fs::unlinkat(&parent, name, AtFlags::empty())
            .map_err(|cause| self.error("remove", path, cause))
    }

    /// Moves `from` to `to`, replacing what is there as rename(2) does.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rename(&self, from: &RootPath, to: &RootPath) -> Result<()> {
        let (from_dir, from_name) = self.parent_of("rename", from)?;
        let (to_dir, to_name) = self.parent_of("rename", to)?;
        rustix::fs::renameat(&from_dir, from_name, &to_dir, to_name)
            .map_err(|cause| self.error("rename", from, cause))
    }

    /// Removes whatever is at `path`, with all beneath it, by descriptor; nothing there is no error.
    /// For the root itself its contents are removed and the directory stays.
    ///
    /// # Errors
    /// The kernel's; what was removed before stays removed.
    pub fn remove_all(&self, path: &RootPath) -> Result<()> {
        if path.is_root() {
            let fd = self.open_dir(path)?;
            return empty_dir(fd.as_fd()).map_err(|cause| self.error("empty", path, cause));
        }
        let (parent, name) = match self.parent_of("remove", path) {
            Ok(found) => found,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        };
        remove_name(parent.as_fd(), name).map_err(|cause| self.error("remove", path, cause))
    }
}

/// Removes one name of a directory, and everything beneath it without recursion on our stack.
fn remove_name(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(other) => return Err(other),
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |dir: BorrowedFd<'_>, name: &[u8]| match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // A directory we own but may not list, as an ordinary user meets in its own layers.
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(0o700), AtFlags::empty())?;
            rustix::fs::openat(dir, name, flags, Mode::empty())
        }
        other => other,
    };
    let mut stack = vec![(open(parent, name)?, name.to_vec())];
    while let Some((dir, _)) = stack.last() {
        let next = remove_files(dir.as_fd())?;
        if let Some(child) = next {
            let fd = open(dir.as_fd(), &child)?;
            stack.push((fd, child));
            continue;
        }
        let Some((_, done)) = stack.pop() else { break };
        let holder = stack.last().map_or(parent, |(dir, _)| dir.as_fd());
        match rustix::fs::unlinkat(holder, &*done, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// Removes all that is no directory from `dir`; gives the name of a directory that is left, if any.
fn remove_files(dir: BorrowedFd<'_>) -> rustix::io::Result<Option<Vec<u8>>> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let writable = metadata_of(&rustix::fs::fstat(dir)?).st_mode & 0o300 == 0o300;
    if !writable {
        rustix::fs::fchmod(dir, Mode::from_raw_mode(0o700)).or_else(|cause| match cause {
            Errno::PERM => Ok(()),
            other => Err(other),
        })?;
    }
    let mut left = None;
    for item in list(dir)? {
        if item.kind == Some(Kind::Dir) {
            left = Some(item.name);
            continue;
        }
        match rustix::fs::unlinkat(dir, &*item.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) if item.kind.is_none() => left = Some(item.name),
            Err(other) => return Err(other),
        }
    }
    Ok(left)
}

fn empty_dir(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    for item in list(dir)? {
        remove_name(dir, &item.name)?;
    }
    Ok(())
}
