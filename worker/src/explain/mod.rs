//! Why steps ran that the cache could have served, in plain words.
//!
//! ```text
//! StepReports of this build ─┐
//! record of the last build ──┴▶ causes ─▶ words            then: this build's record is kept
//! listings of copied files ──┘
//! ```
//!
//! 1. `record` keeps, per build (context, Dockerfile, target, platforms), what each step's key was made of.
//! 2. `files` notes which context files stand behind a content digest, and lists them for the next build.
//! 3. `cause` compares a step with the nearest one of the last build; the solver's report says which input
//!    the cache did not know, so the comparison is only asked *what* about it changed.
//!
//! ```text
//! <root>/explain/<sha256 of the build's name>         JSON
//! <root>/explain/<sha256 of the build's name>.files   a line per file
//! ```
//!
//! What is lost here costs words only; nothing else reads it.

mod record;
mod files;
mod cause;

use std::path::Path;

use oci::Digest;
use solver::{Outcome, StepReport};

pub use files::Notes;

use record::Record;

/// How many files are kept: two per build.
const MAX_KEPT: usize = 400;

/// Says why each step of a build ran, compared with the last build of that name.
///
/// `build` is whatever tells one build from another: context, Dockerfile, target, platforms.
#[must_use]
pub fn explain(root: &Path, build: &str, report: &[StepReport], notes: &Notes) -> String {
    let path = path(root, build);
    let (last, listing) = (record::load(&path), path.with_extension("files"));
    let ran = report
        .iter()
        .filter(|step| step.outcome == Outcome::Ran && !step.inputs.is_empty());
    let mut text = String::new();
    for step in ran {
        text.push_str(&step.vertex.name);
        text.push('\n');
        for line in cause::causes(step, report, last.as_ref(), &|content| {
            notes.changes(&listing, content)
        }) {
            text.push_str("  ");
            text.push_str(&line);
            text.push('\n');
        }
    }
    if text.is_empty() {
        "every step came from the cache\n".to_owned()
    } else {
        text
    }
}

/// Remembers a build that succeeded, for explaining the next one of that name.
///
/// # Errors
/// Those of writing the record.
pub fn remember(root: &Path, build: &str, report: &[StepReport], notes: &Notes) -> std::io::Result<()> {
    let path = path(root, build);
    let last = record::load(&path);
    // A step the cache made unnecessary is as it was the last time; what was known of it stays known.
    let record = Record::of(report, last.as_ref());
    if last.as_ref() == Some(&record) {
        return Ok(());
    }
    record::save(&path, &record)?;
    notes.list(&path.with_extension("files"))?;
    files::thin_out(&root.join("explain"), MAX_KEPT);
    Ok(())
}

fn path(root: &Path, build: &str) -> std::path::PathBuf {
    root.join("explain").join(Digest::of(build.as_bytes()).hex())
}

#[cfg(test)]
mod tests;
