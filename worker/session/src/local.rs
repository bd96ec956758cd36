//! The caller that is this very process: `build` without a daemon.
//!
//! Directories and layouts are handed out as paths and read in place; secrets are read when a step asks for
//! them, not before; credentials come from a lookup that may start a helper program, so it runs on a thread
//! that may block.
use crate::agent::{Answers, Serving};
use crate::caller::{
    Caller, FileSend, LocalDir, LocalRequest, Meter, RegistryCredential, SessionError, SessionId, Upload,
};
use crate::provider::files::{Wanted, send};
use crate::transfer::{Incoming, Limits, Receiver};
use crate::wire::fsutil::Packet;
use crate::{Keyring, MAX_SECRET_BYTES, Secret, SshAgent, TokenSource};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, fs::File, io::Read};

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, read when the secret is asked for.
    File(PathBuf),
    /// A value already at hand, such as that of an environment variable.
    Value(Secret),
}

/// Where an agent comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SshSource {
    /// A running agent.
    Socket {
        /// Where it listens.
        path: PathBuf,
        /// Whether builds may ask it anything, not only to list keys and to sign.
        raw: bool,
    },
    /// Keys that were read from files.
    Keys(Arc<Keyring>),
}

/// Looks up credentials; may block (helper programs), so it is never called on an async thread.
pub trait CredentialLookup: Send + Sync {
    /// What to show `host`; `Ok(None)` where nothing is configured.
    ///
    /// # Errors
    /// A sentence without a full stop that says why configured credentials could not be had.
    fn lookup(&self, host: &str) -> Result<Option<RegistryCredential>, String>;
}

/// Has credentials for nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCredentials;

impl CredentialLookup for NoCredentials {
    fn lookup(&self, _host: &str) -> Result<Option<RegistryCredential>, String> {
        Ok(None)
    }
}

/// All that a [`LocalCaller`] offers.
#[derive(Default)]
pub struct LocalOptions {
    /// Directories by their name in the build.
    pub dirs: BTreeMap<String, PathBuf>,
    /// Image layouts by store name.
    pub oci_layouts: BTreeMap<String, PathBuf>,
    /// Folders of blobs that may be read and written, by the names of the stores (`local:<path>`).
    pub stores: BTreeMap<String, PathBuf>,
    /// Secrets by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Agents by id.
    pub ssh: BTreeMap<String, SshSource>,
    /// Streams by upload id; each is given out once.
    pub uploads: BTreeMap<String, Upload>,
    /// Where registry credentials come from.
    pub credentials: Option<Arc<dyn CredentialLookup>>,
    /// Who fetches tokens for registries, instead of showing the credentials to a daemon.
    pub tokens: Option<Arc<dyn TokenSource>>,
}

/// Answers from this process.
pub struct LocalCaller {
    id: SessionId,
    dirs: BTreeMap<String, PathBuf>,
    oci_layouts: BTreeMap<String, PathBuf>,
    stores: BTreeMap<String, PathBuf>,
    secrets: BTreeMap<String, SecretSource>,
    ssh: BTreeMap<String, SshSource>,
    uploads: Mutex<BTreeMap<String, Upload>>,
    credentials: Arc<dyn CredentialLookup>,
    tokens: Option<Arc<dyn TokenSource>>,
}

impl LocalCaller {
    /// A caller that offers exactly what is in `options`.
    pub fn new(id: SessionId, options: LocalOptions) -> LocalCaller {
        let LocalOptions {
            dirs,
            oci_layouts,
            stores,
            secrets,
            ssh,
            uploads,
            credentials,
            tokens,
        } = options;
        LocalCaller {
            id,
            dirs,
            oci_layouts,
            stores,
            secrets,
            ssh,
            uploads: Mutex::new(uploads),
            credentials: credentials.unwrap_or_else(|| Arc::new(NoCredentials)),
            tokens,
        }
    }

    /// Who fetches tokens for daemons.
    pub(crate) fn tokens(&self) -> Option<&dyn TokenSource> {
        self.tokens.as_deref()
    }
}

