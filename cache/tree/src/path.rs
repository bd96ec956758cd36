//! A path inside a root: cleaned once, never escaping, ordered as BuildKit orders.
//!
//! ```text
//! "/a//b/../c/" ─▶ clean ─▶ "a/c"        "../../x" ─▶ clean ─▶ "x" (clamped at the root)
//! ```
//!
//! Invariant: no empty component, no `.`, no `..`, no NUL, no `/` at either end; the root itself is the empty path.
//! Order: byte-wise by component, so that what lies in a directory follows the directory at once.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    ffi::OsStr,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The longest path accepted, in bytes (`PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;
/// The deepest path accepted, in components.
pub const MAX_PATH_DEPTH: usize = 1024;

/// Why bytes are no path inside a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It holds a NUL byte.
    #[error("path {0:?} contains a NUL byte")]
    Nul(String),
    /// It is longer than [`MAX_PATH_BYTES`].
    #[error("path of {0} bytes is longer than 4096 bytes")]
    TooLong(usize),
    /// It has more components than [`MAX_PATH_DEPTH`].
    #[error("path with {0} components is deeper than 1024")]
    TooDeep(usize),
    /// A single name holds a slash, is empty, or is `.` or `..`.
    #[error("{0:?} is not a file name")]
    NotAName(String),
}

/// A cleaned path inside a root; the empty path is the root itself.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RootPath(Vec<u8>);

impl RootPath {
    /// The root itself.
    #[must_use]
    pub fn root() -> Self {
        RootPath(Vec::new())
    }

    /// Cleans any spelling of a path; `..` is clamped at the root, as `/..` is in a shell.
    ///
    /// # Errors
    /// [`PathError`] for NUL bytes and for paths beyond the limits.
    pub fn clean(path: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let path = path.as_ref();
        if path.contains(&0) {
            return Err(PathError::Nul(String::from_utf8_lossy(path).into_owned()));
        }
        let mut cleaned: Vec<u8> = Vec::with_capacity(path.len());
        let mut depth = 0_usize;
        for part in path.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    let end = cleaned.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                    cleaned.truncate(end);
                    depth = depth.saturating_sub(1);
                }
                name => {
                    if !cleaned.is_empty() {
                        cleaned.push(b'/');
                    }
                    cleaned.extend_from_slice(name);
                    depth += 1;
                }
            }
        }
        if cleaned.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong(cleaned.len()));
        }
        if depth > MAX_PATH_DEPTH {
            return Err(PathError::TooDeep(depth));
        }
        Ok(RootPath(cleaned))
    }

    /// Takes bytes that are already clean, as a directory listing joined to a clean path gives them.
    #[must_use]
    pub fn from_clean(bytes: Vec<u8>) -> Self {
        debug_assert!(RootPath::clean(&bytes).is_ok_and(|path| path.0 == bytes));
        RootPath(bytes)
    }

    /// The bytes, without a leading slash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as a relative [`Path`]; the root is `.`.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        if self.0.is_empty() {
            Path::new(".")
        } else {
            Path::new(OsStr::from_bytes(&self.0))
        }
    }

    /// For people: with a leading slash.
    #[must_use]
    pub fn display(&self) -> Displayed<'_> {
        Displayed(self)
    }

    /// Whether this is the root itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends one name.
    ///
    /// # Errors
    /// [`PathError::NotAName`] if `name` is not one component; the limits of [`RootPath::clean`].
    pub fn child(&self, name: &[u8]) -> Result<Self, PathError> {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return Err(PathError::NotAName(String::from_utf8_lossy(name).into_owned()));
        }
        let joined = self.child_unchecked(name);
        if joined.0.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong(joined.0.len()));
        }
        Ok(joined)
    }

    /// Appends one name that the kernel gave, which is a component by nature.
    pub(crate) fn child_unchecked(&self, name: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        if !self.0.is_empty() {
            bytes.extend_from_slice(&self.0);
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        RootPath(bytes)
    }

    /// Appends any spelling of a path; `..` in it cannot leave the root (but can leave `self`).
    ///
    /// # Errors
    /// As [`RootPath::clean`].
    pub fn join(&self, path: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let path = path.as_ref();
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + path.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(path);
        RootPath::clean(&bytes)
    }

    /// Appends a cleaned path.
    ///
    /// # Errors
    /// The limits of [`RootPath::clean`].
    pub fn join_path(&self, path: &RootPath) -> Result<Self, PathError> {
        self.join(&path.0)
    }

    /// The directory it lies in; none for the root.
    #[must_use]
    pub fn parent(&self) -> Option<RootPath> {
        self.parent_bytes().map(|bytes| RootPath(bytes.to_vec()))
    }

    /// The bytes of the directory it lies in; none for the root.
    #[must_use]
    pub fn parent_bytes(&self) -> Option<&[u8]> {
        if self.0.is_empty() {
            return None;
        }
        Some(
            self.0
                .iter()
                .rposition(|&byte| byte == b'/')
                .map_or(&[][..], |slash| &self.0[..slash]),
        )
    }

    /// The last component; none for the root.
    #[must_use]
    pub fn file_name(&self) -> Option<&[u8]> {
        if self.0.is_empty() {
            return None;
        }
        Some(
            self.0
                .iter()
                .rposition(|&byte| byte == b'/')
                .map_or(&self.0[..], |slash| &self.0[slash + 1..]),
        )
    }

    /// Its components, from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|part| !part.is_empty())
    }

    /// Every proper ancestor from the root (exclusive) down: `a/b/c` gives `a`, `a/b`.
    pub fn ancestors(&self) -> impl Iterator<Item = RootPath> + '_ {
        self.0
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| RootPath(self.0[..at].to_vec()))
    }

    /// Whether it is `other` or lies beneath it.
    #[must_use]
    pub fn starts_with(&self, other: &RootPath) -> bool {
        self.strip_prefix(other).is_some()
    }

    /// The rest beneath `base`, empty if equal; none if it does not lie there.
    #[must_use]
    pub fn strip_prefix(&self, base: &RootPath) -> Option<RootPath> {
        if base.is_root() {
            return Some(self.clone());
        }
        let rest = self.0.strip_prefix(base.0.as_slice())?;
        match rest {
            [] => Some(RootPath::root()),
            [b'/', below @ ..] => Some(RootPath(below.to_vec())),
            _ => None,
        }
    }
}

