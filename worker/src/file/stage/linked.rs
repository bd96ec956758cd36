//! Writes a stage as a directory whose large files are further names of those a client sent.
//!
//! ```text
//! stage ─▶ plan: is it mostly large files of received contexts, and nothing of the base removed or replaced?
//!            ├─ no ──▶ a tar (`Stage::write`)
//!            └─ yes ─▶ an upper directory: large files linked, the rest made
//! ```
//!
//! A context that came over the wire lies in the store already, in files nobody changes any more. Writing its bytes into a
//! tar costs a second copy and a digest of it, which are needed only when the layer is exported; and a step that runs on top
//! would unpack it again. A context that is read in place is the user's, and is never linked.
//!
//! Differs: a step sees that such a file has more than one name (`st_nlink`), though no other is to be found; in what is
//! exported there is no trace of it (`a_directory_of_links_is_the_layer_a_tar_would_be`).
use super::{Dir, Inode, Item, Source, Stage};
use crate::file::FileError;
use cache::view::{Contents, Node};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use tree::{Entry, Kind, Root, RootPath};

/// From how many bytes of links on a directory is worth it.
const LEAST_BYTES: u64 = 16 << 20;
/// What files must have on average: making a name costs as much as copying this.
const LEAST_AVERAGE: u64 = 64 << 10;
/// How many entries beside them are made at most.
const MOST_OTHERS: usize = 1000;

/// What a directory would consist of.
#[derive(Default)]
struct Plan {
    links: u64,
    linked_bytes: u64,
    others: usize,
    other_bytes: u64,
    seen: HashSet<usize>,
}

impl Stage {
    /// Whether this is to be written by [`Stage::link_into`]; `received` is where received contexts lie.
    ///
    /// # Errors
    /// Those of reading the base.
    pub fn is_worth_linking(&self, received: &Path) -> Result<bool, FileError> {
        let mut plan = Plan::default();
        Ok(self.plan(&self.root, self.base.root(), received, &mut plan)?
            && plan.linked_bytes >= LEAST_BYTES
            && plan.linked_bytes / plan.links.max(1) >= LEAST_AVERAGE
            && plan.others <= MOST_OTHERS
            && plan.other_bytes <= plan.linked_bytes / 4)
    }

    /// Counts what a directory's changes consist of; false if they hide anything of what is below.
    fn plan(
        &self,
        dir: &Dir,
        lower: Option<Node>,
        received: &Path,
        plan: &mut Plan,
    ) -> Result<bool, FileError> {
        if dir.base.is_none() && lower.is_some() {
            return Ok(false);
        }
        for (name, item) in &dir.items {
            let below = lower.as_ref().and_then(|node| self.base.child(node, name));
            match item {
                Item::Gone if below.is_none() => {}
                Item::Gone => return Ok(false),
                Item::Name(_) if below.is_some() => return Ok(false),
                Item::Name(number) => {
                    if !plan.seen.insert(*number) {
                        continue;
                    }
                    let inode = &self.inodes[*number];
                    if linkable(inode, received)?.is_some() {
                        plan.links += 1;
                        plan.linked_bytes += inode.entry.size;
                    } else {
                        plan.others += 1;
                        plan.other_bytes += inode.entry.size;
                    }
                }
                Item::Dir(child) => {
                    plan.others += 1;
                    if !self.plan(child, below, received, plan)? {
                        return Ok(false);
                    }
                }
            }
            if plan.others > MOST_OTHERS {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the changes in the empty directory `upper`, which is to lie above the base; `cancelled` is asked before each
    /// entry.
    ///
    /// # Errors
    /// [`FileError::Cancelled`]; those of reading contents and of writing.
    pub fn link_into(
        &self,
        upper: &Path,
        received: &Path,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), FileError> {
        let mut placing = Placing {
            stage: self,
            root: Root::open(upper)?,
            received,
            placed: HashMap::new(),
            cancelled,
        };
        placing.directory(&self.root, &RootPath::root())
    }
}

/// The received file that has an inode's contents and all its attributes, if there is one.
fn linkable<'a>(inode: &'a Inode, received: &Path) -> Result<Option<(&'a Root, RootPath)>, FileError> {
    let Source::View(view, node) = &inode.contents else {
        return Ok(None);
    };
    let id = view.inode(node.id())?;
    let layer = &view.layers()[id.layer as usize];
    let Contents::Dir(root) = &*layer.contents else {
        return Ok(None);
    };
    if !root.path().starts_with(received) {
        return Ok(None);
    }
    let record = layer.tree.get(id.index);
    let path = record.path();
    let found = root.metadata(&path)?;
    let is_as_listed = record.stat_id().is_none_or(|listed| listed == found.id);
    let wanted = &inode.entry;
    let is_same = found.to_entry(path.clone()).is_some_and(|found| {
        found.kind == Kind::File
            && (found.mode, found.uid, found.gid) == (wanted.mode, wanted.uid, wanted.gid)
            && (found.size, found.mtime) == (wanted.size, wanted.mtime)
    });
    Ok((is_as_listed && is_same && wanted.xattrs.is_empty()).then_some((root, path)))
}

struct Placing<'a> {
    stage: &'a Stage,
    root: Root,
    received: &'a Path,
    /// The first name of each inode.
    placed: HashMap<usize, RootPath>,
    cancelled: &'a dyn Fn() -> bool,
}

impl Placing<'_> {
    fn directory(&mut self, dir: &Dir, path: &RootPath) -> Result<(), FileError> {
        for (name, item) in &dir.items {
            if (self.cancelled)() {
                return Err(FileError::Cancelled);
            }
            let path = path.child(name)?;
            match item {
                Item::Gone => {}
                Item::Name(number) => self.name(*number, path)?,
                Item::Dir(child) => {
                    self.root.create_dir(&path, 0o700)?;
                    self.directory(child, &path)?;
                    self.attributes(&child.entry, &path)?;
                }
            }
        }
        Ok(())
    }

