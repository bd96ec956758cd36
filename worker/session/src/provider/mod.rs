//! The client's end of a session: serves a daemon what the user offered for one build, and takes what it sends.
//!
//! ```text
//! stream of bytes from the daemon ─▶ gRPC server ─┬─▶ files    FileSync: directories, listed and filtered here
//!                                                 ├─▶ outputs  FileSend: archives and directories of results
//!                                                 ├─▶ answers  Auth, Secrets, SSH, Upload
//!                                                 └─▶ content  Content: image layouts, blobs of results
//! ```
//!
//! The daemon learns nothing but what the [`LocalCaller`] was given and what [`Place`]s say. Where the caller fetches tokens
//! for registries itself ([`crate::TokenSource`]), a daemon gets those and never the password.
pub(crate) mod files;
mod outputs;
mod answers;
mod content;

pub use content::Store;
pub use outputs::Place;

use crate::LocalCaller;
use crate::hand::Offer;
use crate::wire::{content as blobs, filesync, secrets, ssh, upload};
use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt};
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::{CancellationToken, PollSender};
use tonic::metadata::MetadataMap;
use tonic::transport::server::Connected;

/// Bytes a daemon may send ahead on one stream, and on all of them together.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The largest frame taken: fewer of them to look at.
const MAX_FRAME: u32 = 1 << 20;
/// The largest message taken.
const MAX_MESSAGE: usize = 16 << 20;
/// Messages waiting to be sent on one stream.
const QUEUE: usize = 16;

/// All that one build's client offers a daemon.
#[derive(Debug)]
pub struct Provider {
    caller: Arc<LocalCaller>,
    outputs: Arc<outputs::Outputs>,
    stores: Arc<BTreeMap<String, Store>>,
    hand: OnceLock<Arc<Offer>>,
}

impl Provider {
    /// Offers what `caller` has, takes outputs into `places` (by their number in the request) and serves `stores` by
    /// the names daemons know them by (`oci:<name>`, `export`, `local:<path>`).
    pub fn new(
        caller: Arc<LocalCaller>,
        places: BTreeMap<usize, Place>,
        stores: BTreeMap<String, Store>,
    ) -> Provider {
        Provider {
            caller,
            outputs: Arc::new(outputs::Outputs::new(places)),
            stores: Arc::new(stores),
            hand: OnceLock::new(),
        }
    }

    /// Large files of directories are handed over to this daemon, not sent; to be said before it is served.
    pub fn hand_over(&self, offer: Offer) {
        // Said twice, the first counts: one provider is for one session.
        let _ = self.hand.set(Arc::new(offer));
    }

    /// The methods a daemon is told of when the session is opened.
    pub fn methods(&self) -> Vec<&'static str> {
        let mut methods = vec![
            "/grpc.health.v1.Health/Check",
            "/moby.filesync.v1.FileSync/DiffCopy",
            "/moby.filesync.v1.Auth/Credentials",
            "/moby.buildkit.secrets.v1.Secrets/GetSecret",
            "/moby.sshforward.v1.SSH/CheckAgent",
            "/moby.sshforward.v1.SSH/ForwardAgent",
            "/moby.upload.v1.Upload/Pull",
        ];
        if self.caller.tokens().is_some() {
            methods.extend([
                "/moby.filesync.v1.Auth/FetchToken",
                "/moby.filesync.v1.Auth/GetTokenAuthority",
                "/moby.filesync.v1.Auth/VerifyTokenAuthority",
            ]);
        }
        if !self.outputs.is_empty() {
            methods.push("/moby.filesync.v1.FileSend/DiffCopy");
        }
        if !self.stores.is_empty() {
            methods.extend([
                "/containerd.services.content.v1.Content/Info",
                "/containerd.services.content.v1.Content/Update",
                "/containerd.services.content.v1.Content/Read",
                "/containerd.services.content.v1.Content/Status",
                "/containerd.services.content.v1.Content/ListStatuses",
                "/containerd.services.content.v1.Content/Write",
                "/containerd.services.content.v1.Content/Abort",
            ]);
        }
        methods
    }

    /// Waits until everything a daemon sent lies where it belongs.
    ///
    /// # Errors
    /// A sentence: an output could not be put into its place.
    pub async fn settle(&self) -> Result<(), String> {
        self.outputs.settle().await
    }

    /// Serves a daemon at the other end of two streams of bytes, until they end or `stop` is cancelled.
    ///
    /// # Errors
    /// The connection inside the streams broke.
    pub async fn serve<S>(
        &self,
        inbound: S,
        outbound: mpsc::Sender<Bytes>,
        stop: CancellationToken,
    ) -> Result<(), tonic::transport::Error>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let ended = stop.child_token();
        let told = ended.clone();
        // The end of the daemon's bytes ends the server too; its other connections never come.
        let inbound = inbound.chain(futures_util::stream::poll_fn(move |_| {
            told.cancel();
            Poll::Ready(None)
        }));
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let line = Line(tokio::io::join(
            StreamReader::new(inbound.boxed()),
            SinkWriter::new(CopyToBytes::new(PollSender::new(outbound).sink_map_err(gone))),
        ));
        let lines =
            futures_util::stream::iter([Ok::<_, io::Error>(line)]).chain(futures_util::stream::pending());
        let (_, health) = tonic_health::server::health_reporter();
        let answers = answers::Answers {
            caller: self.caller.clone(),
        };
        let mut server = tonic::transport::Server::builder()
            .max_frame_size(MAX_FRAME)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .add_service(health)
            .add_service(
                filesync::file_sync_server::FileSyncServer::new(files::Files {
                    caller: self.caller.clone(),
                    hand: self.hand.get().cloned(),
                    ended: ended.clone(),
                })
                .max_decoding_message_size(MAX_MESSAGE),
            )
            .add_service(filesync::auth_server::AuthServer::new(answers.clone()))
            .add_service(secrets::secrets_server::SecretsServer::new(answers.clone()))
            .add_service(ssh::ssh_server::SshServer::new(answers.clone()))
            .add_service(upload::upload_server::UploadServer::new(answers));
        if !self.outputs.is_empty() {
            server = server.add_service(outputs::FileSend {
                outputs: self.outputs.clone(),
                ended: ended.clone(),
            });
        }
        if !self.stores.is_empty() {
            let content = content::Content {
                stores: self.stores.clone(),
            };
            server = server.add_service(
                blobs::content_server::ContentServer::new(content).max_decoding_message_size(MAX_MESSAGE),
            );
        }
        let serving = server.serve_with_incoming_shutdown(lines, ended.clone().cancelled_owned());
        tokio::select! {
            served = serving => served,
            // What still runs then waits for a daemon that is gone.
            () = async { ended.cancelled().await; tokio::task::yield_now().await } => Ok(()),
        }
    }
}

/// The values of a header, unescaped where the daemon says that they are escaped.
fn values(headers: &MetadataMap, name: &str) -> Vec<String> {
    let is_escaped = headers.contains_key(format!("{name}-encoded").as_str());
    let texts = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    texts
        .map(|text| match is_escaped {
            false => text.to_owned(),
            // A query of one name without a value is the name, unescaped.
            true => url::form_urlencoded::parse(text.replace('&', "%26").replace('=', "%3D").as_bytes())
                .next()
                .map(|(name, _)| name.into_owned())
                .unwrap_or_default(),
        })
        .collect()
}

/// The one connection of a session.
struct Line<T>(T);

impl<T> Connected for Line<T> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl<T: AsyncRead + Unpin> AsyncRead for Line<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Line<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
