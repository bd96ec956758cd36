//! Files of a container's mounts, looked at from outside.
//!
//! ```text
//! Container ─▶ files(mount) ─┬─ layers and what was written above them ─▶ View ─┐
//!                            ├─ cache ─▶ directory ─────────────────────────────┼─▶ Files ─▶ stat, read, list
//!                            └─ tmpfs ─▶ nothing ───────────────────────────────┘
//! ```
//!
//! 1. Each mount is a tree of its own: what is mounted inside it is not seen through it, as with BuildKit.
//! 2. Links are followed inside their mount. One that leads out, as each absolute one may, is not: its own entry is told,
//!    and whoever asked knows which mount it leads to.
//! 3. What is written while somebody looks is seen at the next call.
//!
//! Never: a path handed to the kernel that a process of the container could bend; contents of secrets and sockets.
use super::Container;
use crate::mounts::Shown;
use cache::view::View;
use std::io::Read;
use tree::{Entry, Kind, PatternSet, Root, RootPath, Timestamp};

/// Links on one path.
const MAX_LINKS: usize = 40;
/// The most entries of one directory that are told.
const MAX_ENTRIES: usize = 100_000;

/// Why files of a container cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There is no such mount.
    #[error("mount index {index} is out of bounds ({count} available)")]
    NoMount {
        /// What was asked for.
        index: i64,
        /// How many there are.
        count: usize,
    },
    /// The mount has no files that could be told.
    #[error("mount {dest} is a {what}, whose contents are not told")]
    Hidden {
        /// Where it is.
        dest: String,
        /// What it is.
        what: &'static str,
    },
    /// A path that is none from the mount's root.
    #[error("can't make {path} relative to /")]
    Relative {
        /// The path.
        path: String,
    },
    /// Nothing is there.
    #[error("{path}: no such file or directory")]
    Missing {
        /// The path.
        path: String,
    },
    /// A link leads out of the mount.
    #[error("{path}: path escapes from parent")]
    Escapes {
        /// The path.
        path: String,
    },
    /// Too many links.
    #[error("{path}: too many levels of symbolic links")]
    Links {
        /// The path.
        path: String,
    },
    /// Not what was asked for.
    #[error("{path}: {is}")]
    Kind {
        /// The path.
        path: String,
        /// What it is or is not.
        is: &'static str,
    },
    /// More than fits into an answer.
    #[error("{path} has more than {limit} {of}")]
    TooMuch {
        /// The path.
        path: String,
        /// How many there may be.
        limit: u64,
        /// Of what.
        of: &'static str,
    },
    /// A pattern that is none.
    #[error(transparent)]
    Pattern(#[from] tree::PatternError),
    /// The store's.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
    /// Those of reading layers.
    #[error(transparent)]
    Layer(#[from] cache::layer::LayerError),
    /// Those of reading directories.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// Those of reading a file.
    #[error("read {path}: {cause}")]
    Read {
        /// The path.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
}

/// The files of one mount. All its functions block.
pub struct Files {
    tree: Tree,
    /// What of the tree is mounted.
    base: RootPath,
}

enum Tree {
    Layers(View),
    Directory(Root),
    Nothing,
}

impl Container {
    /// The files of mount number `index`, in the order they were asked for, as they are now.
    ///
    /// # Errors
    /// There is no such mount, or it has no files to be told.
    pub async fn files(&self, index: i64) -> Result<Files, FilesError> {
        let mounts = &self.wanted.mounts;
        let found = usize::try_from(index)
            .ok()
            .and_then(|at| Some((at, mounts.get(at)?)));
        let (at, wanted) = found.ok_or(FilesError::NoMount {
            index,
            count: mounts.len(),
        })?;
        let dest = || wanted.mount.dest.clone();
        let whole = |tree| Files {
            tree,
            base: RootPath::root(),
        };
        let below = match &wanted.result {
            Some(result) => result.view(&self.meter).await?,
            None => View::default(),
        };
        let (kept, selector) = (self.kept.clone(), wanted.mount.selector.clone());
        match self.kept.prepared.shown(at, &wanted.mount) {
            Shown::Hidden(what) => Err(FilesError::Hidden { dest: dest(), what }),
            Shown::Nothing => Ok(whole(Tree::Nothing)),
            Shown::Directory(path) => Ok(whole(Tree::Directory(Root::open(path)?))),
            Shown::Layers => {
                let looking = tokio::task::spawn_blocking(move || {
                    let view = kept.prepared.view(at, &below)?;
                    let base = match selector.as_str() {
                        "" | "/" => RootPath::root(),
                        selector => view.resolve(&clean(selector)?, true)?.path,
                    };
                    Ok(Files {
                        tree: Tree::Layers(view),
                        base,
                    })
                });
                // Only a runtime that goes away stops such a thread.
                looking
                    .await
                    .unwrap_or_else(|_| Err(FilesError::Missing { path: dest() }))
            }
        }
    }
}

impl Files {
    /// What is at `path`, links followed as long as they stay in the mount. Its own path is its last name.
    ///
    /// # Errors
    /// Nothing is there.
    pub fn stat(&self, path: &str) -> Result<Entry, FilesError> {
        let mut entry = match self.resolve(path, true) {
            Err(FilesError::Escapes { .. }) => self.resolve(path, false)?,
            found => found?,
        };
        let asked = clean(path)?;
        entry.path = match asked.file_name() {
            Some(name) => clean(&String::from_utf8_lossy(name))?,
            None => RootPath::root(),
        };
        Ok(entry)
    }

    /// Bytes of the file at `path`, from `offset` on, `length` of them or up to its end, at most `limit`.
    ///
    /// # Errors
    /// There is no such file, or that is more than `limit`.
    pub fn read(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
        limit: u64,
    ) -> Result<Vec<u8>, FilesError> {
        let entry = self.resolve(path, true)?;
        let is = |is| FilesError::Kind {
            path: path.to_owned(),
            is,
        };
        match entry.kind {
            Kind::File => {}
            Kind::Dir => return Err(is("is a directory")),
            _ => return Err(is("is no regular file")),
        }
        let failed = |cause| FilesError::Read {
            path: path.to_owned(),
            cause,
        };
        let wanted = length.unwrap_or(limit + 1).min(limit + 1);
        let mut data = Vec::new();
        let mut take = |mut reader: &mut dyn Read| {
            std::io::copy(&mut Read::take(&mut reader, offset), &mut std::io::sink())?;
            reader.take(wanted).read_to_end(&mut data).map(drop)
        };
        match &self.tree {
            Tree::Nothing => {
                return Err(FilesError::Missing {
                    path: path.to_owned(),
                });
            }
            Tree::Directory(root) => take(&mut root.open_file(&entry.path)?.0).map_err(failed)?,
            Tree::Layers(view) => {
                let node = view.lookup(&entry.path);
                let node = node.ok_or_else(|| FilesError::Missing {
                    path: path.to_owned(),
                })?;
                take(&mut view.open(&node)?).map_err(failed)?;
            }
        }
        if data.len() as u64 > limit {
            return Err(FilesError::TooMuch {
                path: path.to_owned(),
                limit,
                of: "bytes: read it in parts",
            });
        }
        Ok(data)
    }

    /// What is in the directory at `path`, by name; the path of each is its name. Of all, those that match `pattern`.
    ///
    /// # Errors
    /// It is no directory.
    pub fn list(&self, path: &str, pattern: &str) -> Result<Vec<Entry>, FilesError> {
        let top = self.resolve(path, true)?;
        if top.kind != Kind::Dir {
            return Err(FilesError::Kind {
                path: path.to_owned(),
                is: "not a directory",
            });
        }
        let wanted = (!pattern.is_empty())
            .then(|| PatternSet::new(&[pattern]))
            .transpose()?;
        let mut entries = Vec::new();
        for name in self.names(&top.path)? {
            let text = String::from_utf8_lossy(&name).into_owned();
            if wanted.as_ref().is_some_and(|wanted| !wanted.matches(&text)) {
                continue;
            }
            // What has gone since, and sockets, which have no entry, are left out.
            if let Some(mut entry) = self.entry(&beneath(&top.path, &name)?)? {
                entry.path = clean(&text)?;
                entries.push(entry);
            }
            if entries.len() > MAX_ENTRIES {
                let limit = MAX_ENTRIES as u64;
                return Err(FilesError::TooMuch {
                    path: path.to_owned(),
                    limit,
                    of: "entries",
                });
            }
        }
        Ok(entries)
    }

    /// The entry at a path after all links, of the last only if `follows_last`; its own path is the one in the tree.
    fn resolve(&self, path: &str, follows_last: bool) -> Result<Entry, FilesError> {
        let told = |make: fn(String) -> FilesError| make(path.to_owned());
        if !path.starts_with('/') {
            return Err(told(|path| FilesError::Relative { path }));
        }
        let floor = self.base.components().count();
        let mut here: Vec<Vec<u8>> = self.base.components().map(<[u8]>::to_vec).collect();
        let mut left: Vec<Vec<u8>> = clean(path)?.components().rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                if here.len() == floor {
                    return Err(told(|path| FilesError::Escapes { path }));
                }
                here.pop();
                continue;
            }
            here.push(name);
            if left.is_empty() && !follows_last {
                break;
            }
            let entry = self.entry(&joined(&here)?)?;
            let entry = entry.ok_or_else(|| told(|path| FilesError::Missing { path }))?;
            let Some(target) = entry.link.filter(|_| entry.kind == Kind::Symlink) else {
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(told(|path| FilesError::Links { path }));
            }
            if target.first() == Some(&b'/') {
                return Err(told(|path| FilesError::Escapes { path }));
            }
            here.pop();
            let parts = target.split(|byte| *byte == b'/').rev();
            left.extend(
                parts
                    .filter(|part| !part.is_empty() && *part != b".")
                    .map(<[u8]>::to_vec),
            );
        }
        let found = self.entry(&joined(&here)?)?;
        found.ok_or_else(|| told(|path| FilesError::Missing { path }))
    }

    /// What is at a path of the tree itself; no link is followed.
    fn entry(&self, path: &RootPath) -> Result<Option<Entry>, FilesError> {
        match &self.tree {
            Tree::Layers(view) => match view.lookup(path) {
                Some(node) => {
                    let mut entry = view.entry(&node)?;
                    entry.path = path.clone();
                    Ok(Some(entry))
                }
                // A stack without layers has a root all the same.
                None if path.is_root() => Ok(Some(Entry::dir(path.clone(), 0o755))),
                None => Ok(None),
            },
            Tree::Directory(root) => match root.try_metadata(path)? {
                Some(_) => Ok(root.entry(path)?),
                None => Ok(None),
            },
            Tree::Nothing if path.is_root() => Ok(Some(Entry {
                mtime: Timestamp::now(),
                ..Entry::dir(path.clone(), 0o1777)
            })),
            Tree::Nothing => Ok(None),
        }
    }

    fn names(&self, path: &RootPath) -> Result<Vec<Vec<u8>>, FilesError> {
        let last = |path: &RootPath| path.file_name().map(<[u8]>::to_vec);
        Ok(match &self.tree {
            Tree::Layers(view) => {
                let node = view.lookup(path);
                let children = node.map(|node| view.children(&node)).unwrap_or_default();
                let names = children
                    .iter()
                    .filter_map(|child| last(&view.record(child.id()).path()));
                names.collect()
            }
            Tree::Directory(root) => root.read_dir(path)?.into_iter().map(|item| item.name).collect(),
            Tree::Nothing => Vec::new(),
        })
    }
}

fn clean(path: &str) -> Result<RootPath, FilesError> {
    RootPath::clean(path.as_bytes()).map_err(|_| FilesError::Missing {
        path: path.to_owned(),
    })
}

fn beneath(top: &RootPath, name: &[u8]) -> Result<RootPath, FilesError> {
    let names = top.components().chain([name]);
    joined(&names.map(<[u8]>::to_vec).collect::<Vec<_>>())
}

fn joined(names: &[Vec<u8>]) -> Result<RootPath, FilesError> {
    let path = names.join(&b'/');
    RootPath::clean(&path).map_err(|_| FilesError::Missing {
        path: String::from_utf8_lossy(&path).into_owned(),
    })
}
