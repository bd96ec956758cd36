//! Ops whose key is made of their own text and their inputs: exec, file, merge, diff, passthrough, build.
//!
//! ```text
//! vertex ─ llb::cache::op_key ─▶ digest, deps ─▶ CacheMap
//! input's ref + selectors ─ cache::checksum ─▶ content digest
//! ```
use super::cache_error as failed;
use crate::{Left, Session, Subject, Worker, meter::SinkMeter};
use async_trait::async_trait;
use cache::{ImmutableRef, checksum};
use llb::{Vertex, cache::OpKey};
use oci::Digest;
use solver::{CacheMap, Dep, Op, OpContext, OpError};
use std::any::Any;
use std::sync::Arc;

/// The part of such an op that differs: running it.
#[async_trait]
pub(crate) trait Run: Send + Sync {
    /// Runs, and gives one result per output.
    async fn run(&self, ctx: &OpContext, inputs: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError>;

    /// As [`Op::terms`].
    fn terms(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// As [`Op::join`], told the other's terms.
    fn join(&self, _terms: Option<Arc<dyn Any + Send + Sync>>) {}

    /// Whether it does nothing but wait for other ops.
    fn only_waits(&self) -> bool {
        false
    }
}

/// An op with its key.
pub(crate) struct KeyedOp<T> {
    key: OpKey,
    run: T,
}

impl<T: Run> KeyedOp<T> {
    pub(crate) fn new(worker: &Worker, vertex: &Vertex, run: T) -> Result<KeyedOp<T>, OpError> {
        let key = llb::cache::op_key(vertex, &worker.options.platform).map_err(OpError::user)?;
        let key = key.ok_or_else(|| OpError::internal("a source has no key of its own"))?;
        Ok(KeyedOp { key, run })
    }
}

#[async_trait]
impl<T: Run> Op<ImmutableRef> for KeyedOp<T> {
    fn terms(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.run.terms()
    }

    fn join(&self, other: &dyn Op<ImmutableRef>) {
        self.run.join(other.terms());
    }

    async fn cache_map(&self, _: &OpContext, _: usize) -> Result<(CacheMap, bool), OpError> {
        let deps = self.key.deps.iter();
        let deps = deps
            .map(|dep| Dep {
                selector: dep.selector,
                content: dep.content.is_some(),
            })
            .collect();
        let map = CacheMap {
            digest: self.key.digest,
            deps,
            is_local: false,
            explain: self.key.text.clone(),
            pin: None,
        };
        Ok((map, true))
    }

    async fn content_digest(
        &self,
        ctx: &OpContext,
        input: usize,
        result: &ImmutableRef,
    ) -> Result<Option<Digest>, OpError> {
        let Some(paths) = self.key.deps.get(input).and_then(|dep| dep.content.as_ref()) else {
            return Ok(None);
        };
        let selectors: Vec<checksum::Selector> = paths
            .iter()
            .map(|path| checksum::Selector {
                path: path.path.clone(),
                wildcard: path.wildcard,
                follow_links: path.follow_links,
                include_patterns: path.include_patterns.clone(),
                exclude_patterns: path.exclude_patterns.clone(),
                required_paths: path.required_paths.clone(),
            })
            .collect();
        let view = ctx
            .unless_canceled(result.view(&SinkMeter::shared(ctx.progress.clone())))
            .await?
            .map_err(failed)?;
        let (of, session) = (result.clone(), Session::of(ctx)?);
        let summing = tokio::task::spawn_blocking(move || {
            let digest = checksum::checksum(&view, &selectors)?;
            if of.layers().iter().any(|layer| layer.external().is_some()) {
                session.notes().keep(digest, selectors, &view);
            } else if let Err(error) = of.keep_digests() {
                tracing::warn!(%error, "the digests of a layer's files are not kept"); // it only saves time
            }
            Ok(digest)
        });
        let summed = ctx.unless_canceled(summing).await?;
        let summed = summed.map_err(|_| OpError::canceled())?;
        summed.map(Some).map_err(|cause| {
            let error = OpError::user(ChecksumError {
                cause,
                of: result
                    .id()
                    .map_or_else(|| "scratch".to_owned(), |id| id.to_string()),
            });
            if !Session::keeps_failures(ctx) {
                return error;
            }
            error.leaving(Left {
                inputs: vec![Some(result.clone())],
                mounts: Vec::new(),
                subject: Some(Subject::Content(input)),
            })
        })
    }

    async fn exec(&self, ctx: &OpContext, inputs: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        self.run.run(ctx, inputs).await
    }

    fn only_waits(&self) -> bool {
        self.run.only_waits()
    }
}

/// The content of an input could not be summed up: mostly a path that is not there.
#[derive(Debug, thiserror::Error)]
#[error("failed to calculate checksum of ref {of}: {cause}")]
struct ChecksumError {
    of: String,
    cause: cache::layer::LayerError,
}
