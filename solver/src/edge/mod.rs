//! Takes one output of one vertex from "asked for" to "here", as lazily as it can.
//!
//! ```text
//! queue ─▶ absorb ─▶ advance ─▶ answer ─▶ ask ─▶ questions to inputs, cache and op
//! ```
//!
//! 1. `absorb` takes in what arrived: cache maps, keys of inputs, content keys, results, failures.
//! 2. `advance` works out the level: `Initial → CacheFast → CacheSlow → Complete`.
//! 3. `answer` tells everyone who asked what is new.
//! 4. `ask` raises questions for what is still missing, the cheapest first:
//!    the op's cache map and the inputs' keys by definition; deeper keys of inputs without a match; their
//!    content; then the inputs' results, and the run itself.
//! 5. `merge` finds, right before a run, an equal edge that runs already or did, and waits for that.
//!
//! A full match is taken from the cache at once, whatever else is still open, and without the inputs.
//! An edge that ignores the cache looks nothing up and has no keys for its users to look up; it is filed
//! like any other.
//!
//! Never waits, does no I/O but key look-ups, reads no clock: the scheduler owns those.
//!
//! Invariant: an edge that owes an answer has an open question; else the build would hang. This is
//! checked after every step and fails the build, naming the vertex.

mod absorb;
mod advance;
mod answer;
mod ask;
mod merge;

use crate::graph::{Edge, EdgeId, Level};
use crate::scheduler::Core;

pub(crate) use merge::Index;

/// One step of one edge.
pub(crate) fn step<R: Clone>(core: &mut Core<R>, id: EdgeId) {
    let Some(mut edge) = core.graph.take_edge(id) else {
        return;
    };
    edge.is_queued = false;
    let before = answer::Shown::of(&edge);
    if !edge.is_settled() && edge.wanted > Level::Initial {
        absorb::absorb(core, id, &mut edge);
        advance::advance(core, id, &mut edge);
    }
    if !edge.is_settled() && edge.wanted > edge.level {
        ask::ask(core, id, &mut edge);
        check(core, id, &mut edge);
    }
    core.graph.put_edge(id, edge);
    answer::answer(core, id, before);
}

/// Fails an edge that owes an answer and waits for nothing.
fn check<R: Clone>(core: &Core<R>, id: EdgeId, edge: &mut Edge<R>) {
    if !edge.is_settled() && edge.wanted > edge.level && !ask::has_open_question(core, id, edge) {
        let node = core
            .graph
            .get(id.node)
            .expect("the edge that takes a step has a node");
        edge.failure = Some(answer::internal(
            node,
            "it is asked for a result but waits for nothing",
        ));
    }
}
