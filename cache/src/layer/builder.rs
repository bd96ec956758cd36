//! Makes a [`TreeIndex`] of entries that arrive in any order, with an archive's rules for what replaces what.
//!
//! ```text
//! add(entry) ─▶ parents implied where missing ─▶ later replaces earlier ─▶ finish: sorted, hard links checked
//! ```
//!
//! * A directory over a directory changes its attributes and keeps what is in it; anything else replaces.
//! * A whiteout acts on lower layers alone: an entry of the same layer stays, and a directory becomes opaque.
//! * A hard link's header speaks for all names of the file: the last one wins. When the name that holds the contents is
//!   replaced, the next name takes the contents over, as an inode would live on.

use std::collections::{BTreeMap, HashMap};

use tree::{Entry, Kind, RootPath, Timestamp};

use super::{
    codec::encode_xattrs,
    index::{Digests, FLAG_CONTEXT, FLAG_IMPLIED, FLAG_OPAQUE, NodeKind, Place, Record, TreeIndex},
};

#[derive(Debug, Clone)]
struct Pending {
    /// None for a whiteout.
    entry: Option<Entry>,
    place: Place,
    flags: u8,
    digest: Option<[u8; 32]>,
}

/// Collects entries and whiteouts for a [`TreeIndex`].
#[derive(Debug)]
pub struct TreeBuilder {
    pending: BTreeMap<RootPath, Pending>,
    /// For each file that has further names: those names.
    names: HashMap<RootPath, Vec<RootPath>>,
}

impl Default for TreeBuilder {
    fn default() -> Self {
        TreeBuilder::new()
    }
}

impl TreeBuilder {
    /// A builder with nothing but an implied root.
    #[must_use]
    pub fn new() -> Self {
        let mut pending = BTreeMap::new();
        pending.insert(RootPath::root(), implied(RootPath::root()));
        TreeBuilder {
            pending,
            names: HashMap::new(),
        }
    }

    /// A builder for a build context: its root counts for nothing in content digests.
    #[must_use]
    pub fn for_context() -> Self {
        let mut builder = TreeBuilder::new();
        if let Some(root) = builder.pending.get_mut(&RootPath::root()) {
            root.flags |= FLAG_CONTEXT;
        }
        builder
    }

