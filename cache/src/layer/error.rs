//! What can be wrong with a layer, and whose move it is.

use std::io;

use tree::PathError;

/// A layer could not be read, written or made.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// An archive is no tar, or not a whole one.
    #[error("tar entry at byte {at}: {what}")]
    BadTar {
        /// Where in the uncompressed stream the entry's header lies.
        at: u64,
        /// What is wrong with it.
        what: String,
    },
    /// An archive names a path that cannot be.
    #[error("tar entry at byte {at}: {cause}")]
    BadPath {
        /// Where in the uncompressed stream the entry's header lies.
        at: u64,
        /// Why the path cannot be.
        cause: PathError,
    },
    /// An archive is beyond a limit.
    #[error("layer exceeds the limit of {limit} {what}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An archive holds something that is known but not taken.
    #[error("tar entry {path:?}: {what}")]
    Unsupported {
        /// Its path.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// A hard link names what neither the layer nor those below have.
    #[error("hard link {path:?} to {target:?}, which does not exist as a file")]
    DanglingHardLink {
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// Entries were handed to a layer's writer out of order.
    #[error("layer entry {path:?} comes after {last:?} but sorts before it")]
    OutOfOrder {
        /// The entry.
        path: String,
        /// The one before.
        last: String,
    },
    /// A file's contents are not as long as its entry says.
    #[error("file {path:?} changed while it was read: expected {expected} bytes, found {found}")]
    Changed {
        /// The file.
        path: String,
        /// Bytes by its entry.
        expected: u64,
        /// Bytes read (one more than expected stands for any number above).
        found: u64,
    },
    /// A kept index is of another version.
    #[error("layer index has version {found}, this program knows version {known}")]
    TreeVersion {
        /// Version found.
        found: u32,
        /// Version known.
        known: u32,
    },
    /// A kept index is damaged.
    #[error("layer index is damaged: {what}")]
    TreeDamaged {
        /// In what way.
        what: &'static str,
    },
    /// Symbolic links lead in a circle.
    #[error("too many symbolic links while resolving {path:?}")]
    TooManyLinks {
        /// The path asked for.
        path: String,
    },
    /// A path that content is asked of is not there.
    #[error("{path:?}: not found")]
    NotFound {
        /// The path, with a leading slash.
        path: String,
    },
    /// A pattern cannot be read.
    #[error("invalid pattern: {0}")]
    Pattern(String),
    /// A file of a context is not what it was when the context was listed.
    #[error("file {path:?} changed during the build")]
    ChangedSince {
        /// The file.
        path: String,
    },
    /// Something beneath a root could not be done.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// Reading or writing failed.
    #[error("{action}: {cause}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

impl LayerError {
    /// Wraps an I/O error with what was attempted; an error of ours inside it comes out again.
    pub(crate) fn io(action: &'static str) -> impl Fn(io::Error) -> LayerError {
        move |cause| match cause.downcast::<LayerError>() {
            Ok(ours) => ours,
            Err(cause) => LayerError::Io { action, cause },
        }
    }
}

impl From<LayerError> for io::Error {
    fn from(error: LayerError) -> Self {
        io::Error::other(error)
    }
}
