//! The line of an instruction as keyword, flags and the rest; the rest as words, pairs or JSON.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::Value;

use crate::parse::ast::Pair;

/// An instruction's line taken apart.
pub(super) struct Split {
    pub(super) keyword: String,
    /// `--name[=value]`, quotes removed.
    pub(super) flags: Vec<String>,
    pub(super) rest: String,
    /// Where they stand in the line.
    pub(super) at: Ranges,
}

/// Where the parts of a line stand in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    pub(super) keyword: Range<usize>,
    pub(super) flags: Vec<Range<usize>>,
    pub(super) rest: Range<usize>,
}

/// The blanks that separate words; no other white space does.
fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// ASCII white space, as Go's `unicode.IsSpace` sees it.
fn is_space(c: char) -> bool {
    c == '\n' || is_blank(c)
}

/// Said of an array with something else in it.
pub(super) const NOT_STRINGS: &str = "when using JSON array syntax, arrays must be comprised of strings only";

/// Finds the mistakes that make a line unreadable, whatever stands in other lines: BuildKit reports them, and the
/// heredocs that are not closed, before those of any instruction's meaning.
pub(super) fn check(line: &str, escape: char) -> Result<(), String> {
    let mut split = split(line, escape)?;
    if split.keyword.eq_ignore_ascii_case("ONBUILD") {
        split = self::split(&split.rest, escape)?;
    }
    let rest = match split.keyword.to_uppercase().as_str() {
        keyword @ ("ENV" | "LABEL") => return check_pairs(&split.rest, escape, keyword),
        "ADD" | "CMD" | "COPY" | "ENTRYPOINT" | "RUN" | "SHELL" | "VOLUME" => split.rest.as_str(),
        "HEALTHCHECK" => split
            .rest
            .split_once(char::is_whitespace)
            .map_or("", |(_, rest)| rest),
        _ => return Ok(()),
    };
    match json(rest) {
        Json::NotStrings => Err(NOT_STRINGS.to_owned()),
        Json::Words(_) | Json::No => Ok(()),
    }
}

/// As [`pairs`], which asks for names too.
fn check_pairs(rest: &str, escape: char, keyword: &str) -> Result<(), String> {
    let words = quoted_words(rest, escape);
    match words.first() {
        Some(first) if !first.contains('=') && !rest.contains(is_blank) => Err(two_arguments(keyword)),
        Some(first) if first.contains('=') => match words.iter().find(|word| !word.contains('=')) {
            Some(word) => Err(no_equals_sign(word)),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn two_arguments(keyword: &str) -> String {
    format!("{keyword} must have two arguments")
}

fn no_equals_sign(word: &str) -> String {
    format!("Syntax error - can't find = in {word:?}. Must be of the form: name=value")
}

/// Takes the keyword and the flags off a line.
pub(super) fn split(line: &str, escape: char) -> Result<Split, String> {
    let start = line.len() - line.trim_start().len();
    let line = &line[..line.trim_end().len()];
    let end = line[start..].find(is_blank).map_or(line.len(), |end| start + end);
    let behind = line[end..].trim_start_matches(is_blank);
    let base = line.len() - behind.len();
    let (found, rest) = flags(behind, escape);
    let rest = &behind[rest..];
    let from = line.len() - rest.trim_start().len();
    let (words, places): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    Ok(Split {
        keyword: line[start..end].to_owned(),
        flags: words,
        rest: line[from..].trim_end().to_owned(),
        at: Ranges {
            keyword: start..end,
            flags: places
                .into_iter()
                .map(|place: Range<usize>| place.start + base..place.end + base)
                .collect(),
            rest: from..from + line[from..].trim_end().len(),
        },
    })
}

/// The words that begin with `--`, up to the first that does not, with their places; and where the rest begins. Only
/// ASCII blanks separate them.
///
/// Differs: BuildKit takes each byte of a flag for a character, so that `--exclude=é` becomes `Ã©` and `à` ends the
/// word. Here a flag's value is what is written (`flags_are_read_by_characters`).
fn flags(line: &str, escape: char) -> (Vec<(String, Range<usize>)>, usize) {
    let mut found = Vec::new();
    let mut chars = line.char_indices().peekable();
    loop {
        while chars.next_if(|(_, c)| is_space(*c)).is_some() {}
        let Some(&(start, _)) = chars.peek() else {
            return (found, line.len());
        };
        if !line[start..].starts_with("--") {
            return (found, start);
        }
        let (mut word, mut quote, mut has_quotes) = (String::new(), None, false);
        let mut end = line.len();
        while let Some((at, c)) = chars.next() {
            match quote {
                None if is_space(c) => {
                    end = at;
                    break;
                }
                None if c == '\'' || c == '"' => {
                    quote = Some(c);
                    has_quotes = true;
                }
                Some(open) if c == open => quote = None,
                _ if c == escape => match chars.next() {
                    Some((_, escaped)) => word.push(escaped),
                    None => quote = None,
                },
                _ => word.push(c),
            }
        }
        if word == "--" {
            return (found, end);
        }
        if has_quotes || !word.is_empty() {
            found.push((word, start..end));
        }
    }
}

/// What the rest of a line is as JSON.
pub(super) enum Json {
    /// An array of strings.
    Words(Vec<String>),
    /// An array with something else in it, which is a mistake.
    NotStrings,
    /// No array at all.
    No,
}

pub(super) fn json(rest: &str) -> Json {
    if !rest.trim_start().starts_with('[') {
        return Json::No;
    }
    match serde_json::from_str::<Vec<Value>>(&mend_surrogates(rest)) {
        Err(_) => Json::No,
        Ok(values) => {
            let strings = values.into_iter().map(|value| match value {
                Value::String(text) => Some(text),
                _ => None,
            });
            strings
                .collect::<Option<Vec<_>>>()
                .map_or(Json::NotStrings, Json::Words)
        }
    }
}

/// Half of a UTF-16 pair alone means U+FFFD to Go's JSON, and an error to ours.
fn mend_surrogates(json: &str) -> Cow<'_, str> {
    if !json.contains("\\u") {
        return Cow::Borrowed(json);
    }
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        digits
            .bytes()
            .all(|digit| digit.is_ascii_hexdigit())
            .then(|| u16::from_str_radix(digits, 16).ok())?
    };
    let (mut mended, mut at, mut kept) = (String::new(), 0, 0);
    while let Some(found) = json[at..].find('\\') {
        at += found;
        let (length, is_whole) = match unit(at) {
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => (12, true),
            Some(0xd800..=0xdfff) => (6, false),
            Some(_) => (6, true),
            // A backslash and the character it escapes.
            None => (1 + json[at + 1..].chars().next().map_or(0, char::len_utf8), true),
        };
        if !is_whole {
            mended.push_str(&json[kept..at]);
            mended.push_str("\\ufffd");
            kept = at + length;
        }
        at += length;
    }
    mended.push_str(&json[kept..]);
    Cow::Owned(mended)
}

/// The rest at its blanks; nothing when it is empty.
pub(super) fn plain_words(rest: &str) -> Vec<String> {
    if rest.is_empty() {
        return Vec::new();
    }
    let mut words = vec![String::new()];
    let mut in_blanks = false;
    for c in rest.chars() {
        match (is_blank(c), in_blanks) {
            (true, true) => {}
            (true, false) => {
                words.push(String::new());
                in_blanks = true;
            }
            (false, _) => {
                in_blanks = false;
                words.last_mut().expect("there is always a word").push(c);
            }
        }
    }
    words
}

/// Where the words of [`plain_words`] stand.
pub(super) fn word_ranges(rest: &str) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    let words = rest.split(is_blank).map(move |word| {
        let start = at;
        at += word.len() + 1; // every blank is one byte
        start..start + word.len()
    });
    words.filter(|word| !word.is_empty())
}

