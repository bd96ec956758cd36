//! The digest of what wildcards and include/exclude patterns select: a list of paths, each with a digest.
//!
//! ```text
//! fixed prefix (links followed) ─▶ everything beneath, in order ─▶ matched? ─▶ parents' headers, then its own ─▶ SHA-256
//! ```
//!
//! A directory counts by its header alone, since what is in it is listed by itself. Parents are listed only when
//! something below them is. One match whose name is the pattern's own is its digest, unlisted. No match at all is the
//! digest of nothing.

use oci::Digest;
use sha2::{Digest as _, Sha256};
use tree::{Kind, MatchInfo, PatternSet, RootPath, go_match};

use super::{Selector, Sums, clean, text};
use crate::{
    layer::{LayerError, NodeKind},
    view::Node,
};

/// One path on the list, or a directory that may come to be on it.
struct Listed {
    /// As asked for: with the fixed prefix as it was written, whatever links it went through.
    path: String,
    node: Node,
    is_dir: bool,
    follow_links: bool,
    include: MatchInfo,
    exclude: MatchInfo,
    listed: bool,
}

struct Selection<'a, 'v> {
    sums: &'a Sums<'v>,
    selector: &'a Selector,
    /// The pattern, absolute and clean; empty for the root.
    pattern: String,
    include: Option<PatternSet>,
    exclude: Option<PatternSet>,
    /// Directories on the way to the current path, outermost first.
    parents: Vec<Listed>,
    last_matched: Option<String>,
    found: Vec<Listed>,
}

pub(super) fn filtered(sums: &Sums<'_>, selector: &Selector) -> Result<Digest, LayerError> {
    let cleaned = clean(&selector.path)?;
    let pattern = absolute(&cleaned);
    let patterns = |list: &[String]| -> Result<Option<PatternSet>, LayerError> {
        if list.is_empty() {
            return Ok(None);
        }
        PatternSet::new(list)
            .map(Some)
            .map_err(|error| LayerError::Pattern(error.to_string()))
    };
    let prefix = if selector.wildcard {
        fixed_prefix(&pattern)
    } else {
        pattern.clone()
    };
    let mut selection = Selection {
        sums,
        selector,
        include: patterns(&selector.include_patterns)?,
        exclude: patterns(&selector.exclude_patterns)?,
        parents: Vec::new(),
        last_matched: None,
        found: Vec::new(),
        pattern,
    };
    // A link that ends the fixed prefix is followed only if wildcards come after it.
    let follow = selector.wildcard && prefix != selection.pattern;
    if let Some(node) = sums.view.resolve(&clean(&prefix)?, follow)?.node {
        selection.take(&node, &prefix)?;
    }
    selection.check_required()?;
    selection.digest(&prefix)
}

/// `"/a/b"`, or `""` for the root.
fn absolute(path: &RootPath) -> String {
    if path.is_root() {
        String::new()
    } else {
        format!("/{}", String::from_utf8_lossy(path.as_bytes()))
    }
}

/// The directories of a pattern before the first component with a wildcard.
fn fixed_prefix(pattern: &str) -> String {
    let mut prefix = String::new();
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        if has_wildcard(part) {
            break;
        }
        prefix.push('/');
        prefix.push_str(part);
    }
    prefix
}

fn has_wildcard(part: &str) -> bool {
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    false
}

impl Selection<'_, '_> {
    /// Looks at `node`, called `path`, and at all beneath it.
    fn take(&mut self, node: &Node, path: &str) -> Result<(), LayerError> {
        let is_root_header = path.is_empty() && self.pattern.is_empty();
        let parent = self.parents.last();
        let follow_links = parent.is_none() && self.selector.follow_links;
        let mut candidate = Listed {
            path: path.to_owned(),
            node: node.clone(),
            is_dir: node.is_dir(),
            follow_links,
            include: MatchInfo::default(),
            exclude: MatchInfo::default(),
            listed: false,
        };
        let depth = self.parents.len();
        if let Some(relative) = self.relative(path)? {
            let include = self.is_included(&relative, &mut candidate);
            // Of the root asked for itself the header does not count.
            if !is_root_header && (include || candidate.is_dir) {
                if include {
                    self.list_parents();
                    candidate.listed = true;
                }
                self.keep(candidate);
            }
        }
        if node.is_dir() {
            for child in self.sums.view.children(node) {
                let name = String::from_utf8_lossy(self.sums.view.record(child.id()).name()).into_owned();
                self.take(&child, &format!("{path}/{name}"))?;
            }
        }
        self.parents.truncate(depth);
        Ok(())
    }

