//! Finds an equal edge right before a run: two vertices that differ only in what does not count.
//!
//! ```text
//! about to run ─ keys of the result ─▶ index ─ found ─▶ follow that edge
//!                                        └─ not found ─▶ be found from now on, and run
//! ```
//!
//! Equal means: same op digest, same output, and every input shares a key. Only edges whose inputs are all
//! complete are in the index, so an edge that is followed never waits for its follower.
//! An edge that ignores the cache does not follow one that does not: its user asked for a fresh run.

use std::collections::HashMap;
use std::sync::Arc;

use keys::{Batch, KeyId, MemoryStore, Record, ResultId, View};

use crate::graph::{Edge, EdgeId};
use crate::scheduler::Core;

use super::absorb::result_keys;

/// The slot under which keys remember their ids in the index.
const SLOT: usize = 0;

/// The edges that run or ran, by their keys.
pub(crate) struct Index {
    view: View,
    edges: HashMap<KeyId, Vec<EdgeId>>,
    ids: HashMap<EdgeId, Vec<KeyId>>,
}

impl Default for Index {
    fn default() -> Self {
        let view = View {
            store: Arc::new(MemoryStore::new()),
            slot: SLOT,
            keeps_local: true,
        };
        Self {
            view,
            edges: HashMap::new(),
            ids: HashMap::new(),
        }
    }
}

impl Index {
    /// The name an edge's keys are kept alive by.
    fn name(id: EdgeId) -> ResultId {
        ResultId::new(format!("{id:?}"))
    }

    /// Makes an edge unfindable.
    pub(crate) fn forget(&mut self, id: EdgeId) {
        let Some(ids) = self.ids.remove(&id) else { return };
        for key in ids {
            if let Some(edges) = self.edges.get_mut(&key) {
                edges.retain(|edge| *edge != id);
                if edges.is_empty() {
                    self.edges.remove(&key);
                }
            }
        }
        self.view
            .store
            .release(&Self::name(id))
            .expect("a store in memory does not fail");
    }

    /// How many edges can be found.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The edges with one of these keys.
    fn find(&self, keys: &[KeyId]) -> Vec<EdgeId> {
        keys.iter()
            .filter_map(|key| self.edges.get(key))
            .flatten()
            .copied()
            .collect()
    }

    fn insert(&mut self, id: EdgeId, keys: &[KeyId], batch: &Batch) {
        self.view
            .store
            .save(batch)
            .expect("a store in memory does not fail");
        for key in keys {
            self.edges.entry(*key).or_default().push(id);
        }
        self.ids.insert(id, keys.to_vec());
    }
}

/// Lets `edge` follow an equal one, if there is one; else makes it findable. Says whether it follows.
pub(super) fn merge<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>) -> bool {
    if edge.is_indexed {
        return false;
    }
    let keys = result_keys(&core.graph, id);
    let record = Record {
        result: Index::name(id),
        created: core.now,
    };
    let mut batch = Batch::default();
    let filed = keys.iter().filter_map(|key| {
        key.file(&core.index.view, Some(&record), &mut batch)
            .expect("a store in memory does not fail")
    });
    let ids: Vec<KeyId> = filed.collect();
    match core
        .index
        .find(&ids)
        .into_iter()
        .find(|other| may_follow(core, id, *other))
    {
        Some(target) => {
            follow(core, id, edge, target);
            true
        }
        None => {
            core.index.insert(id, &ids, &batch);
            edge.is_indexed = true;
            false
        }
    }
}

fn may_follow<R>(core: &Core<R>, id: EdgeId, target: EdgeId) -> bool {
    let (Some(mine), Some(other)) = (core.graph.get(id.node), core.graph.get(target.node)) else {
        return false;
    };
    let is_whole = core.graph.edge(target).is_some_and(|edge| edge.failure.is_none());
    id.node != target.node && is_whole && (other.ignore_cache || !mine.ignore_cache)
}

fn follow<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>, target: EdgeId) {
    edge.merged = Some(target);
    if let (Some(mine), Some(other)) = (core.graph.get(id.node), core.graph.get(target.node)) {
        other.op.join(&*mine.op);
    }
    let holders = core
        .graph
        .get(id.node)
        .map(|node| node.holders.clone())
        .unwrap_or_default();
    for build in holders {
        core.hold(target.node, build);
        core.watch_as(target.node, id.node, build);
    }
    let other = core
        .graph
        .edge_mut(target)
        .expect("its holders were just added to");
    if other.is_settled() {
        core.enqueue_again(id, edge);
    } else {
        other.wanted = crate::graph::Level::Complete;
        other.followers.push(id);
        core.enqueue(target);
    }
}
