//! Makes a symbolic link.

use llb::op::SymlinkAction;
use tree::{Entry, Kind, RootPath};

use super::{
    FileError, Stage,
    make::{check_parent, timestamp},
    owner::Ids,
    stage::Source,
};

/// Makes a link where nothing is.
///
/// # Errors
/// [`FileError::Exists`]; [`FileError::NotFound`] without the directory to hold it.
pub fn symlink(stage: &mut Stage, action: &SymlinkAction, owner: Option<Ids>) -> Result<(), FileError> {
    let path = stage.resolve(&RootPath::clean(&action.newpath)?)?;
    check_parent(stage, "create link", &path)?;
    if stage.lookup(&path)?.is_some() {
        return Err(FileError::Exists {
            action: "create link",
            path: path.display().to_string(),
        });
    }
    let mut entry = Entry::new(path.clone(), Kind::Symlink, 0o777);
    if action.oldpath.is_empty() {
        return Err(FileError::NotFound { path: String::new() });
    }
    entry.link = Some(action.oldpath.clone().into_bytes());
    if let Some(owner) = owner {
        (entry.uid, entry.gid) = (owner.uid, owner.gid);
    }
    entry.mtime = timestamp(action.timestamp).unwrap_or(stage.now());
    stage.create(&path, entry, Source::Nothing).map(drop)
}
