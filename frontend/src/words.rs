//! Words as a shell knows them: quotes, escapes and variables.
//!
//! ```text
//! "a $B ${C:-d}" ─▶ Lex::expand ─▶ Expansion { text, words, matched, unmatched }
//! ```
//!
//! | form | meaning |
//! |---|---|
//! | `$a`, `${a}` | the value, or nothing |
//! | `${a:-w}`, `${a-w}` | `w` where `a` is unset (`:`: or empty) |
//! | `${a:+w}`, `${a+w}` | `w` where `a` is set (`:`: and not empty) |
//! | `${a:?w}`, `${a?w}` | an error saying `w` where `a` is unset (`:`: or empty) |
//! | `${a#p}`, `${a##p}`, `${a%p}`, `${a%%p}` | without the shortest, longest beginning or end matching `p` |
//! | `${a/p/w}`, `${a//p/w}` | the first, every match of `p` replaced by `w` |
//!
//! Results are limited to 1 MiB and nesting to 64, whatever the Dockerfile says.

mod glob;

use std::collections::BTreeSet;

use crate::lower::format::quote;

/// How many bytes an expansion may have.
const MAX_BYTES: usize = 1 << 20;
/// How deep `${a:-${b:-…}}` may go.
const MAX_DEPTH: usize = 64;

/// How words are taken apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lex {
    pub(crate) escape: char,
    /// Quotes stay in the result.
    pub(crate) raw_quotes: bool,
    /// Escapes stay in the result.
    pub(crate) raw_escapes: bool,
    /// Quotes mean nothing.
    pub(crate) skip_quotes: bool,
    /// Variables that are not set stay as they are written.
    pub(crate) keep_unset: bool,
}

/// What became of a word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expansion {
    /// All of it.
    pub(crate) text: String,
    /// Taken apart at blanks that are not quoted.
    pub(crate) words: Vec<String>,
    /// The variables that were used and are set.
    pub(crate) matched: BTreeSet<String>,
    /// The variables that were used and are not set.
    pub(crate) unmatched: BTreeSet<String>,
}

/// Where values come from.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// No variables at all.
pub(crate) const NOTHING: Lookup<'static> = &|_| None;

impl Lex {
    /// Words escaped by this character.
    pub(crate) fn new(escape: char) -> Self {
        Self {
            escape,
            raw_quotes: false,
            raw_escapes: false,
            skip_quotes: false,
            keep_unset: false,
        }
    }

    /// Expands a text; the error says what is wrong with it.
    pub(crate) fn expand(self, text: &str, lookup: Lookup<'_>) -> Result<Expansion, String> {
        let mut word = Word {
            lex: self,
            raw_escapes: self.raw_escapes,
            rest: text.chars().collect(),
            at: 0,
            depth: 0,
            lookup,
            found: Expansion::default(),
        };
        let (text_out, words) = word
            .until(None, self.raw_escapes)
            .map_err(|reason| format!("failed to process {}: {reason}", quote(text)))?;
        Ok(Expansion {
            text: text_out,
            words,
            ..word.found
        })
    }
}

struct Word<'a> {
    lex: Lex,
    raw_escapes: bool,
    rest: Vec<char>,
    at: usize,
    depth: usize,
    lookup: Lookup<'a>,
    found: Expansion,
}

/// Words under construction.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    now: String,
}

