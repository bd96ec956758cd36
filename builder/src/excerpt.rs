//! Lines of a Dockerfile with the ones that are meant marked.
//!
//! ```text
//! Dockerfile:5
//! --------------------
//!    3 |     RUN a
//!    4 |     RUN b
//!    5 | >>> RUN exit 7
//! --------------------
//! ```
use crate::progress::plain_line;
use std::fmt::Write;
use std::ops::RangeInclusive;

/// The lines `hits` (counted from 1) of a file, with some around them; empty if the file has no such line.
pub fn excerpt(filename: &str, data: &[u8], hits: &[RangeInclusive<usize>]) -> String {
    let lines: Vec<&[u8]> = data.split(|&byte| byte == b'\n').collect();
    let is_inside = |range: &&RangeInclusive<usize>| *range.start() >= 1 && *range.start() <= lines.len();
    let hits: Vec<&RangeInclusive<usize>> = hits.iter().filter(is_inside).collect();
    let (Some(first), Some(last)) = (
        hits.iter().map(|range| *range.start()).min(),
        hits.iter().map(|range| *range.end()).max(),
    ) else {
        return String::new();
    };
    let last = last.clamp(first, lines.len());
    let around = if first == last { 2 } else { 1 };
    let shown = first.saturating_sub(around).max(1)..=(last + around).min(lines.len());
    let mut out = format!(
        "{}:{first}\n--------------------\n",
        plain_line(filename.as_bytes(), false)
    );
    for number in shown {
        let mark = if hits.iter().any(|range| range.contains(&number)) {
            ">>>"
        } else {
            "   "
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{number:4} | {mark} {}",
            shortened(&plain_line(lines[number - 1], false))
        );
    }
    out.push_str("--------------------\n");
    out
}

/// Nobody reads further, and a terminal should not have to show it.
const MAX_COLUMNS: usize = 500;

fn shortened(line: &str) -> String {
    match crate::progress::clip(line, MAX_COLUMNS) {
        whole if whole.len() == line.len() => whole.to_owned(),
        cut => format!("{cut} …"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"FROM a\n\nRUN a\nRUN b\nRUN exit 7\n";

    #[test]
    fn the_line_is_marked_and_stands_among_others() {
        let expected = "\
Dockerfile:5
--------------------
   3 |     RUN a
   4 |     RUN b
   5 | >>> RUN exit 7
   6 |     \n--------------------
";
        assert_eq!(excerpt("Dockerfile", FILE, &[5..=5]), expected);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let file = format!("FROM a\nRUN {}\n", "x".repeat(70_000));
        let shown = excerpt("Dockerfile", file.as_bytes(), &[2..=2]);
        assert!(shown.len() < 1000 && shown.contains("xxx …\n"), "{}", shown.len());
    }

    #[test]
    fn ranges_out_of_the_file_are_no_panic() {
        assert_eq!(excerpt("Dockerfile", FILE, &[]), "");
        assert_eq!(excerpt("Dockerfile", FILE, &[0..=0]), "");
        assert_eq!(excerpt("Dockerfile", FILE, &[9..=10]), "");
        assert!(excerpt("Dockerfile", FILE, &[6..=usize::MAX]).contains("   6 | >>>"));
        assert!(excerpt("Dockerfile", b"\x1b[2J", &[1..=1]).contains("\\u{1b}[2J"));
    }
}
