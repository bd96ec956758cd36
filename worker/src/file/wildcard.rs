//! Wildcards of a path, matched against what is there.
//!
//! ```text
//! "/a/b*/c?" ─▶ fixed "/a" (links followed) + "b*/c?" ─▶ everything beneath, sorted; what matched is not looked into
//! ```

use tree::{RootPath, go_match};

use super::FileError;

/// A path's components before the first with a wildcard, and those from it on (empty for none).
pub(super) fn split(path: &str) -> (String, String) {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    let at = parts
        .iter()
        .position(|part| has_wildcard(part))
        .unwrap_or(parts.len());
    (parts[..at].join("/"), parts[at..].join("/"))
}

fn has_wildcard(part: &str) -> bool {
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
    false
}

/// Every path beneath `top` whose rest matches `pattern`; `names` lists a directory (nothing for what is none).
pub(super) fn expand(
    top: &RootPath,
    pattern: &str,
    names: &mut dyn FnMut(&RootPath) -> Vec<Vec<u8>>,
) -> Result<Vec<RootPath>, FileError> {
    // Of all wildcards only a class can match a slash.
    let depth = match pattern.contains('[') {
        true => usize::MAX,
        false => pattern.split('/').count(),
    };
    let mut found = Vec::new();
    let mut stack = vec![(top.clone(), String::new(), 1)];
    while let Some((path, relative, level)) = stack.pop() {
        if !relative.is_empty() && go_match(pattern, &relative)? {
            found.push(path);
            continue;
        }
        if level > depth {
            continue;
        }
        for name in names(&path).into_iter().rev() {
            let text = String::from_utf8_lossy(&name);
            let below = if relative.is_empty() {
                text.into_owned()
            } else {
                format!("{relative}/{text}")
            };
            stack.push((path.child(&name)?, below, level + 1));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_part_ends_before_the_first_wildcard() {
        for (path, fixed, rest) in [
            ("/a/b*/c", "a", "b*/c"),
            ("/a/b/", "a/b", ""),
            ("*.go", "", "*.go"),
            ("/a/\\*b/x?", "a/\\*b", "x?"),
            ("/", "", ""),
        ] {
            assert_eq!(split(path), (fixed.to_owned(), rest.to_owned()), "{path}");
        }
    }
}
