//! Statements about what was built: in the index beside the image they are about, or as files beside the files.
//!
//! ```text
//! Attestation ─ content ─▶ in-toto statement ─┬─▶ layers of one more manifest ─▶ entry of the index (unknown/unknown)
//!                                             └─▶ provenance.json, … beside the files
//! ```
//!
//! A statement's subject is the image under its names, or every file. What it says is asked for when the image
//! is there: a provenance says when the build was finished.

use std::fmt::Debug;
use std::sync::Arc;

use cache::{Cache, Meter, NoMeter};
use oci::{Descriptor, DiffId, Digest, OCI_CONFIG, OCI_EMPTY, OCI_MANIFEST, Platform, Reference, go_json};
use serde_json::{Value, json};
use solver::OpError;
use solver::progress::Sink;

use super::attrs::Attrs;
use super::image::{BuiltLayer, BuiltManifest};
use super::{ExportError, PlatformResult, sbom};

/// The media type of a statement.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";
/// The annotation of a statement's layer that says what kind of statement it is.
pub const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// The type of a statement.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// What a manifest of statements is.
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// Annotations of a manifest of statements in the index.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// One statement about what was built for one platform.
#[derive(Clone, Debug)]
pub struct Attestation {
    /// What kind of statement, as a URI.
    pub predicate_type: String,
    /// The name of the file it is written to beside files.
    pub file: String,
    /// Says what is in the image itself, in the words of SPDX.
    pub is_core_sbom: bool,
    /// For images only, and never the reason to make an index of an archive.
    pub is_inline_only: bool,
    /// What it is about; empty: what was built.
    pub subjects: Vec<Subject>,
    /// What it says.
    pub predicate: Arc<dyn Predicate>,
}

/// What a statement is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What was built, under one name more.
    Itself {
        /// The name; `_` or nothing is none.
        name: String,
    },
    /// Something else.
    Other {
        /// Its name.
        name: String,
        /// Its digests, hexadecimal by algorithm.
        digests: Vec<(String, String)>,
    },
}

/// What a statement says.
pub trait Predicate: Debug + Send + Sync {
    /// As JSON; asked for once the layers are packed. `layers` are those of the image; none where there is no image.
    ///
    /// # Errors
    /// It cannot be said.
    fn content(&self, layers: &[Descriptor]) -> Result<Value, OpError>;
}

/// A predicate that is known already.
impl Predicate for Value {
    fn content(&self, _: &[Descriptor]) -> Result<Value, OpError> {
        Ok(self.clone())
    }
}

/// Whether statements are to be made, which takes an index.
pub(super) fn are_wanted(platforms: &[PlatformResult], attrs: &Attrs) -> bool {
    let mut all = platforms.iter().flat_map(|platform| &platform.attestations);
    all.any(|statement| attrs.inlines_all || !statement.is_inline_only)
}

/// The statement in full; `subjects` are what was built.
pub(super) fn statement(
    attestation: &Attestation,
    subjects: &[(String, Digest)],
    layers: &[Descriptor],
) -> Result<Value, ExportError> {
    let predicate = attestation.predicate.content(layers);
    let predicate = predicate.map_err(|source| ExportError::Predicate {
        kind: attestation.predicate_type.clone(),
        source,
    })?;
    Ok(json!({
        "_type": STATEMENT,
        "predicateType": attestation.predicate_type,
        "subject": subjects_of(attestation, subjects),
        "predicate": predicate,
    }))
}

fn subjects_of(attestation: &Attestation, built: &[(String, Digest)]) -> Vec<Value> {
    let itself = Subject::Itself { name: String::new() };
    let wanted = match &attestation.subjects[..] {
        [] => std::slice::from_ref(&itself),
        some => some,
    };
    let mut subjects = Vec::new();
    for subject in wanted {
        match subject {
            Subject::Itself { name } => {
                for (own, digest) in built {
                    let digest = json!({"sha256": digest.hex()});
                    subjects.push(json!({"name": own, "digest": digest}));
                    if !name.is_empty() && name != "_" {
                        subjects.push(json!({"name": name, "digest": digest}));
                    }
                }
            }
            Subject::Other { name, digests } => {
                let name = if name.is_empty() { "_" } else { name };
                let digests: serde_json::Map<_, _> = digests
                    .iter()
                    .map(|(algorithm, hex)| (algorithm.clone(), Value::from(hex.as_str())))
                    .collect();
                subjects.push(json!({"name": name, "digest": digests}));
            }
        }
    }
    subjects
}

