//! Bytes to logical lines: continuations joined, comments taken out, heredocs attached.

use std::ops::Range;
use std::sync::Arc;

use llb::Position;

use crate::error::Error;
use crate::parse::arguments;
use crate::parse::ast::Heredoc;
use crate::parse::directives::Directives;
use crate::parse::heredoc;
use crate::parse::place::Text;

pub(crate) const BOM: &[u8] = b"\xef\xbb\xbf";
/// How long one line may be, as in BuildKit.
const MAX_LINE_BYTES: usize = 64 << 10;

/// A file taken apart.
pub(super) struct File {
    pub(super) lines: Vec<Line>,
    pub(super) escape: char,
    /// Where an empty line stands inside an instruction.
    pub(super) empty_continuations: Vec<llb::Range>,
}

/// One instruction as text.
pub(super) struct Line {
    pub(super) text: Arc<Text>,
    /// From its first byte to the end of its last line, the line's end not counted.
    pub(super) whole: Range<usize>,
    /// Where the bodies of `heredocs` stand.
    pub(super) bodies: Vec<Range<usize>>,
    pub(super) heredocs: Vec<Heredoc>,
    /// The comments right above it.
    pub(super) comments: Vec<String>,
    first: i32,
    last: i32,
}

impl Line {
    /// One range for each line of the file.
    pub(super) fn ranges(&self) -> Vec<llb::Range> {
        (self.first..=self.last.max(self.first)).map(one_line).collect()
    }
}

fn one_line(line: i32) -> llb::Range {
    let position = Position { line, character: 0 };
    llb::Range {
        start: position,
        end: position,
    }
}

/// Reads the lines of a file.
struct Reader<'a> {
    lines: Vec<&'a [u8]>,
    at: usize,
    /// Where the line begins that was read last, and behind its end.
    last: Range<usize>,
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
        self.last = self.last.end..self.last.end + line.len();
        if line.len() > MAX_LINE_BYTES {
            let error = Error::invalid(format!(
                "dockerfile line greater than max allowed size of {}",
                MAX_LINE_BYTES - 1
            ));
            return Err(error.at(&[self.here()]));
        }
        Ok(Some(line))
    }

    fn number(&self) -> i32 {
        i32::try_from(self.at).unwrap_or(i32::MAX)
    }

    fn here(&self) -> llb::Range {
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

    /// The line that was read last, as text with its place.
    fn text(&self, raw: &[u8]) -> Text {
        Text::line(raw, self.last.start)
    }

    /// How long a line is without the continuation character at its end, and whether there was one.
    fn continued(&self, line: &str) -> (usize, bool) {
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.escape) {
            Some(before) if !before.ends_with(self.escape) => (before.len(), true),
            _ => (line.len(), false),
        }
    }

    /// Behind the last byte of the line that was read last, its end not counted.
    fn end(&self, raw: &[u8]) -> usize {
        let ending = raw.iter().rev().take_while(|byte| matches!(byte, b'\r' | b'\n'));
        self.last.end - ending.count()
    }
}

/// Takes a file apart.
pub(super) fn split(bytes: &[u8]) -> Result<File, Error> {
    let text = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let skipped = bytes.len() - text.len();
    let mut reader = Reader {
        lines: text.split_inclusive(|byte| *byte == b'\n').collect(),
        at: 0,
        last: skipped..skipped,
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
        let mut text = reader.text(raw);
        let line = text.as_str().trim_start().to_owned();
        if line.starts_with('#') {
            // The first byte is taken for the comment sign even when it is a blank before it.
            let comment = String::from_utf8_lossy(raw.get(1..).unwrap_or_default());
            let comment = comment.trim().to_owned();
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
        let (length, is_continued) = reader.continued(&line);
        if length == 0 && !is_continued {
            continue;
        }
        let blanks = text.as_str().len() - line.len();
        text.truncate(blanks + length);
        text.skip(blanks);
        let start = reader.last.start + blanks;
        let (end, has_empty) = join(&mut reader, raw, &mut text, is_continued)?;
        if has_empty {
            file.empty_continuations.push(reader.here());
        }
        let mut joined = Line {
            text: Arc::new(text),
            whole: start..end,
            bodies: Vec::new(),
            heredocs: Vec::new(),
            comments: std::mem::take(&mut comments),
            first,
            last: 0,
        };
        joined.last = reader.number();
        arguments::check(joined.text.as_str(), reader.escape)
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

/// Appends the lines that continue this one; gives where the last of them ends, and whether one was empty.
fn join<'a>(
    reader: &mut Reader<'a>,
    mut last: &'a [u8],
    whole: &mut Text,
    mut is_continued: bool,
) -> Result<(usize, bool), Error> {
    let mut has_empty = false;
    while is_continued {
        let Some(raw) = reader.next()? else { break };
        last = raw;
        let line = reader.text(raw);
        let text = line.as_str().trim_start();
        if text.starts_with('#') {
            continue;
        }
        if text.is_empty() {
            has_empty = true;
            continue;
        }
        let (length, continues) = reader.continued(line.as_str());
        whole.append(line, length);
        is_continued = continues;
    }
    Ok((reader.end(last), has_empty))
}

/// Reads the bodies of the heredocs that the line announces.
fn attach_heredocs(reader: &mut Reader<'_>, line: &mut Line) -> Result<(), Error> {
    let text = Arc::clone(&line.text);
    let text = text.as_str();
    if !text.contains("<<") || !may_have_heredocs(text, reader.escape) {
        return Ok(());
    }
    for mut doc in heredoc::announced(text).map_err(|error| error.at(&line.ranges()))? {
        let mut body = Vec::new();
        let start = reader.last.end;
        loop {
            let Some(raw) = reader.next()? else {
                line.last = reader.number();
                return Err(Error::invalid("unterminated heredoc").at(&line.ranges()));
            };
            let end = String::from_utf8_lossy(raw);
            let end = end.trim_end_matches(['\r', '\n']);
            let end = if doc.is_chomped {
                end.trim_start_matches('\t')
            } else {
                end
            };
            if end == doc.name {
                line.bodies.push(start..reader.last.start);
                line.whole.end = reader.end(raw);
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
