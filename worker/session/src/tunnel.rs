//! gRPC inside a stream of bytes: the daemon is the client of a client's services.
//!
//! ```text
//! Session RPC, messages in ─▶ StreamReader ─┐
//!             messages out ◀─ SinkWriter ◀──┴─▶ h2 ─▶ Channel (one connection, never made again)
//! ```
use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt};
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::PollSender;
use tonic::transport::{Channel, Endpoint};

/// Bytes a peer may send ahead on one stream, and on all of them together.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The largest frame taken: fewer of them to look at.
const MAX_FRAME: u32 = 1 << 20;
/// The most bytes of headers taken: errors come in them, with the lines they are about.
const MAX_HEADERS: u32 = 16 << 20;
/// How long a peer may take to answer the first greeting.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// A channel to the services at the other end of two streams of bytes. Its greeting is sent at once: Go clients take what
/// arrives while they close a session for frames, and complain of a protocol error, so that as little as possible should.
///
/// # Errors
/// The streams broke, or the greeting could not be sent in time.
pub async fn channel<S>(inbound: S, outbound: mpsc::Sender<Bytes>) -> Result<Channel, tonic::transport::Error>
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let reader = StreamReader::new(inbound.boxed());
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let writer = SinkWriter::new(CopyToBytes::new(PollSender::new(outbound).sink_map_err(gone)));
    let once = Mutex::new(Some(TokioIo::new(tokio::io::join(reader, writer))));
    let connector = tower::service_fn(move |_| {
        let io = once.lock().map(|mut io| io.take()).unwrap_or_default();
        std::future::ready(io.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    Endpoint::from_static("http://localhost")
        .http2_max_header_list_size(MAX_HEADERS)
        .max_frame_size(MAX_FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_timeout(HANDSHAKE)
        .connect_with_connector(connector)
        .await
}
