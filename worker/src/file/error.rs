//! Why a file action failed, in the words of the paths inside the build.

use cache::layer::LayerError;
use tree::PathError;

/// A file action that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Something that must be there is not.
    #[error("{path}: not found")]
    NotFound {
        /// The path, as asked for.
        path: String,
    },
    /// Something is there that must not be.
    #[error("{action} {path}: file exists")]
    Exists {
        /// What was attempted.
        action: &'static str,
        /// Where.
        path: String,
    },
    /// A path that must be a directory is none.
    #[error("{action} {path}: not a directory")]
    NotADirectory {
        /// What was attempted.
        action: &'static str,
        /// Where.
        path: String,
    },
    /// An owner's name where there is no file system with names.
    #[error(
        "invalid user index: -1: the owner {name:?} cannot be looked up, since the files are put onto an empty file \
         system (FROM scratch, or --link); give a number"
    )]
    NobodyHere {
        /// The name of the user or group.
        name: String,
    },
    /// A directory lies where a file is to be.
    #[error("cannot replace to directory {path} with file")]
    DirectoryInTheWay {
        /// Where.
        path: String,
    },
    /// A file lies where a directory is to be.
    #[error("cannot copy to non-directory: {path}")]
    FileInTheWay {
        /// Where.
        path: String,
    },
    /// The root itself cannot be removed or replaced.
    #[error("{action}: invalid empty path")]
    Root {
        /// What was attempted.
        action: &'static str,
    },
    /// A symbolic mode cannot be read.
    #[error("invalid mode {mode:?}")]
    Mode {
        /// The mode, as written.
        mode: String,
    },
    /// A pattern cannot be read.
    #[error("invalid pattern: {0}")]
    Pattern(#[from] tree::PatternError),
    /// A path cannot be.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A view could not be read or a layer not written.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl From<tree::Error> for FileError {
    fn from(cause: tree::Error) -> FileError {
        FileError::Layer(cause.into())
    }
}
