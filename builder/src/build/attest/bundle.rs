//! Statements that a frontend or a scanner wrote into files.
//!
//! ```text
//! Claim ─┬─ a file: what is stated            ─▶ one statement
//!        └─ a folder: whole statements (bundle) ─▶ one for each file
//! ```
//!
//! How a build was made is for the builder alone to state: a provenance in a file is refused.

use cache::view::{Node, View};
use serde_json::Value;
use std::io::Read;
use std::sync::Arc;
use tree::{Kind, RootPath};
use worker::export::{Attestation, Subject};

/// What statements about what is in a result are, in the words of SPDX.
pub(crate) const SPDX: &str = "https://spdx.dev/Document";
/// No statement may be larger, in bytes.
const MAX_BYTES: u64 = 40 << 20;
/// No bundle may have more statements.
const MAX_FILES: usize = 10_000;
/// What begins the types of provenances.
const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// Something stated in files of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Whole statements in a folder.
    pub(crate) is_bundle: bool,
    /// Where the file or folder is.
    pub(crate) path: String,
    /// What kind of statement; empty in a bundle: whatever the files say.
    pub(crate) predicate_type: String,
    /// What it is about; empty: what was built.
    pub(crate) subjects: Vec<Subject>,
    /// The name, up to its first dot, of the file that says what is in the result itself.
    pub(crate) core: Option<String>,
    /// For images only.
    pub(crate) is_inline_only: bool,
}

