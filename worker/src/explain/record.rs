//! What is remembered of a build.

use std::io::Write;
use std::path::Path;

use oci::Digest;
use serde::{Deserialize, Serialize};
use solver::StepReport;

/// Records of another version are not read.
const VERSION: u32 = 1;

/// One build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) steps: Vec<Step>,
}

/// One step of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) key: Option<Digest>,
    pub(super) explain: String,
    /// The content digest of each input, where it was worked out.
    pub(super) contents: Vec<Option<Digest>>,
}

impl Record {
    pub(super) fn of(report: &[StepReport], last: Option<&Record>) -> Self {
        let steps = report.iter().map(|step| {
            let before = last.and_then(|last| {
                last.steps
                    .iter()
                    .find(|old| old.name == step.vertex.name && old.key == step.key)
            });
            let content = |index: usize, now: Option<Digest>| {
                now.or_else(|| before.and_then(|before| before.contents.get(index).copied().flatten()))
            };
            Step {
                name: step.vertex.name.clone(),
                key: step.key,
                explain: step.explain.clone(),
                contents: step
                    .inputs
                    .iter()
                    .enumerate()
                    .map(|(index, input)| content(index, input.content))
                    .collect(),
            }
        });
        Self {
            version: VERSION,
            steps: steps.collect(),
        }
    }
}

/// The record at `path`; `None` if there is none that can be read.
pub(super) fn load(path: &Path) -> Option<Record> {
    let record: Record = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (record.version == VERSION).then_some(record)
}

/// Writes a record aside and renames it.
pub(super) fn save(path: &Path, record: &Record) -> std::io::Result<()> {
    let folder = path.parent().expect("a record lies in a folder");
    std::fs::create_dir_all(folder)?;
    let mut aside = tempfile::NamedTempFile::new_in(folder)?;
    aside.write_all(&serde_json::to_vec(record)?)?;
    aside.persist(path).map_err(|error| error.error)?;
    Ok(())
}
