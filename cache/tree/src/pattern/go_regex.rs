//! Go's regular expressions as ours write them, as far as Docker's matcher makes any.
//!
//! ```text
//! ^(.*/)?[^/]*\.[[:digit:]]$ ─▶ classes and escapes by Go's rules (package regexp/syntax, Perl) ─▶ the same, for `regex`
//! ```
//!
//! Ours nests classes and knows set operations inside them, so that every class is written anew.

use std::iter::Peekable;
use std::str::Chars;

/// The expression for our engine, matching bytes; `None` for one that Go refuses.
pub(super) fn translated(go: &str) -> Option<String> {
    let mut out = String::from("(?-u)");
    let mut rest = go.chars().peekable();
    let mut was_repeated = false;
    while let Some(character) = rest.next() {
        match character {
            '[' => class(&mut rest, &mut out)?,
            '\\' => match escape(&mut rest)? {
                Escaped::Character(character) => literal(character, &mut out),
                Escaped::Class(class) => out.push_str(class),
                Escaped::Assertion(kind) => out.extend(['\\', kind]),
            },
            '{' => match repetition(&mut rest)? {
                // Go repeats no repetition.
                Some(_) if was_repeated => return None,
                Some(times) => {
                    out.push_str(&times);
                    was_repeated = true;
                    continue;
                }
                None => literal(character, &mut out),
            },
            // What the matcher itself writes stays, and what it does not escape.
            '^' | '$' | '.' | '*' | '?' | '(' | ')' | '|' => out.push(character),
            other => literal(other, &mut out),
        }
        was_repeated = matches!(character, '*' | '?');
    }
    Some(out)
}

