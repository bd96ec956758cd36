//! `?` and `*` in `${a#pattern}` and its kin.

use regex::Regex;

/// Without the beginning that matches.
pub(super) fn without_prefix(pattern: &str, value: &str, is_greedy: bool) -> Result<String, String> {
    let regex = compile(pattern, is_greedy, true)?;
    Ok(regex
        .find(value)
        .map_or(value, |found| &value[found.end()..])
        .to_owned())
}

/// Without the end that matches: the same from behind, because a search finds the leftmost match first.
pub(super) fn without_suffix(pattern: &str, value: &str, is_greedy: bool) -> Result<String, String> {
    let value: String = value.chars().rev().collect();
    Ok(without_prefix(&reversed(pattern), &value, is_greedy)?
        .chars()
        .rev()
        .collect())
}

/// With the first or every match replaced.
pub(super) fn replace(pattern: &str, value: &str, replacement: &str, is_all: bool) -> Result<String, String> {
    let regex = compile(pattern, true, false)?;
    if is_all {
        return Ok(regex.replace_all(value, replacement).into_owned());
    }
    Ok(match regex.find(value) {
        Some(found) => format!(
            "{}{replacement}{}",
            &value[..found.start()],
            &value[found.end()..]
        ),
        None => value.to_owned(),
    })
}

/// The pattern from behind, escapes still before what they escape.
fn reversed(pattern: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let mut part = String::from(c);
        if c == '\\' {
            part.extend(chars.next());
        }
        parts.push(part);
    }
    parts.into_iter().rev().collect()
}

fn compile(pattern: &str, is_greedy: bool, is_anchored: bool) -> Result<Regex, String> {
    let mut out = String::from(if is_anchored { "^" } else { "" });
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => out.push_str(if is_greedy { ".*" } else { ".*?" }),
            '?' => out.push('.'),
            // `}` and `/` are escaped for the substitution's sake, not for the pattern's.
            '\\' if matches!(chars.peek(), Some('}' | '/')) => {}
            '\\' => match chars.next() {
                Some(escaped @ ('*' | '?' | '\\')) => out.push_str(&regex::escape(&escaped.to_string())),
                escaped => {
                    let escaped = escaped.map_or_else(String::new, String::from);
                    return Err(format!("invalid escape \\{escaped} in pattern {pattern:?}"));
                }
            },
            c => out.push_str(&regex::escape(&c.to_string())),
        }
    }
    Regex::new(&out).map_err(|_| format!("invalid pattern {pattern:?}"))
}
