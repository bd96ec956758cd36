//! The one error of this crate: what was attempted, on which path, and what the kernel said.

use std::{io, path::PathBuf};

use crate::{RootPath, path::PathError};

/// What went wrong beneath a root.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on something beneath a root failed.
    #[error("{action} {path} in {root}: {cause}", path = path.display(), root = root.display())]
    Io {
        /// What was attempted, as a verb: `open`, `create directory`.
        action: &'static str,
        /// The root's own path, for people.
        root: PathBuf,
        /// The path inside the root.
        path: RootPath,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Contents were asked of something that is no regular file.
    #[error("{path} in {root} is not a regular file", path = path.display(), root = root.display())]
    NotAFile {
        /// The root's own path, for people.
        root: PathBuf,
        /// The path inside the root.
        path: RootPath,
    },
    /// Bytes that were to be a path inside a root are none.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl Error {
    /// The kernel's error, if it was one.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Error::Io { cause, .. } => Some(cause),
            Error::NotAFile { .. } | Error::Path(_) => None,
        }
    }

    /// Whether the path (or one of its parents) does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.io().is_some_and(|cause| {
            matches!(
                cause.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            )
        })
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = error.io().map_or(io::ErrorKind::InvalidInput, io::Error::kind);
        io::Error::new(kind, error)
    }
}

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
