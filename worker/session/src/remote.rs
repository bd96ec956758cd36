//! The caller that is a client on the wire: every question is a call through the tunnel the client opened.
//!
//! ```text
//! local_dir ─▶ FileSync/DiffCopy ─▶ transfer::Receiver ─▶ received/…      secret ─▶ Secrets/GetSecret
//! ssh_agent ─▶ a socket here ─▶ SSH/ForwardAgent                          upload ─▶ Upload/Pull
//! credentials ─▶ Auth/Credentials (or `remote/auth.rs`: tokens)           send_* ─▶ FileSend/DiffCopy
//! ```
//!
//! A method the client does not offer is never called. Whatever it sends is checked by the one who reads it.
mod auth;

use crate::blobs;
use crate::caller::{
    Caller, FileSend, LocalDir, LocalRequest, Meter, RegistryCredential, SessionError, SessionId, Upload,
};
use crate::hand::Key;
use crate::received::{Copy, Received};
use crate::sessions::Attachment;
use crate::transfer::{Contents, Limits, Outcome, Previous, ReceiveError, Receiver, Sender, Wire};
use crate::wire::filesync::{
    BytesMessage, file_send_client::FileSendClient, file_sync_client::FileSyncClient,
};
use crate::wire::fsutil::Packet;
use crate::wire::{secrets, ssh, upload};
use crate::{MAX_SECRET_BYTES, RegistryToken, Secret, SshAgent, TokenAuthority, TokenQuestion};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tree::{Everything, PatternSet, Root, WalkOptions, walk};

const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";
const FILE_SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";
const GET_SECRET: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
const CHECK_AGENT: &str = "/moby.sshforward.v1.SSH/CheckAgent";
const PULL: &str = "/moby.upload.v1.Upload/Pull";

/// Messages waiting between the wire and the thread that works on them.
const QUEUE: usize = 16;
/// The largest message taken; BuildKit's clients send at most 16 MiB.
const MAX_MESSAGE: usize = 16 << 20;
/// Bytes of a file sent at once.
const FILE_CHUNK: usize = 1 << 20;

/// A client on the wire.
#[derive(Debug)]
pub struct RemoteCaller {
    id: SessionId,
    shared_key: String,
    methods: BTreeSet<String>,
    channel: Channel,
    received: Arc<Received>,
    hand: Option<Arc<Key>>,
    ended: CancellationToken,
}

impl RemoteCaller {
    /// The client that opened a session; `ended` is cancelled when it is gone.
    pub fn new(
        attachment: Attachment,
        channel: Channel,
        received: Arc<Received>,
        ended: CancellationToken,
    ) -> RemoteCaller {
        RemoteCaller {
            id: SessionId::new(attachment.id),
            shared_key: attachment.shared_key,
            methods: attachment
                .methods
                .iter()
                .map(|method| method.to_ascii_lowercase())
                .collect(),
            channel,
            received,
            hand: attachment.hand.map(Arc::new),
            ended,
        }
    }

    /// Whether the client offers a method (`/package.Service/Method`).
    pub fn offers(&self, method: &str) -> bool {
        self.methods.contains(&method.to_ascii_lowercase())
    }

    /// The channel to the client's services.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Ends when the client is gone.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// An answer, or that the client is gone.
    async fn ask<T>(&self, question: impl Future<Output = T>) -> Result<T, SessionError> {
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(SessionError::Ended { session: self.id.clone() }),
            answer = question => Ok(answer),
        }
    }

    async fn receive(
        &self,
        request: &LocalRequest,
        meter: Meter,
        copy: &Copy,
        older: Option<&Copy>,
    ) -> Result<Outcome, SessionError> {
        let (to_client, outgoing) = mpsc::channel(QUEUE);
        let mut call = Request::new(ReceiverStream::new(outgoing));
        let headers = call.metadata_mut();
        append(headers, "dir-name", std::slice::from_ref(&request.name));
        append(headers, "include-patterns", &request.include_patterns);
        append(headers, "exclude-patterns", &request.exclude_patterns);
        append(headers, "followpaths", &request.follow_paths);
        let mut client = FileSyncClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let refused = |status: Status| {
            self.refused(
                &format!("read the directory {:?} of the client", request.name),
                &status,
            )
        };
        let incoming = self
            .ask(client.diff_copy(call))
            .await?
            .map_err(refused)?
            .into_inner();
        let wire = Wire::new(
            std::future::ready(Ok(incoming)),
            to_wire(to_client),
            self.ended.clone(),
        );
        let (tree, index) = (copy.tree(), copy.index());
        let previous = older.map(|older| Previous {
            tree: older.tree(),
            index: older.index(),
        });
        let asks_for_all = request.asks_for_all;
        let hand = self.hand.clone();
        let listed = exceptions(request)?;
        let received = tokio::task::spawn_blocking(move || {
            let mut wire = wire;
            let receiver = Receiver {
                tree: &tree,
                index: &index,
                previous: previous.as_ref(),
                asks_for_all,
                listed,
                hand,
                limits: Limits::default(),
                meter,
            };
            receiver.run(&mut wire)
        });
        let outcome = received
            .await
            .map_err(|error| self.machine("receive a directory", io::Error::other(error)))?;
        if self.ended.is_cancelled() && outcome.is_err() {
            return Err(SessionError::Ended {
                session: self.id.clone(),
            });
        }
        outcome.map_err(|source| SessionError::Receive {
            name: request.name.clone(),
            source,
        })
    }

    fn refused(&self, doing: &str, status: &Status) -> SessionError {
        if self.ended.is_cancelled() {
            return SessionError::Ended {
                session: self.id.clone(),
            };
        }
        SessionError::Refused {
            doing: doing.to_owned(),
            reason: status.message().to_owned(),
        }
    }

    fn machine(&self, doing: &str, source: io::Error) -> SessionError {
        SessionError::Machine {
            doing: doing.to_owned(),
            source,
        }
    }
}

