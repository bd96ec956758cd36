//! `.dockerignore` and include/exclude patterns, as Docker's own matcher reads them, and Go's `path.Match`.
//!
//! ```text
//! ignore file ─▶ read_ignore_file ─▶ patterns ─▶ PatternSet ─▶ matches (with or without what the parent matched)
//! ```
//!
//! Patterns are tried in order and the last that applies decides; `!` turns a match off again. `*` and `?` stop at `/`,
//! `**` does not. A pattern that matches a directory matches all beneath it.

mod go_regex;

use regex::bytes::Regex;

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A lone `!`.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneExclusion,
    /// Brackets or escapes that do not end.
    #[error("syntax error in pattern {0:?}")]
    Syntax(String),
}

/// Patterns in order, ready to be matched.
#[derive(Debug, Clone, Default)]
pub struct PatternSet {
    patterns: Vec<Pattern>,
    has_exclusions: bool,
    matches_all: bool,
}

/// Which patterns a directory (or one above it) matched, for the matching of what lies in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MatchInfo {
    matched: Vec<bool>,
}

#[derive(Debug, Clone)]
struct Pattern {
    exclusion: bool,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Regex(Regex),
}

impl PatternSet {
    /// Reads patterns; empty ones count for nothing.
    ///
    /// # Errors
    /// The first pattern that cannot be used.
    ///
    /// Differs: Docker's matcher finds out about some of them only when a path is tried against them.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<PatternSet, PatternError> {
        let mut set = PatternSet::default();
        for text in patterns {
            let text = text.as_ref().trim();
            if text.is_empty() {
                continue;
            }
            let cleaned = clean(text);
            let (exclusion, pattern) = match cleaned.strip_prefix('!') {
                Some("") => return Err(PatternError::LoneExclusion),
                Some(rest) => (true, rest.to_owned()),
                None => (false, cleaned),
            };
            // As Docker's matcher does; it finds fewer mistakes than one would think.
            go_match(&pattern, ".")?;
            set.has_exclusions |= exclusion;
            set.matches_all |= !exclusion && matches!(pattern.as_str(), "*" | "**" | "**/*");
            set.patterns.push(Pattern {
                exclusion,
                how: compile(&pattern)?,
            });
        }
        Ok(set)
    }

    /// Whether any pattern begins with `!`.
    #[must_use]
    pub fn has_exclusions(&self) -> bool {
        self.has_exclusions
    }

    /// Whether a pattern stands for every path there is: `*`, `**` or `**/*`.
    #[must_use]
    pub fn matches_all(&self) -> bool {
        self.matches_all
    }

    /// Whether there is no pattern.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether `path` (clean, without leading `/`), or a directory above it, matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        self.matches_using_parent(path, &MatchInfo::default()).0
    }

    /// Whether `path` matches, given what the directory it lies in matched, and what to hand to what lies in `path`.
    /// Without knowledge of the directory (the default) those above `path` are tried too.
    #[must_use]
    pub fn matches_using_parent(&self, path: &str, parent: &MatchInfo) -> (bool, MatchInfo) {
        let known = parent.matched.len() == self.patterns.len() && !parent.matched.is_empty();
        let mut info = MatchInfo {
            matched: vec![false; self.patterns.len()],
        };
        let mut matched = false;
        for (at, pattern) in self.patterns.iter().enumerate() {
            let mut matches = known && parent.matched[at];
            if !matches {
                if pattern.exclusion != matched {
                    continue;
                }
                matches = pattern.matches(path) || (!known && parents(path).any(|dir| pattern.matches(dir)));
            }
            info.matched[at] = matches;
            if matches {
                matched = !pattern.exclusion;
            }
        }
        (matched, info)
    }
}

/// Every directory above `path`: `a/b/c` gives `a`, `a/b`.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/')
        .map(|(at, _)| &path[..at])
        .filter(|dir| !dir.is_empty())
}

