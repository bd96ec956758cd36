//! A socket in a folder of its own at which an agent answers, as long as this is held.
//!
//! Each connection is a task of the one that accepts; when that is ended so are they.
use super::keyring::Keyring;
use super::wire;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// At most so many connections at once; further ones wait.
const MAX_CONNECTIONS: usize = 64;

/// Who answers.
#[derive(Clone, Debug)]
pub(crate) enum Answers {
    /// These keys.
    Keys(Arc<Keyring>),
    /// The agent at this socket, which is asked only what a build may ask.
    Agent(PathBuf),
}

/// An agent that is served; ends when dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    socket: PathBuf,
    task: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Serving {
    /// Serves from now on.
    ///
    /// # Errors
    /// No folder or socket could be made.
    pub(crate) fn start(answers: Answers) -> io::Result<Serving> {
        let folder = tempfile::Builder::new().prefix("builder-ssh-").tempdir()?;
        let socket = folder.path().join("agent");
        let listener = UnixListener::bind(&socket)?;
        let task = tokio::spawn(accept(listener, answers));
        Ok(Serving {
            socket,
            task,
            _folder: folder,
        })
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: UnixListener, answers: Answers) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let answers = answers.clone();
        // Either end may close at any time; there is nobody to tell.
        connections.spawn(async move {
            let _closed = converse(stream, &answers).await;
        });
    }
}

async fn converse(mut stream: UnixStream, answers: &Answers) -> io::Result<()> {
    let mut agent = match answers {
        Answers::Keys(_) => None,
        Answers::Agent(socket) => Some(UnixStream::connect(socket).await?),
    };
    while let Some(request) = wire::receive(&mut stream).await? {
        let answer = match (answers, &mut agent) {
            (Answers::Keys(keys), _) => {
                let keys = keys.clone();
                // An RSA signature takes milliseconds of computing.
                tokio::task::spawn_blocking(move || keys.answer(&request))
                    .await
                    .map_err(io::Error::other)?
            }
            (Answers::Agent(_), Some(agent)) if may_be_asked(&request) => {
                wire::send(agent, &request).await?;
                wire::receive(agent)
                    .await?
                    .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?
            }
            (Answers::Agent(_), _) => vec![wire::FAILURE],
        };
        wire::send(&mut stream, &answer).await?;
    }
    Ok(())
}

/// Whether a build may ask an agent of the user's this: to list and to sign, not to change anything.
fn may_be_asked(request: &[u8]) -> bool {
    matches!(
        request.first(),
        Some(&(wire::REQUEST_IDENTITIES | wire::SIGN_REQUEST))
    )
}
