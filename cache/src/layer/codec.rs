//! How a [`TreeIndex`] is kept on disk: written once, read in one go, refused when damaged.
//!
//! ```text
//! "BLDRTREE" version:u32 records:u32 arena:u32 has_digests:u8 zero:3
//! records × 80 bytes      see `put_record`; all little endian
//! arena
//! records × (known:u8 digest:32)   only if has_digests
//! crc32:u32 of all before
//! ```
//!
//! Compatibility: another version is refused ([`LayerError::TreeVersion`]); the index is then made again from the tar.

use std::collections::BTreeMap;

use tree::{Kind, RootPath, Timestamp};

use super::{
    LayerError,
    index::{Digests, NodeKind, Place, Record, TreeIndex},
};

const MAGIC: &[u8; 8] = b"BLDRTREE";
/// The version this code reads and writes.
pub(super) const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const RECORD_BYTES: usize = 80;

impl TreeIndex {
    /// The bytes to keep on disk, with the digests known now.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut digests = self.digests.write();
        let has_digests = digests.slots.iter().any(Option::is_some);
        let mut out =
            Vec::with_capacity(HEADER_BYTES + self.records.len() * (RECORD_BYTES + 33) + self.arena.len());
        out.extend_from_slice(MAGIC);
        put_u32(&mut out, VERSION);
        put_u32(&mut out, self.count());
        put_u32(
            &mut out,
            u32::try_from(self.arena.len()).expect("an arena is below 4 GiB"),
        );
        out.extend_from_slice(&[u8::from(has_digests), 0, 0, 0]);
        for record in &self.records {
            put_record(&mut out, record);
        }
        out.extend_from_slice(&self.arena);
        if has_digests {
            for slot in &digests.slots {
                out.push(u8::from(slot.is_some()));
                out.extend_from_slice(&slot.unwrap_or_default());
            }
        }
        let sum = crc32fast::hash(&out);
        put_u32(&mut out, sum);
        digests.changed = false;
        out
    }

    /// Reads what [`TreeIndex::encode`] wrote.
    ///
    /// # Errors
    /// [`LayerError::TreeVersion`] for another version, [`LayerError::TreeDamaged`] for anything that is not whole.
    pub fn decode(bytes: &[u8]) -> Result<TreeIndex, LayerError> {
        let damaged = |what: &'static str| LayerError::TreeDamaged { what };
        if bytes.len() < HEADER_BYTES + 4 || &bytes[..8] != MAGIC {
            return Err(damaged("it does not begin as one"));
        }
        let version = get_u32(bytes, 8);
        if version != VERSION {
            return Err(LayerError::TreeVersion {
                found: version,
                known: VERSION,
            });
        }
        let (body, sum) = bytes.split_at(bytes.len() - 4);
        if crc32fast::hash(body) != get_u32(sum, 0) {
            return Err(damaged("its checksum differs"));
        }
        let count = get_u32(body, 12) as usize;
        let arena_len = get_u32(body, 16) as usize;
        let has_digests = body[20] != 0;
        let digest_bytes = if has_digests {
            count.checked_mul(33)
        } else {
            Some(0)
        };
        let wanted = count.checked_mul(RECORD_BYTES).and_then(|records| {
            records
                .checked_add(HEADER_BYTES)?
                .checked_add(arena_len)?
                .checked_add(digest_bytes?)
        });
        if wanted != Some(body.len()) || count == 0 {
            return Err(damaged("its length differs"));
        }
        let arena_at = HEADER_BYTES + count * RECORD_BYTES;
        let arena = body[arena_at..arena_at + arena_len].to_vec();
        let mut records = Vec::with_capacity(count);
        for bytes in body[HEADER_BYTES..arena_at].as_chunks::<RECORD_BYTES>().0 {
            let record = get_record(bytes).ok_or_else(|| damaged("a record has an unknown kind"))?;
            let index = u32::try_from(records.len()).map_err(|_| damaged("it has too many records"))?;
            let fits = |at: u32, len: u32| {
                (at as usize)
                    .checked_add(len as usize)
                    .is_some_and(|end| end <= arena_len)
            };
            if !fits(record.path_at, record.path_len)
                || !fits(record.link_at, record.link_len)
                || !fits(record.xattr_at, record.xattr_len)
                || record.end <= index
                || record.end as usize > count
            {
                return Err(damaged("a record points outside"));
            }
            records.push(record);
        }
        let slots = body[arena_at + arena_len..]
            .as_chunks::<33>()
            .0
            .iter()
            .map(|slot| (slot[0] != 0).then(|| slot[1..].try_into().expect("33 less 1 is 32")))
            .collect();
        let tree = TreeIndex {
            records,
            arena,
            digests: Digests {
                slots,
                changed: false,
            }
            .into(),
            origin: None,
        };
        let sorted = (1..tree.count())
            .all(|index| RootPath::compare_bytes(tree.path_of(index - 1), tree.path_of(index)).is_lt());
        if !sorted || !tree.path_of(0).is_empty() {
            return Err(damaged("its paths are out of order"));
        }
        Ok(tree)
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put_record(out: &mut Vec<u8>, record: &Record) {
    for value in [
        record.path_at,
        record.path_len,
        record.link_at,
        record.link_len,
        record.xattr_at,
        record.xattr_len,
        record.end,
        record.mode | u32::from(record.flags) << 16 | u32::from(kind_code(record.kind)) << 24,
        record.uid,
        record.gid,
        record.rdev.0,
        record.rdev.1,
        record.mtime.nanos,
    ] {
        put_u32(out, value);
    }
    let (place, offset) = match record.place {
        Place::None => (0, 0),
        Place::Tar { offset } => (1, offset),
        Place::Dir => (2, 0),
    };
    put_u32(out, place);
    put_u64(out, offset);
    put_u64(out, record.size);
    out.extend_from_slice(&record.mtime.secs.to_le_bytes());
}

fn get_record(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
    let at = |number: usize| get_u32(bytes, number * 4);
    let packed = at(7);
    Some(Record {
        path_at: at(0),
        path_len: at(1),
        link_at: at(2),
        link_len: at(3),
        xattr_at: at(4),
        xattr_len: at(5),
        end: at(6),
        mode: packed & 0o7777,
        flags: (packed >> 16 & 0xff) as u8,
        kind: kind_from((packed >> 24) as u8)?,
        uid: at(8),
        gid: at(9),
        rdev: (at(10), at(11)),
        mtime: Timestamp {
            nanos: at(12),
            secs: get_u64(bytes, 72).cast_signed(),
        },
        place: match at(13) {
            0 => Place::None,
            1 => Place::Tar {
                offset: get_u64(bytes, 56),
            },
            2 => Place::Dir,
            _ => return None,
        },
        size: get_u64(bytes, 64),
    })
}

fn kind_code(kind: NodeKind) -> u8 {
    match kind {
        NodeKind::Whiteout => 0,
        NodeKind::Entry(Kind::File) => 1,
        NodeKind::Entry(Kind::Dir) => 2,
        NodeKind::Entry(Kind::Symlink) => 3,
        NodeKind::Entry(Kind::HardLink) => 4,
        NodeKind::Entry(Kind::Char) => 5,
        NodeKind::Entry(Kind::Block) => 6,
        NodeKind::Entry(Kind::Fifo) => 7,
    }
}

fn kind_from(code: u8) -> Option<NodeKind> {
    Some(match code {
        0 => NodeKind::Whiteout,
        1 => NodeKind::Entry(Kind::File),
        2 => NodeKind::Entry(Kind::Dir),
        3 => NodeKind::Entry(Kind::Symlink),
        4 => NodeKind::Entry(Kind::HardLink),
        5 => NodeKind::Entry(Kind::Char),
        6 => NodeKind::Entry(Kind::Block),
        7 => NodeKind::Entry(Kind::Fifo),
        _ => return None,
    })
}

/// Extended attributes as bytes: name length, name, value length, value; nothing at all for none.
pub(super) fn encode_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in xattrs {
        for part in [name, value] {
            put_u32(
                &mut out,
                u32::try_from(part.len()).expect("an attribute is below 4 GiB"),
            );
            out.extend_from_slice(part);
        }
    }
    out
}

