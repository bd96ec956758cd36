//! FileSend: results on their way to the user, archives as bytes and directories as packets.
//!
//! ```text
//! FileSend/DiffCopy ─ number of the output ─┬─▶ Place::File   BytesMessage{data}… ─▶ writer
//!                                           └─▶ Place::Dir    packets ─▶ <dir>/.builder-… ─▶ merged into <dir>
//! ```
//!
//! The method is declared with one type of message but used with two; so messages are taken as they are and read by what
//! the output is. A directory is changed only when everything has come.
use super::{MAX_MESSAGE, QUEUE, values};
use crate::transfer::{Limits, Receiver, Wire, merge};
use crate::wire::filesync::BytesMessage;
use crate::wire::fsutil::Packet;
use bytes::{Buf, BufMut, Bytes};
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use prost::Message;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Response, Status, Streaming};
use tree::{Root, RootPath};

/// Where an output goes.
pub enum Place {
    /// An archive's bytes.
    File(Box<dyn Write + Send>),
    /// A directory; made if it is not there.
    Dir {
        /// Its path.
        path: PathBuf,
        /// Remove everything that was there before.
        empties: bool,
    },
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(_) => f.write_str("File"),
            Place::Dir { path, .. } => write!(f, "Dir({})", path.display()),
        }
    }
}

/// The places of all outputs.
#[derive(Debug)]
pub(super) struct Outputs {
    files: BTreeMap<usize, Mutex<Option<Writer>>>,
    dirs: BTreeMap<usize, Arc<Dir>>,
    tasks: TaskTracker,
    failures: Arc<Mutex<Vec<String>>>,
}

struct Writer(Box<dyn Write + Send>);

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

#[derive(Debug)]
struct Dir {
    path: PathBuf,
    empties: bool,
    /// Several platforms may come at the same time.
    merging: Mutex<()>,
}

impl Outputs {
    pub(super) fn new(places: BTreeMap<usize, Place>) -> Outputs {
        let (mut files, mut dirs) = (BTreeMap::new(), BTreeMap::new());
        for (number, place) in places {
            match place {
                Place::File(writer) => {
                    files.insert(number, Mutex::new(Some(Writer(writer))));
                }
                Place::Dir { path, empties } => {
                    let merging = Mutex::new(());
                    dirs.insert(
                        number,
                        Arc::new(Dir {
                            path,
                            empties,
                            merging,
                        }),
                    );
                }
            }
        }
        Outputs {
            files,
            dirs,
            tasks: TaskTracker::new(),
            failures: Arc::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.dirs.is_empty()
    }

    pub(super) async fn settle(&self) -> Result<(), String> {
        self.tasks.close();
        self.tasks.wait().await;
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failures.first() {
            None => Ok(()),
            Some(failure) => Err(failure.clone()),
        }
    }

    /// Runs `work` on a thread, known to [`Outputs::settle`].
    fn work(
        &self,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
        then: impl FnOnce(Result<(), Status>) + Send + 'static,
    ) {
        let failures = self.failures.clone();
        self.tasks.spawn_blocking(move || {
            let done = work();
            if let Err(failure) = &done {
                failures
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(failure.clone());
            }
            then(done.map_err(Status::unknown));
        });
    }
}

/// The service.
#[derive(Clone)]
pub(super) struct FileSend {
    pub(super) outputs: Arc<Outputs>,
    pub(super) ended: CancellationToken,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl FileSend {
    fn take(&self, call: Request<Streaming<Bytes>>) -> Result<Response<Answers>, Status> {
        let headers = call.metadata();
        // A daemon that knows only one output gives no number.
        let number = values(headers, "buildkit-attachable-exporter-id")
            .first()
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        let sends_all_platforms = headers.contains_key("buildkit-exporter-multi-platform");
        if let Some(dir) = self.outputs.dirs.get(&number) {
            if dir.empties && !sends_all_platforms {
                return Err(Status::failed_precondition(
                    "mode=delete needs a daemon that sends all platforms together; this one does not",
                ));
            }
            return Ok(self.dir(dir.clone(), call.into_inner()));
        }
        let Some(file) = self.outputs.files.get(&number) else {
            return Err(Status::not_found(format!("there is no output {number}")));
        };
        let writer = file.lock().unwrap_or_else(PoisonError::into_inner).take();
        match writer {
            Some(Writer(writer)) => Ok(self.file(writer, call.into_inner())),
            None => Err(Status::already_exists(format!(
                "output {number} was sent already"
            ))),
        }
    }

    fn file(&self, mut writer: Box<dyn Write + Send>, messages: Streaming<Bytes>) -> Response<Answers> {
        let (queue, mut waiting) = mpsc::channel::<Result<Bytes, Status>>(QUEUE);
        tokio::spawn(forward(messages, queue, self.ended.clone()));
        let (to_daemon, outgoing) = mpsc::channel(1);
        let write = move || {
            while let Some(message) = waiting.blocking_recv() {
                let message = message.map_err(|status| status.message().to_owned())?;
                let message = BytesMessage::decode(message).map_err(|error| error.to_string())?;
                writer
                    .write_all(&message.data)
                    .map_err(|error| format!("write the output: {error}"))?;
            }
            writer
                .flush()
                .map_err(|error| format!("write the output: {error}"))
        };
        self.outputs.work(write, move |done| {
            if let Err(status) = done {
                let _ = to_daemon.blocking_send(Err(status));
            }
        });
        Response::new(Box::pin(ReceiverStream::new(outgoing)))
    }

    fn dir(&self, dir: Arc<Dir>, messages: Streaming<Bytes>) -> Response<Answers> {
        let packets = messages.map(|message| {
            Packet::decode(message?).map_err(|error| Status::invalid_argument(error.to_string()))
        });
        let (to_daemon, outgoing) = mpsc::channel(QUEUE);
        let answers = to_daemon.clone();
        let wire = Wire::new(
            std::future::ready(Ok(packets)),
            move |packet: Packet| answers.blocking_send(Ok(packet.encode_to_vec().into())).is_ok(),
            self.ended.clone(),
        );
        self.outputs.work(
            move || {
                receive(&dir, wire).map_err(|error| format!("write into {}: {error}", dir.path.display()))
            },
            move |done| {
                if let Err(status) = done {
                    let _ = to_daemon.blocking_send(Err(status));
                }
            },
        );
        Response::new(Box::pin(ReceiverStream::new(outgoing)))
    }
}

/// Hands messages on until they end; an end without the daemon's word for it is an error.
async fn forward(
    mut messages: Streaming<Bytes>,
    queue: mpsc::Sender<Result<Bytes, Status>>,
    ended: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            biased;
            next = messages.message() => next.transpose(),
            () = ended.cancelled() => Some(Err(Status::cancelled("the daemon went away"))),
        };
        let Some(message) = message else { return };
        let is_end = message.is_err();
        if queue.send(message).await.is_err() || is_end {
            return;
        }
    }
}

