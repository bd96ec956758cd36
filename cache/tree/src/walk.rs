//! Lists a whole tree beneath a [`Root`], on all cores, in one defined order.
//!
//! ```text
//! directory ─▶ list, sort ─▶ filter, stat (in parallel) ─▶ sub-directories (in parallel) ─▶ spliced in order
//! ```
//!
//! Order: a directory, then all beneath it, then the next name; names as bytes. The root itself is not listed.
//! A directory that the filter does not want itself is listed if anything beneath it is.
//! Sockets are left out. Names of one inode after the first become [`Kind::HardLink`].
//! What vanishes between listing and looking is left out; that is no error.

use std::{
    collections::{HashMap, hash_map::Entry as MapEntry},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rayon::prelude::*;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{DirItem, Entry, Kind, Metadata, Result, Root, RootPath, StatId, root::list};

/// How many names of one directory one thread looks at before another may help.
const STAT_CHUNK: usize = 256;

/// What a filter says of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit<S> {
    /// List it.
    pub include: bool,
    /// For a directory: look into it.
    pub descend: bool,
    /// For a directory: handed to the visits of its children.
    pub state: S,
}

/// Decides what a walk lists. Called from many threads, parents before their children.
pub trait Filter: Sync {
    /// What a directory's visit hands to those of its children.
    type State: Send + Sync + Default;
    /// Decides on one path; `parent` is the state of the directory it lies in.
    fn visit(&self, path: &RootPath, is_dir: bool, parent: &Self::State) -> Visit<Self::State>;
}

/// The filter that lists all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Everything;

impl Filter for Everything {
    type State = ();
    fn visit(&self, _: &RootPath, _: bool, (): &()) -> Visit<()> {
        Visit {
            include: true,
            descend: true,
            state: (),
        }
    }
}

/// What a walk looks at besides `lstat`.
#[derive(Debug, Clone, Copy)]
pub struct WalkOptions {
    /// Read extended attributes: one more call for every entry.
    pub xattrs: bool,
}

impl Default for WalkOptions {
    fn default() -> Self {
        WalkOptions { xattrs: true }
    }
}

/// One entry of a walk, with the state of its inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The entry.
    pub entry: Entry,
    /// Which state of which inode it was.
    pub id: StatId,
    /// How many names the inode has.
    pub nlink: u64,
}

/// Lists everything beneath `root` that `filter` wants, in order.
///
/// # Errors
/// The kernel's, on a directory that cannot be listed or an entry that cannot be looked at.
pub fn walk<F: Filter>(root: &Root, filter: &F, options: WalkOptions) -> Result<Vec<Found>> {
    walk_from(root, &RootPath::root(), filter, options, &F::State::default())
}

fn walk_from<F: Filter>(
    root: &Root,
    top: &RootPath,
    filter: &F,
    options: WalkOptions,
    state: &F::State,
) -> Result<Vec<Found>> {
    let walker = Walker {
        root,
        filter,
        options,
    };
    let fd = root.open_dir(top)?;
    let mut found = walker.directory(&fd, top, state)?;
    mark_hard_links(&mut found);
    Ok(found)
}

struct Walker<'a, F: Filter> {
    root: &'a Root,
    filter: &'a F,
    options: WalkOptions,
}

/// One name of a directory after it was looked at.
struct Looked<S> {
    found: Found,
    include: bool,
    /// For a directory that is to be looked into.
    below: Option<S>,
}

impl<F: Filter> Walker<'_, F> {
    fn directory(&self, fd: &OwnedFd, path: &RootPath, state: &F::State) -> Result<Vec<Found>> {
        let looked = self.look_at_all(fd, path, state)?;
        let descend = |item: &Looked<F::State>| match &item.below {
            Some(state) => self.descend(fd.as_fd(), &item.found.entry.path, state),
            None => Ok(Vec::new()),
        };
        let parallel = looked.iter().filter(|item| item.below.is_some()).nth(1).is_some();
        let below: Vec<Result<Vec<Found>>> = if parallel {
            looked.par_iter().map(descend).collect()
        } else {
            looked.iter().map(descend).collect()
        };
        let mut all = Vec::with_capacity(looked.len());
        for (item, children) in looked.into_iter().zip(below) {
            let children = children?;
            if item.include || !children.is_empty() {
                all.push(item.found);
            }
            all.extend(children);
        }
        Ok(all)
    }

    fn look_at_all(&self, fd: &OwnedFd, path: &RootPath, state: &F::State) -> Result<Vec<Looked<F::State>>> {
        let items = list(fd.as_fd()).map_err(|cause| self.root.error("list", path, cause))?;
        let look = |item: &DirItem| self.look(fd.as_fd(), path, item, state).transpose();
        if items.len() <= STAT_CHUNK {
            return items.iter().filter_map(look).collect();
        }
        let parts: Vec<Result<Vec<_>>> = items
            .par_chunks(STAT_CHUNK)
            .map(|chunk| chunk.iter().filter_map(look).collect())
            .collect();
        let mut all = Vec::with_capacity(items.len());
        for part in parts {
            all.extend(part?);
        }
        Ok(all)
    }

    fn look(
        &self,
        fd: BorrowedFd<'_>,
        parent: &RootPath,
        item: &DirItem,
        state: &F::State,
    ) -> Result<Option<Looked<F::State>>> {
        let path = parent.child_unchecked(&item.name);
        let mut stat = None;
        let is_dir = match item.kind {
            Some(kind) => kind == Kind::Dir,
            None => match self.stat(fd, &path, &item.name)? {
                Some(found) => stat.insert(found).is_dir(),
                None => return Ok(None),
            },
        };
        let visit = self.filter.visit(&path, is_dir, state);
        let looked_into = is_dir && visit.descend;
        if !visit.include && !looked_into {
            return Ok(None);
        }
        let stat = match stat {
            Some(stat) => Some(stat),
            None => self.stat(fd, &path, &item.name)?,
        };
        let Some(stat) = stat else { return Ok(None) };
        let Some(mut entry) = stat.to_entry(path) else {
            return Ok(None);
        };
        if entry.kind == Kind::Symlink {
            match rustix::fs::readlinkat(fd, &*item.name, Vec::new()) {
                Ok(target) => entry.link = Some(target.into_bytes()),
                Err(Errno::NOENT) => return Ok(None),
                Err(cause) => return Err(self.root.error("read link", &entry.path, cause)),
            }
        }
        if self.options.xattrs {
            entry.xattrs = self.root.xattrs(&entry.path)?;
        }
        let below = (stat.is_dir() && visit.descend).then_some(visit.state);
        Ok(Some(Looked {
            found: Found {
                entry,
                id: stat.id,
                nlink: stat.nlink,
            },
            include: visit.include,
            below,
        }))
    }

    fn stat(&self, fd: BorrowedFd<'_>, path: &RootPath, name: &[u8]) -> Result<Option<Metadata>> {
        match self.root.look(fd, name) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(Errno::NOENT) => Ok(None),
            Err(cause) => Err(self.root.error("stat", path, cause)),
        }
    }

    fn descend(&self, parent: BorrowedFd<'_>, path: &RootPath, state: &F::State) -> Result<Vec<Found>> {
        let name = path.file_name().unwrap_or_default();
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Ok(fd) => self.directory(&fd, path, state),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Vec::new()),
            Err(cause) => Err(self.root.error("open directory", path, cause)),
        }
    }
}

