//! The index of an overlay's upper directory, as a step left it.
//!
//! ```text
//! walk ─▶ character device 0:0 is a whiteout ─▶ overlay.opaque is an opaque directory ─▶ TreeIndex (contents in the directory)
//! ```

use tree::{Everything, Kind, Root, RootPath, WalkOptions, walk};

use super::{
    DirOptions, LayerError, TreeIndex,
    builder::Assembly,
    index::{FLAG_OPAQUE, Place},
};

/// Reads the upper directory `root`, on all cores.
///
/// # Errors
/// Those of listing and looking.
pub fn scan_upper(root: &Root, options: DirOptions) -> Result<TreeIndex, LayerError> {
    let found = walk(root, &Everything, WalkOptions { xattrs: true })?;
    let mut tree = Assembly::with_capacity(found.len() + 1);
    let top = RootPath::root();
    let mut entry = root.entry(&top)?.expect("a root is a directory");
    let is_opaque = take_overlay_xattrs(&mut entry, options);
    tree.push(
        &top,
        Some(&entry),
        Place::None,
        if is_opaque { FLAG_OPAQUE } else { 0 },
        None,
    );
    for item in found {
        let mut entry = item.entry;
        if entry.kind == Kind::Char && entry.rdev == (0, 0) {
            tree.push(&entry.path, None, Place::None, 0, None);
            continue;
        }
        let is_opaque = take_overlay_xattrs(&mut entry, options);
        let place = if entry.kind == Kind::File {
            Place::Dir
        } else {
            Place::None
        };
        let flags = if is_opaque && entry.is_dir() {
            FLAG_OPAQUE
        } else {
            0
        };
        tree.push(&entry.path, Some(&entry), place, flags, None);
    }
    Ok(tree.finish())
}

/// Removes what overlayfs keeps for itself; says whether the directory is opaque.
fn take_overlay_xattrs(entry: &mut tree::Entry, options: DirOptions) -> bool {
    let is_opaque = entry
        .xattrs
        .get(options.xattrs.opaque())
        .is_some_and(|value| value == b"y");
    entry
        .xattrs
        .retain(|name, _| !name.starts_with(options.xattrs.prefix()));
    is_opaque
}
