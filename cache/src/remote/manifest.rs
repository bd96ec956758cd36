//! What names a cache's config and layers: an image manifest whose config is the cache config, or an index that lists
//! layers and config side by side.
//!
//! Differs: an image manifest may list as many layers as fit its bytes; it is no image, and nothing stacks them all.
use super::{CACHE_CONFIG, RemoteCacheError, RemoteLayer, Time};
use oci::{Compression, DOCKER_LIST, Descriptor, DiffId, Digest, Index, Manifest, OCI_INDEX, OCI_MANIFEST};
use serde::Deserialize;
use std::collections::HashMap;

/// The annotation of a layer that holds the digest of its plain tar.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The annotation of a layer that says when it was made.
pub const CREATED_AT: &str = "buildkit/createdat";

/// In which form a cache is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An OCI image manifest.
    Image,
    /// An OCI index.
    Index,
    /// Docker's list of manifests.
    List,
}

/// The parts of a cache as its manifest names them.
#[derive(Debug)]
pub struct CacheManifest {
    /// The cache config.
    pub config: Descriptor,
    /// The layers, by blob. Those that do not say the digest of their plain tar are left out.
    pub layers: HashMap<Digest, RemoteLayer>,
}

/// What is read of a manifest or index.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

impl CacheManifest {
    /// Reads a manifest; `None` if it is one of an image, which may have a cache in its config.
    ///
    /// # Errors
    /// It is no manifest and no index.
    pub fn parse(bytes: &[u8]) -> Result<Option<CacheManifest>, RemoteCacheError> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| RemoteCacheError::invalid("the cache manifest", error))?;
        let listed = document.layers.into_iter().chain(document.manifests).flatten();
        let mut config = document.config.filter(|config| config.media_type == CACHE_CONFIG);
        let mut layers = HashMap::new();
        for entry in listed {
            if entry.media_type == CACHE_CONFIG {
                config = Some(entry);
            } else if let Some(layer) = layer(entry) {
                layers.insert(layer.descriptor.digest, layer);
            }
        }
        Ok(config.map(|config| CacheManifest { config, layers }))
    }

    /// The bytes and media type of the manifest of a cache.
    #[must_use]
    pub fn write(shape: Shape, config: Descriptor, layers: Vec<Descriptor>) -> (Vec<u8>, &'static str) {
        let typed = |mut layer: Descriptor| {
            if let Some(compression) = Compression::of_layer(&layer.media_type) {
                layer.media_type = compression.layer_media_type(shape != Shape::List).to_owned();
            }
            layer
        };
        let layers = layers.into_iter().map(typed);
        match shape {
            Shape::Image => {
                let manifest = Manifest::new(OCI_MANIFEST, config, layers.collect());
                (oci::go_json(&manifest, false), OCI_MANIFEST)
            }
            Shape::Index | Shape::List => {
                let media_type = if shape == Shape::Index {
                    OCI_INDEX
                } else {
                    DOCKER_LIST
                };
                let index = Index::new(media_type, layers.chain([config]).collect());
                (oci::go_json(&index, false), media_type)
            }
        }
    }
}

fn layer(mut descriptor: Descriptor) -> Option<RemoteLayer> {
    let diff_id = Digest::parse(descriptor.annotations.get(UNCOMPRESSED)?).ok()?;
    let created = descriptor.annotations.get(CREATED_AT);
    let created = created.and_then(|text| text.parse::<Time>().ok());
    // It goes into the store and out again in images, where these say nothing.
    descriptor.annotations.clear();
    Some(RemoteLayer {
        descriptor,
        diff_id: DiffId::new(diff_id),
        created: created.unwrap_or_default(),
        description: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(text: &str) -> Descriptor {
        let mut made = Descriptor::of(oci::OCI_LAYER_GZIP, text.as_bytes());
        let diff_id = Digest::of(text.to_uppercase().as_bytes());
        made.annotations.insert(UNCOMPRESSED.into(), diff_id.to_string());
        made
    }

    #[test]
    fn every_shape_is_read_as_it_was_written() {
        let config = Descriptor::of(CACHE_CONFIG, b"{}");
        for (shape, media_type, layer_type) in [
            (Shape::Image, OCI_MANIFEST, oci::OCI_LAYER_GZIP),
            (Shape::Index, OCI_INDEX, oci::OCI_LAYER_GZIP),
            (Shape::List, DOCKER_LIST, oci::DOCKER_LAYER_GZIP),
        ] {
            let layers = vec![descriptor("a"), descriptor("b")];
            let (bytes, found) = CacheManifest::write(shape, config.clone(), layers);
            assert_eq!(found, media_type);
            let text = String::from_utf8_lossy(&bytes);
            assert!(
                text.contains(&format!("\"mediaType\":\"{media_type}\"")),
                "{text}"
            );
            let read = CacheManifest::parse(&bytes)
                .expect("a manifest")
                .expect("with a cache");
            assert_eq!(read.config, config);
            let layer = &read.layers[&Digest::of(b"a")];
            assert_eq!(layer.diff_id, DiffId::new(Digest::of(b"A")));
            assert_eq!(layer.descriptor.media_type, layer_type);
            assert!(layer.descriptor.annotations.is_empty());
        }
    }

    #[test]
    fn an_image_is_no_cache_and_nonsense_is_refused() {
        let config = Descriptor::of(oci::OCI_CONFIG, b"{}");
        let image = Manifest::new(OCI_MANIFEST, config, vec![descriptor("a")]);
        assert!(
            CacheManifest::parse(&image.to_json())
                .expect("a manifest")
                .is_none()
        );
        assert!(CacheManifest::parse(b"<html>").is_err());
    }

    #[test]
    fn a_layer_that_does_not_say_its_diff_id_is_left_out() {
        let plain = Descriptor::of(oci::OCI_LAYER_GZIP, b"x");
        let config = Descriptor::of(CACHE_CONFIG, b"{}");
        let (bytes, _) = CacheManifest::write(Shape::Image, config, vec![plain]);
        let read = CacheManifest::parse(&bytes)
            .expect("a manifest")
            .expect("a cache");
        assert!(read.layers.is_empty());
    }
}
