//! Base images and where in the file they are named, for writing their digests there.
//!
//! ```text
//! bytes ─▶ parse ─▶ bases (image, line, place in bytes) ─▶ (caller resolves) ─▶ replace ─▶ bytes
//! ```
//!
//! Only names of FROM are touched, byte for byte between blanks; everything else of the file stays as it is.

use std::ops::Range;

use oci::Reference;

use crate::error::Error;
use crate::lint::Lint;
use crate::parse::parse;

/// What a FROM stands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Base {
    /// The name as it is written.
    pub written: String,
    /// The line it stands in, from 1.
    pub line: usize,
    /// What it is.
    pub what: BaseKind,
}

/// What a base is to somebody who wants it pinned.
#[derive(Clone, Debug, PartialEq)]
pub enum BaseKind {
    /// An image, and its place in the file's bytes.
    Image {
        /// What the name means.
        reference: Reference,
        /// Where it stands.
        place: Range<usize>,
    },
    /// `scratch`, a stage above or a named context: nothing to pin.
    NoImage,
    /// Worth what variables say.
    Variable,
    /// Not written in one piece, so that it cannot be replaced.
    Scattered,
}

/// The bases of a Dockerfile, in order; names in `contexts` are named contexts.
///
/// # Errors
/// The file cannot be read, or a base is no image name.
pub fn bases(bytes: &[u8], contexts: &[String]) -> Result<Vec<Base>, Error> {
    let dockerfile = parse(bytes, &Lint::silent())?;
    let starts = line_starts(bytes);
    let mut stages: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for stage in &dockerfile.stages {
        let lines = lines_of(&stage.ranges);
        let lower = stage.base.to_lowercase();
        let place = place(bytes, &starts, lines.clone(), &stage.base, dockerfile.escape);
        let what = if stage.base == "scratch"
            || stages.contains(&lower.as_str())
            || contexts.iter().any(|name| name.eq_ignore_ascii_case(&stage.base))
        {
            BaseKind::NoImage
        } else if stage.base.contains(['$', '"', '\'', dockerfile.escape]) {
            BaseKind::Variable
        } else {
            let reference = Reference::parse_normalized(&stage.base)
                .map_err(|error| Error::invalid(error.to_string()).at(&stage.ranges))?;
            match &place {
                Some((place, _)) => BaseKind::Image {
                    reference,
                    place: place.clone(),
                },
                None => BaseKind::Scattered,
            }
        };
        found.push(Base {
            written: stage.base.clone(),
            line: place.map_or(lines.start, |(_, line)| line),
            what,
        });
        if !stage.name.is_empty() {
            stages.push(&stage.name);
        }
    }
    Ok(found)
}

/// The file with other texts in some places, which do not overlap.
#[must_use]
pub fn replace(bytes: &[u8], texts: &[(Range<usize>, String)]) -> Vec<u8> {
    let mut texts: Vec<_> = texts.iter().collect();
    texts.sort_by_key(|(place, _)| place.start);
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    for (place, text) in texts {
        out.extend_from_slice(&bytes[at..place.start]);
        out.extend_from_slice(text.as_bytes());
        at = place.end;
    }
    out.extend_from_slice(&bytes[at..]);
    out
}

/// From the first to behind the last line, counted from 1.
fn lines_of(ranges: &[llb::Range]) -> Range<usize> {
    let number = |line: i32| usize::try_from(line).unwrap_or_default();
    let first = ranges.first().map_or(0, |range| number(range.start.line));
    first..ranges.last().map_or(first, |range| number(range.end.line)) + 1
}

/// Where each line begins, and the end.
fn line_starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![0];
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        starts.push(starts[starts.len() - 1] + line.len());
    }
    starts
}

/// The first word behind the keyword that is `wanted`: its bytes and its line.
fn place(
    bytes: &[u8],
    starts: &[usize],
    lines: Range<usize>,
    wanted: &str,
    escape: char,
) -> Option<(Range<usize>, usize)> {
    let mut is_behind_keyword = false;
    for number in lines {
        let (start, end) = (*starts.get(number.checked_sub(1)?)?, *starts.get(number)?);
        let line = &bytes[start..end];
        if is_behind_keyword && line.trim_ascii_start().starts_with(b"#") {
            continue;
        }
        let mut at = start;
        for word in line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c)) {
            let from = at;
            at += word.len() + 1;
            let is_last = bytes[from + word.len()..end].trim_ascii().is_empty();
            let word = match word.split_last() {
                Some((last, rest)) if is_last && char::from(*last) == escape => rest,
                _ => word,
            };
            if word.is_empty() {
                continue;
            }
            if is_behind_keyword && word == wanted.as_bytes() {
                return Some((from..from + word.len(), number));
            }
            is_behind_keyword = true;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file with `!` behind each image that can be pinned.
    fn marked(text: &str) -> String {
        let bases = bases(text.as_bytes(), &["ctx".to_owned()]).expect(text);
        let places: Vec<_> = bases
            .into_iter()
            .filter_map(|base| match base.what {
                BaseKind::Image { place, .. } => Some((place, format!("{}!", base.written))),
                _ => None,
            })
            .collect();
        String::from_utf8(replace(text.as_bytes(), &places)).expect("text")
    }

    #[test]
    fn only_names_of_images_are_places() {
        for (text, expected) in [
            ("FROM alpine", "FROM alpine!"),
            (
                "\u{feff}from\talpine:3 as alpine\r\nFROM ALPINE\r\n",
                "\u{feff}from\talpine:3! as alpine\r\nFROM ALPINE\r\n",
            ),
            (
                "FROM --platform=from from AS from\nRUN from",
                "FROM --platform=from from! AS from\nRUN from",
            ),
            (
                "# alpine\nFROM \\\n # alpine\n  --platform=$BUILDPLATFORM \\\n alpine\\\n AS a\nCOPY --from=alpine / /",
                "# alpine\nFROM \\\n # alpine\n  --platform=$BUILDPLATFORM \\\n alpine!\\\n AS a\nCOPY --from=alpine / /",
            ),
            (
                "# escape=`\nFROM `\nx:1`\n as b",
                "# escape=`\nFROM `\nx:1!`\n as b",
            ),
            (
                "ARG V=1\nFROM alpine:$V\nFROM scratch\nFROM ctx",
                "ARG V=1\nFROM alpine:$V\nFROM scratch\nFROM ctx",
            ),
            ("FROM a AS b\nFROM b\nFROM c", "FROM a! AS b\nFROM b\nFROM c!"),
            (
                "FROM a\nRUN <<E\nFROM b\nE\nFROM b",
                "FROM a!\nRUN <<E\nFROM b\nE\nFROM b!",
            ),
        ] {
            assert_eq!(marked(text), expected);
        }
    }

    #[test]
    fn what_cannot_be_pinned_says_why() {
        let text = "FROM $A\nFROM alp\\\nine\nFROM scratch\nFROM --platform=linux/arm64 \\\n b:1";
        let found = bases(text.as_bytes(), &[]).expect("fine");
        let lines: Vec<usize> = found.iter().map(|base| base.line).collect();
        assert_eq!(lines, [1, 2, 4, 6]);
        assert_eq!(found[0].what, BaseKind::Variable);
        assert_eq!(found[1].what, BaseKind::Scattered);
        assert_eq!(found[2].what, BaseKind::NoImage);
        assert!(matches!(&found[3].what, BaseKind::Image { place, .. } if &text[place.clone()] == "b:1"));
        let error = bases(b"FROM x\nFROM Upper/Case", &[]).expect_err("no name");
        assert_eq!(error.ranges[0].start.line, 2);
    }
}
