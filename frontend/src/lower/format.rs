//! Texts of the image history, in the form Go gives them.

use std::fmt::Write as _;

/// `["a" "b"]`: quoted words.
pub(crate) fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("[{}]", words.join(" "))
}

/// `[a b]`: plain words.
pub(crate) fn plain(words: &[String]) -> String {
    format!("[{}]", words.join(" "))
}

/// `"a"`: as Go quotes a text.
pub(crate) fn quote(word: &str) -> String {
    let mut out = String::from('"');
    for c in word.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if c.is_ascii_control() => write!(out, "\\x{:02x}", c as u32).expect("a String grows"),
            c if c.is_control() || (c.is_whitespace() && c != ' ') || c == '\u{feff}' => {
                write!(out, "\\u{:04x}", c as u32).expect("a String grows");
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Nanoseconds as `1h2m3.5s`, `250ms`, `0s`.
pub(crate) fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    if total == 0 {
        return "0s".to_owned();
    }
    if total < 1_000_000_000 {
        let (unit, size) = match total {
            0..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            _ => ("ms", 1_000_000),
        };
        return format!("{sign}{}{unit}", decimal(total, size));
    }
    let seconds = decimal(total % 60_000_000_000, 1_000_000_000);
    let minutes = total / 60_000_000_000;
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

/// `value / size` without trailing zeros.
fn decimal(value: u64, size: u64) -> String {
    let (whole, rest) = (value / size, value % size);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = size.ilog10() as usize;
    let rest = format!("{rest:0digits$}");
    format!("{whole}.{}", rest.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::{duration, quoted};

    #[test]
    fn durations_and_quotes_look_like_go() {
        for (nanoseconds, expected) in [
            (0, "0s"),
            (90_000_000_000, "1m30s"),
            (250_000_000, "250ms"),
            (1_500_000, "1.5ms"),
            (3_600_000_000_000, "1h0m0s"),
            (1_010_000_000, "1.01s"),
            (12, "12ns"),
        ] {
            assert_eq!(duration(nanoseconds), expected);
        }
        assert_eq!(
            quoted(&["a b".into(), "x\"\n\u{1}é".into()]),
            "[\"a b\" \"x\\\"\\n\\x01é\"]"
        );
    }
}
