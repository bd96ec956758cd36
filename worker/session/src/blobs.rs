//! Blobs of a client's stores, read and written by digest: containerd's Content service at the client's end.
//!
//! ```text
//! read   Read{digest} ─▶ data…                             write   STAT ─▶ WRITE data ─▶ … ─▶ COMMIT, each answered
//! ```
use crate::caller::Upload;
use crate::remote::append;
use crate::wire::content::content_client::ContentClient;
use crate::wire::content::{ReadContentRequest, WriteAction, WriteContentRequest};
use bytes::Bytes;
use futures_util::StreamExt;
use oci::Digest;
use std::io;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

pub(crate) const READ: &str = "/containerd.services.content.v1.Content/Read";
pub(crate) const WRITE: &str = "/containerd.services.content.v1.Content/Write";
const STORE: &str = "buildkit-attachable-store-id";
/// The largest message taken.
const MAX_MESSAGE: usize = 16 << 20;
/// Bytes of a blob in one message.
const CHUNK: usize = 1 << 20;

/// The bytes of a blob, or nothing if the client has none such.
pub(crate) async fn read(channel: Channel, store: &str, digest: &Digest) -> Result<Option<Upload>, Status> {
    let mut call = Request::new(ReadContentRequest {
        digest: digest.to_string(),
        offset: 0,
        size: 0,
    });
    append(call.metadata_mut(), STORE, &[store.to_owned()]);
    let mut client = ContentClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    // Some clients refuse at once, some with the first message.
    let first = match client.read(call).await {
        Ok(answer) => {
            let mut stream = answer.into_inner();
            stream.message().await.map(|first| (first, stream))
        }
        Err(status) => Err(status),
    };
    let (first, stream) = match first {
        Ok(found) => found,
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => return Ok(None),
        Err(status) => return Err(status),
    };
    let bytes = futures_util::stream::iter(first.map(Ok))
        .chain(stream)
        .map(|message| message.map(|message| message.data).map_err(io::Error::other));
    Ok(Some(Box::new(StreamReader::new(bytes.boxed()))))
}

/// Writes a blob, unless the client has it.
pub(crate) async fn write(
    channel: Channel,
    store: &str,
    digest: &Digest,
    size: u64,
    mut contents: Upload,
) -> Result<(), Status> {
    let total = i64::try_from(size).map_err(|_| Status::out_of_range("a blob without end"))?;
    let begin = |action: WriteAction, offset: i64, data: Bytes| WriteContentRequest {
        action: action.into(),
        r#ref: format!("blob-{digest}"),
        total,
        expected: digest.to_string(),
        offset,
        data,
        labels: <_>::default(),
    };
    let (messages, outgoing) = mpsc::channel(1);
    let gone = |_| Status::unavailable("the client went away");
    messages
        .send(begin(WriteAction::Stat, 0, Bytes::new()))
        .await
        .map_err(gone)?;
    let mut call = Request::new(ReceiverStream::new(outgoing));
    append(call.metadata_mut(), STORE, &[store.to_owned()]);
    let mut client = ContentClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let written = async {
        let mut answers = client.write(call).await?.into_inner();
        let cut = || Status::unavailable("the client ended the write");
        answers.message().await?.ok_or_else(cut)?;
        let mut offset = 0;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&mut contents).take(CHUNK as u64).read_to_end(&mut chunk).await;
            read.map_err(|error| Status::internal(error.to_string()))?;
            if chunk.is_empty() {
                break;
            }
            let length = i64::try_from(chunk.len()).unwrap_or(i64::MAX);
            let message = begin(WriteAction::Write, offset, Bytes::from(chunk));
            // A client that refuses says why in its answer.
            let _ = messages.send(message).await;
            answers.message().await?.ok_or_else(cut)?;
            offset += length;
        }
        let _ = messages
            .send(begin(WriteAction::Commit, offset, Bytes::new()))
            .await;
        answers.message().await?.ok_or_else(cut)?;
        Ok::<(), Status>(())
    };
    match written.await {
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        written => written,
    }
}
