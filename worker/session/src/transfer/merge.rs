//! Moves a received directory into one that has files already.
//!
//! ```text
//! <target>/.builder-…/  ─▶ entry by entry, in order ─▶ <target>/
//! ```
//!
//! Both lie in one file system, so nothing is copied: what the target lacks is renamed as it is, directories that both
//! have are merged, everything else is replaced. No link of the target is followed.
use tree::{Everything, Kind, Root, RootPath, WalkOptions, walk};

/// Why a directory could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// An entry cannot be moved.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// A path grew too long.
    #[error(transparent)]
    Path(#[from] tree::PathError),
}

/// Moves all that is in `from`, a directory inside `root`, up to the root itself.
///
/// # Errors
/// [`MergeError`]; what was moved stays moved.
pub fn merge(root: &Root, from: &RootPath) -> Result<(), MergeError> {
    let received = root.sub_root(from)?;
    let found = walk(&received, &Everything, WalkOptions { xattrs: false })?;
    drop(received);
    let mut moved: Option<RootPath> = None;
    let mut merged = Vec::new();
    for entry in found.into_iter().map(|found| found.entry) {
        if moved.as_ref().is_some_and(|moved| entry.path.starts_with(moved)) {
            continue;
        }
        let there = root.try_metadata(&entry.path)?;
        if let Some(there) = there {
            if there.is_dir() && entry.kind == Kind::Dir {
                merged.push(entry);
                continue;
            }
            // A file is replaced by the rename itself: there is never a moment without one.
            if there.is_dir() || entry.kind == Kind::Dir {
                root.remove_all(&entry.path)?;
            }
        }
        root.rename(&from.join_path(&entry.path)?, &entry.path)?;
        moved = (entry.kind == Kind::Dir).then_some(entry.path);
    }
    for entry in merged.iter().rev() {
        root.set_mode(&entry.path, entry.mode)?;
        root.set_mtime(&entry.path, entry.mtime)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_is_there_stays_unless_it_is_replaced() {
        let target = tempfile::tempdir().expect("a folder");
        let outside = tempfile::tempdir().expect("a folder");
        let at = |path: &str| target.path().join(path);
        fs::create_dir_all(at("both/kept")).expect("made");
        fs::write(at("both/file"), "old").expect("written");
        fs::create_dir_all(at("becomes-file/x")).expect("made");
        fs::write(at("becomes-dir"), "old").expect("written");
        symlink(outside.path(), at("link")).expect("linked");
        for dir in ["in/both", "in/becomes-dir", "in/link", "in/new/deep"] {
            fs::create_dir_all(at(dir)).expect("made");
        }
        for file in [
            "in/both/file",
            "in/becomes-dir/f",
            "in/becomes-file",
            "in/link/f",
            "in/new/deep/f",
        ] {
            fs::write(at(file), "new").expect("written");
        }
        fs::set_permissions(at("in/both"), fs::Permissions::from_mode(0o750)).expect("set");
        let root = Root::open(target.path()).expect("opened");
        merge(&root, &RootPath::clean("in").expect("a path")).expect("merged");
        for file in [
            "both/file",
            "becomes-dir/f",
            "becomes-file",
            "link/f",
            "new/deep/f",
        ] {
            assert_eq!(fs::read(at(file)).expect(file), b"new", "{file}");
        }
        assert!(at("both/kept").is_dir());
        assert_eq!(
            fs::metadata(at("both")).expect("there").permissions().mode() & 0o777,
            0o750
        );
        assert_eq!(
            fs::read_dir(outside.path()).expect("there").count(),
            0,
            "no link is followed"
        );
    }
}
