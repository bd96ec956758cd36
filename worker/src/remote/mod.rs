//! Caches of other machines, brought in and given out: in a registry, in a folder of the caller's, inside an image.
//!
//! ```text
//! import: place ─ manifest, config ─▶ cache::remote ─▶ Imported ─ (the solver loads a result) ─▶ layers known by name
//! export: what the solver knows of keys ─ layers packed ─▶ Exported ─┬─▶ registry: blobs, config, manifest
//!                                                                    ├─▶ the caller's store, blob by blob
//!                                                                    └─▶ the config of an image (inline)
//! ```
//!
//! 1. `place` says where a cache is and reads small things from there.
//! 2. `import` makes a cache the solver can ask; `image` finds one inside an image.
//! 3. `export` collects layers and sends them.
//!
//! A folder's name for a daemon is `local:<path>`: the daemon never sees the folder, only blobs by digest.

mod place;
mod import;
mod image;
mod export;

pub(crate) use export::write_inline;
pub use export::{CacheExport, Exported, Mode};
pub use import::Imported;
pub use place::CachePlace;

use cache::CacheError;
use cache::remote::RemoteCacheError;
use oci::Digest;
use solver::{Blame, OpError};

/// Why a cache could not be brought in or given out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error(transparent)]
    Document(#[from] RemoteCacheError),
    #[error("blob {digest} of {size} bytes is larger than the {limit} allowed")]
    TooLarge { digest: Digest, size: u64, limit: u64 },
    #[error("blob {digest} is not there")]
    NotFound { digest: Digest },
    #[error("blob {expected}: what came is {found}")]
    WrongDigest { expected: Digest, found: Digest },
    #[error("read blob {digest}: {source}")]
    Read { digest: Digest, source: std::io::Error },
    #[error(transparent)]
    Registry(#[from] registry::RegistryError),
    #[error(transparent)]
    Session(#[from] session::SessionError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("a thread ended early")]
    Thread,
}

impl From<RemoteError> for OpError {
    fn from(error: RemoteError) -> OpError {
        let blame = match &error {
            RemoteError::Thread => Blame::Internal,
            RemoteError::Registry(error) if !error.is_temporary() => Blame::User,
            _ => Blame::Environment,
        };
        match error {
            // As it is, so that whoever looks for it finds it.
            RemoteError::Cache(error) => OpError::new(blame, error),
            error => OpError::new(blame, error),
        }
    }
}
