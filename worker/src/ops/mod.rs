//! For each vertex the op that does it.
//!
//! | LLB | op |
//! |---|---|
//! | source | by scheme, in `source` |
//! | exec | `exec` |
//! | file | `file` |
//! | merge, diff, passthrough | `combine` |
//! | build | `build` |
//!
//! Keys of all but sources are computed by `llb::cache`, to the byte as BuildKit has them.

pub(crate) mod build;
mod combine;
pub(crate) mod exec;
mod file;
pub(crate) mod keyed;
mod limits; // of shared steps
mod living; // whichever build's client is left

use std::sync::Arc;

use async_trait::async_trait;
use cache::{CacheError, ImmutableRef};
use keys::ResultId;
use llb::Vertex;
use oci::Platform;
use solver::{CacheMap, Dep, Op, OpError, Ops};

use crate::ops::keyed::KeyedOp;
use crate::source::blob::BlobOp;
use crate::source::git::GitOp;
use crate::source::http::HttpOp;
use crate::source::image::ImageOp;
use crate::source::local_op::LocalSource;
use crate::worker::Worker;

/// A failure of the store, as that of an op.
pub(crate) fn cache_error(error: CacheError) -> OpError {
    OpError::environment(error)
}

/// The cache map of every op but sources.
pub(crate) fn cache_map(vertex: &Vertex, platform: &Platform) -> Result<CacheMap, OpError> {
    let key = llb::cache::op_key(vertex, platform).map_err(OpError::user)?;
    let key = key.ok_or_else(|| OpError::internal("a source was asked for the key of an op"))?;
    let deps = key
        .deps
        .iter()
        .map(|dep| Dep {
            selector: dep.selector,
            content: dep.content.is_some(),
        })
        .collect();
    Ok(CacheMap {
        digest: key.digest,
        deps,
        is_local: false,
        explain: key.text,
        pin: None,
    })
}

#[async_trait]
impl Ops<ImmutableRef> for Worker {
    fn op(&self, vertex: &Vertex) -> Result<Arc<dyn Op<ImmutableRef>>, OpError> {
        let worker = self.shared();
        let op: Arc<dyn Op<ImmutableRef>> = match &vertex.op {
            llb::Op::Source(source) => match source.scheme() {
                "docker-image" | "oci-layout" => {
                    Arc::new(ImageOp::new(worker, source, vertex.platform.as_ref())?)
                }
                "local" => Arc::new(LocalSource::new(worker, source)?),
                "docker-image+blob" | "oci-layout+blob" => Arc::new(BlobOp::new(worker, source)?),
                "git" => Arc::new(GitOp::new(worker, source)?),
                "http" | "https" => Arc::new(HttpOp::new(worker, source)?),
                other => return Err(OpError::user(format!("source {other}:// is not supported"))),
            },
            llb::Op::Merge(_) | llb::Op::Diff(_) | llb::Op::Passthrough(_) => {
                Arc::new(combine::CombineOp::new(worker, vertex))
            }
            llb::Op::Exec(op) => Arc::new(KeyedOp::new(
                self,
                vertex,
                exec::ExecRun::new(worker, vertex, op),
            )?),
            llb::Op::File(op) => Arc::new(KeyedOp::new(self, vertex, file::FileRun::new(worker, op))?),
            llb::Op::Build(op) => Arc::new(KeyedOp::new(
                self,
                vertex,
                build::BuildRun::new(worker, vertex, op)?,
            )?),
        };
        Ok(Arc::new(living::LivingOp(op)))
    }

    async fn load(&self, id: &ResultId) -> Result<Option<ImmutableRef>, OpError> {
        self.cache.result(id).map_err(cache_error)
    }

    async fn save(&self, result: &ImmutableRef) -> Result<Option<ResultId>, OpError> {
        Ok(self.cache.result_id(result))
    }
}
