//! The tree form of a layer: its entries in BuildKit's order, and where each content lies.
//!
//! ```text
//! records (fixed size, sorted by path)     arena (paths, link targets, encoded xattrs)
//!   0  ""        dir   end=5 ─────────────▶ ""
//!   1  "a"       dir   end=3
//!   2  "a/x"     file  place=Tar{offset}
//!   3  "b"       whiteout
//!   4  "c"       file  place=Dir
//! ```
//!
//! Record 0 is the root. `end` is where a record's subtree ends, so children are found by skipping.
//! A record is an entry, a whiteout (the path is deleted), and it may be *opaque* (a directory that hides what
//! lower layers have in it) or *implied* (an archive named something beneath a directory it did not list: the
//! directory takes its attributes from below, or 0755 root).
//!
//! Header digests (see `checksum`) are filled in as they become known; they are the only part that changes.

use std::{cmp::Ordering, collections::BTreeMap, ops::Range};

use parking_lot::RwLock;
use tree::{Entry, Kind, RootPath, Timestamp};

use crate::stat_cache::StatOrigin;

/// What a record says of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// The path is such a thing.
    Entry(Kind),
    /// The path is deleted.
    Whiteout,
}

/// Where the contents of a file lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it has none (all but files), or it is empty.
    None,
    /// In the layer's uncompressed tar, from this byte on.
    Tar {
        /// Bytes from the start of the tar.
        offset: u64,
    },
    /// In the layer's directory (or the external root), at the same path.
    Dir,
}

pub(super) const FLAG_OPAQUE: u8 = 1;
pub(super) const FLAG_IMPLIED: u8 = 2;
/// On the root alone: the tree is a build context, whose root has no attributes of its own.
pub(super) const FLAG_CONTEXT: u8 = 4;

/// One record; offsets point into the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) path_at: u32,
    pub(super) path_len: u32,
    pub(super) link_at: u32,
    pub(super) link_len: u32,
    pub(super) xattr_at: u32,
    pub(super) xattr_len: u32,
    pub(super) end: u32,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: (u32, u32),
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) kind: NodeKind,
    pub(super) flags: u8,
    pub(super) place: Place,
}

/// A 32-byte SHA-256 of a file's header and contents, as `checksum` defines it.
pub type HeaderDigest = [u8; 32];

/// The digests known so far, one slot per record.
#[derive(Debug, Default)]
pub(super) struct Digests {
    pub(super) slots: Vec<Option<HeaderDigest>>,
    pub(super) changed: bool,
}

/// A layer's entries in order. Cheap to share (`Arc`), never changed but for known digests.
#[derive(Debug)]
pub struct TreeIndex {
    pub(super) records: Vec<Record>,
    pub(super) arena: Vec<u8>,
    pub(super) digests: RwLock<Digests>,
    /// For a context read in place: which state of which inode each record was.
    pub(super) origin: Option<StatOrigin>,
}

impl TreeIndex {
    /// The index of a layer that changes nothing.
    #[must_use]
    pub fn empty() -> Self {
        super::TreeBuilder::new().finish()
    }

    /// The index of a build context, of entries that come in order with every parent before its children.
    ///
    /// # Errors
    /// [`super::LayerError::OutOfOrder`].
    pub fn of_context(
        entries: impl IntoIterator<Item = (Entry, Option<HeaderDigest>)>,
    ) -> Result<Self, super::LayerError> {
        let mut tree = super::builder::Assembly::default();
        // A folder made as a copy of the context's root is as new as the context's copy would be with BuildKit.
        let root = Entry {
            mtime: Timestamp::now(),
            ..Entry::dir(RootPath::root(), 0o755)
        };
        tree.push(
            &root.path,
            Some(&root),
            Place::None,
            FLAG_IMPLIED | FLAG_CONTEXT,
            None,
        );
        let mut last = RootPath::root();
        for (entry, digest) in entries {
            if entry.path <= last {
                return Err(super::LayerError::OutOfOrder {
                    path: entry.path.display().to_string(),
                    last: last.display().to_string(),
                });
            }
            let place = if entry.kind == Kind::File {
                Place::Dir
            } else {
                Place::None
            };
            tree.push(&entry.path, Some(&entry), place, 0, digest);
            last = entry.path;
        }
        let tree = tree.finish();
        tree.note_digests_saved();
        Ok(tree)
    }

