//! The tar of an overlay's upper directory: what a step changed, and nothing else.
//!
//! ```text
//! upper index + lower view ─▶ what is truly changed ─▶ whiteouts (one per deleted child) ─▶ TarLayerWriter
//! ```
//!
//! * A directory is listed when it changed itself or something beneath it is listed.
//! * A file copied up but left as it was is not listed, unless one of several names of one file.
//! * A whiteout is listed only for what exists below; an opaque directory is expanded by comparison with the lower one.

use std::collections::HashSet;
use std::io::{Read, Write};

use tree::{Entry, Kind, RootPath};

use super::{EntryRef, LayerError, NodeKind, TarLayer, TarLayerWriter, TreeIndex, header::CAPABILITY};
use crate::view::{Contents, Node, View};

/// Writes the difference that `upper` (from [`super::scan_upper`]) makes to `lower` as a layer to `out`.
///
/// # Errors
/// Those of reading contents and writing.
pub fn diff_dir<W: Write>(
    upper: &TreeIndex,
    contents: &Contents,
    lower: &View,
    out: W,
) -> Result<(W, TarLayer), LayerError> {
    let mut linked = HashSet::new();
    for record in upper
        .iter()
        .filter(|record| record.kind() == NodeKind::Entry(Kind::HardLink))
    {
        linked.insert(record.link());
    }
    let mut diff = Diff {
        upper,
        contents,
        lower,
        linked,
        parents: Vec::new(),
        writer: TarLayerWriter::new(out),
    };
    diff.directory(0, lower.root(), upper.get(0).is_opaque())?;
    diff.writer.finish()
}

struct Diff<'a, W: Write> {
    upper: &'a TreeIndex,
    contents: &'a Contents,
    lower: &'a View,
    /// Files of the upper directory that have further names there.
    linked: HashSet<&'a [u8]>,
    /// Directories entered that were not written yet.
    parents: Vec<Entry>,
    writer: TarLayerWriter<W>,
}

impl<W: Write> Diff<'_, W> {
    /// Compares one directory of both sides. `hidden`: what the lower one has is not seen through the upper one.
    fn directory(&mut self, index: u32, lower: Option<Node>, hidden: bool) -> Result<(), LayerError> {
        let mut below = match (&lower, hidden) {
            (Some(node), true) => self.lower.children(node),
            _ => Vec::new(),
        };
        below.reverse();
        let children: Vec<u32> = self.upper.children(self.upper.below(index)).collect();
        for child in children {
            let record = self.upper.get(child);
            while let Some(node) = below.last() {
                let path = self.lower.record(node.id()).path();
                if path.as_bytes() == record.path_bytes() {
                    below.pop();
                    break;
                }
                if RootPath::compare_bytes(path.as_bytes(), record.path_bytes()).is_gt() {
                    break;
                }
                below.pop();
                self.delete(&path)?;
            }
            let under = lower
                .as_ref()
                .and_then(|node| self.lower.child(node, record.name()));
            self.change(record, under, hidden)?;
        }
        while let Some(node) = below.pop() {
            let path = self.lower.record(node.id()).path();
            self.delete(&path)?;
        }
        Ok(())
    }

    fn change(&mut self, record: EntryRef<'_>, under: Option<Node>, hidden: bool) -> Result<(), LayerError> {
        if record.is_whiteout() {
            return if under.is_some() {
                self.delete(&record.path())
            } else {
                Ok(())
            };
        }
        let entry = record.entry().expect("not a whiteout");
        let same = match &under {
            Some(node) => self.is_same(record, &entry, node)?,
            None => false,
        };
        if !entry.is_dir() {
            return if same { Ok(()) } else { self.write(record, &entry) };
        }
        let depth = self.parents.len();
        self.parents.push(entry);
        if !same {
            self.write_parents()?;
        }
        let under = under.filter(Node::is_dir);
        let hidden = under.is_some() && (hidden || record.is_opaque());
        self.directory(record.index(), under, hidden)?;
        self.parents.truncate(depth);
        Ok(())
    }

    fn delete(&mut self, path: &RootPath) -> Result<(), LayerError> {
        self.write_parents()?;
        self.writer.add_whiteout(path)
    }

    fn write(&mut self, record: EntryRef<'_>, entry: &Entry) -> Result<(), LayerError> {
        self.write_parents()?;
        if entry.kind == Kind::File {
            self.writer.add(entry, self.contents.open(record)?)
        } else {
            self.writer.add(entry, std::io::empty())
        }
    }

    fn write_parents(&mut self) -> Result<(), LayerError> {
        for parent in self.parents.drain(..) {
            self.writer.add(&parent, std::io::empty())?;
        }
        Ok(())
    }

    /// Whether the upper entry says the same as what is beneath it.
    fn is_same(&self, record: EntryRef<'_>, entry: &Entry, node: &Node) -> Result<bool, LayerError> {
        if entry.kind == Kind::HardLink || self.linked.contains(record.path_bytes()) {
            return Ok(false);
        }
        let old = self.lower.entry(node)?;
        let same = old.kind == entry.kind
            && (old.kind == Kind::Symlink || old.mode == entry.mode)
            && (old.uid, old.gid, old.rdev) == (entry.uid, entry.gid, entry.rdev)
            && old.mtime.secs == entry.mtime.secs
            && old.link == entry.link
            && old.xattrs.get(CAPABILITY) == entry.xattrs.get(CAPABILITY);
        if !same || entry.kind == Kind::Dir {
            // A lower directory read from a tar knows whole seconds only.
            let cut = old.mtime.nanos == 0 || entry.mtime.nanos == 0 || old.mtime == entry.mtime;
            return Ok(same && cut);
        }
        if old.size != entry.size {
            return Ok(false);
        }
        if old.mtime == entry.mtime && entry.mtime.nanos != 0 {
            return Ok(true);
        }
        if old.mtime.nanos != 0 && entry.mtime.nanos != 0 {
            return Ok(false);
        }
        if entry.kind != Kind::File || entry.size == 0 {
            return Ok(true);
        }
        let left = self.contents.open(record)?;
        same_bytes(left, self.lower.open(node)?).map_err(LayerError::io("compare contents"))
    }
}

fn same_bytes(mut left: impl Read, mut right: impl Read) -> std::io::Result<bool> {
    let (mut first, mut second) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let length = left.read(&mut first)?;
        if length == 0 {
            return Ok(right.read(&mut [0])? == 0);
        }
        match right.read_exact(&mut second[..length]) {
            Ok(()) if first[..length] == second[..length] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
