//! Images: a reference to a manifest and config, and those to a ref whose layers are fetched when needed.
//!
//! ```text
//! reference ─┬─ own store (unless --pull) ─┐
//!            ├─ registry ──────────────────┼─▶ index ─ platform ─▶ manifest, config ─▶ keys ─▶ lazy ref
//!            └─ layout of the client ──────┘
//! ```
//!
//! | key | made of | not of |
//! |---|---|---|
//! | first | digest of the manifest or index, platform, layer limit | name, tag, registry |
//! | second | chain of the diff ids | manifest, compression |
//!
//! Manifests and configs are kept in the content store: what was resolved to a digest once is not asked for
//! again. No layer is fetched here.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use cache::{Cache, ImmutableRef, Origin, RecordInfo};
use llb::attr;
use llb::cache::{image_manifest_key, source_key};
use oci::{
    ChainId, Descriptor, Digest, Document, ImageConfig, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Manifest,
    Platform, Reference,
};
use registry::{Registry, RegistryError};
use solver::progress::Sink;
use solver::{Blame, CacheMap, Op, OpContext, OpError};
use tokio::sync::OnceCell;

use super::client_store::ClientStore;
use super::oci_layout;
use crate::worker::{Session, Worker};

/// Whether a copy at hand will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResolveMode {
    /// An image of the builder's own store if it has that name, else the registry.
    #[default]
    Default,
    /// Always the registry.
    Pull,
    /// As the default.
    Local,
}

/// Where an image is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImagePlace {
    /// In the builder's own store and in registries.
    Registry,
    /// In an image layout the client offers under this name.
    OciLayout {
        /// Name of the layout.
        store: String,
    },
}

/// What a frontend is told of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The reference it was found by.
    pub reference: String,
    /// The digest of its manifest or index.
    pub digest: Digest,
    /// Its config for the platform, as JSON.
    pub config: Vec<u8>,
}

