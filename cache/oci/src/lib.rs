//! The nouns of the OCI specs: digests, descriptors, platforms, references, manifests, image configs.
//!
//! ```text
//! reference ─▶ (registry) ─▶ Document ─┬─▶ Index ─▶ Platform::choose ─▶ Manifest
//!                                      └─▶ Manifest ─▶ ImageConfig, layers (Descriptor, Compression)
//! ```
//!
//! Values with `parse`, `Display` and byte-exact JSON. Does no I/O.
mod digest; // names of content
mod media_type; // what content is
mod platform; // what machine it is for
mod descriptor; // name, size and type together
mod reference; // what people call it
mod package_url; // what statements about it call it
mod manifest; // images and indexes of images
mod image_config; // what an image is beside its layers

pub use descriptor::Descriptor;
pub use digest::{ChainId, DiffId, Digest, DigestReader, DigestWriter, ParseDigestError};
pub use image_config::{
    ConfigError, ContainerConfig, Empty, Healthcheck, History, ImageConfig, MAX_CONFIG_BYTES, RootFs,
};
pub use manifest::{
    Document, DocumentError, Index, MAX_INDEX_ENTRIES, MAX_LAYERS, MAX_MANIFEST_BYTES, Manifest, go_json,
};
pub use media_type::{
    ACCEPTED_MANIFESTS, Compression, DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_LAYER_ZSTD,
    DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_EMPTY, OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD, OCI_MANIFEST, is_image_config, is_index, is_manifest,
};
pub use platform::{ParsePlatformError, Platform};
pub use reference::{DOCKER_HUB, ParseReferenceError, Reference};
