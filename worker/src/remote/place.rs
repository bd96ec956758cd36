//! Where a cache is, and its small documents.

use std::sync::Arc;

use oci::{Descriptor, Digest, Reference};
use registry::Registry;
use session::Caller;
use tokio::io::AsyncReadExt;

use super::RemoteError;
use crate::worker::{Session, Worker};

/// Where a cache is, or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePlace {
    /// In a registry.
    Registry {
        /// Under this name.
        reference: Reference,
        /// Any certificate will do, and plain HTTP too.
        is_insecure: bool,
    },
    /// In a store of the caller's, by its name (`local:<path>`).
    Store(String),
}

/// A place that can be read from.
pub(super) enum Blobs {
    Registry {
        registry: Registry,
        reference: Reference,
    },
    Store {
        caller: Arc<dyn Caller>,
        name: String,
    },
}

impl Blobs {
    pub(super) fn new(worker: &Worker, session: &Session, place: &CachePlace) -> Blobs {
        match place {
            CachePlace::Registry {
                reference,
                is_insecure,
            } => Blobs::Registry {
                registry: worker.registry_to(session, reference, *is_insecure),
                reference: reference.clone(),
            },
            CachePlace::Store(name) => Blobs::Store {
                caller: session.caller().clone(),
                name: name.clone(),
            },
        }
    }

    /// The whole of a manifest or config, verified.
    pub(super) async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, RemoteError> {
        if descriptor.size > limit {
            let (digest, size) = (descriptor.digest, descriptor.size);
            return Err(RemoteError::TooLarge { digest, size, limit });
        }
        match self {
            Blobs::Registry { registry, reference } if is_manifest(descriptor) => {
                Ok(registry.fetch_manifest(reference, descriptor).await?.to_vec())
            }
            Blobs::Registry { registry, reference } => {
                let blob = registry.fetch_blob(reference, descriptor, None).await?;
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                let bytes = blob.read_all(limit).await?.to_vec();
                verified(&descriptor.digest, bytes)
            }
            Blobs::Store { caller, name } => stored(caller, name, &descriptor.digest, limit).await,
        }
    }
}

/// A small blob of a caller's store, verified.
pub(super) async fn stored(
    caller: &Arc<dyn Caller>,
    name: &str,
    digest: &Digest,
    limit: u64,
) -> Result<Vec<u8>, RemoteError> {
    let digest = *digest;
    let stream = caller
        .blob(name, &digest)
        .await?
        .ok_or(RemoteError::NotFound { digest })?;
    let mut bytes = Vec::new();
    let read = stream.take(limit + 1).read_to_end(&mut bytes).await;
    read.map_err(|source| RemoteError::Read { digest, source })?;
    if bytes.len() as u64 > limit {
        let size = bytes.len() as u64;
        return Err(RemoteError::TooLarge { digest, size, limit });
    }
    verified(&digest, bytes)
}

fn verified(expected: &Digest, bytes: Vec<u8>) -> Result<Vec<u8>, RemoteError> {
    let (expected, found) = (*expected, Digest::of(&bytes));
    if expected == found {
        Ok(bytes)
    } else {
        Err(RemoteError::WrongDigest { expected, found })
    }
}

fn is_manifest(descriptor: &Descriptor) -> bool {
    oci::is_index(&descriptor.media_type) || oci::is_manifest(&descriptor.media_type)
}
