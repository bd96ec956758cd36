//! What a worker may ask of whoever asked for the build.
//!
//! | question | answer | nothing there |
//! |---|---|---|
//! | `local_dir(request)` | a directory to read in place | `None` |
//! | `oci_layout(name)` | the root of an image layout | `None` |
//! | `blob(store, digest)` | a blob of a store of the client's | `Ok(None)` |
//! | `secret(id)` | its bytes | `Ok(None)`: fatal only if the mount is required |
//! | `ssh_agent(id)` | a handle on an agent | `Ok(None)`: likewise |
//! | `credentials(host)` | user and password, or an identity token | `Ok(None)`: go on anonymously |
//! | `token_authority(host)` | by whose word tokens for it are had | `Ok(None)`: the credentials are asked for |
//! | `token(question)` | a token, fetched by the client | an error |
//! | `upload(id)` | the stream a client sends (a context tar on stdin) | an error: each can be taken once |
use crate::{RegistryToken, Secret, SshAgent, TokenAuthority, TokenQuestion};
use async_trait::async_trait;
use std::{fmt, io, path::PathBuf, sync::Arc};
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

/// What a build wants of a directory of the caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalRequest {
    /// Its name in the build (`context`, `dockerfile`, a named context).
    pub name: String,
    /// Only what these take; empty means everything.
    pub include_patterns: Vec<String>,
    /// Nothing that these take.
    pub exclude_patterns: Vec<String>,
    /// Paths that are wanted, with the links along them.
    pub follow_paths: Vec<String>,
    /// Which copies may stand in for each other, beside the name.
    pub shared_key_hint: String,
    /// Send every file, even where nothing seems changed.
    pub asks_for_all: bool,
    /// Only the list of entries is wanted, and what these patterns match.
    pub listed: Option<Vec<String>>,
}

/// A directory of the caller, on this machine, to be read in place and never written.
#[derive(Clone)]
pub struct LocalDir {
    /// Absolute path of the directory.
    pub path: PathBuf,
    /// True if it holds only what was asked for; the patterns need not be applied again.
    pub is_filtered: bool,
    /// Keeps the directory as it is; held as long as anything of it is read.
    pub hold: Option<Arc<dyn std::any::Any + Send + Sync>>,
}

impl fmt::Debug for LocalDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalDir")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Told of bytes as they come.
pub type Meter = Arc<dyn Fn(u64) + Send + Sync>;

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

/// A file on its way to the caller.
pub struct FileSend {
    /// Takes its bytes; blocks while the caller is behind.
    pub writer: Box<dyn io::Write + Send>,
    /// Ends when the caller has taken all; to be awaited after the writer is dropped.
    pub done: tokio::task::JoinHandle<Result<(), SessionError>>,
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
    /// The client refused, or does not speak as it should.
    #[error("{doing}: {reason}")]
    Refused {
        /// What was asked of it.
        doing: String,
        /// What it said.
        reason: String,
    },
    /// A directory could not be received.
    #[error("receive {name:?} from the client: {source}")]
    Receive {
        /// The directory's name in the build.
        name: String,
        /// Why.
        source: crate::transfer::ReceiveError,
    },
    /// Something of this machine did not work.
    #[error("{doing}: {source}")]
    Machine {
        /// What was attempted.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// No such session came in time.
    #[error("no active session for {session}: the client did not open it within {seconds} s")]
    Missing {
        /// The session's id.
        session: SessionId,
        /// How long it was waited for.
        seconds: u64,
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

    /// Whether it was there and is there no more, or was waited for in vain.
    fn is_gone(&self) -> bool {
        false
    }

    /// Another client by the name of its session: builds may be given files of a session that several share. `None` where
    /// this end knows no other, or none of that name comes in time.
    async fn other(&self, _session: &str) -> Option<Arc<dyn Caller>> {
        None
    }

    /// A directory by its name in the build (`context`, `dockerfile`, a named context), there to be read when this returns.
    async fn local_dir(&self, request: &LocalRequest, meter: Meter)
    -> Result<Option<LocalDir>, SessionError>;

    /// The root of an OCI image layout by its store name (`--build-context x=oci-layout://…`).
    fn oci_layout(&self, name: &str) -> Option<PathBuf>;

    /// A blob of one of the caller's stores (`oci:<name>` of a layout, `local:<path>` of a cache); `Ok(None)` where it has
    /// none. The bytes are not verified here.
    async fn blob(&self, _store: &str, _digest: &oci::Digest) -> Result<Option<Upload>, SessionError> {
        Ok(None)
    }

    /// Writes a blob to one of the caller's stores (`export`, `local:<path>`); one that is there already is left alone.
    async fn put_blob(
        &self,
        store: &str,
        digest: &oci::Digest,
        _size: u64,
        _contents: Upload,
    ) -> Result<(), SessionError> {
        Err(SessionError::Refused {
            doing: format!("write blob {digest} to {store:?}"),
            reason: "the caller has no stores".into(),
        })
    }

    /// The bytes of a secret, read now; `Ok(None)` where the caller offers none of that id.
    async fn secret(&self, id: &str) -> Result<Option<Secret>, SessionError>;

    /// An agent by its id (`""` means `default`); `Ok(None)` where the caller forwards none of that id.
    async fn ssh_agent(&self, id: &str) -> Result<Option<SshAgent>, SessionError>;

    /// What to show the registry `host`; `Ok(None)` means anonymously.
    async fn credentials(&self, host: &str) -> Result<Option<RegistryCredential>, SessionError>;

    /// Whether the caller fetches tokens for `host` itself; its credentials are not asked for then.
    async fn token_authority(&self, _host: &str) -> Result<Option<TokenAuthority>, SessionError> {
        Ok(None)
    }

    /// A token that the caller fetches.
    async fn token(&self, question: &TokenQuestion) -> Result<RegistryToken, SessionError> {
        Err(SessionError::Credentials {
            host: question.host.clone(),
            reason: "the caller fetches no tokens".into(),
        })
    }

    /// Takes an upload; each can be taken once.
    async fn upload(&self, id: &str) -> Result<Upload, SessionError>;

    /// Begins to send one file (an archive) to the caller, for the output of this number; `None` where the caller is this
    /// process and needs nothing sent.
    async fn send_file(&self, output: usize) -> Result<Option<FileSend>, SessionError>;

    /// Sends a directory to the caller, for the output of this number; false where the caller is this process.
    async fn send_dir(
        &self,
        output: usize,
        dir: &std::path::Path,
        meter: Meter,
    ) -> Result<bool, SessionError>;
}
