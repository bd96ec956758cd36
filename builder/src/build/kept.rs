//! What a build leaves for the history, beside what it showed: statements about its results, what its outputs made, what
//! its frontend said of it.
//!
//! ```text
//! statements (all that can be stated) ─▶ Stated ─┐
//! exporters' answers ─▶ digests, layers ─────────┼─▶ Kept::file ─▶ blobs of the history, Record
//! frontend's metadata ───────────────────────────┘
//! ```
//!
//! The same through both doors, so that records say the same whoever built.
use crate::history::{History, Record};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cache::Cache;
use oci::{Descriptor, Document, MAX_MANIFEST_BYTES};
use std::collections::BTreeMap;
use worker::export::{Attestation, Done, IN_TOTO, PREDICATE_TYPE};

/// Manifests and configs kept of one result.
const MAX_BENEATH: usize = 256;

/// What one build leaves.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// What each exporter made, by its number.
    descriptors: Vec<(u32, Descriptor)>,
    /// Layers of images, by platform.
    layers: BTreeMap<String, Vec<Descriptor>>,
    /// The frontend's metadata, as text.
    pub(crate) metadata: BTreeMap<String, String>,
    /// What is stated.
    pub(crate) stated: Stated,
}

impl Kept {
    /// Takes in what one exporter made.
    pub(crate) fn exported(&mut self, number: usize, done: &Done) {
        let descriptor = done.response.get("containerimage.descriptor").and_then(|text| {
            let bytes = STANDARD.decode(text).ok()?;
            serde_json::from_slice(&bytes).ok()
        });
        let images = done.images.iter();
        self.layers
            .extend(images.map(|image| (image.platform.clone(), image.layers.clone())));
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        self.descriptors
            .extend(descriptor.map(|descriptor| (number, descriptor)));
    }

    /// Puts all of it into the history and a record. Manifests are copied from the store, so that a record can be shown and
    /// exported when the store was pruned.
    pub(crate) fn file(self, history: &History, cache: &Cache, record: &mut Record) {
        record.response = self.metadata;
        record.statements = self.stated.keep(history, &self.layers);
        for (number, descriptor) in self.descriptors {
            record.beneath.extend(copied(history, cache, &descriptor));
            record.results.entry(number).or_default().descriptor = Some(descriptor);
        }
    }
}

/// Copies a manifest or index and the manifests and configs beneath it; answers what lies beneath.
fn copied(history: &History, cache: &Cache, top: &Descriptor) -> Vec<Descriptor> {
    let (mut open, mut beneath) = (vec![top.clone()], Vec::new());
    while let Some(one) = open.pop().filter(|_| beneath.len() < MAX_BENEATH) {
        // What is not there, as of another platform's base, is not kept.
        let Ok(bytes) = cache.content().read(&one.digest, MAX_MANIFEST_BYTES as u64) else {
            continue;
        };
        if let Err(error) = history.attach(&one.media_type, &bytes) {
            tracing::warn!(%error, "the history has not all of a build's result");
            break;
        }
        match Document::parse(&bytes, &one.media_type) {
            Ok(Document::Index(index)) => open.extend(index.manifests),
            Ok(Document::Manifest(manifest)) => open.push(manifest.config),
            // A config.
            Err(_) => {}
        }
        if one.digest != top.digest {
            beneath.push(Descriptor::new(&one.media_type, one.digest, one.size));
        }
    }
    beneath
}

/// What the history is to keep of statements: the name there, the platform it is of, the statement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stated(Vec<(String, String, Attestation)>);

impl Stated {
    /// Adds one; `name` is empty for the only result of a build.
    pub(crate) fn push(&mut self, name: &str, platform: &str, statement: Attestation) {
        self.0.push((name.to_owned(), platform.to_owned(), statement));
    }

    /// Keeps all; `layers` are those of the images that were made, by platform.
    fn keep(
        self,
        history: &History,
        layers: &BTreeMap<String, Vec<Descriptor>>,
    ) -> BTreeMap<String, Vec<Descriptor>> {
        let mut kept: BTreeMap<String, Vec<Descriptor>> = BTreeMap::new();
        for (name, platform, statement) in self.0 {
            let layers = layers.get(&platform).map(Vec::as_slice).unwrap_or_default();
            match attach(history, &statement, layers) {
                Ok(descriptor) => kept.entry(name).or_default().push(descriptor),
                Err(error) => tracing::warn!(error, "the history has no provenance of a build"),
            }
        }
        kept
    }
}

fn attach(history: &History, statement: &Attestation, layers: &[Descriptor]) -> Result<Descriptor, String> {
    let content = statement.predicate.content(layers);
    let bytes = oci::go_json(&content.map_err(|error| error.to_string())?, true);
    let kept = history.attach(IN_TOTO, &bytes);
    let mut descriptor = kept.map_err(|error| error.to_string())?;
    let kind = statement.predicate_type.clone();
    descriptor.annotations.insert(PREDICATE_TYPE.to_owned(), kind);
    Ok(descriptor)
}