/// What a request wants beside the list, if that is what it wants.
pub(crate) fn exceptions(request: &LocalRequest) -> Result<Option<PatternSet>, SessionError> {
    let patterns = request.listed.as_ref().map(|patterns| PatternSet::new(patterns));
    patterns.transpose().map_err(|error| SessionError::Refused {
        doing: format!("list the directory {:?}", request.name),
        reason: error.to_string(),
    })
}

#[async_trait]
impl Caller for RemoteCaller {
    fn id(&self) -> &SessionId {
        &self.id
    }

    async fn local_dir(
        &self,
        request: &LocalRequest,
        meter: Meter,
    ) -> Result<Option<LocalDir>, SessionError> {
        if !self.offers(DIFF_COPY) {
            return Ok(None);
        }
        let mut key = format!("{}:{}:{}", request.name, request.shared_key_hint, self.shared_key);
        if request.listed.is_some() {
            key.push_str(":metadata");
        }
        let older = self.received.latest(&key);
        let copy = self.received.begin(&key);
        let outcome = match self
            .receive(request, meter.clone(), &copy, older.as_deref())
            .await
        {
            // An index that cannot be read: the copy is not to be trusted, the client is.
            Err(SessionError::Receive {
                source: ReceiveError::File { .. },
                ..
            }) if older.is_some() => {
                let copy = self.received.begin(&key);
                let outcome = self.receive(request, meter, &copy, None).await?;
                return self.keep(&key, &request.name, copy, outcome).map(Some);
            }
            outcome => outcome?,
        };
        match (outcome, older) {
            (Outcome::Unchanged, Some(older)) => Ok(Some(dir_of(older))),
            (outcome, _) => self.keep(&key, &request.name, copy, outcome).map(Some),
        }
    }

    fn oci_layout(&self, _: &str) -> Option<PathBuf> {
        None
    }

    async fn blob(&self, store: &str, digest: &oci::Digest) -> Result<Option<Upload>, SessionError> {
        if !self.offers(blobs::READ) {
            return Ok(None);
        }
        let found = self.ask(blobs::read(self.channel.clone(), store, digest)).await?;
        found.map_err(|status| self.refused(&format!("read blob {digest} of the client"), &status))
    }

