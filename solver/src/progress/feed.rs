//! What one vertex has shown so far, and who is watching.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::event::{
    Event, LogEvent, OutputStream, Status, StatusEvent, VertexEvent, VertexInfo, Warning, WarningEvent,
};
use super::limit::{Limiter, LogLimits};
use super::stream::Stream;

/// The progress of one vertex. Shared by the solver, the running op and every job that watches.
pub(crate) struct Feed {
    pub(super) vertex: Arc<VertexInfo>,
    limits: LogLimits,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    watchers: Vec<Watcher>,
    last: Option<VertexEvent>,
    /// The newest state of every status line, in order of appearance.
    statuses: Vec<StatusEvent>,
    /// Output and warnings, bounded by the limits.
    shown: Vec<Event>,
    limiters: HashMap<OutputStream, Limiter>,
    started: Option<SystemTime>,
}

/// A job that watches, and the vertex it sees this one as (another, when two vertices became one).
struct Watcher {
    stream: Arc<Stream>,
    shown_as: Arc<VertexInfo>,
}

impl Watcher {
    fn send(&self, event: &Event) {
        let digest = self.shown_as.digest;
        self.stream.push(match event.clone() {
            Event::Vertex(event) => Event::Vertex(VertexEvent {
                vertex: self.shown_as.clone(),
                ..event
            }),
            Event::Status(event) => Event::Status(StatusEvent {
                vertex: digest,
                ..event
            }),
            Event::Log(event) => Event::Log(LogEvent {
                vertex: digest,
                ..event
            }),
            Event::Warning(event) => Event::Warning(WarningEvent {
                vertex: digest,
                ..event
            }),
        });
    }
}

impl Feed {
    pub(crate) fn new(vertex: Arc<VertexInfo>, limits: LogLimits) -> Arc<Self> {
        Arc::new(Self {
            vertex,
            limits,
            inner: Mutex::default(),
        })
    }

    /// Lets a job watch; it is shown what happened so far.
    pub(crate) fn watch(&self, stream: &Arc<Stream>, shown_as: &Arc<VertexInfo>) {
        let mut inner = self.inner.lock();
        let is_known = |w: &Watcher| Arc::ptr_eq(&w.stream, stream) && w.shown_as.digest == shown_as.digest;
        if inner.watchers.iter().any(is_known) {
            return;
        }
        let watcher = Watcher {
            stream: stream.clone(),
            shown_as: shown_as.clone(),
        };
        for event in inner.last.iter().cloned().map(Event::Vertex) {
            watcher.send(&event);
        }
        for event in inner
            .statuses
            .iter()
            .cloned()
            .map(Event::Status)
            .chain(inner.shown.iter().cloned())
        {
            watcher.send(&event);
        }
        inner.watchers.push(watcher);
    }

    /// Stops showing a job anything.
    pub(crate) fn unwatch(&self, stream: &Arc<Stream>) {
        self.inner
            .lock()
            .watchers
            .retain(|watcher| !Arc::ptr_eq(&watcher.stream, stream));
    }

    /// An interval of work begins.
    pub(crate) fn started(&self, now: SystemTime, cached: bool) {
        let mut inner = self.inner.lock();
        inner.started.get_or_insert(now);
        let event = VertexEvent {
            vertex: self.vertex.clone(),
            started: Some(now),
            completed: None,
            cached,
            error: None,
        };
        inner.show_vertex(event);
    }

    /// The present interval ends.
    pub(crate) fn completed(&self, now: SystemTime, error: Option<String>) {
        let mut inner = self.inner.lock();
        if error.is_some() {
            inner.flush(&self.vertex, now);
        }
        let last = inner.last.take();
        let cached = last.as_ref().is_some_and(|last| last.cached) && error.is_none();
        let started = last.and_then(|last| last.started).or(Some(now));
        inner.show_vertex(VertexEvent {
            vertex: self.vertex.clone(),
            started,
            completed: Some(now),
            cached,
            error,
        });
    }

    pub(super) fn status(&self, now: SystemTime, status: Status) {
        let event = StatusEvent {
            vertex: self.vertex.digest,
            timestamp: now,
            status,
        };
        let mut inner = self.inner.lock();
        match inner
            .statuses
            .iter_mut()
            .find(|known| known.status.id == event.status.id)
        {
            Some(known) => *known = event.clone(),
            None => inner.statuses.push(event.clone()),
        }
        inner.send(&Event::Status(event));
    }

    pub(super) fn log(&self, now: SystemTime, stream: OutputStream, data: &[u8]) {
        let mut inner = self.inner.lock();
        let started = *inner.started.get_or_insert(now);
        let limits = self.limits;
        let limiter = inner
            .limiters
            .entry(stream)
            .or_insert_with(|| Limiter::new(limits));
        let data = limiter.pass(data, started, now);
        inner.show_log(&self.vertex, now, stream, &data);
    }

    pub(super) fn warn(&self, warning: Warning) {
        let event = Event::Warning(WarningEvent {
            vertex: self.vertex.digest,
            warning,
        });
        let mut inner = self.inner.lock();
        inner.send(&event);
        inner.shown.push(event);
    }
}

impl Inner {
    fn send(&self, event: &Event) {
        for watcher in &self.watchers {
            watcher.send(event);
        }
    }

    fn show_vertex(&mut self, event: VertexEvent) {
        self.send(&Event::Vertex(event.clone()));
        self.last = Some(event);
    }

    fn show_log(&mut self, vertex: &VertexInfo, now: SystemTime, stream: OutputStream, data: &[u8]) {
        // Readers pass messages on over a wire that has a limit per message.
        const MESSAGE_BYTES: usize = 1 << 20;
        for part in data.chunks(MESSAGE_BYTES) {
            let event = Event::Log(LogEvent {
                vertex: vertex.digest,
                stream,
                data: part.into(),
                timestamp: now,
            });
            self.send(&event);
            self.shown.push(event);
        }
    }

    /// Shows the end of what the limits left out: it says why the step failed.
    fn flush(&mut self, vertex: &VertexInfo, now: SystemTime) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let tail = self
                .limiters
                .get_mut(&stream)
                .map(Limiter::take_tail)
                .unwrap_or_default();
            self.show_log(vertex, now, stream, &tail);
        }
    }
}
