//! What is attested of an image, and who signed that: found, not verified.
//!
//! ```text
//! index ─ platform ─▶ image manifest ◀─ annotation ─ attestation manifest ◀─ referrers ─ signature manifest ─▶ its layers
//!                                                      └─ layers of the predicates that are wanted
//! ```
//!
//! The bytes of all but the image manifest are told, so that whoever decides about the image can verify them.
//!
//! Differs: attestations of Docker's hardened images are looked for as those of any other; BuildKit asks another registry.

use std::collections::BTreeMap;

use oci::{
    Descriptor, Digest, Document, Index, MAX_MANIFEST_BYTES, Manifest, OCI_INDEX, Platform, Reference,
};
use registry::Registry;
use solver::{OpError, progress::Sink};

use super::image::{ImageError, Place, Reader, ResolveMode};
use crate::worker::{Session, Worker};

/// Annotations of an index by which attestations name their image.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
const ATTESTATION: &str = "attestation-manifest";
/// What kind of statement a layer of an attestation manifest is.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// What signatures are kept as, the better first.
const SIGNATURES: [&str; 2] = [
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.cosign.artifact.sig.v1+json",
];
/// The most bytes of one part, and of all: they go into one message.
const MAX_PART: usize = 8 << 20;
const MAX_BYTES: usize = 12 << 20;

/// An image, what is attested of it, and signatures of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationChain {
    /// The index.
    pub root: Digest,
    /// The image of the platform.
    pub image: Digest,
    /// What is attested of it.
    pub attestation: Option<Digest>,
    /// Who signed that; one at most.
    pub signatures: Vec<Digest>,
    /// Index, attestation, signature and its layers, statements that were asked for.
    pub blobs: BTreeMap<Digest, (Descriptor, Vec<u8>)>,
}

impl Worker {
    /// What is attested of the image of a platform, with the statements of the kinds `predicates`; `None` for an image
    /// that is in no index of the OCI.
    ///
    /// # Errors
    /// There is no such image, or none for the platform, or it cannot be reached.
    pub async fn attestation_chain(
        &self,
        session: &Session,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
        predicates: &[String],
        sink: &Sink,
    ) -> Result<Option<AttestationChain>, OpError> {
        let reference = &reference.clone().with_default_tag();
        let _activity = sink.begin(format!("resolve attestations of {reference}"), "resolve");
        let (from, target) = self.locate(session, reference, mode).await?;
        if target.media_type != OCI_INDEX {
            return Ok(None);
        }
        let reader = Reader {
            cache: &self.cache,
            reference,
            from: &from,
        };
        let registry = self.registry_for(session);
        Ok(Some(
            chain(&reader, &registry, &target, platform, predicates).await?,
        ))
    }
}

async fn chain<'a>(
    reader: &'a Reader<'a>,
    registry: &Registry,
    target: &Descriptor,
    platform: &Platform,
    predicates: &[String],
) -> Result<AttestationChain, ImageError> {
    // What signs it need not be in the own store, even where the image is.
    let elsewhere = Place::Registry(registry.clone());
    let signed = Reader {
        from: &elsewhere,
        ..*reader
    };
    let mut parts = Parts {
        reader,
        blobs: BTreeMap::new(),
        size: 0,
    };
    let index: Index = match Document::parse(&parts.take(target).await?, &target.media_type) {
        Ok(Document::Index(index)) => index,
        Ok(Document::Manifest(_)) => return Err(reader.invalid("an index that is a manifest")),
        Err(error) => return Err(reader.invalid(error)),
    };
    let image = image_of(reader, &index, platform)?;
    let says = |entry: &&Descriptor, key: &str, value: &str| {
        entry.annotations.get(key).is_some_and(|found| found == value)
    };
    let attestation = index.manifests.iter().find(|entry| {
        says(entry, REFERENCE_TYPE, ATTESTATION) && says(entry, REFERENCE_DIGEST, &image.to_string())
    });
    let mut signatures = Vec::new();
    if let Some(attestation) = attestation {
        let statements = parts.manifest(attestation).await?;
        let mut all = referrers(reader, registry, &attestation.digest).await?;
        let rank = |entry: &Descriptor| {
            let kind = entry.artifact_type.as_deref();
            SIGNATURES.iter().position(|known| kind == Some(known))
        };
        all.retain(|entry| rank(entry).is_some());
        if let Some(signature) = all.iter().min_by_key(|entry| rank(entry)) {
            parts.reader = &signed;
            for layer in &parts.manifest(signature).await?.layers {
                parts.take(layer).await?;
            }
            parts.reader = reader;
            signatures.push(signature.digest);
        }
        for layer in &statements.layers {
            let kind = layer.annotations.get(PREDICATE_TYPE);
            if kind.is_some_and(|kind| predicates.contains(kind)) {
                parts.take(layer).await?;
            }
        }
    }
    Ok(AttestationChain {
        root: target.digest,
        image,
        attestation: attestation.map(|attestation| attestation.digest),
        signatures,
        blobs: parts.blobs,
    })
}

