//! What one client's build holds of the solver, from its beginning to its end.
//!
//! ```text
//! Solver::job ─▶ Job ─ build(definition) ─▶ result, held until the job ends
//!                 ├─ progress() ─▶ events
//!                 ├─ step(id, name) ─▶ something shown that is no vertex
//!                 └─ discard() ─▶ everything of it has ended
//! ```
//!
//! A build that fails or is dropped gives back what only it held at once; a job that ends gives back the
//! rest. What other jobs hold goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use keys::{CacheKey, KeyStore, StoreError};
use llb::Definition;
use oci::Digest;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Place, SolveError, VertexError};
use crate::export::{self, ExportedKey};
use crate::graph::{BuildId, Cached};
use crate::load;
use crate::once::Shared;
use crate::op::{Group, ImportedCache, OpContext, Ops};
use crate::progress::{Clock, EventReader, Feed, LogLimits, Step, VertexInfo};
use crate::report::StepReport;
use crate::scheduler::{Core, Owner};

/// Choices for a solver.
#[derive(Clone)]
pub struct Options {
    /// How many ops may run at once over all jobs; `None` is without limit.
    pub max_parallelism: Option<usize>,
    /// How much output a vertex may show.
    pub log_limits: LogLimits,
    /// What time it is.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_parallelism: None,
            log_limits: LogLimits::default(),
            clock: Arc::new(SystemTime::now),
        }
    }
}

/// The graph all builds of this process share. Cheap to clone.
pub struct Solver<R> {
    shared: Arc<Shared<R>>,
    options: Options,
    next_job: Arc<AtomicU64>,
}

impl<R> Clone for Solver<R> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            options: self.options.clone(),
            next_job: self.next_job.clone(),
        }
    }
}

/// What a build gave.
#[derive(Clone, Debug)]
pub struct BuiltResult<R> {
    /// The result; `None` is scratch.
    pub result: Option<R>,
    /// The keys it is known by, each with all that is behind it.
    pub keys: Vec<CacheKey>,
}

/// How much a solver is holding; all zero when no job is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Vertices in the graph.
    pub vertices: usize,
    /// Builds.
    pub builds: usize,
    /// Ops running.
    pub running: usize,
    /// Ops that wait for their turn.
    pub waiting: usize,
    /// Edges that equal ones can find.
    pub indexed: usize,
}

impl<R: Clone + Send + Sync + 'static> Solver<R> {
    /// A solver without jobs. It runs ops on the runtime it is made in.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(ops: Arc<dyn Ops<R>>, store: Arc<dyn KeyStore>, options: Options) -> Self {
        let core = Core::new(
            store,
            options.max_parallelism,
            options.clock.clone(),
            options.log_limits,
        );
        let shared = Shared {
            core: Mutex::new(core),
            waiting: Mutex::default(),
            ops,
            runtime: Handle::current(),
        };
        Self {
            shared: Arc::new(shared),
            options,
            next_job: Arc::default(),
        }
    }

    /// Begins a job. `group` is what the ops that run for it are given (the worker's session).
    #[must_use]
    pub fn job(&self, id: impl Into<String>, group: Group) -> Job<R> {
        Job {
            id: id.into(),
            owner: Owner {
                job: self.next_job.fetch_add(1, Ordering::Relaxed),
                group,
                stream: Arc::default(),
            },
            shared: self.shared.clone(),
            options: self.options.clone(),
            variant: "",
            held: Mutex::default(),
            ended: CancellationToken::new(),
        }
    }

    /// How much is held at the moment.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let core = self.shared.core.lock();
        Holdings {
            vertices: core.graph.len(),
            builds: core.build_count(),
            running: core.turns.running(),
            waiting: core.turns.waiting(),
            indexed: core.index.len(),
        }
    }
}

/// One client's hold on the solver.
pub struct Job<R: Clone + Send + Sync + 'static> {
    id: String,
    owner: Owner,
    shared: Arc<Shared<R>>,
    options: Options,
    variant: &'static str,
    held: Mutex<Held>,
    ended: CancellationToken,
}

#[derive(Default)]
struct Held {
    builds: Vec<BuildId>,
    /// Calls that were told to stop and may still be running.
    stopping: Vec<TaskTracker>,
}

