//! Content: blobs by digest, of image layouts that are contexts and of results that are written as blobs.
//!
//! ```text
//! header buildkit-attachable-store-id ─▶ Store ─▶ <folder>/blobs/sha256/<hex>
//!                                                 <folder>/ingest/…          while one is written
//! ```
//!
//! Blobs are written aside, hashed on the way, and renamed when the digest is the one that was said.
use super::values;
use crate::wire::content::content_server::Content as Service;
use crate::wire::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse,
    StatusRequest, StatusResponse, UpdateRequest, UpdateResponse, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use bytes::Bytes;
use futures_util::Stream;
use oci::{Digest, DigestWriter};
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of a blob in one message.
const CHUNK: usize = 1 << 20;

/// A folder of blobs.
#[derive(Clone, Debug)]
pub struct Store {
    /// The folder that holds `blobs/`.
    pub folder: PathBuf,
    /// Whether a daemon may write to it.
    pub is_writable: bool,
}

impl Store {
    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest.hex())
    }
}

pub(super) struct Content {
    pub(super) stores: Arc<BTreeMap<String, Store>>,
}

impl Content {
    fn store(&self, headers: &MetadataMap) -> Result<Store, Status> {
        let name = values(headers, "buildkit-attachable-store-id")
            .into_iter()
            .next()
            .unwrap_or_default();
        self.stores
            .get(&name)
            .cloned()
            .ok_or_else(|| Status::not_found(format!("unknown store {name:?}")))
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    Digest::parse(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn machine(doing: &str, path: &Path, error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(format!("{}: not found", path.display())),
        _ => Status::unknown(format!("{doing} {}: {error}", path.display())),
    }
}

fn info(store: &Store, text: &str) -> Result<Info, Status> {
    let digest = digest(text)?;
    let path = store.path(&digest);
    let found = std::fs::metadata(&path).map_err(|error| machine("look at", &path, &error))?;
    let time = found.modified().ok().map(prost_types::Timestamp::from);
    Ok(Info {
        digest: digest.to_string(),
        size: i64::try_from(found.len()).unwrap_or(i64::MAX),
        created_at: time,
        updated_at: time,
        labels: <_>::default(),
    })
}

fn unsupported<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not offered by this client"))
}

#[tonic::async_trait]
impl Service for Content {
    type ListStream = Pin<Box<dyn Stream<Item = Result<ListContentResponse, Status>> + Send>>;
    type ReadStream = ReceiverStream<Result<ReadContentResponse, Status>>;
    type WriteStream = ReceiverStream<Result<WriteContentResponse, Status>>;

