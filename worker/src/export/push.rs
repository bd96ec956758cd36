//! An image to its registry: blobs at the same time, then manifests, then names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::TryStreamExt;
use oci::{Descriptor, Digest, MAX_MANIFEST_BYTES, Reference};
use registry::{BlobSource, Progress, Registry};
use solver::progress::Sink;
use tokio::io::AsyncRead;

use super::ExportError;
use super::attrs::Attrs;
use super::image::{BuiltImage, BuiltLayer};
use crate::meter::SinkMeter;
use crate::worker::{Session, Worker};

/// How many blobs are sent at the same time.
const AT_ONCE: usize = 5;

/// A blob of the store.
struct Stored(PathBuf);

#[async_trait]
impl BlobSource for Stored {
    async fn open(&self) -> std::io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Ok(Box::new(tokio::fs::File::open(&self.0).await?))
    }
}

/// One blob to be sent, and the repositories that may have it.
struct Blob {
    descriptor: Descriptor,
    layer: Option<BuiltLayer>,
    mount_from: Vec<Reference>,
}

/// Sends the image under all its names.
pub(super) async fn push(
    worker: &Worker,
    session: &Session,
    built: &BuiltImage,
    attrs: &Attrs,
    sink: &Sink,
) -> Result<(), ExportError> {
    for name in &attrs.names {
        let registry = worker.registry_to(session, name, attrs.is_insecure);
        {
            let _activity = sink.begin("pushing layers", "pushing");
            let blobs = blobs(built);
            let registry = &registry;
            futures_util::stream::iter(blobs.values().map(Ok))
                .try_for_each_concurrent(AT_ONCE, |blob| async move {
                    send(worker, registry, name, blob, sink).await
                })
                .await?;
        }
        let _activity = sink.begin(
            format!("pushing manifest for {name}@{}", built.target.digest),
            "pushing",
        );
        if built.is_index {
            for manifest in built.documents() {
                send_manifest(worker, &registry, name, &manifest.descriptor, true).await?;
            }
        }
        send_manifest(worker, &registry, name, &built.target, attrs.push_by_digest).await?;
    }
    Ok(())
}

fn blobs(built: &BuiltImage) -> BTreeMap<Digest, Blob> {
    let mut blobs = BTreeMap::new();
    for manifest in built.documents() {
        for layer in &manifest.layers {
            let origin = layer.stored.as_ref().and_then(|stored| stored.origin.as_ref());
            let mount_from = origin.and_then(|origin| Reference::parse_normalized(&origin.0).ok());
            let blob = Blob {
                descriptor: layer.descriptor.clone(),
                layer: Some(layer.clone()),
                mount_from: mount_from.into_iter().collect(),
            };
            blobs.insert(layer.descriptor.digest, blob);
        }
        let config = Blob {
            descriptor: manifest.config.clone(),
            layer: None,
            mount_from: Vec::new(),
        };
        blobs.insert(manifest.config.digest, config);
    }
    blobs
}

async fn send(
    worker: &Worker,
    registry: &Registry,
    name: &Reference,
    blob: &Blob,
    sink: &Sink,
) -> Result<(), ExportError> {
    let digest = blob.descriptor.digest;
    // What was pulled and never read is not here; it is needed only if the registry lacks it.
    let is_here = worker.cache.content().touch(&digest)?;
    if let (false, Some(stored)) = (
        is_here,
        blob.layer.as_ref().and_then(|layer| layer.stored.as_ref()),
    ) {
        let meter = SinkMeter::shared(sink.clone());
        worker
            .cache
            .ensure_blob(&stored.layer, &stored.descriptor, &meter)
            .await?;
    }
    let activity = parking_lot::Mutex::new(sink.begin(format!("pushing {digest}"), "pushing"));
    let total = blob.descriptor.size;
    let progress: Progress = Arc::new(move |sent| activity.lock().set(sent, total));
    let source = Stored(worker.cache.content().path(&digest));
    registry
        .push_blob(name, &blob.descriptor, &source, &blob.mount_from, Some(progress))
        .await?;
    Ok(())
}

async fn send_manifest(
    worker: &Worker,
    registry: &Registry,
    name: &Reference,
    manifest: &Descriptor,
    by_digest: bool,
) -> Result<(), ExportError> {
    let bytes = worker
        .cache
        .content()
        .read(&manifest.digest, MAX_MANIFEST_BYTES as u64)?;
    registry
        .push_manifest(name, &manifest.media_type, &bytes, by_digest)
        .await?;
    Ok(())
}