    fn keep(&mut self, candidate: Listed) {
        if candidate.is_dir {
            if candidate.listed {
                self.found.push(candidate.clone_for_list());
            }
            self.parents.push(candidate);
        } else {
            self.found.push(candidate);
        }
    }

    fn list_parents(&mut self) {
        for parent in &mut self.parents {
            if !parent.listed {
                parent.listed = true;
                self.found.push(parent.clone_for_list());
            }
        }
    }

    /// The path that patterns see: beneath what the wildcards matched; none if they do not match.
    fn relative(&mut self, path: &str) -> Result<Option<String>, LayerError> {
        let base = if self.selector.wildcard {
            let inside = self
                .last_matched
                .as_ref()
                .is_some_and(|dir| is_beneath(path, dir));
            if !inside {
                let matches =
                    go_match(&self.pattern, path).map_err(|error| LayerError::Pattern(error.to_string()))?;
                if !matches {
                    return Ok(None);
                }
                self.last_matched = Some(path.to_owned());
            }
            self.last_matched.clone().unwrap_or_default()
        } else {
            self.pattern.clone()
        };
        let rest = path.strip_prefix(base.as_str()).unwrap_or(path);
        Ok(Some(rest.strip_prefix('/').unwrap_or(rest).to_owned()))
    }

    fn is_included(&self, relative: &str, candidate: &mut Listed) -> bool {
        let parent = self.parents.last();
        let none = MatchInfo::default();
        if let Some(include) = &self.include {
            let above = parent.map_or(&none, |parent| &parent.include);
            let (matches, info) = include.matches_using_parent(relative, above);
            candidate.include = info;
            if !matches {
                return false;
            }
        }
        if let Some(exclude) = &self.exclude {
            let above = parent.map_or(&none, |parent| &parent.exclude);
            let (matches, info) = exclude.matches_using_parent(relative, above);
            candidate.exclude = info;
            return !matches;
        }
        true
    }

    fn check_required(&self) -> Result<(), LayerError> {
        for required in &self.selector.required_paths {
            if !self
                .found
                .iter()
                .any(|listed| listed.path.starts_with(required.as_str()))
            {
                return Err(LayerError::NotFound {
                    path: required.clone(),
                });
            }
        }
        Ok(())
    }

    fn digest(self, prefix: &str) -> Result<Digest, LayerError> {
        let unknown: Vec<Node> = {
            let mut seen = std::collections::HashSet::new();
            let mut files = Vec::new();
            for listed in &self.found {
                self.sums.note_missing(&listed.node, &mut seen, &mut files);
            }
            files
        };
        self.sums.hash_missing(&unknown)?;
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut hash = Sha256::new();
        for listed in &self.found {
            let digest = self.digest_of(listed)?;
            if self.found.len() == 1 && name(&self.pattern) == name(&listed.path) {
                return Ok(digest.into());
            }
            let key = listed
                .path
                .strip_prefix(prefix)
                .unwrap_or(&listed.path)
                .replace('/', "\0");
            hash.update(if key.is_empty() { "\0" } else { &key });
            hash.update(text(&digest));
        }
        let sum: [u8; 32] = hash.finalize().into();
        Ok(sum.into())
    }

    fn digest_of(&self, listed: &Listed) -> Result<[u8; 32], LayerError> {
        let kind = self.sums.view.record(listed.node.id()).kind();
        if listed.follow_links && kind == NodeKind::Entry(Kind::Symlink) {
            return Ok(*self.sums.path(&clean(&listed.path)?, true)?.as_bytes());
        }
        self.sums.header(&listed.node)
    }
}

impl Listed {
    fn clone_for_list(&self) -> Listed {
        Listed {
            path: self.path.clone(),
            node: self.node.clone(),
            is_dir: self.is_dir,
            follow_links: self.follow_links,
            include: MatchInfo::default(),
            exclude: MatchInfo::default(),
            listed: true,
        }
    }
}

fn is_beneath(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}
