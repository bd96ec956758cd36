//! A layer's index and contents as an overlay directory on disk.
//!
//! ```text
//! records in order ─▶ directories (0700), files, links, nodes, whiteouts ─▶ hard links ─▶ directories' attributes, deepest first
//! ```
//!
//! * A whiteout becomes a character device 0:0, an opaque directory the attribute `trusted.overlay.opaque`
//!   (`user.overlay.opaque` for an ordinary user).
//! * A directory the layer does not describe takes its attributes from the layers below, since an overlay shows those of
//!   its topmost directory; so does the root.
//! * A hard link to a file of a lower layer becomes a copy of it.
//! * With [`Ownership::BestEffort`] ids, devices and attributes that this user may not give are left out;
//!   the index keeps what was wanted.

use std::{collections::HashMap, fs::File, os::fd::AsFd};

use rustix::io::Errno;
use tree::{Entry, Kind, Root, RootPath};

use super::{EntryRef, LayerError, NodeKind, Place, TreeIndex, index::Digests};
use crate::view::{Contents, NodeId, View};

/// Whether owners must come out as the layer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// Everything must be as the layer says; what cannot be is an error.
    #[default]
    Exact,
    /// For a user with a single id: what may not be given is left out.
    BestEffort,
}

/// Which extended attributes overlayfs reads on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OverlayXattrs {
    /// `trusted.overlay.*`, for root.
    #[default]
    Trusted,
    /// `user.overlay.*`, for overlays mounted with `userxattr`.
    User,
}

impl OverlayXattrs {
    /// The attribute that makes a directory opaque.
    #[must_use]
    pub fn opaque(self) -> &'static [u8] {
        match self {
            OverlayXattrs::Trusted => b"trusted.overlay.opaque",
            OverlayXattrs::User => b"user.overlay.opaque",
        }
    }

    /// What every attribute of overlayfs begins with.
    #[must_use]
    pub fn prefix(self) -> &'static [u8] {
        match self {
            OverlayXattrs::Trusted => b"trusted.overlay.",
            OverlayXattrs::User => b"user.overlay.",
        }
    }
}

/// How a layer's directory is made and read on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DirOptions {
    /// Whether owners must come out right.
    pub ownership: Ownership,
    /// Which attributes overlayfs reads.
    pub xattrs: OverlayXattrs,
}

/// Makes the overlay directory of a layer in the empty `root`; `lower` is what lies beneath it.
///
/// # Errors
/// Those of reading contents and making things; `root` then holds a useless piece.
pub fn materialise(
    tree: &TreeIndex,
    contents: &Contents,
    root: &Root,
    lower: &View,
    options: DirOptions,
) -> Result<(), LayerError> {
    Settling {
        tree,
        contents: Some(contents),
        root,
        lower,
        options,
        here: None,
    }
    .run()
}

/// As [`materialise`], for a directory that has the layer's files and hard links already, but not their attributes.
pub(super) fn settle(
    tree: &TreeIndex,
    root: &Root,
    lower: &View,
    options: DirOptions,
) -> Result<(), LayerError> {
    Settling {
        tree,
        contents: None,
        root,
        lower,
        options,
        here: None,
    }
    .run()
}

struct Settling<'a> {
    tree: &'a TreeIndex,
    contents: Option<&'a Contents>,
    root: &'a Root,
    lower: &'a View,
    options: DirOptions,
    /// The directory of the last entry, opened.
    here: Option<(RootPath, Root)>,
}

