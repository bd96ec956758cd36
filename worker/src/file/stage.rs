//! A base view and what has been changed on top of it, in memory, until it is written as one layer.
//!
//! ```text
//! base (View)          Stage                            layer
//! /app/  ────────▶ Dir(app, from base)  ────────▶  app/            (on the way)
//! /app/old             old: gone                   app/.wh.old
//!                      new: inode 0 ─▶ contents     app/new
//! ```
//!
//! A directory of the stage shows the base's directory beneath it, unless that was removed (`base: None`). Files point to
//! inodes, so that several names of one file stay one file. Times follow the kernel: making or removing something
//! sets the time of the directory it is in.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Cursor, Write},
    sync::Arc,
};

use cache::{
    layer::{LayerError, TarLayer, TarLayerWriter},
    view::{Contents, MAX_LINKS, Node, NodeId, View},
};
use tree::{Entry, Kind, RootPath, Timestamp};

use super::FileError;

mod linked;

/// A base and the changes made to it.
pub struct Stage {
    base: View,
    root: Dir,
    inodes: Vec<Inode>,
    now: Timestamp,
}

/// A directory that was made, changed or passed through.
struct Dir {
    /// Its attributes; the path is not kept here.
    entry: Entry,
    /// The directory of the base that shows through.
    base: Option<Node>,
    items: BTreeMap<Vec<u8>, Item>,
    /// Whether it was made or changed itself, so that it is listed even if nothing below is.
    changed: bool,
}

enum Item {
    /// Was in the base and is no more.
    Gone,
    Dir(Dir),
    /// Anything but a directory: a name of an inode.
    Name(usize),
}

struct Inode {
    entry: Entry,
    contents: Source,
}

/// Where the contents of a staged file come from.
#[derive(Clone)]
pub(super) enum Source {
    /// There are none.
    Nothing,
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// A file of another view.
    View(View, Node),
    /// A piece of an archive that was unpacked into a plain tar.
    Tar(Arc<Contents>, Arc<cache::layer::TreeIndex>, u32),
}

/// What is at a path of a stage.
#[derive(Clone)]
enum Found<'a> {
    Base(Node),
    Dir(&'a Dir),
    Name(usize),
}

impl Stage {
    /// A stage without changes yet; `now` is the time of what is made without one.
    #[must_use]
    pub fn new(base: View, now: Timestamp) -> Stage {
        let node = base.root();
        let attributes = node.as_ref().and_then(|node| base.entry(node).ok());
        let entry = attributes.unwrap_or_else(|| Entry::dir(RootPath::root(), 0o755));
        let root = Dir {
            entry,
            base: node,
            items: BTreeMap::new(),
            changed: false,
        };
        Stage {
            base,
            root,
            inodes: Vec::new(),
            now,
        }
    }

    /// The time of what is made without one.
    #[must_use]
    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    fn step<'a>(&'a self, here: &Found<'a>, name: &[u8]) -> Option<Found<'a>> {
        match here {
            Found::Base(node) => self.base.child(node, name).map(Found::Base),
            Found::Name(_) => None,
            Found::Dir(dir) => match dir.items.get(name) {
                Some(Item::Gone) => None,
                Some(Item::Dir(dir)) => Some(Found::Dir(dir)),
                Some(Item::Name(inode)) => Some(Found::Name(*inode)),
                None => self.base.child(dir.base.as_ref()?, name).map(Found::Base),
            },
        }
    }

