//! Keeps a build of this process in the history: what was asked, what it showed, how it ended.
//!
//! ```text
//! BuildRequest ─▶ begin ─▶ tap (events on their way to the screen) ─▶ finish
//! ```
//!
//! A history that cannot be written is said in the log and never stops a build.
use crate::build::BuildError;
use crate::history::{
    Counts, EventLog, Exporter, Failure, History, HistoryError, Limits, Record, Running, Stamp,
};
use crate::progress::{Tap, wire};
use crate::request::{BuildRequest, ContextSource};
use parking_lot::Mutex;
use prost::Message;
use std::path::Path;
use std::sync::Arc;

/// gRPC's codes for "unknown" and "cancelled", as a daemon's records have them.
const UNKNOWN: i32 = 2;
const CANCELED: i32 = 1;

/// One build's record.
pub(super) struct Recorder {
    history: History,
    running: Option<Running>,
    counts: Arc<Mutex<Counts>>,
}

impl Recorder {
    /// Begins the record of a build.
    pub(super) fn begin(root: &Path, id: &str, request: &BuildRequest) -> Recorder {
        let history = History::new(root, Limits::default());
        let mut record = Record::new(id);
        "dockerfile.v0".clone_into(&mut record.frontend);
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
        }
    }

    /// Sees what the screen sees.
    pub(super) fn tap(&self) -> Option<Tap> {
        let log: Arc<EventLog> = self.running.as_ref()?.log().clone();
        let counts = self.counts.clone();
        Some(Box::new(move |events| {
            counts.lock().take(events);
            log.append(&wire::encode(events).encode_to_vec());
        }))
    }

    /// Files the record, and lets old ones go.
    pub(super) fn finish<T>(self, result: &Result<T, BuildError>) {
        let Some(running) = self.running else {
            return;
        };
        running.update(|record| record.steps = self.counts.lock().steps());
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
        if let Err(error) = running.finish(failure) {
            unkept(&error);
        }
        if let Err(error) = self.history.sweep_if_many(Stamp::now()) {
            unkept(&error);
        }
    }
}

fn unkept(error: &HistoryError) {
    tracing::warn!(%error, "the history of this build is not kept");
}
