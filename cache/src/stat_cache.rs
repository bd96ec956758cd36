//! What was known of a build context's files last time, so that an unchanged context is a walk and not a read.
//!
//! ```text
//! walk ─▶ (path, inode state) ─▶ same as last time? ─▶ header digest without reading
//!                                     └ no ─▶ checksum reads and hashes ─▶ save
//! ```
//!
//! One file per context directory, replaced whole by rename:
//!
//! ```text
//! "BLDRSTAT" version:u32 count:u32
//! count × (path_len:u16 path dev:u64 ino:u64 size:u64 mtime:i64+u32 ctime:i64+u32 digest:32)   in path order
//! crc32:u32
//! ```
//!
//! A file that is damaged or of another version counts as empty: it only saves time.
//! Files with extended attributes are not kept: a look-up spares reading those too, and layers need them.
//! A state is kept only if it was older than [`SETTLED_SECONDS`] when the walk began: a younger file could still change
//! without its times showing it.

use std::{io::Write, path::PathBuf, sync::Arc};

use tree::{RootPath, StatId, Timestamp};

use crate::layer::{HeaderDigest, LayerError, TreeIndex};

const MAGIC: &[u8; 8] = b"BLDRSTAT";
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 2 + 24 + 12 + 12 + 32;
/// How old a state must be to be trusted: the coarsest time stamps of file systems in use are 2 s apart.
const SETTLED_SECONDS: i64 = 2;

/// Header digests of a context's files, by path and inode state.
#[derive(Debug, Default)]
pub struct StatCache {
    bytes: Vec<u8>,
    /// Where each entry begins, in path order.
    at: Vec<u32>,
}

/// Where a context's tree came from: what its records' inodes were, and where to keep digests.
#[derive(Debug, Clone)]
pub struct StatOrigin {
    /// One per record of the tree, the root's (which is not looked at) first.
    pub ids: Arc<Vec<StatId>>,
    /// The stat cache's file; none to keep nothing.
    pub file: Option<PathBuf>,
    /// When the walk began.
    pub walked_at: Timestamp,
}

impl StatOrigin {
    pub(crate) fn id(&self, index: u32) -> Option<StatId> {
        self.ids.get(index as usize).copied()
    }
}

impl StatCache {
    /// Reads a stat cache; what is not there or not whole is an empty one.
    #[must_use]
    pub fn load(file: &std::path::Path) -> StatCache {
        let Ok(bytes) = std::fs::read(file) else {
            return StatCache::default();
        };
        StatCache::parse(bytes).unwrap_or_default()
    }

    fn parse(bytes: Vec<u8>) -> Option<StatCache> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        let (header, _) = body.split_first_chunk::<16>()?;
        if &header[..8] != MAGIC
            || header[8..12] != VERSION.to_le_bytes()
            || crc32fast::hash(body) != u32::from_le_bytes(*sum)
        {
            return None;
        }
        let count = u32::from_le_bytes(header[12..16].try_into().ok()?) as usize;
        let mut at = Vec::with_capacity(count.min(body.len() / FIXED_BYTES));
        let mut position = 16;
        while position < body.len() {
            at.push(u32::try_from(position).ok()?);
            let length = u16::from_le_bytes(body.get(position..position + 2)?.try_into().ok()?);
            position += FIXED_BYTES + length as usize;
        }
        (position == body.len() && at.len() == count).then_some(StatCache { bytes, at })
    }

    fn path(&self, entry: usize) -> &[u8] {
        let at = self.at[entry] as usize;
        let length = u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]) as usize;
        &self.bytes[at + 2..at + 2 + length]
    }

    fn state(&self, entry: usize) -> (&[u8], HeaderDigest) {
        let at = self.at[entry] as usize + 2 + self.path(entry).len();
        let state = &self.bytes[at..at + 48];
        (state, self.bytes[at + 48..at + 80].try_into().expect("32 bytes"))
    }

    /// The digest of a file whose inode is in the same state as last time.
    /// `near` is where the last look-up ended: paths asked in order are found at once.
    #[must_use]
    pub fn lookup(&self, path: &RootPath, id: &StatId, near: &mut usize) -> Option<HeaderDigest> {
        let mut entry = *near;
        while entry < self.at.len() && RootPath::compare_bytes(self.path(entry), path.as_bytes()).is_lt() {
            entry += 1;
        }
        *near = entry;
        if entry >= self.at.len() || self.path(entry) != path.as_bytes() {
            return None;
        }
        let (state, digest) = self.state(entry);
        (state == encode_id(id)).then_some(digest)
    }

    /// How many files are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }
}