/// Why there is no such image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Nothing of that name.
    #[error("{reference}: not found")]
    NotFound {
        /// The name.
        reference: String,
    },
    /// Not for that platform.
    #[error("{reference}: no image for platform {wanted}; there is one for {offered}")]
    NoPlatform {
        /// The name.
        reference: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// The registry could not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store failed.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
    /// The client offers no such layout.
    #[error("the client offers no image layout {store:?}")]
    NoLayout {
        /// Its name.
        store: String,
    },
    /// A layout is not one.
    #[error("image layout {}: {reason}", folder.display())]
    Layout {
        /// Where it is.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of a layout could not be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The client could not be asked.
    #[error(transparent)]
    Session(#[from] session::SessionError),
    /// What the image consists of makes no sense.
    #[error("image {reference}: {reason}")]
    Invalid {
        /// The name.
        reference: String,
        /// What is wrong.
        reason: String,
    },
}

impl ImageError {
    fn blame(&self) -> Blame {
        match self {
            Self::Registry(error) if error.is_temporary() => Blame::Environment,
            Self::Cache(_) => Blame::Environment,
            _ => Blame::User,
        }
    }
}

impl From<ImageError> for OpError {
    fn from(error: ImageError) -> OpError {
        OpError::new(error.blame(), error)
    }
}

/// An image, found and read as far as its config.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The manifest or index the name means.
    pub(crate) target: Descriptor,
    pub(crate) manifest: Manifest,
    pub(crate) config: ImageConfig,
    pub(crate) config_bytes: Vec<u8>,
    /// Where its layers are to be had; `None` if they are in the store.
    pub(crate) origin: Option<Origin>,
}

/// From where the parts of one image are read.
pub(super) enum Place {
    Store,
    Registry(Registry),
    Layout(PathBuf),
    Client(ClientStore),
}

/// How deep an index may lie in an index.
const MAX_DEPTH: usize = 3;

impl Worker {
    /// What a reference means, with the config of the image for `platform`.
    ///
    /// # Errors
    /// There is no such image, or none for the platform, or it cannot be reached.
    pub async fn resolve_image(
        &self,
        session: &Session,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
        place: ImagePlace,
        sink: &Sink,
    ) -> Result<ResolvedImage, OpError> {
        let found = self
            .find_image(session, reference, platform, mode, &place, sink)
            .await?;
        Ok(ResolvedImage {
            reference: reference.to_string(),
            digest: found.target.digest,
            config: found.config_bytes,
        })
    }

    /// The ref and config of an image, for running it.
    ///
    /// # Errors
    /// As for [`Worker::resolve_image`].
    pub async fn image_ref(
        &self,
        session: &Session,
        reference: &Reference,
        platform: &Platform,
        sink: &Sink,
    ) -> Result<(ImmutableRef, ImageConfig), OpError> {
        let place = ImagePlace::Registry;
        let found = self
            .find_image(session, reference, platform, ResolveMode::Default, &place, sink)
            .await?;
        let made = found.to_ref(&self.cache, reference, None)?;
        Ok((made, found.config))
    }

    pub(crate) async fn find_image(
        &self,
        session: &Session,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
        place: &ImagePlace,
        sink: &Sink,
    ) -> Result<Found, ImageError> {
        let reference = &reference.clone().with_default_tag();
        let _activity = sink.begin(format!("resolve {reference}"), "resolve");
        if let ImagePlace::OciLayout { store } = place {
            let (from, target) = match session.caller().oci_layout(store) {
                Some(folder) => {
                    let target = oci_layout::find(&folder, reference)?;
                    (Place::Layout(folder), target)
                }
                None => {
                    let store = ClientStore::new(session.caller().clone(), store);
                    let target = store.find(reference).await?;
                    (Place::Client(store), target)
                }
            };
            return self
                .read_image(session, (reference, platform), from, target)
                .await;
        }
        let (from, target) = self.locate(session, reference, mode).await?;
        let is_own = matches!(from, Place::Store);
        match self
            .read_image(session, (reference, platform), from, target)
            .await
        {
            // The registry may have what the image of that name in the own store lacks.
            Err(ImageError::NoPlatform { .. } | ImageError::NotFound { .. }) if is_own => {
                let (from, target) = self.locate(session, reference, ResolveMode::Pull).await?;
                self.read_image(session, (reference, platform), from, target)
                    .await
            }
            found => found,
        }
    }

    /// Reads manifest and config.
    async fn read_image(
        &self,
        session: &Session,
        (reference, platform): (&Reference, &Platform),
        from: Place,
        target: Descriptor,
    ) -> Result<Found, ImageError> {
        let reader = Reader {
            cache: &self.cache,
            reference,
            from: &from,
        };
        let manifest = reader.manifest(&target, platform).await?;
        let config_bytes = reader.blob(&manifest.config, MAX_CONFIG_BYTES).await?;
        let invalid = |reason: String| ImageError::Invalid {
            reference: reference.to_string(),
            reason,
        };
        let config = ImageConfig::parse(&config_bytes).map_err(|error| invalid(error.to_string()))?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            let (layers, ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
            return Err(invalid(format!(
                "its manifest has {layers} layers, its config {ids}"
            )));
        }
        let origin = match &from {
            Place::Store => {
                let layers: Vec<_> = manifest.layers.iter().map(|layer| layer.digest).collect();
                for origin in self.cache.absent_origins(&layers)? {
                    self.remember_origin(&origin, &self.registry_for(session));
                }
                None
            }
            Place::Layout(folder) => Some(oci_layout::origin(folder)),
            Place::Client(store) => {
                self.remember_client(store);
                Some(store.origin())
            }
            Place::Registry(registry) => {
                let origin = Origin(reference.name());
                self.remember_origin(&origin, registry);
                Some(origin)
            }
        };
        Ok(Found {
            target,
            manifest,
            config,
            config_bytes,
            origin,
        })
    }

    /// In the own store, or else in the registry.
    pub(super) async fn locate(
        &self,
        session: &Session,
        reference: &Reference,
        mode: ResolveMode,
    ) -> Result<(Place, Descriptor), ImageError> {
        let registry = self.registry_for(session);
        if mode != ResolveMode::Pull {
            let wanted = reference.digest();
            let named = reference.tag().map(|tag| format!("{}:{tag}", reference.name()));
            for name in [named, Some(reference.to_string())].into_iter().flatten() {
                if let Some(image) = self.cache.images().get(&name)?
                    && wanted.is_none_or(|wanted| wanted == image.target.digest)
                {
                    return Ok((Place::Store, image.target));
                }
            }
        }
        if let Some(digest) = reference.digest()
            && let Ok(bytes) = self.cache.content().read(&digest, MAX_MANIFEST_BYTES as u64)
            && let Some(known) = describe(&bytes)
        {
            return Ok((Place::Registry(registry), known));
        }
        let resolved = registry.resolve(reference).await?;
        self.cache.content().put(&resolved.bytes)?;
        Ok((Place::Registry(registry), resolved.descriptor))
    }
}

/// The descriptor of a manifest or index that says what it is.
pub(super) fn describe(bytes: &[u8]) -> Option<Descriptor> {
    let media_type = match Document::parse(bytes, "").ok()? {
        Document::Manifest(manifest) => manifest.media_type,
        Document::Index(index) => index.media_type,
    };
    Some(Descriptor::of(media_type, bytes))
}

/// Reads the parts of one image, from the content store where they are there.
pub(super) struct Reader<'a> {
    pub(super) cache: &'a Cache,
    pub(super) reference: &'a Reference,
    pub(super) from: &'a Place,
}

