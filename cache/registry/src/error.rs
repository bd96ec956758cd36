//! What went wrong with a registry.

use std::path::PathBuf;

use oci::Digest;

/// Why a registry gave or took nothing.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is no such name, manifest or blob.
    #[error("{what}: not found")]
    NotFound {
        /// The reference or digest.
        what: String,
    },
    /// The registry wants credentials it was not shown, or refuses those it was.
    #[error("{what}: pull access denied, repository does not exist or may require authorization: {detail}")]
    Denied {
        /// The reference or digest.
        what: String,
        /// What the registry says.
        detail: String,
    },
    /// The registry refuses to take something.
    #[error("push access to {what} denied: {detail}")]
    PushDenied {
        /// The repository.
        what: String,
        /// What the registry says.
        detail: String,
    },
    /// The registry answered with another error.
    #[error("{action}: {host} answered {status}{detail}")]
    Status {
        /// What was attempted.
        action: String,
        /// Who answered.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What the registry says, with a separator before it; may be empty.
        detail: String,
    },
    /// The registry could not be reached, or the connection broke.
    #[error("{action}: no answer from {host}: {reason}")]
    Network {
        /// What was attempted.
        action: String,
        /// Who was asked.
        host: String,
        /// The whole chain of causes.
        reason: String,
        /// Whether there was a connection at all.
        is_connected: bool,
    },
    /// The bytes are not those that were asked for.
    #[error("{what} from {host} has digest {found}, expected {expected}")]
    WrongDigest {
        /// What was fetched.
        what: String,
        /// Who gave it.
        host: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The answer makes no sense.
    #[error("{action}: {host} answered nonsense: {reason}")]
    Invalid {
        /// What was attempted.
        action: String,
        /// Who answered.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// No credentials could be had.
    #[error("credentials for {host}: {source}")]
    Credentials {
        /// The registry.
        host: String,
        /// Why.
        source: crate::CredentialError,
    },
    /// What was to be pushed could not be read.
    #[error("read {what} to push it")]
    Source {
        /// What.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate file of the configuration cannot be used.
    #[error("certificate {}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The HTTP client cannot be made.
    #[error("set up the registry client: {reason}")]
    Setup {
        /// Why.
        reason: String,
    },
}

impl RegistryError {
    /// Whether it says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether it is a fault between us and the registry that may be gone the next time.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Network { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            _ => false,
        }
    }
}

/// All causes of an error in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
