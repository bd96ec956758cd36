//! `.dockerignore` and include/exclude patterns, as Docker's own matcher reads them, and Go's `path.Match`.
//!
//! ```text
//! ignore file ─▶ read_ignore_file ─▶ patterns ─▶ PatternSet ─▶ matches (with or without what the parent matched)
//! ```
//!
//! Patterns are tried in order and the last that applies decides; `!` turns a match off again. `*` and `?` stop at `/`,
//! `**` does not. A pattern that matches a directory matches all beneath it.

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
            check_syntax(&pattern)?;
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
    let mut regex = String::from("(?s-u)^");
    let mut kind = Shape::Exact;
    let mut at = 0;
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
                // One character, however many bytes it has.
                regex.push_str("(?u:[^/])");
                kind = Shape::Regex;
            }
            '[' => {
                at = push_class(&characters, at, &mut regex).ok_or_else(|| syntax(pattern))?;
                kind = Shape::Regex;
            }
            '\\' => {
                if let Some(&escaped) = characters.get(at) {
                    at += 1;
                    // Docker's matcher hands escapes on to its regular expression: `\d` is a digit, `\é` an error.
                    match escaped.is_ascii() && !escaped.is_ascii_alphanumeric() {
                        true => regex.push_str(&regex::escape(escaped.encode_utf8(&mut [0; 4]))),
                        false => regex.extend(['\\', escaped]),
                    }
                    kind = Shape::Regex;
                }
            }
            other => regex.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    regex.push('$');
    Ok(match kind {
        Shape::Exact => How::Exact(pattern.to_owned()),
        Shape::Prefix => How::Prefix(pattern.trim_end_matches('/').trim_end_matches("**").to_owned()),
        Shape::Suffix => How::Suffix(pattern["**".len()..].to_owned()),
        Shape::Regex => How::Regex(Regex::new(&regex).map_err(|_| syntax(pattern))?),
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

/// Adds the class that begins after the `[` before `at`; gives where it ends. A class can match `/`, as in Docker's.
fn push_class(characters: &[char], mut at: usize, regex: &mut String) -> Option<usize> {
    let (negated, ranges, end) = class(characters, at)?;
    at = end;
    regex.push_str("(?u:[");
    if negated {
        regex.push('^');
    }
    for (low, high) in ranges {
        for (bound, dash) in [(low, true), (high, false)] {
            regex.push_str(&format!("\\x{{{:X}}}", u32::from(bound)));
            if dash {
                regex.push('-');
            }
        }
    }
    regex.push_str("])");
    Some(at)
}

/// A character class: whether it is negated, its ranges, and where it ends.
type Class = (bool, Vec<(char, char)>, usize);

/// A class as Go's `path.Match` reads it. None if it is malformed.
fn class(characters: &[char], mut at: usize) -> Option<Class> {
    let negated = characters.get(at) == Some(&'^');
    if negated {
        at += 1;
    }
    let mut ranges = Vec::new();
    loop {
        if characters.get(at) == Some(&']') && !ranges.is_empty() {
            return Some((negated, ranges, at + 1));
        }
        let (low, next) = class_character(characters, at)?;
        at = next;
        let mut high = low;
        if characters.get(at) == Some(&'-') {
            (high, at) = class_character(characters, at + 1)?;
        }
        if low > high {
            return None;
        }
        ranges.push((low, high));
    }
}

fn class_character(characters: &[char], at: usize) -> Option<(char, usize)> {
    match characters.get(at)? {
        '-' | ']' => None,
        '\\' => Some((*characters.get(at + 1)?, at + 2)),
        other => Some((*other, at + 1)),
    }
}

fn check_syntax(pattern: &str) -> Result<(), PatternError> {
    let characters: Vec<char> = pattern.chars().collect();
    let mut at = 0;
    while let Some(character) = characters.get(at) {
        at += 1;
        match character {
            '\\' if at >= characters.len() => return Err(syntax(pattern)),
            '\\' => at += 1,
            '[' => at = class(&characters, at).ok_or_else(|| syntax(pattern))?.2,
            _ => {}
        }
    }
    Ok(())
}

/// Go's `path.Match`: whether the whole of `name` matches `pattern`; wildcards stop at `/`.
///
/// # Errors
/// [`PatternError::Syntax`].
pub fn go_match(pattern: &str, name: &str) -> Result<bool, PatternError> {
    check_syntax(pattern)?;
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    // Where to go on after the last star, should what follows it not fit: a later star never needs an earlier one.
    let mut retry: Option<(usize, usize)> = None;
    let (mut at, mut position) = (0, 0);
    loop {
        if pattern.get(at) == Some(&'*') {
            at += 1;
            retry = Some((at, position));
            continue;
        }
        if at == pattern.len() && position == name.len() {
            return Ok(true);
        }
        if let Some(next) = match_one(&pattern, at, name.get(position).copied()) {
            at = next;
            position += 1;
            continue;
        }
        match retry {
            Some((star, from)) if from < name.len() && name[from] != '/' => {
                retry = Some((star, from + 1));
                (at, position) = (star, from + 1);
            }
            _ => return Ok(false),
        }
    }
}

/// Where the pattern goes on if its next element matches `character`.
fn match_one(pattern: &[char], at: usize, character: Option<char>) -> Option<usize> {
    let character = character?;
    match *pattern.get(at)? {
        '?' => (character != '/').then_some(at + 1),
        '[' => {
            let (negated, ranges, end) = class(pattern, at + 1)?;
            let inside = ranges
                .iter()
                .any(|&(low, high)| low <= character && character <= high);
            (inside != negated && character != '/').then_some(end)
        }
        '\\' => (*pattern.get(at + 1)? == character).then_some(at + 2),
        other => (other == character).then_some(at + 1),
    }
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
        for bad in ["[", "a[", "[]", "[^]", "[a", "[-]", "[b-a]", "a\\", "[a-]"] {
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