    fn name(&mut self, number: usize, path: RootPath) -> Result<(), FileError> {
        if let Some(first) = self.placed.get(&number) {
            return Ok(self.root.hard_link(first, &path)?);
        }
        let inode = &self.stage.inodes[number];
        let entry = &inode.entry;
        match entry.kind {
            Kind::File => {
                let linked = match linkable(inode, self.received)? {
                    Some((from, name)) => self.root.link_from_as(from, &name, &path).is_ok(),
                    None => false,
                };
                if !linked {
                    self.copy(inode, &path)?;
                }
            }
            Kind::Symlink => {
                self.root
                    .symlink(entry.link.as_deref().unwrap_or_default(), &path)?;
                self.attributes(entry, &path)?;
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                self.root.mknod(&path, entry.kind, entry.mode, entry.rdev)?;
                self.attributes(entry, &path)?;
            }
            // Names of inodes are neither.
            Kind::Dir | Kind::HardLink => {}
        }
        self.placed.insert(number, path);
        Ok(())
    }

    fn copy(&self, inode: &Inode, path: &RootPath) -> Result<(), FileError> {
        let mut file = self.root.create_file(path, 0o600)?;
        let failed = |source| cache::layer::LayerError::Io {
            action: "copy contents",
            cause: source,
        };
        match &inode.contents {
            Source::Nothing => {}
            Source::Bytes(bytes) => std::io::Write::write_all(&mut file, bytes).map_err(failed)?,
            Source::View(view, node) => drop(view.open(node)?.copy_to(&file).map_err(failed)?),
            Source::Tar(contents, tree, index) => {
                contents.open(tree.get(*index))?.copy_to(&file).map_err(failed)?;
            }
        }
        drop(file);
        self.attributes(&inode.entry, path)
    }