fn receive(dir: &Dir, mut wire: Wire) -> Result<(), String> {
    fn text(error: impl std::error::Error) -> String {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        text
    }
    std::fs::create_dir_all(&dir.path).map_err(text)?;
    let aside = tempfile::Builder::new()
        .prefix(".builder-")
        .tempdir_in(&dir.path)
        .map_err(text)?;
    let (tree, index) = (aside.path().join("tree"), aside.path().join("index"));
    let receiver = Receiver {
        tree: &tree,
        index: &index,
        previous: None,
        asks_for_all: true,
        listed: None,
        hand: None,
        limits: Limits::default(),
        meter: Arc::new(|_| {}),
    };
    receiver.run(&mut wire).map_err(text)?;
    let name = aside.path().file_name().unwrap_or_default().to_owned();
    let from = RootPath::clean(Path::new(&name).join("tree").as_os_str().as_encoded_bytes()).map_err(text)?;
    let _one_at_a_time = dir.merging.lock().unwrap_or_else(PoisonError::into_inner);
    if dir.empties {
        for entry in std::fs::read_dir(&dir.path).map_err(text)? {
            let found = entry.map_err(text)?.file_name();
            if found != name {
                let path = RootPath::clean(found.as_encoded_bytes()).map_err(text)?;
                Root::open(&dir.path)
                    .and_then(|root| root.remove_all(&path))
                    .map_err(text)?;
            }
        }
    }
    let root = Root::open(&dir.path).map_err(text)?;
    merge(&root, &from).map_err(text)
}

impl tonic::server::NamedService for FileSend {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl tower::Service<http::Request<tonic::body::Body>> for FileSend {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/moby.filesync.v1.FileSend/DiffCopy" {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(RawCodec).max_decoding_message_size(MAX_MESSAGE);
            Ok(grpc.streaming(Method(service), request).await)
        })
    }
}

struct Method(FileSend);

impl tonic::server::StreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = std::future::Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, call: Request<Streaming<Bytes>>) -> Self::Future {
        std::future::ready(self.0.take(call))
    }
}

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = from.remaining();
        Ok(Some(from.copy_to_bytes(length)))
    }
}
