//! Whose turn it is when not everything may run at once.
//!
//! ```text
//! ready to run ─▶ waiting ─ the job with the fewest running, the one served longest ago;
//!                           of its vertices the one with the longest chain behind it ─▶ running
//! ```
//!
//! A vertex that several jobs want counts for the one of them that has the fewest running. A job that comes anew stands
//! before the one served just now and behind those served earlier: neither does a build of many steps starve one of few,
//! nor do many builds of few steps starve one of many.

use std::collections::HashMap;

use crate::graph::NodeId;

/// What decides between two vertices that wait.
pub(crate) struct Claim {
    /// The jobs that want it.
    pub(crate) jobs: Vec<u64>,
    /// How many steps follow it.
    pub(crate) height: u32,
}

/// Who runs and who waits.
pub(crate) struct Turns {
    max: usize,
    running: HashMap<NodeId, Option<u64>>,
    /// In the order they came.
    waiting: Vec<NodeId>,
    /// Those that need no turn.
    free: Vec<NodeId>,
    /// When each job had its last turn or came, while anything waits: a turn counts two, so that who comes fits between.
    served: HashMap<u64, u64>,
    turn: u64,
}

impl Turns {
    pub(crate) fn new(max: Option<usize>) -> Self {
        Self {
            max: max.unwrap_or(usize::MAX).max(1),
            running: HashMap::new(),
            waiting: Vec::new(),
            free: Vec::new(),
            served: HashMap::new(),
            turn: 0,
        }
    }

    pub(crate) fn wait(&mut self, node: NodeId) {
        self.waiting.push(node);
    }

    /// For what may run at once, however much runs.
    pub(crate) fn wait_for_nothing(&mut self, node: NodeId) {
        self.free.push(node);
    }

    /// Takes back what waits.
    pub(crate) fn withdraw(&mut self, node: NodeId) {
        self.waiting.retain(|other| *other != node);
        self.free.retain(|other| *other != node);
    }

    /// The op of `node` returned, whether or not anyone still wants it.
    pub(crate) fn finished(&mut self, node: NodeId) {
        self.running.remove(&node);
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() + self.free.len()
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// The next one to run, if there is room; `claim` says what speaks for each.
    pub(crate) fn next(&mut self, claim: impl Fn(NodeId) -> Claim) -> Option<NodeId> {
        if let Some(node) = self.free.pop() {
            return Some(node);
        }
        if self.running.len() >= self.max || self.waiting.is_empty() {
            return None;
        }
        let claims: Vec<Claim> = self.waiting.iter().map(|node| claim(*node)).collect();
        let came = (2 * self.turn).saturating_sub(1);
        for job in claims.iter().flat_map(|claim| &claim.jobs) {
            self.served.entry(*job).or_insert(came);
        }
        let mut load: HashMap<u64, usize> = HashMap::new();
        for job in self.running.values().flatten() {
            *load.entry(*job).or_default() += 1;
        }
        let charge = |jobs: &[u64]| {
            let of = |job: &u64| {
                let last = self.served.get(job).copied().unwrap_or(0);
                ((load.get(job).copied().unwrap_or(0), last), Some(*job))
            };
            jobs.iter().map(of).min().unwrap_or(((0, 0), None))
        };
        let claims = claims.iter().enumerate().map(|(at, claim)| {
            let (load, job) = charge(&claim.jobs);
            ((load, std::cmp::Reverse(claim.height), at), job)
        });
        let ((_, _, at), job) = claims.min_by_key(|(rank, _)| *rank)?;
        let node = self.waiting.remove(at);
        self.running.insert(node, job);
        self.turn += 1;
        self.served.extend(job.map(|job| (job, 2 * self.turn)));
        if self.waiting.is_empty() {
            self.served.clear();
        }
        Some(node)
    }
}
