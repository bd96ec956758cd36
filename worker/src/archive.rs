//! Images in and out of the store as archives: what `save` writes and `load` reads.
//!
//! ```text
//! save: names ─▶ blobs as they are ─▶ tar { oci-layout, index.json, blobs/sha256/…, manifest.json }
//! load: tar (packed or not) or folder ─┬─ index.json    ─▶ manifests, blobs (OCI layout)
//!                                      └─ manifest.json ─▶ config, layer tars ─▶ a manifest of ours (old Docker)
//!                                                          └─▶ names in the store
//! ```
//!
//! Digests stay what they are: nothing is packed anew. An archive is a stranger's: paths in it are names to look up,
//! never places to write to; a blob is kept only if its bytes have its digest.
mod load;
mod save;

pub use load::{Input, Loaded, load};
pub use save::save;

/// Why an archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Reading or writing failed.
    #[error("{doing}")]
    Io {
        /// What was attempted.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The archive is not what it should be.
    #[error("the archive holds no image: {0}")]
    Malformed(String),
    /// A document in it cannot be believed.
    #[error("{what} of the archive")]
    Document {
        /// Which.
        what: String,
        /// Why.
        source: oci::DocumentError,
    },
    /// An image has no name, and none was given.
    #[error("the image {digest} has no name in the archive; give it one")]
    Nameless {
        /// Its manifest.
        digest: oci::Digest,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] cache::CacheError),
}

impl ArchiveError {
    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> ArchiveError {
        move |source| ArchiveError::Io {
            doing: doing.into(),
            source,
        }
    }
}

/// The key of an image's full name in an index.
const FULL_NAME: &str = "io.containerd.image.name";
/// The key of an image's tag (or, by some tools, of its full name).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[cfg(test)]
mod tests;
