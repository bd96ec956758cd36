//! The sessions that are open, and the client of each build.
//!
//! ```text
//! Session RPC ─▶ attach ─▶ RemoteCaller, health checked ─┐ by id
//! Solve RPC ───▶ LateCaller ─ waits a little ────────────┴─▶ Caller
//! ```
use crate::caller::{
    Caller, FileSend, LocalDir, LocalRequest, Meter, RegistryCredential, SessionError, SessionId, Upload,
};
use crate::hand::{Hands, Key};
use crate::received::Received;
use crate::remote::RemoteCaller;
use crate::{RegistryToken, Secret, SshAgent, TokenAuthority, TokenQuestion};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// How long a build waits for its session to be opened.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a client is asked whether it lives, and the least time it is given to answer.
const HEALTH_EVERY: Duration = Duration::from_secs(5);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(15);
/// Failures in a row after which a client is taken for dead.
const HEALTH_FAILURES: u32 = 2;

/// What a client says of itself when it opens a session.
#[derive(Debug)]
pub struct Attachment {
    /// The session's id.
    pub id: String,
    /// Which kept contexts are this client's.
    pub shared_key: String,
    /// The methods it offers, as `/package.Service/Method`.
    pub methods: BTreeSet<String>,
    /// By what right it may hand files over; none if it sends them.
    pub hand: Option<Key>,
}

/// All open sessions.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<HashMap<String, Arc<RemoteCaller>>>,
    opened: Notify,
    received: Arc<Received>,
    hands: Arc<Hands>,
}

impl Sessions {
    /// No session yet; what clients send is kept in `received`.
    pub fn new(received: Arc<Received>) -> Arc<Sessions> {
        Arc::new(Sessions {
            open: Mutex::default(),
            opened: Notify::new(),
            received,
            hands: Arc::default(),
        })
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.lock().len()
    }

    /// The ids of those that are open.
    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.open.lock().keys().cloned().collect();
        ids.sort();
        ids
    }

    /// Whether the session of an id is open.
    fn is_open(&self, id: &str) -> bool {
        let id = id.rsplit(':').next().unwrap_or(id);
        let open = self.open.lock();
        // Calls know of its end before whoever served it has put it away.
        open.get(id).is_some_and(|caller| !caller.ended().is_cancelled())
    }

    /// Contexts that are kept.
    pub fn received(&self) -> &Arc<Received> {
        &self.received
    }

    /// Who may hand files over.
    pub fn hands(&self) -> &Arc<Hands> {
        &self.hands
    }

    /// Serves one session until the client is gone, does not answer any more, or `stop` is cancelled.
    ///
    /// # Errors
    /// A session of that id is open already.
    pub async fn attach(
        &self,
        attachment: Attachment,
        channel: Channel,
        stop: CancellationToken,
    ) -> Result<(), SessionError> {
        let id = attachment.id.clone();
        let caller = Arc::new(RemoteCaller::new(
            attachment,
            channel.clone(),
            self.received.clone(),
            stop.clone(),
        ));
        {
            let mut open = self.open.lock();
            if open.contains_key(&id) {
                return Err(SessionError::Refused {
                    doing: "open a session".into(),
                    reason: format!("session {id} is open already"),
                });
            }
            open.insert(id.clone(), caller);
        }
        self.opened.notify_waiters();
        let _closed = Closed { sessions: self, id };
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch(channel) => stop.cancel(),
        }
        Ok(())
    }

    /// Returns when the greetings of a session have been exchanged, or after `patience`: a question and its answer have gone
    /// to and fro.
    ///
    /// Go clients take what arrives while they close a session for frames, garbled, and complain of a protocol error. So
    /// whoever is about to end a build that has hardly begun waits for this first.
    pub async fn greeted(&self, id: &str, patience: Duration) {
        let exchanged = async {
            if let Ok(caller) = self.get(id).await {
                // Whatever the answer is, it came after the greeting.
                let _ = HealthClient::new(caller.channel())
                    .check(HealthCheckRequest::default())
                    .await;
            }
        };
        // A client without a session, or a slow one, is not waited for.
        let _ = tokio::time::timeout(patience, exchanged).await;
    }

    /// The session of an id, waiting a little for it to be opened.
    ///
    /// # Errors
    /// [`SessionError::Missing`].
    pub async fn get(&self, id: &str) -> Result<Arc<RemoteCaller>, SessionError> {
        // `prefix:id` means the id.
        let id = id.rsplit(':').next().unwrap_or(id);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let opened = self.opened.notified();
            if let Some(found) = self.open.lock().get(id).cloned() {
                return Ok(found);
            }
            if tokio::time::timeout_at(deadline, opened).await.is_err() {
                return Err(SessionError::Missing {
                    session: SessionId::new(id),
                    seconds: PATIENCE.as_secs(),
                });
            }
        }
    }
}

struct Closed<'a> {
    sessions: &'a Sessions,
    id: String,
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.sessions.open.lock().remove(&self.id);
    }
}