impl<R: Clone + Send + Sync + 'static> Job<R> {
    /// The id it was given.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The same, of a variant: no step of it is run together with one of a job that is not of the same variant, though
    /// both look alike. What the cache has serves all of them.
    #[must_use]
    pub fn of_variant(mut self, variant: &'static str) -> Self {
        self.variant = variant;
        self
    }

    /// The result of a definition. Several builds of one job may run at once. Dropping the future, or a
    /// failure, gives back what only this build held; a result is held until the job ends.
    ///
    /// # Errors
    /// A vertex failed, the definition is not one, or the job ended meanwhile.
    pub async fn build(&self, definition: &Definition) -> Result<BuiltResult<R>, SolveError> {
        let graph = definition
            .to_graph()
            .map_err(|error| SolveError::Definition(Arc::new(error)))?;
        let Some(root) = graph.root else {
            return Ok(BuiltResult {
                result: None,
                keys: Vec::new(),
            });
        };
        let plan = load::plan(&graph, root, &*self.shared.ops, self.variant).map_err(|error| {
            self.show_refusal(&graph, &error);
            vertex_error(error, definition)
        })?;
        let Cached { result, keys } = self.solve(plan).await.map_err(|error| match error {
            Some(error) => vertex_error((*error).clone(), definition),
            None => SolveError::Canceled,
        })?;
        Ok(BuiltResult {
            result: Some(result),
            keys,
        })
    }

    /// The result of a plan; `None` as error when the job ended.
    pub(crate) async fn solve(&self, plan: load::Plan<R>) -> Result<Cached<R>, Option<Arc<VertexError>>> {
        if self.ended.is_cancelled() {
            return Err(None);
        }
        let (sender, receiver) = oneshot::channel();
        let (build, commands) = {
            let mut core = self.shared.core.lock();
            let build = core.add(plan, self.owner.clone());
            self.shared.waiting.lock().insert(build, sender);
            (build, std::mem::take(&mut core.commands))
        };
        let running = Running {
            job: self,
            build: Some(build),
        };
        self.shared.perform(commands);
        let answer = tokio::select! {
            biased;
            () = self.ended.cancelled() => return Err(None),
            answer = receiver => answer,
        };
        let cached = answer.map_err(|_| None)?.map_err(Some)?;
        running.keep();
        Ok(cached)
    }

    /// Shows a vertex the worker refused before anything ran.
    fn show_refusal(&self, graph: &llb::Graph, error: &VertexError) {
        if let Some(vertex) = graph.vertex(&error.digest) {
            let info = load::info(vertex);
            let feed = Feed::new(info.clone(), self.options.log_limits);
            feed.watch(&self.owner.stream, &info);
            feed.started((self.options.clock)(), false);
            feed.completed((self.options.clock)(), Some(error.to_string()));
        }
    }

    /// Lets the builds of this job that begin from now on use a cache of another machine. What a vertex that other jobs
    /// want too is found by there serves them as well.
    pub fn import(&self, cache: Arc<dyn ImportedCache<R>>) {
        if !self.ended.is_cancelled() {
            self.shared.core.lock().import(self.owner.job, cache);
        }
    }

    /// What is known of these keys of a result and of all that is behind them, here and in the caches this job imports;
    /// what others are made of comes first.
    ///
    /// # Errors
    /// The store of keys failed.
    pub fn export(&self, keys: &[CacheKey]) -> Result<Vec<ExportedKey<R>>, StoreError> {
        let (local, imports) = {
            let core = self.shared.core.lock();
            (core.stores.local().clone(), core.imports_of(self.owner.job))
        };
        export::export(keys, local, imports)
    }

    /// Takes the imported caches away, and lets the builds of this job that begin from now on work out anew what came
    /// from them.
    pub fn distrust_imports(&self) {
        let mut core = self.shared.core.lock();
        core.distrust_imports(self.owner.job);
        let imports = core.forget_imports(self.owner.job);
        drop(core);
        drop(imports);
    }

    /// What became of every vertex of the job's builds so far, first steps first.
    #[must_use]
    pub fn report(&self) -> Vec<StepReport> {
        self.shared.core.lock().report(self.owner.job)
    }

    /// The job's events from its beginning. There is one queue: of two readers each sees a part.
    #[must_use]
    pub fn progress(&self) -> EventReader {
        EventReader {
            stream: self.owner.stream.clone(),
        }
    }

    /// Begins a step that is shown but is no vertex (an export). A step begun again under the same id
    /// goes on where it ended.
    #[must_use = "dropped without `finish` the step is shown as cancelled"]
    pub fn step(&self, id: &str, name: impl Into<String>) -> Step {
        let digest = Digest::of(id.as_bytes());
        self.step_as(VertexInfo {
            digest,
            inputs: Vec::new(),
            name: name.into(),
            group: None,
        })
    }

    /// Begins a step shown exactly as `vertex`.
    #[must_use = "dropped without `finish` the step is shown as cancelled"]
    pub fn step_as(&self, vertex: VertexInfo) -> Step {
        let info = Arc::new(vertex);
        let feed = Feed::new(info.clone(), self.options.log_limits);
        feed.watch(&self.owner.stream, &info);
        Step::begin(feed, self.options.clock.clone())
    }

    /// What an op is called with that is asked outside of any build, shown under a step; over when the job ends.
    #[must_use]
    pub fn context(&self, step: &Step) -> OpContext {
        OpContext {
            vertex: step.sink().vertex(),
            progress: step.sink().clone(),
            cancel: self.ended.child_token(),
            groups: Arc::new(Mutex::new(vec![(self.owner.job, self.owner.group.clone())])),
        }
    }

    /// Ends the job: builds that still run fail as cancelled, results are given back, the stream of events
    /// ends. Returns when every op that ran for this job alone has returned.
    pub async fn discard(self) {
        self.stop().await;
    }

    /// As [`Job::discard`], for a job that others still look at: what is asked of it afterwards fails as cancelled.
    pub async fn stop(&self) {
        self.end();
        let stopping = std::mem::take(&mut self.held.lock().stopping);
        for tasks in stopping {
            tasks.close();
            tasks.wait().await;
        }
    }

    fn end(&self) {
        self.ended.cancel();
        // Dropped outside of the lock.
        let imports = self.shared.core.lock().forget_imports(self.owner.job);
        drop(imports);
        let builds = std::mem::take(&mut self.held.lock().builds);
        for build in builds {
            self.release(build);
        }
        self.owner.stream.close((self.options.clock)());
    }

    fn release(&self, build: BuildId) {
        self.shared.waiting.lock().remove(&build);
        let (leftovers, commands) = {
            let mut core = self.shared.core.lock();
            (core.end(build), std::mem::take(&mut core.commands))
        };
        self.held.lock().stopping.extend(leftovers.tasks.iter().cloned());
        // Results go here, outside of all locks.
        drop(leftovers);
        self.shared.perform(commands);
    }
}

