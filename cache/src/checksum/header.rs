//! The digest of one entry: its attributes as text, then its contents.
//!
//! ```text
//! "name" "" "mode" 420 "uid" 0 "gid" 0 "size" 4 "typeflag" "0" "linkname" "" "uname" "" "gname" "" "devmajor" 0 "devminor" 0
//! then each extended attribute's name and value, sorted; then the bytes of the file
//! ```

use std::io::Read;

use sha2::{Digest as _, Sha256};
use tree::{Entry, Kind};

use crate::layer::{HeaderDigest, LayerError};

/// How much of a file is read at once.
const BUFFER_BYTES: usize = 128 * 1024;

/// The state of the hash after an entry's attributes.
pub(super) fn attributes(entry: &Entry) -> Sha256 {
    let mut hash = Sha256::new();
    let mode = if entry.kind == Kind::Symlink {
        0o777
    } else {
        entry.mode & 0o7777
    };
    let size = if entry.kind == Kind::File { entry.size } else { 0 };
    let typeflag = match entry.kind {
        Kind::File | Kind::HardLink => '0',
        Kind::Dir => '5',
        Kind::Symlink => '2',
        Kind::Char => '3',
        Kind::Block => '4',
        Kind::Fifo => '6',
    };
    let link = if entry.kind == Kind::Symlink {
        entry.link.as_deref().unwrap_or_default()
    } else {
        &[]
    };
    let (major, minor) = entry.rdev;
    let (uid, gid) = (entry.uid, entry.gid);
    hash.update(format!(
        "namemode{mode}uid{uid}gid{gid}size{size}typeflag{typeflag}linkname"
    ));
    hash.update(link);
    hash.update(format!("unamegnamedevmajor{major}devminor{minor}"));
    for (name, value) in &entry.xattrs {
        let hidden = name.starts_with(b"security.") || name.starts_with(b"system.");
        if !hidden || name == b"security.capability" {
            hash.update(name);
            hash.update(value);
        }
    }
    hash
}

/// The digest of a file, whose contents must be as long as its entry says.
pub(super) fn file(entry: &Entry, mut contents: impl Read) -> Result<HeaderDigest, LayerError> {
    let mut hash = attributes(entry);
    let length = usize::try_from(entry.size)
        .unwrap_or(usize::MAX)
        .saturating_add(1);
    let mut buffer = vec![0; length.min(BUFFER_BYTES)];
    let mut read = 0_u64;
    loop {
        match contents.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                hash.update(&buffer[..length]);
                read += length as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(LayerError::io("read contents")(error)),
        }
        if read > entry.size {
            break;
        }
    }
    if read != entry.size {
        return Err(LayerError::Changed {
            path: entry.path.display().to_string(),
            expected: entry.size,
            found: read,
        });
    }
    Ok(hash.finalize().into())
}
