//! A cache of another machine as the solver asks it.
//!
//! ```text
//! place ─ manifest ─┬─ of a cache ─▶ config ─▶ RemoteKeys ─▶ Imported
//!                   └─ of an image ─▶ image: the cache in its config ─▶ Imported, one per platform
//! Imported::load(result) ─▶ are its layers to be had? ─▶ refs of layers that are known by name
//! ```
//!
//! A registry is only asked whether it has the layers; they are fetched when something reads them. From a store of the
//! caller's they are copied at once, as the next build may have another caller.
//!
//! What cannot be had is a miss, and the log says so.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use cache::remote::{CacheConfig, CacheManifest, Limits, RemoteCacheError, RemoteKeys, RemoteLayer};
use cache::{Blob, Cache, ImmutableRef, Origin, RecordInfo};
use futures_util::stream::{self, TryStreamExt};
use keys::{KeyStore, ResultId};
use oci::{Descriptor, Digest, MAX_MANIFEST_BYTES, Reference};
use parking_lot::Mutex;
use registry::Registry;
use session::Caller;
use solver::progress::{Sink, Warning};
use solver::{ImportedCache, OpError};
use tokio::io::AsyncReadExt;
use tokio_util::io::SyncIoBridge;

use super::place::{Blobs, CachePlace, stored};
use super::{RemoteError, image};
use crate::worker::{Session, Worker};

/// How many layers are looked for, or copied, at the same time.
const AT_ONCE: usize = 8;

/// A cache of another machine, for one build.
pub struct Imported {
    keys: Arc<RemoteKeys>,
    cache: Cache,
    from: From,
    /// For people.
    name: String,
    /// Layers that were found in their registry.
    found: Mutex<HashSet<Digest>>,
    /// What was loaded, as the store names it.
    loaded: Mutex<Vec<ResultId>>,
}

/// Where layers come from.
#[derive(Clone)]
enum From {
    Registry {
        registry: Registry,
        reference: Reference,
        worker: Weak<Worker>,
    },
    Store {
        caller: Arc<dyn Caller>,
        store: String,
    },
}

impl Worker {
    /// Reads what is in a cache; its layers are looked at when a result of it is used. `digest` names its manifest, which
    /// a store of the caller's needs. Several caches if it is an image of several platforms, none if that has no cache.
    ///
    /// # Errors
    /// The cache is not to be had or not valid: a build goes on without it.
    pub async fn import_cache(
        &self,
        session: &Session,
        place: &CachePlace,
        digest: Option<Digest>,
        sink: &Sink,
    ) -> Result<Vec<Arc<Imported>>, OpError> {
        Ok(self.read_cache(session, place, digest, sink).await?)
    }

    async fn read_cache(
        &self,
        session: &Session,
        place: &CachePlace,
        digest: Option<Digest>,
        sink: &Sink,
    ) -> Result<Vec<Arc<Imported>>, RemoteError> {
        let blobs = Blobs::new(self, session, place);
        let (bytes, from, name) = match (&blobs, digest) {
            (Blobs::Registry { registry, reference }, _) => {
                let resolved = registry.resolve(reference).await?;
                let from = From::Registry {
                    registry: registry.clone(),
                    reference: reference.clone(),
                    worker: Arc::downgrade(&self.shared()),
                };
                (resolved.bytes.to_vec(), from, reference.to_string())
            }
            (Blobs::Store { caller, name }, Some(digest)) => {
                let bytes = stored(caller, name, &digest, MAX_MANIFEST_BYTES as u64).await?;
                let from = From::Store {
                    caller: caller.clone(),
                    store: name.clone(),
                };
                (bytes, from, name.clone())
            }
            (Blobs::Store { .. }, None) => {
                return Err(invalid(
                    &"a local cache is imported by the digest of its manifest",
                ));
            }
        };
        let kind = oci::Document::parse(&bytes, "").map_err(|error| invalid(&error))?;
        let kind = match kind {
            oci::Document::Manifest(manifest) => manifest.media_type,
            oci::Document::Index(index) => index.media_type,
        };
        drop(sink.begin(format!("inferred cache manifest type: {kind}"), "inferred"));
        let limits = Limits::default();
        let found = match CacheManifest::parse(&bytes)? {
            Some(manifest) => {
                let config = blobs.document(&manifest.config, limits.config_bytes).await?;
                let parsed = move || {
                    let config = CacheConfig::parse(&config)?;
                    RemoteKeys::new(&config, &manifest.layers, limits)
                };
                vec![
                    tokio::task::spawn_blocking(parsed)
                        .await
                        .map_err(|_| RemoteError::Thread)??,
                ]
            }
            None => image::keys(&blobs, &bytes, limits).await?,
        };
        if found.is_empty() {
            sink.warn(Warning {
                short: format!("there is no cache in {name}"),
                ..Warning::default()
            });
        }
        let imported = found.into_iter().map(|keys| {
            let (count, results) = keys.counts();
            tracing::debug!(%name, count, results, "cache imported");
            Arc::new(Imported {
                keys: Arc::new(keys),
                cache: self.cache.clone(),
                from: from.clone(),
                name: name.clone(),
                found: Mutex::default(),
                loaded: Mutex::default(),
            })
        });
        Ok(imported.collect())
    }
}