impl Pattern {
    fn matches(&self, path: &str) -> bool {
        match &self.how {
            How::Exact(text) => path == text,
            How::Prefix(prefix) => path.starts_with(prefix.as_str()),
            How::Suffix(suffix) => {
                path.ends_with(suffix.as_str()) || suffix.strip_prefix('/').is_some_and(|rest| path == rest)
            }
            How::Regex(regex) => regex.is_match(path.as_bytes()),
        }
    }
}

/// `filepath.Clean` of Go: `.`, `..` and doubled slashes worked out as text.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => drop(parts.pop()),
                _ if rooted => {}
                _ => parts.push(".."),
            },
            name => parts.push(name),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

fn compile(pattern: &str) -> Result<How, PatternError> {
    let characters: Vec<char> = pattern.chars().collect();
    let mut regex = String::from("^");
    let mut kind = Shape::Exact;
    let mut at = 0;
    // Docker's matcher knows nothing of classes: what stands in brackets is translated as if it stood outside.
    while let Some(&character) = characters.get(at) {
        at += 1;
        match character {
            '*' if characters.get(at) == Some(&'*') => {
                let first = at == 1;
                at += 1;
                if characters.get(at) == Some(&'/') {
                    at += 1;
                }
                if at >= characters.len() {
                    kind = if kind == Shape::Exact {
                        Shape::Prefix
                    } else {
                        Shape::Regex
                    };
                    regex.push_str(".*");
                } else {
                    regex.push_str("(.*/)?");
                    kind = Shape::Regex;
                }
                if first {
                    kind = Shape::Suffix;
                }
            }
            '*' => {
                regex.push_str("[^/]*");
                kind = Shape::Regex;
            }
            '?' => {
                regex.push_str("[^/]");
                kind = Shape::Regex;
            }
            // It means to escape `{`, `|` and `}` too, but does not: its set of such characters ends at 63.
            '.' | '+' | '(' | ')' | '$' => regex.extend(['\\', character]),
            '\\' => {
                regex.push('\\');
                if let Some(&escaped) = characters.get(at) {
                    at += 1;
                    regex.push(escaped);
                    kind = Shape::Regex;
                }
            }
            '[' | ']' => {
                regex.push(character);
                kind = Shape::Regex;
            }
            other => regex.push(other),
        }
    }
    regex.push('$');
    Ok(match kind {
        Shape::Exact => How::Exact(pattern.to_owned()),
        Shape::Prefix => How::Prefix(pattern.trim_end_matches('/').trim_end_matches("**").to_owned()),
        Shape::Suffix => How::Suffix(pattern["**".len()..].to_owned()),
        Shape::Regex => {
            let regex = go_regex::translated(&regex).and_then(|regex| Regex::new(&regex).ok());
            How::Regex(regex.ok_or_else(|| syntax(pattern))?)
        }
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Exact,
    Prefix,
    Suffix,
    Regex,
}

fn syntax(pattern: &str) -> PatternError {
    PatternError::Syntax(pattern.to_owned())
}

/// Go's `filepath.Match`: whether the whole of `name` matches `pattern`; `*` and `?` stop at `/`.
///
/// # Errors
/// [`PatternError::Syntax`], if the part of the pattern is malformed up to which `name` matches: as in Go, the rest is
/// not looked at.
pub fn go_match(pattern: &str, name: &str) -> Result<bool, PatternError> {
    let (mut rest, mut name) = (pattern.as_bytes(), name.as_bytes());
    'chunks: while !rest.is_empty() {
        let (is_starred, chunk, behind) = next_chunk(rest);
        rest = behind;
        if is_starred && chunk.is_empty() {
            return Ok(!name.contains(&b'/'));
        }
        // What is last must reach the end of the name, whatever a star before it could still take.
        let is_enough = |left: &[u8]| left.is_empty() || !rest.is_empty();
        let here = match_chunk(chunk, name).map_err(|Malformed| syntax(pattern))?;
        if let Some(left) = here.filter(|left| is_enough(left)) {
            name = left;
            continue;
        }
        let skipped = name
            .iter()
            .take_while(|byte| is_starred && **byte != b'/')
            .count();
        for skip in 1..=skipped {
            let found = match_chunk(chunk, &name[skip..]).map_err(|Malformed| syntax(pattern))?;
            if let Some(left) = found.filter(|left| is_enough(left)) {
                name = left;
                continue 'chunks;
            }
        }
        return Ok(false);
    }
    Ok(name.is_empty())
}

/// Stars, and what stands between them and the next star outside of brackets.
fn next_chunk(pattern: &[u8]) -> (bool, &[u8], &[u8]) {
    let stars = pattern.iter().take_while(|byte| **byte == b'*').count();
    let pattern = &pattern[stars..];
    let (mut in_class, mut at) = (false, 0);
    while let Some(byte) = pattern.get(at) {
        match byte {
            b'\\' if at + 1 < pattern.len() => at += 1,
            b'[' => in_class = true,
            b']' => in_class = false,
            b'*' if !in_class => break,
            _ => {}
        }
        at += 1;
    }
    (stars > 0, &pattern[..at], &pattern[at..])
}

/// Brackets or an escape that do not end.
struct Malformed;

/// What is left of a name that begins as the chunk says; `None` if it does not. The chunk is read to its end either way.
fn match_chunk<'n>(mut chunk: &[u8], name: &'n [u8]) -> Result<Option<&'n [u8]>, Malformed> {
    let mut left = Some(name);
    while let Some(first) = chunk.first() {
        left = left.filter(|left| !left.is_empty());
        match first {
            b'[' => {
                let character = left.map(character);
                left = left.zip(character).map(|(left, (_, length))| &left[length..]);
                chunk = &chunk[1..];
                let is_negated = chunk.first() == Some(&b'^');
                chunk = &chunk[usize::from(is_negated)..];
                let (mut is_inside, mut is_empty) = (false, true);
                while is_empty || chunk.first() != Some(&b']') {
                    let low = class_character(&mut chunk)?;
                    let mut high = low;
                    if chunk.first() == Some(&b'-') {
                        chunk = &chunk[1..];
                        high = class_character(&mut chunk)?;
                    }
                    is_inside |= character.is_some_and(|(character, _)| (low..=high).contains(&character));
                    is_empty = false;
                }
                chunk = &chunk[1..];
                left = left.filter(|_| is_inside != is_negated);
            }
            b'?' => {
                left = left
                    .filter(|left| left[0] != b'/')
                    .map(|left| &left[character(left).1..]);
                chunk = &chunk[1..];
            }
            byte => {
                let literal = match byte {
                    b'\\' => chunk.get(1).ok_or(Malformed)?,
                    byte => byte,
                };
                left = left.filter(|left| left[0] == *literal).map(|left| &left[1..]);
                chunk = &chunk[1 + usize::from(*byte == b'\\')..];
            }
        }
    }
    Ok(left)
}

