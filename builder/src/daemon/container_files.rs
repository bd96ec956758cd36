//! Files of the containers of frontends, over the wire.
//!
//! ```text
//! ReadFileContainer, ReadDirContainer, StatFileContainer ─▶ container by id ─▶ worker's Files of one mount ─▶ answer
//! ```
use super::builds::Build;
use super::control::blocking;
use super::gateway::MAX_READ;
use api::gateway::{
    ReadDirRequest, ReadDirResponse, ReadFileRequest, ReadFileResponse, StatFileRequest, StatFileResponse,
};
use session::transfer::stat_of;
use session::wire::fsutil::Stat;
use tonic::{Code, Status};
use tree::Entry;
use worker::container::{Files, FilesError};

/// A file's bytes.
pub(super) async fn read(build: &Build, asked: ReadFileRequest) -> Result<ReadFileResponse, Status> {
    let files = files(build, &asked.r#ref, asked.mount_index).await?;
    let range = asked.range.unwrap_or_default();
    let number = |value: i64| u64::try_from(value).unwrap_or_default();
    let (offset, length) = (number(range.offset), number(range.length));
    let reading = blocking(move || {
        let length = (length > 0).then_some(length);
        files.read(&asked.file_path, offset, length, MAX_READ)
    });
    let data = reading.await?.map_err(told)?.into();
    Ok(ReadFileResponse { data })
}

/// What is in a directory.
pub(super) async fn list(build: &Build, asked: ReadDirRequest) -> Result<ReadDirResponse, Status> {
    let files = files(build, &asked.r#ref, asked.mount_index).await?;
    let listing = blocking(move || files.list(&asked.dir_path, &asked.include_pattern));
    let entries = listing.await?.map_err(told)?;
    Ok(ReadDirResponse {
        entries: entries.iter().map(stat_of).collect(),
    })
}

/// What is at a path.
pub(super) async fn stat(build: &Build, asked: StatFileRequest) -> Result<StatFileResponse, Status> {
    let files = files(build, &asked.r#ref, asked.mount_index).await?;
    let entry = blocking(move || files.stat(&asked.path)).await?.map_err(told)?;
    Ok(StatFileResponse {
        stat: Some(named(&entry)),
    })
}

async fn files(build: &Build, id: &str, mount: i32) -> Result<Files, Status> {
    let found = build.containers.get(id);
    let container =
        found.ok_or_else(|| Status::not_found(format!("container details for {id}@{mount} not found")))?;
    container.files(mount.into()).await.map_err(told)
}

fn named(entry: &Entry) -> Stat {
    let mut stat = stat_of(entry);
    if stat.path.is_empty() {
        stat.path = "/".into();
    }
    stat
}

fn told(error: FilesError) -> Status {
    let code = match error {
        FilesError::Missing { .. } => Code::NotFound,
        FilesError::NoMount { .. } | FilesError::Relative { .. } | FilesError::Pattern(_) => {
            Code::InvalidArgument
        }
        FilesError::Hidden { .. } => Code::PermissionDenied,
        FilesError::TooMuch { .. } => Code::ResourceExhausted,
        _ => Code::Unknown,
    };
    Status::new(code, error.to_string())
}
