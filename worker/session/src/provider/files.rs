//! FileSync: the directories of the user, as far as the daemon asks for them.
//!
//! ```text
//! dir-name, patterns, wanted paths ─▶ tree::ContextFilter ─▶ walk ─▶ transfer::Sender ─▶ packets
//! ```
//!
//! Owners are sent as 0:0. What the filter shuts out is never sent, so a daemon sees no more than the build needs.
use super::{QUEUE, values};
use crate::LocalCaller;
use crate::caller::{Caller, LocalRequest};
use crate::hand::Offer;
use crate::transfer::{Contents, Incoming, SendError, Sender, Wire};
use crate::wire::filesync::file_sync_server::FileSync;
use crate::wire::fsutil::Packet;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tree::{ContextFilter, Root, WalkOptions, walk};

pub(super) struct Files {
    pub(super) caller: Arc<LocalCaller>,
    /// The daemon, if it takes descriptors.
    pub(super) hand: Option<Arc<Offer>>,
    pub(super) ended: CancellationToken,
}

/// What of a directory is wanted.
pub(crate) struct Wanted {
    pub(crate) include: Vec<String>,
    pub(crate) exclude: Vec<String>,
    pub(crate) follow: Vec<String>,
}

#[tonic::async_trait]
impl FileSync for Files {
    type DiffCopyStream = Pin<Box<dyn futures_util::Stream<Item = Result<Packet, Status>> + Send>>;
    type TarStreamStream = Self::DiffCopyStream;

    async fn diff_copy(
        &self,
        call: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let headers = call.metadata();
        let name = values(headers, "dir-name").into_iter().next().unwrap_or_default();
        let wanted = Wanted {
            include: values(headers, "include-patterns"),
            exclude: values(headers, "exclude-patterns"),
            follow: values(headers, "followpaths"),
        };
        let asked = LocalRequest {
            name: name.clone(),
            ..LocalRequest::default()
        };
        let found = self.caller.local_dir(&asked, Arc::new(|_| {})).await;
        let dir = match found.map_err(|error| Status::internal(error.to_string()))? {
            Some(dir) => dir.path,
            None => return Err(Status::not_found(format!("no access allowed to dir {name:?}"))),
        };
        let (to_daemon, outgoing) = mpsc::channel(QUEUE);
        let packets = to_daemon.clone();
        let mut wire = Wire::new(
            std::future::ready(Ok(call.into_inner())),
            move |packet| packets.blocking_send(Ok(packet)).is_ok(),
            self.ended.clone(),
        );
        let hand = self.hand.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = send(&dir, &wanted, hand.as_deref(), &mut wire) {
                tracing::debug!(%error, name, "a directory was not sent");
                // Nobody listens any more when this fails: then nobody needs to know.
                let _ = to_daemon.blocking_send(Err(Status::unknown(error)));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn tar_stream(
        &self,
        _: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("directories are sent by DiffCopy"))
    }
}

/// Sends a directory.
pub(crate) fn send(
    dir: &Path,
    wanted: &Wanted,
    hand: Option<&Offer>,
    wire: &mut dyn Incoming,
) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("read {}: {error}", dir.display());
    let root = Root::open(dir).map_err(|error| failed(&error))?;
    let filter = ContextFilter::of(&root, &wanted.include, &wanted.exclude, &wanted.follow)
        .map_err(|error| failed(&error))?;
    let found = walk(&root, &filter, WalkOptions { xattrs: true }).map_err(|error| failed(&error))?;
    let entries: Vec<_> = found
        .into_iter()
        .map(|found| {
            let mut entry = found.entry;
            (entry.uid, entry.gid) = (0, 0);
            entry.xattrs.retain(|name, _| {
                let is_hidden = name.starts_with(b"security.") || name.starts_with(b"system.");
                !is_hidden || name == b"security.capability"
            });
            entry
        })
        .collect();
    let open = |entry: &tree::Entry| -> io::Result<Contents> {
        match root.open_file(&entry.path) {
            Ok((file, _)) => Ok(Contents::File(file)),
            Err(error) if error.is_not_found() => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(io::Error::other(error)),
        }
    };
    let sender = Sender {
        entries: &entries,
        open: &open,
        hand,
        meter: &|_| {},
    };
    match sender.run(wire) {
        // The daemon has all it wants: it may leave without another word.
        Ok(()) => Ok(()),
        Err(error @ SendError::Read { .. }) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            Err(format!("{error}: {}", cause.unwrap_or_default()))
        }
        Err(error) => Err(error.to_string()),
    }
}