/// `{n}`, `{n,}` or `{n,m}`, whose `{` is taken already; `None` inside for what is none and so stands for itself.
#[expect(clippy::option_option, reason = "refused, not there, there")]
fn repetition(rest: &mut Peekable<Chars<'_>>) -> Option<Option<String>> {
    const MOST: u32 = 1000;
    let text: String = rest.clone().take_while(|character| *character != '}').collect();
    let (least, most) = text.split_once(',').unwrap_or((&text, &text));
    let is_number = |text: &str| {
        let has_zeros = text.len() > 1 && text.starts_with('0');
        !text.is_empty() && !has_zeros && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let is_closed = rest.clone().nth(text.chars().count()) == Some('}');
    if !is_closed || !is_number(least) || !(most.is_empty() || is_number(most)) {
        return Some(None);
    }
    let number = |text: &str| text.parse().ok().filter(|number: &u32| *number <= MOST);
    let least = number(least)?;
    if !most.is_empty() && number(most)? < least {
        return None;
    }
    for _ in 0..=text.chars().count() {
        rest.next();
    }
    Some(Some(format!("{{{text}}}")))
}

fn literal(character: char, out: &mut String) {
    out.push_str(&regex::escape(character.encode_utf8(&mut [0; 4])));
}

enum Escaped {
    Character(char),
    Class(&'static str),
    Assertion(char),
}

/// What follows a backslash.
fn escape(rest: &mut Peekable<Chars<'_>>) -> Option<Escaped> {
    Some(match rest.next()? {
        'd' => Escaped::Class("[0-9]"),
        'D' => Escaped::Class("(?u:[^0-9])"),
        's' => Escaped::Class("[\\t\\n\\f\\r ]"),
        'S' => Escaped::Class("(?u:[^\\t\\n\\f\\r ])"),
        'w' => Escaped::Class("[0-9A-Za-z_]"),
        'W' => Escaped::Class("(?u:[^0-9A-Za-z_])"),
        kind @ ('b' | 'B' | 'A' | 'z') => Escaped::Assertion(kind),
        'a' => Escaped::Character('\u{7}'),
        'f' => Escaped::Character('\u{c}'),
        't' => Escaped::Character('\t'),
        'n' => Escaped::Character('\n'),
        'r' => Escaped::Character('\r'),
        'v' => Escaped::Character('\u{b}'),
        'x' => Escaped::Character(hexadecimal(rest)?),
        // A digit alone would refer to a group, which Go has not.
        first @ '0'..='7' if first == '0' || matches!(rest.peek(), Some('0'..='7')) => {
            let mut value = first.to_digit(8)?;
            for _ in 0..2 {
                let Some(digit) = rest.peek().and_then(|digit| digit.to_digit(8)) else {
                    break;
                };
                rest.next();
                value = value * 8 + digit;
            }
            Escaped::Character(char::from_u32(value)?)
        }
        mark if mark.is_ascii() && !mark.is_ascii_alphanumeric() => Escaped::Character(mark),
        // `\p`, `\Q` and what Go does not know either.
        _ => return None,
    })
}

/// `\x41` or `\x{1F600}`.
fn hexadecimal(rest: &mut Peekable<Chars<'_>>) -> Option<char> {
    let digit = |rest: &mut Peekable<Chars<'_>>| rest.next()?.to_digit(16);
    if rest.peek() != Some(&'{') {
        let value = digit(rest)? * 16 + digit(rest)?;
        return char::from_u32(value);
    }
    rest.next();
    let mut value = 0u32;
    let mut digits = 0;
    while rest.peek() != Some(&'}') {
        value = value.checked_mul(16)?.checked_add(digit(rest)?)?;
        digits += 1;
    }
    rest.next();
    (digits > 0).then_some(value).and_then(char::from_u32)
}

/// A class, whose `[` is taken already.
fn class(rest: &mut Peekable<Chars<'_>>, out: &mut String) -> Option<()> {
    let mut items = String::new();
    let is_negated = rest.next_if_eq(&'^').is_some();
    let mut is_first = true;
    while is_first || rest.peek() != Some(&']') {
        is_first = false;
        if let Some(name) = named(rest)? {
            items.push_str(&name);
            continue;
        }
        let low = match class_character(rest)? {
            Ok(character) => character,
            Err(class) => {
                items.push_str(class);
                continue;
            }
        };
        let mut high = low;
        let mut ahead = rest.clone();
        if ahead.next() == Some('-') && ahead.peek().is_some_and(|next| *next != ']') {
            rest.next();
            high = class_character(rest)?.ok()?;
        }
        if high < low {
            return None;
        }
        for (bound, dash) in [(low, "-"), (high, "")] {
            items.push_str(&format!("\\x{{{:X}}}{dash}", u32::from(bound)));
        }
    }
    rest.next();
    let sign = if is_negated { "^" } else { "" };
    out.push_str(&format!("(?u:[{sign}{items}])"));
    Some(())
}

/// One character of a class, or a class that an escape stands for.
fn class_character(rest: &mut Peekable<Chars<'_>>) -> Option<Result<char, &'static str>> {
    match rest.next()? {
        '\\' => match escape(rest)? {
            Escaped::Character(character) => Some(Ok(character)),
            Escaped::Class("(?u:[^0-9])") => Some(Err("[^0-9]")),
            Escaped::Class("(?u:[^\\t\\n\\f\\r ])") => Some(Err("[^\\t\\n\\f\\r ]")),
            Escaped::Class("(?u:[^0-9A-Za-z_])") => Some(Err("[^0-9A-Za-z_]")),
            Escaped::Class(class) => Some(Err(class)),
            Escaped::Assertion(_) => None,
        },
        other => Some(Ok(other)),
    }
}

/// `[:name:]` or `[:^name:]`; `None` inside where the next is none. A name that is not known is refused.
#[expect(clippy::option_option, reason = "refused, not there, there")]
fn named(rest: &mut Peekable<Chars<'_>>) -> Option<Option<String>> {
    const NAMES: [&str; 14] = [
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
        "upper", "word", "xdigit",
    ];
    let mut ahead = rest.clone();
    if ahead.next() != Some('[') || ahead.next() != Some(':') {
        return Some(None);
    }
    let text: String = ahead.collect();
    let Some(end) = text.find(":]") else {
        return Some(None);
    };
    let name = &text[..end];
    if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
        return None;
    }
    for _ in 0..name.chars().count() + "[::]".len() {
        rest.next();
    }
    Some(Some(format!("[:{name}:]")))
}
