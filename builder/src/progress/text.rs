//! Makes a stranger's bytes harmless to a terminal, and measures them.
//!
//! | in a line | shown |
//! |---|---|
//! | a carriage return within | what stands after the last one, as a terminal would |
//! | colour (`ESC [ … m`) | as it is where colour is wanted, dropped where not |
//! | a tab | as it is |
//! | any other control character, C1 ones and direction overrides too | escaped: `\u{1b}` |
//! | bytes that are no UTF-8 | U+FFFD |

/// One line of output, harmless; `colour` keeps colours (and ends them).
pub fn plain_line(line: &[u8], colour: bool) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\n', '\r']);
    let text = text.rsplit('\r').find(|part| !part.is_empty()).unwrap_or("");
    let mut out = String::with_capacity(text.len());
    let mut coloured = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(sequence) = colour_sequence(rest) {
            if colour {
                out.push_str(sequence);
                coloured = true;
            }
            rest = &rest[sequence.len()..];
            continue;
        }
        push_harmless(&mut out, c);
        rest = &rest[c.len_utf8()..];
    }
    if coloured {
        out.push_str("\u{1b}[0m");
    }
    out
}

/// A name or message on one line: as [`plain_line`] without colour, but line ends are escaped as well.
pub(crate) fn plain_name(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(' '),
            '\n' => out.push_str("\\n"),
            c => push_harmless(&mut out, c),
        }
    }
    out
}

fn push_harmless(out: &mut String, c: char) {
    match c {
        '\t' => out.push(c),
        c if c.is_control() || is_override(c) => out.extend(c.escape_unicode()),
        c => out.push(c),
    }
}

/// Characters that turn the direction of what follows: they can make a line look like another.
fn is_override(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The colour sequence a text begins with, if it does.
fn colour_sequence(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("\u{1b}[")?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';' && c != ':')?;
    rest[end..].starts_with('m').then(|| &text[..2 + end + 1])
}

/// Columns a text takes in a terminal.
pub fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// The beginning of a text that fits into `limit` columns.
pub fn clip(text: &str, limit: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += columns(c);
        if used > limit {
            return &text[..at];
        }
    }
    text
}

/// Columns of one character: two for East Asian wide ones and pictures, none for combining ones.
fn columns(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200f | 0x20d0..=0x20ff | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_cannot_reach_the_terminal() {
        for (line, expected) in [
            (&b"plain"[..], "plain"),
            (b"10%\r20%\r30%\r", "30%"),
            (b"dos line\r\n", "dos line"),
            (b"\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            (b"\x1b[2J\x1b[H", "\\u{1b}[2J\\u{1b}[H"),
            (b"\x1b[31mred\x1b[0m", "red"),
            (b"a\tb\x00", "a\tb\\u{0}"),
            (b"\xff", "\u{fffd}"),
            ("\u{9b}31m\u{202e}".as_bytes(), "\\u{9b}31m\\u{202e}"),
            (b"", ""),
        ] {
            assert_eq!(plain_line(line, false), expected, "{line:?}");
        }
    }

    #[test]
    fn colours_are_kept_and_ended_where_they_are_wanted() {
        assert_eq!(plain_line(b"\x1b[1;31mred", true), "\x1b[1;31mred\x1b[0m");
        assert_eq!(plain_line(b"\x1b[31", true), "\\u{1b}[31");
    }

    #[test]
    fn clipping_counts_columns() {
        for (text, limit, expected) in [
            ("abc", 2, "ab"),
            ("abc", 3, "abc"),
            ("日本", 3, "日"),
            ("", 0, ""),
        ] {
            assert_eq!(clip(text, limit), expected);
        }
        assert_eq!(width("日本a"), 5);
    }
}
