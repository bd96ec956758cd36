//! The builds that run, and those that ended a moment ago, by the id their client gave them.
//!
//! ```text
//! Solve ─▶ begin ─▶ Build ◀─ find ─ LLBBridge (waits a little), Status
//!                     └─▶ end: gone after a while, so that a slow listener still finds its log
//! ```
use super::containers::Containers;
use super::errors::Failure;
use super::imports::Imports;
use super::left::LeftBehind;
use super::policy::Policy;
use super::result::{LazyRef, Solved};
use crate::build::Scope;
use crate::history::EventLog;
use crate::trace::Trail;
use cache::ImmutableRef;
use parking_lot::Mutex;
use solver::Job;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use worker::Session;

/// How long a build that ended is found.
const LINGER: Duration = Duration::from_secs(10);
/// Refs a client may hold in one build.
const MAX_REFS: usize = 100_000;

/// One build.
pub(super) struct Build {
    /// Its id.
    pub(super) id: String,
    /// What of the solver it holds.
    pub(super) job: Job<ImmutableRef>,
    /// Its client.
    pub(super) session: Arc<Session>,
    /// When it began.
    pub(super) begun: SystemTime,
    /// Its steps as they are now.
    pub(super) trail: Trail,
    /// What it shows.
    pub(super) log: Arc<EventLog>,
    /// Called off when its client goes.
    pub(super) cancel: CancellationToken,
    /// Frontend inputs, by name.
    pub(super) inputs: BTreeMap<String, llb::proto::Definition>,
    /// What its client asked, and what was looked at for it.
    pub(super) scope: Arc<Scope>,
    /// Containers its frontends started.
    pub(super) containers: Containers,
    /// What its failed steps left.
    pub(super) left: LeftBehind,
    /// What its request says about its sources.
    pub(super) policy: Policy,
    /// Caches it imports.
    pub(super) imports: Imports,
    refs: Mutex<HashMap<String, Arc<LazyRef>>>,
    /// Made with the build: a client's frontend may be done before the build has begun to wait for it.
    returning: Mutex<Option<oneshot::Sender<Result<Solved, Failure>>>>,
    returned: Mutex<Option<oneshot::Receiver<Result<Solved, Failure>>>>,
}

impl Build {
    pub(super) fn new(
        id: String,
        job: Job<ImmutableRef>,
        session: Arc<Session>,
        log: Arc<EventLog>,
        inputs: BTreeMap<String, llb::proto::Definition>,
        scope: Arc<Scope>,
        policy: Policy,
    ) -> Build {
        let (returning, returned) = oneshot::channel();
        Build {
            id,
            job,
            session,
            begun: SystemTime::now(),
            trail: Trail::default(),
            log,
            cancel: CancellationToken::new(),
            inputs,
            scope,
            containers: Containers::default(),
            left: LeftBehind::default(),
            policy,
            imports: Imports::default(),
            refs: Mutex::default(),
            returning: Mutex::new(Some(returning)),
            returned: Mutex::new(Some(returned)),
        }
    }

    /// What the client's own frontend answers, when it does; asked for once.
    pub(super) async fn returned(&self) -> Result<Solved, Failure> {
        let returned = self.returned.lock().take();
        match returned {
            Some(returned) => returned.await.unwrap_or_else(|_| Err(Failure::canceled())),
            None => Err(Failure::canceled()),
        }
    }

    /// Takes the answer of the client's frontend.
    pub(super) fn take_return(&self, answer: Result<Solved, Failure>) -> Result<(), Failure> {
        let Some(sender) = self.returning.lock().take() else {
            return Err(Failure::new(
                Code::FailedPrecondition,
                "the build has its result already",
            ));
        };
        // A build that was called off waits no more.
        let _ = sender.send(answer);
        Ok(())
    }

    /// Keeps a ref for the rest of the build.
    pub(super) fn hold(&self, one: &Arc<LazyRef>) -> Result<(), Failure> {
        let mut refs = self.refs.lock();
        if refs.len() >= MAX_REFS {
            let limit = format!("a build may hold at most {MAX_REFS} results");
            return Err(Failure::new(Code::ResourceExhausted, limit));
        }
        refs.insert(one.id.clone(), one.clone());
        Ok(())
    }

