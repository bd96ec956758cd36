//! Bytes to logical lines: continuations joined, comments taken out, heredocs attached.

use llb::{Position, Range};

use crate::error::Error;
use crate::parse::arguments;
use crate::parse::ast::Heredoc;
use crate::parse::directives::Directives;
use crate::parse::heredoc;

pub(crate) const BOM: &[u8] = b"\xef\xbb\xbf";
/// How long one line may be, as in BuildKit.
const MAX_LINE_BYTES: usize = 64 << 10;

/// A file taken apart.
pub(super) struct File {
    pub(super) lines: Vec<Line>,
    pub(super) escape: char,
    /// Where an empty line stands inside an instruction.
    pub(super) empty_continuations: Vec<Range>,
}

/// One instruction as text.
pub(super) struct Line {
    pub(super) text: String,
    pub(super) heredocs: Vec<Heredoc>,
    /// The comments right above it.
    pub(super) comments: Vec<String>,
    first: i32,
    last: i32,
}

impl Line {
    /// One range for each line of the file.
    pub(super) fn ranges(&self) -> Vec<Range> {
        (self.first..=self.last.max(self.first)).map(one_line).collect()
    }
}

fn one_line(line: i32) -> Range {
    let position = Position { line, character: 0 };
    Range {
        start: position,
        end: position,
    }
}

/// Reads the lines of a file.
struct Reader<'a> {
    lines: Vec<&'a [u8]>,
    at: usize,
    escape: char,
    directives: Directives,
}

impl<'a> Reader<'a> {
    /// The next line, with its end.
    fn next(&mut self) -> Result<Option<&'a [u8]>, Error> {
        let Some(line) = self.lines.get(self.at) else {
            return Ok(None);
        };
        self.at += 1;
        if line.len() > MAX_LINE_BYTES {
            let error = Error::invalid(format!(
                "the line has {} bytes; the limit is {MAX_LINE_BYTES}",
                line.len()
            ));
            return Err(error.at(&[self.here()]));
        }
        Ok(Some(line))
    }

    fn number(&self) -> i32 {
        i32::try_from(self.at).unwrap_or(i32::MAX)
    }

    fn here(&self) -> Range {
        one_line(self.number())
    }

    /// Obeys a directive in the line; says whether it was one.
    fn obey(&mut self, line: &str) -> Result<bool, Error> {
        let here = self.here();
        match self.directives.line(line).map_err(|error| error.at(&[here]))? {
            None => Ok(false),
            Some((name, value)) if name == "escape" => match value.as_str() {
                "\\" => Ok(true),
                "`" => {
                    self.escape = '`';
                    Ok(true)
                }
                _ => Err(
                    Error::invalid(format!("invalid escape token '{value}' does not match ` or \\"))
                        .at(&[here]),
                ),
            },
            Some(_) => Ok(true),
        }
    }

    /// Without the continuation character at its end, and whether there was one.
    fn continued<'t>(&self, line: &'t str) -> (&'t str, bool) {
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.escape) {
            Some(before) if !before.ends_with(self.escape) => (before, true),
            _ => (line, false),
        }
    }
}

/// Takes a file apart.
pub(super) fn split(bytes: &[u8]) -> Result<File, Error> {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let mut reader = Reader {
        lines: bytes.split_inclusive(|byte| *byte == b'\n').collect(),
        at: 0,
        escape: '\\',
        directives: Directives::new("#"),
    };
    let mut file = File {
        lines: Vec::new(),
        escape: '\\',
        empty_continuations: Vec::new(),
    };
    let mut comments: Vec<String> = Vec::new();
    while let Some(raw) = reader.next()? {
        let line = text(raw).trim_start().to_owned();
        if line.starts_with('#') {
            // The first byte is taken for the comment sign even when it is a blank before it.
            let comment = text(raw.get(1..).unwrap_or_default()).trim().to_owned();
            if comment.is_empty() {
                comments.clear();
            } else {
                comments.push(comment);
            }
            if reader.obey(&line)? {
                comments.pop();
            }
            continue;
        }
        reader.obey(&line)?;
        let first = reader.number();
        let (line, is_continued) = reader.continued(&line);
        if line.is_empty() && !is_continued {
            continue;
        }
        let (whole, has_empty) = join(&mut reader, line.to_owned(), is_continued)?;
        if has_empty {
            file.empty_continuations.push(reader.here());
        }
        let mut joined = Line {
            text: whole,
            heredocs: Vec::new(),
            comments: std::mem::take(&mut comments),
            first,
            last: 0,
        };
        joined.last = reader.number();
        arguments::check(&joined.text, reader.escape)
            .map_err(|reason| Error::invalid(reason).at(&joined.ranges()))?;
        attach_heredocs(&mut reader, &mut joined)?;
        file.lines.push(joined);
    }
    if file.lines.is_empty() {
        let error = Error::invalid("file with no instructions");
        return Err(match reader.number() {
            0 => error,
            _ => error.at(&[reader.here()]),
        });
    }
    file.escape = reader.escape;
    Ok(file)
}

/// A line without its end.
fn text(raw: &[u8]) -> String {
    String::from_utf8_lossy(raw)
        .trim_end_matches(['\r', '\n'])
        .to_owned()
}

/// Appends the lines that continue this one; says whether one of them was empty.
fn join(reader: &mut Reader<'_>, mut whole: String, mut is_continued: bool) -> Result<(String, bool), Error> {
    let mut has_empty = false;
    while is_continued {
        let Some(raw) = reader.next()? else { break };
        let line = text(raw);
        if line.trim_start().starts_with('#') {
            continue;
        }
        if line.trim_start().is_empty() {
            has_empty = true;
            continue;
        }
        let (part, continues) = reader.continued(&line);
        whole.push_str(part);
        is_continued = continues;
    }
    Ok((whole, has_empty))
}

/// Reads the bodies of the heredocs that the line announces.
fn attach_heredocs(reader: &mut Reader<'_>, line: &mut Line) -> Result<(), Error> {
    if !line.text.contains("<<") || !may_have_heredocs(&line.text, reader.escape) {
        return Ok(());
    }
    for mut doc in heredoc::announced(&line.text).map_err(|error| error.at(&line.ranges()))? {
        let mut body = Vec::new();
        loop {
            let Some(raw) = reader.next()? else {
                line.last = reader.number();
                return Err(Error::invalid("unterminated heredoc").at(&line.ranges()));
            };
            let end = text(raw);
            let end = if doc.is_chomped {
                end.trim_start_matches('\t')
            } else {
                &end
            };
            if end == doc.name {
                break;
            }
            body.extend_from_slice(raw);
        }
        match String::from_utf8(body) {
            Ok(text) => doc.data = text,
            Err(error) => {
                doc.data = String::from_utf8_lossy(error.as_bytes()).into_owned();
                doc.raw = Some(error.into_bytes());
            }
        }
        line.heredocs.push(doc);
    }
    line.last = reader.number();
    Ok(())
}

/// Only RUN, COPY and ADD have heredocs (under ONBUILD too), and not in JSON form.
fn may_have_heredocs(line: &str, escape: char) -> bool {
    let Ok(mut split) = arguments::split(line, escape) else {
        return false;
    };
    if split.keyword.eq_ignore_ascii_case("ONBUILD")
        && let Ok(inner) = arguments::split(&split.rest, escape)
    {
        split = inner;
    }
    let is_one = ["RUN", "COPY", "ADD"]
        .iter()
        .any(|name| split.keyword.eq_ignore_ascii_case(name));
    is_one && !matches!(arguments::json(&split.rest), arguments::Json::Words(_))
}
