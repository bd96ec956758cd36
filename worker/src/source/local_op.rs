//! A directory of the caller as an op: its key is this build's alone, so it is matched by content only.
//!
//! The key is the digest of the session, the name and the filters: two vertices of one build that ask the same are one.
use super::local::{ContextOptions, read_context};
use crate::{Session, Worker};
use async_trait::async_trait;
use cache::{ImmutableRef, RecordInfo, RecordKind};
use llb::{attr, op::SourceOp};
use oci::Digest;
use parking_lot::Mutex;
use session::LocalRequest;
use solver::{CacheMap, Op, OpContext, OpError};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A local source.
pub(crate) struct LocalSource {
    worker: Arc<Worker>,
    request: LocalRequest,
    /// Whose files; empty means the build's own client.
    session: String,
    key: String,
}

impl LocalSource {
    pub(crate) fn new(worker: Arc<Worker>, op: &SourceOp) -> Result<LocalSource, OpError> {
        let is_listed = match op.attr(attr::LOCAL_METADATA_TRANSFER) {
            None => false,
            Some(text) => go_bool(text)
                .ok_or_else(|| OpError::user(format!("invalid value for local.metadatatransfer {text:?}")))?,
        };
        let list = |name: &str| match op.attr(name) {
            None | Some("") => Ok(Vec::new()),
            Some(text) => serde_json::from_str::<Option<Vec<String>>>(text)
                .map(Option::unwrap_or_default)
                .map_err(|cause| {
                    OpError::user(format!(
                        "{name} of {} is no list of strings: {cause}",
                        op.identifier
                    ))
                }),
        };
        let request = LocalRequest {
            name: op.rest().to_owned(),
            include_patterns: list(attr::LOCAL_INCLUDE_PATTERNS)?,
            exclude_patterns: list(attr::LOCAL_EXCLUDE_PATTERNS)?,
            follow_paths: list(attr::LOCAL_FOLLOW_PATHS)?,
            shared_key_hint: op
                .attr(attr::LOCAL_SHARED_KEY_HINT)
                .unwrap_or_default()
                .to_owned(),
            asks_for_all: op.attr(attr::LOCAL_DIFFER) == Some("none"),
            listed: match is_listed {
                true => Some(list(attr::LOCAL_METADATA_TRANSFER_EXCLUDE)?),
                false => None,
            },
        };
        let session = op.attr(attr::LOCAL_SESSION).unwrap_or_default();
        let unique = op.attr(attr::LOCAL_UNIQUE).unwrap_or_default();
        let key = format!("local\0{session}\0{unique}\0{}\0{request:?}", op.identifier);
        Ok(LocalSource {
            worker,
            request,
            session: session.to_owned(),
            key,
        })
    }
}

/// A boolean as Go's `strconv.ParseBool` reads it.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Where the digests of a context are kept from build to build.
fn stat_cache(root: &Path, folder: &Path) -> PathBuf {
    let name = Digest::of(folder.as_os_str().as_encoded_bytes()).hex();
    root.join("contexts").join(&name[..32])
}

/// The folder by which digests are found again: a copy that was received is one of several in a folder of the client's.
fn stays(folder: &session::LocalDir) -> &Path {
    let of_client = folder.path.parent().and_then(Path::parent);
    of_client.filter(|_| folder.is_filtered).unwrap_or(&folder.path)
}

#[async_trait]
impl Op<ImmutableRef> for LocalSource {
    async fn cache_map(&self, ctx: &OpContext, _: usize) -> Result<(CacheMap, bool), OpError> {
        let scope = Session::of(ctx)?;
        let own = scope.caller().id().to_string();
        let session = if self.session.is_empty() {
            &own
        } else {
            &self.session
        };
        let digest = Digest::of(format!("{session}\0{}", self.key).as_bytes());
        Ok((
            CacheMap {
                digest,
                deps: Vec::new(),
                is_local: true,
                explain: String::new(),
                pin: None,
            },
            true,
        ))
    }

    async fn exec(&self, ctx: &OpContext, _: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let scope = Session::of(ctx)?;
        let name = &self.request.name;
        let activity = Arc::new(Mutex::new((
            ctx.progress
                .begin(format!("transferring {name}:"), "transferring"),
            0u64,
        )));
        let meter = activity.clone();
        let count = move |bytes: u64| {
            let (activity, total) = &mut *meter.lock();
            *total += bytes;
            activity.set(*total, 0);
        };
        let asked = async {
            // Targets that are baked together share one session for their files. One that is gone is like none named.
            let named = match self.session.as_str() {
                "" => None,
                session => scope.caller().other(session).await,
            };
            let caller = named.as_ref().unwrap_or(scope.caller());
            caller.local_dir(&self.request, Arc::new(count)).await
        };
        let folder = ctx
            .unless_canceled(asked)
            .await?
            .map_err(OpError::user)?
            .ok_or_else(|| {
                OpError::user(format!(
                    "no access allowed to dir {name:?}: the client does not offer it"
                ))
            })?;
        let kept = self.worker.cache.root().join("contexts");
        std::fs::create_dir_all(&kept).map_err(OpError::environment)?;
        let mut options = ContextOptions {
            stat_cache: Some(stat_cache(self.worker.cache.root(), stays(&folder))),
            is_kept: folder.path.starts_with(self.worker.cache.received_folder()),
            ..ContextOptions::default()
        };
        if !folder.is_filtered {
            options
                .include_patterns
                .clone_from(&self.request.include_patterns);
            options
                .exclude_patterns
                .clone_from(&self.request.exclude_patterns);
            options.follow_paths.clone_from(&self.request.follow_paths);
        }
        let path = folder.path.clone();
        let read = tokio::task::spawn_blocking(move || read_context(&path, &options));
        let tree = ctx
            .unless_canceled(read)
            .await?
            .map_err(|_| OpError::canceled())?
            .map_err(OpError::user)?;
        drop(activity);
        let info = RecordInfo {
            kind: RecordKind::SourceLocal,
            description: format!("local source for {name}"),
        };
        let made = self
            .worker
            .cache
            .add_external(&folder.path, tree, info, folder.hold)
            .map_err(crate::ops::cache_error)?;
        Ok(vec![made])
    }
}