    async fn put_blob(
        &self,
        store: &str,
        digest: &oci::Digest,
        size: u64,
        contents: Upload,
    ) -> Result<(), SessionError> {
        let doing = format!("write blob {digest} to the client");
        if !self.offers(blobs::WRITE) {
            let status = Status::unimplemented("the client offers no store for blobs");
            return Err(self.refused(&doing, &status));
        }
        let written = blobs::write(self.channel.clone(), store, digest, size, contents);
        self.ask(written)
            .await?
            .map_err(|status| self.refused(&doing, &status))
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, SessionError> {
        if !self.offers(GET_SECRET) {
            return Ok(None);
        }
        let mut client = secrets::secrets_client::SecretsClient::new(self.channel.clone());
        let asked = secrets::GetSecretRequest {
            id: id.to_owned(),
            annotations: <_>::default(),
        };
        match self.ask(client.get_secret(asked)).await? {
            Ok(answer) => {
                let data = answer.into_inner().data;
                if data.len() > MAX_SECRET_BYTES {
                    return Err(SessionError::SecretTooLarge {
                        id: id.to_owned(),
                        limit: MAX_SECRET_BYTES,
                    });
                }
                Ok(Some(Secret::new(data.to_vec())))
            }
            Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(None),
            Err(status) => Err(self.refused(&format!("get secret {id:?}"), &status)),
        }
    }

    async fn ssh_agent(&self, id: &str) -> Result<Option<SshAgent>, SessionError> {
        if !self.offers(CHECK_AGENT) {
            return Ok(None);
        }
        let id = if id.is_empty() { "default" } else { id };
        let mut client = ssh::ssh_client::SshClient::new(self.channel.clone());
        let asked = client.check_agent(ssh::CheckAgentRequest { id: id.to_owned() });
        if self.ask(asked).await?.is_err() {
            return Ok(None);
        }
        let relay = Relay::start(self.channel.clone(), id.to_owned())
            .map_err(|error| self.machine("forward an ssh agent", error))?;
        let socket = relay.socket.clone();
        Ok(Some(SshAgent::served(id, socket, Arc::new(relay))))
    }

    async fn credentials(&self, host: &str) -> Result<Option<RegistryCredential>, SessionError> {
        self.ask_credentials(host).await
    }

    async fn token_authority(&self, host: &str) -> Result<Option<TokenAuthority>, SessionError> {
        self.ask_token_authority(host).await
    }

    async fn token(&self, question: &TokenQuestion) -> Result<RegistryToken, SessionError> {
        self.ask_token(question).await
    }

    async fn upload(&self, id: &str) -> Result<Upload, SessionError> {
        if !self.offers(PULL) {
            return Err(SessionError::Upload { id: id.to_owned() });
        }
        let (hold, outgoing) = mpsc::channel(1);
        let mut call = Request::new(ReceiverStream::new(outgoing));
        append(call.metadata_mut(), "urlpath", &[format!("/{id}")]);
        append(call.metadata_mut(), "urlhost", &["buildkit-session".to_owned()]);
        let mut client = upload::upload_client::UploadClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE);
        let answer = self.ask(client.pull(call)).await?;
        let stream = answer
            .map_err(|status| self.refused("take an upload", &status))?
            .into_inner();
        let bytes = stream.map(move |message| {
            let _until_the_end: &mpsc::Sender<upload::BytesMessage> = &hold;
            message.map(|message| message.data).map_err(io::Error::other)
        });
        Ok(Box::new(StreamReader::new(bytes.boxed())))
    }

    async fn send_file(&self, output: usize) -> Result<Option<FileSend>, SessionError> {
        if !self.offers(FILE_SEND) {
            return Err(self.refused(
                "send a file",
                &Status::unimplemented("the client offers no place for an output"),
            ));
        }
        let (to_client, outgoing) = mpsc::channel::<BytesMessage>(4);
        let mut call = Request::new(ReceiverStream::new(outgoing));
        append(
            call.metadata_mut(),
            "buildkit-attachable-exporter-id",
            &[output.to_string()],
        );
        let (channel, ended, id) = (self.channel.clone(), self.ended.clone(), self.id.clone());
        let done = tokio::spawn(async move {
            let mut client = FileSendClient::new(channel);
            let send = async {
                let mut answers = client.diff_copy(call).await?.into_inner();
                while answers.message().await?.is_some() {}
                Ok::<(), Status>(())
            };
            tokio::select! {
                () = ended.cancelled() => Err(SessionError::Ended { session: id }),
                sent = send => match sent {
                    Ok(()) => Ok(()),
                    // The client has the same file already.
                    Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                    Err(status) => Err(SessionError::Refused {
                        doing: "send a file to the client".into(),
                        reason: status.message().to_owned(),
                    }),
                },
            }
        });
        let writer = Outgoing {
            to_client,
            waiting: Vec::new(),
        };
        Ok(Some(FileSend {
            writer: Box::new(writer),
            done,
        }))
    }

