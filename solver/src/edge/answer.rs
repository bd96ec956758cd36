//! Tells everyone who asked what is new.

use std::sync::Arc;

use crate::error::{OpError, Phase, VertexError};
use crate::graph::{Edge, EdgeId, Level, Node};
use crate::scheduler::Core;

/// What users of an edge can see of it.
#[derive(PartialEq, Eq)]
pub(super) struct Shown {
    level: Level,
    keys: usize,
    is_settled: bool,
}

impl Shown {
    pub(super) fn of<R>(edge: &Edge<R>) -> Self {
        Self {
            level: edge.level,
            keys: edge.keys.len(),
            is_settled: edge.is_settled(),
        }
    }
}

pub(super) fn answer<R: Clone>(core: &mut Core<R>, id: EdgeId, before: Shown) {
    let Some(edge) = core.graph.edge(id) else { return };
    let now = Shown::of(edge);
    if now.is_settled && !before.is_settled {
        core.settled(id);
    } else if now != before {
        let parents: Vec<_> = edge.parents.iter().map(|(parent, _)| *parent).collect();
        for parent in parents {
            core.enqueue(parent);
        }
    }
}

/// A fault of the solver's own, at this vertex.
pub(super) fn internal<R>(node: &Node<R>, what: &str) -> Arc<VertexError> {
    let (digest, name) = (node.info.digest, node.info.name.clone());
    Arc::new(VertexError {
        digest,
        name,
        phase: Phase::Solve,
        cause: OpError::internal(what.to_owned()),
    })
}
