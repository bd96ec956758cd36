//! Images that a Dockerfile names and where it does, for writing their digests there.
//!
//! ```text
//! bytes ─▶ parse ─▶ bases (image, line, place in bytes) ─▶ (caller resolves) ─▶ replace ─▶ bytes
//! ```
//!
//! Only names are touched, in FROM, COPY --from and RUN --mount=from; everything else of the file stays as it is.
//! Places come from our own parser, which reads every file that BuildKit reads. Names of FROM that `dockerfile-parser`
//! sees at the same place are written by its splicer, others by us.

use std::ops::Range;

use oci::Reference;

use crate::error::Error;
use crate::lint::Lint;
use crate::parse::ast::Kind;
use crate::parse::parse;
use crate::parse::place::{Place, Places, Token};

/// An image, stage or context that an instruction takes from.
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

/// What the instructions of a Dockerfile take from, in order; names in `contexts` are named contexts.
///
/// # Errors
/// The file cannot be read, or a base is no image name.
pub fn bases(bytes: &[u8], contexts: &[String]) -> Result<Vec<Base>, Error> {
    let dockerfile = parse(bytes, &Lint::silent())?;
    let mut finder = Finder {
        contexts,
        escape: dockerfile.escape,
        starts: line_starts(bytes),
        stages: Vec::new(),
        found: Vec::new(),
    };
    let names = dockerfile.stages.iter().map(|stage| stage.name.as_str());
    let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    for stage in &dockerfile.stages {
        let word = stage.places.words().next();
        let place = word.map(|word| word.place()).unwrap_or_default();
        finder.name(&stage.base, &stage.places, place, &stage.ranges)?;
        for instruction in &stage.instructions {
            for (flag, name) in froms(&instruction.kind) {
                let is_stage =
                    name.parse::<u32>().is_ok() || names.iter().any(|known| known.eq_ignore_ascii_case(name));
                if !is_stage {
                    let place = finder.place_in_flags(&instruction.places, flag, name);
                    finder.name(name, &instruction.places, place, &instruction.ranges)?;
                }
            }
        }
        finder.stages.push(&stage.name);
    }
    Ok(finder.found)
}

/// The flags of an instruction that take from something, and what they name.
fn froms(kind: &Kind) -> Vec<(&'static str, &str)> {
    match kind {
        Kind::Copy(copy) if !copy.from.is_empty() => vec![("--from=", &copy.from)],
        Kind::Run(run) => {
            let named = run.mounts_from.iter().filter(|from| !from.is_empty());
            named.map(|from| ("--mount=", from.as_str())).collect()
        }
        _ => Vec::new(),
    }
}

struct Finder<'a> {
    contexts: &'a [String],
    escape: char,
    starts: Vec<usize>,
    /// Names of the stages so far, empty for those without.
    stages: Vec<&'a str>,
    found: Vec<Base>,
}

impl Finder<'_> {
    /// Where a flag says `from=<name>` that was not found before.
    fn place_in_flags(&self, places: &Places, flag: &str, name: &str) -> Place {
        let wanted = format!("from={name}");
        let is_new = |place: &Place| {
            let is_it = |base: &Base| match &base.what {
                BaseKind::Image { place: known, .. } => place.single().as_ref() == Some(known),
                _ => false,
            };
            !self.found.iter().rev().any(is_it)
        };
        let in_flag = |token: Token<'_>| {
            let at = token.text.match_indices(&wanted).map(|(at, _)| at).find(|at| {
                let before = token.text[..*at].chars().next_back();
                let behind = token.text[at + wanted.len()..].chars().next();
                matches!(before, Some('-' | ',' | '=' | '"' | '\''))
                    && matches!(behind, None | Some(',' | '"' | '\''))
            })?;
            Some(token.part(at + "from=".len()..at + wanted.len()))
        };
        let flags = places.flags().filter(|token| token.text.starts_with(flag));
        flags.filter_map(in_flag).find(is_new).unwrap_or_default()
    }

    fn name(
        &mut self,
        written: &str,
        places: &Places,
        place: Place,
        ranges: &[llb::Range],
    ) -> Result<(), Error> {
        let is = |name: &str| !name.is_empty() && name.eq_ignore_ascii_case(written);
        let is_known = written == "scratch"
            || self.stages.iter().any(|name| is(name))
            || self.contexts.iter().any(|name| is(name));
        let what = if is_known {
            BaseKind::NoImage
        } else if written.contains(['$', '"', '\'', self.escape]) {
            BaseKind::Variable
        } else {
            let reference = Reference::parse_normalized(written)
                .map_err(|error| Error::invalid(error.to_string()).at(ranges))?;
            match place.single() {
                Some(place) => BaseKind::Image { reference, place },
                None => BaseKind::Scattered,
            }
        };
        let start = place.start().or_else(|| places.keyword().place().start());
        self.found.push(Base {
            written: written.to_owned(),
            line: self.starts.partition_point(|begin| Some(*begin) <= start),
            what,
        });
        Ok(())
    }
}

