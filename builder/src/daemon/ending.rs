//! What is kept and told of a build that has ended: counters, its record, its trace.
//!
//! ```text
//! run ─▶ metrics, log
//!    └─▶ spans ─▶ (trace of a client: a moment later) ─▶ blob ─▶ record
//! ```
use super::builds::Build;
use super::errors::Failure;
use super::observe::metrics::Ending;
use super::run::{Request, Runner};
use crate::build::Kept;
use crate::history::{Running, Steps};
use crate::trace::{Ended, MEDIA_TYPE};
use api::trace::ResourceSpans;
use oci::Descriptor;
use std::sync::Arc;

/// What a build leaves for its record.
pub(super) struct Left {
    pub(super) steps: Steps,
    pub(super) kept: Kept,
}

impl Runner {
    /// Files a build away; `failure` says why it has no result.
    pub(super) async fn ended(
        self: &Arc<Self>,
        build: &Build,
        request: &Request,
        failure: Option<&Failure>,
        running: Option<Running>,
        left: Left,
    ) {
        let ending = match failure {
            None => Ending::Done,
            Some(failure) if failure.is_canceled() => Ending::Canceled,
            Some(_) => Ending::Failed,
        };
        let steps = build.trail.steps();
        let time = build.begun.elapsed().unwrap_or_default();
        self.metrics.build_ended(ending, time, &steps);
        let seconds = time.as_secs_f64();
        tracing::info!(build = build.id, ?ending, seconds, "a build has ended");
        let spans = self.traces.ended(&Ended {
            id: &build.id,
            frontend: &request.frontend,
            is_call: true,
            context: request.trace,
            begun: build.begun,
            error: failure.map(|failure| failure.0.message.as_str()),
            steps: &steps,
        });
        let Some(running) = running else { return };
        let is_shared = request.trace.is_shared();
        running.update(|record| {
            record.steps = left.steps;
            left.kept.file(&self.history, &self.engine.cache, record);
        });
        if !is_shared {
            let trace = self.trace(&build.id, spans.clone(), false).await;
            running.update(|record| record.trace = trace);
        }
        let failure = failure.map(Failure::record);
        let filed = tokio::task::spawn_blocking(move || running.finish(failure)).await;
        if let Ok(Err(error)) = filed {
            tracing::warn!(%error, build = build.id, "the record of the build is not kept");
        }
        if is_shared {
            let (runner, id) = (self.clone(), build.id.clone());
            tokio::spawn(async move { runner.add_trace(id, spans).await });
        }
    }

    /// The trace with the spans its client sends after the build.
    async fn add_trace(self: Arc<Self>, id: String, spans: ResourceSpans) {
        let trace = self.trace(&id, spans, true).await;
        let (history, build) = (self.history.clone(), id.clone());
        let kept = tokio::task::spawn_blocking(move || {
            history.change(&build, |record| record.trace = trace).map(drop)
        });
        match kept.await {
            // A record that was removed meanwhile needs no trace.
            Ok(Ok(()) | Err(crate::history::HistoryError::Unknown(_))) => {}
            Ok(Err(error)) => tracing::warn!(%error, build = id, "the trace of the build is not kept"),
            Err(error) => tracing::warn!(%error, build = id, "the trace of the build is not kept"),
        }
        self.traces.written(&id);
    }

    async fn trace(&self, id: &str, spans: ResourceSpans, is_shared: bool) -> Option<Descriptor> {
        let bytes = self.traces.whole(id, spans, is_shared).await;
        let history = self.history.clone();
        let attached = tokio::task::spawn_blocking(move || history.attach(MEDIA_TYPE, &bytes)).await;
        match attached {
            Ok(Ok(descriptor)) => Some(descriptor),
            Ok(Err(error)) => {
                tracing::warn!(%error, build = id, "the trace of the build is not kept");
                None
            }
            Err(_) => None,
        }
    }
}
