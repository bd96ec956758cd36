//! Makes directories and files.

use std::sync::Arc;

use llb::op::{MkdirAction, MkfileAction};
use tree::{Entry, Kind, RootPath, Timestamp};

use super::{FileError, Stage, owner::Ids, stage::Source};

/// The time an action asks for: none for -1.
pub(super) fn timestamp(nanos: i64) -> Option<Timestamp> {
    (nanos != -1).then(|| Timestamp::from_nanos(nanos))
}

/// Makes a directory; one that is there stays as it is.
///
/// # Errors
/// [`FileError::NotFound`] without its parent (unless parents are made), [`FileError::NotADirectory`].
pub fn mkdir(stage: &mut Stage, action: &MkdirAction, owner: Option<Ids>) -> Result<(), FileError> {
    let path = stage.resolve(&RootPath::clean(&action.path)?)?;
    let mode = action.mode.cast_unsigned() & 0o777;
    if action.make_parents {
        return make_all(stage, &path, mode, owner, timestamp(action.timestamp)).map(drop);
    }
    if stage.lookup(&path)?.is_some() {
        return Ok(());
    }
    check_parent(stage, "create directory", &path)?;
    make_one(stage, &path, mode, owner, timestamp(action.timestamp))
}

/// Makes a file, or writes over the contents of one that is there.
///
/// # Errors
/// [`FileError::NotFound`] without its parent; [`FileError::DirectoryInTheWay`].
pub fn mkfile(stage: &mut Stage, action: &MkfileAction, owner: Option<Ids>) -> Result<(), FileError> {
    let path = stage.resolve(&RootPath::clean(&action.path)?)?;
    check_parent(stage, "create", &path)?;
    let mut entry = Entry::new(path.clone(), Kind::File, action.mode.cast_unsigned() & 0o777);
    if let Some(old) = stage.lookup(&path)? {
        match old.kind {
            Kind::Dir => {
                return Err(FileError::DirectoryInTheWay {
                    path: path.display().to_string(),
                });
            }
            Kind::File | Kind::HardLink => {
                (entry.mode, entry.uid, entry.gid) = (old.mode & 0o777, old.uid, old.gid);
            }
            Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo => {
                return Err(FileError::Exists {
                    action: "write",
                    path: path.display().to_string(),
                });
            }
        }
        stage.remove(&path)?;
    }
    if let Some(owner) = owner {
        (entry.uid, entry.gid) = (owner.uid, owner.gid);
    }
    entry.size = action.data.len() as u64;
    entry.mtime = timestamp(action.timestamp).unwrap_or(stage.now());
    let contents = if action.data.is_empty() {
        Source::Nothing
    } else {
        Source::Bytes(Arc::from(action.data.as_slice()))
    };
    stage.create(&path, entry, contents).map(drop)
}

/// Whether the directory that is to hold `path` is there.
pub(super) fn check_parent(stage: &Stage, action: &'static str, path: &RootPath) -> Result<(), FileError> {
    let Some(parent) = path.parent() else {
        return Err(FileError::Root { action });
    };
    match stage.lookup(&parent)? {
        Some(entry) if entry.is_dir() => Ok(()),
        Some(_) => Err(FileError::NotADirectory {
            action,
            path: parent.display().to_string(),
        }),
        None => Err(FileError::NotFound {
            path: parent.display().to_string(),
        }),
    }
}

/// Makes `path` and all that lead to it, and gives those that were made, outermost first. `path` has no links.
pub(super) fn make_all(
    stage: &mut Stage,
    path: &RootPath,
    mode: u32,
    owner: Option<Ids>,
    time: Option<Timestamp>,
) -> Result<Vec<RootPath>, FileError> {
    let mut made = Vec::new();
    for dir in path
        .ancestors()
        .chain([path.clone()])
        .filter(|dir| !dir.is_root())
    {
        match stage.lookup(&dir)? {
            Some(entry) if entry.is_dir() => {}
            Some(_) => {
                return Err(FileError::NotADirectory {
                    action: "create directory",
                    path: dir.display().to_string(),
                });
            }
            None => {
                make_one(stage, &dir, mode, owner, time)?;
                made.push(dir);
            }
        }
    }
    Ok(made)
}

fn make_one(
    stage: &mut Stage,
    path: &RootPath,
    mode: u32,
    owner: Option<Ids>,
    time: Option<Timestamp>,
) -> Result<(), FileError> {
    let mut entry = Entry::dir(path.clone(), mode & 0o777);
    if let Some(owner) = owner {
        (entry.uid, entry.gid) = (owner.uid, owner.gid);
    }
    entry.mtime = time.unwrap_or(stage.now());
    stage.create_dir(path, entry)
}
