//! Refs made of refs without touching a file: merge, diff, passthrough.

use std::sync::Arc;

use async_trait::async_trait;
use cache::{ImmutableRef, RecordInfo};
use llb::Vertex;
use solver::{CacheMap, Op, OpContext, OpError};

use crate::meter::SinkMeter;
use crate::ops::{cache_error, cache_map};
use crate::worker::Worker;

/// Merge, diff or passthrough.
pub(crate) struct CombineOp {
    worker: Arc<Worker>,
    vertex: Vertex,
}

impl CombineOp {
    pub(crate) fn new(worker: Arc<Worker>, vertex: &Vertex) -> Self {
        Self {
            worker,
            vertex: vertex.clone(),
        }
    }

    fn input(inputs: &[ImmutableRef], index: u32) -> Result<ImmutableRef, OpError> {
        let found = inputs.get(index as usize).cloned();
        found.ok_or_else(|| OpError::internal(format!("input {index} of {} is missing", inputs.len())))
    }
}

#[async_trait]
impl Op<ImmutableRef> for CombineOp {
    async fn cache_map(&self, _: &OpContext, _: usize) -> Result<(CacheMap, bool), OpError> {
        Ok((cache_map(&self.vertex, &self.worker.options.platform)?, true))
    }

    async fn exec(
        &self,
        ctx: &OpContext,
        mut inputs: Vec<ImmutableRef>,
    ) -> Result<Vec<ImmutableRef>, OpError> {
        let cache = &self.worker.cache;
        if !matches!(self.vertex.op, llb::Op::Passthrough(_)) {
            // What layers are stacked upon is kept; a context read in place is not.
            let meter = SinkMeter::shared(ctx.progress.clone());
            for input in &mut inputs {
                *input = input.persist(&meter).await.map_err(cache_error)?;
            }
        }
        let info = RecordInfo::new(self.vertex.name());
        let input = |index: u32| Self::input(&inputs, index);
        match &self.vertex.op {
            llb::Op::Merge(merge) => {
                let parts: Vec<_> = merge
                    .inputs
                    .iter()
                    .flatten()
                    .map(|index| input(*index))
                    .collect::<Result<_, _>>()?;
                Ok(vec![cache.merge(&parts, &info).map_err(cache_error)?])
            }
            llb::Op::Diff(diff) => {
                let side = |index: Option<u32>| index.map_or_else(|| Ok(cache.scratch()), input);
                let (lower, upper) = (side(diff.lower)?, side(diff.upper)?);
                if let Some(made) = cache.suffix(&lower, &upper, &info).map_err(cache_error)? {
                    return Ok(vec![made]);
                }
                let meter = SinkMeter::shared(ctx.progress.clone());
                let (below, above) = (
                    lower.view(&meter).await.map_err(cache_error)?,
                    upper.view(&meter).await.map_err(cache_error)?,
                );
                let store = cache.clone();
                let compared = tokio::task::spawn_blocking(move || {
                    let ingest = store.content().ingest()?;
                    let (ingest, layer) = cache::layer::diff_views(&below, &above, ingest)?;
                    store.add_tar_layer(&store.scratch(), ingest, layer, info)
                });
                let made = ctx.unless_canceled(compared).await?.map_err(OpError::internal)?;
                Ok(vec![made.map_err(cache_error)?])
            }
            llb::Op::Passthrough(pass) => pass.outputs.iter().map(|index| input(*index)).collect(),
            _ => Err(OpError::internal("no op that combines refs")),
        }
    }
}
