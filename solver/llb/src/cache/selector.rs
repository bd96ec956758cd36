//! Which paths of an input an op uses, and the digests made of them.

use oci::Digest;

/// Paths of an input whose content an op depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathSelector {
    /// The path, absolute, maybe with wildcards.
    pub path: String,
    /// Whether `path` has wildcards that are to be matched.
    pub wildcard: bool,
    /// Whether a link at the end of `path` is followed.
    pub follow_links: bool,
    /// Only what matches one of these counts; empty means everything.
    pub include_patterns: Vec<String>,
    /// What matches one of these does not count.
    pub exclude_patterns: Vec<String>,
    /// Paths that must be there.
    pub required_paths: Vec<String>,
}

impl PathSelector {
    pub(super) fn is_filtered(&self) -> bool {
        self.wildcard || !self.include_patterns.is_empty() || !self.exclude_patterns.is_empty()
    }
}

/// The content digest of several paths, from theirs, in the order of the selectors.
pub fn content_digest(paths: &[Digest]) -> Digest {
    joined(paths.iter().map(Digest::to_string).collect())
}

/// SHA-256 of the texts joined by NUL.
pub(super) fn joined(texts: Vec<String>) -> Digest {
    Digest::of(texts.join("\0").as_bytes())
}

/// Each path once, none that lies in another, ascending.
pub(super) fn dedupe(paths: Vec<String>) -> Vec<String> {
    if paths.len() <= 1 {
        return paths;
    }
    let mut paths = paths;
    paths.sort();
    paths.dedup();
    let inside = |path: &String| {
        paths.iter().any(|other| {
            other != path
                && path.starts_with(other.as_str())
                && (other.ends_with('/') || path[other.len()..].starts_with('/'))
        })
    };
    paths.iter().filter(|path| !inside(path)).cloned().collect()
}

/// Whether a path has unescaped wildcards.
pub(super) fn has_wildcards(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// The path as an absolute, cleaned one: `.` and `..` resolved by text, no trailing slash.
pub(super) fn absolute(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::{absolute, dedupe, has_wildcards};

    #[test]
    fn paths_inside_others_are_dropped() {
        let cases: &[(&[&str], &[&str])] = &[
            (&["/b", "/a", "/a"], &["/a", "/b"]),
            (&["/a", "/a/b", "/ab"], &["/a", "/ab"]),
            (&["/", "/a"], &["/"]),
            (&["/z"], &["/z"]),
        ];
        for (paths, expected) in cases {
            assert_eq!(dedupe(paths.iter().map(ToString::to_string).collect()), *expected);
        }
    }

    #[test]
    fn wildcards_and_absolute_paths() {
        for (path, expected) in [
            ("a*", true),
            (r"a\*", false),
            ("[x]", true),
            ("a?", true),
            ("abc", false),
        ] {
            assert_eq!(has_wildcards(path), expected, "{path}");
        }
        for (path, expected) in [("", "/"), ("a/../b/", "/b"), ("/../x//y/.", "/x/y")] {
            assert_eq!(absolute(path), expected);
        }
    }
}
