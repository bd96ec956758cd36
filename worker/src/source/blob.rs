//! One blob of a registry or of an image layout of the client, as a file.
//!
//! ```text
//! docker-image+blob://name@digest ─▶ registry ───────┐
//! oci-layout+blob://name@digest ───▶ client's layout ─┴▶ kept by its digest ─▶ layer of that one file
//! ```
//!
//! | in the key | not in it |
//! |---|---|
//! | digest, file name, mode, owner | where it comes from |
//!
//! Nothing is asked for the key. A blob the store has is not fetched again.

use std::sync::Arc;

use async_trait::async_trait;
use cache::{ImmutableRef, RecordInfo};
use llb::attr;
use llb::op::SourceOp;
use oci::{Descriptor, Digest, OCI_MANIFEST, Reference};
use serde::Serialize;
use solver::{CacheMap, Op, OpContext, OpError};
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;
use tree::{Entry, Kind, RootPath, Timestamp};

use super::client_store::ClientStore;
use super::http::layer_of;
use super::image::{ImageError, ImagePlace};
use super::oci_layout;
use crate::ops::cache_error;
use crate::worker::{Session, Worker};

/// Mode of a file whose op asks for none.
const DEFAULT_MODE: u32 = 0o600;

/// The op of `docker-image+blob://` and `oci-layout+blob://`.
pub(crate) struct BlobOp {
    worker: Arc<Worker>,
    reference: Reference,
    digest: Digest,
    place: ImagePlace,
    filename: String,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// What is hashed for the key.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Key<'a> {
    digest: String,
    filename: &'a str,
    perm: u32,
    #[serde(rename = "UID")]
    uid: u32,
    #[serde(rename = "GID")]
    gid: u32,
}

impl BlobOp {
    /// The op of a blob.
    pub(crate) fn new(worker: Arc<Worker>, op: &SourceOp) -> Result<BlobOp, OpError> {
        let reference = Reference::parse_normalized(op.rest()).map_err(OpError::user)?;
        let digest = reference.digest().ok_or_else(|| {
            OpError::user(format!(
                "{} names no digest, as a blob has to be named",
                op.identifier
            ))
        })?;
        let is_layout = op.scheme() == "oci-layout+blob";
        let mut store = String::new();
        let mut made = BlobOp {
            worker,
            reference,
            digest,
            place: ImagePlace::Registry,
            filename: String::new(),
            mode: 0,
            uid: 0,
            gid: 0,
        };
        for (name, value) in &op.attrs {
            let number = |radix| {
                let number = u32::from_str_radix(value, radix).ok();
                number.ok_or_else(|| OpError::user(format!("{name} is {value:?}, which is no number")))
            };
            match name.as_str() {
                attr::HTTP_FILENAME => made.filename = safe_name(value),
                attr::HTTP_PERM => {
                    made.mode = number(8)?;
                    if made.mode > 0o7777 {
                        return Err(OpError::user(format!("{name} is {value:?}, which is no mode")));
                    }
                }
                attr::HTTP_UID => made.uid = number(10)?,
                attr::HTTP_GID => made.gid = number(10)?,
                attr::OCI_LAYOUT_STORE if is_layout => store.clone_from(value),
                // Whoever asks is the one that has the layout; what kind of record it is nobody asks of a file.
                attr::OCI_LAYOUT_SESSION if is_layout => {}
                attr::IMAGE_RECORD_TYPE => {}
                other => {
                    return Err(OpError::user(format!(
                        "option {other} of a blob source is not supported"
                    )));
                }
            }
        }
        if is_layout {
            if store.is_empty() {
                return Err(OpError::user("oci-layout blob source requires store id"));
            }
            made.place = ImagePlace::OciLayout { store };
        }
        Ok(made)
    }

    fn key(&self) -> String {
        let key = Key {
            digest: self.digest.to_string(),
            filename: &self.filename,
            perm: self.mode,
            uid: self.uid,
            gid: self.gid,
        };
        // Go's encoder writes these three so.
        let json = serde_json::to_string(&key).expect("strings and numbers are JSON");
        json.replace('&', "\\u0026")
            .replace('<', "\\u003c")
            .replace('>', "\\u003e")
    }

