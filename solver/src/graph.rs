//! The graph all running builds share: who is in it, what of it is known, who wants what.
//!
//! ```text
//! Build ─ holds ─▶ Node ─ inputs ─▶ Edge of another Node
//!   └─ root ─▶ Edge ─ asked ─▶ Edge
//! ```
//!
//! A [`Node`] is one vertex: its op, what the op answered, whether it ran. An [`Edge`] is one output of
//! it: keys found, records, result. Nodes live in numbered slots; a number is given a new generation when
//! its slot is used again, so an answer that comes too late finds nobody.
//!
//! Two vertices are one node if digest and inputs are equal. A build that ignores the cache never joins
//! a node that does not; the other way round it may.
//!
//! A node lives while a build holds it. Nothing here decides anything; `scheduler` owns it.

use std::collections::HashMap;
use std::sync::Arc;

use keys::{CacheKey, KeyId, Record, ResultId};
use oci::Digest;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::VertexError;
use crate::op::{CacheMap, Groups, Op};
use crate::progress::{Feed, VertexInfo};
use crate::report::Outcome;

/// A node's place, and which of the nodes that were ever there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId {
    slot: u32,
    generation: u32,
}

/// One output of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EdgeId {
    pub(crate) node: NodeId,
    pub(crate) output: u32,
}

/// One call of `build`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BuildId(pub(crate) u64);

/// How far an edge has come, or is wanted to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Level {
    /// Nothing.
    #[default]
    Initial,
    /// Keys by definition are known.
    CacheFast,
    /// Every key it can have without being run is known.
    CacheSlow,
    /// The result is here.
    Complete,
}

/// A result with what names it.
#[derive(Clone, Debug)]
pub(crate) struct Cached<R> {
    pub(crate) result: R,
    pub(crate) keys: Vec<CacheKey>,
}

/// What an op that was asked a question is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Question {
    #[default]
    NotAsked,
    Open,
}

/// The content key of one input.
#[derive(Clone, Debug, Default)]
pub(crate) enum Content {
    #[default]
    NotAsked,
    Open,
    /// `None`: there is none.
    Known(Option<CacheKey>),
}

/// Whether the op ran.
#[derive(Clone, Debug, Default)]
pub(crate) enum Exec<R> {
    #[default]
    NotAsked,
    /// Waits for its turn.
    Waiting(Vec<R>),
    Running,
    /// Told to stop because nobody wanted it; has not returned yet.
    Stopping,
    /// The results, each with the name it is kept under if it could be kept.
    Done(Vec<(R, Option<ResultId>)>),
}

/// One vertex.
pub(crate) struct Node<R> {
    /// [`crate::load::Step::identity`].
    pub(crate) digest: Digest,
    pub(crate) op: Arc<dyn Op<R>>,
    pub(crate) ignore_cache: bool,
    pub(crate) inputs: Vec<EdgeId>,
    pub(crate) info: Arc<VertexInfo>,
    pub(crate) feed: Arc<Feed>,
    /// The most steps that follow in any build; the longest chain is run first.
    pub(crate) height: u32,
    /// Who wants it, first come first.
    pub(crate) holders: Vec<BuildId>,
    /// What those brought along.
    pub(crate) groups: Groups,
    /// The slots of the caches those import.
    pub(crate) imports: Vec<usize>,
    /// Whether one of them went away since the op was last asked something.
    pub(crate) has_lost_holder: bool,
    pub(crate) maps: Vec<CacheMap>,
    pub(crate) map_question: Question,
    pub(crate) has_all_maps: bool,
    pub(crate) contents: Vec<Content>,
    pub(crate) exec: Exec<R>,
    pub(crate) outcome: Outcome,
    /// Whether its result came from an imported cache.
    pub(crate) is_imported: bool,
    /// Of the running op.
    pub(crate) exec_cancel: Option<CancellationToken>,
    pub(crate) failure: Option<Arc<VertexError>>,
    /// Parent of the tokens of all calls for this node.
    pub(crate) cancel: CancellationToken,
    pub(crate) tasks: Option<TaskTracker>,
    pub(crate) edges: Vec<Option<Box<Edge<R>>>>,
}

/// A record that may be loaded.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) slot: usize,
    pub(crate) key: CacheKey,
    pub(crate) record: Record,
}

/// What an edge knows of one of its inputs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Input {
    /// What it asked of the input.
    pub(crate) asked: Level,
    /// How many of the input's keys it has looked up.
    pub(crate) probed: usize,
    /// Whether it has looked up the content key.
    pub(crate) probed_content: bool,
    /// Keys of this edge that the input leads to: store and id, sorted.
    pub(crate) matches: Vec<(usize, KeyId)>,
}

/// One output of a vertex.
pub(crate) struct Edge<R> {
    pub(crate) level: Level,
    pub(crate) wanted: Level,
    /// The edges that ask for this one, with the number of the input they know it by.
    pub(crate) parents: Vec<(EdgeId, u32)>,
    /// Builds that want the result itself.
    pub(crate) builds: Vec<BuildId>,
    pub(crate) inputs: Vec<Input>,
    /// How many of the node's cache maps were taken in.
    pub(crate) maps_seen: usize,
    /// Keys users may look up.
    pub(crate) keys: Vec<CacheKey>,
    /// Where those were found.
    pub(crate) found: Vec<(usize, KeyId)>,
    pub(crate) candidates: Vec<Candidate>,
    /// Records that were tried, with the slots of their stores.
    pub(crate) tried: Vec<(usize, ResultId)>,
    pub(crate) load: Question,
    pub(crate) result: Option<Cached<R>>,
    pub(crate) failure: Option<Arc<VertexError>>,
    /// The equal edge whose result this one waits for.
    pub(crate) merged: Option<EdgeId>,
    /// Equal edges that wait for this one's result.
    pub(crate) followers: Vec<EdgeId>,
    /// Whether equal edges can find it.
    pub(crate) is_indexed: bool,
    pub(crate) is_queued: bool,
}