/// Reads what [`encode_xattrs`] wrote; stops where it is damaged (the whole file has a checksum).
pub(super) fn decode_xattrs(bytes: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut rest = bytes;
    let mut next = || -> Option<Vec<u8>> {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (part, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        Some(part.to_vec())
    };
    let mut xattrs = BTreeMap::new();
    while let (Some(name), Some(value)) = (next(), next()) {
        xattrs.insert(name, value);
    }
    xattrs
}

#[cfg(test)]
mod tests {
    use tree::Entry;

    use super::*;
    use crate::layer::TreeBuilder;

    fn sample() -> TreeIndex {
        let path = |text: &str| RootPath::clean(text).expect("a test's path is clean");
        let mut builder = TreeBuilder::new();
        let mut file = Entry::new(path("bin/ping"), Kind::File, 0o4755);
        file.size = 5_000_000_000;
        file.uid = 70_000;
        file.mtime = Timestamp { secs: -3, nanos: 7 };
        file.xattrs.insert(b"security.capability".to_vec(), vec![1, 0, 2]);
        builder.add_digested(file, Place::Tar { offset: 1 << 40 }, Some([9; 32]));
        let mut link = Entry::new(path("bin/sh"), Kind::Symlink, 0o777);
        link.link = Some(b"../x".to_vec());
        builder.add(link, Place::None);
        let mut device = Entry::new(path("dev/null"), Kind::Char, 0o666);
        device.rdev = (1, 3);
        builder.add(device, Place::None);
        builder.add_whiteout(&path("gone"));
        builder.set_opaque(&path("etc"));
        builder.finish()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let tree = sample();
        let again = TreeIndex::decode(&tree.encode()).expect("whole");
        assert!(again.same_entries(&tree));
        let ping = again
            .find(&RootPath::clean("bin/ping").expect("clean"))
            .expect("there");
        assert_eq!(again.get(ping).place(), Place::Tar { offset: 1 << 40 });
        assert_eq!(again.digest(ping), Some([9; 32]));
        assert_eq!(again.digest(0), None);
        assert!(!tree.has_new_digests(), "encoding takes note of what is written");
    }

    #[test]
    fn damage_anywhere_is_noticed() {
        let whole = sample().encode();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            assert!(TreeIndex::decode(&damaged).is_err(), "byte {at}");
        }
        for length in 0..whole.len() {
            assert!(TreeIndex::decode(&whole[..length]).is_err(), "cut at {length}");
        }
    }
}
