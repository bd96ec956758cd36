//! What can go wrong in the store: what was attempted, on what, and why it failed.
use crate::layer::LayerError;
use oci::Digest;
use std::{io, path::PathBuf};

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database refused.
    #[error("store database: {action}")]
    Db {
        /// What was attempted.
        action: &'static str,
        /// Why not.
        source: rusqlite::Error,
    },
    /// A layer could not be read or made.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The bytes are not those their name promises.
    #[error("{what}: expected {expected}, got {found}")]
    DigestMismatch {
        /// What was read.
        what: String,
        /// Its name.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The store is as large as it may be, and nothing in it may go.
    #[error(
        "the store is full: {} needs {needed} bytes more, {used} of {ceiling} are in use and nothing unused is left to remove (run `builder prune`, or raise the ceiling)",
        path.display()
    )]
    Full {
        /// What was being written.
        path: PathBuf,
        /// How many bytes.
        needed: u64,
        /// How many are in use.
        used: u64,
        /// How many may be.
        ceiling: u64,
    },
    /// The disk has hardly any room left.
    #[error(
        "the disk of the store at {} is full: {free} bytes are free and nothing unused is left to remove",
        root.display()
    )]
    DiskFull {
        /// Where the store is.
        root: PathBuf,
        /// How many bytes are free.
        free: u64,
    },
    /// A later version of this program made the store.
    #[error(
        "the store at {} has version {found}; this program reads up to version {known}: use the newer program, or another root",
        path.display()
    )]
    NewerStore {
        /// Where.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A blob known by name only could not be had.
    #[error("fetch {digest} of {origin}")]
    Fetch {
        /// The blob.
        digest: Digest,
        /// The image it belongs to.
        origin: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something the store's records speak of is not there.
    #[error("the store lacks {what}")]
    Missing {
        /// What.
        what: String,
    },
    /// Work in the background ended without an answer: it was cancelled.
    #[error("{what}: canceled")]
    Canceled {
        /// What was under way.
        what: &'static str,
    },
}

/// A result of the store.
pub type Result<T> = std::result::Result<T, CacheError>;

impl CacheError {
    /// Wraps a failure of the file system.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> CacheError {
        let path = path.into();
        move |source| CacheError::Io { action, path, source }
    }

    /// Wraps a failure of the database.
    pub(crate) fn db(action: &'static str) -> impl FnOnce(rusqlite::Error) -> CacheError {
        move |source| CacheError::Db { action, source }
    }
}
