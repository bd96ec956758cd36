//! An ssh agent of the caller, reachable through a unix socket.
//!
//! Who answers at the socket is the user's own agent, or we: for keys from files, for an agent that a build must not
//! change, for an agent of a client on the wire.
use crate::SessionError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixStream;

/// A handle on one agent; every use opens its own connection.
#[derive(Clone)]
pub struct SshAgent {
    id: String,
    socket: PathBuf,
    /// What serves the socket, if that is this process.
    _hold: Option<Arc<dyn std::any::Any + Send + Sync>>,
}

impl std::fmt::Debug for SshAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SshAgent({:?} at {})", self.id, self.socket.display())
    }
}

impl SshAgent {
    /// An agent listening at `socket`.
    pub fn new(id: impl Into<String>, socket: impl Into<PathBuf>) -> SshAgent {
        SshAgent {
            id: id.into(),
            socket: socket.into(),
            _hold: None,
        }
    }

    /// An agent at `socket`, served as long as `hold` is held.
    pub fn served(
        id: impl Into<String>,
        socket: impl Into<PathBuf>,
        hold: Arc<dyn std::any::Any + Send + Sync>,
    ) -> SshAgent {
        SshAgent {
            _hold: Some(hold),
            ..SshAgent::new(id, socket)
        }
    }

    /// The id the build knows it by; `default` where none was given.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The caller's socket, for a worker on the same machine that binds it into a step.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Opens one connection to the agent.
    ///
    /// # Errors
    /// [`SessionError::Ssh`] when nothing listens at the socket (any more).
    pub async fn connect(&self) -> Result<UnixStream, SessionError> {
        UnixStream::connect(&self.socket)
            .await
            .map_err(|source| SessionError::Ssh {
                id: self.id.clone(),
                socket: self.socket.clone(),
                source,
            })
    }
}