    async fn info(&self, call: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let store = self.store(call.metadata())?;
        let info = info(&store, &call.into_inner().digest)?;
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    async fn update(&self, call: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        // A folder of blobs has no place for labels, which say nothing about the blob itself.
        let store = self.store(call.metadata())?;
        let asked = call.into_inner().info.unwrap_or_default();
        let info = info(&store, &asked.digest)?;
        Ok(Response::new(UpdateResponse { info: Some(info) }))
    }

    async fn list(&self, _: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        unsupported()
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        unsupported()
    }

    async fn read(&self, call: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let store = self.store(call.metadata())?;
        let asked = call.into_inner();
        let path = store.path(&digest(&asked.digest)?);
        let number =
            |value: i64| u64::try_from(value).map_err(|_| Status::out_of_range("a negative offset or size"));
        let (offset, size) = (number(asked.offset)?, number(asked.size)?);
        let mut file = std::fs::File::open(&path).map_err(|error| machine("open", &path, &error))?;
        let length = file
            .metadata()
            .map_err(|error| machine("look at", &path, &error))?
            .len();
        if offset > length {
            return Err(Status::out_of_range(format!(
                "offset {offset} lies behind the blob's end"
            )));
        }
        let (to_daemon, outgoing) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let mut left = match size {
                0 => length - offset,
                size => size.min(length - offset),
            };
            let mut at = offset;
            if let Err(error) = file.seek(SeekFrom::Start(offset)) {
                let _ = to_daemon.blocking_send(Err(machine("read", &path, &error)));
                return;
            }
            while left > 0 {
                let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
                let message = match file.read_exact(&mut chunk) {
                    Ok(()) => Ok(ReadContentResponse {
                        offset: i64::try_from(at).unwrap_or(i64::MAX),
                        data: Bytes::from(chunk.clone()),
                    }),
                    Err(error) => Err(machine("read", &path, &error)),
                };
                let is_end = message.is_err();
                (left, at) = (left - chunk.len() as u64, at + chunk.len() as u64);
                if to_daemon.blocking_send(message).is_err() || is_end {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn status(&self, call: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        // What was begun is thrown away when its call ends, so nothing can be gone on with.
        Err(Status::not_found(format!(
            "no write {:?}",
            call.into_inner().r#ref
        )))
    }

    async fn list_statuses(
        &self,
        _: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        Ok(Response::new(ListStatusesResponse::default()))
    }

    async fn write(
        &self,
        call: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let store = self.store(call.metadata())?;
        if !store.is_writable {
            return Err(Status::permission_denied("this store is for reading only"));
        }
        let mut messages = call.into_inner();
        let (to_daemon, outgoing) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut ingest = Ingest::new(store);
            loop {
                let message = match messages.message().await {
                    Ok(Some(message)) => message,
                    Ok(None) | Err(_) => return,
                };
                // The file is written in order, one message at a time; each is answered before the next comes.
                let step = tokio::task::spawn_blocking(move || {
                    let answer = ingest.step(&message);
                    (ingest, answer)
                });
                let Ok((next, answer)) = step.await else { return };
                ingest = next;
                let is_end = answer.is_err();
                if to_daemon.send(answer).await.is_err() || is_end {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

/// A blob that is being written.
struct Ingest {
    store: Store,
    file: Option<DigestWriter<NamedTempFile>>,
    offset: u64,
    expected: Option<Digest>,
    total: i64,
}

impl Ingest {
    fn new(store: Store) -> Ingest {
        Ingest {
            store,
            file: None,
            offset: 0,
            expected: None,
            total: 0,
        }
    }

    fn step(&mut self, message: &WriteContentRequest) -> Result<WriteContentResponse, Status> {
        let action = WriteAction::try_from(message.action)
            .map_err(|_| Status::invalid_argument(format!("unknown action {}", message.action)))?;
        if !message.expected.is_empty() {
            let expected = digest(&message.expected)?;
            if self.store.path(&expected).exists() {
                return Err(Status::already_exists(format!(
                    "blob {expected} is there already"
                )));
            }
            self.expected = Some(expected);
        }
        if message.total > 0 {
            self.total = message.total;
        }
        let mut written = None;
        match action {
            WriteAction::Stat => {}
            WriteAction::Write => self.data(message)?,
            WriteAction::Commit => {
                if !message.data.is_empty() {
                    self.data(message)?;
                }
                written = Some(self.commit()?);
            }
        }
        Ok(WriteContentResponse {
            action: message.action,
            started_at: Some(std::time::SystemTime::now().into()),
            updated_at: Some(std::time::SystemTime::now().into()),
            offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            total: self.total,
            digest: written.map(|digest| digest.to_string()).unwrap_or_default(),
        })
    }

    fn data(&mut self, message: &WriteContentRequest) -> Result<(), Status> {
        if u64::try_from(message.offset) != Ok(self.offset) {
            return Err(Status::out_of_range(format!(
                "write at {}, but {} bytes are there",
                message.offset, self.offset
            )));
        }
        let folder = self.store.folder.join("ingest");
        let failed = |error: io::Error| machine("write into", &folder, &error);
        if self.file.is_none() {
            std::fs::create_dir_all(&folder).map_err(failed)?;
            self.file = Some(DigestWriter::new(NamedTempFile::new_in(&folder).map_err(failed)?));
        }
        if let Some(file) = &mut self.file {
            file.write_all(&message.data).map_err(failed)?;
        }
        self.offset += message.data.len() as u64;
        Ok(())
    }

    fn commit(&mut self) -> Result<Digest, Status> {
        if self.total > 0 && u64::try_from(self.total) != Ok(self.offset) {
            return Err(Status::failed_precondition(format!(
                "the blob has {} bytes, not {}",
                self.offset, self.total
            )));
        }
        let (file, found) = match self.file.take() {
            Some(writer) => {
                let (file, digest, _) = writer.finish();
                (Some(file), digest)
            }
            None => (None, Digest::of(b"")),
        };
        if let Some(expected) = self.expected.filter(|expected| *expected != found) {
            return Err(Status::failed_precondition(format!(
                "the blob is {found}, not {expected}"
            )));
        }
        let path = self.store.path(&found);
        let failed = |error: io::Error| machine("write", &path, &error);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        match file {
            Some(file) => {
                std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
                    .map_err(failed)?;
                file.persist(&path).map_err(|error| failed(error.error))?;
            }
            None => std::fs::write(&path, []).map_err(failed)?,
        }
        let _ = std::fs::remove_dir(self.store.folder.join("ingest"));
        Ok(found)
    }
}
