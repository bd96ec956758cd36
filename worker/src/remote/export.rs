//! What a build knows, given to other machines.
//!
//! ```text
//! keys with records ─ refs ─ layers packed ─▶ Exported ─ send ─▶ blobs, config, manifest
//!                      └─ min: only results whose layers are packed already, besides the build's own
//! ```
//!
//! A result that is gone, or cannot be packed, is told without its layers: its key may lead to another that has some.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use base64::Engine;
use cache::remote::{CACHE_CONFIG, CacheManifest, Entry, PackedLayer, Shape, Table};
use cache::{Cache, CompressionChoice, ImmutableRef, LayerBlob, Meter};
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use oci::{Descriptor, DiffId, Digest, ImageConfig, Reference};
use registry::{BlobSource, Registry};
use solver::progress::Sink;
use solver::{ExportedKey, OpError};
use tokio::io::AsyncRead;

use super::{CachePlace, RemoteError};
use crate::meter::SinkMeter;
use crate::worker::{Session, Worker};

/// How many results are packed at the same time; each packs its layers at once.
const PACKED_AT_ONCE: usize = 4;
/// How many layers are sent at the same time.
const SENT_AT_ONCE: usize = 5;

/// Which results are given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Those whose layers the build's own result has, and what is packed already.
    #[default]
    Min,
    /// All.
    Max,
}

/// How and where a cache is given out.
#[derive(Clone, Debug)]
pub struct CacheExport {
    /// Where to.
    pub place: CachePlace,
    /// In which form.
    pub shape: Shape,
    /// Which results.
    pub mode: Mode,
    /// How layers are packed.
    pub compression: CompressionChoice,
}

/// A cache ready to be sent.
pub struct Exported {
    table: Table,
    layers: HashMap<Digest, LayerBlob>,
}

/// Where the config of an image holds its cache.
const INLINE: &str = "moby.buildkit.cache.v0";

/// A key of a build of ours.
type Key = ExportedKey<ImmutableRef>;

/// The results of a key, the newest of the store first, then those of imported caches, which are not fetched.
fn results_of<'a>(
    cache: &'a Cache,
    key: &'a Key,
    sink: &'a Sink,
) -> impl Stream<Item = (ImmutableRef, SystemTime)> + 'a {
    let local = key.records.iter().filter_map(|record| {
        let found = cache.result(&record.result);
        let found = found.inspect_err(|error| {
            tracing::warn!(result = %record.result, %error, "a result is not exported");
        });
        Some((found.ok()??, record.created))
    });
    let imported = stream::iter(&key.imported).filter_map(async |known| {
        let found = known.cache.load(sink, &known.record.result).await;
        Some((found.ok()??, known.record.created))
    });
    let all = stream::iter(local).chain(imported);
    all.filter(|(found, _)| futures_util::future::ready(!found.is_scratch()))
}

/// Puts what is known of `keys` into the config of an image with these layers: results that are made of them.
pub(crate) async fn write_inline(
    cache: &Cache,
    keys: &[Key],
    sink: &Sink,
    image: &[(Digest, DiffId)],
    config: &mut ImageConfig,
) {
    let named = |result: &ImmutableRef| -> Option<Vec<PackedLayer>> {
        let layers = result.layers().iter().map(|layer| {
            let diff_id = layer.diff_id()?;
            // The image's layers are found by their plain tars, however they are packed.
            let descriptor = Descriptor::new("", diff_id.digest(), 0);
            Some(PackedLayer { descriptor, diff_id })
        });
        layers.collect()
    };
    let mut entries = Vec::with_capacity(keys.len());
    for key in keys {
        let mut results = std::pin::pin!(results_of(cache, key, sink));
        let mut result = None;
        while let (None, Some((found, created))) = (&result, results.next().await) {
            result = named(&found).map(|layers| (layers, created));
        }
        entries.push(Entry {
            digest: key.digest,
            inputs: key.inputs.clone(),
            result,
        });
    }
    match Table::new(entries).inline(image) {
        Some(records) => {
            let text = base64::engine::general_purpose::STANDARD.encode(records);
            config.extra.insert(INLINE.to_owned(), text.into());
        }
        None => tracing::warn!("no result of the build is made of the image's layers: it has no cache in it"),
    }
}

