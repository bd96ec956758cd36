//! Opens a build's session on a daemon: the Session call carries a connection on which we are the server.
//!
//! ```text
//! Provider ◀─ gRPC ─▶ bytes ◀─ BytesMessage, both ways ─▶ daemon
//! ```
use api::control::BytesMessage;
use api::control::control_client::ControlClient;
use bytes::Bytes;
use session::hand::{self, Offer};
use session::provider::Provider;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Pieces of the inner connection waiting to be sent.
const QUEUE: usize = 64;

/// A session that is open.
pub(super) struct Attached {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Opens a session; `socket` is the daemon's, if it is one of this machine.
pub(super) async fn attach(
    control: &ControlClient<Channel>,
    provider: Arc<Provider>,
    id: &str,
    shared_key: &str,
    socket: Option<&Path>,
) -> Result<Attached, Status> {
    let (outbound, messages) = mpsc::channel::<Bytes>(QUEUE);
    let mut call = Request::new(ReceiverStream::new(messages).map(|data| BytesMessage { data }));
    let headers = call.metadata_mut();
    append(headers, "x-docker-expose-session-uuid", id)?;
    append(headers, "x-docker-expose-session-sharedkey", shared_key)?;
    for method in provider.methods() {
        append(headers, "x-docker-expose-session-grpc-method", method)?;
    }
    if socket.is_some() {
        append(headers, hand::HEADER, hand::VERSION)?;
    }
    let mut control = control.clone();
    let stop = CancellationToken::new();
    let ended = stop.clone();
    let answers = control.session(call).await?;
    let token = answers
        .metadata()
        .get(hand::HEADER)
        .and_then(|token| token.to_str().ok());
    if let (Some(socket), Some(token)) = (socket, token)
        && let Some(offer) = Offer::new(socket.to_owned(), token)
    {
        provider.hand_over(offer);
    }
    let answers = answers.into_inner();
    let inbound = answers.map(|message| message.map(|message| message.data).map_err(io::Error::other));
    let task = tokio::spawn(async move {
        if let Err(error) = provider.serve(inbound, outbound, ended).await {
            tracing::debug!(%error, "the session ended");
        }
    });
    Ok(Attached { stop, task })
}

fn append(headers: &mut MetadataMap, name: &'static str, value: &str) -> Result<(), Status> {
    let value = MetadataValue::try_from(value).map_err(|error| Status::internal(error.to_string()))?;
    headers.append(name, value);
    Ok(())
}

impl Attached {
    /// Closes the session.
    pub(super) async fn close(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}
