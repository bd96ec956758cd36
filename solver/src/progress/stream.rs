//! One job's queue of events, with what follows from the graph added.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use oci::Digest;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::event::{Event, StatusEvent, VertexEvent};

/// The end of a vertex that was still open when its job ended.
const CANCELED: &str = "context canceled";

/// Where a job's events wait for being read.
#[derive(Default)]
pub(crate) struct Stream {
    inner: Mutex<Inner>,
    ready: Notify,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Event>,
    /// The last state shown of every vertex.
    vertices: HashMap<Digest, VertexEvent>,
    /// Status lines waiting in the queue, by how many events were ever put before them.
    waiting: HashMap<(Digest, String), u64>,
    taken: u64,
    is_closed: bool,
}

impl Stream {
    /// Adds an event.
    pub(crate) fn push(&self, event: Event) {
        let mut inner = self.inner.lock();
        if inner.is_closed {
            return;
        }
        match event {
            Event::Vertex(event) => inner.vertex(event),
            Event::Status(event) => inner.status(event),
            event @ (Event::Log(_) | Event::Warning(_)) => inner.queue.push_back(event),
        }
        drop(inner);
        self.ready.notify_one();
    }

    /// Whether the vertex was shown before.
    pub(crate) fn knows(&self, digest: &Digest) -> bool {
        self.inner.lock().vertices.contains_key(digest)
    }

    /// Completes what is still open and ends the stream; what is queued can still be read.
    pub(crate) fn close(&self, now: SystemTime) {
        let mut inner = self.inner.lock();
        if !std::mem::replace(&mut inner.is_closed, true) {
            let mut open: Vec<_> = inner
                .vertices
                .values()
                .filter(|last| last.is_open())
                .cloned()
                .collect();
            open.sort_by_key(|last| (last.started, last.vertex.digest));
            for mut event in open {
                event.completed = Some(now);
                if !event.cached && event.error.is_none() {
                    event.error = Some(CANCELED.to_owned());
                }
                inner.queue.push_back(Event::Vertex(event));
            }
        }
        drop(inner);
        self.ready.notify_one();
    }
}

impl VertexEvent {
    fn is_open(&self) -> bool {
        self.started.is_some() && self.completed.is_none()
    }
}

impl Inner {
    fn vertex(&mut self, event: VertexEvent) {
        if let Some(started) = event.started {
            self.mark_inputs(&event, started);
        }
        self.vertices.insert(event.vertex.digest, event.clone());
        self.queue.push_back(Event::Vertex(event));
    }

    /// An input that was announced but never started when its user starts was not needed: the cache
    /// had an answer further up. It is shown as cached, and so are its own inputs, these first.
    fn mark_inputs(&mut self, user: &VertexEvent, started: SystemTime) {
        let mut marked = Vec::new();
        let mut open = user.vertex.inputs.clone();
        while let Some(digest) = open.pop() {
            let Some(last) = self.vertices.get_mut(&digest) else {
                continue;
            };
            if last.started.is_some() || last.cached {
                continue;
            }
            last.cached = true;
            last.started = Some(started);
            last.completed = Some(started);
            open.extend(last.vertex.inputs.iter().copied());
            marked.push(last.clone());
        }
        self.queue.extend(marked.into_iter().rev().map(Event::Vertex));
    }

    fn status(&mut self, event: StatusEvent) {
        let key = (event.vertex, event.status.id.clone());
        if let Some(at) = self.waiting.get(&key).and_then(|at| at.checked_sub(self.taken))
            && let Some(waiting @ Event::Status(_)) = self.queue.get_mut(at as usize)
        {
            *waiting = Event::Status(event);
            return;
        }
        self.waiting.insert(key, self.taken + self.queue.len() as u64);
        self.queue.push_back(Event::Status(event));
    }

    fn take(&mut self) -> Vec<Event> {
        self.taken += self.queue.len() as u64;
        self.waiting.clear();
        self.queue.drain(..).collect()
    }
}

/// Events of a build that runs elsewhere, for whoever shows it here; the events end when this is dropped.
pub struct EventWriter {
    stream: Arc<Stream>,
}

impl EventWriter {
    /// A writer, and the reader of what it writes.
    #[must_use]
    pub fn new() -> (EventWriter, EventReader) {
        let stream = Arc::new(Stream::default());
        let reader = EventReader {
            stream: stream.clone(),
        };
        (EventWriter { stream }, reader)
    }

    /// Adds an event.
    pub fn write(&self, event: Event) {
        self.stream.push(event);
    }
}

impl Drop for EventWriter {
    fn drop(&mut self) {
        self.stream.close(SystemTime::now());
    }
}

/// Reads a job's events.
pub struct EventReader {
    pub(crate) stream: Arc<Stream>,
}

impl EventReader {
    /// Everything that happened since the last call, waiting until something does; `None` after the end.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        loop {
            let ready = self.stream.ready.notified();
            {
                let mut inner = self.stream.inner.lock();
                let events = inner.take();
                if !events.is_empty() {
                    return Some(events);
                }
                if inner.is_closed {
                    return None;
                }
            }
            ready.await;
        }
    }

    /// Everything that happened since the last call, without waiting.
    #[must_use]
    pub fn take(&mut self) -> Vec<Event> {
        self.stream.inner.lock().take()
    }
}