fn invalid(reason: &dyn std::fmt::Display) -> RemoteError {
    RemoteError::Document(RemoteCacheError::Invalid {
        what: "the cache manifest",
        reason: reason.to_string(),
    })
}

#[async_trait]
impl ImportedCache<ImmutableRef> for Imported {
    fn keys(&self) -> Arc<dyn KeyStore> {
        self.keys.clone()
    }

    async fn load(&self, progress: &Sink, id: &ResultId) -> Result<Option<ImmutableRef>, OpError> {
        let Some(layers) = self.keys.layers(id) else {
            return Ok(None);
        };
        match self.bring(layers, progress).await {
            Ok(made) => {
                self.loaded.lock().extend(self.cache.result_id(&made));
                Ok(Some(made))
            }
            Err(error) => {
                let reason = format!("a result of the cache {} is not to be had: {error}", self.name);
                tracing::warn!("{reason}");
                progress.warn(Warning {
                    short: reason,
                    ..Warning::default()
                });
                Ok(None)
            }
        }
    }
}

impl Imported {
    /// Whether a result of it was loaded.
    pub fn is_used(&self) -> bool {
        !self.loaded.lock().is_empty()
    }

    /// Lets no later build find what was loaded from here: its layers may not be what they were said to be, which shows
    /// when they are fetched. A build that imports the cache again finds it there.
    pub fn forget(&self) {
        for result in std::mem::take(&mut *self.loaded.lock()) {
            if let Err(error) = self.cache.keys().release(&result) {
                tracing::warn!(%result, error = &error as &dyn std::error::Error, "an imported result stays");
            }
        }
    }

    /// The ref of these layers, after a look at whether they can be had.
    async fn bring(&self, layers: &[RemoteLayer], sink: &Sink) -> Result<ImmutableRef, RemoteError> {
        stream::iter(layers.iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |layer| self.ensure(&layer.descriptor, sink))
            .await?;
        let origin = match &self.from {
            From::Registry {
                registry,
                reference,
                worker,
            } => {
                let origin = Origin(reference.name());
                if let Some(worker) = worker.upgrade() {
                    worker.remember_origin(&origin, registry);
                }
                Some(origin)
            }
            From::Store { .. } => None,
        };
        let mut made = self.cache.scratch();
        for layer in layers {
            let description = match layer.description.as_str() {
                "" => format!("imported from {}", self.name),
                said => said.to_owned(),
            };
            let info = RecordInfo::new(description);
            let blob = Blob {
                descriptor: &layer.descriptor,
                diff_id: layer.diff_id,
                origin: origin.as_ref(),
                created: Some(layer.created.0),
            };
            made = self.cache.add_blob(&made, blob, info)?;
        }
        Ok(made)
    }

    /// Makes sure that a layer can be had when it is needed.
    async fn ensure(&self, layer: &Descriptor, sink: &Sink) -> Result<(), RemoteError> {
        let digest = layer.digest;
        if self.cache.content().touch(&digest)? {
            return Ok(());
        }
        match &self.from {
            From::Registry {
                registry, reference, ..
            } => {
                if self.found.lock().contains(&digest) {
                    return Ok(());
                }
                if !registry.has_blob(reference, &digest).await? {
                    return Err(RemoteError::NotFound { digest });
                }
                self.found.lock().insert(digest);
                Ok(())
            }
            From::Store { caller, store } => {
                let _activity = sink.begin(digest.to_string(), "copying");
                let stream = caller.blob(store, &digest).await?;
                let stream = stream.ok_or(RemoteError::NotFound { digest })?;
                let (cache, mut stream) = (
                    self.cache.clone(),
                    SyncIoBridge::new(stream.take(layer.size.saturating_add(1))),
                );
                let copied = move || cache.content().put_stream(&mut stream, Some(digest));
                tokio::task::spawn_blocking(copied)
                    .await
                    .map_err(|_| RemoteError::Thread)??;
                Ok(())
            }
        }
    }
}
