//! A directory held by descriptor; everything beneath it is reached through that descriptor.
//!
//! ```text
//! Root (descriptor) + RootPath ─▶ openat2(RESOLVE_BENEATH | NO_SYMLINKS) ─▶ parent ─▶ one call on one name
//! ```
//!
//! No link on the way is followed; the kernel refuses (`ELOOP`). The only exception is
//! [`Root::open_file_following`], where links are resolved *inside* the root (`RESOLVE_IN_ROOT`).
//! Special files are never opened for contents: files are opened with `O_NONBLOCK` and then looked at.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, StatxFlags};

use crate::{Entry, Error, Kind, Result, RootPath, Timestamp};

/// A directory, and the promise that nothing outside it is touched. Cloning shares the descriptor.
#[derive(Clone, Debug)]
pub struct Root {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    is_kept: bool,
}

/// What identifies one state of one inode: if all of it is unchanged, so are contents and attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StatId {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Time of the last change of contents.
    pub mtime: Timestamp,
    /// Time of the last change of contents or attributes; in a root that is kept, the time it was made.
    pub ctime: Timestamp,
}

/// What `lstat` says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// Type and permission bits, as `st_mode`.
    pub st_mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names the inode has.
    pub nlink: u64,
    /// Device numbers of a device.
    pub rdev: (u32, u32),
    /// Which state of which inode this is (with size and times).
    pub id: StatId,
}

impl Metadata {
    /// The kind; none for sockets.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_st_mode(self.st_mode)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind() == Some(Kind::Dir)
    }

    /// The entry this says of `path`, without link target and extended attributes; none for sockets.
    #[must_use]
    pub fn to_entry(&self, path: RootPath) -> Option<Entry> {
        let kind = self.kind()?;
        let mut entry = Entry::new(path, kind, self.st_mode);
        entry.uid = self.uid;
        entry.gid = self.gid;
        entry.size = if kind == Kind::File { self.id.size } else { 0 };
        entry.mtime = self.id.mtime;
        if matches!(kind, Kind::Char | Kind::Block) {
            entry.rdev = self.rdev;
        }
        Some(entry)
    }
}

/// The number of names is wider on some machines than on others.
fn widened(number: impl Into<u64>) -> u64 {
    number.into()
}

/// Nanoseconds as the kernel gives them, which are 0 to 1e9.
fn nanos(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(0)
}

pub(crate) fn metadata_of(stat: &rustix::fs::Stat) -> Metadata {
    Metadata {
        st_mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: widened(stat.st_nlink),
        rdev: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
        id: StatId {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: Timestamp {
                secs: stat.st_mtime,
                nanos: nanos(stat.st_mtime_nsec),
            },
            ctime: Timestamp {
                secs: stat.st_ctime,
                nanos: nanos(stat.st_ctime_nsec),
            },
        },
    }
}

impl Root {
    /// What `name` in the directory `parent` is (the directory itself, for an empty name).
    pub(crate) fn look(&self, parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Metadata> {
        let flags = match name.is_empty() {
            true => AtFlags::EMPTY_PATH,
            false => AtFlags::SYMLINK_NOFOLLOW,
        };
        let mut metadata = metadata_of(&rustix::fs::statat(parent, name, flags)?);
        if self.is_kept {
            let found = rustix::fs::statx(parent, name, flags, StatxFlags::BTIME)?;
            if found.stx_mask & StatxFlags::BTIME.bits() != 0 {
                metadata.id.ctime = Timestamp {
                    secs: found.stx_btime.tv_sec,
                    nanos: nanos(found.stx_btime.tv_nsec),
                };
            }
        }
        Ok(metadata)
    }
}

/// One name of a directory, with what the listing alone says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    /// The name.
    pub name: Vec<u8>,
    /// The kind, where the file system tells it in the listing.
    pub kind: Option<Kind>,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

impl Root {
    /// Opens the directory `path` (following links to it, as it is the caller's own choice).
    ///
    /// # Errors
    /// The kernel's, if it cannot be opened or is no directory.
    pub fn open(path: &Path) -> Result<Root> {
        let fd = rustix::fs::open(
            path,
            OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY,
            Mode::empty(),
        )
        .map_err(|cause| Error::Io {
            action: "open directory",
            root: path.to_path_buf(),
            path: RootPath::root(),
            cause: cause.into(),
        })?;
        Ok(Root {
            fd: Arc::new(fd),
            path: path.to_path_buf(),
            is_kept: false,
        })
    }

    /// The same directory as one in which no file is ever written again. Further names change the `ctime` of a file, and
    /// the state of its inode does not depend on it there, but on when it was made, where the file system knows that.
    #[must_use]
    pub fn kept(mut self) -> Root {
        self.is_kept = true;
        self
    }

    /// The root's own path, for messages and mounts.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn error(&self, action: &'static str, path: &RootPath, cause: impl Into<io::Error>) -> Error {
        Error::Io {
            action,
            root: self.path.clone(),
            path: path.clone(),
            cause: cause.into(),
        }
    }