impl fmt::Debug for LocalCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCaller")
            .field("id", &self.id)
            .field("dirs", &self.dirs)
            .field("oci_layouts", &self.oci_layouts)
            .field("stores", &self.stores)
            .field("secrets", &self.secrets.keys())
            .field("ssh", &self.ssh.keys())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Caller for LocalCaller {
    fn id(&self) -> &SessionId {
        &self.id
    }

    async fn local_dir(&self, request: &LocalRequest, _: Meter) -> Result<Option<LocalDir>, SessionError> {
        let found = self.dirs.get(&request.name);
        if let (Some(dir), Some(_)) = (found, &request.listed) {
            let (dir, request) = (dir.clone(), request.clone());
            let listed = tokio::task::spawn_blocking(move || list(&dir, &request));
            let listed = listed.await.map_err(|_| SessionError::Ended {
                session: self.id.clone(),
            })?;
            return listed.map(Some);
        }
        Ok(found.map(|path| LocalDir {
            path: path.clone(),
            is_filtered: false,
            hold: None,
        }))
    }

    fn oci_layout(&self, name: &str) -> Option<PathBuf> {
        self.oci_layouts.get(name).cloned()
    }

    async fn blob(&self, store: &str, digest: &oci::Digest) -> Result<Option<Upload>, SessionError> {
        match self.stores.get(store) {
            Some(folder) => crate::folder::read(folder, digest).await,
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
        match self.stores.get(store) {
            Some(folder) => crate::folder::write(folder, digest, size, contents).await,
            None => Err(SessionError::Refused {
                doing: format!("write blob {digest} to {store:?}"),
                reason: "there is no such store".into(),
            }),
        }
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, SessionError> {
        match self.secrets.get(id) {
            None => Ok(None),
            Some(SecretSource::Value(secret)) => within_limit(id, secret.clone()).map(Some),
            Some(SecretSource::File(path)) => {
                let (id, path) = (id.to_owned(), path.clone());
                tokio::task::spawn_blocking(move || read_secret(&id, &path).map(Some))
                    .await
                    .map_err(|_| SessionError::Ended {
                        session: self.id.clone(),
                    })?
            }
        }
    }

    async fn ssh_agent(&self, id: &str) -> Result<Option<SshAgent>, SessionError> {
        let id = if id.is_empty() { "default" } else { id };
        let answers = match self.ssh.get(id) {
            None => return Ok(None),
            Some(SshSource::Keys(keys)) => Answers::Keys(keys.clone()),
            Some(SshSource::Socket { path, raw }) => {
                let agent = SshAgent::new(id, path);
                // Asked now, so that a step does not begin without the agent it needs.
                drop(agent.connect().await?);
                if *raw {
                    return Ok(Some(agent));
                }
                Answers::Agent(path.clone())
            }
        };
        let serving = Serving::start(answers).map_err(|source| SessionError::Ssh {
            id: id.to_owned(),
            socket: std::env::temp_dir(),
            source,
        })?;
        let socket = serving.socket().to_owned();
        Ok(Some(SshAgent::served(id, socket, Arc::new(serving))))
    }

    async fn credentials(&self, host: &str) -> Result<Option<RegistryCredential>, SessionError> {
        let (lookup, name) = (self.credentials.clone(), host.to_owned());
        tokio::task::spawn_blocking(move || {
            lookup
                .lookup(&name)
                .map_err(|reason| SessionError::Credentials { host: name, reason })
        })
        .await
        .map_err(|_| SessionError::Ended {
            session: self.id.clone(),
        })?
    }

    async fn upload(&self, id: &str) -> Result<Upload, SessionError> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads
            .remove(id)
            .ok_or_else(|| SessionError::Upload { id: id.to_owned() })
    }

    async fn send_file(&self, _: usize) -> Result<Option<FileSend>, SessionError> {
        Ok(None)
    }

    async fn send_dir(&self, _: usize, _: &Path, _: Meter) -> Result<bool, SessionError> {
        Ok(false)
    }
}

/// Lists a directory as a client on the wire would be asked to, into a folder that goes with what is given.
fn list(dir: &Path, request: &LocalRequest) -> Result<LocalDir, SessionError> {
    let doing = || format!("list the directory {:?}", request.name);
    let refused = |reason: String| SessionError::Refused {
        doing: doing(),
        reason,
    };
    let machine = |source| SessionError::Machine {
        doing: doing(),
        source,
    };
    let exceptions = crate::remote::exceptions(request)?;
    let folder = tempfile::tempdir().map_err(machine)?;
    let (tree, index) = (folder.path().join("tree"), folder.path().join("index"));
    let wanted = Wanted {
        include: request.include_patterns.clone(),
        exclude: request.exclude_patterns.clone(),
        follow: request.follow_paths.clone(),
    };
    let (mut here, mut there) = Pair::new();
    let received = std::thread::scope(|scope| {
        let sending = scope.spawn(move || send(dir, &wanted, None, &mut there));
        let receiver = Receiver {
            tree: &tree,
            index: &index,
            previous: None,
            asks_for_all: false,
            listed: exceptions,
            hand: None,
            limits: Limits::default(),
            meter: Arc::new(|_| {}),
        };
        let received = receiver.run(&mut here);
        drop(here);
        // The sender knows best what is wrong with the directory.
        match sending.join() {
            Ok(Err(reason)) if received.is_err() => Err(refused(reason)),
            _ => received.map_err(|source| SessionError::Receive {
                name: request.name.clone(),
                source,
            }),
        }
    });
    received?;
    Ok(LocalDir {
        path: tree,
        is_filtered: true,
        hold: Some(Arc::new(folder)),
    })
}

/// Packets that may wait between two ends in this process.
const UNREAD: usize = 16;

/// One of two ends in this process.
struct Pair {
    to: Box<dyn FnMut(Packet) -> bool + Send>,
    from: std::sync::mpsc::Receiver<Packet>,
}

impl Pair {
    /// A receiver's end, which may always ask, and a sender's, which waits while much is unread.
    fn new() -> (Pair, Pair) {
        let (to_receiver, from_sender) = std::sync::mpsc::sync_channel(UNREAD);
        let (to_sender, from_receiver) = std::sync::mpsc::channel();
        let receiver = Pair {
            to: Box::new(move |packet| to_sender.send(packet).is_ok()),
            from: from_sender,
        };
        let sender = Pair {
            to: Box::new(move |packet| to_receiver.send(packet).is_ok()),
            from: from_receiver,
        };
        (receiver, sender)
    }
}

impl Incoming for Pair {
    fn next(&mut self) -> Option<Result<Packet, String>> {
        self.from.recv().ok().map(Ok)
    }

    fn send(&mut self, packet: Packet) -> bool {
        (self.to)(packet)
    }
}

fn read_secret(id: &str, path: &Path) -> Result<Secret, SessionError> {
    let failed = |source| SessionError::SecretFile {
        id: id.to_owned(),
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    // One byte more than allowed is enough to know; a secret behind /dev/zero must not fill the memory.
    file.take(MAX_SECRET_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    within_limit(id, Secret::new(bytes))
}

fn within_limit(id: &str, secret: Secret) -> Result<Secret, SessionError> {
    if secret.len() > MAX_SECRET_BYTES {
        return Err(SessionError::SecretTooLarge {
            id: id.to_owned(),
            limit: MAX_SECRET_BYTES,
        });
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    fn caller(options: LocalOptions) -> LocalCaller {
        LocalCaller::new(SessionId::new("test"), options)
    }

    fn with_secret(source: SecretSource) -> LocalCaller {
        caller(LocalOptions {
            secrets: BTreeMap::from([("token".to_owned(), source)]),
            ..Default::default()
        })
    }

    #[tokio::test]
    async fn an_unknown_secret_is_nothing_and_a_missing_file_is_an_error() {
        let caller = with_secret(SecretSource::File("/nonexistent/secret".into()));
        assert_eq!(caller.secret("other").await.expect("no error"), None);
        let error = caller.secret("token").await.expect_err("no such file");
        assert!(error.to_string().contains("/nonexistent/secret"), "{error}");
    }

    #[tokio::test]
    async fn a_secret_without_an_end_is_refused() {
        let error = with_secret(SecretSource::File("/dev/zero".into()))
            .secret("token")
            .await;
        assert!(
            matches!(error, Err(SessionError::SecretTooLarge { .. })),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn an_upload_is_given_out_once() {
        let stream: Upload = Box::new(&b"tar"[..]);
        let caller = caller(LocalOptions {
            uploads: BTreeMap::from([("u".to_owned(), stream)]),
            ..Default::default()
        });
        let mut text = String::new();
        caller
            .upload("u")
            .await
            .expect("offered")
            .read_to_string(&mut text)
            .await
            .expect("readable");
        assert_eq!(text, "tar");
        assert!(caller.upload("u").await.is_err());
    }

    #[tokio::test]
    async fn an_empty_agent_id_means_default() {
        let source = SshSource::Keys(Arc::default());
        let caller = caller(LocalOptions {
            ssh: BTreeMap::from([("default".to_owned(), source)]),
            ..Default::default()
        });
        let agent = caller.ssh_agent("").await.expect("no error").expect("forwarded");
        assert_eq!(agent.id(), "default");
        assert!(caller.ssh_agent("other").await.expect("no error").is_none());
    }

    #[test]
    fn debug_of_a_caller_names_its_secrets_without_their_values() {
        let shown = format!(
            "{:?}",
            with_secret(SecretSource::Value(Secret::from("hunter2".to_owned())))
        );
        assert!(shown.contains("token") && !shown.contains("hunter2"), "{shown}");
    }
}
