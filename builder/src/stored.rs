//! Images of the builder's own store, read as people ask for them: by name, by digest, for a platform.
//!
//! ```text
//! "hello" ─▶ docker.io/library/hello:latest ─▶ Image ─▶ manifest(s) ─▶ config
//! ```
use cache::{Cache, CacheError, Image};
use oci::{
    Descriptor, Digest, Document, ImageConfig, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Manifest, Platform,
    Reference,
};

/// Why an image cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// The text is no name.
    #[error("{text:?} is no image name: {reason}")]
    Name {
        /// What was given.
        text: String,
        /// Why.
        reason: String,
    },
    /// Nothing has that name.
    #[error("no image {name} in the store")]
    Unknown {
        /// The full name.
        name: String,
    },
    /// A short digest means several.
    #[error("{text:?} is the beginning of several digests")]
    Several {
        /// What was given.
        text: String,
    },
    /// There is no manifest for that platform.
    #[error("image {name} is not for {wanted}; it is for {found}")]
    Platform {
        /// The image.
        name: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// What is stored cannot be read.
    #[error("read image {name}: {reason}")]
    Damaged {
        /// The image.
        name: String,
        /// Why.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] CacheError),
}

/// One platform's part of an image.
#[derive(Debug)]
pub struct StoredManifest {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// Its configuration.
    pub config: ImageConfig,
    /// The configuration, byte for byte.
    pub config_bytes: Vec<u8>,
}

impl StoredManifest {
    /// Bytes of its layers and configuration as they are stored.
    pub fn size(&self) -> u64 {
        self.manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + self.manifest.config.size
    }
}

/// The full name that a text means.
pub fn full_name(text: &str) -> Result<Reference, StoredError> {
    Reference::parse_normalized(text)
        .map(Reference::with_default_tag)
        .map_err(|error| StoredError::Name {
            text: text.to_owned(),
            reason: error.to_string(),
        })
}

/// The image of a name, or of a digest or the beginning of one.
pub fn find(cache: &Cache, text: &str) -> Result<Image, StoredError> {
    if let Some(image) = by_digest(cache, text)? {
        return Ok(image);
    }
    let name = full_name(text)?.to_string();
    cache.images().get(&name)?.ok_or(StoredError::Unknown { name })
}

/// Digests may be shortened to this many digits.
const MIN_DIGITS: usize = 6;

fn by_digest(cache: &Cache, text: &str) -> Result<Option<Image>, StoredError> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() < MIN_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let mut found: Option<Image> = None;
    for image in cache.images().list()? {
        let is_config = |digest: &Digest| digest.hex().starts_with(digits);
        let matches = is_config(&image.target.digest)
            || manifests(cache, &image)
                .is_ok_and(|all| all.iter().any(|m| is_config(&m.manifest.config.digest)));
        if !matches {
            continue;
        }
        if found
            .as_ref()
            .is_some_and(|other| other.target.digest != image.target.digest)
        {
            return Err(StoredError::Several {
                text: text.to_owned(),
            });
        }
        found.get_or_insert(image);
    }
    Ok(found)
}

/// All manifests of an image; several for an index.
pub fn manifests(cache: &Cache, image: &Image) -> Result<Vec<StoredManifest>, StoredError> {
    let bytes = cache
        .content()
        .read(&image.target.digest, MAX_MANIFEST_BYTES as u64)?;
    match parse(&bytes, &image.target, image)? {
        Document::Manifest(manifest) => Ok(vec![read(cache, image, image.target.clone(), manifest)?]),
        Document::Index(index) => {
            let mut found = Vec::new();
            for descriptor in index.manifests {
                // An index may name platforms that were not pulled.
                if cache.content().size(&descriptor.digest)?.is_none() {
                    continue;
                }
                let bytes = cache
                    .content()
                    .read(&descriptor.digest, MAX_MANIFEST_BYTES as u64)?;
                if let Document::Manifest(manifest) = parse(&bytes, &descriptor, image)? {
                    found.push(read(cache, image, descriptor, manifest)?);
                }
            }
            Ok(found)
        }
    }
}

/// The manifest for a platform; this machine's if none is named.
pub fn for_platform(
    cache: &Cache,
    image: &Image,
    wanted: Option<&Platform>,
) -> Result<StoredManifest, StoredError> {
    let mut all = manifests(cache, image)?;
    if all.len() == 1 && wanted.is_none() {
        return Ok(all.remove(0));
    }
    let platform = wanted.cloned().unwrap_or_else(Platform::host);
    let best = (0..all.len())
        .filter_map(|at| Some((all[at].config.platform().rank_for(&platform)?, at)))
        .min()
        .map(|(_, at)| at);
    match best {
        Some(at) => Ok(all.remove(at)),
        None => Err(StoredError::Platform {
            name: image.name.clone(),
            wanted: platform.to_string(),
            found: all
                .iter()
                .map(|m| m.config.platform().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

fn parse(bytes: &[u8], descriptor: &Descriptor, image: &Image) -> Result<Document, StoredError> {
    Document::parse(bytes, &descriptor.media_type).map_err(|error| damaged(image, error))
}

fn read(
    cache: &Cache,
    image: &Image,
    descriptor: Descriptor,
    manifest: Manifest,
) -> Result<StoredManifest, StoredError> {
    let config_bytes = cache
        .content()
        .read(&manifest.config.digest, MAX_CONFIG_BYTES as u64)?;
    let config = ImageConfig::parse(&config_bytes).map_err(|error| damaged(image, error))?;
    Ok(StoredManifest {
        descriptor,
        manifest,
        config,
        config_bytes,
    })
}

fn damaged(image: &Image, error: impl std::fmt::Display) -> StoredError {
    StoredError::Damaged {
        name: image.name.clone(),
        reason: error.to_string(),
    }
}