impl Settling<'_> {
    fn run(mut self) -> Result<(), LayerError> {
        let mut late = Vec::new();
        for record in self.tree.iter().skip(1) {
            if record.kind() == NodeKind::Entry(Kind::HardLink) {
                late.push(record);
            } else {
                self.make(record)?;
            }
        }
        self.here = None;
        let mut copied = HashMap::new();
        for record in late {
            self.link(record, &mut copied)?;
        }
        for index in (0..u32::try_from(self.tree.len()).unwrap_or(u32::MAX)).rev() {
            let record = self.tree.get(index);
            if record.is_dir() {
                self.finish_dir(record)?;
            }
        }
        Ok(())
    }

    /// The directory `path` lies in, opened, and the name in it.
    fn place_of(&mut self, path: &RootPath) -> Result<(Root, RootPath), LayerError> {
        let parent = path.parent().unwrap_or_default();
        let name = RootPath::from_clean(path.file_name().unwrap_or_default().to_vec());
        if let Some((held, root)) = &self.here
            && *held == parent
        {
            return Ok((root.clone(), name));
        }
        let opened = self.root.sub_root(&parent)?;
        self.here = Some((parent, opened.clone()));
        Ok((opened, name))
    }

    fn make(&mut self, record: EntryRef<'_>) -> Result<(), LayerError> {
        let path = record.path();
        let (dir, name) = self.place_of(&path)?;
        let NodeKind::Entry(kind) = record.kind() else {
            return Ok(dir.mknod(&name, Kind::Char, 0, (0, 0))?);
        };
        match kind {
            Kind::Dir => match dir.create_dir(&name, 0o700) {
                Ok(()) => return Ok(()),
                Err(_) if dir.try_metadata(&name)?.is_some_and(|metadata| metadata.is_dir()) => return Ok(()),
                Err(error) => return Err(error.into()),
            },
            Kind::File => {
                let file = match self.contents {
                    Some(contents) => {
                        let file = dir.create_file(&name, 0o600)?;
                        let copied = contents
                            .open(record)?
                            .copy_to(&file)
                            .map_err(LayerError::io("write file of layer"))?;
                        if copied != record.size() {
                            let path = path.display().to_string();
                            return Err(LayerError::Changed {
                                path,
                                expected: record.size(),
                                found: copied,
                            });
                        }
                        file
                    }
                    None => dir.open_file(&name)?.0,
                };
                return self.finish_file(&dir, &name, &file, &record.entry().expect("a file is an entry"));
            }
            Kind::Symlink => dir.symlink(record.link(), &name)?,
            Kind::Char | Kind::Block | Kind::Fifo => {
                let entry = record.entry().expect("a node is an entry");
                match dir.mknod(&name, kind, entry.mode, entry.rdev) {
                    Err(error) if self.may_skip(&error) => return Ok(()),
                    other => other?,
                }
            }
            Kind::HardLink => return Ok(()),
        }
        self.attributes(&dir, &name, &record.entry().expect("not a whiteout"))
    }

    /// Attributes of a file, by its descriptor: no further look-up of its path.
    fn finish_file(&self, dir: &Root, name: &RootPath, file: &File, entry: &Entry) -> Result<(), LayerError> {
        let failed = |action| {
            move |cause: Errno| LayerError::Io {
                action,
                cause: cause.into(),
            }
        };
        let owner = (
            rustix::fs::Uid::from_raw(entry.uid),
            rustix::fs::Gid::from_raw(entry.gid),
        );
        match rustix::fs::fchown(file.as_fd(), Some(owner.0), Some(owner.1)) {
            Err(Errno::PERM | Errno::INVAL) if self.is_best_effort() => {}
            other => other.map_err(failed("set owner of a layer's file"))?,
        }
        rustix::fs::fchmod(file.as_fd(), rustix::fs::Mode::from_raw_mode(entry.mode))
            .map_err(failed("set mode of a layer's file"))?;
        self.xattrs(dir, name, entry)?;
        let time = rustix::fs::Timespec {
            tv_sec: entry.mtime.secs,
            tv_nsec: entry.mtime.nanos.into(),
        };
        rustix::fs::futimens(
            file.as_fd(),
            &rustix::fs::Timestamps {
                last_access: time,
                last_modification: time,
            },
        )
        .map_err(failed("set time of a layer's file"))
    }

    fn attributes(&self, dir: &Root, name: &RootPath, entry: &Entry) -> Result<(), LayerError> {
        match dir.set_owner(name, entry.uid, entry.gid) {
            Err(error) if self.may_skip(&error) => {}
            other => other?,
        }
        if entry.kind != Kind::Symlink {
            dir.set_mode(name, entry.mode)?;
        }
        self.xattrs(dir, name, entry)?;
        Ok(dir.set_mtime(name, entry.mtime)?)
    }

    fn xattrs(&self, dir: &Root, name: &RootPath, entry: &Entry) -> Result<(), LayerError> {
        for (attribute, value) in &entry.xattrs {
            match dir.set_xattr(name, attribute, value) {
                Err(error) if self.may_skip(&error) || is_unsupported(&error) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn is_best_effort(&self) -> bool {
        self.options.ownership == Ownership::BestEffort
    }

    fn may_skip(&self, error: &tree::Error) -> bool {
        let code = error.io().and_then(std::io::Error::raw_os_error);
        self.is_best_effort()
            && [Errno::PERM, Errno::INVAL, Errno::ACCESS, Errno::NOTSUP]
                .iter()
                .any(|known| code == Some(known.raw_os_error()))
    }

    fn link(
        &mut self,
        record: EntryRef<'_>,
        copied: &mut HashMap<NodeId, RootPath>,
    ) -> Result<(), LayerError> {
        let path = record.path();
        if self.contents.is_none() && self.root.try_metadata(&path)?.is_some() {
            return Ok(());
        }
        let target = RootPath::clean(record.link()).map_err(tree::Error::from)?;
        let here = self.tree.find(&target).map(|index| self.tree.get(index));
        if here.is_some_and(|target| !target.is_whiteout()) {
            return Ok(self.root.hard_link(&target, &path)?);
        }
        let dangling = || LayerError::DanglingHardLink {
            path: path.display().to_string(),
            target: target.display().to_string(),
        };
        let node = self.lower.lookup(&target).ok_or_else(dangling)?;
        let inode = self.lower.inode(node.id())?;
        if let Some(first) = copied.get(&inode) {
            return Ok(self.root.hard_link(first, &path)?);
        }
        let entry = self.lower.entry(&node)?;
        if entry.kind != Kind::File {
            return Err(dangling());
        }
        let file = self.root.create_file(&path, 0o600)?;
        self.lower
            .open(&node)?
            .copy_to(&file)
            .map_err(LayerError::io("write file of layer"))?;
        self.finish_file(self.root, &path, &file, &entry)?;
        copied.insert(inode, path);
        Ok(())
    }

    fn finish_dir(&self, record: EntryRef<'_>) -> Result<(), LayerError> {
        let path = record.path();
        let mut entry = record.entry().expect("a directory is an entry");
        if record.is_implied()
            && !record.is_opaque()
            && let Some(node) = self.lower.lookup(&path)
            && node.is_dir()
        {
            entry = self.lower.entry(&node)?;
        }
        if record.is_opaque() {
            self.root.set_xattr(&path, self.options.xattrs.opaque(), b"y")?;
        }
        self.attributes(self.root, &path, &entry)
    }
}

fn is_unsupported(error: &tree::Error) -> bool {
    error.io().and_then(std::io::Error::raw_os_error) == Some(Errno::NOTSUP.raw_os_error())
}

/// Where a layer's contents lie once it is a directory: the same index, with every file at its own path.
#[must_use]
pub fn placed_in_dir(tree: &TreeIndex) -> TreeIndex {
    let mut records = tree.records.clone();
    for record in &mut records {
        record.place = match record.kind {
            NodeKind::Entry(Kind::File) => Place::Dir,
            NodeKind::Entry(_) | NodeKind::Whiteout => Place::None,
        };
    }
    let digests = tree.digests.read();
    let digests = Digests {
        slots: digests.slots.clone(),
        changed: digests.changed,
    };
    TreeIndex {
        records,
        arena: tree.arena.clone(),
        digests: digests.into(),
        origin: None,
    }
}