    fn openat(&self, path: &RootPath, flags: OFlags, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        loop {
            let opened = rustix::fs::openat2(
                &*self.fd,
                path.as_path(),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            );
            match opened {
                // The kernel asks for a retry when a rename raced with the resolution.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Opens a directory for listing and for calls on its names.
    ///
    /// # Errors
    /// The kernel's; `ELOOP` if a component is a link.
    pub fn open_dir(&self, path: &RootPath) -> Result<OwnedFd> {
        self.openat(
            path,
            OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW,
            BENEATH,
        )
        .map_err(|cause| self.error("open directory", path, cause))
    }

    /// The same directory as a root of its own.
    ///
    /// # Errors
    /// As [`Root::open_dir`].
    pub fn sub_root(&self, path: &RootPath) -> Result<Root> {
        let fd = self.open_dir(path)?;
        Ok(Root {
            fd: Arc::new(fd),
            path: self.path.join(path.as_path()),
            is_kept: self.is_kept,
        })
    }

    /// Opens the directory that holds `path`, and gives its last name. The root itself has none.
    pub(crate) fn parent_of<'a>(
        &self,
        action: &'static str,
        path: &'a RootPath,
    ) -> Result<(Parent, &'a [u8])> {
        let (Some(parent), Some(name)) = (path.parent_bytes(), path.file_name()) else {
            return Err(self.error(action, path, rustix::io::Errno::BUSY));
        };
        if parent.is_empty() {
            return Ok((Parent::Root(Arc::clone(&self.fd)), name));
        }
        let parent = RootPath::from_clean(parent.to_vec());
        let fd = self
            .openat(
                &parent,
                OFlags::DIRECTORY | OFlags::PATH | OFlags::NOFOLLOW,
                BENEATH,
            )
            .map_err(|cause| self.error(action, path, cause))?;
        Ok((Parent::Below(fd), name))
    }

    fn open_checked(
        &self,
        path: &RootPath,
        extra: OFlags,
        resolve: ResolveFlags,
    ) -> Result<(File, Metadata)> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | extra;
        let fd = match self.openat(path, flags, resolve) {
            Err(rustix::io::Errno::NXIO | rustix::io::Errno::NODEV) => {
                return Err(Error::NotAFile {
                    root: self.path.clone(),
                    path: path.clone(),
                });
            }
            other => other.map_err(|cause| self.error("open", path, cause))?,
        };
        let metadata = self
            .look(fd.as_fd(), b"")
            .map_err(|cause| self.error("stat", path, cause))?;
        if metadata.kind() != Some(Kind::File) {
            return Err(Error::NotAFile {
                root: self.path.clone(),
                path: path.clone(),
            });
        }
        Ok((File::from(fd), metadata))
    }

    /// Opens a regular file for reading, following no link at all.
    ///
    /// # Errors
    /// [`Error::NotAFile`] for anything else that exists; the kernel's otherwise.
    pub fn open_file(&self, path: &RootPath) -> Result<(File, Metadata)> {
        self.open_checked(path, OFlags::NOFOLLOW, BENEATH)
    }

    /// Opens a regular file for reading, resolving links inside this root.
    ///
    /// # Errors
    /// As [`Root::open_file`].
    pub fn open_file_following(&self, path: &RootPath) -> Result<(File, Metadata)> {
        self.open_checked(
            path,
            OFlags::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// What `path` is, itself (a link is not followed).
    ///
    /// # Errors
    /// The kernel's.
    pub fn metadata(&self, path: &RootPath) -> Result<Metadata> {
        if path.is_root() {
            let found = self.look(self.fd.as_fd(), b"");
            return found.map_err(|cause| self.error("stat", path, cause));
        }
        let (parent, name) = self.parent_of("stat", path)?;
        self.look(parent.as_fd(), name)
            .map_err(|cause| self.error("stat", path, cause))
    }

    /// As [`Root::metadata`], with none for what does not exist.
    ///
    /// # Errors
    /// The kernel's.
    pub fn try_metadata(&self, path: &RootPath) -> Result<Option<Metadata>> {
        match self.metadata(path) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names in a directory, sorted as bytes, without `.` and `..`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read_dir(&self, path: &RootPath) -> Result<Vec<DirItem>> {
        let fd = self.open_dir(path)?;
        list(fd.as_fd()).map_err(|cause| self.error("list", path, cause))
    }

    /// The target of a symbolic link, as written.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` if it is no link.
    pub fn read_link(&self, path: &RootPath) -> Result<Vec<u8>> {
        let (parent, name) = self.parent_of("read link", path)?;
        let target = rustix::fs::readlinkat(&parent, name, Vec::new())
            .map_err(|cause| self.error("read link", path, cause))?;
        Ok(target.into_bytes())
    }

    /// The complete entry of `path`, with link target and extended attributes; none for sockets.
    ///
    /// # Errors
    /// The kernel's.
    pub fn entry(&self, path: &RootPath) -> Result<Option<Entry>> {
        let metadata = self.metadata(path)?;
        let Some(mut entry) = metadata.to_entry(path.clone()) else {
            return Ok(None);
        };
        if entry.kind == Kind::Symlink {
            entry.link = Some(self.read_link(path)?);
        }
        entry.xattrs = self.xattrs(path)?;
        Ok(Some(entry))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The directory a call is made on: the root's own descriptor or one opened for the call.
pub(crate) enum Parent {
    Root(Arc<OwnedFd>),
    Below(OwnedFd),
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Parent::Root(fd) => fd.as_fd(),
            Parent::Below(fd) => fd.as_fd(),
        }
    }
}

/// Lists an open directory from its start, sorted.
pub(crate) fn list(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<DirItem>> {
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut items = Vec::new();
    let mut listing = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(item) = listing.next() {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            items.push(DirItem {
                name: name.to_vec(),
                kind: kind_of(item.file_type()),
            });
        }
    }
    items.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    Ok(items)
}

fn kind_of(kind: rustix::fs::FileType) -> Option<Kind> {
    use rustix::fs::FileType;
    match kind {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Dir),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::CharacterDevice => Some(Kind::Char),
        FileType::BlockDevice => Some(Kind::Block),
        FileType::Fifo => Some(Kind::Fifo),
        FileType::Socket | FileType::Unknown => None,
    }
}