    fn find(&self, path: &RootPath) -> Option<Found<'_>> {
        let mut here = Found::Dir(&self.root);
        for name in path.components() {
            here = self.step(&here, name)?;
        }
        Some(here)
    }

    fn entry_of(&self, found: &Found<'_>) -> Result<Entry, FileError> {
        Ok(match found {
            Found::Base(node) => self.base.entry(node)?,
            Found::Dir(dir) => dir.entry.clone(),
            Found::Name(inode) => self.inodes[*inode].entry.clone(),
        })
    }

    /// What is at `path` itself; links are not followed. The entry's own path is of no meaning.
    ///
    /// # Errors
    /// Those of reading the base.
    pub fn lookup(&self, path: &RootPath) -> Result<Option<Entry>, FileError> {
        self.find(path).map(|found| self.entry_of(&found)).transpose()
    }

    /// The path without links, the last one followed too; what does not exist is appended as it is.
    ///
    /// # Errors
    /// [`LayerError::TooManyLinks`], and those of reading the base.
    pub fn resolve(&self, path: &RootPath) -> Result<RootPath, FileError> {
        self.resolve_beneath(&RootPath::root(), path)
    }

    /// The path without links but for the last.
    ///
    /// # Errors
    /// As [`Stage::resolve`].
    pub fn resolve_parent(&self, path: &RootPath) -> Result<RootPath, FileError> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(self.resolve(&parent)?.child(name)?),
            _ => Ok(path.clone()),
        }
    }

    /// As [`Stage::resolve`], with `top` (which has no links) as the root that no link leads out of.
    ///
    /// # Errors
    /// As [`Stage::resolve`].
    pub(super) fn resolve_beneath(&self, top: &RootPath, path: &RootPath) -> Result<RootPath, FileError> {
        let mut left: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        let mut walked = vec![(top.clone(), self.find(top))];
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                if walked.len() > 1 {
                    walked.pop();
                }
                continue;
            }
            let (here, found) = walked.last().expect("the top is never popped");
            let child = found.as_ref().and_then(|found| self.step(found, &name));
            if let Some(found) = &child
                && let entry = self.entry_of(found)?
                && entry.kind == Kind::Symlink
            {
                links += 1;
                if links > MAX_LINKS {
                    return Err(LayerError::TooManyLinks {
                        path: path.display().to_string(),
                    }
                    .into());
                }
                let target = entry.link.unwrap_or_default();
                if target.first() == Some(&b'/') {
                    walked.truncate(1);
                }
                let parts = target
                    .split(|&byte| byte == b'/')
                    .filter(|part| !part.is_empty() && *part != b".");
                left.extend(parts.rev().map(<[u8]>::to_vec));
                continue;
            }
            let path = here.child(&name)?;
            walked.push((path, child));
        }
        Ok(walked.pop().expect("the top is never popped").0)
    }

    /// The names in a directory, sorted; nothing for what is none.
    pub(super) fn names(&self, path: &RootPath) -> Vec<Vec<u8>> {
        let of_base = |node: &Node| -> Vec<Vec<u8>> {
            let children = self.base.children(node);
            children
                .iter()
                .map(|child| self.base.record(child.id()).name().to_vec())
                .collect()
        };
        match self.find(path) {
            Some(Found::Base(node)) => of_base(&node),
            Some(Found::Dir(dir)) => {
                let mut names = dir.base.as_ref().map(of_base).unwrap_or_default();
                names.retain(|name| !dir.items.contains_key(name));
                let staged = dir.items.iter().filter(|(_, item)| !matches!(item, Item::Gone));
                names.extend(staged.map(|(name, _)| name.clone()));
                names.sort();
                names
            }
            Some(Found::Name(_)) | None => Vec::new(),
        }
    }

    /// The directory at `path`, ready to be changed; the way to it must be directories.
    fn dir_mut(&mut self, path: &RootPath) -> Result<&mut Dir, FileError> {
        let not_a_directory = || FileError::NotADirectory {
            action: "change",
            path: path.display().to_string(),
        };
        let mut here = &mut self.root;
        for name in path.components() {
            if !here.items.contains_key(name) {
                let node = here.base.as_ref().and_then(|node| self.base.child(node, name));
                let node = node.ok_or_else(|| FileError::NotFound {
                    path: path.display().to_string(),
                })?;
                if !node.is_dir() {
                    return Err(not_a_directory());
                }
                let entry = self.base.entry(&node)?;
                let dir = Dir {
                    entry,
                    base: Some(node),
                    items: BTreeMap::new(),
                    changed: false,
                };
                here.items.insert(name.to_vec(), Item::Dir(dir));
            }
            here = match here.items.get_mut(name) {
                Some(Item::Dir(dir)) => dir,
                Some(Item::Gone) => {
                    return Err(FileError::NotFound {
                        path: path.display().to_string(),
                    });
                }
                Some(Item::Name(_)) | None => return Err(not_a_directory()),
            };
        }
        Ok(here)
    }

    /// The directory that `path` is in and the name there; marks the directory as changed now.
    fn slot(&mut self, action: &'static str, path: &RootPath) -> Result<(&mut Dir, Vec<u8>), FileError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(FileError::Root { action });
        };
        let now = self.now;
        let dir = self.dir_mut(&parent)?;
        dir.changed = true;
        dir.entry.mtime = now;
        Ok((dir, name.to_vec()))
    }

    /// Makes a directory where nothing is.
    pub(super) fn create_dir(&mut self, path: &RootPath, entry: Entry) -> Result<(), FileError> {
        let (dir, name) = self.slot("create directory", path)?;
        dir.items.insert(
            name,
            Item::Dir(Dir {
                entry,
                base: None,
                items: BTreeMap::new(),
                changed: true,
            }),
        );
        Ok(())
    }

    /// Makes a file, link or node where nothing is; gives its inode.
    pub(super) fn create(
        &mut self,
        path: &RootPath,
        entry: Entry,
        contents: Source,
    ) -> Result<usize, FileError> {
        let inode = self.inodes.len();
        let (dir, name) = self.slot("create", path)?;
        dir.items.insert(name, Item::Name(inode));
        self.inodes.push(Inode { entry, contents });
        Ok(inode)
    }

    /// Gives an inode a further name where nothing is.
    pub(super) fn link(&mut self, inode: usize, path: &RootPath) -> Result<(), FileError> {
        let (dir, name) = self.slot("create hard link", path)?;
        dir.items.insert(name, Item::Name(inode));
        Ok(())
    }

    /// Removes what is at `path`, with all beneath it; nothing there is no error.
    pub(super) fn remove(&mut self, path: &RootPath) -> Result<(), FileError> {
        if self.find(path).is_none() {
            return Ok(());
        }
        let (dir, name) = self.slot("remove", path)?;
        dir.items.insert(name, Item::Gone);
        Ok(())
    }

    /// Changes the attributes of the directory at `path`.
    pub(super) fn change_dir(
        &mut self,
        path: &RootPath,
        change: impl FnOnce(&mut Entry),
    ) -> Result<(), FileError> {
        let dir = self.dir_mut(path)?;
        dir.changed = true;
        change(&mut dir.entry);
        Ok(())
    }

    /// Changes the attributes of an inode made here.
    pub(super) fn change_inode(&mut self, inode: usize, change: impl FnOnce(&mut Entry)) {
        change(&mut self.inodes[inode].entry);
    }

    /// The inode at `path`, if it was made here.
    pub(super) fn inode_at(&self, path: &RootPath) -> Option<usize> {
        match self.find(path)? {
            Found::Name(inode) => Some(inode),
            Found::Base(_) | Found::Dir(_) => None,
        }
    }

    /// Where a file of the base at `path` has its contents, for a further name or a copy of it.
    pub(super) fn base_source(&self, path: &RootPath) -> Option<Source> {
        match self.find(path)? {
            Found::Base(node) if !node.is_dir() => Some(Source::View(self.base.clone(), node)),
            Found::Base(_) | Found::Dir(_) | Found::Name(_) => None,
        }
    }

    /// Writes the changes as one layer; `cancelled` is asked before each entry.
    ///
    /// # Errors
    /// [`FileError::Cancelled`]; those of reading contents and of writing.
    pub fn write<W: Write>(&self, out: W, cancelled: &dyn Fn() -> bool) -> Result<(W, TarLayer), FileError> {
        let mut writing = Writing {
            stage: self,
            writer: TarLayerWriter::new(out),
            parents: Vec::new(),
            written: HashMap::new(),
            cancelled,
        };
        writing.directory(&self.root, &RootPath::root(), self.base.root())?;
        Ok(writing.writer.finish()?)
    }

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        !self.root.changed && self.root.items.is_empty()
    }
}