impl Reader<'_> {
    pub(super) fn invalid(&self, reason: impl ToString) -> ImageError {
        ImageError::Invalid {
            reference: self.reference.to_string(),
            reason: reason.to_string(),
        }
    }

    /// The manifest for a platform, through as many indexes as it takes.
    async fn manifest(&self, target: &Descriptor, platform: &Platform) -> Result<Manifest, ImageError> {
        let mut next = target.clone();
        for _ in 0..MAX_DEPTH {
            let bytes = self.blob(&next, MAX_MANIFEST_BYTES).await?;
            let document = Document::parse(&bytes, &next.media_type).map_err(|error| self.invalid(error))?;
            let index = match document {
                Document::Manifest(manifest) => return Ok(manifest),
                Document::Index(index) => index,
            };
            // Attestations are listed with a platform nobody has.
            let images: Vec<_> = index
                .manifests
                .iter()
                .filter(|e| e.platform.as_ref().is_none_or(|p| p.os != "unknown"))
                .collect();
            let platforms: Vec<_> = images.iter().filter_map(|entry| entry.platform.clone()).collect();
            next = match (&images[..], Platform::choose(platforms.iter(), platform)) {
                ([only], _) if only.platform.is_none() => (*only).clone(),
                (_, Some(at)) => {
                    let mut with_platform = images.iter().filter(|entry| entry.platform.is_some());
                    (*with_platform.nth(at).expect("it was chosen among these")).clone()
                }
                _ => return Err(self.no_platform(platform, &platforms)),
            };
        }
        Err(self.invalid("an index in an index in an index"))
    }

    pub(super) fn no_platform(&self, wanted: &Platform, offered: &[Platform]) -> ImageError {
        let offered: Vec<_> = offered.iter().map(ToString::to_string).collect();
        let offered = if offered.is_empty() {
            "none".to_owned()
        } else {
            offered.join(", ")
        };
        ImageError::NoPlatform {
            reference: self.reference.to_string(),
            wanted: wanted.to_string(),
            offered,
        }
    }

    /// A small blob, verified and kept.
    pub(super) async fn blob(&self, descriptor: &Descriptor, limit: usize) -> Result<Vec<u8>, ImageError> {
        let content = self.cache.content();
        if content.touch(&descriptor.digest)? {
            return Ok(content.read(&descriptor.digest, limit as u64)?);
        }
        let bytes = match self.from {
            Place::Store => {
                return Err(ImageError::NotFound {
                    reference: descriptor.digest.to_string(),
                });
            }
            Place::Layout(folder) => oci_layout::blob(folder, &descriptor.digest, limit)?,
            Place::Client(store) => store.blob(&descriptor.digest, limit).await?,
            Place::Registry(registry) if is_manifest(descriptor) => registry
                .fetch_manifest(self.reference, descriptor)
                .await?
                .to_vec(),
            Place::Registry(registry) => registry
                .fetch_blob(self.reference, descriptor, None)
                .await?
                .read_all(limit)
                .await?
                .to_vec(),
        };
        content.put(&bytes)?;
        Ok(bytes)
    }
}

fn is_manifest(descriptor: &Descriptor) -> bool {
    oci::is_index(&descriptor.media_type) || oci::is_manifest(&descriptor.media_type)
}

impl Found {
    /// The image as a ref; nothing is fetched.
    pub(crate) fn to_ref(
        &self,
        cache: &Cache,
        reference: &Reference,
        limit: Option<u32>,
    ) -> Result<ImmutableRef, ImageError> {
        let mut made = cache.scratch();
        let layers = self.manifest.layers.iter().zip(&self.config.rootfs.diff_ids);
        for (blob, diff_id) in layers.take(limit.map_or(usize::MAX, |limit| limit as usize)) {
            let info = RecordInfo::new(format!("pulled from {reference}"));
            made = cache.add_blob_layer(&made, blob, *diff_id, self.origin.as_ref(), info)?;
        }
        Ok(made)
    }
}

