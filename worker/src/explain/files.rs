//! Which files of a context a copy had, and which of them changed since the last build.
//!
//! ```text
//! content digest worked out ─▶ Notes (memory, per session): selectors and the context's tree
//! build succeeded, contents differ from last time ─▶ one listing: 16 hex digits of a digest, a space, a path
//! ```
//!
//! An unchanged context costs nothing; a changed one is listed once, however many steps copy from it.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use cache::checksum::Selector;
use cache::layer::TreeIndex;
use cache::view::View;
use oci::Digest;
use parking_lot::Mutex;
use tree::go_match;

/// Contexts of more files are not listed: the words for them would not be read.
const MAX_FILES: usize = 200_000;
/// How many files are named.
const MAX_NAMED: usize = 5;

/// What a build's copies took from contexts.
#[derive(Default)]
pub struct Notes {
    by_content: Mutex<HashMap<Digest, Note>>,
}

struct Note {
    selectors: Vec<Selector>,
    tree: Arc<TreeIndex>,
}

impl Notes {
    /// Notes what stands behind a content digest; of contexts read in place only.
    pub(crate) fn keep(&self, content: Digest, selectors: Vec<Selector>, view: &View) {
        if let [layer] = view.layers() {
            self.by_content.lock().insert(
                content,
                Note {
                    selectors,
                    tree: layer.tree.clone(),
                },
            );
        }
    }

    fn trees(notes: &HashMap<Digest, Note>) -> Vec<Arc<TreeIndex>> {
        let mut trees: Vec<&Arc<TreeIndex>> = notes.values().map(|note| &note.tree).collect();
        trees.sort_by_key(|tree| Arc::as_ptr(tree));
        trees.dedup_by_key(|tree| Arc::as_ptr(tree));
        trees.into_iter().cloned().collect()
    }

    /// Lists all files that were copied from, once each.
    pub(super) fn list(&self, path: &Path) -> std::io::Result<()> {
        let trees = Self::trees(&self.by_content.lock());
        let trees = trees.iter().filter(|tree| tree.len() <= MAX_FILES);
        let files: BTreeMap<String, String> = trees.flat_map(|tree| files(tree)).collect();
        let folder = path.parent().expect("a listing lies in a folder");
        std::fs::create_dir_all(folder)?;
        let mut out = BufWriter::new(tempfile::NamedTempFile::new_in(folder)?);
        for (path, digest) in files {
            writeln!(out, "{digest} {path}")?;
        }
        out.into_inner()
            .map_err(std::io::IntoInnerError::into_error)?
            .persist(path)
            .map_err(|error| error.error)?;
        Ok(())
    }

    /// What changed in the files behind a content digest since they were listed, in words.
    pub(super) fn changes(&self, listing: &Path, content: &Digest) -> Vec<String> {
        let notes = self.by_content.lock();
        let (Some(note), Ok(text)) = (notes.get(content), std::fs::read_to_string(listing)) else {
            return Vec::new();
        };
        let pair = |line: &str| {
            line.split_once(' ')
                .map(|(digest, path)| (path.to_owned(), digest.to_owned()))
        };
        let is_copied = |path: &str| note.selectors.iter().any(|selector| takes(selector, path));
        let before: BTreeMap<_, _> = text
            .lines()
            .filter_map(pair)
            .filter(|(path, _)| is_copied(path))
            .collect();
        let after: BTreeMap<_, _> = files(&note.tree).filter(|(path, _)| is_copied(path)).collect();
        words(&before, &after)
    }
}

impl Drop for Notes {
    /// Keeps the digests of the contexts' files for the next build: once, when all of them are known.
    fn drop(&mut self) {
        for tree in Self::trees(self.by_content.get_mut()) {
            if tree.has_new_digests()
                && let Err(error) = cache::stat_cache::save(&tree)
            {
                tracing::warn!(%error, "the digests of a context's files are not kept"); // it only saves time
            }
        }
    }
}

/// The files of a context whose digests are known: those that were copied from.
fn files(tree: &TreeIndex) -> impl Iterator<Item = (String, String)> + '_ {
    tree.iter().filter(|entry| !entry.is_dir()).filter_map(|entry| {
        let digest = tree.digest(entry.index())?;
        let digest = u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"));
        Some((
            String::from_utf8_lossy(entry.path_bytes()).replace('\n', "?"),
            format!("{digest:016x}"),
        ))
    })
}

/// Whether a selector takes a file: it is the file, a folder above it, or a pattern for either.
fn takes(selector: &Selector, path: &str) -> bool {
    let wanted = selector.path.trim_matches('/');
    if wanted.is_empty() {
        return true;
    }
    if !selector.wildcard {
        return path
            .strip_prefix(wanted)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    }
    let depth = wanted.split('/').count();
    let above: Vec<_> = path.split('/').take(depth).collect();
    go_match(wanted, &above.join("/")).unwrap_or(false)
}

fn words(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let mut words = Vec::new();
    for (path, digest) in after {
        match before.get(path) {
            None => words.push(format!("{path} is new")),
            Some(old) if old != digest => words.push(format!("{path} changed")),
            Some(_) => {}
        }
    }
    words.extend(
        before
            .keys()
            .filter(|path| !after.contains_key(*path))
            .map(|path| format!("{path} is gone")),
    );
    let count = words.len();
    words.truncate(MAX_NAMED);
    if count > MAX_NAMED {
        words.push(format!("and {} more", count - MAX_NAMED));
    }
    words
}

/// Removes the oldest files of a folder beyond `keep`.
pub(super) fn thin_out(folder: &Path, keep: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    let paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    if paths.len() <= keep {
        return;
    }
    let age = |path: &std::path::PathBuf| path.metadata().and_then(|found| found.modified()).ok();
    let mut files: Vec<_> = paths.into_iter().map(|path| (age(&path), path)).collect();
    files.sort();
    let excess = files.len() - keep;
    for (_, path) in files.into_iter().take(excess) {
        // Another process may have removed it already.
        drop(std::fs::remove_file(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_take_files_folders_and_patterns() {
        for (selector, wildcard, path, expected) in [
            ("/a", false, "a", true),
            ("/a", false, "a/b/c", true),
            ("/a", false, "ab", false),
            ("/", false, "x", true),
            ("/*.txt", true, "a.txt", true),
            ("/*.txt", true, "d/a.txt", false),
            ("/src/*", true, "src/x/y.rs", true),
        ] {
            let selector = Selector {
                path: selector.to_owned(),
                wildcard,
                ..Selector::default()
            };
            assert_eq!(takes(&selector, path), expected, "{selector:?} {path}");
        }
    }

    #[test]
    fn only_so_many_changes_are_named() {
        let of = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        let (before, after) = (of(&[("a", "1"), ("b", "2")]), of(&[("a", "3"), ("c", "4")]));
        assert_eq!(words(&before, &after), ["a changed", "c is new", "b is gone"]);
        let many: BTreeMap<_, _> = (0..9).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(
            words(&BTreeMap::new(), &many).last().map(String::as_str),
            Some("and 4 more")
        );
    }
}