/// Keeps the digests of a context's tree that were worked out since it was made, if there are any.
///
/// # Errors
/// Those of writing the file.
pub fn save(tree: &TreeIndex) -> Result<(), LayerError> {
    let Some(StatOrigin {
        ids,
        file: Some(file),
        walked_at,
    }) = tree.origin()
    else {
        return Ok(());
    };
    if !tree.has_new_digests() {
        return Ok(());
    }
    let mut out = Vec::with_capacity(tree.len() * 160);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let mut count = 0_u32;
    for record in tree.iter() {
        let (Some(digest), Some(id)) = (tree.digest(record.index()), ids.get(record.index() as usize)) else {
            continue;
        };
        let settled = walked_at.secs.saturating_sub(SETTLED_SECONDS);
        if id.ctime.secs >= settled || id.mtime.secs >= settled || !record.xattrs().is_empty() {
            continue;
        }
        let path = record.path_bytes();
        let Ok(length) = u16::try_from(path.len()) else {
            continue;
        };
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(path);
        out.extend_from_slice(&encode_id(id));
        out.extend_from_slice(&digest);
        count += 1;
    }
    out[12..16].copy_from_slice(&count.to_le_bytes());
    let sum = crc32fast::hash(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    let failed = LayerError::io("write stat cache");
    let dir = file.parent().unwrap_or_else(|| std::path::Path::new("."));
    std::fs::create_dir_all(dir).map_err(&failed)?;
    let mut aside = tempfile::NamedTempFile::new_in(dir).map_err(&failed)?;
    aside.write_all(&out).map_err(&failed)?;
    aside.persist(file).map_err(|error| failed(error.error))?;
    tree.note_digests_saved();
    Ok(())
}

fn encode_id(id: &StatId) -> [u8; 48] {
    let mut out = [0; 48];
    out[..8].copy_from_slice(&id.dev.to_le_bytes());
    out[8..16].copy_from_slice(&id.ino.to_le_bytes());
    out[16..24].copy_from_slice(&id.size.to_le_bytes());
    out[24..32].copy_from_slice(&id.mtime.secs.to_le_bytes());
    out[32..36].copy_from_slice(&id.mtime.nanos.to_le_bytes());
    out[36..44].copy_from_slice(&id.ctime.secs.to_le_bytes());
    out[44..48].copy_from_slice(&id.ctime.nanos.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use tree::{Entry, Kind};

    use super::*;
    use crate::layer::{Place, TreeBuilder};

    fn path(text: &str) -> RootPath {
        RootPath::clean(text).expect("a test's path is clean")
    }

    fn id(ino: u64, secs: i64) -> StatId {
        StatId {
            ino,
            ctime: Timestamp::from_secs(secs),
            mtime: Timestamp::from_secs(secs),
            ..StatId::default()
        }
    }

    #[test]
    fn settled_states_are_known_again_and_nothing_else() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let file = temp.path().join("deep/stat");
        let mut builder = TreeBuilder::for_context();
        for name in ["a", "a/b", "old", "young", "unread"] {
            let kind = if name == "a" { Kind::Dir } else { Kind::File };
            builder.add(Entry::new(path(name), kind, 0o644), Place::Dir);
        }
        let ids = vec![
            id(0, 0),
            id(1, 100),
            id(2, 100),
            id(3, 100),
            id(5, 100),
            id(4, 999),
        ];
        let origin = StatOrigin {
            ids: Arc::new(ids),
            file: Some(file.clone()),
            walked_at: Timestamp::from_secs(1000),
        };
        let tree = builder.finish().with_origin(origin);
        let at = |name: &str| tree.find(&path(name)).expect("there");
        tree.keep_digests([(at("a/b"), [1; 32]), (at("old"), [2; 32]), (at("young"), [3; 32])]);
        save(&tree).expect("writes");
        let cache = StatCache::load(&file);
        assert_eq!(cache.len(), 2);
        let mut near = 0;
        assert_eq!(cache.lookup(&path("a"), &id(1, 100), &mut near), None);
        assert_eq!(cache.lookup(&path("a/b"), &id(2, 100), &mut near), Some([1; 32]));
        assert_eq!(
            cache.lookup(&path("old"), &id(3, 101), &mut near),
            None,
            "another ctime"
        );
        assert_eq!(cache.lookup(&path("old"), &id(3, 100), &mut near), Some([2; 32]));
        assert_eq!(
            cache.lookup(&path("young"), &id(4, 999), &mut near),
            None,
            "too young to be trusted"
        );
        let mut damaged = std::fs::read(&file).expect("there");
        damaged[20] ^= 1;
        std::fs::write(&file, damaged).expect("writes");
        assert!(StatCache::load(&file).is_empty());
        assert!(StatCache::load(&temp.path().join("none")).is_empty());
    }
}