    fn attributes(&self, entry: &Entry, path: &RootPath) -> Result<(), FileError> {
        self.root.set_owner(path, entry.uid, entry.gid)?;
        for (name, value) in &entry.xattrs {
            self.root.set_xattr(path, name, value)?;
        }
        self.root.set_mode(path, entry.mode)?;
        Ok(self.root.set_mtime(path, entry.mtime)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::local::{ContextOptions, read_context};
    use cache::layer::{DirOptions, TarLayerWriter, diff_dir, scan_upper};
    use cache::view::{View, ViewLayer};
    use llb::op::CopyAction;
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;
    use tree::Timestamp;

    /// Two large files, one of them with two names, and a small one, in a folder `received`.
    fn received(root: &Path) -> View {
        let tree = root.join("received/0/key/1/tree");
        std::fs::create_dir_all(tree.join("d")).expect("made");
        for (name, bytes) in [("big", 12 << 20), ("d/large", 8 << 20), ("small", 10)] {
            std::fs::write(tree.join(name), vec![name.len() as u8; bytes]).expect("written");
        }
        std::fs::hard_link(tree.join("big"), tree.join("d/again")).expect("linked");
        let options = ContextOptions {
            is_kept: true,
            ..ContextOptions::default()
        };
        let index = read_context(&tree, &options).expect("listed");
        View::new(vec![ViewLayer {
            tree: Arc::new(index),
            contents: Arc::new(Contents::Dir(Root::open(&tree).expect("opened").kept())),
        }])
    }

    fn base(names: &[&str]) -> View {
        let mut writer = TarLayerWriter::new(tempfile::tempfile().expect("a file"));
        for name in names {
            let path = RootPath::clean(name.as_bytes()).expect("clean");
            let entry = match name.ends_with('/') {
                true => Entry::dir(path, 0o755),
                false => Entry::new(path, Kind::File, 0o644),
            };
            writer.add(&entry, std::io::empty()).expect("in order");
        }
        let (file, layer) = writer.finish().expect("written");
        View::new(vec![ViewLayer {
            tree: Arc::new(layer.tree),
            contents: Arc::new(Contents::Tar(file)),
        }])
    }

    fn copied(base: View, source: &View, owner: Option<crate::file::Ids>) -> Stage {
        let mut stage = Stage::new(base, Timestamp::from_secs(1000));
        let action = CopyAction {
            src: "/".into(),
            dest: "/app/".into(),
            mode: -1,
            timestamp: -1,
            dir_copy_contents: true,
            create_dest_path: true,
            ..CopyAction::default()
        };
        let spool = || tempfile::tempfile();
        crate::file::copy(&mut stage, source, &action, owner, &spool).expect("copied");
        stage
    }

    #[test]
    fn a_directory_of_links_is_the_layer_a_tar_would_be() {
        let root = tempfile::tempdir().expect("a folder");
        let source = received(root.path());
        let folder = root.path().join("received");
        for names in [&[][..], &["app/", "etc/", "etc/x"]] {
            let stage = copied(base(names), &source, None);
            assert!(stage.is_worth_linking(&folder).expect("planned"));
            let upper = tempfile::tempdir_in(root.path()).expect("a folder");
            stage.link_into(upper.path(), &folder, &|| false).expect("linked");
            let inode = |path: std::path::PathBuf| std::fs::metadata(path).expect("there").ino();
            for name in ["big", "d/again", "d/large"] {
                let original = folder.join("0/key/1/tree").join(name);
                assert_eq!(
                    inode(upper.path().join("app").join(name)),
                    inode(original),
                    "{name}"
                );
            }
            let (_, tar) = stage.write(std::io::sink(), &|| false).expect("written");
            let opened = Root::open(upper.path()).expect("opened");
            let index = scan_upper(&opened, DirOptions::default()).expect("listed");
            let (_, diff) =
                diff_dir(&index, &Contents::Dir(opened), &base(names), std::io::sink()).expect("written");
            assert_eq!(diff.diff_id, tar.diff_id);
            // What was received can still be read as what was listed: its times of change are not its state.
            stage.write(std::io::sink(), &|| false).expect("written again");
        }
    }

    #[test]
    fn what_cannot_be_linked_is_a_tar() {
        let root = tempfile::tempdir().expect("a folder");
        let source = received(root.path());
        let folder = root.path().join("received");
        let is_worth = |stage: Stage, folder: &Path| stage.is_worth_linking(folder).expect("planned");
        let other = root.path().join("elsewhere");
        assert!(
            !is_worth(copied(base(&[]), &source, None), &other),
            "the user's own files"
        );
        let replaced = copied(base(&["app/", "app/small"]), &source, None);
        assert!(!is_worth(replaced, &folder), "a file of the base is replaced");
        let ids = crate::file::Ids { uid: 7, gid: 7 };
        let owned = copied(base(&[]), &source, Some(ids));
        assert!(!is_worth(owned, &folder), "the owner is another");
        let mut removed = copied(base(&["gone"]), &source, None);
        let path = RootPath::clean(b"gone").expect("clean");
        removed.remove(&path).expect("removed");
        assert!(!is_worth(removed, &folder), "a file of the base is removed");
        let cancelled = copied(base(&[]), &source, None);
        let upper = tempfile::tempdir_in(root.path()).expect("a folder");
        let ended = cancelled.link_into(upper.path(), &folder, &|| true);
        assert!(matches!(ended, Err(FileError::Cancelled)));
    }
}
