//! The op of `local://`: a directory of the session that asked.
//!
//! Its own key holds for one session only and is never filed; whatever uses the directory is found by content.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use cache::{ImmutableRef, RecordInfo, RecordKind};
use llb::{attr, op::SourceOp};
use oci::Digest;
use solver::{CacheMap, Op, OpContext, OpError};

use super::{ContextError, ContextOptions, read_context};
use crate::{
    ops::cache_error,
    worker::{Session, Worker},
};

/// A directory of the session.
pub(crate) struct LocalOp {
    worker: Arc<Worker>,
    name: String,
    options: ContextOptions,
}

impl LocalOp {
    /// The op of a `local://` source.
    pub(crate) fn new(worker: Arc<Worker>, op: &SourceOp) -> Result<LocalOp, OpError> {
        let mut name = op.rest().to_owned();
        let mut options = ContextOptions::default();
        for (key, value) in &op.attrs {
            match key.as_str() {
                attr::LOCAL_INCLUDE_PATTERNS => options.include_patterns = list(key, value)?,
                attr::LOCAL_EXCLUDE_PATTERNS => options.exclude_patterns = list(key, value)?,
                attr::LOCAL_FOLLOW_PATHS => options.follow_paths = list(key, value)?,
                // `<prefix>:<id>` stands for another directory of the client.
                attr::LOCAL_SESSION => {
                    if let Some((prefix, _)) = value.split_once(':') {
                        name = format!("{prefix}-{name}");
                    }
                }
                // All about transfers, and nothing is transferred: a directory read in place is always the present one.
                attr::LOCAL_UNIQUE | attr::LOCAL_SHARED_KEY_HINT | attr::LOCAL_DIFFER => {}
                other => return Err(OpError::user(format!("option {other} of local://{name} is not supported"))),
            }
        }
        Ok(LocalOp { worker, name, options })
    }

    /// Where the digests of a directory's files are kept.
    fn stat_cache(&self, folder: &std::path::Path) -> PathBuf {
        let name = Digest::of(folder.as_os_str().as_encoded_bytes()).hex();
        self.worker.cache.root().join("contexts").join(name)
    }
}

fn list(key: &str, json: &str) -> Result<Vec<String>, OpError> {
    let parsed: Option<Vec<String>> =
        serde_json::from_str(json).map_err(|error| OpError::user(format!("{key}: {error}")))?;
    Ok(parsed.unwrap_or_default())
}

fn session(ctx: &OpContext) -> Result<Arc<Session>, OpError> {
    ctx.group::<Session>().ok_or_else(OpError::canceled)
}

#[async_trait]
impl Op<ImmutableRef> for LocalOp {
    async fn cache_map(&self, ctx: &OpContext, _: usize) -> Result<(CacheMap, bool), OpError> {
        let session = session(ctx)?;
        // `null` where there are none, as the peer writes an absent list.
        let patterns = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
        let explain = serde_json::json!({
            "SessionID": session.caller().id().as_str(),
            "IncludePatterns": patterns(&self.options.include_patterns),
            "ExcludePatterns": patterns(&self.options.exclude_patterns),
            "FollowPaths": patterns(&self.options.follow_paths),
        })
        .to_string();
        let key = format!("session:{}:{}", self.name, Digest::of(explain.as_bytes()));
        let digest = llb::cache::source_key(&key);
        Ok((CacheMap { digest, deps: Vec::new(), is_local: true, explain }, true))
    }

    async fn content_digest(&self, _: &OpContext, _: usize, _: &ImmutableRef) -> Result<Option<Digest>, OpError> {
        Ok(None)
    }

    async fn exec(&self, ctx: &OpContext, _: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let session = session(ctx)?;
        let folder = session.caller().local_dir(&self.name).ok_or_else(|| {
            OpError::user(format!("the client offers no directory {:?}", self.name))
        })?;
        let mut options = self.options.clone();
        options.stat_cache = Some(self.stat_cache(&folder.path));
        let shown = format!("reading {}:", self.name);
        let mut activity = ctx.progress.begin(shown.clone(), shown);
        let path = folder.path.clone();
        let reading = tokio::task::spawn_blocking(move || read_context(&path, &options));
        let read = ctx.unless_canceled(reading).await?;
        let read = read.map_err(|error| OpError::internal(format!("read context: {error}")))?;
        let tree = read.map_err(|error| match error {
            ContextError::Pattern(_) => OpError::user(error),
            ContextError::Tree(_) | ContextError::Layer(_) => OpError::environment(error),
        })?;
        let entries = u64::try_from(tree.len() - 1).unwrap_or(u64::MAX);
        activity.set(entries, entries);
        let info =
            RecordInfo { kind: RecordKind::SourceLocal, description: format!("local source for {}", self.name) };
        let made = self.worker.cache.add_external(&folder.path, tree, info).map_err(cache_error)?;
        Ok(vec![made])
    }
}
