//! One entry on the wire: a `Stat` with Go's file mode bits.
use crate::wire::fsutil::Stat;
use tree::{Entry, Kind, PathError, RootPath, Timestamp};

const DIR: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
const DEVICE: u32 = 1 << 26;
const FIFO: u32 = 1 << 25;
const SOCKET: u32 = 1 << 24;
const SETUID: u32 = 1 << 23;
const SETGID: u32 = 1 << 22;
const CHAR: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;

/// Why a `Stat` is refused.
#[derive(Debug, thiserror::Error)]
pub enum StatError {
    /// It is no path inside the root as a sender must write it.
    #[error("path {0:?} is not a clean path inside the directory")]
    Path(String),
    /// It breaks a limit of paths.
    #[error(transparent)]
    Limit(#[from] PathError),
    /// Sockets and unknown kinds are never sent.
    #[error("{path:?} has a kind that cannot be sent (mode {mode:o})")]
    Kind {
        /// Which entry.
        path: String,
        /// Its mode bits as they came.
        mode: u32,
    },
    /// A number makes no sense.
    #[error("{path:?} has an impossible {what}")]
    Number {
        /// Which entry.
        path: String,
        /// Which number.
        what: &'static str,
    },
}

/// A `Stat` as an entry.
///
/// # Errors
/// [`StatError`]: nothing of it is believed unchecked.
pub fn entry_of(stat: &Stat) -> Result<Entry, StatError> {
    let wrong = || StatError::Path(stat.path.clone());
    let path = RootPath::clean(stat.path.as_bytes())?;
    if path.is_root() || path.as_bytes() != stat.path.as_bytes() {
        return Err(wrong());
    }
    let number = |what| StatError::Number {
        path: stat.path.clone(),
        what,
    };
    let kind = match (
        stat.mode & (DIR | SYMLINK | DEVICE | FIFO | SOCKET),
        stat.mode & CHAR != 0,
    ) {
        (DIR, false) => Kind::Dir,
        (SYMLINK, false) => Kind::Symlink,
        (DEVICE, true) => Kind::Char,
        (DEVICE, false) => Kind::Block,
        (FIFO, false) => Kind::Fifo,
        (0, false) if stat.linkname.is_empty() => Kind::File,
        (0, false) => Kind::HardLink,
        (_, _) => {
            return Err(StatError::Kind {
                path: stat.path.clone(),
                mode: stat.mode,
            });
        }
    };
    let special = |bit, to| if stat.mode & bit != 0 { to } else { 0 };
    let mode =
        (stat.mode & 0o777) | special(SETUID, 0o4000) | special(SETGID, 0o2000) | special(STICKY, 0o1000);
    let device = |value: i64| u32::try_from(value).map_err(|_| number("device number"));
    let link = match kind {
        Kind::Symlink => {
            // A link to nowhere or with a NUL cannot be made.
            if stat.linkname.is_empty()
                || stat.linkname.contains('\0')
                || stat.linkname.len() > tree::MAX_PATH_BYTES
            {
                return Err(number("link target"));
            }
            Some(stat.linkname.clone().into_bytes())
        }
        Kind::HardLink => Some(RootPath::clean(stat.linkname.as_bytes())?.as_bytes().to_vec()),
        _ => None,
    };
    Ok(Entry {
        path,
        kind,
        mode,
        uid: stat.uid,
        gid: stat.gid,
        size: match kind {
            Kind::File => u64::try_from(stat.size).map_err(|_| number("size"))?,
            _ => 0,
        },
        mtime: Timestamp::from_nanos(stat.mod_time),
        link,
        rdev: (device(stat.devmajor)?, device(stat.devminor)?),
        xattrs: stat
            .xattrs
            .iter()
            .map(|(key, value)| (key.clone().into_bytes(), value.to_vec()))
            .collect(),
    })
}

/// An entry as a `Stat`; paths that are no UTF-8 are sent with replacement characters, as Go sends them.
pub fn stat_of(entry: &Entry) -> Stat {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let kind = match entry.kind {
        Kind::Dir => DIR,
        Kind::Symlink => SYMLINK,
        Kind::Char => DEVICE | CHAR,
        Kind::Block => DEVICE,
        Kind::Fifo => FIFO,
        Kind::File | Kind::HardLink => 0,
    };
    let special = |bit, to| if entry.mode & bit != 0 { to } else { 0 };
    Stat {
        path: text(entry.path.as_bytes()),
        mode: (entry.mode & 0o777)
            | kind
            | special(0o4000, SETUID)
            | special(0o2000, SETGID)
            | special(0o1000, STICKY),
        uid: entry.uid,
        gid: entry.gid,
        size: i64::try_from(entry.size).unwrap_or(i64::MAX),
        mod_time: entry
            .mtime
            .secs
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(entry.mtime.nanos)),
        linkname: entry.link.as_deref().map(text).unwrap_or_default(),
        devmajor: i64::from(entry.rdev.0),
        devminor: i64::from(entry.rdev.1),
        xattrs: entry
            .xattrs
            .iter()
            .map(|(key, value)| (text(key), value.clone().into()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(path: &str, mode: u32) -> Stat {
        Stat {
            path: path.into(),
            mode,
            ..Stat::default()
        }
    }

    #[test]
    fn modes_of_go() {
        for (mode, link, kind, bits) in [
            (2_147_484_141, "", Kind::Dir, 0o755),
            (0o644, "", Kind::File, 0o644),
            (0o644 | SETUID | STICKY, "", Kind::File, 0o5644),
            (SYMLINK | 0o777, "target", Kind::Symlink, 0o777),
            (0o600, "a/b", Kind::HardLink, 0o600),
            (DEVICE | CHAR | 0o600, "", Kind::Char, 0o600),
            (DEVICE | 0o600, "", Kind::Block, 0o600),
            (FIFO | 0o600, "", Kind::Fifo, 0o600),
        ] {
            let sent = Stat {
                linkname: link.into(),
                ..stat("x", mode)
            };
            let entry = entry_of(&sent).expect("a good stat");
            assert_eq!((entry.kind, entry.mode), (kind, bits), "{mode:o}");
            assert_eq!(stat_of(&entry), sent, "{mode:o}");
        }
    }

    #[test]
    fn what_a_stranger_may_send_is_refused() {
        for path in [
            "",
            "/",
            "/etc",
            "../x",
            "a/../b",
            "a//b",
            "./a",
            "a/",
            "a\0b",
            &"x/".repeat(3000),
        ] {
            assert!(entry_of(&stat(path, 0o644)).is_err(), "{path:?}");
        }
        for mode in [SOCKET, DIR | SYMLINK, CHAR, DEVICE | FIFO] {
            assert!(entry_of(&stat("x", mode)).is_err(), "{mode:o}");
        }
        assert!(entry_of(&stat("x", SYMLINK)).is_err(), "a link to nowhere");
        let negative = Stat {
            size: -1,
            ..stat("x", 0)
        };
        assert!(entry_of(&negative).is_err());
    }
}