/// The rest as words of a shell; quotes and escapes stay, they are taken off when words are expanded.
pub(super) fn quoted_words(rest: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = rest.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return words;
        }
        let (mut word, mut quote, mut has_quotes) = (String::new(), None, false);
        while let Some(c) = chars.next() {
            match quote {
                None if c.is_whitespace() => break,
                None if c == '\'' || c == '"' => {
                    quote = Some(c);
                    has_quotes = true;
                }
                Some(open) if c == open => quote = None,
                _ => {}
            }
            if c == escape && quote != Some('\'') {
                let Some(escaped) = chars.next() else { break };
                word.push(c);
                word.push(escaped);
            } else {
                word.push(c);
            }
        }
        if has_quotes || !word.is_empty() {
            words.push(word);
        }
    }
}

/// `key=value …`, or the old form `key value`.
pub(super) fn pairs(rest: &str, escape: char, keyword: &str) -> Result<Vec<Pair>, String> {
    let words = quoted_words(rest, escape);
    let Some(first) = words.first() else {
        return Ok(Vec::new());
    };
    if !first.contains('=') {
        let end = rest.find(is_blank).ok_or_else(|| two_arguments(keyword))?;
        let (key, value) = (
            rest[..end].to_owned(),
            rest[end..].trim_start_matches(is_blank).to_owned(),
        );
        return Ok(vec![Pair {
            key,
            value,
            is_legacy: true,
        }]);
    }
    let one = |word: &String| match word.split_once('=') {
        Some(("", _)) => Err(format!("{keyword} names can not be blank")),
        Some((key, value)) => Ok(Pair {
            key: key.to_owned(),
            value: value.to_owned(),
            is_legacy: false,
        }),
        None => Err(no_equals_sign(word)),
    };
    words.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_pair_is_a_replacement_character() {
        for (json, expected) in [
            (r#"["\ud800x", "/f"]"#, "\u{fffd}x"),
            (r#"["\udc00", "/f"]"#, "\u{fffd}"),
            (r#"["\uD83D\uDE00", "/f"]"#, "\u{1f600}"),
            (r#"["\ud83d\ud83d\ude00", "/f"]"#, "\u{fffd}\u{1f600}"),
            (r#"["\\ud800", "/f"]"#, "\\ud800"),
            (r#"["a\u00e9", "/f"]"#, "a\u{e9}"),
        ] {
            let Json::Words(words) = super::json(json) else {
                panic!("{json} is a list of strings");
            };
            assert_eq!(words[0], expected, "{json}");
        }
        for json in [r#"["\ud8"#, r#"["\u12"]"#, r#"["\"#, "[\"é\\é\"]"] {
            assert!(!matches!(super::json(json), Json::Words(_)), "{json}");
        }
    }
}
