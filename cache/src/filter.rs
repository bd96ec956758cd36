//! Which records are meant: the filters of `du` and `prune`, as BuildKit's clients send them.
//!
//! ```text
//! type==regular,"description"~="COPY .*",shared ─▶ parse ─▶ tests that must all hold ─▶ matches(record)
//! ```
//!
//! A selector is a key, or a key, an operator and a value; values with commas or spaces stand in quotes. `~=` is a regular
//! expression, found anywhere.
//!
//! Differs: BuildKit takes an unknown key for one that no record has; here it is an error, as `prune` with a mistyped filter
//! should say so. BuildKit's flags (`inuse`, `mutable`, `immutable`, `shared`, `private`) have no value to compare with; here
//! `inuse==true` and `inuse==false` mean what they say. `key=value` is taken for `key==value`.
use crate::usage::UsageRecord;
use regex::{Regex, RegexBuilder};

/// An expression that needs more memory than this is refused.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// Tests that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(pub Vec<Test>);

/// One test of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// `key`: it has one; of a flag, it is set.
    Present(Key),
    /// `key==value`.
    Is(Key, String),
    /// `key!=value`.
    IsNot(Key, String),
    /// `key~=expression`: it is found in the value.
    Matches(Key, Pattern),
}

/// A regular expression.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

/// What a test looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The record's name.
    Id,
    /// The records beneath.
    Parents,
    /// The text for people.
    Description,
    /// Whether it is in use.
    InUse,
    /// Whether it may still change.
    Mutable,
    /// Whether it may not.
    Immutable,
    /// What it is.
    Type,
    /// Whether an image has it too.
    Shared,
    /// Whether none has.
    Private,
}

/// Why a filter could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No such key.
    #[error(
        "unknown filter key {0:?}: known are id, parent, parents, description, inuse, mutable, immutable, type, shared and private"
    )]
    Key(String),
    /// No expression.
    #[error("filter {0:?}: its value is no regular expression")]
    Pattern(String),
    /// A quote without its end, or something behind it.
    #[error("filter {0:?}: a quoted part has no end, or goes on after it")]
    Quote(String),
}

impl Filter {
    /// Reads selectors joined by commas.
    ///
    /// # Errors
    /// For a key that is none, an expression that is none, a quote without its end.
    pub fn parse(text: &str) -> std::result::Result<Filter, FilterError> {
        let parts = split(text)?.into_iter().map(|part| part.trim().to_owned());
        parts
            .filter(|part| !part.is_empty())
            .map(|part| Test::parse(&part))
            .collect::<std::result::Result<_, _>>()
            .map(Filter)
    }

    /// Whether all tests hold.
    pub fn matches(&self, record: &UsageRecord) -> bool {
        self.0.iter().all(|test| test.holds(record))
    }
}

/// At commas that are not within quotes.
fn split(text: &str) -> std::result::Result<Vec<&str>, FilterError> {
    let (mut parts, mut from) = (Vec::new(), 0);
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    if is_quoted {
        return Err(FilterError::Quote(text.to_owned()));
    }
    parts.push(&text[from..]);
    Ok(parts)
}

/// A word, or what is between its quotes; answers the rest as well.
fn word<'a>(text: &'a str, ends: &[&str]) -> std::result::Result<(String, &'a str), FilterError> {
    let text = text.trim_start();
    let Some(quoted) = text.strip_prefix('"') else {
        let end = ends.iter().filter_map(|end| text.find(end)).min();
        let (word, rest) = text.split_at(end.unwrap_or(text.len()));
        return Ok((word.trim().to_owned(), rest));
    };
    let (mut word, mut is_escaped) = (String::new(), false);
    for (at, letter) in quoted.char_indices() {
        match letter {
            _ if is_escaped => {
                is_escaped = false;
                // `\.` and its like are for expressions.
                if !matches!(letter, '"' | '\\') {
                    word.push('\\');
                }
                word.push(letter);
            }
            '\\' => is_escaped = true,
            '"' => return Ok((word, quoted[at + 1..].trim_start())),
            letter => word.push(letter),
        }
    }
    Err(FilterError::Quote(text.to_owned()))
}