    /// How many paths there are so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.len() <= 1
    }

    /// Adds an entry whose contents lie at `place`; what was at the path before is replaced.
    /// The root can only be a directory: anything else for it is ignored.
    pub fn add(&mut self, entry: Entry, place: Place) {
        self.insert(entry, place, None);
    }

    /// As [`TreeBuilder::add`], with its header digest already known.
    pub fn add_digested(&mut self, entry: Entry, place: Place, digest: Option<[u8; 32]>) {
        self.insert(entry, place, digest);
    }

    fn insert(&mut self, entry: Entry, place: Place, digest: Option<[u8; 32]>) {
        if entry.path.is_root() && entry.kind != Kind::Dir {
            return;
        }
        self.imply_parents(&entry.path);
        let mut flags = 0;
        match self.pending.get(&entry.path) {
            Some(old) if old.entry.as_ref().is_some_and(Entry::is_dir) => {
                if entry.is_dir() {
                    flags = old.flags & FLAG_OPAQUE;
                } else {
                    self.remove_below(&entry.path);
                }
            }
            Some(old) if old.entry.is_none() && entry.is_dir() => flags = FLAG_OPAQUE,
            Some(_) => self.pass_on(&entry.path),
            None => {}
        }
        self.pending.insert(
            entry.path.clone(),
            Pending {
                entry: Some(entry),
                place,
                flags,
                digest,
            },
        );
    }

    /// Adds a further name of `target`, with what the name's own header says of the file.
    /// A target that this layer does not have is looked for in lower layers by who reads the index.
    /// Returns false, and adds nothing, if the target is a directory or the name itself.
    pub fn add_hard_link(&mut self, mut name: Entry, target: &RootPath) -> bool {
        let Some(held) = self.pending.get(target).and_then(|found| found.entry.as_ref()) else {
            name.kind = Kind::HardLink;
            name.link = Some(target.as_bytes().to_vec());
            self.insert(name, Place::None, None);
            return true;
        };
        let target = match (held.kind, &held.link) {
            (Kind::Dir, _) => return false,
            (Kind::HardLink, Some(first)) => RootPath::from_clean(first.clone()),
            _ => target.clone(),
        };
        if target == name.path {
            return false;
        }
        let Some(file) = self.pending.get(&target).and_then(|found| found.entry.clone()) else {
            // The first name is in a lower layer, and this one joins it there.
            name.kind = Kind::HardLink;
            name.link = Some(target.as_bytes().to_vec());
            self.insert(name, Place::None, None);
            return true;
        };
        if file.kind != Kind::File {
            let copy = Entry {
                path: name.path,
                ..file
            };
            self.insert(copy, Place::None, None);
            return true;
        }
        name.kind = Kind::HardLink;
        name.size = file.size;
        name.link = Some(target.as_bytes().to_vec());
        if name.xattrs.is_empty() {
            name.xattrs = file.xattrs;
        }
        let said = name.clone();
        let path = name.path.clone();
        self.insert(name, Place::None, None);
        let names = self.names.entry(target.clone()).or_default();
        names.push(path);
        for other in names.iter().chain([&target]) {
            if let Some(entry) = self.pending.get_mut(other).and_then(|found| found.entry.as_mut()) {
                (entry.mode, entry.uid, entry.gid, entry.mtime) = (said.mode, said.uid, said.gid, said.mtime);
                entry.xattrs.clone_from(&said.xattrs);
            }
        }
        true
    }

    /// Before what is at `path` goes: its contents pass on to the next of its names.
    fn pass_on(&mut self, path: &RootPath) {
        let Some(names) = self.names.remove(path) else {
            return;
        };
        let Some(old) = self.pending.get(path).cloned() else {
            return;
        };
        let is_name = |builder: &Self, name: &RootPath| {
            builder
                .pending
                .get(name)
                .and_then(|found| found.entry.as_ref())
                .is_some_and(|entry| {
                    entry.kind == Kind::HardLink && entry.link.as_deref() == Some(path.as_bytes())
                })
        };
        let mut names: Vec<RootPath> = names.into_iter().filter(|name| is_name(self, name)).collect();
        names.sort();
        names.dedup();
        let Some((heir, others)) = names.split_first() else {
            return;
        };
        let Pending {
            entry: Some(mut entry),
            place,
            digest,
            ..
        } = old
        else {
            return;
        };
        entry.path = heir.clone();
        self.pending.insert(
            heir.clone(),
            Pending {
                entry: Some(entry),
                place,
                flags: 0,
                digest,
            },
        );
        for name in others {
            if let Some(entry) = self.pending.get_mut(name).and_then(|found| found.entry.as_mut()) {
                entry.link = Some(heir.as_bytes().to_vec());
            }
        }
        self.names.insert(heir.clone(), others.to_vec());
    }

    /// The path an archive means by `path`, when links of this same layer lie on the way (the last name is not followed).
    /// None if the links lead in a circle.
    #[must_use]
    pub fn resolve_parent(&self, path: &RootPath) -> Option<RootPath> {
        let is_link = |path: &RootPath| self.entry(path).is_some_and(|entry| entry.kind == Kind::Symlink);
        if !path.ancestors().any(|dir| is_link(&dir)) {
            return Some(path.clone());
        }
        let mut path = path.clone();
        for _ in 0..crate::view::MAX_LINKS {
            let Some(link) = path.ancestors().find(|dir| is_link(dir)) else {
                return Some(path);
            };
            let target = self
                .entry(&link)
                .and_then(|entry| entry.link.as_deref())
                .unwrap_or_default();
            let rest = path.strip_prefix(&link)?;
            let base = if target.first() == Some(&b'/') {
                RootPath::root()
            } else {
                link.parent()?
            };
            path = base.join(target).ok()?.join_path(&rest).ok()?;
        }
        None
    }

    /// Says that `path` is deleted from the layers below. The root cannot be.
    pub fn add_whiteout(&mut self, path: &RootPath) {
        if path.is_root() {
            return;
        }
        self.imply_parents(path);
        match self.pending.get_mut(path) {
            Some(old) => {
                if old.entry.as_ref().is_some_and(Entry::is_dir) {
                    old.flags |= FLAG_OPAQUE;
                }
            }
            None => {
                let whiteout = Pending {
                    entry: None,
                    place: Place::None,
                    flags: 0,
                    digest: None,
                };
                self.pending.insert(path.clone(), whiteout);
            }
        }
    }

    /// Says that the directory `path` hides all that lower layers have in it.
    pub fn set_opaque(&mut self, path: &RootPath) {
        self.imply_parents(path);
        let found = self
            .pending
            .entry(path.clone())
            .or_insert_with(|| implied(path.clone()));
        if found.entry.is_none() {
            *found = implied(path.clone());
        }
        if found.entry.as_ref().is_some_and(Entry::is_dir) {
            found.flags |= FLAG_OPAQUE;
        }
    }

    /// What is at `path` so far; none for nothing and for whiteouts.
    #[must_use]
    pub fn entry(&self, path: &RootPath) -> Option<&Entry> {
        self.pending.get(path)?.entry.as_ref()
    }

    /// Forgets `path` and all beneath it, as if it had not been added.
    pub fn remove(&mut self, path: &RootPath) {
        if !path.is_root() {
            self.remove_below(path);
            self.pass_on(path);
            self.pending.remove(path);
        }
    }

    fn remove_below(&mut self, path: &RootPath) {
        let below: Vec<RootPath> = self
            .pending
            .range(path.clone()..)
            .skip(1)
            .take_while(|(other, _)| other.starts_with(path))
            .map(|(other, _)| other.clone())
            .collect();
        for other in below {
            self.pass_on(&other);
            self.pending.remove(&other);
        }
    }

    fn imply_parents(&mut self, path: &RootPath) {
        let Some(parent) = path.parent() else { return };
        if self
            .pending
            .get(&parent)
            .is_some_and(|found| found.entry.as_ref().is_some_and(Entry::is_dir))
        {
            return;
        }
        for dir in parent.ancestors().chain([parent.clone()]) {
            match self.pending.get(&dir) {
                Some(found) if found.entry.as_ref().is_some_and(Entry::is_dir) => {}
                Some(found) => {
                    let was_deleted = found.entry.is_none();
                    self.pass_on(&dir);
                    // A deleted or replaced path that has something beneath it after all: a new directory.
                    let mut new = implied(dir.clone());
                    new.flags = if was_deleted {
                        FLAG_IMPLIED | FLAG_OPAQUE
                    } else {
                        FLAG_IMPLIED
                    };
                    self.pending.insert(dir, new);
                }
                None => {
                    self.pending.insert(dir.clone(), implied(dir));
                }
            }
        }
    }

    /// The finished index.
    #[must_use]
    pub fn finish(self) -> TreeIndex {
        let mut assembled = Assembly::with_capacity(self.pending.len());
        for (path, pending) in self.pending {
            assembled.push(
                &path,
                pending.entry.as_ref(),
                pending.place,
                pending.flags,
                pending.digest,
            );
        }
        assembled.finish()
    }
}