    /// How many records there are, the root included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether the layer changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.len() <= 1
    }

    /// One record, by position.
    ///
    /// # Panics
    /// If `index` is not below [`TreeIndex::len`].
    #[must_use]
    pub fn get(&self, index: u32) -> EntryRef<'_> {
        EntryRef {
            tree: self,
            index,
            record: &self.records[index as usize],
        }
    }

    /// All records in order, the root first.
    pub fn iter(&self) -> impl Iterator<Item = EntryRef<'_>> {
        (0..self.count()).map(|index| self.get(index))
    }

    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.records.len()).expect("a builder refuses more than 2^32 records")
    }

    pub(super) fn bytes(&self, at: u32, len: u32) -> &[u8] {
        &self.arena[at as usize..at as usize + len as usize]
    }

    pub(super) fn path_of(&self, index: u32) -> &[u8] {
        let record = &self.records[index as usize];
        self.bytes(record.path_at, record.path_len)
    }

    /// The position of `path`.
    #[must_use]
    pub fn find(&self, path: &RootPath) -> Option<u32> {
        self.find_within(0..self.count(), path.as_bytes())
    }

    /// The position of `path` among the records `within`.
    #[must_use]
    pub fn find_within(&self, within: Range<u32>, path: &[u8]) -> Option<u32> {
        let (mut low, mut high) = (within.start, within.end);
        while low < high {
            let middle = low + (high - low) / 2;
            match RootPath::compare_bytes(self.path_of(middle), path) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// The positions of everything beneath `index`.
    #[must_use]
    pub fn below(&self, index: u32) -> Range<u32> {
        index + 1..self.records[index as usize].end
    }

    /// The positions of the direct children in `span`, which is what [`TreeIndex::below`] gave.
    pub fn children(&self, span: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        let mut next = span.start;
        std::iter::from_fn(move || {
            (next < span.end).then(|| {
                let index = next;
                next = self.records[index as usize].end;
                index
            })
        })
    }

    /// Bytes of contents that this layer brings (hard links not counted twice).
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.records
            .iter()
            .filter(|record| record.kind == NodeKind::Entry(Kind::File))
            .map(|record| record.size)
            .sum()
    }

    /// The header digest of a record, where it is known.
    #[must_use]
    pub fn digest(&self, index: u32) -> Option<HeaderDigest> {
        self.digests.read().slots.get(index as usize).copied().flatten()
    }

    /// Keeps header digests that were worked out.
    pub fn keep_digests(&self, found: impl IntoIterator<Item = (u32, HeaderDigest)>) {
        let mut digests = self.digests.write();
        if digests.slots.is_empty() {
            digests.slots.resize(self.records.len(), None);
        }
        for (index, digest) in found {
            if let Some(slot) = digests.slots.get_mut(index as usize)
                && *slot != Some(digest)
            {
                *slot = Some(digest);
                digests.changed = true;
            }
        }
    }

    /// Says which state of which inode each record was, so that contents that change meanwhile are noticed and digests
    /// are kept for the next build.
    #[must_use]
    pub fn with_origin(mut self, origin: StatOrigin) -> Self {
        self.origin = Some(origin);
        self
    }

    /// Which state of which inode each record was, for a context read in place.
    #[must_use]
    pub fn origin(&self) -> Option<&StatOrigin> {
        self.origin.as_ref()
    }

    pub(crate) fn note_digests_saved(&self) {
        self.digests.write().changed = false;
    }

    /// Whether digests became known since the index was made or last encoded: it is worth writing again.
    #[must_use]
    pub fn has_new_digests(&self) -> bool {
        self.digests.read().changed
    }

    /// Whether the two say the same of every path (where contents lie and which digests are known aside).
    #[must_use]
    pub fn same_entries(&self, other: &TreeIndex) -> bool {
        self.len() == other.len()
            && self.iter().zip(other.iter()).all(|(left, right)| {
                left.kind() == right.kind()
                    && left.is_opaque() == right.is_opaque()
                    && left.is_implied() == right.is_implied()
                    && left.entry() == right.entry()
            })
    }
}

