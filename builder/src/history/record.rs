//! One build: what was asked, how it ended, where the rest of it lies.
use super::Stamp;
use oci::Descriptor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// One build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The build's id (its "ref").
    pub id: String,
    /// The frontend; empty where the client ran it.
    #[serde(default)]
    pub frontend: String,
    /// What the frontend was asked, as BuildKit names it (`build-arg:X`, `target`, `filename`).
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Where the result was to go.
    #[serde(default)]
    pub exporters: Vec<Exporter>,
    /// The folder or address of the context, where it is known (builds of this program without a daemon).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// When it was asked for.
    pub created: Stamp,
    /// When it was over; `None` while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<Stamp>,
    /// When it was read from a file of builds, if it was not made here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Stamp>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// The error with all its details, as an attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_error: Option<Descriptor>,
    /// All it showed: blob of [`super::log::MEDIA_TYPE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Descriptor>,
    /// Its trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Descriptor>,
    /// The frontend's metadata of the result.
    #[serde(default)]
    pub response: BTreeMap<String, String>,
    /// What came out, by the exporter's number.
    #[serde(default)]
    pub results: BTreeMap<u32, Result>,
    /// Manifests and configs beneath the results, which are kept with the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beneath: Vec<Descriptor>,
    /// Statements about what was built, such as provenance, by platform; of a result without any under the empty name.
    #[serde(default)]
    pub statements: BTreeMap<String, Vec<Descriptor>>,
    /// Kept whatever the limits say.
    #[serde(default)]
    pub is_pinned: bool,
    /// Counts.
    #[serde(default)]
    pub steps: Steps,
    /// How often the record was changed after the build's end.
    #[serde(default)]
    pub generation: u32,
}

/// Where a result was to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exporter {
    /// `image`, `oci`, `local` and so on.
    pub kind: String,
    /// Its attributes.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// Why a build failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The gRPC status code.
    pub code: i32,
    /// The message.
    pub message: String,
}

/// What one exporter made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Result {
    /// The manifest or index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<Descriptor>,
}

/// How many steps there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// Shown in all.
    pub total: u32,
    /// Served by the cache.
    pub cached: u32,
    /// Ended.
    pub completed: u32,
    /// Warnings.
    pub warnings: u32,
}

/// How a build stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs.
    Running,
    /// It gave its results.
    Completed,
    /// It failed.
    Failed,
    /// It was called off.
    Canceled,
}

impl Outcome {
    /// The word for filters and JSON, as BuildKit has it.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Running => "running",
            Outcome::Completed => "completed",
            Outcome::Failed => "error",
            Outcome::Canceled => "canceled",
        }
    }
}

impl Record {
    /// A record of a build that begins now.
    pub fn new(id: impl Into<String>) -> Record {
        Record {
            id: id.into(),
            frontend: String::new(),
            attributes: BTreeMap::new(),
            exporters: Vec::new(),
            context: None,
            created: Stamp::now(),
            completed: None,
            imported: None,
            error: None,
            external_error: None,
            log: None,
            trace: None,
            response: BTreeMap::new(),
            results: BTreeMap::new(),
            beneath: Vec::new(),
            statements: BTreeMap::new(),
            is_pinned: false,
            steps: Steps::default(),
            generation: 0,
        }
    }

    /// How it stands.
    pub fn outcome(&self) -> Outcome {
        match (&self.completed, &self.error) {
            (None, _) => Outcome::Running,
            (Some(_), None) => Outcome::Completed,
            (Some(_), Some(error)) if error.message.contains("context canceled") => Outcome::Canceled,
            (Some(_), Some(_)) => Outcome::Failed,
        }
    }

    /// How long it took, or has taken by `now`.
    pub fn duration(&self, now: Stamp) -> Duration {
        self.completed.unwrap_or(now).since(self.created)
    }

