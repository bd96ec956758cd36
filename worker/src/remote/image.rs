//! The cache inside an image: records in its config, layers in its manifest.
//!
//! ```text
//! manifest, or an index of some ─▶ config ─ "moby.buildkit.cache.v0" ─▶ records
//!                            └──▶ layers, with diff ids and history of the config
//! ```

use std::collections::HashMap;

use base64::Engine;
use cache::remote::{CacheConfig, CacheLayer, Limits, RemoteCacheError, RemoteKeys, RemoteLayer};
use oci::{DiffId, Digest, Document, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Manifest};
use serde::Deserialize;

use super::RemoteError;
use super::place::Blobs;

/// The most images of an index that are looked at.
const MAX_IMAGES: usize = 100;
/// The most indexes within each other.
const MAX_DEPTH: usize = 3;

/// What is read of an image config.
#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    rootfs: RootFs,
    #[serde(rename = "moby.buildkit.cache.v0", default)]
    cache: Option<String>,
    #[serde(default)]
    history: Option<Vec<Entry>>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    empty_layer: bool,
}

/// The caches of the images that `bytes` is or lists.
pub(super) async fn keys(
    blobs: &Blobs,
    bytes: &[u8],
    limits: Limits,
) -> Result<Vec<RemoteKeys>, RemoteError> {
    let mut found = Vec::new();
    for manifest in manifests(blobs, bytes).await? {
        let config = blobs.document(&manifest.config, MAX_CONFIG_BYTES as u64).await?;
        let image: Image =
            serde_json::from_slice(&config).map_err(|error| invalid("the image config", error))?;
        found.extend(of_image(image, manifest, limits)?);
    }
    Ok(found)
}

async fn manifests(blobs: &Blobs, bytes: &[u8]) -> Result<Vec<Manifest>, RemoteError> {
    let read =
        |bytes: &[u8]| Document::parse(bytes, "").map_err(|error| invalid("the cache manifest", error));
    let mut open = vec![(read(bytes)?, 0)];
    let mut found = Vec::new();
    while let Some((document, depth)) = open.pop() {
        match document {
            Document::Manifest(manifest) => found.push(manifest),
            Document::Index(index) if depth < MAX_DEPTH => {
                // Attestations are listed with a platform nobody has.
                let images = index.manifests.iter();
                let images = images.filter(|entry| entry.platform.as_ref().is_none_or(|p| p.os != "unknown"));
                for entry in images {
                    if open.len() + found.len() >= MAX_IMAGES {
                        return Err(invalid(
                            "the index",
                            format!("it lists more than {MAX_IMAGES} images"),
                        ));
                    }
                    let bytes = blobs.document(entry, MAX_MANIFEST_BYTES as u64).await?;
                    open.push((read(&bytes)?, depth + 1));
                }
            }
            Document::Index(_) => return Err(invalid("the index", "it lists indexes of indexes")),
        }
    }
    Ok(found)
}

/// The cache of one image; `None` where it has none.
fn of_image(image: Image, manifest: Manifest, limits: Limits) -> Result<Option<RemoteKeys>, RemoteError> {
    let Some(cache) = image.cache.filter(|_| !manifest.layers.is_empty()) else {
        return Ok(None);
    };
    let diff_ids = image.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != manifest.layers.len() {
        let (layers, ids) = (manifest.layers.len(), diff_ids.len());
        return Err(invalid(
            "the image",
            format!("its manifest has {layers} layers, its config {ids}"),
        ));
    }
    let records = base64::engine::general_purpose::STANDARD
        .decode(cache)
        .map_err(|error| invalid("the cache in the image config", error))?;
    let mut config = CacheConfig {
        records: CacheConfig::parse_records(&records)?,
        layers: Vec::new(),
    };
    let history = image.history.unwrap_or_default();
    let mut history = history.into_iter().filter(|entry| !entry.empty_layer);
    let mut layers = HashMap::new();
    for (parent, (mut descriptor, diff_id)) in (-1..).zip(manifest.layers.into_iter().zip(diff_ids)) {
        let said = history.next();
        let created = said
            .as_ref()
            .and_then(|entry| entry.created.as_ref()?.parse().ok());
        let blob = descriptor.digest;
        config.layers.push(CacheLayer { blob, parent });
        descriptor.annotations.clear();
        layers.insert(
            blob,
            RemoteLayer {
                descriptor,
                diff_id: DiffId::new(diff_id),
                created: created.unwrap_or_default(),
                description: said.map(|entry| entry.created_by).unwrap_or_default(),
            },
        );
    }
    Ok(Some(RemoteKeys::new(&config, &layers, limits)?))
}

fn invalid(what: &'static str, reason: impl ToString) -> RemoteError {
    RemoteError::Document(RemoteCacheError::Invalid {
        what,
        reason: reason.to_string(),
    })
}