    /// Sees to it that the store has the blob.
    async fn fetch(&self, ctx: &OpContext, session: &Session) -> Result<(), OpError> {
        let content = self.worker.cache.content().clone();
        if content.touch(&self.digest).map_err(cache_error)? {
            return Ok(());
        }
        let mut activity = ctx.progress.begin(self.reference.to_string(), "downloading");
        let body: Box<dyn AsyncRead + Send + Unpin> = match &self.place {
            ImagePlace::Registry => self.of_registry(session).await?,
            ImagePlace::OciLayout { store } => match session.caller().oci_layout(store) {
                Some(folder) => {
                    let path = oci_layout::blob_path(&folder, &self.digest);
                    let file = tokio::fs::File::open(&path).await;
                    Box::new(file.map_err(|source| OpError::user(ImageError::Read { path, source }))?)
                }
                None => {
                    let store = ClientStore::new(session.caller().clone(), store);
                    Box::new(store.stream(&self.digest).await?)
                }
            },
        };
        let (body, digest) = (SyncIoBridge::new(body), self.digest);
        let keeping = tokio::task::spawn_blocking(move || content.put_stream(body, Some(digest)));
        let (_, size) = keeping
            .await
            .map_err(|_| OpError::canceled())?
            .map_err(cache_error)?;
        activity.set(size, size);
        Ok(())
    }

    /// A blob, or else a manifest, of the repository.
    async fn of_registry(&self, session: &Session) -> Result<Box<dyn AsyncRead + Send + Unpin>, OpError> {
        let registry = self.worker.registry_for(session);
        let size = registry.blob_size(&self.reference, &self.digest).await;
        match size.map_err(ImageError::from)? {
            Some(size) => {
                let descriptor = Descriptor::new("application/octet-stream", self.digest, size);
                let blob = registry.fetch_blob(&self.reference, &descriptor, None).await;
                Ok(Box::new(blob.map_err(ImageError::from)?))
            }
            None => {
                let descriptor = Descriptor::new(OCI_MANIFEST, self.digest, 0);
                let bytes = registry.fetch_manifest(&self.reference, &descriptor).await;
                Ok(Box::new(std::io::Cursor::new(bytes.map_err(ImageError::from)?)))
            }
        }
    }
}

/// The last name of a path; empty where that is none.
fn safe_name(path: &str) -> String {
    let name = path.rsplit('/').find(|name| !name.is_empty()).unwrap_or_default();
    match RootPath::root().child(name.as_bytes()) {
        Ok(_) => name.to_owned(),
        Err(_) => String::new(),
    }
}

#[async_trait]
impl Op<ImmutableRef> for BlobOp {
    async fn cache_map(&self, _: &OpContext, _: usize) -> Result<(CacheMap, bool), OpError> {
        let key = self.key();
        let map = CacheMap {
            digest: llb::cache::source_key(&Digest::of(key.as_bytes()).to_string()),
            deps: Vec::new(),
            is_local: false,
            explain: key,
            pin: Some(self.digest.to_string()),
        };
        Ok((map, true))
    }

    async fn exec(&self, ctx: &OpContext, _: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let session = Session::of(ctx)?;
        ctx.unless_canceled(self.fetch(ctx, &session)).await??;
        let name = match self.filename.as_str() {
            "" => self.digest.hex(),
            name => name.to_owned(),
        };
        let mode = if self.mode == 0 { DEFAULT_MODE } else { self.mode };
        let path = RootPath::clean(&name).map_err(OpError::internal)?;
        let mut entry = Entry::new(path, Kind::File, mode);
        (entry.uid, entry.gid) = (self.uid, self.gid);
        entry.mtime = Timestamp::from_secs(0);
        let info = RecordInfo::new(format!("blob {}", self.reference));
        let (cache, digest) = (self.worker.cache.clone(), self.digest);
        let made = tokio::task::spawn_blocking(move || layer_of(&cache, entry, &digest, info)).await;
        made.map_err(|_| OpError::canceled())?.map(|made| vec![made])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_names() {
        for (path, name) in [
            ("a", "a"),
            ("/x/y", "y"),
            ("x/", "x"),
            ("..", ""),
            ("", ""),
            ("/", ""),
        ] {
            assert_eq!(safe_name(path), name, "{path}");
        }
    }
}