impl Test {
    fn parse(text: &str) -> std::result::Result<Test, FilterError> {
        const OPERATORS: [&str; 4] = ["!=", "~=", "==", "="];
        let (key, rest) = word(text, &OPERATORS)?;
        let key = Key::parse(&key)?;
        if rest.is_empty() {
            return Ok(Test::Present(key));
        }
        let found = OPERATORS
            .iter()
            .find_map(|operator| Some((*operator, rest.strip_prefix(operator)?)));
        let (operator, value) = found.ok_or_else(|| FilterError::Quote(text.to_owned()))?;
        let (value, rest) = word(value, &[])?;
        if !rest.is_empty() {
            return Err(FilterError::Quote(text.to_owned()));
        }
        Ok(match operator {
            "!=" => Test::IsNot(key, value),
            "~=" => {
                let pattern = RegexBuilder::new(&value).size_limit(MAX_PATTERN_BYTES).build();
                Test::Matches(
                    key,
                    Pattern(pattern.map_err(|_| FilterError::Pattern(text.to_owned()))?),
                )
            }
            _ => Test::Is(key, value),
        })
    }

    fn holds(&self, record: &UsageRecord) -> bool {
        match self {
            Test::Present(key) => match key.flag(record) {
                Some(is_set) => is_set,
                None => key.values(record).iter().any(|found| !found.is_empty()),
            },
            Test::Is(key, value) => key.values(record).iter().any(|found| found == value),
            Test::IsNot(key, value) => key.values(record).iter().all(|found| found != value),
            Test::Matches(key, pattern) => key.values(record).iter().any(|found| pattern.0.is_match(found)),
        }
    }
}

impl Key {
    fn parse(text: &str) -> std::result::Result<Key, FilterError> {
        Ok(match text.to_lowercase().as_str() {
            "id" => Key::Id,
            "parent" | "parents" => Key::Parents,
            "description" => Key::Description,
            "inuse" => Key::InUse,
            "mutable" => Key::Mutable,
            "immutable" => Key::Immutable,
            "type" => Key::Type,
            "shared" => Key::Shared,
            "private" => Key::Private,
            _ => return Err(FilterError::Key(text.to_owned())),
        })
    }

    fn flag(self, record: &UsageRecord) -> Option<bool> {
        match self {
            Key::InUse => Some(record.in_use),
            Key::Mutable => Some(record.mutable),
            Key::Immutable => Some(!record.mutable),
            Key::Shared => Some(record.shared),
            Key::Private => Some(!record.shared),
            Key::Id | Key::Parents | Key::Description | Key::Type => None,
        }
    }

    fn values(self, record: &UsageRecord) -> Vec<String> {
        if let Some(is_set) = self.flag(record) {
            return vec![is_set.to_string()];
        }
        match self {
            Key::Parents => record.parents.clone(),
            Key::Description => vec![record.description.clone()],
            Key::Type => vec![record.kind.as_str().to_owned()],
            _ => vec![record.id.clone()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refs::RecordKind;
    use std::time::SystemTime;

    fn record() -> UsageRecord {
        UsageRecord {
            id: "abc".into(),
            parents: vec!["one".into(), "two".into()],
            kind: RecordKind::Regular,
            size: 5,
            created: SystemTime::UNIX_EPOCH,
            last_used: SystemTime::UNIX_EPOCH,
            usage_count: 1,
            description: "COPY a, b".into(),
            in_use: true,
            mutable: false,
            shared: false,
        }
    }

    #[test]
    fn filters_of_clients() {
        for (text, is_meant) in [
            ("", true),
            ("type==regular", true),
            ("type=regular", true),
            ("TYPE==regular", true),
            ("\"type\"==regular", true),
            ("type!=regular", false),
            ("type~=^reg.*r$", true),
            ("type~=source", false),
            ("id~=b", true),
            ("id~=^b", false),
            ("id", true),
            ("parents", true),
            ("parents==two", true),
            ("parent==three", false),
            ("inuse", true),
            ("inuse==true", true),
            ("inuse==false", false),
            ("mutable", false),
            ("immutable", true),
            ("shared", false),
            ("private", true),
            ("type==regular,shared", false),
            (" type == regular , inuse ", true),
            ("description==\"COPY a, b\"", true),
            ("description~=\"COPY a, .$\",id==abc", true),
            ("description~=\"a\\\\, b\"", true),
            ("description==\"say \\\"x\\\"\"", false),
            ("type==[", false),
            ("type==", false),
        ] {
            let filter = Filter::parse(text).expect(text);
            assert_eq!(filter.matches(&record()), is_meant, "{text}");
        }
    }

    #[test]
    fn what_is_no_filter() {
        for (text, expected) in [
            ("==x", "unknown filter key \"\""),
            ("size==5", "unknown filter key \"size\""),
            ("type~=(", "no regular expression"),
            ("type==\"open", "has no end"),
            ("\"type\"x==y", "has no end, or goes on"),
            ("type==\"a\"b", "goes on after it"),
            ("\"", "has no end"),
        ] {
            let error = Filter::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
