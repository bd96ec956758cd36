//! Which files of a context a copy had, by the content digest of the copy.
//!
//! One line per file: 16 hex digits of its digest, a space, its path. A listing is written when a content
//! digest is first seen, so an unchanged context costs nothing.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use cache::view::View;
use oci::Digest;

/// How many listings are kept.
const MAX_LISTINGS: usize = 500;
/// Contexts of more files are not listed: the words for them would not be read.
const MAX_FILES: usize = 200_000;
/// How many files are named.
const MAX_NAMED: usize = 5;

/// Keeps the listing of the files behind a content digest; those of contexts read in place only.
pub(crate) fn keep(root: &Path, content: &Digest, view: &View) {
    let folder = root.join("explain/files");
    let path = folder.join(content.hex());
    if path.exists() {
        return;
    }
    if let Err(error) = write(&folder, &path, view) {
        tracing::debug!(%error, "files of a context not listed for explaining"); // it only costs words
    }
    thin_out(&folder, MAX_LISTINGS);
}

fn write(folder: &Path, path: &Path, view: &View) -> std::io::Result<()> {
    let [layer] = view.layers() else { return Ok(()) };
    if layer.tree.len() > MAX_FILES {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    let mut out = BufWriter::new(tempfile::NamedTempFile::new_in(folder)?);
    for entry in layer.tree.iter().filter(|entry| !entry.is_dir()) {
        // What has no digest was not part of what was copied.
        let Some(digest) = layer.tree.digest(entry.index()) else { continue };
        let digest = u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"));
        writeln!(out, "{digest:016x} {}", String::from_utf8_lossy(entry.path_bytes()).replace('\n', "?"))?;
    }
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Removes the oldest files of a folder beyond `keep`, now and then.
pub(super) fn thin_out(folder: &Path, keep: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut files: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    if files.len() <= keep {
        return;
    }
    files.sort();
    let excess = files.len() - keep;
    for (_, path) in files.into_iter().take(excess) {
        // Another process may have removed it already.
        drop(std::fs::remove_file(path));
    }
}

/// What changed between two content digests, in words; nothing if a listing is missing.
pub(super) fn changes(root: &Path, before: &Digest, after: &Digest) -> Vec<String> {
    let (Some(before), Some(after)) = (read(root, before), read(root, after)) else { return Vec::new() };
    let mut words = Vec::new();
    for (path, digest) in &after {
        match before.get(path) {
            None => words.push(format!("{path} is new")),
            Some(old) if old != digest => words.push(format!("{path} changed")),
            Some(_) => {}
        }
    }
    words.extend(before.keys().filter(|path| !after.contains_key(*path)).map(|path| format!("{path} is gone")));
    let count = words.len();
    words.truncate(MAX_NAMED);
    if count > MAX_NAMED {
        words.push(format!("and {} more", count - MAX_NAMED));
    }
    words
}

fn read(root: &Path, content: &Digest) -> Option<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(root.join("explain/files").join(content.hex())).ok()?;
    let pair = |line: &str| line.split_once(' ').map(|(digest, path)| (path.to_owned(), digest.to_owned()));
    Some(text.lines().filter_map(pair).collect())
}
