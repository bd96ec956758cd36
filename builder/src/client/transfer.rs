//! `push` and `pull`: images between the store and a registry, blobs side by side, shown as they move.
//!
//! ```text
//! pull: name ─▶ manifest (or index ─▶ this platform's) ─▶ config and layers, several at once ─▶ named in the store
//! push: image ─▶ blobs of every manifest, several at once ─▶ manifests ─▶ index
//! ```
use super::store::{open_store, registry};
use super::{Signals, runtime};
use crate::build::BuildError;
use crate::config::Config;
use crate::progress::{Kind, Look, Screen};
use crate::stored::{self, StoredError};
use async_trait::async_trait;
use cache::{Cache, CacheError, ImmutableRef};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use keys::ResultId;
use llb::Vertex;
use oci::{
    Descriptor, Digest, Document, DocumentError, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Platform, Reference,
};
use parking_lot::Mutex;
use registry::{BlobSource, Registry, RegistryError, Resolved};
use solver::progress::Sink;
use solver::{Job, Op, OpError, Ops, Solver};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

/// Blobs that move at once.
const AT_ONCE: usize = 4;

/// How a transfer is shown.
pub struct Shown {
    /// Which display.
    pub kind: Kind,
    /// How it looks.
    pub look: Look,
}

/// Why an image was not transferred.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The registry, or the way there.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image in the store.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// The store.
    #[error(transparent)]
    Store(#[from] CacheError),
    /// A document that cannot be believed.
    #[error("manifest of {name}")]
    Document {
        /// The image.
        name: String,
        /// Why.
        source: DocumentError,
    },
    /// There is none for the platform.
    #[error("{name} is not for {wanted}; it is for {found}")]
    Platform {
        /// The image.
        name: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// A piece of work was lost.
    #[error("store blob {digest}: {reason}")]
    Lost {
        /// The blob.
        digest: Digest,
        /// Why.
        reason: String,
    },
}

/// The digests that registries give for names now, in the same order; several are asked at once.
///
/// # Errors
/// The first name that cannot be resolved.
pub fn digests(config: &Config, names: &[Reference]) -> anyhow::Result<Vec<Digest>> {
    runtime()?.block_on(async {
        let registry = registry(config)?;
        let asked = names.iter().map(|name| {
            let registry = &registry;
            async move {
                Ok(registry
                    .resolve(name)
                    .await
                    .map_err(TransferError::from)?
                    .descriptor
                    .digest)
            }
        });
        stream::iter(asked).buffered(AT_ONCE).try_collect().await
    })
}

/// Fetches an image and names it; answers the digest of what the name means now.
///
/// # Errors
/// [`TransferError`], or a signal came.
pub fn pull(
    config: &Config,
    name: &Reference,
    platform: Option<&Platform>,
    shown: Shown,
) -> anyhow::Result<Digest> {
    let cache = open_store(config)?;
    let title = format!("pulling {}", name.familiar());
    runtime()?.block_on(async {
        let registry = registry(config)?;
        show(title, shown, async |sink| {
            fetch(&cache, &registry, name, platform, sink).await
        })
        .await
    })
}

/// Sends an image of the store under a name; answers the digest it has there.
///
/// # Errors
/// [`TransferError`], or a signal came.
pub fn push(config: &Config, image: &str, target: &Reference, shown: Shown) -> anyhow::Result<Digest> {
    let cache = open_store(config)?;
    let title = format!("pushing {}", target.familiar());
    runtime()?.block_on(async {
        let registry = registry(config)?;
        show(title, shown, async |sink| {
            send(&cache, &registry, image, target, sink).await
        })
        .await
    })
}

/// Runs a transfer as one step on the screen; a signal drops it.
async fn show<F>(title: String, shown: Shown, transfer: F) -> anyhow::Result<Digest>
where
    F: AsyncFnOnce(&Sink) -> Result<Digest, TransferError>,
{
    let signals = Signals::listen()?;
    let solver: Solver<ImmutableRef> = Solver::new(
        Arc::new(NoOps),
        Arc::new(keys::MemoryStore::default()),
        solver::Options::default(),
    );
    let job: Job<ImmutableRef> = solver.job("transfer", Arc::new(()));
    let screen = Screen::start(job.progress(), shown.kind, shown.look)?;
    let step = job.step("transfer", title);
    let result = tokio::select! {
        biased;
        signal = signals.received() => Err(anyhow::Error::from(BuildError::Cancelled { signal })),
        done = transfer(step.sink()) => done.map_err(anyhow::Error::from),
    };
    match &result {
        Err(error) if error.is::<BuildError>() => drop(step),
        other => step.finish(other.as_ref().err().map(|error| format!("{error:#}"))),
    }
    job.discard().await;
    screen.finish().await;
    result
}

async fn fetch(
    cache: &Cache,
    registry: &Registry,
    name: &Reference,
    platform: Option<&Platform>,
    sink: &Sink,
) -> Result<Digest, TransferError> {
    let _lease = cache.lease();
    let resolved = {
        let _activity = sink.begin(format!("resolve {name}"), "resolving");
        registry.resolve(name).await?
    };
    let document = |resolved: &Resolved| {
        Document::parse(&resolved.bytes, &resolved.descriptor.media_type).map_err(|source| {
            TransferError::Document {
                name: name.to_string(),
                source,
            }
        })
    };
    let (resolved, manifest) = match document(&resolved)? {
        Document::Manifest(manifest) => (resolved, manifest),
        Document::Index(index) => {
            let chosen = choose(name, &index.manifests, platform)?;
            let bytes = registry.fetch_manifest(name, &chosen).await?;
            let resolved = Resolved {
                descriptor: chosen,
                bytes,
            };
            match document(&resolved)? {
                Document::Manifest(manifest) => (resolved, manifest),
                Document::Index(_) => return Err(not_for(name, platform, &[])),
            }
        }
    };
    let target = Descriptor {
        annotations: Default::default(),
        ..resolved.descriptor
    };
    cache.content().put(&resolved.bytes)?;
    if manifest.config.size > MAX_CONFIG_BYTES as u64 {
        let reason = format!("the configuration has more than {MAX_CONFIG_BYTES} bytes");
        return Err(TransferError::Lost {
            digest: manifest.config.digest,
            reason,
        });
    }
    let blobs: Vec<&Descriptor> = std::iter::once(&manifest.config)
        .chain(&manifest.layers)
        .collect();
    stream::iter(
        blobs
            .iter()
            .map(|blob| fetch_blob(cache, registry, name, blob, sink)),
    )
    .buffer_unordered(AT_ONCE)
    .try_collect::<Vec<()>>()
    .await?;
    let digests: Vec<Digest> = std::iter::once(target.digest)
        .chain(blobs.iter().map(|blob| blob.digest))
        .collect();
    cache.images().set(&name.to_string(), &target, &digests)?;
    let (settling, digest) = (cache.clone(), target.digest);
    let synced = tokio::task::spawn_blocking(move || settling.barrier()).await;
    synced.map_err(|error| TransferError::Lost {
        digest,
        reason: error.to_string(),
    })??;
    Ok(target.digest)
}

fn choose(
    name: &Reference,
    manifests: &[Descriptor],
    platform: Option<&Platform>,
) -> Result<Descriptor, TransferError> {
    let wanted = platform.cloned().unwrap_or_else(Platform::host);
    let ranked = manifests
        .iter()
        .filter_map(|found| Some((found.platform.as_ref()?.rank_for(&wanted)?, found)));
    match ranked.min_by_key(|(rank, _)| *rank) {
        Some((_, found)) => Ok(found.clone()),
        None => Err(not_for(name, platform, manifests)),
    }
}

fn not_for(name: &Reference, platform: Option<&Platform>, manifests: &[Descriptor]) -> TransferError {
    let found: Vec<String> = manifests
        .iter()
        .filter_map(|found| found.platform.as_ref())
        .map(ToString::to_string)
        .collect();
    TransferError::Platform {
        name: name.to_string(),
        wanted: platform.cloned().unwrap_or_else(Platform::host).to_string(),
        found: if found.is_empty() {
            "nothing it says".into()
        } else {
            found.join(", ")
        },
    }
}

async fn fetch_blob(
    cache: &Cache,
    registry: &Registry,
    name: &Reference,
    blob: &Descriptor,
    sink: &Sink,
) -> Result<(), TransferError> {
    if cache.content().touch(&blob.digest)? {
        return Ok(());
    }
    let activity = Mutex::new(sink.begin(blob.digest.to_string(), "downloading"));
    let total = blob.size;
    let progress = Arc::new(move |bytes: u64| activity.lock().set(bytes, total));
    let reader = registry.fetch_blob(name, blob, Some(progress)).await?;
    let (content, digest) = (cache.content().clone(), blob.digest);
    let bridge = SyncIoBridge::new(reader);
    let stored = tokio::task::spawn_blocking(move || content.put_stream(bridge, Some(digest))).await;
    stored.map_err(|error| TransferError::Lost {
        digest,
        reason: error.to_string(),
    })??;
    Ok(())
}

async fn send(
    cache: &Cache,
    registry: &Registry,
    image: &str,
    target: &Reference,
    sink: &Sink,
) -> Result<Digest, TransferError> {
    let _lease = cache.lease();
    let image = stored::find(cache, image)?;
    let manifests = stored::manifests(cache, &image)?;
    let mut blobs: Vec<Descriptor> = Vec::new();
    for blob in manifests
        .iter()
        .flat_map(|found| std::iter::once(&found.manifest.config).chain(&found.manifest.layers))
    {
        if !blobs.iter().any(|known| known.digest == blob.digest) {
            blobs.push(blob.clone());
        }
    }
    let mount_from: Vec<Reference> = Reference::parse_normalized(&image.name).into_iter().collect();
    stream::iter(
        blobs
            .iter()
            .map(|blob| send_blob(cache, registry, target, blob, &mount_from, sink)),
    )
    .buffer_unordered(AT_ONCE)
    .try_collect::<Vec<()>>()
    .await?;
    let _activity = sink.begin(
        format!("pushing manifest for {target}@{}", image.target.digest),
        "pushing",
    );
    for found in manifests
        .iter()
        .filter(|found| found.descriptor.digest != image.target.digest)
    {
        send_manifest(cache, registry, target, &found.descriptor, true).await?;
    }
    send_manifest(cache, registry, target, &image.target, false).await
}

async fn send_manifest(
    cache: &Cache,
    registry: &Registry,
    target: &Reference,
    descriptor: &Descriptor,
    by_digest: bool,
) -> Result<Digest, TransferError> {
    let bytes = cache
        .content()
        .read(&descriptor.digest, MAX_MANIFEST_BYTES as u64)?;
    Ok(registry
        .push_manifest(target, &descriptor.media_type, &bytes, by_digest)
        .await?)
}

async fn send_blob(
    cache: &Cache,
    registry: &Registry,
    target: &Reference,
    blob: &Descriptor,
    mount_from: &[Reference],
    sink: &Sink,
) -> Result<(), TransferError> {
    let activity = Mutex::new(sink.begin(format!("layer {}", blob.digest), "pushing"));
    let total = blob.size;
    let progress = Arc::new(move |bytes: u64| activity.lock().set(bytes, total));
    let source = StoredBlob(cache.content().path(&blob.digest));
    registry
        .push_blob(target, blob, &source, mount_from, Some(progress))
        .await?;
    Ok(())
}

/// A blob of the store.
struct StoredBlob(PathBuf);

#[async_trait]
impl BlobSource for StoredBlob {
    async fn open(&self) -> std::io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Ok(Box::new(tokio::fs::File::open(&self.0).await?))
    }
}

/// Transfers solve nothing; they only show steps.
struct NoOps;

#[async_trait]
impl Ops<ImmutableRef> for NoOps {
    fn op(&self, vertex: &Vertex) -> Result<Arc<dyn Op<ImmutableRef>>, OpError> {
        Err(OpError::internal(format!(
            "a transfer has no ops, but was given {}",
            vertex.digest
        )))
    }

    async fn load(&self, _: &ResultId) -> Result<Option<ImmutableRef>, OpError> {
        Ok(None)
    }

    async fn save(&self, _: &ImmutableRef) -> Result<Option<ResultId>, OpError> {
        Ok(None)
    }
}