/// The op of an image source.
pub(crate) struct ImageOp {
    worker: Arc<Worker>,
    reference: Reference,
    platform: Platform,
    mode: ResolveMode,
    place: ImagePlace,
    limit: Option<u32>,
    checksum: Option<Digest>,
    found: OnceCell<Found>,
}

impl ImageOp {
    /// The op of `docker-image://` and `oci-layout://`.
    pub(crate) fn new(
        worker: Arc<Worker>,
        op: &llb::op::SourceOp,
        platform: Option<&Platform>,
    ) -> Result<Self, OpError> {
        let reference = Reference::parse_normalized(op.rest()).map_err(OpError::user)?;
        let mode = match op.attr(attr::IMAGE_RESOLVE_MODE).unwrap_or("default") {
            "default" | "" => ResolveMode::Default,
            "pull" => ResolveMode::Pull,
            "local" => ResolveMode::Local,
            other => {
                return Err(OpError::user(format!(
                    "{} is {other:?}, not default, pull or local",
                    attr::IMAGE_RESOLVE_MODE
                )));
            }
        };
        let is_layout = op.scheme() == "oci-layout";
        let place = if is_layout {
            let store = op
                .attr(attr::OCI_LAYOUT_STORE)
                .unwrap_or_else(|| reference.path());
            // `parse_normalized` puts a bare name into Docker Hub's library.
            ImagePlace::OciLayout {
                store: store.strip_prefix("library/").unwrap_or(store).to_owned(),
            }
        } else {
            ImagePlace::Registry
        };
        let limit = op.attr(if is_layout {
            attr::OCI_LAYOUT_LAYER_LIMIT
        } else {
            attr::IMAGE_LAYER_LIMIT
        });
        let limit = limit.map(|limit| match limit.parse::<u32>() {
            Ok(limit) if limit > 0 => Ok(limit),
            _ => Err(OpError::user(format!(
                "layer limit {limit:?} is no number above 0"
            ))),
        });
        let checksum = op
            .attr(attr::IMAGE_CHECKSUM)
            .map(Digest::parse)
            .transpose()
            .map_err(OpError::user)?;
        let platform = platform.unwrap_or(&worker.options.platform).clone().normalize();
        Ok(Self {
            reference,
            platform,
            mode,
            place,
            limit: limit.transpose()?,
            checksum,
            found: OnceCell::new(),
            worker,
        })
    }

    async fn found(&self, ctx: &OpContext) -> Result<&Found, OpError> {
        let session = Session::of(ctx)?;
        let finding = async {
            let (worker, reference) = (&self.worker, &self.reference);
            let found = worker
                .find_image(
                    &session,
                    reference,
                    &self.platform,
                    self.mode,
                    &self.place,
                    &ctx.progress,
                )
                .await?;
            match self.checksum {
                Some(wanted) if wanted != found.target.digest => Err(ImageError::Invalid {
                    reference: reference.to_string(),
                    reason: format!("it is {}, {wanted} was asked for", found.target.digest),
                }),
                _ => Ok(found),
            }
        };
        self.found
            .get_or_try_init(|| async { ctx.unless_canceled(finding).await?.map_err(OpError::from) })
            .await
    }
}

#[async_trait]
impl Op<ImmutableRef> for ImageOp {
    async fn cache_map(&self, ctx: &OpContext, index: usize) -> Result<(CacheMap, bool), OpError> {
        let found = self.found(ctx).await?;
        let chain = ChainId::of(&found.config.rootfs.diff_ids[..self.layer_count(found)]);
        let digest = match (index, chain) {
            (1, Some(chain)) => source_key(&chain.digest().to_string()),
            _ => {
                source_key(&image_manifest_key(&found.target.digest, &self.platform, self.limit).to_string())
            }
        };
        let explain = serde_json::json!({
            "image": self.reference.to_string(),
            "digest": found.target.digest.to_string(),
            "platform": self.platform.to_string(),
        });
        let map = CacheMap {
            digest,
            deps: Vec::new(),
            is_local: false,
            explain: explain.to_string(),
            pin: Some(found.target.digest.to_string()),
        };
        Ok((map, index >= 1 || chain.is_none()))
    }

    async fn exec(&self, ctx: &OpContext, _: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let found = self.found(ctx).await?;
        Ok(vec![found.to_ref(
            &self.worker.cache,
            &self.reference,
            self.limit,
        )?])
    }
}

impl ImageOp {
    fn layer_count(&self, found: &Found) -> usize {
        let all = found.config.rootfs.diff_ids.len();
        self.limit.map_or(all, |limit| all.min(limit as usize))
    }
}
