//! The loop: one event, the edges it touches, each a step; then the questions that came out of it.
//!
//! ```text
//! Event ─ handle ─▶ node ─▶ queue of edges ─ edge::step ─▶ queue … until empty ─▶ Commands
//! ```
//!
//! Everything here is data: no waiting, no I/O but key look-ups, no clock. The same events in the same
//! order give the same commands; the tests choose the order. `once` carries the commands out.
//!
//! Invariant: an edge that owes an answer has an open question. It is checked after every step; an edge
//! that breaks it fails its builds, naming the vertex, rather than hanging them.

mod ending;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use keys::{CacheKey, KeyStore, Record, ResultId, View};
use oci::Digest;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::edge;
use crate::edge::Index;
use crate::error::{OpError, Phase, VertexError};
use crate::graph::{
    BuildId, Cached, Candidate, Content, Edge, EdgeId, Exec, Graph, Level, Node, NodeId, Question,
};
use crate::keys::{LOCAL, Stores};
use crate::load::{Plan, Step};
use crate::op::{CacheMap, Group, ImportedCache, Op, OpContext};
use crate::progress::{Clock, Event as Progress, Feed, LogLimits, Sink, Stream, VertexEvent};
use crate::report::{Outcome, StepReport};
use crate::turns::{Claim, Turns};

/// An answer from outside.
pub(crate) enum Event<R> {
    CacheMap {
        node: NodeId,
        answer: Result<(CacheMap, bool), OpError>,
    },
    Content {
        node: NodeId,
        input: usize,
        answer: Result<Option<Digest>, OpError>,
    },
    /// `answer` is the candidate that could be loaded, of those in the command.
    Loaded {
        edge: EdgeId,
        answer: Option<Loaded<R>>,
        tried: Vec<(usize, ResultId)>,
        began: SystemTime,
    },
    Ran {
        node: NodeId,
        answer: Result<Vec<(R, Option<ResultId>)>, OpError>,
    },
}

/// A result that was loaded.
pub(crate) struct Loaded<R> {
    pub(crate) candidate: Candidate,
    pub(crate) result: R,
    /// The name it is kept under here, if it came from an imported cache.
    pub(crate) kept: Option<ResultId>,
}

/// A question to the world outside.
pub(crate) enum Command<R> {
    CacheMap {
        node: NodeId,
        index: usize,
        call: Call<R>,
    },
    Content {
        node: NodeId,
        input: usize,
        result: R,
        call: Call<R>,
    },
    Load {
        edge: EdgeId,
        candidates: Vec<Candidate>,
        call: Call<R>,
        began: SystemTime,
    },
    Exec {
        node: NodeId,
        inputs: Vec<R>,
        call: Call<R>,
    },
    Answer {
        build: BuildId,
        answer: Result<Cached<R>, Arc<VertexError>>,
    },
}

/// What a call of an op needs.
pub(crate) struct Call<R> {
    pub(crate) op: Arc<dyn Op<R>>,
    pub(crate) ctx: OpContext,
    /// Counts the call while it runs.
    pub(crate) tasks: TaskTracker,
}

/// What a build is part of.
#[derive(Clone)]
pub(crate) struct Owner {
    pub(crate) job: u64,
    pub(crate) group: Group,
    pub(crate) stream: Arc<Stream>,
}

struct Build {
    owner: Owner,
    nodes: HashSet<NodeId>,
    /// What it asked for; `None` while its vertices are being placed.
    root: Option<EdgeId>,
}

/// A cache that a job imports.
struct Import<R> {
    job: u64,
    cache: Arc<dyn ImportedCache<R>>,
}

/// The state of all builds and the only one to change it.
pub(crate) struct Core<R> {
    pub(crate) graph: Graph<R>,
    pub(crate) stores: Stores,
    pub(crate) index: Index,
    pub(crate) turns: Turns,
    pub(crate) commands: Vec<Command<R>>,
    pub(crate) now: SystemTime,
    builds: HashMap<BuildId, Build>,
    next_build: u64,
    /// The caches that jobs import.
    imports: HashMap<usize, Import<R>>,
    queue: VecDeque<EdgeId>,
    clock: Clock,
    log_limits: LogLimits,
}

