//! What a worker may ask of whoever asked for the build.
//!
//! | question | answer | nothing there |
//! |---|---|---|
//! | `local_dir(name)` | a directory to read in place | `None` |
//! | `oci_layout(name)` | the root of an image layout | `None` |
//! | `secret(id)` | its bytes | `Ok(None)`: fatal only if the mount is required |
//! | `ssh_agent(id)` | a handle on an agent | `Ok(None)`: likewise |
//! | `credentials(host)` | user and password, or an identity token | `Ok(None)`: go on anonymously |
//! | `upload(id)` | the stream a client sends (a context tar on stdin) | an error: each can be taken once |
use crate::{Secret, SshAgent};
use async_trait::async_trait;
use std::{fmt, io, path::PathBuf};
use tokio::io::AsyncRead;

/// The name of a session: 25 characters of lower-case base 36 on the wire; any text in tests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(String);

impl SessionId {
    /// Wraps a name.
    pub fn new(name: impl Into<String>) -> SessionId {
        SessionId(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A directory of the caller, on this machine, to be read in place and never written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDir {
    /// Absolute path of the directory.
    pub path: PathBuf,
}

/// What to show a registry. `Debug` prints no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryCredential {
    /// User name and password.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        secret: Secret,
    },
    /// An OAuth2 refresh token.
    IdentityToken(Secret),
}

/// The bytes of an upload, read once.
pub type Upload = Box<dyn AsyncRead + Send + Unpin>;

/// What went wrong while asking the caller.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The file that holds a secret could not be read.
    #[error("read secret {id:?} from {}", path.display())]
    SecretFile {
        /// The secret's id.
        id: String,
        /// Where it was looked for.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A secret is larger than allowed.
    #[error("secret {id:?} has more than {limit} bytes")]
    SecretTooLarge {
        /// The secret's id.
        id: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The agent did not answer.
    #[error("connect to ssh agent {id:?} at {}", socket.display())]
    Ssh {
        /// The agent's id.
        id: String,
        /// Its socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Credentials are configured for the host but could not be had.
    #[error("get credentials for {host}: {reason}")]
    Credentials {
        /// The registry.
        host: String,
        /// Why.
        reason: String,
    },
    /// An upload was asked for twice, or never offered.
    #[error("upload {id:?} is not offered by the client, or was already taken")]
    Upload {
        /// The upload's id.
        id: String,
    },
    /// The client is gone.
    #[error("session {session} ended before it answered")]
    Ended {
        /// The session's id.
        session: SessionId,
    },
}

/// Whoever asked for the build: the only one the worker asks for the user's things.
#[async_trait]
pub trait Caller: Send + Sync + fmt::Debug {
    /// The session's name; enters the ids of one-shot sources, never a cache key.
    fn id(&self) -> &SessionId;

    /// A directory by its name in the build (`context`, `dockerfile`, a named context).
    fn local_dir(&self, name: &str) -> Option<LocalDir>;

    /// The root of an OCI image layout by its store name (`--build-context x=oci-layout://…`).
    fn oci_layout(&self, name: &str) -> Option<PathBuf>;

    /// The bytes of a secret, read now; `Ok(None)` where the caller offers none of that id.
    async fn secret(&self, id: &str) -> Result<Option<Secret>, SessionError>;

    /// An agent by its id (`""` means `default`); `Ok(None)` where the caller forwards none of that id.
    async fn ssh_agent(&self, id: &str) -> Result<Option<SshAgent>, SessionError>;

    /// What to show the registry `host`; `Ok(None)` means anonymously.
    async fn credentials(&self, host: &str) -> Result<Option<RegistryCredential>, SessionError>;

    /// Takes an upload; each can be taken once.
    async fn upload(&self, id: &str) -> Result<Upload, SessionError>;
}