fn implied(path: RootPath) -> Pending {
    Pending {
        entry: Some(Entry::dir(path, 0o755)),
        place: Place::None,
        flags: FLAG_IMPLIED,
        digest: None,
    }
}

/// Puts records together that arrive in order.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    records: Vec<Record>,
    arena: Vec<u8>,
    slots: Vec<Option<[u8; 32]>>,
    open: Vec<u32>,
}

impl Assembly {
    pub(super) fn with_capacity(records: usize) -> Self {
        Assembly {
            records: Vec::with_capacity(records),
            arena: Vec::with_capacity(records * 32),
            ..Assembly::default()
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> (u32, u32) {
        let at = u32::try_from(self.arena.len()).expect("limits keep paths of a layer below 4 GiB");
        self.arena.extend_from_slice(bytes);
        (
            at,
            u32::try_from(bytes.len()).expect("limits keep one value below 4 GiB"),
        )
    }

    /// Adds the next record; its path must sort after the last one's.
    pub(super) fn push(
        &mut self,
        path: &RootPath,
        entry: Option<&Entry>,
        place: Place,
        flags: u8,
        digest: Option<[u8; 32]>,
    ) {
        let index = u32::try_from(self.records.len()).expect("limits keep entries of a layer below 2^32");
        while let Some(&last) = self.open.last() {
            let record = self.records[last as usize];
            let above = &self.arena[record.path_at as usize..][..record.path_len as usize];
            let inside = above.is_empty()
                || path
                    .as_bytes()
                    .strip_prefix(above)
                    .is_some_and(|rest| rest.first() == Some(&b'/'));
            if inside {
                break;
            }
            self.records[last as usize].end = index;
            self.open.pop();
        }
        let (path_at, path_len) = self.keep(path.as_bytes());
        let (link_at, link_len) =
            self.keep(entry.and_then(|entry| entry.link.as_deref()).unwrap_or_default());
        let xattrs = entry
            .map(|entry| encode_xattrs(&entry.xattrs))
            .unwrap_or_default();
        let (xattr_at, xattr_len) = self.keep(&xattrs);
        self.records.push(Record {
            path_at,
            path_len,
            link_at,
            link_len,
            xattr_at,
            xattr_len,
            end: index + 1,
            mode: entry.map_or(0, |entry| entry.mode & 0o7777),
            uid: entry.map_or(0, |entry| entry.uid),
            gid: entry.map_or(0, |entry| entry.gid),
            rdev: entry.map_or((0, 0), |entry| entry.rdev),
            size: entry.map_or(0, |entry| entry.size),
            mtime: entry.map_or(Timestamp::default(), |entry| entry.mtime),
            kind: entry.map_or(NodeKind::Whiteout, |entry| NodeKind::Entry(entry.kind)),
            flags,
            place,
        });
        self.slots.push(digest);
        self.open.push(index);
    }

    pub(super) fn finish(mut self) -> TreeIndex {
        let end = u32::try_from(self.records.len()).expect("limits keep entries of a layer below 2^32");
        for index in self.open.drain(..) {
            self.records[index as usize].end = end;
        }
        let changed = self.slots.iter().any(Option::is_some);
        let slots = if changed { self.slots } else { Vec::new() };
        TreeIndex {
            records: self.records,
            arena: self.arena,
            digests: Digests { slots, changed }.into(),
            origin: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RootPath {
        RootPath::clean(text).expect("a test's path is clean")
    }

    fn listed(tree: &TreeIndex) -> Vec<String> {
        tree.iter()
            .skip(1)
            .map(|record| {
                let mut text = String::from_utf8_lossy(record.path_bytes()).into_owned();
                match record.kind() {
                    NodeKind::Whiteout => text.insert(0, '-'),
                    NodeKind::Entry(Kind::Dir) => text.push('/'),
                    NodeKind::Entry(_) => {}
                }
                if record.is_opaque() {
                    text.push('!');
                }
                if record.is_implied() {
                    text.push('?');
                }
                text
            })
            .collect()
    }

    #[test]
    fn what_replaces_what() {
        let mut builder = TreeBuilder::new();
        builder.add(Entry::new(path("d/x/y"), Kind::File, 0o644), Place::None);
        builder.add(Entry::new(path("d/x"), Kind::File, 0o644), Place::None); // replaces the implied directory
        builder.add(Entry::dir(path("k"), 0o700), Place::None);
        builder.add(Entry::new(path("k/in"), Kind::File, 0o644), Place::None);
        builder.add(Entry::dir(path("k"), 0o711), Place::None); // keeps k/in
        builder.add_whiteout(&path("k"));
        builder.add_whiteout(&path("gone"));
        builder.add_whiteout(&path("back"));
        builder.add(Entry::dir(path("back"), 0o755), Place::None);
        builder.set_opaque(&path("o/p"));
        let tree = builder.finish();
        assert_eq!(
            listed(&tree),
            ["back/!", "d/?", "d/x", "-gone", "k/!", "k/in", "o/?", "o/p/!?"]
        );
        assert_eq!(tree.get(tree.find(&path("k")).expect("there")).mode(), 0o711);
    }

    #[test]
    fn hard_links_live_on_when_the_first_name_is_replaced() {
        let mut builder = TreeBuilder::new();
        let file = |name: &str, size: u64| {
            let mut entry = Entry::new(path(name), Kind::File, 0o644);
            entry.size = size;
            entry
        };
        builder.add(file("a", 3), Place::Tar { offset: 512 });
        assert!(builder.add_hard_link(Entry::new(path("c"), Kind::HardLink, 0o600), &path("a")));
        assert!(builder.add_hard_link(Entry::new(path("b"), Kind::HardLink, 0o755), &path("c")));
        builder.add(file("a", 9), Place::Tar { offset: 4096 });
        assert!(!builder.add_hard_link(Entry::new(path("a"), Kind::HardLink, 0o755), &path("a")));
        let tree = builder.finish();
        let get = |name: &str| tree.get(tree.find(&path(name)).expect("there"));
        assert_eq!(
            (get("a").size(), get("a").mode(), get("a").place()),
            (9, 0o644, Place::Tar { offset: 4096 })
        );
        assert_eq!(
            (get("b").size(), get("b").mode(), get("b").place()),
            (3, 0o755, Place::Tar { offset: 512 })
        );
        assert_eq!((get("c").link(), get("c").mode()), (&b"b"[..], 0o755));
    }

    #[test]
    fn links_of_the_same_layer_are_followed_on_the_way() {
        let mut builder = TreeBuilder::new();
        for (name, target) in [("lib", "usr/lib"), ("loop", "loop"), ("up", "/../../usr")] {
            let mut entry = Entry::new(path(name), Kind::Symlink, 0o777);
            entry.link = Some(target.into());
            builder.add(entry, Place::None);
        }
        for (from, to) in [
            ("lib/x", Some("usr/lib/x")),
            ("lib", Some("lib")),
            ("loop/x", None),
            ("up/y", Some("usr/y")),
        ] {
            assert_eq!(builder.resolve_parent(&path(from)), to.map(path), "{from}");
        }
    }

    #[test]
    fn subtrees_end_where_they_end() {
        let mut builder = TreeBuilder::new();
        for name in ["a/b/c", "a/d", "a.txt", "b"] {
            builder.add(Entry::new(path(name), Kind::File, 0o644), Place::None);
        }
        let tree = builder.finish();
        let children = |name: &str| -> Vec<String> {
            let index = tree.find(&path(name)).expect("there");
            tree.children(tree.below(index))
                .map(|child| String::from_utf8_lossy(tree.get(child).name()).into_owned())
                .collect()
        };
        assert_eq!(children(""), ["a", "a.txt", "b"]);
        assert_eq!(children("a"), ["b", "d"]);
        assert_eq!(children("a/b"), ["c"]);
        assert!(children("b").is_empty());
        assert_eq!(tree.find(&path("a/b/x")), None);
    }
}