impl<R: Clone> Core<R> {
    pub(crate) fn new(
        store: Arc<dyn KeyStore>,
        max_parallelism: Option<usize>,
        clock: Clock,
        log_limits: LogLimits,
    ) -> Self {
        Self {
            graph: Graph::default(),
            stores: Stores::new(store),
            index: Index::default(),
            turns: Turns::new(max_parallelism),
            commands: Vec::new(),
            now: clock(),
            builds: HashMap::new(),
            next_build: 0,
            imports: HashMap::new(),
            queue: VecDeque::new(),
            clock,
            log_limits,
        }
    }

    /// Lets the builds of a job that begin from now on use a cache of another machine.
    pub(crate) fn import(&mut self, job: u64, cache: Arc<dyn ImportedCache<R>>) {
        let slot = self.stores.import(cache.keys());
        self.imports.insert(slot, Import { job, cache });
    }

    /// The imported cache of a slot, while its job lasts.
    pub(crate) fn imported(&self, slot: usize) -> Option<Arc<dyn ImportedCache<R>>> {
        self.imports.get(&slot).map(|import| import.cache.clone())
    }

    /// The caches a job imports, each as a store.
    pub(crate) fn imports_of(&self, job: u64) -> Vec<(View, Arc<dyn ImportedCache<R>>)> {
        let imports = self.imports.iter().filter(|(_, import)| import.job == job);
        let views = imports
            .filter_map(|(slot, import)| Some((self.stores.view(*slot)?.clone(), import.cache.clone())));
        let mut views: Vec<_> = views.collect();
        views.sort_by_key(|(view, _)| view.slot);
        views
    }

    /// Lets the builds of a job that begin from now on join no vertex whose result came from an imported cache.
    pub(crate) fn distrust_imports(&mut self, job: u64) {
        let builds = self.builds.values().filter(|build| build.owner.job == job);
        let nodes: HashSet<NodeId> = builds.flat_map(|build| build.nodes.iter().copied()).collect();
        for id in nodes {
            if self.graph.get(id).is_some_and(|node| node.is_imported) {
                self.graph.retire(id);
            }
        }
    }

    /// Takes away the caches a job imported.
    pub(crate) fn forget_imports(&mut self, job: u64) -> Vec<Arc<dyn ImportedCache<R>>> {
        let gone = self.imports.extract_if(|_, import| import.job == job);
        let gone: Vec<_> = gone.collect();
        for (slot, _) in &gone {
            self.stores.remove(*slot);
        }
        gone.into_iter().map(|(_, import)| import.cache).collect()
    }

    /// Puts a build's vertices into the graph and asks for its result.
    pub(crate) fn add(&mut self, plan: Plan<R>, owner: Owner) -> BuildId {
        self.now = (self.clock)();
        let build = BuildId(self.next_build);
        self.next_build += 1;
        self.builds.insert(
            build,
            Build {
                owner,
                nodes: HashSet::new(),
                root: None,
            },
        );
        let mut placed: Vec<NodeId> = Vec::with_capacity(plan.steps.len());
        for step in plan.steps {
            let inputs = step
                .inputs
                .iter()
                .map(|(at, output)| EdgeId {
                    node: placed[*at],
                    output: *output,
                })
                .collect();
            placed.push(self.place(step, inputs, build));
        }
        let root = EdgeId {
            node: placed[plan.root.0],
            output: plan.root.1,
        };
        self.builds.get_mut(&build).expect("it was put there above").root = Some(root);
        let edge = self.graph.edge_mut(root).expect("the root was placed above");
        edge.builds.push(build);
        edge.wanted = Level::Complete;
        if edge.is_settled() {
            self.settled(root);
        } else {
            self.enqueue(root);
        }
        self.run();
        build
    }