/// Compares two clean paths in BuildKit's order: `/` sorts below every other byte.
#[must_use]
pub(crate) fn compare(left: &[u8], right: &[u8]) -> Ordering {
    let common = left.iter().zip(right).position(|(a, b)| a != b);
    match common {
        None => left.len().cmp(&right.len()),
        Some(at) => match (left[at], right[at]) {
            (b'/', _) => Ordering::Less,
            (_, b'/') => Ordering::Greater,
            (a, b) => a.cmp(&b),
        },
    }
}

impl RootPath {
    /// Compares the bytes of two clean paths in the order of [`RootPath`].
    #[must_use]
    pub fn compare_bytes(left: &[u8], right: &[u8]) -> Ordering {
        compare(left, right)
    }
}

impl Ord for RootPath {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.0, &other.0)
    }
}

impl PartialOrd for RootPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for RootPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// Prints a [`RootPath`] with a leading slash and with control characters escaped.
pub struct Displayed<'a>(&'a RootPath);

impl fmt::Display for Displayed<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("/")?;
        for character in String::from_utf8_lossy(&self.0.0).chars() {
            if character.is_control() {
                write!(out, "{}", character.escape_default())?;
            } else {
                write!(out, "{character}")?;
            }
        }
        Ok(())
    }
}

impl AsRef<[u8]> for RootPath {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<RootPath> for PathBuf {
    fn from(path: RootPath) -> Self {
        path.as_path().to_path_buf()
    }
}

impl TryFrom<&str> for RootPath {
    type Error = PathError;
    fn try_from(path: &str) -> Result<Self, PathError> {
        RootPath::clean(path)
    }
}

impl Borrow<[u8]> for RootPath {
    // Hash and Eq of the derived impls go through Vec<u8>, which agree with those of [u8].
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_spelling_becomes_one_clean_path() {
        for (spelled, cleaned) in [
            ("", ""),
            ("/", ""),
            (".", ""),
            ("./a/", "a"),
            ("/a//b/./c", "a/b/c"),
            ("a/../b", "b"),
            ("../../x", "x"),
            ("a/b/../../../c", "c"),
            ("..a/.b", "..a/.b"),
        ] {
            assert_eq!(
                RootPath::clean(spelled).expect("within limits").as_bytes(),
                cleaned.as_bytes(),
                "{spelled}"
            );
        }
    }

    #[test]
    fn hostile_paths_are_refused() {
        assert!(matches!(RootPath::clean("a\0b"), Err(PathError::Nul(_))));
        assert!(matches!(
            RootPath::clean("a".repeat(5000)),
            Err(PathError::TooLong(5000))
        ));
        assert!(matches!(
            RootPath::clean("a/".repeat(1100)),
            Err(PathError::TooDeep(1100))
        ));
        assert!(RootPath::root().child(b"..").is_err());
        assert!(RootPath::root().child(b"a/b").is_err());
    }

    #[test]
    fn children_follow_their_directory_at_once() {
        let mut paths: Vec<RootPath> = ["a.txt", "a/b", "a", "a-x", "b", "a/b/c", "a/B", ""]
            .iter()
            .map(|path| RootPath::clean(path).expect("clean"))
            .collect();
        paths.sort();
        let sorted: Vec<_> = paths
            .iter()
            .map(|path| String::from_utf8_lossy(path.as_bytes()).into_owned())
            .collect();
        assert_eq!(sorted, ["", "a", "a/B", "a/b", "a/b/c", "a-x", "a.txt", "b"]);
    }

    #[test]
    fn parts_of_a_path() {
        let path = RootPath::clean("usr/lib/x").expect("clean");
        assert_eq!(path.file_name(), Some(&b"x"[..]));
        assert_eq!(path.parent(), Some(RootPath::clean("usr/lib").expect("clean")));
        let ancestors: Vec<_> = path.ancestors().collect();
        assert_eq!(
            ancestors,
            [
                RootPath::clean("usr").expect("clean"),
                RootPath::clean("usr/lib").expect("clean")
            ]
        );
        assert!(path.starts_with(&RootPath::clean("usr").expect("clean")));
        assert!(!path.starts_with(&RootPath::clean("us").expect("clean")));
        assert_eq!(
            path.strip_prefix(&RootPath::clean("usr").expect("clean")),
            RootPath::clean("lib/x").ok()
        );
        assert_eq!(RootPath::root().parent(), None);
    }
}