    /// A name for people: the build's own, else the context's, with the Dockerfile's and target's where they are not
    /// the usual ones.
    pub fn name(&self) -> String {
        let attribute = |key: &str| self.attributes.get(key).filter(|value| !value.is_empty());
        if let Some(name) = attribute("build-arg:BUILDKIT_BUILD_NAME") {
            return name.clone();
        }
        let place = self
            .context
            .as_ref()
            .or_else(|| attribute("context"))
            .or_else(|| attribute("vcs:localdir:context"))
            .or_else(|| attribute("vcs:source"));
        let mut name = place.map_or(String::new(), |place| {
            let is_address = place.contains("://") || place.starts_with("git@");
            match Path::new(place).file_name() {
                Some(last) if !is_address => last.to_string_lossy().into_owned(),
                _ => place.clone(),
            }
        });
        if let Some(file) = attribute("filename").filter(|file| *file != "Dockerfile") {
            name = if name.is_empty() {
                file.clone()
            } else {
                format!("{name}/{file}")
            };
        }
        if let Some(target) = attribute("target") {
            name = format!("{name} ({target})").trim_start().to_owned();
        }
        name
    }

    /// The repository it was built from, if it is known.
    pub fn repository(&self) -> Option<String> {
        if let Some(source) = self.attributes.get("vcs:source") {
            return Some(source.clone());
        }
        let context = self.attributes.get("context")?;
        let is_git = context.starts_with("git@")
            || context.starts_with("git://")
            || context.starts_with("ssh://")
            || context
                .split(['#', '?'])
                .next()
                .is_some_and(|url| url.contains("://") && url.ends_with(".git"));
        is_git.then(|| context.split(['#', '?']).next().unwrap_or(context).to_owned())
    }

    /// Everything the record needs of the blobs.
    pub fn attachments(&self) -> impl Iterator<Item = &Descriptor> {
        self.log
            .iter()
            .chain(&self.trace)
            .chain(&self.external_error)
            .chain(self.statements.values().flatten())
            .chain(&self.beneath)
            .chain(self.results.values().filter_map(|made| made.descriptor.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(attributes: &[(&str, &str)]) -> Record {
        let mut record = Record::new("x");
        record.attributes = attributes
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        record
    }

    #[test]
    fn names() {
        for (attributes, expected) in [
            (&[][..], ""),
            (&[("target", "web")], "(web)"),
            (&[("vcs:localdir:context", "services/web")], "web"),
            (
                &[
                    ("vcs:localdir:context", "web"),
                    ("filename", "prod.Dockerfile"),
                    ("target", "t"),
                ],
                "web/prod.Dockerfile (t)",
            ),
            (
                &[("context", "https://example.com/a.git#main")],
                "https://example.com/a.git#main",
            ),
            (
                &[("build-arg:BUILDKIT_BUILD_NAME", "nightly"), ("context", "x")],
                "nightly",
            ),
        ] {
            assert_eq!(record(attributes).name(), expected, "{attributes:?}");
        }
    }

    #[test]
    fn repositories() {
        for (attributes, expected) in [
            (
                &[("vcs:source", "https://example.com/a")][..],
                Some("https://example.com/a"),
            ),
            (
                &[("context", "https://example.com/a.git#main:sub")],
                Some("https://example.com/a.git"),
            ),
            (
                &[("context", "git@example.com:a.git")],
                Some("git@example.com:a.git"),
            ),
            (&[("context", "https://example.com/a.tar")], None),
            (&[], None),
        ] {
            assert_eq!(
                record(attributes).repository().as_deref(),
                expected,
                "{attributes:?}"
            );
        }
    }

    #[test]
    fn outcomes() {
        let mut record = Record::new("x");
        assert_eq!(record.outcome(), Outcome::Running);
        record.completed = Some(Stamp::now());
        assert_eq!(record.outcome(), Outcome::Completed);
        for (message, expected) in [
            ("exit code: 1", Outcome::Failed),
            ("solve: context canceled", Outcome::Canceled),
        ] {
            record.error = Some(Failure {
                code: 2,
                message: message.into(),
            });
            assert_eq!(record.outcome(), expected, "{message}");
        }
    }
}