struct Writing<'a, W: Write> {
    stage: &'a Stage,
    writer: TarLayerWriter<W>,
    /// Directories entered that were not written yet.
    parents: Vec<Entry>,
    /// The first name of each inode written.
    written: HashMap<usize, RootPath>,
    cancelled: &'a dyn Fn() -> bool,
}

impl<W: Write> Writing<'_, W> {
    /// Writes one directory's changes; `lower` is what the base has there, seen or not.
    fn directory(&mut self, dir: &Dir, path: &RootPath, lower: Option<Node>) -> Result<(), FileError> {
        let base = &self.stage.base;
        // What the base has and nothing shows any more must be deleted by name.
        let hidden = match (&dir.base, &lower) {
            (None, Some(node)) if node.is_dir() => base.children(node),
            _ => Vec::new(),
        };
        let mut names: BTreeMap<Vec<u8>, Option<&Item>> = hidden
            .iter()
            .map(|child| (base.record(child.id()).name().to_vec(), None))
            .collect();
        names.extend(dir.items.iter().map(|(name, item)| (name.clone(), Some(item))));
        for (name, item) in names {
            if (self.cancelled)() {
                return Err(FileError::Cancelled);
            }
            let child = path.child(&name)?;
            let below = lower.as_ref().and_then(|node| base.child(node, &name));
            match item {
                None | Some(Item::Gone) => {
                    if below.is_some() {
                        self.write_parents()?;
                        self.writer.add_whiteout(&child)?;
                    }
                }
                Some(Item::Name(inode)) => self.name(*inode, child)?,
                Some(Item::Dir(dir)) => {
                    let depth = self.parents.len();
                    self.parents.push(Entry {
                        path: child.clone(),
                        ..dir.entry.clone()
                    });
                    if dir.changed {
                        self.write_parents()?;
                    }
                    self.directory(dir, &child, below.filter(Node::is_dir))?;
                    self.parents.truncate(depth);
                }
            }
        }
        Ok(())
    }

    fn name(&mut self, number: usize, path: RootPath) -> Result<(), FileError> {
        self.write_parents()?;
        let inode = &self.stage.inodes[number];
        let mut entry = Entry {
            path: path.clone(),
            ..inode.entry.clone()
        };
        if let Some(first) = self.written.get(&number) {
            if entry.kind == Kind::File {
                entry.kind = Kind::HardLink;
                entry.link = Some(first.as_bytes().to_vec());
            }
            return Ok(self.writer.add(&entry, std::io::empty())?);
        }
        self.written.insert(number, path);
        if entry.kind != Kind::File {
            return Ok(self.writer.add(&entry, std::io::empty())?);
        }
        match &inode.contents {
            Source::Nothing => self.writer.add(&entry, std::io::empty())?,
            Source::Bytes(bytes) => self.writer.add(&entry, Cursor::new(bytes))?,
            Source::View(view, node) => self.writer.add(&entry, view.open(node)?)?,
            Source::Tar(contents, tree, index) => {
                self.writer.add(&entry, contents.open(tree.get(*index))?)?;
            }
        }
        Ok(())
    }

    fn write_parents(&mut self) -> Result<(), FileError> {
        for parent in self.parents.drain(..) {
            self.writer.add(&parent, std::io::empty())?;
        }
        Ok(())
    }
}

/// Which file of a source a staged inode was copied from.
pub(super) type Copied = HashMap<NodeId, usize>;