/// What refers to a manifest. An image of the own store need not be in any registry; then nobody has signed it.
async fn referrers(
    reader: &Reader<'_>,
    registry: &Registry,
    subject: &Digest,
) -> Result<Vec<Descriptor>, ImageError> {
    match (registry.referrers(reader.reference, subject).await, reader.from) {
        (Err(error), Place::Store) => {
            tracing::debug!(%error, reference = %reader.reference, "no signatures of an image of the own store");
            Ok(Vec::new())
        }
        (found, _) => Ok(found?),
    }
}

/// The image of a platform: the best that names one, else the first that names none.
fn image_of(reader: &Reader<'_>, index: &Index, platform: &Platform) -> Result<Digest, ImageError> {
    let manifests = || {
        index
            .manifests
            .iter()
            .filter(|entry| oci::is_manifest(&entry.media_type))
    };
    let named: Vec<(&Descriptor, &Platform)> = manifests()
        .filter_map(|entry| Some((entry, entry.platform.as_ref()?)))
        .collect();
    let chosen = Platform::choose(named.iter().map(|(_, platform)| *platform), platform);
    let image = match chosen.and_then(|at| named.get(at)) {
        Some((entry, _)) => Some(*entry),
        None => manifests().find(|entry| entry.platform.is_none()),
    };
    let offered: Vec<Platform> = named.iter().map(|(_, platform)| (*platform).clone()).collect();
    let image = image.ok_or_else(|| reader.no_platform(platform, &offered))?;
    Ok(image.digest)
}

/// Parts that are told.
struct Parts<'a> {
    reader: &'a Reader<'a>,
    blobs: BTreeMap<Digest, (Descriptor, Vec<u8>)>,
    size: usize,
}

impl Parts<'_> {
    /// Reads a part, once.
    async fn take(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if let Some((_, bytes)) = self.blobs.get(&descriptor.digest) {
            return Ok(bytes.clone());
        }
        let limit = match oci::is_index(&descriptor.media_type) || oci::is_manifest(&descriptor.media_type) {
            true => MAX_MANIFEST_BYTES,
            false => MAX_PART,
        };
        let bytes = self.reader.blob(descriptor, limit).await?;
        self.size += bytes.len();
        if self.size > MAX_BYTES {
            let reason = format!("what is attested of it has more than {MAX_BYTES} bytes");
            return Err(self.reader.invalid(reason));
        }
        let entry = (descriptor.clone(), bytes.clone());
        self.blobs.insert(descriptor.digest, entry);
        Ok(bytes)
    }

    async fn manifest(&mut self, descriptor: &Descriptor) -> Result<Manifest, ImageError> {
        let bytes = self.take(descriptor).await?;
        match Document::parse(&bytes, &descriptor.media_type) {
            Ok(Document::Manifest(manifest)) => Ok(manifest),
            Ok(Document::Index(_)) => Err(self.reader.invalid("an attestation that is an index")),
            Err(error) => Err(self.reader.invalid(error)),
        }
    }
}
