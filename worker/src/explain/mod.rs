//! Why steps ran that the cache could have served, in plain words.
//!
//! ```text
//! StepReports of this build ─┐
//! record of the last build ──┴▶ causes ─▶ words            then: this build's record is kept
//! listings of copied files ──┘
//! ```
//!
//! 1. `record` keeps, per build (context, Dockerfile, target, platforms), what each step's key was made of.
//! 2. `files` keeps, per content digest of copied context files, which files those were.
//! 3. `cause` compares a step with the nearest one of the last build; the solver's report says which input
//!    the cache did not know, so the comparison is only asked *what* about it changed.
//!
//! ```text
//! <root>/explain/builds/<sha256 of the build's name>   JSON, one per build
//! <root>/explain/files/<content digest>                a line per file
//! ```
//!
//! What is lost here costs words only; nothing else reads it.

mod record;
mod files;
mod cause;

use std::path::Path;

use oci::Digest;
use solver::{Outcome, StepReport};

pub(crate) use files::keep as keep_files;

use record::Record;

/// How many builds are remembered.
const MAX_BUILDS: usize = 200;

/// Says why each step of a build ran, compared with the last build of that name.
///
/// `build` is whatever tells one build from another: context, Dockerfile, target, platforms.
#[must_use]
pub fn explain(root: &Path, build: &str, report: &[StepReport]) -> String {
    let last = record::load(&path(root, build));
    let ran = report.iter().filter(|step| step.outcome == Outcome::Ran && !step.inputs.is_empty());
    let mut text = String::new();
    for step in ran {
        text.push_str(&step.vertex.name);
        text.push('\n');
        for line in cause::causes(root, step, report, last.as_ref()) {
            text.push_str("  ");
            text.push_str(&line);
            text.push('\n');
        }
    }
    if text.is_empty() { "every step came from the cache\n".to_owned() } else { text }
}

/// Remembers a build that succeeded, for explaining the next one of that name.
///
/// # Errors
/// Those of writing the record.
pub fn remember(root: &Path, build: &str, report: &[StepReport]) -> std::io::Result<()> {
    let path = path(root, build);
    // A step the cache made unnecessary is as it was the last time; what was known of it stays known.
    let record = Record::of(report, record::load(&path).as_ref());
    record::save(&path, &record)?;
    files::thin_out(&root.join("explain/builds"), MAX_BUILDS);
    Ok(())
}

fn path(root: &Path, build: &str) -> std::path::PathBuf {
    root.join("explain/builds").join(Digest::of(build.as_bytes()).hex())
}

#[cfg(test)]
mod tests;
