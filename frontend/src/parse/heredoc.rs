//! `<<NAME`: which words announce a heredoc.

use crate::error::Error;
use crate::parse::ast::Heredoc;
use crate::words::{Lex, NOTHING};

/// The heredocs a line announces, in order, bodies still empty.
///
/// Differs: BuildKit's lexer loses what stands before `${x:-y}` in a word, so that `<<E${x:-y}` announces nothing
/// there. Here it does (`a_variable_in_a_name_stays_as_it_is_written`).
pub(super) fn announced(line: &str) -> Result<Vec<Heredoc>, Error> {
    let lex = Lex {
        raw_quotes: true,
        raw_escapes: true,
        keep_unset: true,
        ..Lex::new('\\')
    };
    let words = lex.expand(line, NOTHING).map(|out| out.words).unwrap_or_default();
    let mut found = Vec::new();
    for word in words {
        found.extend(parse(&word).map_err(Error::invalid)?);
    }
    Ok(found)
}

/// Whether a word announces a heredoc.
pub(crate) fn is_heredoc(word: &str) -> bool {
    name(word).is_some()
}

/// The heredoc a word announces, without body.
pub(crate) fn name(word: &str) -> Option<Heredoc> {
    parse(word).ok().flatten()
}

/// Reads `[fd]<<[-]WORD`; quoting any part of the word says that nothing is expanded.
fn parse(word: &str) -> Result<Option<Heredoc>, String> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let Some(rest) = rest.strip_prefix("<<") else {
        return Ok(None);
    };
    let (rest, is_chomped) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let lex = Lex {
        keep_unset: true,
        ..Lex::new('\\')
    };
    let words = lex.expand(rest, NOTHING)?.words;
    let raw = Lex {
        raw_quotes: true,
        ..lex
    }
    .expand(rest, NOTHING)?
    .words;
    let ([name], [raw]) = (words.as_slice(), raw.as_slice()) else {
        return Ok(None);
    };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        name: name.clone(),
        data: String::new(),
        raw: None,
        is_chomped,
        is_expanded: quotes(name) == quotes(raw),
    }))
}

/// As [`chomp`], for bytes.
pub(crate) fn chomp_bytes(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let tabs = |line: &[u8]| line.iter().take_while(|byte| **byte == b'\t').count();
    lines.flat_map(|line| &line[tabs(line)..]).copied().collect()
}

/// Without the tabs at the beginning of each line.
pub(crate) fn chomp(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| line.trim_start_matches('\t'))
        .collect()
}
