//! Keeps a build of this process in the history: what was asked, what it showed, how it ended.
//!
//! ```text
//! BuildRequest ─▶ begin ─▶ tap (events on their way to the screen) ─▶ finish ─▶ record, its trace and attachments
//!                                                                         └───▶ a collector of traces, if there is one
//! ```
//!
//! A history that cannot be written is said in the log and never stops a build.
use crate::build::{BuildError, Kept, Outcome};
use crate::config::Tracing;
use crate::history::{
    Counts, EventLog, Exporter, Failure, History, HistoryError, Limits, Record, Running, Stamp,
};
use crate::progress::{Tap, wire};
use crate::request::{BuildRequest, ContextSource};
use crate::trace::{Ended, Exporter as Collector, MEDIA_TYPE, TraceContext, Trail, write_stubs};
use api::trace::ResourceSpans;
use cache::Cache;
use parking_lot::Mutex;
use prost::Message;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// gRPC's codes for "unknown" and "cancelled", as a daemon's records have them.
const UNKNOWN: i32 = 2;
const CANCELED: i32 = 1;
/// Who is asked for the build.
const FRONTEND: &str = "dockerfile.v0";

/// One build's record.
pub(super) struct Recorder {
    history: History,
    running: Option<Running>,
    counts: Arc<Mutex<Counts>>,
    trail: Arc<Trail>,
    begun: SystemTime,
    id: String,
    tracing: Tracing,
}

impl Recorder {
    /// Begins the record of a build.
    pub(super) fn begin(root: &Path, id: &str, request: &BuildRequest, tracing: Tracing) -> Recorder {
        let history = History::new(root, Limits::default());
        let mut record = Record::new(id);
        FRONTEND.clone_into(&mut record.frontend);
        record.attributes = request.attributes();
        record.context = match &request.context {
            ContextSource::Directory(path) => Some(path.display().to_string()),
            ContextSource::Remote(address) => Some(address.clone()),
            ContextSource::StdinTar | ContextSource::Empty => None,
        };
        record.exporters = request
            .outputs
            .iter()
            .map(|output| Exporter {
                kind: output.kind.name().to_owned(),
                attributes: output.attrs.clone(),
            })
            .collect();
        let running = history.begin(record).map_err(|error| unkept(&error)).ok();
        Recorder {
            history,
            running,
            counts: Arc::default(),
            trail: Arc::default(),
            begun: SystemTime::now(),
            id: id.to_owned(),
            tracing,
        }
    }

    /// Sees what the screen sees.
    pub(super) fn tap(&self) -> Option<Tap> {
        let log: Arc<EventLog> = self.running.as_ref()?.log().clone();
        let (counts, trail) = (self.counts.clone(), self.trail.clone());
        Some(Box::new(move |events| {
            counts.lock().take(events);
            trail.take(events);
            log.append(&wire::encode(events).encode_to_vec());
        }))
    }

    /// Files the record, and lets old ones go; answers where it lies, if it does.
    pub(super) async fn finish(
        mut self,
        result: &mut Result<Outcome, BuildError>,
        cache: &Cache,
    ) -> (History, Option<Record>) {
        let kept = match result {
            Ok(outcome) => std::mem::take(&mut outcome.kept),
            Err(_) => Kept::default(),
        };
        let failure = result.as_ref().err().map(|error| match error {
            BuildError::Cancelled { .. } => Failure {
                code: CANCELED,
                message: "context canceled".into(),
            },
            error => Failure {
                code: UNKNOWN,
                message: error.to_string(),
            },
        });
        let (steps, spans) = (self.counts.lock().steps(), self.spans(failure.as_ref()));
        let mut filed = None;
        if let Some(running) = self.running.take() {
            running.update(|record| {
                record.steps = steps;
                kept.file(&self.history, cache, record);
                let trace = self
                    .history
                    .attach(MEDIA_TYPE, &write_stubs(std::iter::once(spans.clone())));
                record.trace = trace.map_err(|error| unkept(&error)).ok();
            });
            filed = running.finish(failure).map_err(|error| unkept(&error)).ok();
            if let Err(error) = self.history.sweep_if_many(Stamp::now()) {
                unkept(&error);
            }
        }
        if let Some(otlp) = &self.tracing.otlp {
            match Collector::start(otlp) {
                Ok(collector) => {
                    collector.send(vec![spans]);
                    collector.flush().await;
                }
                Err(error) => tracing::warn!(%error, "the trace of this build is not sent"),
            }
        }
        (self.history, filed)
    }

    fn spans(&self, failure: Option<&Failure>) -> ResourceSpans {
        let ended = Ended {
            id: &self.id,
            frontend: FRONTEND,
            is_call: false,
            context: TraceContext::of_parent(self.tracing.parent.as_deref()),
            begun: self.begun,
            error: failure.map(|failure| failure.message.as_str()),
            steps: &self.trail.steps(),
        };
        ended.spans(&self.tracing.resource)
    }
}

fn unkept(error: &HistoryError) {
    tracing::warn!(%error, "the history of this build is not kept");
}
