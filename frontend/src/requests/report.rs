//! How answers look: JSON as Go writes it, tables as its `tabwriter` aligns them.

use base64::Engine as _;
use llb::state::SourceMap;
use llb::{Position, Range, proto};
use oci::Digest;
use serde::Serialize;
use std::collections::BTreeMap;

use crate::lower::outline::{Needed, Outline};

/// The version of all answers' form.
pub(super) const VERSION: &str = "1.0.0";

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// For programs (`result.json`).
    pub json: String,
    /// For people (`result.txt`).
    pub text: String,
    /// 1 if something is wrong with the Dockerfile (`result.statuscode`); of `frontend.lint` only.
    pub status: Option<u8>,
}

impl Report {
    pub(super) fn new(value: &impl Serialize, text: String) -> Report {
        // Strings, numbers and lists of them.
        let json = serde_json::to_string_pretty(value).expect("it is JSON");
        let json = json
            .replace('&', "\\u0026")
            .replace('<', "\\u003c")
            .replace('>', "\\u003e");
        Report {
            json,
            text,
            status: None,
        }
    }

    /// The answer as metadata of a frontend's result.
    #[must_use]
    pub fn metadata(&self) -> BTreeMap<String, Vec<u8>> {
        let status = self
            .status
            .map(|status| ("result.statuscode", status.to_string()));
        let all = [
            ("result.json", self.json.clone()),
            ("result.txt", self.text.clone()),
            ("version", VERSION.to_owned()),
        ];
        let all = all.into_iter().chain(status);
        all.map(|(key, value)| (key.to_owned(), value.into_bytes()))
            .collect()
    }
}

pub(super) fn base64(data: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(data)
}

#[derive(Serialize)]
pub(super) struct Line {
    #[serde(skip_serializing_if = "is_zero")]
    line: i32,
}

fn is_zero(line: &i32) -> bool {
    *line == 0
}

#[derive(Serialize)]
struct Lines {
    start: Line,
    end: Line,
}

/// Lines of the one source.
#[derive(Serialize)]
pub(super) struct Location {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Lines>,
}

impl Location {
    pub(super) fn of(ranges: &[Range]) -> Location {
        let line = |position: Position| Line { line: position.line };
        let lines = |range: &Range| Lines {
            start: line(range.start),
            end: line(range.end),
        };
        Location {
            ranges: ranges.iter().map(lines).collect(),
        }
    }
}

#[derive(Serialize)]
struct Metadata {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ignore_cache: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    description: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    caps: BTreeMap<String, bool>,
}

/// The definition that loaded the file.
#[derive(Serialize)]
struct Definition {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    def: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, Metadata>,
    #[serde(rename = "Source", skip_serializing_if = "Option::is_none")]
    source: Option<SourceInfo>,
}

/// Vertices with their lines, of which these have none.
#[derive(Serialize)]
struct SourceInfo {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    locations: BTreeMap<String, Location>,
}

/// The Dockerfile.
#[derive(Serialize)]
pub(super) struct Source<'a> {
    filename: &'a str,
    data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<Definition>,
    language: &'a str,
}

impl<'a> Source<'a> {
    pub(super) fn of(map: &'a SourceMap) -> Source<'a> {
        let definition = map.definition.as_ref().map(|definition| {
            let wire = definition.to_proto();
            // The last is no vertex: it says which is the result.
            let vertices = wire.def.split_last().map_or(&[][..], |(_, vertices)| vertices);
            let vertices: Vec<String> = vertices.iter().map(|op| Digest::of(op).to_string()).collect();
            let metadata = |(digest, metadata): (String, proto::OpMetadata)| {
                let shown = Metadata {
                    ignore_cache: metadata.ignore_cache,
                    description: metadata.description,
                    caps: metadata.caps,
                };
                (digest, shown)
            };
            Definition {
                def: wire.def.iter().map(|op| base64(op)).collect(),
                metadata: wire.metadata.into_iter().map(metadata).collect(),
                // It comes from no file, and every vertex is named as one without lines.
                source: wire.source.map(|_| SourceInfo {
                    locations: vertices
                        .into_iter()
                        .map(|vertex| (vertex, Location::of(&[])))
                        .collect(),
                }),
            }
        });
        Source {
            filename: &map.filename,
            data: base64(&map.data),
            definition,
            language: &map.language,
        }
    }
}

/// Rows with their columns aligned, `padding` blanks between; the last column as it is.
pub(super) fn table<const N: usize>(rows: &[[String; N]], padding: usize) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N)
        .map(|column| width(column).unwrap_or(0) + padding)
        .collect();
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if column + 1 < N {
                let blanks = widths[column] - cell.chars().count();
                out.extend(std::iter::repeat_n(' ', blanks));
            }
        }
        out.push('\n');
    }
    out
}

