//! Paths that are wanted, with the links along them, as patterns.
//!
//! ```text
//! "a/l/f" where a/l -> ../b   ─▶   "a/l", "b/f"
//! ```
//!
//! Wildcards may stand in any component; links among what they match are followed too. A path that leads to the root
//! means that everything is wanted.

use std::collections::BTreeSet;

use crate::{Kind, Root, RootPath, go_match};

/// How many links are followed in all; beyond, the rest is taken as it is (lookups will then say what is wrong).
const MAX_LINKS: usize = 10_000;

/// The patterns for `paths`, sorted, none beneath another; none at all (`None`) if everything is wanted.
pub(crate) fn follow(root: &Root, paths: &[String]) -> Option<Vec<String>> {
    let mut resolved = BTreeSet::new();
    let mut left: Vec<String> = paths.iter().rev().cloned().collect();
    let mut links = 0;
    while let Some(path) = left.pop() {
        follow_one(root, &path, &mut resolved, &mut left);
        links += 1;
        if links > MAX_LINKS {
            break;
        }
    }
    if resolved.contains("") {
        return None;
    }
    let mut kept: Vec<String> = Vec::new();
    for path in resolved {
        let inside = kept.last().is_some_and(|last: &String| {
            path.strip_prefix(last.as_str())
                .is_some_and(|rest| rest.starts_with('/'))
        });
        if !inside {
            kept.push(path);
        }
    }
    Some(kept)
}

fn follow_one(root: &Root, path: &str, resolved: &mut BTreeSet<String>, left: &mut Vec<String>) {
    let Ok(cleaned) = RootPath::clean(path) else {
        return;
    };
    let text = String::from_utf8_lossy(cleaned.as_bytes()).into_owned();
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        resolved.insert(String::new());
        return;
    }
    let mut current = String::new();
    for (at, part) in parts.iter().enumerate() {
        if !current.is_empty() {
            current.push('/');
        }
        current.push_str(part);
        let targets = targets(root, &current, part);
        let last = at + 1 == parts.len();
        if (last || !targets.is_empty()) && resolved.contains(&current) {
            return;
        }
        if !targets.is_empty() {
            resolved.insert(current);
            let rest = parts[at + 1..].join("/");
            left.extend(targets.into_iter().map(|target| format!("{target}/{rest}")));
            return;
        }
        if last {
            resolved.insert(current);
            return;
        }
    }
}

/// Where the links lead that `path`, whose last component is `name`, names.
fn targets(root: &Root, path: &str, name: &str) -> Vec<String> {
    let Ok(path) = RootPath::clean(path) else {
        return Vec::new();
    };
    let parent = path.parent().unwrap_or_default();
    if !name.contains(['*', '?', '[']) {
        return target(root, &path).into_iter().collect();
    }
    let Ok(items) = root.read_dir(&parent) else {
        return Vec::new();
    };
    items
        .iter()
        .filter(|item| item.kind.is_none_or(|kind| kind == Kind::Symlink))
        .filter(|item| go_match(name, &String::from_utf8_lossy(&item.name)).unwrap_or(false))
        .filter_map(|item| target(root, &parent.child(&item.name).ok()?))
        .collect()
}

fn target(root: &Root, path: &RootPath) -> Option<String> {
    if root.try_metadata(path).ok()??.kind() != Some(Kind::Symlink) {
        return None;
    }
    let link = root.read_link(path).ok()?;
    let base = if link.first() == Some(&b'/') {
        RootPath::root()
    } else {
        path.parent()?
    };
    Some(String::from_utf8_lossy(base.join(&link).ok()?.as_bytes()).into_owned())
}