    fn place(&mut self, step: Step<R>, inputs: Vec<EdgeId>, build: BuildId) -> NodeId {
        let stream = self.builds[&build].owner.stream.clone();
        if !stream.knows(&step.info.digest) {
            let vertex = step.info.clone();
            stream.push(Progress::Vertex(VertexEvent {
                vertex,
                started: None,
                completed: None,
                cached: false,
                error: None,
            }));
        }
        let id = match self.graph.find(&step.identity, &inputs, step.ignore_cache) {
            Some(id) => {
                if let Some(node) = self.graph.get(id) {
                    node.op.join(&*step.op);
                }
                id
            }
            None => self.graph.insert(Node {
                digest: step.identity,
                op: step.op,
                ignore_cache: step.ignore_cache,
                contents: vec![Content::NotAsked; inputs.len()],
                inputs,
                feed: Feed::new(step.info.clone(), self.log_limits),
                info: step.info.clone(),
                height: step.height,
                holders: Vec::new(),
                groups: Arc::default(),
                imports: Vec::new(),
                has_lost_holder: false,
                maps: Vec::new(),
                map_question: Question::NotAsked,
                has_all_maps: false,
                exec: Exec::NotAsked,
                outcome: Outcome::NotNeeded,
                is_imported: false,
                exec_cancel: None,
                failure: None,
                cancel: CancellationToken::new(),
                tasks: None,
                edges: Vec::new(),
            }),
        };
        let node = self.graph.get_mut(id).expect("found or inserted above");
        node.height = node.height.max(step.height);
        node.feed.watch(&stream, &step.info);
        self.hold(id, build);
        id
    }

    /// Keeps a node, and what its edges were merged into, for a build.
    pub(crate) fn hold(&mut self, id: NodeId, build: BuildId) {
        let Some(holder) = self.builds.get_mut(&build) else {
            return;
        };
        if !holder.nodes.insert(id) {
            return;
        }
        let owner = holder.owner.clone();
        let brought = self.imports.iter().filter(|(_, import)| import.job == owner.job);
        let brought: Vec<usize> = brought.map(|(slot, _)| *slot).collect();
        let Some(node) = self.graph.get_mut(id) else {
            return;
        };
        node.holders.push(build);
        node.imports.extend(brought);
        node.imports.sort_unstable();
        node.imports.dedup();
        node.groups.lock().push((build.0, owner.group.clone()));
        let info = node.info.clone();
        let merged: Vec<_> = node
            .edges
            .iter()
            .flatten()
            .filter_map(|edge| edge.merged)
            .collect();
        for target in merged {
            if let Some(target) = self.graph.get(target.node) {
                target.feed.watch(&owner.stream, &info);
            }
            self.hold(target.node, build);
        }
    }

    /// Lets a build's jobs watch `target` as if it were `follower`.
    pub(crate) fn watch_as(&self, target: NodeId, follower: NodeId, build: BuildId) {
        if let (Some(target), Some(follower), Some(build)) = (
            self.graph.get(target),
            self.graph.get(follower),
            self.builds.get(&build),
        ) {
            target.feed.watch(&build.owner.stream, &follower.info);
        }
    }

    /// Takes answers in and does all that follows from them.
    pub(crate) fn handle(&mut self, events: Vec<Event<R>>) {
        self.now = (self.clock)();
        for event in events {
            match event {
                Event::CacheMap { node, answer } => self.cache_map(node, answer),
                Event::Content { node, input, answer } => self.content(node, input, answer),
                Event::Loaded {
                    edge,
                    answer,
                    tried,
                    began,
                } => self.loaded(edge, answer, tried, began),
                Event::Ran { node, answer } => self.ran(node, answer),
            }
        }
        self.run();
    }

    fn cache_map(&mut self, id: NodeId, answer: Result<(CacheMap, bool), OpError>) {
        let now = self.now;
        let Some(node) = self.graph.get_mut(id) else {
            return;
        };
        node.map_question = Question::NotAsked;
        if node.inputs.is_empty() {
            node.feed
                .completed(now, answer.as_ref().err().map(ToString::to_string));
        }
        match answer {
            Ok((map, _)) if map.deps.len() != node.inputs.len() => {
                let cause = format!(
                    "its cache map speaks of {} inputs, it has {}",
                    map.deps.len(),
                    node.inputs.len()
                );
                self.fail(id, Phase::Solve, OpError::internal(cause));
            }
            Ok((map, last)) => {
                node.maps.push(map);
                node.has_all_maps = last || !node.inputs.is_empty();
            }
            Err(error) if self.is_worth_repeating(id, &error) => {}
            Err(error) => self.fail(id, Phase::CacheMap, error),
        }
        self.enqueue_edges(id);
    }