impl Worker {
    /// Packs the layers of the results of `keys`.
    ///
    /// # Errors
    /// The store's.
    pub async fn collect_cache(
        &self,
        keys: Vec<Key>,
        mode: Mode,
        compression: CompressionChoice,
        sink: &Sink,
    ) -> Result<Exported, OpError> {
        let meter = SinkMeter::shared(sink.clone());
        // The build's own results first: what they are made of is packed then.
        let (own, others): (Vec<usize>, Vec<usize>) = (0..keys.len()).partition(|at| keys[*at].is_result);
        let mut results = vec![None; keys.len()];
        for group in [own, others] {
            let found = group.into_iter().map(|at| {
                let (key, meter) = (&keys[at], &meter);
                async move {
                    let packs = mode == Mode::Max || key.is_result;
                    (at, self.result_of(key, packs, compression, (meter, sink)).await)
                }
            });
            let mut found = stream::iter(found).buffer_unordered(PACKED_AT_ONCE);
            while let Some((at, result)) = found.next().await {
                results[at] = result;
            }
        }
        let mut layers = HashMap::new();
        let entries = keys.into_iter().zip(results).map(|(key, result)| {
            let result = result.map(|(blobs, created)| {
                let packed = blobs.iter().map(PackedLayer::from).collect();
                layers.extend(blobs.into_iter().map(|blob| (blob.descriptor.digest, blob)));
                (packed, created)
            });
            Entry {
                digest: key.digest,
                inputs: key.inputs,
                result,
            }
        });
        Ok(Exported {
            table: Table::new(entries.collect()),
            layers,
        })
    }

    /// The layers of the newest result of a key that can be had.
    async fn result_of(
        &self,
        key: &Key,
        packs: bool,
        compression: CompressionChoice,
        (meter, sink): (&Arc<dyn Meter>, &Sink),
    ) -> Option<(Vec<LayerBlob>, SystemTime)> {
        let mut results = std::pin::pin!(results_of(&self.cache, key, sink));
        while let Some((found, created)) = results.next().await {
            let blobs = if packs {
                let packed = self.cache.layer_blobs(&found, compression, meter);
                packed.await.map(Some)
            } else {
                self.cache.known_layer_blobs(&found, compression)
            };
            match blobs {
                Ok(Some(blobs)) => return Some((blobs, created)),
                Ok(None) => {}
                Err(error) => tracing::warn!(result = ?found, %error, "a result is not exported"),
            }
        }
        None
    }

    /// Sends a cache to its place; the descriptor of its manifest, or `None` if there is nothing to send.
    ///
    /// # Errors
    /// The place takes it not, or a layer that is known by name only is gone.
    pub async fn export_cache(
        &self,
        session: &Session,
        exported: &Exported,
        export: &CacheExport,
        sink: &Sink,
    ) -> Result<Option<Descriptor>, OpError> {
        Ok(self.send_cache(session, exported, export, sink).await?)
    }

    async fn send_cache(
        &self,
        session: &Session,
        exported: &Exported,
        export: &CacheExport,
        sink: &Sink,
    ) -> Result<Option<Descriptor>, RemoteError> {
        if exported.table.is_empty() {
            drop(sink.begin("skipping cache export for empty result", "skipping"));
            return Ok(None);
        }
        let _activity = sink.begin("sending cache export", "sending");
        let (config, layers) = exported.table.config();
        let to = Sender {
            worker: self,
            session,
            to: match &export.place {
                CachePlace::Registry {
                    reference,
                    is_insecure,
                } => To::Registry {
                    registry: self.registry_to(session, reference, *is_insecure),
                    reference,
                },
                CachePlace::Store(name) => To::Store(name),
            },
            meter: SinkMeter::shared(sink.clone()),
        };
        stream::iter(layers.iter().map(Ok))
            .try_for_each_concurrent(SENT_AT_ONCE, |layer| async {
                let _activity = sink.begin(format!("writing layer {}", layer.digest), "writing");
                let stored = exported.layers.get(&layer.digest);
                to.layer(
                    stored.ok_or(RemoteError::NotFound { digest: layer.digest })?,
                    layer,
                )
                .await
            })
            .await?;
        let config = config.to_json();
        let described = Descriptor::of(CACHE_CONFIG, &config);
        {
            let _activity = sink.begin(format!("writing config {}", described.digest), "writing");
            to.bytes(&described, config).await?;
        }
        let (manifest, media_type) = CacheManifest::write(export.shape, described, layers);
        let described = Descriptor::of(media_type, &manifest);
        let what = match export.shape {
            Shape::Image => "cache image manifest",
            Shape::Index | Shape::List => "cache manifest",
        };
        let _activity = sink.begin(format!("writing {what} {}", described.digest), "writing");
        to.manifest(&described, manifest).await?;
        Ok(Some(described))
    }
}

