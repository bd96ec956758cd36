//! The content digest of paths in a view, to the byte as BuildKit's, so that caches can be exchanged.
//!
//! ```text
//! selectors ─▶ follow links ─▶ files with unknown digest, hashed on all cores ─▶ directories summed up ─▶ one digest
//!                                        └────────▶ kept with the layer's index
//! ```
//!
//! What enters the digest of a file: mode, owner, size, type, link target, device numbers, extended attributes (none of
//! `security.*` and `system.*` but `security.capability`), contents. What does not: name, times, owner names, how many
//! names it has. Names enter the digest of the directory they are in. The root of a build context counts for nothing.

mod header;
mod select;

use std::collections::HashSet;

use oci::Digest;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use tree::{Kind, RootPath};

use crate::{
    layer::{HeaderDigest, LayerError, NodeKind},
    view::{Node, NodeId, View},
};

/// Paths whose content is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// The path, maybe with wildcards.
    pub path: String,
    /// Whether `path` has wildcards that are to be matched.
    pub wildcard: bool,
    /// Whether a link at the end of `path` is followed.
    pub follow_links: bool,
    /// Only what matches one of these counts; empty means everything.
    pub include_patterns: Vec<String>,
    /// What matches one of these does not count.
    pub exclude_patterns: Vec<String>,
    /// Paths that must be among what counts.
    pub required_paths: Vec<String>,
}

impl Selector {
    fn is_filtered(&self) -> bool {
        self.wildcard || !self.include_patterns.is_empty() || !self.exclude_patterns.is_empty()
    }
}

/// The content digest of what `selectors` (none: everything) select in `view`. Reads files; blocks. The digests of
/// files stay with the trees; keeping them beyond the process is the caller's ([`crate::stat_cache::save`]).
///
/// # Errors
/// [`LayerError::NotFound`] for a path without wildcards that is not there; [`LayerError::ChangedSince`] for a context that
/// changes meanwhile; those of reading.
pub fn checksum(view: &View, selectors: &[Selector]) -> Result<Digest, LayerError> {
    let everything = [Selector::default()];
    let selectors = if selectors.is_empty() {
        &everything[..]
    } else {
        selectors
    };
    let mut texts = Vec::with_capacity(selectors.len());
    for selector in selectors {
        texts.push(checksum_path(view, selector)?.to_string());
    }
    Ok(Digest::of(texts.join("\0").as_bytes()))
}

/// The digest of one selector, before it is joined with those of others.
///
/// # Errors
/// As [`checksum`].
pub fn checksum_path(view: &View, selector: &Selector) -> Result<Digest, LayerError> {
    let sums = Sums { view };
    if selector.is_filtered() {
        return select::filtered(&sums, selector);
    }
    let path = clean(&selector.path)?;
    sums.path(&path, selector.follow_links)
}

fn clean(path: &str) -> Result<RootPath, LayerError> {
    RootPath::clean(path).map_err(|cause| LayerError::Tree(cause.into()))
}

/// Digests of nodes of one view.
struct Sums<'a> {
    view: &'a View,
}

impl Sums<'_> {
    fn path(&self, path: &RootPath, follow_links: bool) -> Result<Digest, LayerError> {
        let not_found = || LayerError::NotFound {
            path: path.display().to_string(),
        };
        let Some(node) = self.view.resolve(path, follow_links)?.node else {
            if path.is_root() {
                return Ok(self.empty_root());
            }
            return Err(not_found());
        };
        self.hash_missing(&self.files_below(&node))?;
        self.recursive(&node)
    }

    /// A view of no layers still has a root directory.
    fn empty_root(&self) -> Digest {
        let header: HeaderDigest = header::attributes(&tree::Entry::dir(RootPath::root(), 0o755))
            .finalize()
            .into();
        let mut hash = Sha256::new();
        hash.update([0]);
        hash.update(text(&header));
        let sum: [u8; 32] = hash.finalize().into();
        sum.into()
    }

    /// The digest of a node with all beneath it. Digests of files beneath it must be known.
    fn recursive(&self, node: &Node) -> Result<Digest, LayerError> {
        if !node.is_dir() {
            return Ok(self.header(node)?.into());
        }
        let mut hash = Sha256::new();
        hash.update([0]);
        hash.update(text(&self.header(node)?));
        for child in self.view.children(node) {
            hash.update([0]);
            hash.update(self.view.record(child.id()).name());
            let sum: [u8; 32] = *self.recursive(&child)?.as_bytes();
            hash.update(text(&sum));
        }
        let sum: [u8; 32] = hash.finalize().into();
        Ok(sum.into())
    }

    /// The digest of a node's own header (and contents, for a file).
    fn header(&self, node: &Node) -> Result<HeaderDigest, LayerError> {
        let record = self.view.record(node.id());
        if record.is_context_root() {
            return Ok(Sha256::digest([]).into());
        }
        let inode = self.view.inode(node.id())?;
        let index = &self.view.layers()[inode.layer as usize].tree;
        if let Some(known) = index.digest(inode.index) {
            return Ok(known);
        }
        let entry = self.view.entry(node)?;
        if entry.kind == Kind::File && entry.size > 0 {
            let found = header::file(&entry, self.view.open(node)?)?;
            index.keep_digests([(inode.index, found)]);
            return Ok(found);
        }
        Ok(header::attributes(&entry).finalize().into())
    }

    /// Every file at or beneath `node` whose digest is not known.
    fn files_below(&self, node: &Node) -> Vec<Node> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut stack = vec![node.clone()];
        while let Some(node) = stack.pop() {
            if node.is_dir() {
                stack.extend(self.view.children(&node));
            } else {
                self.note_missing(&node, &mut seen, &mut found);
            }
        }
        found
    }

    fn note_missing(&self, node: &Node, seen: &mut HashSet<NodeId>, found: &mut Vec<Node>) {
        let record = self.view.record(node.id());
        let is_link = match record.kind() {
            NodeKind::Entry(Kind::File) if record.size() > 0 => false,
            NodeKind::Entry(Kind::HardLink) => true,
            _ => return,
        };
        // What is wrong with a hard link is said when its digest is asked for.
        let Ok(inode) = self.view.inode(node.id()) else {
            return;
        };
        let known = self.view.layers()[inode.layer as usize]
            .tree
            .digest(inode.index)
            .is_some();
        if !known && (!is_link || seen.insert(inode)) {
            found.push(node.clone());
        }
    }

    /// Hashes files on all cores and keeps their digests.
    fn hash_missing(&self, files: &[Node]) -> Result<(), LayerError> {
        if files.len() <= 1 {
            return Ok(()); // `header` does it
        }
        let hashed: Vec<(NodeId, HeaderDigest)> = files
            .par_iter()
            .map(|node| {
                let entry = self.view.entry(node)?;
                Ok((
                    self.view.inode(node.id())?,
                    header::file(&entry, self.view.open(node)?)?,
                ))
            })
            .collect::<Result<_, LayerError>>()?;
        for (position, layer) in self.view.layers().iter().enumerate() {
            let of_layer = hashed.iter().filter(|(id, _)| id.layer as usize == position);
            layer
                .tree
                .keep_digests(of_layer.map(|(id, digest)| (id.index, *digest)));
        }
        Ok(())
    }
}

/// A digest as it enters those above it.
fn text(digest: &[u8; 32]) -> String {
    Digest::from(*digest).to_string()
}

#[cfg(test)]
mod tests;
