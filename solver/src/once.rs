//! Carries out what the scheduler asks for, each op at most once at a time, and brings back the answers.
//!
//! ```text
//! Commands ─▶ answered at the first poll ─────────────▶ Events ─▶ Core ─▶ Commands …
//!      └────▶ has to wait ─▶ a task under the vertex ─▶ Event ──┘
//! ```
//!
//! Most cache maps are pure computation, and a cached build asks for thousands: so a call is polled once
//! where it stands, and becomes a task only if it has to wait. Running and digesting content always does.
//! An op that panics has failed; the builds that want it are told, and the others go on.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use keys::ResultId;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::error::{OpError, VertexError};
use crate::graph::{BuildId, Cached, Candidate};
use crate::keys::LOCAL;
use crate::op::{OpContext, Ops};
use crate::scheduler::{Call, Command, Core, Event, Loaded};

/// How a build ended.
pub(crate) type Answer<R> = Result<Cached<R>, Arc<VertexError>>;

type Asked<R> = Pin<Box<dyn Future<Output = Event<R>> + Send>>;

/// The scheduler and the world it works with.
pub(crate) struct Shared<R> {
    pub(crate) core: Mutex<Core<R>>,
    pub(crate) waiting: Mutex<HashMap<BuildId, oneshot::Sender<Answer<R>>>>,
    pub(crate) ops: Arc<dyn Ops<R>>,
    pub(crate) runtime: Handle,
}

