//! ADD of a local archive: what is in it, instead of it.
//!
//! ```text
//! regular file ─▶ unpacks (gzip, zstd, bzip2, xz, plain) to a tar? ─▶ plain tar in a spool file ─▶ its entries onto the stage
//!                                                    └ no ─▶ an ordinary copy
//! ```
//!
//! Owners become those of `--chown` where it is given; modes and times are the archive's. A directory over a directory
//! changes its attributes; everything else replaces. Links on the way are followed inside the destination.

use std::{collections::HashMap, fs::File, sync::Arc};

use cache::{
    layer::{EntryRef, LayerError, Limits, NodeKind, decompress, index_archive, is_tar},
    view::{Contents, View},
};
use llb::op::CopyAction;
use tree::{Entry, Kind, RootPath, Timestamp};

use super::{FileError, Stage, make::make_all, owner::Ids, stage::Source};

/// Unpacks `from` of `source` if it is an archive; says whether it is.
pub(super) fn unpack(
    stage: &mut Stage,
    source: &View,
    from: &RootPath,
    action: &CopyAction,
    owner: Option<Ids>,
    time: Option<Timestamp>,
    spool: &dyn Fn() -> std::io::Result<File>,
) -> Result<bool, FileError> {
    let Some(node) = source.find(from)? else {
        return Ok(false);
    };
    if source.entry(&node)?.kind != Kind::File {
        return Ok(false);
    }
    if !decompress(source.open(&node)?).is_ok_and(is_tar) {
        return Ok(false);
    }
    let io = |cause| LayerError::Io {
        action: "unpack archive",
        cause,
    };
    let file = spool().map_err(io)?;
    let applied = index_archive(decompress(source.open(&node)?)?, &file, Limits::default())?;
    let tree = Arc::new(applied.tree);
    let contents = Arc::new(Contents::Tar(file));
    let dest = stage.resolve(&RootPath::clean(&action.dest)?)?;
    make_all(stage, &dest, 0o755, owner, time)?;
    let mut inodes = HashMap::new();
    let mut dirs = Vec::new();
    let is_link = |record: &EntryRef<'_>| record.kind() == NodeKind::Entry(Kind::HardLink);
    // Names after files: a further name may sort before the file it names.
    let (links, others): (Vec<_>, Vec<_>) = tree.iter().skip(1).partition(is_link);
    for record in others.into_iter().chain(links) {
        let Some(mut entry) = record.entry() else { continue };
        if let Some(owner) = owner {
            (entry.uid, entry.gid) = (owner.uid, owner.gid);
        }
        if record.is_implied() {
            continue; // made when something comes into it, where the stage may have a link
        }
        let target = target_of(stage, &dest, &record.path())?;
        let parent = target.parent().unwrap_or_default();
        make_all(stage, &parent, 0o755, owner, None)?;
        if entry.is_dir() {
            put_dir(stage, &target, &entry)?;
            dirs.push((target, entry.mtime));
            continue;
        }
        stage.remove(&target)?;
        if is_link(&record) {
            let first = RootPath::clean(record.link())?;
            link(stage, &dest, &first, &target, entry, &inodes)?;
            continue;
        }
        let contents = match (entry.kind, entry.size) {
            (Kind::File, 1..) => Source::Tar(Arc::clone(&contents), Arc::clone(&tree), record.index()),
            _ => Source::Nothing,
        };
        let inode = stage.create(&target, entry, contents)?;
        inodes.insert(record.path(), inode);
    }
    // What came into a directory changed its time: set again when all is there.
    for (dir, time) in dirs {
        if stage.lookup(&dir)?.is_some_and(|there| there.is_dir()) {
            stage.change_dir(&dir, |there| there.mtime = time)?;
        }
    }
    Ok(true)
}

/// Where an archive's path lies on the stage: links on the way followed, none out of `dest`.
fn target_of(stage: &Stage, dest: &RootPath, path: &RootPath) -> Result<RootPath, FileError> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(stage.resolve_beneath(dest, &parent)?.child(name)?),
        _ => Ok(dest.clone()),
    }
}

fn put_dir(stage: &mut Stage, target: &RootPath, entry: &Entry) -> Result<(), FileError> {
    match stage.lookup(target)? {
        Some(there) if there.is_dir() => stage.change_dir(target, |there| {
            let entry = entry.clone();
            (there.mode, there.uid, there.gid) = (entry.mode, entry.uid, entry.gid);
            there.xattrs.extend(entry.xattrs);
        }),
        there => {
            if there.is_some() {
                stage.remove(target)?;
            }
            stage.create_dir(target, entry.clone())
        }
    }
}

/// A hard link to what the archive brought, or to what was there before it.
fn link(
    stage: &mut Stage,
    dest: &RootPath,
    first: &RootPath,
    target: &RootPath,
    entry: Entry,
    inodes: &HashMap<RootPath, usize>,
) -> Result<(), FileError> {
    if let Some(&inode) = inodes.get(first) {
        return stage.link(inode, target);
    }
    let existing = target_of(stage, dest, first)?;
    let not_found = || FileError::NotFound {
        path: existing.display().to_string(),
    };
    if let Some(inode) = stage.inode_at(&existing) {
        stage.change_inode(inode, |there| {
            (there.mode, there.uid, there.gid, there.mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        });
        return stage.link(inode, target);
    }
    let there = stage
        .lookup(&existing)?
        .filter(|there| !there.is_dir())
        .ok_or_else(not_found)?;
    let contents = stage.base_source(&existing).ok_or_else(not_found)?;
    let kept = Entry {
        kind: there.kind,
        size: there.size,
        link: there.link,
        rdev: there.rdev,
        ..entry
    };
    // Both names come into the layer, as after a copy-up.
    stage.remove(&existing)?;
    let inode = stage.create(&existing, kept, contents)?;
    stage.link(inode, target)
}
