//! The traces of a daemon's builds, with what their clients send.
//!
//! ```text
//! a build that ended ─▶ its spans (crate::trace) ────────────────┬─▶ stubs ─▶ a blob of the history
//! client ─ Export ─▶ service ─▶ Waiting (builds of that trace) ───┘
//!                       └──────▶ exporter
//! ```
//!
//! 1. A client that traces says so in the headers of Solve; its spans and ours are one trace then. Others get a new one.
//! 2. At the end of a build `spans` makes its spans. They are sent where the environment says, if anywhere.
//! 3. A client sends its own spans after the build has ended: for three seconds they are waited for, or until the record is
//!    asked for whole (`finalize`), then `stubs` writes the trace as BuildKit stores it.
mod service;

pub(super) use service::Collector;

use crate::trace::{Ended, Exporter, TraceContext, write_stubs};
use api::trace::ResourceSpans;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a client's own spans are waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the traces of the last builds are waited for when the daemon ends.
const LAST: Duration = Duration::from_secs(1);
/// Spans of clients kept for one build.
const MAX_SPANS: usize = 10_000;

/// The traces of a daemon.
#[derive(Default)]
pub(super) struct Traces {
    exporter: Option<Exporter>,
    /// What the daemon says of itself in each span.
    resource: Vec<(String, String)>,
    waiting: Mutex<HashMap<String, Waiting>>,
}

/// A build whose trace is not written yet.
struct Waiting {
    trace: [u8; 16],
    spans: Vec<ResourceSpans>,
    count: usize,
    /// Somebody wants it whole.
    wanted: CancellationToken,
    /// It is written.
    written: CancellationToken,
}

impl Traces {
    pub(super) fn new(exporter: Option<Exporter>, resource: Vec<(String, String)>) -> Traces {
        Traces {
            exporter,
            resource,
            waiting: Mutex::default(),
        }
    }

    /// A build begins whose client may send spans.
    pub(super) fn expect(&self, build: &str, context: &TraceContext) {
        let waiting = Waiting {
            trace: context.trace,
            spans: Vec::new(),
            count: 0,
            wanted: CancellationToken::new(),
            written: CancellationToken::new(),
        };
        self.waiting.lock().insert(build.to_owned(), waiting);
    }

    /// A client sent spans.
    fn take(&self, spans: Vec<ResourceSpans>) {
        let mut waiting = self.waiting.lock();
        for one in waiting.values_mut() {
            for spans in &spans {
                let mut own = spans.clone();
                for scope in &mut own.scope_spans {
                    scope.spans.retain(|span| span.trace_id == one.trace[..]);
                }
                let count: usize = own.scope_spans.iter().map(|scope| scope.spans.len()).sum();
                if count > 0 && one.count + count <= MAX_SPANS {
                    one.count += count;
                    one.spans.push(own);
                }
            }
        }
        drop(waiting);
        if let Some(exporter) = &self.exporter {
            exporter.send(spans);
        }
    }

    /// A build has ended: its spans are sent, and come back for its record.
    pub(super) fn ended(&self, ended: &Ended) -> ResourceSpans {
        let spans = ended.spans(&self.resource);
        if let Some(exporter) = &self.exporter
            && ended.context.is_sampled
        {
            exporter.send(vec![spans.clone()]);
        }
        spans
    }

    /// The trace of a build as it is kept: waits for the client's spans if `is_shared`.
    pub(super) async fn whole(&self, build: &str, own: ResourceSpans, is_shared: bool) -> Vec<u8> {
        let wanted = self
            .waiting
            .lock()
            .get(build)
            .map(|waiting| waiting.wanted.clone());
        if let Some(wanted) = wanted.filter(|_| is_shared) {
            tokio::select! {
                () = wanted.cancelled() => {}
                () = tokio::time::sleep(PATIENCE) => {}
            }
        }
        let mut waiting = self.waiting.lock();
        let clients = waiting
            .get_mut(build)
            .map(|waiting| std::mem::take(&mut waiting.spans));
        drop(waiting);
        write_stubs(clients.into_iter().flatten().chain([own]))
    }

    /// The trace of a build is kept, or never will be.
    pub(super) fn written(&self, build: &str) {
        if let Some(waiting) = self.waiting.lock().remove(build) {
            waiting.written.cancel();
        }
    }

    /// Waits until the trace of a build is kept, which waits for nothing any more.
    pub(super) async fn finalize(&self, build: &str) {
        let written = self.waiting.lock().get(build).map(|waiting| {
            waiting.wanted.cancel();
            waiting.written.clone()
        });
        if let Some(written) = written {
            written.cancelled().await;
        }
    }

    /// Waits no longer for clients, and sends what is left.
    pub(super) async fn flush(&self) {
        let left: Vec<_> = self
            .waiting
            .lock()
            .values()
            .map(|waiting| {
                waiting.wanted.cancel();
                waiting.written.clone()
            })
            .collect();
        let written = futures_util::future::join_all(left.iter().map(CancellationToken::cancelled));
        // A build whose end was not waited for has no trace.
        let _ = tokio::time::timeout(LAST, written).await;
        if let Some(exporter) = &self.exporter {
            exporter.flush().await;
        }
    }
}
