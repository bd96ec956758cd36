//! Removes paths, with all beneath them.

use llb::op::RmAction;
use tree::RootPath;

use super::{FileError, Stage, wildcard};

/// Removes what the action names. Links on the way are followed inside the root, the last name is not.
///
/// # Errors
/// [`FileError::NotFound`] unless that is allowed; [`FileError::Root`] for the root itself.
pub fn remove(stage: &mut Stage, action: &RmAction) -> Result<(), FileError> {
    let (fixed, pattern) = wildcard::split(&action.path);
    if !action.allow_wildcard || pattern.is_empty() {
        return remove_one(stage, &RootPath::clean(&action.path)?, action.allow_not_found);
    }
    let top = stage.resolve_parent(&RootPath::clean(&fixed)?)?;
    if stage.lookup(&top)?.is_none() {
        return Err(FileError::NotFound {
            path: top.display().to_string(),
        });
    }
    let matches = wildcard::expand(&top, &pattern, &mut |path| stage.names(path))?;
    for path in matches {
        remove_one(stage, &path, action.allow_not_found)?;
    }
    Ok(())
}

fn remove_one(stage: &mut Stage, path: &RootPath, allow_not_found: bool) -> Result<(), FileError> {
    if path.is_root() {
        return Err(FileError::Root { action: "remove" });
    }
    let path = stage.resolve_parent(path)?;
    if !allow_not_found && stage.lookup(&path)?.is_none() {
        return Err(FileError::NotFound {
            path: path.display().to_string(),
        });
    }
    stage.remove(&path)
}
