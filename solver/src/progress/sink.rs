//! What an op, or a step outside the graph, reports to.

use std::sync::Arc;
use std::time::SystemTime;

use super::event::{OutputStream, Status, VertexInfo, Warning};
use super::feed::Feed;
use super::limit::LogLimits;

/// Says what time it is. The solver reads no clock of its own, so that tests choose the times.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Takes the progress of one vertex. Cheap to clone; calls never wait.
#[derive(Clone)]
pub struct Sink {
    feed: Arc<Feed>,
    clock: Clock,
}

impl Sink {
    pub(crate) fn new(feed: Arc<Feed>, clock: Clock) -> Self {
        Self { feed, clock }
    }

    /// A sink nobody watches.
    #[must_use]
    pub fn silent(vertex: Arc<VertexInfo>) -> Self {
        Self {
            feed: Feed::new(vertex, LogLimits::default()),
            clock: Arc::new(|| SystemTime::UNIX_EPOCH),
        }
    }

    /// What everything is shown under.
    #[must_use]
    pub fn vertex(&self) -> Arc<VertexInfo> {
        self.feed.vertex.clone()
    }

    /// Shows output of a process.
    pub fn log(&self, stream: OutputStream, data: &[u8]) {
        if !data.is_empty() {
            self.feed.log((self.clock)(), stream, data);
        }
    }

    /// Shows the state of a part of the work.
    pub fn status(&self, status: Status) {
        self.feed.status((self.clock)(), status);
    }

    /// Shows a warning.
    pub fn warn(&self, warning: Warning) {
        self.feed.warn(warning);
    }

    /// Begins a part of the work and shows it; `id` is the text shown.
    #[must_use = "the part ends when the activity is dropped"]
    pub fn begin(&self, id: impl Into<String>, name: impl Into<String>) -> Activity {
        let status = Status {
            id: id.into(),
            name: name.into(),
            started: Some((self.clock)()),
            ..Status::default()
        };
        self.status(status.clone());
        Activity {
            sink: self.clone(),
            status,
        }
    }
}

/// A part of the work that is going on; it ends when this is dropped.
pub struct Activity {
    sink: Sink,
    status: Status,
}

impl Activity {
    /// Shows how far the work is; `total` is 0 if unknown.
    pub fn set(&mut self, current: u64, total: u64) {
        self.status.current = current;
        self.status.total = total;
        self.sink.status(self.status.clone());
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.status.completed = Some((self.sink.clock)());
        self.sink.status(self.status.clone());
    }
}

/// A step that is shown like a vertex but is none (an export, an import). It ends with
/// [`Step::finish`]; dropped before that, it is shown as cancelled when the job ends.
pub struct Step {
    sink: Sink,
}

impl Step {
    pub(crate) fn begin(feed: Arc<Feed>, clock: Clock) -> Self {
        feed.started(clock(), false);
        Self {
            sink: Sink::new(feed, clock),
        }
    }

    /// Where to report progress.
    #[must_use]
    pub fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Ends the step, with the text of the error if it failed.
    pub fn finish(self, error: Option<String>) {
        self.sink.feed.completed((self.sink.clock)(), error);
    }
}