/// Writes the statements about one image, and the manifest that lists them.
pub(super) async fn manifest(
    cache: &Cache,
    platform: &PlatformResult,
    built: &BuiltManifest,
    attrs: &Attrs,
    sink: &Sink,
) -> Result<BuiltManifest, ExportError> {
    let about = &built.descriptor;
    let subjects = image_subjects(&attrs.name_text, &platform.platform, about)?;
    let made_of: Vec<_> = built
        .layers
        .iter()
        .map(|layer| layer.descriptor.clone())
        .collect();
    let mut layers = Vec::new();
    for attestation in &platform.attestations {
        let bytes = go_json(
            &in_layers(attestation, platform, &subjects, &made_of).await?,
            false,
        );
        let digest = cache.content().put(&bytes)?;
        let mut descriptor = Descriptor::new(IN_TOTO, digest, bytes.len() as u64);
        let kind = attestation.predicate_type.clone();
        descriptor.annotations.insert(PREDICATE_TYPE.to_owned(), kind);
        layers.push(BuiltLayer {
            descriptor,
            diff_id: DiffId::new(digest),
            stored: None,
        });
    }
    let config_bytes = if attrs.is_artifact {
        b"{}".to_vec()
    } else {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.descriptor.digest).collect();
        let config = json!({
            "architecture": "unknown",
            "os": "unknown",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        go_json(&config, false)
    };
    cache.content().put(&config_bytes)?;
    let mut config = Descriptor::of(OCI_CONFIG, &config_bytes);
    let entries = layers.iter().map(|layer| layer.descriptor.clone()).collect();
    let mut manifest = oci::Manifest::new(OCI_MANIFEST, config.clone(), entries);
    if attrs.is_artifact {
        config.media_type = OCI_EMPTY.to_owned();
        manifest.config = config.clone();
        manifest.config.data = Some("e30=".to_owned());
        manifest.artifact_type = Some(ARTIFACT.to_owned());
        manifest.subject = Some(Descriptor::new(&about.media_type, about.digest, about.size));
    }
    let bytes = manifest.to_json();
    cache.content().put(&bytes)?;
    let mut descriptor = Descriptor::of(OCI_MANIFEST, &bytes);
    descriptor.platform = Some(Platform::new("unknown", "unknown"));
    let marks = [
        (REFERENCE_TYPE, "attestation-manifest".to_owned()),
        (REFERENCE_DIGEST, about.digest.to_string()),
    ];
    for (key, value) in marks {
        descriptor.annotations.insert(key.to_owned(), value);
    }
    let name = format!("exporting attestation manifest {}", descriptor.digest);
    drop(sink.begin(name, "exporting"));
    Ok(BuiltManifest {
        platform: "unknown/unknown".to_owned(),
        descriptor,
        config,
        layers,
    })
}

/// A statement about an image; one about its files says in which layers they are.
async fn in_layers(
    attestation: &Attestation,
    platform: &PlatformResult,
    subjects: &[(String, Digest)],
    layers: &[Descriptor],
) -> Result<Value, ExportError> {
    let mut statement = statement(attestation, subjects, layers)?;
    if let (true, Some(result)) = (attestation.is_core_sbom, &platform.result) {
        let meter: Arc<dyn Meter> = Arc::new(NoMeter);
        let view = result.view(&meter).await?;
        sbom::add_layers(&mut statement["predicate"], &view, layers);
    }
    Ok(statement)
}

/// An image as a subject: under each of its names.
fn image_subjects(
    names: &str,
    platform: &Platform,
    about: &Descriptor,
) -> Result<Vec<(String, Digest)>, ExportError> {
    let names = names.split(',').filter(|name| !name.is_empty());
    let subjects = names.map(|name| {
        let parsed = Reference::parse_normalized(name).map_err(|error| ExportError::Attribute {
            name: "name".to_owned(),
            value: name.to_owned(),
            reason: error.to_string(),
        })?;
        Ok((parsed.package_url("docker", Some(platform)), about.digest))
    });
    subjects.collect()
}