impl<R: Clone + Send + Sync + 'static> Drop for Job<R> {
    /// The net beneath `discard`: nothing is held any more, though ops may still be returning.
    fn drop(&mut self) {
        self.end();
    }
}

/// A build that runs; given back when dropped.
struct Running<'a, R: Clone + Send + Sync + 'static> {
    job: &'a Job<R>,
    build: Option<BuildId>,
}

impl<R: Clone + Send + Sync + 'static> Running<'_, R> {
    /// Holds the result until the job ends.
    fn keep(mut self) {
        let mut held = self.job.held.lock();
        if self.job.ended.is_cancelled() {
            return;
        }
        held.builds.extend(self.build.take());
    }
}

impl<R: Clone + Send + Sync + 'static> Drop for Running<'_, R> {
    fn drop(&mut self) {
        if let Some(build) = self.build.take() {
            self.job.release(build);
        }
    }
}

/// Adds the lines the vertex came from, by the build's own definition.
fn vertex_error(error: VertexError, definition: &Definition) -> SolveError {
    let source = &definition.source;
    let locations = source
        .locations
        .get(&error.digest)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let place = |location: &llb::Location| {
        let file = source.infos.get(location.source_index as usize)?.clone();
        Some(Place {
            file,
            location: location.clone(),
        })
    };
    SolveError::Vertex {
        places: locations.iter().filter_map(place).collect(),
        error,
    }
}
