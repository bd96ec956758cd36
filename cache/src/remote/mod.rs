//! Caches of other machines: BuildKit's cache configs, read and written.
//!
//! ```text
//! import: manifest ─▶ layers by blob ─┐
//!         config bytes ─ parse ─▶ CacheConfig ─▶ RemoteKeys (a key store that is only read) ─▶ stacks of layers
//! export: keys and results of a build ─▶ Table ─ marshal ─▶ CacheConfig, layers in its order ─▶ manifest
//! ```
//!
//! 1. `config` is the document (`application/vnd.buildkit.cacheconfig.v0`), fixed to the byte by BuildKit.
//! 2. `manifest` is what names the config and the layers: an image manifest, or an index.
//! 3. `keys` answers the solver's questions from a config.
//! 4. `table` makes a config of what a build knows.
//!
//! Does no I/O: whoever fetches or sends the bytes is in the worker. All of an imported cache is a stranger's word: sizes
//! are bounded, indexes checked, and what it says of layers is believed only after their digests were checked.
mod config;
mod keys;
mod manifest;
mod table;

pub use config::{CACHE_CONFIG, CacheConfig, CacheInput, CacheLayer, CacheRecord, CacheResult, Chain, Time};
pub use keys::{Limits, RemoteKeys, RemoteLayer};
pub use manifest::{CREATED_AT, CacheManifest, Shape, UNCOMPRESSED};
pub use table::{Entry, PackedLayer, Table};

/// Why a cache of another machine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RemoteCacheError {
    /// The bytes are no document of its kind.
    #[error("{what} is not valid: {reason}")]
    Invalid {
        /// Which document.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no cache in it.
    #[error("there is no cache in it")]
    NoCache,
}

impl RemoteCacheError {
    pub(crate) fn invalid(what: &'static str, reason: impl ToString) -> RemoteCacheError {
        RemoteCacheError::Invalid {
            what,
            reason: reason.to_string(),
        }
    }
}