/// One record of a [`TreeIndex`], borrowed.
#[derive(Clone, Copy)]
pub struct EntryRef<'a> {
    tree: &'a TreeIndex,
    index: u32,
    record: &'a Record,
}

impl<'a> EntryRef<'a> {
    /// Its position.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The bytes of its path, clean and without leading slash.
    #[must_use]
    pub fn path_bytes(&self) -> &'a [u8] {
        self.tree.path_of(self.index)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> RootPath {
        RootPath::from_clean(self.path_bytes().to_vec())
    }

    /// The last component of its path; empty for the root.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        let path = self.path_bytes();
        path.iter()
            .rposition(|&byte| byte == b'/')
            .map_or(path, |slash| &path[slash + 1..])
    }

    /// What it says of the path.
    #[must_use]
    pub fn kind(&self) -> NodeKind {
        self.record.kind
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.record.kind == NodeKind::Entry(Kind::Dir)
    }

    /// Whether it deletes the path.
    #[must_use]
    pub fn is_whiteout(&self) -> bool {
        self.record.kind == NodeKind::Whiteout
    }

    /// Whether it is a directory that hides what lower layers have in it.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.record.flags & FLAG_OPAQUE != 0
    }

    /// Whether it is a directory that the layer needs but does not describe.
    #[must_use]
    pub fn is_implied(&self) -> bool {
        self.record.flags & FLAG_IMPLIED != 0
    }

    /// Whether it is the root of a build context, which has no attributes of its own.
    #[must_use]
    pub fn is_context_root(&self) -> bool {
        self.record.flags & FLAG_CONTEXT != 0
    }

    /// For a context read in place: which state of which inode it was.
    #[must_use]
    pub fn stat_id(&self) -> Option<tree::StatId> {
        self.tree.origin.as_ref()?.id(self.index)
    }

    /// Bytes of contents.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.record.size
    }

    /// Permission bits, setuid and so on included.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.record.mode
    }

    /// Owner and group.
    #[must_use]
    pub fn owner(&self) -> (u32, u32) {
        (self.record.uid, self.record.gid)
    }

    /// When the contents last changed.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.record.mtime
    }

    /// Where its contents lie.
    #[must_use]
    pub fn place(&self) -> Place {
        self.record.place
    }

    /// Target of a symbolic or hard link; empty for all else.
    #[must_use]
    pub fn link(&self) -> &'a [u8] {
        self.tree.bytes(self.record.link_at, self.record.link_len)
    }

    /// Extended attributes by name.
    #[must_use]
    pub fn xattrs(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        super::codec::decode_xattrs(self.tree.bytes(self.record.xattr_at, self.record.xattr_len))
    }

    /// The entry; none for a whiteout.
    #[must_use]
    pub fn entry(&self) -> Option<Entry> {
        let NodeKind::Entry(kind) = self.record.kind else {
            return None;
        };
        let link = self.link();
        Some(Entry {
            path: self.path(),
            kind,
            mode: self.record.mode,
            uid: self.record.uid,
            gid: self.record.gid,
            size: self.record.size,
            mtime: self.record.mtime,
            link: matches!(kind, Kind::Symlink | Kind::HardLink).then(|| link.to_vec()),
            rdev: self.record.rdev,
            xattrs: self.xattrs(),
        })
    }
}