    /// How many refs it holds.
    pub(super) fn ref_count(&self) -> usize {
        self.refs.lock().len()
    }

    /// A ref by its id.
    pub(super) fn find_ref(&self, id: &str) -> Result<Arc<LazyRef>, Failure> {
        let found = self.refs.lock().get(id).cloned();
        found.ok_or_else(|| Failure::new(Code::NotFound, format!("no such ref: {id}")))
    }
}

/// All builds.
#[derive(Default)]
pub(super) struct Builds {
    running: Mutex<HashMap<String, Arc<Build>>>,
    /// Logs of builds that ended a moment ago.
    ended: Mutex<HashMap<String, Arc<EventLog>>>,
    changed: Notify,
    ended_count: AtomicU64,
}

impl Builds {
    /// Adds a build.
    pub(super) fn begin(&self, build: &Arc<Build>) -> Result<(), Failure> {
        let mut running = self.running.lock();
        if running.contains_key(&build.id) || self.ended.lock().contains_key(&build.id) {
            return Err(exists(&build.id));
        }
        running.insert(build.id.clone(), build.clone());
        drop(running);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Whether an id is taken.
    pub(super) fn check_free(&self, id: &str) -> Result<(), Failure> {
        let is_taken = self.running.lock().contains_key(id) || self.ended.lock().contains_key(id);
        if is_taken { Err(exists(id)) } else { Ok(()) }
    }

    /// Takes a build away; its log is found for a while.
    pub(super) fn end(self: &Arc<Self>, build: &Build) {
        self.ended_count.fetch_add(1, Ordering::Relaxed);
        self.ended.lock().insert(build.id.clone(), build.log.clone());
        self.running.lock().remove(&build.id);
        let (builds, id) = (self.clone(), build.id.clone());
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            let was_last = {
                let mut ended = builds.ended.lock();
                ended.remove(&id);
                ended.is_empty()
            };
            if was_last && builds.count() == 0 {
                // A daemon that has nothing to do holds no more memory than it needs; nothing waits for this.
                tokio::task::spawn_blocking(sandbox::give_back_memory);
            }
        });
    }

    /// How many have ended so far.
    pub(super) fn ended(&self) -> u64 {
        self.ended_count.load(Ordering::Relaxed)
    }

    /// Those that run, the oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Build>> {
        let mut all: Vec<_> = self.running.lock().values().cloned().collect();
        all.sort_by(|a, b| (a.begun, &a.id).cmp(&(b.begun, &b.id)));
        all
    }

    /// How many run.
    pub(super) fn count(&self) -> usize {
        self.running.lock().len()
    }

    /// Calls every build off.
    pub(super) fn cancel_all(&self) {
        self.running
            .lock()
            .values()
            .for_each(|build| build.cancel.cancel());
    }

    /// Returns when none runs.
    pub(super) async fn idle(&self) {
        loop {
            if self.count() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The build of an id, waiting so long for it to begin.
    pub(super) async fn find(&self, id: &str, patience: Duration) -> Option<Arc<Build>> {
        self.wait(patience, || self.running.lock().get(id).cloned()).await
    }

    /// The log of a build that runs or ended a moment ago, waiting so long for it to begin.
    pub(super) async fn find_log(&self, id: &str, patience: Duration) -> Option<Arc<EventLog>> {
        let look = || {
            let running = self.running.lock().get(id).map(|build| build.log.clone());
            running.or_else(|| self.ended.lock().get(id).cloned())
        };
        self.wait(patience, look).await
    }

    async fn wait<T>(&self, patience: Duration, look: impl Fn() -> Option<T>) -> Option<T> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let changed = self.changed.notified();
            if let Some(found) = look() {
                return Some(found);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return look();
            }
        }
    }
}

fn exists(id: &str) -> Failure {
    Failure::new(Code::Unknown, format!("job ID {id} exists"))
}