/// The file with other texts in some places, which do not overlap.
#[must_use]
pub fn replace(bytes: &[u8], texts: &[(Range<usize>, String)]) -> Vec<u8> {
    let mut texts: Vec<_> = texts.iter().collect();
    texts.sort_by_key(|(place, _)| place.start);
    if let Some(spliced) = spliced(bytes, &texts) {
        return spliced;
    }
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    for (place, text) in texts {
        out.extend_from_slice(&bytes[at..place.start]);
        out.extend_from_slice(text.as_bytes());
        at = place.end;
    }
    out.extend_from_slice(&bytes[at..]);
    out
}

/// The largest file that is given to `dockerfile-parser`, in bytes; its grammar backtracks.
const MAX_SPLICED_BYTES: usize = 64 << 10;

/// As [`replace`], by `dockerfile-parser`; `None` where it does not read the file or sees names elsewhere.
fn spliced(bytes: &[u8], texts: &[&(Range<usize>, String)]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?;
    // It takes a BOM for text, and knows one escape character only.
    if bytes.len() > MAX_SPLICED_BYTES || text.starts_with('\u{feff}') || text.contains('`') {
        return None;
    }
    let dockerfile = dockerfile_parser::Dockerfile::parse(text).ok()?;
    let instructions = dockerfile.instructions.iter();
    let images: Vec<dockerfile_parser::Span> = instructions
        .filter_map(|instruction| Some(instruction.as_from()?.image.span))
        .collect();
    let spans: Option<Vec<_>> = texts
        .iter()
        .map(|(place, _)| images.iter().find(|span| (span.start..span.end) == *place))
        .collect();
    let mut splicer = dockerfile.splicer();
    for (span, (_, text)) in spans?.into_iter().zip(texts) {
        splicer.splice(span, text);
    }
    Some(splicer.content.into_bytes())
}

/// Where each line begins.
fn line_starts(bytes: &[u8]) -> Vec<usize> {
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect()
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
                "# alpine\nFROM \\\n # alpine\n  --platform=$BUILDPLATFORM \\\n alpine\\\n AS a\nCOPY --from=a / /",
                "# alpine\nFROM \\\n # alpine\n  --platform=$BUILDPLATFORM \\\n alpine!\\\n AS a\nCOPY --from=a / /",
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
    fn names_of_flags_are_places_too() {
        for (text, expected) in [
            (
                "FROM a AS b\nFROM b\nCOPY --link --from=x:1 --chown=1 / /\nCOPY --from=B / /\nCOPY --from=0 / /\nFROM c",
                "FROM a! AS b\nFROM b\nCOPY --link --from=x:1! --chown=1 / /\nCOPY --from=B / /\nCOPY --from=0 / /\nFROM c!",
            ),
            (
                "FROM a\nRUN --mount=from=x,target=/x \\\n --mount=target=/y,type=bind,from=x \\\n# from=x\n --mount=\"from=ctx\" --mount='target=/f,from=y/z' x",
                "FROM a!\nRUN --mount=from=x!,target=/x \\\n --mount=target=/y,type=bind,from=x! \\\n# from=x\n --mount=\"from=ctx\" --mount='target=/f,from=y/z!' x",
            ),
            (
                "FROM a\nCOPY --from=x\\\ny / /",
                "FROM a!\nCOPY --from=x\\\ny / /",
            ),
            ("FROM a\nCOPY --from=\"x\" / /", "FROM a!\nCOPY --from=\"x\" / /"),
        ] {
            assert_eq!(marked(text), expected);
        }
    }

    #[test]
    fn both_ways_of_writing_agree() {
        let text = "# c\nFROM --platform=linux/amd64 alpine:3 AS a\nRUN x\nfrom b\n";
        let places = ["alpine:3", "b\n"].map(|name| {
            let at = text.find(name).expect("it is there");
            at..at + name.trim_end().len()
        });
        let texts: Vec<_> = places
            .map(|place| (place, "much/longer:name@sha256:0".to_owned()))
            .into();
        let refs: Vec<_> = texts.iter().collect();
        let spliced = spliced(text.as_bytes(), &refs).expect("it reads this file");
        let bom = format!("\u{feff}{text}");
        let shifted: Vec<_> = texts
            .iter()
            .map(|(at, text)| (at.start + 3..at.end + 3, text.clone()))
            .collect();
        assert_eq!(spliced, replace(bom.as_bytes(), &shifted)[3..]);
        assert_eq!(spliced, replace(text.as_bytes(), &texts));
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
