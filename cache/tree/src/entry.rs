//! One entry of a tree: everything that is said of a path, except its contents.

use std::collections::BTreeMap;

use crate::RootPath;

/// What kind of thing an entry is. Sockets have no kind: they are never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link; [`Entry::link`] is its target as written.
    Symlink,
    /// A further name of a file listed earlier; [`Entry::link`] is that path, clean. The other fields repeat the file's.
    HardLink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

impl Kind {
    /// The kind behind the type bits of `st_mode`; none for sockets and unknown types.
    #[must_use]
    pub fn from_st_mode(mode: u32) -> Option<Kind> {
        match mode & 0o170_000 {
            0o100_000 => Some(Kind::File),
            0o040_000 => Some(Kind::Dir),
            0o120_000 => Some(Kind::Symlink),
            0o020_000 => Some(Kind::Char),
            0o060_000 => Some(Kind::Block),
            0o010_000 => Some(Kind::Fifo),
            _ => None,
        }
    }
}

/// A point in time as file systems keep it: seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds since 1970; negative before.
    pub secs: i64,
    /// Nanoseconds after `secs`, below 1,000,000,000.
    pub nanos: u32,
}

impl Timestamp {
    /// From seconds alone.
    #[must_use]
    pub fn from_secs(secs: i64) -> Self {
        Timestamp { secs, nanos: 0 }
    }

    /// From nanoseconds since 1970.
    #[must_use]
    pub fn from_nanos(nanos: i64) -> Self {
        let part = nanos.rem_euclid(1_000_000_000);
        Timestamp {
            secs: nanos.div_euclid(1_000_000_000),
            nanos: u32::try_from(part).unwrap_or(0),
        }
    }

    /// The time of the clock, now.
    #[must_use]
    pub fn now() -> Self {
        std::time::SystemTime::now().into()
    }
}

impl From<std::time::SystemTime> for Timestamp {
    fn from(time: std::time::SystemTime) -> Self {
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => Timestamp {
                secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                nanos: since.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                let nanos = i64::try_from(before.as_nanos()).unwrap_or(i64::MAX);
                Timestamp::from_nanos(-nanos)
            }
        }
    }
}

/// One path of a tree and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub path: RootPath,
    /// What it is.
    pub kind: Kind,
    /// Permission, setuid, setgid and sticky bits: 0 to 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of contents; 0 for all but files and hard links.
    pub size: u64,
    /// When the contents last changed.
    pub mtime: Timestamp,
    /// Target of a symbolic link (as written) or of a hard link (clean path in the same tree).
    pub link: Option<Vec<u8>>,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// An entry of `kind` owned by 0:0, with mode `mode`, time 0 and nothing else.
    #[must_use]
    pub fn new(path: RootPath, kind: Kind, mode: u32) -> Self {
        Entry {
            path,
            kind,
            mode: mode & 0o7777,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Timestamp::default(),
            link: None,
            rdev: (0, 0),
            xattrs: BTreeMap::new(),
        }
    }

    /// A directory owned by 0:0.
    #[must_use]
    pub fn dir(path: RootPath, mode: u32) -> Self {
        Entry::new(path, Kind::Dir, mode)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }
}