/// One end of a range, which is followed by something.
fn class_character(chunk: &mut &[u8]) -> Result<char, Malformed> {
    match chunk.first() {
        None | Some(b'-' | b']') => return Err(Malformed),
        Some(b'\\') if chunk.len() == 1 => return Err(Malformed),
        Some(b'\\') => *chunk = &chunk[1..],
        Some(_) => {}
    }
    let (found, length) = character(chunk);
    *chunk = &chunk[length..];
    if chunk.is_empty() {
        return Err(Malformed);
    }
    Ok(found)
}

/// The first character and its length; what is no UTF-8 is one of one byte.
fn character(bytes: &[u8]) -> (char, usize) {
    let head = &bytes[..bytes.len().min(4)];
    let valid = head
        .utf8_chunks()
        .next()
        .and_then(|chunk| chunk.valid().chars().next());
    valid.map_or(('\u{fffd}', 1), |character| (character, character.len_utf8()))
}

/// The patterns of an ignore file: without comments and empty lines, cleaned, relative.
#[must_use]
pub fn read_ignore_file(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes));
    let mut patterns = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let line = line.trim();
        let (mark, pattern) = match line.strip_prefix('!') {
            Some(rest) => ("!", rest.trim()),
            None => ("", line),
        };
        if pattern.is_empty() && mark.is_empty() {
            continue;
        }
        let mut cleaned = if pattern.is_empty() {
            String::new()
        } else {
            clean(pattern)
        };
        if cleaned.len() > 1 && cleaned.starts_with('/') {
            cleaned.remove(0);
        }
        patterns.push(format!("{mark}{cleaned}"));
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_docker_does() {
        for (pattern, path, wanted) in [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "file", true),
            ("**/file", "file", true),
            ("**/file", "a/b/file", true),
            ("**/file", "xfile", false),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir", false),
            ("dir/**/x", "dir/x", true),
            ("dir/**/x", "dir/a/b/x", true),
            ("a**z", "ab/z", true),
            ("*.md", "x.md", true),
            ("*.md", "d/x.md", false),
            ("**/*.md", "d/e/x.md", true),
            ("d", "d/e/x.md", true),
            ("d/e", "d/e/x.md", true),
            ("f?le", "file", true),
            ("f?le", "fäle", true),
            ("f?le", "f/le", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[[]x", "[x", true),
            ("[a&&b]", "&", true),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("\\d", "1", true),
            ("\\d", "d", false),
            ("x\\.md", "x.md", true),
            ("a.b", "axb", false),
            ("a+(b)", "a+(b)", true),
            ("/x", "x", false),
            ("./x/../y/", "y", true),
        ] {
            let set = PatternSet::new(&[pattern]).expect(pattern);
            assert_eq!(set.matches(path), wanted, "{pattern} {path}");
        }
    }

    #[test]
    fn the_last_pattern_that_applies_decides() {
        let set = PatternSet::new(&["*", "!keep", "keep/not", "", " "]).expect("fine");
        assert!(set.has_exclusions());
        for (path, wanted) in [
            ("a", true),
            ("keep", false),
            ("keep/x", false),
            ("keep/not", true),
            ("keep/not/y", true),
        ] {
            assert_eq!(set.matches(path), wanted, "{path}");
        }
        // Walking down with what each parent matched gives the same.
        let (_, above) = set.matches_using_parent("keep", &MatchInfo::default());
        assert!(!set.matches_using_parent("keep/x", &above).0);
        let (matched, not) = set.matches_using_parent("keep/not", &above);
        assert!(matched && set.matches_using_parent("keep/not/y", &not).0);
    }

    #[test]
    fn malformed_patterns_are_errors() {
        assert_eq!(
            PatternSet::new(&["!"]).expect_err("lone"),
            PatternError::LoneExclusion
        );
        for bad in ["[", "[]", "[^]", "[a", "[-]", "\\", "[a-]"] {
            assert!(
                matches!(PatternSet::new(&[bad]), Err(PatternError::Syntax(_))),
                "{bad}"
            );
            assert!(go_match(bad, "a").is_err(), "{bad}");
        }
    }

    #[test]
    fn go_match_is_whole_and_stops_at_slashes() {
        for (pattern, name, wanted) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[^c]", "abc", false),
            ("a\\*b", "a*b", true),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("*x", "xxx", true),
            ("/*", "", false),
            ("", "", true),
        ] {
            assert_eq!(
                go_match(pattern, name).expect(pattern),
                wanted,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn ignore_files_are_cleaned() {
        let text = b"\xef\xbb\xbf# no\n\n  /abs/path/ \n!  ./x/../y\n #kept\n/\r\nlast";
        assert_eq!(read_ignore_file(text), ["abs/path", "!y", "#kept", "/", "last"]);
    }
}