/// The lines that are meant, marked, with some around them.
pub(super) fn excerpt(source: &SourceMap, ranges: &[Range]) -> String {
    let text = String::from_utf8_lossy(&source.data);
    let lines: Vec<&str> = text.split('\n').collect();
    let number = |line: i32| usize::try_from(line).unwrap_or_default();
    let ends = |range: &Range| {
        (
            number(range.start.line),
            number(range.end.line.max(range.start.line)),
        )
    };
    let all: Vec<(usize, usize)> = ranges.iter().map(ends).collect();
    let (Some(first), Some(last)) = (
        all.iter().map(|(start, _)| *start).min(),
        all.iter().map(|(_, end)| *end).max(),
    ) else {
        return String::new();
    };
    if first < 1 || first > lines.len() {
        return String::new();
    }
    let last = last.min(lines.len());
    let around = if first == last { 2 } else { 1 };
    let mut out = format!("{}:{first}\n--------------------\n", source.filename);
    for at in first.saturating_sub(around).max(1)..=(last + around).min(lines.len()) {
        let is_meant = all.iter().any(|(start, end)| (*start..=*end).contains(&at));
        let mark = if is_meant { ">>>" } else { "   " };
        out += &format!(" {at:3} | {mark} {}\n", lines[at - 1]);
    }
    out + "--------------------\n"
}

#[derive(Serialize)]
struct Argument<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    value: &'a str,
    location: Location,
}

#[derive(Serialize)]
struct Needs<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Location,
}

#[derive(Serialize)]
struct Parameters<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Argument<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<Needs<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<Needs<'a>>,
    sources: [String; 1],
}

/// What a target can be given.
pub(super) fn outline(outline: &Outline, data: &[u8]) -> Report {
    let mut text = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = match outline.name.as_str() {
            "" => "(default)",
            name => name,
        };
        let mut rows = vec![["TARGET:".to_owned(), name.to_owned()]];
        if !outline.description.is_empty() {
            rows.push(["DESCRIPTION:".to_owned(), outline.description.clone()]);
        }
        text += &table(&rows, 1);
        text.push('\n');
    }
    if !outline.args.is_empty() {
        let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned)];
        let row = |arg: &crate::lower::outline::Argument| {
            [arg.name.clone(), arg.value.clone(), arg.description.clone()]
        };
        rows.extend(outline.args.iter().map(row));
        text += &table(&rows, 3);
        text.push('\n');
    }
    for (heading, needed) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if needed.is_empty() {
            continue;
        }
        let mut rows = vec![[heading.to_owned(), "REQUIRED".to_owned()]];
        rows.extend(needed.iter().map(|one| {
            let required = if one.is_required { "true" } else { "" };
            [one.id.clone(), required.to_owned()]
        }));
        text += &table(&rows, 3);
        text.push('\n');
    }
    let parameters = Parameters {
        name: &outline.name,
        description: &outline.description,
        args: outline
            .args
            .iter()
            .map(|arg| Argument {
                name: &arg.name,
                description: &arg.description,
                value: &arg.value,
                location: Location::of(&arg.ranges),
            })
            .collect(),
        secrets: outline.secrets.iter().map(needed).collect(),
        ssh: outline.ssh.iter().map(needed).collect(),
        sources: [base64(data)],
    };
    Report::new(&parameters, text)
}

fn needed(one: &Needed) -> Needs<'_> {
    Needs {
        name: &one.id,
        required: one.is_required,
        location: Location::of(&one.ranges),
    }
}
