//! An image layout of a client on the wire: blobs by digest, asked for through its session.
//!
//! ```text
//! oci-layout://name@digest ─▶ ClientStore ─▶ Caller::blob("oci:name", digest) ─▶ verified bytes
//!                                  └─▶ origin "oci-client:name" ─▶ (layer needed later) ─▶ any client that has it
//! ```
//!
//! A client shows no index of its layouts, so a reference without a digest means nothing here.
use std::sync::{Arc, Weak};

use cache::Origin;
use oci::{Descriptor, Digest, MAX_MANIFEST_BYTES, Reference};
use parking_lot::Mutex;
use session::{Caller, SessionError, Upload};
use tokio::io::AsyncReadExt;

use super::image::{ImageError, describe};

/// How an origin says that it is a client's.
const SCHEME: &str = "oci-client:";

/// One layout of one client.
#[derive(Clone)]
pub(crate) struct ClientStore {
    caller: Arc<dyn Caller>,
    name: String,
}

impl ClientStore {
    pub(crate) fn new(caller: Arc<dyn Caller>, name: &str) -> ClientStore {
        ClientStore {
            caller,
            name: name.to_owned(),
        }
    }

    /// The origin of its blobs; names no session, as the next one of the client has the same blobs.
    pub(crate) fn origin(&self) -> Origin {
        Origin(format!("{SCHEME}{}", self.name))
    }

    /// What a reference means: its digest says it.
    pub(crate) async fn find(&self, reference: &Reference) -> Result<Descriptor, ImageError> {
        let invalid = |reason: &str| ImageError::Invalid {
            reference: format!("{reference} of the client's layout {:?}", self.name),
            reason: reason.to_owned(),
        };
        let digest = reference
            .digest()
            .ok_or_else(|| invalid("it is named without a digest"))?;
        let bytes = self.blob(&digest, MAX_MANIFEST_BYTES).await?;
        describe(&bytes).ok_or_else(|| invalid("it is no manifest and no index"))
    }

    /// A blob as it comes; whoever reads it has to verify it.
    pub(crate) async fn stream(&self, digest: &Digest) -> Result<Upload, ImageError> {
        let found = read(&self.caller, &self.name, digest).await?;
        found.ok_or_else(|| ImageError::NoLayout {
            store: self.name.clone(),
        })
    }

    /// A small blob, verified.
    pub(crate) async fn blob(&self, digest: &Digest, limit: usize) -> Result<Vec<u8>, ImageError> {
        let stream = self.stream(digest).await?;
        let invalid = |reason: String| ImageError::Invalid {
            reference: format!("blob {digest} of the client's layout {:?}", self.name),
            reason,
        };
        let mut bytes = Vec::new();
        let read = stream.take(limit as u64 + 1).read_to_end(&mut bytes).await;
        read.map_err(|error| invalid(error.to_string()))?;
        match Digest::of(&bytes) {
            _ if bytes.len() > limit => Err(invalid(format!("it has more than {limit} bytes"))),
            found if found == *digest => Ok(bytes),
            found => Err(invalid(format!("the client sent {found}"))),
        }
    }
}

async fn read(caller: &Arc<dyn Caller>, name: &str, digest: &Digest) -> Result<Option<Upload>, SessionError> {
    caller.blob(&format!("oci:{name}"), digest).await
}

/// The clients whose layouts builds use now.
#[derive(Default)]
pub(crate) struct Clients(Mutex<Vec<(String, Weak<dyn Caller>)>>);

impl Clients {
    /// Remembers a client as long as its build lasts.
    pub(crate) fn remember(&self, store: &ClientStore) {
        let mut known = self.0.lock();
        known.retain(|(name, caller)| {
            caller
                .upgrade()
                .is_some_and(|caller| *name != store.name || !Arc::ptr_eq(&caller, &store.caller))
        });
        known.push((store.name.clone(), Arc::downgrade(&store.caller)));
    }

    /// A blob of an origin, if the origin is a client's and one that is here now has it.
    pub(crate) async fn fetch(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Option<Upload>, SessionError> {
        let Some(wanted) = origin.0.strip_prefix(SCHEME) else {
            return Ok(None);
        };
        let mut known: Vec<_> = {
            let known = self.0.lock();
            let live = known
                .iter()
                .filter_map(|(name, caller)| Some((name.clone(), caller.upgrade()?)));
            live.collect()
        };
        // The newest of that name first; the same blob may also lie in a layout of another name.
        known.reverse();
        known.sort_by_key(|(name, _)| name != wanted);
        let mut refused = None;
        for (name, caller) in known {
            match read(&caller, &name, digest).await {
                Ok(Some(stream)) => return Ok(Some(stream)),
                Ok(None) => {}
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| SessionError::Refused {
            doing: format!("read blob {digest} of the image layout {wanted:?}"),
            reason: "no client that is here now has it".into(),
        }))
    }
}
