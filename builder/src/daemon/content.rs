//! The Content service, for reading: logs and attachments of the history, blobs of the store.
use super::control::{blocking, internal};
use super::run::Runner;
use api::content::content_server::Content;
use api::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse,
    StatusRequest, StatusResponse, UpdateRequest, UpdateResponse, WriteContentRequest, WriteContentResponse,
};
use futures_util::{Stream, StreamExt, stream};
use oci::Digest;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of one message.
const CHUNK: usize = 1 << 20;

/// The service.
pub(super) struct ContentService {
    pub(super) runner: Arc<Runner>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ContentService {
    async fn open(&self, digest: &str) -> Result<(Digest, File, u64), Status> {
        let digest = Digest::parse(digest).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (history, cache) = (self.runner.history.clone(), self.runner.engine.cache.clone());
        let opened = blocking(move || {
            let found = history.open_blob(&digest).map_err(|error| internal(&error))?;
            let file = match found {
                Some(file) => file,
                None => match cache.content().size(&digest).map_err(|error| internal(&error))? {
                    Some(_) => cache.content().open(&digest).map_err(|error| internal(&error))?,
                    None => return Err(Status::not_found(format!("content {digest}: not found"))),
                },
            };
            let size = file.metadata().map_err(|error| internal(&error))?.len();
            Ok((file, size))
        });
        let (file, size) = opened.await??;
        Ok((digest, file, size))
    }
}

#[tonic::async_trait]
impl Content for ContentService {
    type ListStream = Answers<ListContentResponse>;
    type ReadStream = Answers<ReadContentResponse>;
    type WriteStream = Answers<WriteContentResponse>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let (digest, _, size) = self.open(&request.into_inner().digest).await?;
        let info = Some(Info {
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..Info::default()
        });
        Ok(Response::new(InfoResponse { info }))
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let asked = request.into_inner();
        let (_, file, size) = self.open(&asked.digest).await?;
        let number = |value: i64| {
            u64::try_from(value).map_err(|_| Status::invalid_argument("a negative offset or size"))
        };
        let (from, length) = (number(asked.offset)?, number(asked.size)?);
        if from > size {
            return Err(Status::out_of_range(format!(
                "offset {from} is beyond the content's {size} bytes"
            )));
        }
        let end = if length == 0 {
            size
        } else {
            size.min(from.saturating_add(length))
        };
        let chunks = stream::try_unfold((Arc::new(file), from), move |(file, at)| async move {
            if at >= end {
                return Ok(None);
            }
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let reader = file.clone();
            let data = blocking(move || {
                let mut data = vec![0; wanted];
                reader.read_exact_at(&mut data, at).map(|()| data)
            });
            let data = data.await?.map_err(|error| internal(&error))?;
            let next = at + data.len() as u64;
            let chunk = ReadContentResponse {
                offset: i64::try_from(at).unwrap_or(i64::MAX),
                data: data.into(),
            };
            Ok(Some((chunk, (file, next))))
        });
        Ok(Response::new(chunks.boxed()))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        Err(read_only("Update"))
    }

    async fn list(&self, _: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        Err(read_only("List"))
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(read_only("Delete"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(read_only("Status"))
    }

    async fn list_statuses(
        &self,
        _: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        Err(read_only("ListStatuses"))
    }

    async fn write(
        &self,
        _: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        Err(read_only("Write"))
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, Status> {
        Err(read_only("Abort"))
    }
}

fn read_only(call: &str) -> Status {
    Status::unimplemented(format!(
        "{call}: the content of a daemon can only be read, by digest"
    ))
}