    async fn send_dir(&self, output: usize, dir: &Path, meter: Meter) -> Result<bool, SessionError> {
        if !self.offers(FILE_SEND) {
            return Err(self.refused(
                "send a directory",
                &Status::unimplemented("the client offers no place for an output"),
            ));
        }
        let doing = "send a directory to the client";
        let (to_client, outgoing) = mpsc::channel(QUEUE);
        let mut call = Request::new(ReceiverStream::new(outgoing));
        append(
            call.metadata_mut(),
            "buildkit-attachable-exporter-id",
            &[output.to_string()],
        );
        // One call sends all platforms; a client that empties its directory first must know.
        append(
            call.metadata_mut(),
            "buildkit-exporter-multi-platform",
            &["1".to_owned()],
        );
        // The method is declared with other messages, but packets are what both ends mean.
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let started = async move {
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let path = http::uri::PathAndQuery::from_static(FILE_SEND);
            let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
            grpc.streaming(call, path, codec)
                .await
                .map(tonic::Response::into_inner)
        };
        let mut wire = Wire::new(started, to_wire(to_client), self.ended.clone());
        let dir = dir.to_owned();
        let sent = tokio::task::spawn_blocking(move || {
            let root = Root::open(&dir).map_err(|error| error.to_string())?;
            let found =
                walk(&root, &Everything, WalkOptions { xattrs: true }).map_err(|error| error.to_string())?;
            let entries: Vec<_> = found.into_iter().map(|found| found.entry).collect();
            let open = |entry: &tree::Entry| -> io::Result<Contents> {
                let (file, _) = root.open_file(&entry.path).map_err(io::Error::other)?;
                Ok(Contents::File(file))
            };
            let sender = Sender {
                entries: &entries,
                open: &open,
                hand: None,
                meter: &*meter,
            };
            sender.run(&mut wire).map_err(|error| error.to_string())
        });
        let sent = sent
            .await
            .map_err(|error| self.machine(doing, io::Error::other(error)))?;
        sent.map_err(|reason| SessionError::Refused {
            doing: doing.into(),
            reason,
        })?;
        Ok(true)
    }
}

impl RemoteCaller {
    fn keep(
        &self,
        key: &str,
        name: &str,
        copy: Arc<Copy>,
        outcome: Outcome,
    ) -> Result<LocalDir, SessionError> {
        let bytes = match outcome {
            Outcome::Unchanged => 0,
            Outcome::Made { total, .. } => total,
        };
        copy.mark_whole(name, bytes)
            .map_err(|error| self.machine("keep a received directory", error))?;
        self.received.keep(key, &copy);
        Ok(dir_of(copy))
    }
}

fn dir_of(copy: Arc<Copy>) -> LocalDir {
    LocalDir {
        path: copy.tree(),
        is_filtered: true,
        hold: Some(copy),
    }
}

/// Adds the values of a header; if one has a character outside ASCII all are escaped as in a URL's query, and another
/// header says so.
pub(crate) fn append(headers: &mut MetadataMap, name: &'static str, values: &[String]) {
    let is_plain = values
        .iter()
        .all(|value| value.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
    for value in values {
        let text = match is_plain {
            true => value.clone(),
            false => url::form_urlencoded::byte_serialize(value.as_bytes()).collect(),
        };
        if let Ok(text) = MetadataValue::try_from(text) {
            headers.append(name, text);
        }
    }
    if !is_plain
        && let Ok(name) = tonic::metadata::MetadataKey::from_bytes(format!("{name}-encoded").as_bytes())
    {
        headers.insert(name, MetadataValue::from_static("1"));
    }
}

fn to_wire(to_client: mpsc::Sender<Packet>) -> impl FnMut(Packet) -> bool + Send + 'static {
    move |packet| to_client.blocking_send(packet).is_ok()
}

/// A file's bytes on their way to the client.
struct Outgoing {
    to_client: mpsc::Sender<BytesMessage>,
    waiting: Vec<u8>,
}

impl Outgoing {
    fn push(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let data = Bytes::from(std::mem::take(&mut self.waiting));
        let sent = self.to_client.blocking_send(BytesMessage { data });
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client takes no more of the file"))
    }
}

impl io::Write for Outgoing {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(FILE_CHUNK - self.waiting.len());
        self.waiting.extend_from_slice(&data[..taken]);
        if self.waiting.len() >= FILE_CHUNK {
            self.push()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}

/// A socket here that leads to an agent of the client, as long as this is held.
struct Relay {
    socket: PathBuf,
    task: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Relay {
    fn start(channel: Channel, id: String) -> io::Result<Relay> {
        let folder = tempfile::Builder::new().prefix("builder-ssh-").tempdir()?;
        let socket = folder.path().join("agent");
        let listener = tokio::net::UnixListener::bind(&socket)?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(relay(channel.clone(), id.clone(), stream));
            }
        });
        Ok(Relay {
            socket,
            task,
            _folder: folder,
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(channel: Channel, id: String, stream: tokio::net::UnixStream) {
    let (inside, mut outside) = stream.into_split();
    let questions = tokio_util::io::ReaderStream::new(inside)
        .take_while(|read| std::future::ready(read.is_ok()))
        .map(|read| ssh::BytesMessage {
            data: read.unwrap_or_default(),
        });
    let mut call = Request::new(questions);
    append(call.metadata_mut(), "buildkit.ssh.id", &[id]);
    let mut client = ssh::ssh_client::SshClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let Ok(answers) = client.forward_agent(call).await else {
        return;
    };
    let mut answers = answers.into_inner();
    while let Ok(Some(message)) = answers.message().await {
        if tokio::io::AsyncWriteExt::write_all(&mut outside, &message.data)
            .await
            .is_err()
        {
            return;
        }
    }
}