    fn content(&mut self, id: NodeId, input: usize, answer: Result<Option<Digest>, OpError>) {
        let Some(node) = self.graph.get_mut(id) else {
            return;
        };
        match answer {
            Ok(digest) => node.contents[input] = Content::Known(digest.map(CacheKey::content)),
            Err(error) => {
                node.contents[input] = Content::NotAsked;
                if !self.is_worth_repeating(id, &error) {
                    self.show_failure(id, &error);
                    self.fail(id, Phase::Content, error);
                }
            }
        }
        self.enqueue_edges(id);
    }

    fn loaded(
        &mut self,
        id: EdgeId,
        answer: Option<Loaded<R>>,
        tried: Vec<(usize, ResultId)>,
        began: SystemTime,
    ) {
        let now = self.now;
        let Some(edge) = self.graph.edge_mut(id) else {
            return;
        };
        edge.load = Question::NotAsked;
        edge.tried.extend(tried);
        let is_late = edge.is_settled();
        match answer {
            Some(loaded) if !is_late => {
                let Candidate { key, record, slot } = loaded.candidate;
                if let Some(result) = loaded.kept {
                    let created = record.created;
                    self.stores.file_imported(&key, &Record { result, created });
                }
                let edge = self.graph.edge_mut(id).expect("it was there above");
                edge.result = Some(Cached {
                    result: loaded.result,
                    keys: vec![key],
                });
                let node = self.graph.get_mut(id.node).expect("its edge is there");
                node.outcome = Outcome::Loaded;
                node.is_imported = slot != LOCAL;
                node.feed.started(began, true);
                node.feed.completed(now, None);
                self.settled(id);
            }
            _ => edge.drop_tried(),
        }
        self.enqueue(id);
    }

    fn ran(&mut self, id: NodeId, answer: Result<Vec<(R, Option<ResultId>)>, OpError>) {
        let now = self.now;
        self.turns.finished(id);
        let Some(node) = self.graph.get_mut(id) else {
            return;
        };
        node.exec_cancel = None;
        let was_stopping = matches!(std::mem::take(&mut node.exec), Exec::Stopping);
        match answer {
            Ok(results) => {
                node.feed.completed(now, None);
                node.outcome = Outcome::Ran;
                node.exec = Exec::Done(results);
            }
            Err(error) => {
                node.feed.completed(now, Some(error.to_string()));
                if !was_stopping && !self.is_worth_repeating(id, &error) {
                    self.fail(id, Phase::Exec, error);
                }
            }
        }
        self.enqueue_edges(id);
    }

    /// Whether a call failed only because the build whose session it used is gone.
    fn is_worth_repeating(&mut self, id: NodeId, error: &OpError) -> bool {
        let Some(node) = self.graph.get_mut(id) else {
            return false;
        };
        error.is_canceled() && std::mem::take(&mut node.has_lost_holder)
    }

    fn show_failure(&self, id: NodeId, error: &OpError) {
        if let Some(node) = self.graph.get(id) {
            node.feed.started(self.now, false);
            node.feed.completed(self.now, Some(error.to_string()));
        }
    }

    /// Fails a node; its edges pass that on when they take their step.
    fn fail(&mut self, id: NodeId, phase: Phase, cause: OpError) {
        let Some(node) = self.graph.get_mut(id) else {
            return;
        };
        let (digest, name) = (node.info.digest, node.info.name.clone());
        node.outcome = Outcome::Failed;
        node.failure.get_or_insert(Arc::new(VertexError {
            digest,
            name,
            phase,
            cause,
        }));
        self.graph.retire(id);
        for edge in self.graph.edges_of(id) {
            self.index.forget(edge);
        }
    }

    /// Lets an edge take a step.
    pub(crate) fn enqueue(&mut self, id: EdgeId) {
        if self.graph.edge(id).is_some()
            && let Some(edge) = self.graph.edge_mut(id)
            && !std::mem::replace(&mut edge.is_queued, true)
        {
            self.queue.push_back(id);
        }
    }

