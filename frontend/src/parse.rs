//! Text to stages of typed instructions, with the lines they stand in.
//!
//! ```text
//! bytes ─▶ lines: continuations joined, comments out, heredocs in ─▶ arguments, flags ─▶ instruction ─▶ ast
//! ```
//!
//! Accepts and rejects what BuildKit's parser does. Variables are not expanded here: what they are worth
//! depends on the stage. Findings of the lint rules that need nothing but the text go to `lint` on the way.

pub(crate) mod ast;
mod directives;
pub(crate) mod place;
mod lines;
mod heredoc;
mod flags;
mod arguments;
mod instruction;
mod mount;
mod quantity;

pub(crate) use directives::{directive, syntax};
pub(crate) use heredoc::{chomp, chomp_bytes, name as heredoc_name};
pub(crate) use mount::parse as parse_mount;

use ast::{Dockerfile, Kind, Stage};

use crate::error::Error;
use crate::lint::{Lint, Rule};

/// How many bytes a Dockerfile may have.
const MAX_BYTES: usize = 16 << 20;
/// How many instructions.
const MAX_INSTRUCTIONS: usize = 10_000;
/// How many stages.
const MAX_STAGES: usize = 5_000;

/// Reads a Dockerfile.
pub(crate) fn parse(bytes: &[u8], lint: &Lint) -> Result<Dockerfile, Error> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::invalid(format!(
            "the Dockerfile has {} bytes; the limit is {MAX_BYTES}",
            bytes.len()
        )));
    }
    if bytes.is_empty() {
        return Err(Error::invalid("the Dockerfile cannot be empty"));
    }
    let file = lines::split(bytes)?;
    if file.lines.len() > MAX_INSTRUCTIONS {
        let found = file.lines.len();
        return Err(Error::invalid(format!(
            "the Dockerfile has {found} instructions; the limit is {MAX_INSTRUCTIONS}"
        )));
    }
    for range in &file.empty_continuations {
        lint.report(Rule::NoEmptyContinuation, &[*range], "Empty continuation line");
    }
    let mut dockerfile = Dockerfile {
        stages: Vec::new(),
        global_args: Vec::new(),
        escape: file.escape,
    };
    for line in &file.lines {
        let parsed = instruction::parse(line, file.escape, lint).map_err(|error| {
            error
                .on_line(line.ranges().first().map_or(0, |range| range.start.line))
                .at(&line.ranges())
        })?;
        match parsed {
            instruction::Parsed::From(stage) => dockerfile.stages.push(*stage),
            instruction::Parsed::Instruction(instruction) => match dockerfile.stages.last_mut() {
                Some(stage) => stage.instructions.push(*instruction),
                None if matches!(instruction.kind, Kind::Arg(_)) => dockerfile.global_args.push(*instruction),
                None => {
                    return Err(Error::invalid("no build stage in current context").at(&instruction.ranges));
                }
            },
        }
    }
    debug_assert!(fit(bytes, &dockerfile), "places are those of the file");
    match dockerfile.stages.len() {
        0 => Err(Error::invalid("dockerfile contains no stages to build")
            .hinting(Some("FROM is missing".to_owned()))),
        found if found > MAX_STAGES => Err(Error::invalid(format!(
            "the Dockerfile has {found} stages; the limit is {MAX_STAGES}"
        ))),
        _ => Ok(dockerfile),
    }
}

/// Whether all places lie in the file where they should, in its order.
fn fit(bytes: &[u8], dockerfile: &Dockerfile) -> bool {
    let of_stage = |stage: &Stage| {
        let own = stage
            .instructions
            .iter()
            .map(|instruction| instruction.places.clone());
        std::iter::once(stage.places.clone())
            .chain(own)
            .collect::<Vec<_>>()
    };
    let globals = dockerfile
        .global_args
        .iter()
        .map(|instruction| instruction.places.clone());
    let all: Vec<_> = globals
        .chain(dockerfile.stages.iter().flat_map(of_stage))
        .collect();
    let in_order = all.windows(2).all(|two| two[0].whole.end <= two[1].whole.start);
    in_order && all.iter().all(|places| places.fit(bytes))
}

/// Reads an ONBUILD trigger: one instruction, as if it stood at `stage`'s FROM.
pub(crate) fn parse_trigger(text: &str, stage: &Stage, lint: &Lint) -> Result<ast::Instruction, Error> {
    let file = lines::split(text.as_bytes())?;
    let [line] = file.lines.as_slice() else {
        return Err(Error::invalid(format!(
            "the ONBUILD trigger {text:?} is not one instruction"
        )));
    };
    match instruction::parse(line, file.escape, lint)? {
        instruction::Parsed::Instruction(mut instruction) => {
            instruction.ranges.clone_from(&stage.ranges);
            Ok(*instruction)
        }
        instruction::Parsed::From(_) => Err(Error::invalid("FROM cannot be an ONBUILD trigger")),
    }
}

#[cfg(test)]
mod tests;
