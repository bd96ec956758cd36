//! Copies from a view onto a stage, as BuildKit's copier does to the last corner.
//!
//! ```text
//! sources (wildcards expanded) ─▶ unpack, if it is an archive and that is asked for
//!                              └▶ destination worked out, its parents made ─▶ entry by entry
//! ```
//!
//! * A directory that is there at the top keeps its attributes and takes the source's time; one further down takes all
//!   of the source's.
//! * Parents that a copy has to make get the action's mode and owner.
//! * With include patterns a directory is made only when something in it is copied.

use std::collections::HashMap;

use cache::view::{Node, View};
use llb::op::CopyAction;
use tree::{Entry, Kind, MatchInfo, PatternSet, RootPath, Timestamp};

use super::{
    FileError, Stage,
    make::{make_all, timestamp},
    mode,
    owner::Ids,
    stage::{Copied, Source},
    unpack, wildcard,
};

/// Mode of parents that a copy makes.
const PARENT_MODE: u32 = 0o755;

/// Copies what `action` names from `source` onto `stage`. `spool` is where an archive is unpacked to.
///
/// # Errors
/// [`FileError`] of every kind.
pub fn copy(
    stage: &mut Stage,
    source: &View,
    action: &CopyAction,
    owner: Option<Ids>,
    spool: &dyn Fn() -> std::io::Result<std::fs::File>,
) -> Result<(), FileError> {
    if !action.create_dest_path {
        let parent = stage
            .resolve(&RootPath::clean(&action.dest)?)?
            .parent()
            .unwrap_or_default();
        if stage.lookup(&parent)?.is_none() {
            return Err(FileError::NotFound {
                path: parent.display().to_string(),
            });
        }
    }
    let patterns = |list: &[String]| (!list.is_empty()).then(|| PatternSet::new(list)).transpose();
    let mut copier = Copier {
        stage,
        source,
        action,
        owner,
        time: timestamp(action.timestamp),
        include: patterns(&action.include_patterns)?,
        exclude: patterns(&action.exclude_patterns)?,
        parents: Vec::new(),
        copied: HashMap::new(),
    };
    for from in copier.sources()? {
        if action.attempt_unpack
            && unpack::unpack(copier.stage, source, &from, action, owner, copier.time, spool)?
        {
            continue;
        }
        copier.copied.clear(); // hard links are kept inside one copy only
        copier.copy_one(&from)?;
    }
    Ok(())
}

struct Copier<'a> {
    stage: &'a mut Stage,
    source: &'a View,
    action: &'a CopyAction,
    owner: Option<Ids>,
    time: Option<Timestamp>,
    include: Option<PatternSet>,
    exclude: Option<PatternSet>,
    /// Directories on the way, made only when something in them is copied.
    parents: Vec<Waiting>,
    copied: Copied,
}

struct Waiting {
    entry: Entry,
    target: RootPath,
    made: bool,
}

/// One path on its way.
struct Item<'m> {
    node: Node,
    /// Beneath what is copied; empty for that itself.
    relative: String,
    target: RootPath,
    /// A directory that is there takes the source's attributes.
    overwrite: bool,
    include: &'m MatchInfo,
    exclude: &'m MatchInfo,
}