impl Words {
    fn char(&mut self, c: char) {
        if !c.is_whitespace() {
            self.now.push(c);
        } else if !self.now.is_empty() {
            self.done.push(std::mem::take(&mut self.now));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.now.is_empty() {
            self.done.push(self.now);
        }
        self.done
    }
}

impl Word<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    /// Reads up to `stop`, or to the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>), String> {
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let (mut text, mut words) = (String::new(), Words::default());
        let mut is_stopped = false;
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.next();
                is_stopped = true;
                break;
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.char(c));
                    text.push_str(&value);
                }
                '<' => {
                    let value = self.possible_heredoc();
                    words.now.push_str(&value);
                    text.push_str(&value);
                }
                '\'' | '"' if !self.lex.skip_quotes => {
                    let value = if c == '"' {
                        self.double_quoted()?
                    } else {
                        self.single_quoted()?
                    };
                    words.now.push_str(&value);
                    text.push_str(&value);
                }
                c if c == self.lex.escape => {
                    self.next();
                    if self.raw_escapes {
                        words.now.push(c);
                        text.push(c);
                    }
                    let Some(c) = self.next() else { break };
                    words.now.push(c);
                    text.push(c);
                }
                c => {
                    self.next();
                    words.char(c);
                    text.push(c);
                }
            }
            if text.len() > MAX_BYTES {
                return Err(format!("the result has more than {MAX_BYTES} bytes"));
            }
        }
        self.raw_escapes = before;
        match stop {
            Some(stop) if !is_stopped => Err(format!(
                "unexpected end of statement while looking for matching {stop}"
            )),
            _ => Ok((text, words.finish())),
        }
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        let mut out = String::new();
        self.quote_char(&mut out);
        loop {
            match self.peek() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching single-quote".to_owned(),
                    );
                }
                Some('\'') => {
                    self.quote_char(&mut out);
                    return Ok(out);
                }
                Some(c) => {
                    self.next();
                    out.push(c);
                }
            }
        }
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        let mut out = String::new();
        self.quote_char(&mut out);
        loop {
            match self.peek() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching double-quote".to_owned(),
                    );
                }
                Some('"') => {
                    self.quote_char(&mut out);
                    return Ok(out);
                }
                Some('$') => out.push_str(&self.dollar()?),
                Some(mut c) => {
                    self.next();
                    if c == self.lex.escape {
                        if self.raw_escapes {
                            out.push(c);
                        }
                        match self.peek() {
                            None => continue,
                            Some(escaped) if matches!(escaped, '"' | '$') || escaped == self.lex.escape => {
                                self.next();
                                c = escaped;
                            }
                            Some(_) => {}
                        }
                    }
                    out.push(c);
                }
            }
        }
    }

    fn quote_char(&mut self, out: &mut String) {
        if let Some(quote) = self.next()
            && self.lex.raw_quotes
        {
            out.push(quote);
        }
    }

    /// `<<` takes the blanks behind it along, so that `<< EOF` is one word.
    fn possible_heredoc(&mut self) -> String {
        self.next();
        if self.peek() != Some('<') {
            return "<".to_owned();
        }
        self.next();
        let mut out = "<<".to_owned();
        while let Some(blank @ ('\t' | '\r' | ' ')) = self.peek() {
            self.next();
            out.push(blank);
        }
        out
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH}"));
        }
        let value = self.substitution();
        self.depth -= 1;
        value
    }

    fn substitution(&mut self) -> Result<String, String> {
        self.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.value(&name) {
                None if self.lex.keep_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.next();
        match self.peek() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            Some('}') => Ok(match self.value(&name) {
                None if self.lex.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            Some(':') => {
                let modifier = self.next();
                self.modified(&name, true, modifier)
            }
            Some('/') => self.replaced(&name),
            modifier => self.modified(&name, false, modifier),
        }
    }

    fn modified(
        &mut self,
        name: &str,
        empty_is_unset: bool,
        modifier: Option<char>,
    ) -> Result<String, String> {
        let colon = if empty_is_unset { ":" } else { "" };
        // Differs: BuildKit shows what stands for the end of the text as if it were a modifier.
        let modifier = modifier.ok_or("syntax error: missing '}'")?;
        let unsupported = || format!("unsupported modifier ({colon}{modifier}) in substitution");
        let is_pattern = matches!(modifier, '#' | '%');
        if !matches!(modifier, '+' | '-' | '?' | '#' | '%') || (is_pattern && empty_is_unset) {
            return Err(unsupported());
        }
        let (word, _) = self
            .until(Some('}'), is_pattern)
            .map_err(|error| self.or_missing(error, "'}'"))?;
        let value = self.value(name);
        if self.lex.keep_unset && value.is_none() {
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let filled = value
            .clone()
            .filter(|value| !(empty_is_unset && value.is_empty()));
        match modifier {
            '-' => Ok(filled.unwrap_or(word)),
            '+' => Ok(filled.map_or_else(String::new, |_| word)),
            '?' => filled.ok_or_else(|| match (word.is_empty(), value.is_some()) {
                (false, _) => format!("{name}: {word}"),
                (true, true) => format!("{name}: is not allowed to be empty"),
                (true, false) => format!("{name}: is not allowed to be unset"),
            }),
            _ => {
                let (pattern, is_greedy) = match word.strip_prefix(modifier) {
                    Some(pattern) => (pattern, true),
                    None => (word.as_str(), false),
                };
                let value = value.unwrap_or_default();
                if modifier == '#' {
                    glob::without_prefix(pattern, &value, is_greedy)
                } else {
                    glob::without_suffix(pattern, &value, is_greedy)
                }
            }
        }
    }

    fn replaced(&mut self, name: &str) -> Result<String, String> {
        let is_all = self.peek() == Some('/');
        if is_all {
            self.next();
        }
        let (pattern, _) = self
            .until(Some('/'), true)
            .map_err(|error| self.or_missing(error, "'/' in ${}"))?;
        let (replacement, _) = self
            .until(Some('}'), true)
            .map_err(|error| self.or_missing(error, "'}'"))?;
        match self.value(name) {
            None if self.lex.keep_unset => Ok(format!("${{{name}/{pattern}/{replacement}}}")),
            value => glob::replace(&pattern, &value.unwrap_or_default(), &replacement, is_all),
        }
    }

    fn or_missing(&self, error: String, what: &str) -> String {
        if self.peek().is_none() {
            format!("syntax error: missing {what}")
        } else {
            error
        }
    }

    /// A name: letters, digits and `_`; only digits when it begins with one; or one special character.
    fn name(&mut self) -> String {
        let start = self.at;
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while self.peek().is_some_and(char::is_numeric) {
                    self.next();
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => {
                self.next();
            }
            _ => {
                while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    self.next();
                }
            }
        }
        self.rest[start..self.at].iter().collect()
    }

    fn value(&mut self, name: &str) -> Option<String> {
        let value = (self.lookup)(name);
        let names = if value.is_some() {
            &mut self.found.matched
        } else {
            &mut self.found.unmatched
        };
        names.insert(name.to_owned());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::{Lex, Lookup};

    const VARIABLES: Lookup<'static> = &|name| match name {
        "A" => Some("abc".to_owned()),
        "EMPTY" => Some(String::new()),
        "PATHS" => Some("a/b/c.tar.gz".to_owned()),
        "SPACED" => Some("x y".to_owned()),
        _ => None,
    };

    #[test]
    fn variables_quotes_and_escapes() {
        for (text, expected) in [
            ("$A-${A}", "abc-abc"),
            ("$NOPE|${NOPE}", "|"),
            ("${NOPE:-d} ${EMPTY:-e} ${EMPTY-f}", "d e "),
            ("${A:+x}${EMPTY:+y}${EMPTY+z}", "xz"),
            ("'$A' \"$A\"", "$A abc"),
            (r#"\$A a\ b "\$A \n \"""#, "$A a b $A \\n \""),
            ("${A#a} ${A%c} ${A##*b} ${A%%b*}", "bc ab c a"),
            (
                "${PATHS#*/} ${PATHS##*/} ${PATHS%.*} ${PATHS%%.*}",
                "b/c.tar.gz c.tar.gz a/b/c.tar a/b/c",
            ),
            ("${A/b/x} ${PATHS//\\//_} ${A/?/z}", "axc a_b_c.tar.gz zbc"),
            ("${NOPE:-${A}}", "abc"),
            ("$1x$", "x$"),
            ("<<EOF", "<<EOF"),
        ] {
            assert_eq!(
                Lex::new('\\').expand(text, VARIABLES).expect(text).text,
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn words_are_split_at_bare_blanks() {
        for (text, expected) in [
            ("a  'b c' $SPACED", vec!["a", "b c", "x", "y"]),
            ("<< EOF x", vec!["<< EOF", "x"]),
            (" ", vec![]),
        ] {
            assert_eq!(
                Lex::new('\\').expand(text, VARIABLES).expect(text).words,
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn unset_variables_can_stay() {
        let lex = Lex {
            keep_unset: true,
            raw_quotes: true,
            ..Lex::new('\\')
        };
        let text = "echo \"$A\" $NOPE ${NOPE} ${NOPE:-x}";
        let out = lex.expand(text, VARIABLES).expect("fine");
        assert_eq!(out.text, "echo \"abc\" $NOPE ${NOPE} ${NOPE:-x}");
        assert_eq!(out.unmatched.into_iter().collect::<Vec<_>>(), ["NOPE"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("'a", "single-quote"),
            ("\"a", "double-quote"),
            ("${A", "missing '}'"),
            ("${}", "syntax error: bad substitution"),
            ("${A:#x}", "unsupported modifier (:#)"),
            ("${A!x}", "unsupported modifier (!)"),
            ("${NOPE:?is needed}", "NOPE: is needed"),
            ("${NOPE?}", "NOPE: is not allowed to be unset"),
            ("${A/x", "missing '/' in ${}"),
            ("${A#\\q}", "invalid escape"),
        ] {
            let error = Lex::new('\\').expand(text, VARIABLES).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        let deep = "${a:-".repeat(100_000);
        assert!(
            Lex::new('\\')
                .expand(&deep, VARIABLES)
                .expect_err("deep")
                .contains("nested")
        );
    }
}
