//! Where the bytes of a text stand in the file, through continuations, comments, line ends and bytes that are no UTF-8.
//!
//! ```text
//! lines ─▶ Text (what is parsed, with a piece for each run of bytes it was put together of) ─▶ place(range) ─▶ Place
//! ```

use std::ops::Range;
use std::sync::Arc;

use crate::parse::arguments::{Ranges, word_ranges};

/// Bytes of the file: one run, or several where a continuation or comments stand between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place(Vec<Range<usize>>);

impl Place {
    /// The bytes, where they stand in one run.
    pub(crate) fn single(&self) -> Option<Range<usize>> {
        match self.0.as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        }
    }

    /// The runs, in the order of the file.
    #[cfg(test)]
    pub(crate) fn runs(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Where it begins.
    pub(crate) fn start(&self) -> Option<usize> {
        self.0.first().map(|run| run.start)
    }
}

/// Where the parts of an instruction stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// From the keyword to the end of its last line, heredocs included, the line's end not.
    pub(crate) whole: Range<usize>,
    /// Bodies of heredocs, in order, without the line that ends them.
    pub(crate) heredocs: Vec<Range<usize>>,
    pub(super) text: Arc<Text>,
    pub(super) at: Ranges,
}

impl Places {
    /// The keyword.
    pub(crate) fn keyword(&self) -> Token<'_> {
        self.token(self.at.keyword.clone())
    }

    /// `--name[=value]` as they are written, in order.
    pub(crate) fn flags(&self) -> impl Iterator<Item = Token<'_>> {
        self.at.flags.iter().map(|range| self.token(range.clone()))
    }

    /// What follows the flags, at its blanks, whatever the instruction makes of it.
    pub(crate) fn words(&self) -> impl Iterator<Item = Token<'_>> {
        let rest = &self.at.rest;
        let ranges = word_ranges(&self.text.as_str()[rest.clone()]);
        ranges.map(|word| self.token(word.start + rest.start..word.end + rest.start))
    }

    /// Whether everything lies where it should in the file: parts in order within the whole, and made of those bytes.
    pub(super) fn fit(&self, file: &[u8]) -> bool {
        let mut at = self.whole.start;
        let tokens = std::iter::once(self.keyword())
            .chain(self.flags())
            .chain(self.words());
        for token in tokens {
            let Place(runs) = token.place();
            let mut bytes = Vec::with_capacity(token.text.len());
            for run in runs {
                if run.start < at || run.end > self.whole.end {
                    return false;
                }
                at = run.end;
                bytes.extend_from_slice(&file[run]);
            }
            if String::from_utf8_lossy(&bytes) != token.text {
                return false;
            }
        }
        let bodies = self.heredocs.iter();
        self.whole.end <= file.len()
            && bodies
                .clone()
                .all(|body| body.start >= at && body.end <= self.whole.end)
    }

    fn token(&self, range: Range<usize>) -> Token<'_> {
        Token {
            text: &self.text.as_str()[range.clone()],
            whole: &self.text,
            range,
        }
    }
}

/// A part of an instruction as it is written, continuations joined.
#[derive(Clone, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    whole: &'a Text,
    range: Range<usize>,
}

impl Token<'_> {
    /// Where it stands.
    pub(crate) fn place(&self) -> Place {
        self.whole.place(self.range.clone())
    }

    /// Where a part of `text` stands.
    pub(crate) fn part(&self, range: Range<usize>) -> Place {
        self.whole
            .place(range.start + self.range.start..range.end + self.range.start)
    }
}

/// A run of a text and the bytes it was made of; as long as they, but for what stands for bytes that are no UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    text: Range<usize>,
    file: Range<usize>,
}

/// A text that was put together of bytes of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text {
    string: String,
    pieces: Vec<Piece>,
}

impl Text {
    /// A line that begins at `start`, without its end.
    pub(super) fn line(raw: &[u8], start: usize) -> Text {
        let mut made = Text::default();
        let mut at = start;
        for chunk in raw.utf8_chunks() {
            made.push(chunk.valid(), at..at + chunk.valid().len());
            at += chunk.valid().len();
            if !chunk.invalid().is_empty() {
                made.push("\u{fffd}", at..at + chunk.invalid().len());
                at += chunk.invalid().len();
            }
        }
        let length = made.string.trim_end_matches(['\r', '\n']).len();
        made.truncate(length);
        made
    }

    pub(super) fn as_str(&self) -> &str {
        &self.string
    }

    fn push(&mut self, text: &str, file: Range<usize>) {
        if text.is_empty() {
            return;
        }
        let from = self.string.len();
        self.string.push_str(text);
        self.pieces.push(Piece {
            text: from..self.string.len(),
            file,
        });
    }

    /// Keeps the first `length` bytes.
    pub(super) fn truncate(&mut self, length: usize) {
        self.string.truncate(length);
        self.pieces.retain(|piece| piece.text.start < length);
        if let Some(last) = self.pieces.last_mut().filter(|last| last.text.end > length) {
            last.file.end -= last.text.end - length;
            last.text.end = length;
        }
    }

    /// Takes the first `length` bytes off.
    pub(super) fn skip(&mut self, length: usize) {
        self.string.drain(..length);
        self.pieces.retain(|piece| piece.text.end > length);
        for piece in &mut self.pieces {
            let cut = length.saturating_sub(piece.text.start);
            piece.file.start += cut;
            piece.text = (piece.text.start + cut - length)..(piece.text.end - length);
        }
    }

    /// Adds another text, up to `length`.
    pub(super) fn append(&mut self, mut other: Text, length: usize) {
        other.truncate(length);
        let base = self.string.len();
        self.string.push_str(&other.string);
        self.pieces.extend(other.pieces.into_iter().map(|piece| Piece {
            text: piece.text.start + base..piece.text.end + base,
            file: piece.file,
        }));
    }

    /// Where a range of the text stands.
    pub(super) fn place(&self, range: Range<usize>) -> Place {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let first = self.pieces.partition_point(|piece| piece.text.end <= range.start);
        let is_empty = range.is_empty();
        for piece in self.pieces[first..]
            .iter()
            .take_while(|piece| !is_empty && piece.text.start < range.end)
        {
            let run = if piece.text.len() == piece.file.len() {
                let start = range.start.max(piece.text.start) - piece.text.start;
                let end = range.end.min(piece.text.end) - piece.text.start;
                piece.file.start + start..piece.file.start + end
            } else {
                piece.file.clone()
            };
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
        }
        Place(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_joining_cutting_and_bytes_that_are_no_text() {
        let mut text = Text::line(b"ab\xffcd \\\r\n", 3);
        assert_eq!(text.as_str(), "ab\u{fffd}cd \\");
        text.truncate(8);
        text.append(Text::line(b"  ef\n", 20), 4);
        assert_eq!(text.as_str(), "ab\u{fffd}cd   ef");
        let place = |range| text.place(range);
        assert_eq!(place(0..2).single(), Some(3..5));
        assert_eq!(place(0..7).single(), Some(3..8));
        // Half of what stands for a byte is that byte.
        assert_eq!(place(3..4).single(), Some(5..6));
        assert_eq!(place(6..text.as_str().len()).runs(), [7..9, 20..24]);
        assert!(place(4..4).runs().is_empty());
    }
}
