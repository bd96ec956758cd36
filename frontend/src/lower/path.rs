//! Paths in an image, by text alone: as the instructions write them, joined and cleaned as BuildKit does.

/// Resolves `.`, `..` and doubled slashes; never empty.
pub(crate) fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if is_absolute => {}
            part => parts.push(part),
        }
    }
    match (is_absolute, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// `path` below `parent`, cleaned.
pub(crate) fn join(parent: &str, path: &str) -> String {
    match (parent.is_empty(), path.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean(path),
        (false, true) => clean(parent),
        (false, false) => clean(&format!("{parent}/{path}")),
    }
}

/// The path below the root, cleaned: nothing escapes.
pub(crate) fn rooted(path: &str) -> String {
    join("/", path)
}

/// An absolute path: `path` itself, not cleaned, when it is absolute; below `parent`, cleaned, when not.
pub(crate) fn normalize(parent: &str, path: &str, keep_slash: bool) -> String {
    let parent = match parent {
        "" => "/".to_owned(),
        parent if parent.starts_with('/') => parent.to_owned(),
        parent => rooted(parent),
    };
    let mut out = match path {
        "" => parent,
        path if path.starts_with('/') => path.to_owned(),
        path => join(&parent, path),
    };
    if keep_slash {
        keep_end(path, &mut out);
    }
    out
}

/// An absolute, cleaned path for a file action; a trailing `/` or `/.` of the original stays.
pub(crate) fn action(path: &str, keep_slash: bool) -> String {
    let cleaned = clean(path);
    let mut out = if cleaned.starts_with('/') {
        cleaned
    } else {
        rooted(&cleaned)
    };
    if keep_slash {
        keep_end(path, &mut out);
    }
    out
}

fn keep_end(original: &str, out: &mut String) {
    if original.ends_with('/') && !out.ends_with('/') {
        out.push('/');
    } else if original.ends_with("/.") {
        if out != "/" {
            out.push('/');
        }
        out.push('.');
    }
}

/// The last part of a path; `.` of an empty one, `/` of the root.
pub(crate) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

/// Whether a pattern has wildcards that are not escaped.
pub(crate) fn has_wildcards(path: &str) -> bool {
    let mut bytes = path.bytes();
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

#[cfg(test)]
mod tests {
    use super::{action, base, clean, join, normalize};

    #[test]
    fn paths_are_cleaned_as_in_go() {
        for (path, expected) in [
            ("", "."),
            ("a/../..", ".."),
            ("/..", "/"),
            ("a//b/./c/", "a/b/c"),
            ("../a", "../a"),
            ("/a/../b", "/b"),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
        assert_eq!(join("/w", "../../x"), "/x");
        assert_eq!((base("/a/b/"), base("/"), base("")), ("b", "/", "."));
    }

    #[test]
    fn slashes_at_the_end_are_kept_where_asked() {
        for (parent, path, expected) in [
            ("/w", "./", "/w/"),
            ("/w", "a/.", "/w/a/."),
            ("/", ".", "/"),
            ("/w", "/x/../y", "/x/../y"),
            ("rel", "a", "/rel/a"),
            ("/w", "", "/w"),
        ] {
            assert_eq!(normalize(parent, path, true), expected, "{path}");
        }
        assert_eq!(action("/x/../y/", true), "/y/");
        assert_eq!(action("/", true), "/");
    }
}