impl Copier<'_> {
    fn sources(&self) -> Result<Vec<RootPath>, FileError> {
        let (fixed, pattern) = wildcard::split(&self.action.src);
        if !self.action.allow_wildcard || pattern.is_empty() {
            return Ok(vec![RootPath::clean(&self.action.src)?]);
        }
        let top = self.resolve_source(&RootPath::clean(&fixed)?)?;
        if self.source.lookup(&top).is_none() && !top.is_root() {
            return Err(FileError::NotFound {
                path: top.display().to_string(),
            });
        }
        let names = &mut |path: &RootPath| -> Vec<Vec<u8>> {
            let children = self
                .source
                .lookup(path)
                .map(|node| self.source.children(&node))
                .unwrap_or_default();
            children
                .iter()
                .map(|child| self.source.record(child.id()).name().to_vec())
                .collect()
        };
        let found = wildcard::expand(&top, &pattern, names)?;
        if found.is_empty() && !self.action.allow_empty_wildcard {
            return Err(FileError::NotFound {
                path: self.action.src.clone(),
            });
        }
        Ok(found)
    }

    /// The source path without links; the last one is followed only if the action says so.
    fn resolve_source(&self, path: &RootPath) -> Result<RootPath, FileError> {
        Ok(self.source.resolve(path, self.action.follow_symlink)?.path)
    }

    fn parent_mode(&self) -> u32 {
        // A symbolic mode changes what is there; nothing is there yet.
        if self.action.mode == -1 || !self.action.mode_str.is_empty() {
            PARENT_MODE
        } else {
            self.action.mode.cast_unsigned() & 0o777
        }
    }

    fn copy_one(&mut self, from: &RootPath) -> Result<(), FileError> {
        let dest = &self.action.dest;
        let into = dest.ends_with('/') || dest.ends_with("/.") || dest == ".";
        let cleaned = RootPath::clean(dest)?;
        let ensured = if into {
            cleaned.clone()
        } else {
            cleaned.parent().unwrap_or_default()
        };
        let mode = self.parent_mode();
        let ensured = self.stage.resolve(&ensured)?;
        let mut made = make_all(self.stage, &ensured, mode, self.owner, self.time)?;
        let mut target = self.stage.resolve(&cleaned)?;
        let followed = self.resolve_source(from)?;
        let not_found = || FileError::NotFound {
            path: from.display().to_string(),
        };
        let node = self.source.lookup(&followed);
        let Some(node) = node.or_else(|| followed.is_root().then(|| self.source.root()).flatten()) else {
            return if followed.is_root() {
                Ok(())
            } else {
                Err(not_found())
            };
        };
        let there = self.stage.lookup(&target)?;
        let there_dir = there.as_ref().is_some_and(Entry::is_dir);
        let contents_only = self.action.dir_copy_contents;
        let into_it = if node.is_dir() {
            !contents_only && there.is_some()
        } else {
            there_dir
        };
        if into_it && let Some(name) = from.file_name() {
            target = target.child(name)?;
        }
        let holder = if contents_only && node.is_dir() && there.is_none() {
            target.clone()
        } else {
            target.parent().unwrap_or_default()
        };
        made.extend(make_all(self.stage, &holder, mode, self.owner, self.time)?);
        let none = MatchInfo::default();
        let item = Item {
            node,
            relative: String::new(),
            target,
            overwrite: false,
            include: &none,
            exclude: &none,
        };
        self.copy_item(&item)?;
        if let Some(time) = self.time {
            for dir in made {
                self.stage.change_dir(&dir, |entry| entry.mtime = time)?;
            }
        }
        Ok(())
    }

    /// Whether patterns take a path in, whether they shut it out, and what both say to what is beneath it.
    fn is_wanted(&self, item: &Item<'_>) -> (bool, bool, MatchInfo, MatchInfo) {
        let (mut wanted, mut excluded) = (true, false);
        let (mut include, mut exclude) = (MatchInfo::default(), MatchInfo::default());
        if !item.relative.is_empty() {
            if let Some(set) = &self.include {
                (wanted, include) = set.matches_using_parent(&item.relative, item.include);
            }
            if let Some(set) = &self.exclude {
                (excluded, exclude) = set.matches_using_parent(&item.relative, item.exclude);
            }
        }
        (wanted && !excluded, excluded, include, exclude)
    }

    fn copy_item(&mut self, item: &Item<'_>) -> Result<(), FileError> {
        let (wanted, excluded, include, exclude) = self.is_wanted(item);
        if !wanted && !item.node.is_dir() {
            return Ok(());
        }
        let entry = self.source.entry(&item.node)?;
        if wanted {
            if self.action.always_replace_existing {
                let there = self.stage.lookup(&item.target)?;
                if there.is_some_and(|there| !(there.is_dir() && entry.is_dir())) {
                    self.stage.remove(&item.target)?;
                }
            }
            self.make_waiting()?;
        }
        if !item.node.is_dir() {
            return self.copy_file(item, entry);
        }
        let mut made = false;
        if wanted {
            made = self.make_dir(&item.target, &entry, item.overwrite)?;
        }
        // An exception to what is excluded may lie deeper.
        let look_inside = !excluded || self.exclude.as_ref().is_some_and(PatternSet::has_exclusions);
        if look_inside {
            self.parents.push(Waiting {
                entry: entry.clone(),
                target: item.target.clone(),
                made: wanted,
            });
            for child in self.source.children(&item.node) {
                let name = self.source.record(child.id()).name();
                let text = String::from_utf8_lossy(name);
                let relative = if item.relative.is_empty() {
                    text.into_owned()
                } else {
                    format!("{}/{text}", item.relative)
                };
                let target = item.target.child(name)?;
                self.copy_item(&Item {
                    node: child,
                    relative,
                    target,
                    overwrite: true,
                    include: &include,
                    exclude: &exclude,
                })?;
            }
            self.parents.pop();
        }
        if !wanted {
            return Ok(());
        }
        let time = self.time.unwrap_or(entry.mtime);
        if item.overwrite || made {
            let (attributes, xattrs) = (self.attributes(&entry)?, entry.xattrs);
            self.stage.change_dir(&item.target, |there| {
                (there.mode, there.uid, there.gid, there.mtime) =
                    (attributes.mode, attributes.uid, attributes.gid, time);
                there.xattrs.extend(xattrs);
            })
        } else if !item.target.is_root() {
            self.stage.change_dir(&item.target, |there| there.mtime = time)
        } else {
            Ok(())
        }
    }

    fn copy_file(&mut self, item: &Item<'_>, entry: Entry) -> Result<(), FileError> {
        if let Some(there) = self.stage.lookup(&item.target)? {
            if there.is_dir() {
                return Err(FileError::DirectoryInTheWay {
                    path: item.target.display().to_string(),
                });
            }
            self.stage.remove(&item.target)?;
        }
        let attributes = self.attributes(&entry)?;
        if entry.kind == Kind::File {
            let id = self.source.inode(item.node.id())?;
            if let Some(&inode) = self.copied.get(&id) {
                return self.stage.link(inode, &item.target);
            }
            let contents = match entry.size {
                0 => Source::Nothing,
                _ => Source::View(self.source.clone(), item.node.clone()),
            };
            let inode = self.stage.create(&item.target, attributes, contents)?;
            self.copied.insert(id, inode);
            return Ok(());
        }
        self.stage
            .create(&item.target, attributes, Source::Nothing)
            .map(drop)
    }

    /// What is to become of an entry's attributes.
    fn attributes(&self, entry: &Entry) -> Result<Entry, FileError> {
        let mut attributes = entry.clone();
        if let Some(owner) = self.owner {
            (attributes.uid, attributes.gid) = (owner.uid, owner.gid);
        }
        if entry.kind != Kind::Symlink {
            if !self.action.mode_str.is_empty() {
                attributes.mode = mode::apply(&self.action.mode_str, entry.mode, entry.is_dir())?;
            } else if self.action.mode != -1 {
                attributes.mode = self.action.mode.cast_unsigned() & 0o7777;
            }
        }
        if let Some(time) = self.time {
            attributes.mtime = time;
        }
        Ok(attributes)
    }

    /// Makes the directories on the way that waited for something to be copied into them.
    fn make_waiting(&mut self) -> Result<(), FileError> {
        for at in 0..self.parents.len() {
            if self.parents[at].made {
                continue;
            }
            let (entry, target) = (self.parents[at].entry.clone(), self.parents[at].target.clone());
            if self.make_dir(&target, &entry, true)? {
                let attributes = self.attributes(&entry)?;
                self.stage.change_dir(&target, |there| *there = attributes)?;
            }
            self.parents[at].made = true;
        }
        Ok(())
    }

    /// Makes a directory if there is none; says whether it did.
    fn make_dir(&mut self, target: &RootPath, entry: &Entry, overwrite: bool) -> Result<bool, FileError> {
        match self.stage.lookup(target)? {
            None => {
                let mut made = Entry::dir(target.clone(), entry.mode);
                made.mtime = self.stage.now();
                self.stage.create_dir(target, made)?;
                Ok(true)
            }
            Some(there) if !there.is_dir() => Err(FileError::FileInTheWay {
                path: target.display().to_string(),
            }),
            Some(_) => {
                if overwrite {
                    self.stage.change_dir(target, |there| there.mode = entry.mode)?;
                }
                Ok(false)
            }
        }
    }
}