/// Makes every name of an inode but its first a hard link to the first.
fn mark_hard_links(found: &mut [Found]) {
    let mut first: HashMap<(u64, u64), RootPath> = HashMap::new();
    for item in found
        .iter_mut()
        .filter(|item| item.nlink > 1 && item.entry.kind != Kind::Dir)
    {
        match first.entry((item.id.dev, item.id.ino)) {
            MapEntry::Vacant(slot) => {
                slot.insert(item.entry.path.clone());
            }
            MapEntry::Occupied(slot) if item.entry.kind == Kind::File => {
                item.entry.kind = Kind::HardLink;
                item.entry.link = Some(slot.get().as_bytes().to_vec());
            }
            MapEntry::Occupied(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TempRoot, path};

    #[test]
    fn lists_in_order_and_marks_hard_links() {
        let temp = TempRoot::new("walk-order");
        let root = temp.root();
        root.create_dir(&path("a"), 0o755).expect("mkdir");
        for name in ["a/b", "a.txt", "a-x", "a/B"] {
            root.create_file(&path(name), 0o644).expect("create");
        }
        root.hard_link(&path("a.txt"), &path("z")).expect("link");
        root.symlink(b"a.txt", &path("s")).expect("symlink");
        let found = walk(&root, &Everything, WalkOptions::default()).expect("walk");
        let listed: Vec<_> = found
            .iter()
            .map(|item| {
                (
                    String::from_utf8_lossy(item.entry.path.as_bytes()).into_owned(),
                    item.entry.kind,
                )
            })
            .collect();
        assert_eq!(
            listed,
            [
                ("a".into(), Kind::Dir),
                ("a/B".into(), Kind::File),
                ("a/b".into(), Kind::File),
                ("a-x".into(), Kind::File),
                ("a.txt".into(), Kind::File),
                ("s".into(), Kind::Symlink),
                ("z".into(), Kind::HardLink),
            ]
        );
        assert_eq!(found[6].entry.link.as_deref(), Some(&b"a.txt"[..]));
        assert_eq!(found[5].entry.link.as_deref(), Some(&b"a.txt"[..]));
    }

    #[test]
    fn a_directory_not_wanted_itself_is_listed_for_what_lies_in_it() {
        struct OnlyC;
        impl Filter for OnlyC {
            type State = ();
            fn visit(&self, path: &RootPath, is_dir: bool, (): &()) -> Visit<()> {
                Visit {
                    include: path.file_name() == Some(b"c"),
                    descend: is_dir,
                    state: (),
                }
            }
        }
        let temp = TempRoot::new("walk-filter");
        let root = temp.root();
        root.create_dir_all(&path("a/b"), 0o755).expect("mkdir");
        root.create_dir_all(&path("d/e"), 0o755).expect("mkdir");
        root.create_file(&path("a/b/c"), 0o644).expect("create");
        root.create_file(&path("a/b/d"), 0o644).expect("create");
        let found = walk(&root, &OnlyC, WalkOptions { xattrs: false }).expect("walk");
        let listed: Vec<_> = found.iter().map(|item| item.entry.path.clone()).collect();
        assert_eq!(listed, [path("a"), path("a/b"), path("a/b/c")]);
    }

    #[test]
    fn large_directories_stay_in_order() {
        let temp = TempRoot::new("walk-large");
        let root = temp.root();
        for number in 0..1000 {
            root.create_file(&path(&format!("f{number:04}")), 0o644)
                .expect("create");
        }
        let found = walk(&root, &Everything, WalkOptions { xattrs: false }).expect("walk");
        assert_eq!(found.len(), 1000);
        assert!(
            found
                .windows(2)
                .all(|pair| pair[0].entry.path < pair[1].entry.path)
        );
    }
}