impl<R> Edge<R> {
    pub(crate) fn new(inputs: usize) -> Self {
        Self {
            level: Level::Initial,
            wanted: Level::Initial,
            parents: Vec::new(),
            builds: Vec::new(),
            inputs: vec![Input::default(); inputs],
            maps_seen: 0,
            keys: Vec::new(),
            found: Vec::new(),
            candidates: Vec::new(),
            tried: Vec::new(),
            load: Question::NotAsked,
            result: None,
            failure: None,
            merged: None,
            followers: Vec::new(),
            is_indexed: false,
            is_queued: false,
        }
    }

    /// Forgets candidates that were tried in vain.
    pub(crate) fn drop_tried(&mut self) {
        let tried = &self.tried;
        self.candidates.retain(|candidate| {
            !tried
                .iter()
                .any(|(slot, result)| *slot == candidate.slot && *result == candidate.record.result)
        });
    }

    /// Whether nothing more will happen to it.
    pub(crate) fn is_settled(&self) -> bool {
        self.result.is_some() || self.failure.is_some()
    }
}

impl<R> Node<R> {
    /// Whether the op is running or about to.
    pub(crate) fn is_exec_open(&self) -> bool {
        matches!(self.exec, Exec::Waiting(_) | Exec::Running | Exec::Stopping)
    }
}

/// All nodes.
pub(crate) struct Graph<R> {
    slots: Vec<(u32, Option<Box<Node<R>>>)>,
    free: Vec<u32>,
    by_digest: HashMap<Digest, Vec<NodeId>>,
}

impl<R> Default for Graph<R> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_digest: HashMap::new(),
        }
    }
}

impl<R> Graph<R> {
    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The node that is the same vertex, if there is one a new build may join.
    pub(crate) fn find(&self, digest: &Digest, inputs: &[EdgeId], ignore_cache: bool) -> Option<NodeId> {
        self.by_digest.get(digest)?.iter().copied().find(|id| {
            let node = self.get(*id).expect("the index names only nodes that are there");
            node.inputs == inputs && (node.ignore_cache || !ignore_cache)
        })
    }

    /// Adds a node that others can find by its digest.
    pub(crate) fn insert(&mut self, node: Node<R>) -> NodeId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 vertices at once")
        });
        let id = NodeId {
            slot,
            generation: self.slots[slot as usize].0,
        };
        self.by_digest.entry(node.digest).or_default().push(id);
        self.slots[slot as usize].1 = Some(Box::new(node));
        id
    }

    /// Makes a node unfindable for new builds: they shall try again what failed.
    pub(crate) fn retire(&mut self, id: NodeId) {
        let Some(digest) = self.get(id).map(|node| node.digest) else {
            return;
        };
        if let Some(nodes) = self.by_digest.get_mut(&digest) {
            nodes.retain(|other| *other != id);
            if nodes.is_empty() {
                self.by_digest.remove(&digest);
            }
        }
    }

    /// Takes a node out.
    pub(crate) fn remove(&mut self, id: NodeId) -> Option<Box<Node<R>>> {
        self.retire(id);
        let (generation, node) = self.slots.get_mut(id.slot as usize)?;
        if *generation != id.generation {
            return None;
        }
        let node = node.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(id.slot);
        Some(node)
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Node<R>> {
        match self.slots.get(id.slot as usize) {
            Some((generation, Some(node))) if *generation == id.generation => Some(node),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node<R>> {
        match self.slots.get_mut(id.slot as usize) {
            Some((generation, Some(node))) if *generation == id.generation => Some(node),
            _ => None,
        }
    }

    pub(crate) fn edge(&self, id: EdgeId) -> Option<&Edge<R>> {
        self.get(id.node)?.edges.get(id.output as usize)?.as_deref()
    }

    /// The edge, made if it was never asked for.
    pub(crate) fn edge_mut(&mut self, id: EdgeId) -> Option<&mut Edge<R>> {
        let node = self.get_mut(id.node)?;
        let (output, inputs) = (id.output as usize, node.inputs.len());
        if node.edges.len() <= output {
            node.edges.resize_with(output + 1, || None);
        }
        Some(node.edges[output].get_or_insert_with(|| Box::new(Edge::new(inputs))))
    }

    /// Takes an edge out for its step; [`Graph::put_edge`] brings it back.
    pub(crate) fn take_edge(&mut self, id: EdgeId) -> Option<Box<Edge<R>>> {
        self.get_mut(id.node)?.edges.get_mut(id.output as usize)?.take()
    }

    /// Brings an edge back.
    pub(crate) fn put_edge(&mut self, id: EdgeId, edge: Box<Edge<R>>) {
        let node = self
            .get_mut(id.node)
            .expect("no node leaves while one of its edges takes a step");
        node.edges[id.output as usize] = Some(edge);
    }

    /// The edges of a node that were asked for.
    pub(crate) fn edges_of(&self, node: NodeId) -> Vec<EdgeId> {
        let edges = self
            .get(node)
            .map(|node| node.edges.as_slice())
            .unwrap_or_default();
        let outputs = edges.iter().enumerate().filter(|(_, edge)| edge.is_some());
        outputs
            .map(|(output, _)| EdgeId {
                node,
                output: u32::try_from(output).expect("outputs are u32"),
            })
            .collect()
    }
}