    /// Lets the edge that is taking a step take another.
    pub(crate) fn enqueue_again(&mut self, id: EdgeId, edge: &mut Edge<R>) {
        if !std::mem::replace(&mut edge.is_queued, true) {
            self.queue.push_back(id);
        }
    }

    fn enqueue_edges(&mut self, id: NodeId) {
        for edge in self.graph.edges_of(id) {
            self.enqueue(edge);
        }
    }

    /// Takes steps until nothing changes any more, then lets run what may.
    pub(crate) fn run(&mut self) {
        while let Some(id) = self.queue.pop_front() {
            edge::step(self, id);
        }
        self.start_waiting();
    }

    fn start_waiting(&mut self) {
        loop {
            let (graph, builds) = (&self.graph, &self.builds);
            let next = self.turns.next(|id| {
                let node = graph
                    .get(id)
                    .expect("what waits is withdrawn before its node goes");
                let jobs = node
                    .holders
                    .iter()
                    .filter_map(|build| builds.get(build))
                    .map(|build| build.owner.job);
                Claim {
                    jobs: jobs.collect(),
                    height: node.height,
                }
            });
            let Some(id) = next else { return };
            let node = self
                .graph
                .get_mut(id)
                .expect("what waits is withdrawn before its node goes");
            let Exec::Waiting(inputs) = std::mem::replace(&mut node.exec, Exec::Running) else {
                unreachable!("only what waits is given a turn");
            };
            node.feed.started(self.now, false);
            let call = self.call(id).expect("the node is there");
            let node = self.graph.get_mut(id).expect("the node is there");
            node.exec_cancel = Some(call.ctx.cancel.clone());
            self.commands.push(Command::Exec {
                node: id,
                inputs,
                call,
            });
        }
    }

    /// What a call of the node's op needs.
    pub(crate) fn call(&mut self, id: NodeId) -> Option<Call<R>> {
        let clock = self.clock.clone();
        let node = self.graph.get_mut(id)?;
        if matches!(node.map_question, Question::NotAsked) && !node.is_exec_open() {
            node.has_lost_holder = false;
        }
        let ctx = OpContext {
            vertex: node.info.clone(),
            progress: Sink::new(node.feed.clone(), clock),
            cancel: node.cancel.child_token(),
            groups: node.groups.clone(),
        };
        Some(Call {
            op: node.op.clone(),
            ctx,
            tasks: node.tasks.get_or_insert_default().clone(),
        })
    }

    /// An edge has its result or failed: tells everyone who asked.
    pub(crate) fn settled(&mut self, id: EdgeId) {
        let Some(edge) = self.graph.edge_mut(id) else {
            return;
        };
        let (parents, followers) = (edge.parents.clone(), std::mem::take(&mut edge.followers));
        let builds = std::mem::take(&mut edge.builds);
        let answer = match (&edge.result, &edge.failure) {
            (Some(result), _) => {
                edge.level = Level::Complete;
                Ok(result.clone())
            }
            (None, Some(failure)) => Err(failure.clone()),
            (None, None) => return,
        };
        for build in builds {
            self.commands.push(Command::Answer {
                build,
                answer: answer.clone(),
            });
        }
        for waiting in parents.into_iter().map(|(parent, _)| parent).chain(followers) {
            self.enqueue(waiting);
        }
    }

    /// What became of the vertices of a job's builds, first steps first.
    pub(crate) fn report(&self, job: u64) -> Vec<StepReport> {
        let builds = self.builds.values().filter(|build| build.owner.job == job);
        let nodes: HashSet<NodeId> = builds.flat_map(|build| build.nodes.iter().copied()).collect();
        let mut nodes: Vec<_> = nodes.into_iter().filter_map(|id| self.graph.get(id)).collect();
        nodes.sort_by(|a, b| {
            b.height
                .cmp(&a.height)
                .then_with(|| a.info.name.cmp(&b.info.name))
        });
        nodes.into_iter().map(StepReport::of).collect()
    }

    /// How many builds are known.
    pub(crate) fn build_count(&self) -> usize {
        self.builds.len()
    }
}