impl<R: Clone + Send + Sync + 'static> Shared<R> {
    /// Carries out commands, and those that follow from answers that are there at once.
    pub(crate) fn perform(self: &Arc<Self>, mut commands: Vec<Command<R>>) {
        let _entered = self.runtime.enter();
        while !commands.is_empty() {
            let mut events = Vec::new();
            for command in commands.drain(..) {
                events.extend(self.start(command));
            }
            if !events.is_empty() {
                let mut core = self.core.lock();
                core.handle(events);
                commands = std::mem::take(&mut core.commands);
            }
        }
    }

    fn deliver(self: &Arc<Self>, event: Event<R>) {
        let commands = {
            let mut core = self.core.lock();
            core.handle(vec![event]);
            std::mem::take(&mut core.commands)
        };
        self.perform(commands);
    }

    /// Starts one command; the answer, if it is there at once.
    fn start(self: &Arc<Self>, command: Command<R>) -> Option<Event<R>> {
        match command {
            Command::Answer { build, answer } => {
                if let Some(sender) = self.waiting.lock().remove(&build) {
                    // Whoever asked may have gone; then nobody misses the answer.
                    drop(sender.send(answer));
                }
                None
            }
            Command::CacheMap { node, index, call } => {
                let Call { op, ctx, tasks } = call;
                let name = ctx.vertex.name.clone();
                let asked = async move {
                    let answer = guard(op.cache_map(&ctx, index)).await;
                    Event::CacheMap { node, answer }
                };
                self.try_now(Box::pin(asked), &tasks, &name)
            }
            Command::Load {
                edge,
                candidates,
                call,
                began,
            } => {
                let Call { ctx, tasks, .. } = call;
                let name = ctx.vertex.name.clone();
                let shared = self.clone();
                let asked = async move {
                    let (answer, tried) = shared.load(&ctx, candidates).await;
                    Event::Loaded {
                        edge,
                        answer,
                        tried,
                        began,
                    }
                };
                self.try_now(Box::pin(asked), &tasks, &name)
            }
            Command::Content {
                node,
                input,
                result,
                call,
            } => {
                let Call { op, ctx, tasks } = call;
                let name = ctx.vertex.name.clone();
                let asked = async move {
                    let answer = guard(op.content_digest(&ctx, input, &result)).await;
                    Event::Content { node, input, answer }
                };
                self.spawn(Box::pin(asked), &tasks, &name);
                None
            }
            Command::Exec { node, inputs, call } => {
                let Call { op, ctx, tasks } = call;
                let name = ctx.vertex.name.clone();
                let shared = self.clone();
                let asked = async move {
                    let answer = match guard(op.exec(&ctx, inputs)).await {
                        Ok(results) => Ok(shared.save(results).await),
                        Err(error) => Err(error),
                    };
                    Event::Ran { node, answer }
                };
                self.spawn(Box::pin(asked), &tasks, &name);
                None
            }
        }
    }

    fn try_now(self: &Arc<Self>, mut asked: Asked<R>, tasks: &TaskTracker, vertex: &str) -> Option<Event<R>> {
        // A task polls the future again with a waker of its own, so nothing is lost by this one.
        match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => {
                self.spawn(asked, tasks, vertex);
                None
            }
        }
    }

    fn spawn(self: &Arc<Self>, asked: Asked<R>, tasks: &TaskTracker, vertex: &str) {
        let shared = self.clone();
        let span = tracing::debug_span!("vertex", name = vertex);
        let task = async move { shared.deliver(asked.await) };
        tasks.spawn_on(task.instrument(span), &self.runtime);
    }

    /// The first candidate that can be loaded, and the names of all that were tried before it.
    async fn load(
        &self,
        ctx: &OpContext,
        candidates: Vec<Candidate>,
    ) -> (Option<Loaded<R>>, Vec<(usize, ResultId)>) {
        let mut tried = Vec::new();
        for candidate in candidates {
            let name = candidate.record.result.clone();
            let found = match candidate.slot {
                LOCAL => guard(self.ops.load(&name))
                    .await
                    .map(|found| found.map(|found| (found, None))),
                slot => self.load_imported(ctx, slot, &name).await,
            };
            match found {
                Ok(Some((result, kept))) => {
                    let loaded = Loaded {
                        candidate,
                        result,
                        kept,
                    };
                    return (Some(loaded), tried);
                }
                Ok(None) => self.release(&candidate),
                Err(error) => tracing::warn!(result = %name, error = %error, "cached result not loaded"),
            }
            tried.push((candidate.slot, name));
        }
        (None, tried)
    }

    /// A result of an imported cache, and the name it is kept under from now on.
    async fn load_imported(
        &self,
        ctx: &OpContext,
        slot: usize,
        name: &ResultId,
    ) -> Result<Option<(R, Option<ResultId>)>, OpError> {
        let Some(cache) = self.core.lock().imported(slot) else {
            return Ok(None);
        };
        let loading = guard(cache.load(&ctx.progress, name));
        let Some(result) = ctx.unless_canceled(loading).await?? else {
            return Ok(None);
        };
        let kept = self.save(vec![result.clone()]).await.pop();
        Ok(Some((result, kept.and_then(|(_, kept)| kept))))
    }

    /// A result that is gone shall not be found again.
    fn release(&self, candidate: &Candidate) {
        if candidate.slot != LOCAL {
            return;
        }
        let view = self.core.lock().stores.local().clone();
        if let Err(error) = view.store.release(&candidate.record.result) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "record of a lost result not released"
            );
        }
    }

    /// Keeps results for later builds.
    async fn save(&self, results: Vec<R>) -> Vec<(R, Option<ResultId>)> {
        let mut saved = Vec::with_capacity(results.len());
        for result in results {
            let name = guard(self.ops.save(&result)).await;
            if let Err(error) = &name {
                tracing::warn!(error = %error, "result not kept for later builds");
            }
            saved.push((result, name.ok().flatten()));
        }
        saved
    }
}

/// Turns a panic of an op into its failure.
async fn guard<T>(call: impl Future<Output = Result<T, OpError>>) -> Result<T, OpError> {
    AssertUnwindSafe(call)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| {
            Err(OpError::internal(format!(
                "the op panicked: {}",
                message(panic.as_ref())
            )))
        })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