/// Why files cannot be taken as statements.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// A file without a path.
    #[error("attestation does not have set path")]
    NoPath,
    /// There is no result to read from.
    #[error("attestation does not have available content")]
    NoFiles,
    /// A frontend may not say how a build was made.
    #[error("frontend may not set provenance attestations")]
    Provenance,
    /// Nor in a bundle.
    #[error("frontend may not bundle provenance attestations")]
    BundledProvenance,
    /// A bundle has too many files.
    #[error("{0} has more than {MAX_FILES} attestations")]
    TooMany(String),
    /// There is no such file.
    #[error("cannot read in-toto attestation: {0}: no such file or directory")]
    Missing(String),
    /// It is something else.
    #[error("cannot read in-toto attestation: {0} is not a regular file")]
    NoFile(String),
    /// It is too large.
    #[error("{0} exceeds {MAX_BYTES} bytes")]
    TooLarge(String),
    /// It is no statement.
    #[error("cannot decode in-toto statement: {path}: {reason}")]
    Malformed {
        /// Which file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// It is another kind of statement than was announced.
    #[error("bundle entry {found} does not match required predicate type {wanted}")]
    OtherType {
        /// What it is.
        found: String,
        /// What it was to be.
        wanted: String,
    },
    /// The layers cannot be read.
    #[error(transparent)]
    Layer(#[from] cache::layer::LayerError),
    /// The file cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl Claim {
    /// What a scanner is asked to write.
    pub(crate) fn of_scan() -> Claim {
        Claim {
            is_bundle: true,
            predicate_type: SPDX.to_owned(),
            core: Some(super::scan::CORE.to_owned()),
            ..Claim::default()
        }
    }

    /// The statements in the files of `view`; `None` has none. Reads them, so it blocks.
    pub(crate) fn read(&self, view: Option<&View>) -> Result<Vec<Attestation>, ClaimError> {
        let view = view.ok_or(ClaimError::NoFiles)?;
        if self.is_bundle {
            return self.bundled(view);
        }
        if self.path.is_empty() {
            return Err(ClaimError::NoPath);
        }
        if self.predicate_type.starts_with(PROVENANCE) {
            return Err(ClaimError::Provenance);
        }
        let node = find(view, &self.path)?;
        let predicate = read(view, &node, &self.path)?;
        let stated = self.attestation(
            self.path.clone(),
            self.predicate_type.clone(),
            self.subjects.clone(),
            predicate,
        );
        Ok(vec![stated])
    }

    fn bundled(&self, view: &View) -> Result<Vec<Attestation>, ClaimError> {
        let folder = find(view, &self.path)?;
        let children = view.children(&folder);
        if children.len() > MAX_FILES {
            return Err(ClaimError::TooMany(self.path.clone()));
        }
        let mut all = Vec::new();
        for child in children {
            let name = view.entry(&child)?.path;
            let name = String::from_utf8_lossy(name.file_name().unwrap_or_default()).into_owned();
            let path = match self.path.trim_matches('/') {
                "" => name,
                folder => format!("{folder}/{name}"),
            };
            // The folder's own links are followed, as of any path.
            let node = find(view, &path)?;
            let statement = read(view, &node, &path)?;
            all.push(self.unbundled(path, statement)?);
        }
        Ok(all)
    }

    fn unbundled(&self, path: String, mut statement: Value) -> Result<Attestation, ClaimError> {
        let malformed = |reason: &str| ClaimError::Malformed {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        if !statement.is_object() {
            return Err(malformed("it is no object"));
        }
        let found = statement["predicateType"].as_str().unwrap_or_default().to_owned();
        if !self.predicate_type.is_empty() && found != self.predicate_type {
            return Err(ClaimError::OtherType {
                found,
                wanted: self.predicate_type.clone(),
            });
        }
        if found.starts_with(PROVENANCE) {
            return Err(ClaimError::BundledProvenance);
        }
        let mut predicate = statement["predicate"].take();
        predicate.sort_all_objects();
        let subjects = match &statement["subject"] {
            Value::Null => Vec::new(),
            Value::Array(list) => list
                .iter()
                .map(subject)
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| malformed("a subject is {\"name\": …, \"digest\": {ALGORITHM: HEX}}"))?,
            _ => return Err(malformed("subject is no list")),
        };
        Ok(self.attestation(path, found, subjects, predicate))
    }

    fn attestation(
        &self,
        path: String,
        predicate_type: String,
        subjects: Vec<Subject>,
        predicate: Value,
    ) -> Attestation {
        let base = path.rsplit('/').next().unwrap_or_default();
        let stem = base.split('.').next().unwrap_or_default();
        Attestation {
            is_core_sbom: predicate_type == SPDX && self.core.as_deref() == Some(stem),
            predicate_type,
            file: path,
            is_inline_only: self.is_inline_only,
            subjects,
            predicate: Arc::new(predicate),
        }
    }
}

fn subject(value: &Value) -> Option<Subject> {
    let digests = match &value["digest"] {
        Value::Null => Vec::new(),
        digests => digests
            .as_object()?
            .iter()
            .map(|(algorithm, hex)| Some((algorithm.clone(), hex.as_str()?.to_owned())))
            .collect::<Option<_>>()?,
    };
    Some(Subject::Other {
        name: value["name"].as_str().unwrap_or_default().to_owned(),
        digests,
    })
}

fn find(view: &View, path: &str) -> Result<Node, ClaimError> {
    let missing = || ClaimError::Missing(path.to_owned());
    let clean = RootPath::clean(path).map_err(|_| missing())?;
    view.find(&clean)?.ok_or_else(missing)
}

fn read(view: &View, node: &Node, path: &str) -> Result<Value, ClaimError> {
    if view.entry(node)?.kind != Kind::File {
        return Err(ClaimError::NoFile(path.to_owned()));
    }
    let mut bytes = Vec::new();
    let mut file = view.open(node)?.take(MAX_BYTES + 1);
    file.read_to_end(&mut bytes).map_err(|source| ClaimError::Read {
        path: path.to_owned(),
        source,
    })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ClaimError::TooLarge(path.to_owned()));
    }
    serde_json::from_slice(&bytes).map_err(|error| ClaimError::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// The order statements are listed in: what is in the result itself before all else.
pub(crate) fn core_first(attestations: &mut [Attestation]) {
    attestations.sort_by_key(|one| !one.is_core_sbom);
}