/// Returns when the client does not answer any more.
async fn watch(channel: Channel) {
    let mut client = HealthClient::new(channel);
    let (mut failures, mut timeout) = (0, HEALTH_TIMEOUT);
    while failures < HEALTH_FAILURES {
        tokio::time::sleep(HEALTH_EVERY).await;
        let began = Instant::now();
        let asked = client.check(HealthCheckRequest::default());
        match tokio::time::timeout(timeout, asked).await {
            Ok(Ok(_)) => {
                failures = 0;
                timeout = HEALTH_TIMEOUT.max(began.elapsed().mul_f64(1.5));
            }
            Ok(Err(_)) | Err(_) => failures += 1,
        }
    }
}

/// The client of a build, which may open its session a little after asking for the build.
#[derive(Debug)]
pub struct LateCaller {
    id: SessionId,
    sessions: Arc<Sessions>,
    /// Whether it was found, or waited for in vain.
    was_asked: AtomicBool,
}

impl LateCaller {
    /// The client whose session has this id; an empty one means no client, who offers nothing.
    pub fn new(sessions: Arc<Sessions>, id: &str) -> LateCaller {
        LateCaller {
            id: SessionId::new(id),
            sessions,
            was_asked: AtomicBool::new(false),
        }
    }

    async fn caller(&self) -> Result<Option<Arc<RemoteCaller>>, SessionError> {
        match self.id.as_str() {
            "" => Ok(None),
            id => {
                let found = self.sessions.get(id).await;
                self.was_asked.store(true, Ordering::Relaxed);
                found.map(Some)
            }
        }
    }
}

#[async_trait]
impl Caller for LateCaller {
    fn id(&self) -> &SessionId {
        &self.id
    }

    fn is_gone(&self) -> bool {
        self.was_asked.load(Ordering::Relaxed) && !self.sessions.is_open(self.id.as_str())
    }

    async fn other(&self, session: &str) -> Option<Arc<dyn Caller>> {
        if session == self.id.as_str() {
            return None;
        }
        let found = self.sessions.get(session).await.ok()?;
        Some(found)
    }

    async fn local_dir(
        &self,
        request: &LocalRequest,
        meter: Meter,
    ) -> Result<Option<LocalDir>, SessionError> {
        match self.caller().await? {
            Some(caller) => caller.local_dir(request, meter).await,
            None => Ok(None),
        }
    }

    fn oci_layout(&self, _: &str) -> Option<PathBuf> {
        None
    }

    async fn blob(&self, store: &str, digest: &oci::Digest) -> Result<Option<Upload>, SessionError> {
        match self.caller().await? {
            Some(caller) => caller.blob(store, digest).await,
            None => Ok(None),
        }
    }

    async fn put_blob(
        &self,
        store: &str,
        digest: &oci::Digest,
        size: u64,
        contents: Upload,
    ) -> Result<(), SessionError> {
        match self.caller().await? {
            Some(caller) => caller.put_blob(store, digest, size, contents).await,
            None => Err(no_client("write a blob")),
        }
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, SessionError> {
        match self.caller().await? {
            Some(caller) => caller.secret(id).await,
            None => Ok(None),
        }
    }

    async fn ssh_agent(&self, id: &str) -> Result<Option<SshAgent>, SessionError> {
        match self.caller().await? {
            Some(caller) => caller.ssh_agent(id).await,
            None => Ok(None),
        }
    }

    async fn credentials(&self, host: &str) -> Result<Option<RegistryCredential>, SessionError> {
        match self.caller().await {
            Ok(Some(caller)) => caller.credentials(host).await,
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn token_authority(&self, host: &str) -> Result<Option<TokenAuthority>, SessionError> {
        match self.caller().await? {
            Some(caller) => caller.token_authority(host).await,
            None => Ok(None),
        }
    }

    async fn token(&self, question: &TokenQuestion) -> Result<RegistryToken, SessionError> {
        match self.caller().await? {
            Some(caller) => caller.token(question).await,
            None => Err(no_client("fetch a token")),
        }
    }

    async fn upload(&self, id: &str) -> Result<Upload, SessionError> {
        match self.caller().await? {
            Some(caller) => caller.upload(id).await,
            None => Err(SessionError::Upload { id: id.to_owned() }),
        }
    }

    async fn send_file(&self, output: usize) -> Result<Option<FileSend>, SessionError> {
        match self.caller().await? {
            Some(caller) => caller.send_file(output).await,
            None => Err(no_client("send a file")),
        }
    }

    async fn send_dir(&self, output: usize, dir: &Path, meter: Meter) -> Result<bool, SessionError> {
        match self.caller().await? {
            Some(caller) => caller.send_dir(output, dir, meter).await,
            None => Err(no_client("send a directory")),
        }
    }
}

fn no_client(doing: &str) -> SessionError {
    SessionError::Refused {
        doing: doing.to_owned(),
        reason: "the build has no session".into(),
    }
}