/// A place that can be written to.
enum To<'a> {
    Registry {
        registry: Registry,
        reference: &'a Reference,
    },
    Store(&'a str),
}

/// One place that is written to.
struct Sender<'a> {
    worker: &'a Worker,
    session: &'a Session,
    to: To<'a>,
    meter: Arc<dyn Meter>,
}

impl Sender<'_> {
    async fn layer(&self, stored: &LayerBlob, layer: &Descriptor) -> Result<(), RemoteError> {
        let source = Lazy {
            cache: self.worker.cache.clone(),
            blob: stored.clone(),
            meter: self.meter.clone(),
        };
        match &self.to {
            To::Registry { registry, reference } => {
                let origin = stored.origin.as_ref();
                let origin = origin.and_then(|origin| Reference::parse_normalized(&origin.0).ok());
                let mount_from: Vec<_> = origin.into_iter().collect();
                registry
                    .push_blob(reference, layer, &source, &mount_from, None)
                    .await?;
            }
            To::Store(store) => {
                let read = |source| RemoteError::Read {
                    digest: layer.digest,
                    source,
                };
                let contents = source.open().await.map_err(read)?;
                let caller = self.session.caller();
                caller
                    .put_blob(store, &layer.digest, layer.size, contents)
                    .await?;
            }
        }
        Ok(())
    }

    async fn bytes(&self, descriptor: &Descriptor, bytes: Vec<u8>) -> Result<(), RemoteError> {
        match &self.to {
            To::Registry { registry, reference } => {
                registry
                    .push_blob(reference, descriptor, &InMemory(bytes), &[], None)
                    .await?;
            }
            To::Store(store) => {
                let contents = Box::new(io::Cursor::new(bytes));
                let caller = self.session.caller();
                caller
                    .put_blob(store, &descriptor.digest, descriptor.size, contents)
                    .await?;
            }
        }
        Ok(())
    }

    async fn manifest(&self, descriptor: &Descriptor, bytes: Vec<u8>) -> Result<(), RemoteError> {
        match &self.to {
            To::Registry { registry, reference } => {
                registry
                    .push_manifest(reference, &descriptor.media_type, &bytes, false)
                    .await?;
                Ok(())
            }
            To::Store(_) => self.bytes(descriptor, bytes).await,
        }
    }
}

/// A layer that is fetched only if whoever takes it has it not.
struct Lazy {
    cache: Cache,
    blob: LayerBlob,
    meter: Arc<dyn Meter>,
}

#[async_trait]
impl BlobSource for Lazy {
    async fn open(&self) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        let LayerBlob {
            layer, descriptor, ..
        } = &self.blob;
        let ensured = self.cache.ensure_blob(layer, descriptor, &self.meter).await;
        ensured.map_err(io::Error::other)?;
        let file = self
            .cache
            .content()
            .open(&descriptor.digest)
            .map_err(io::Error::other)?;
        Ok(Box::new(tokio::fs::File::from_std(file)))
    }
}

struct InMemory(Vec<u8>);

#[async_trait]
impl BlobSource for InMemory {
    async fn open(&self) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Ok(Box::new(io::Cursor::new(self.0.clone())))
    }
}
