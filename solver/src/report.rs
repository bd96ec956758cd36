//! What became of each vertex of a build and why, for explaining it in words.
//!
//! An input without a match is why a step ran: no earlier run of the same op had an input known by any of
//! its keys. A step that ran though every input has a match had a result that is gone.

use std::sync::Arc;

use oci::Digest;

use crate::graph::{Content, Node};
use crate::progress::VertexInfo;

/// How a vertex came to its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Nothing asked for it: the cache had an answer further on.
    NotNeeded,
    /// The cache had it.
    Loaded,
    /// An equal vertex, of this or another build, had it.
    Shared,
    /// It ran.
    Ran,
    /// It failed.
    Failed,
}

/// What became of one vertex.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Which vertex.
    pub vertex: Arc<VertexInfo>,
    /// How it came to its result.
    pub outcome: Outcome,
    /// Whether the cache was not to be asked.
    pub ignore_cache: bool,
    /// The op's own digest, once known.
    pub key: Option<Digest>,
    /// What that digest is made of, as JSON.
    pub explain: String,
    /// What a source was found to be: a digest or a commit.
    pub pin: Option<String>,
    /// Its inputs, in order.
    pub inputs: Vec<InputReport>,
}

/// What became of one input of a vertex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputReport {
    /// The vertex it is an output of.
    pub vertex: Digest,
    /// The digest of its content as far as it matters, if that was asked for.
    pub content: Option<Digest>,
    /// Whether an earlier run of the same op had this input.
    pub is_matched: bool,
}

impl StepReport {
    pub(crate) fn of<R>(node: &Node<R>) -> Self {
        let edge = node.edges.iter().flatten().next();
        let inputs = node
            .info
            .inputs
            .iter()
            .enumerate()
            .map(|(index, vertex)| InputReport {
                vertex: *vertex,
                content: match node.contents.get(index) {
                    Some(Content::Known(Some(key))) => Some(*key.digest()),
                    _ => None,
                },
                is_matched: edge
                    .and_then(|edge| edge.inputs.get(index))
                    .is_some_and(|input| !input.matches.is_empty()),
            });
        let is_shared = node.edges.iter().flatten().any(|edge| edge.merged.is_some());
        Self {
            vertex: node.info.clone(),
            outcome: if is_shared { Outcome::Shared } else { node.outcome },
            ignore_cache: node.ignore_cache,
            key: node.maps.first().map(|map| map.digest),
            explain: node
                .maps
                .first()
                .map(|map| map.explain.clone())
                .unwrap_or_default(),
            pin: node.maps.first().and_then(|map| map.pin.clone()),
            inputs: inputs.collect(),
        }
    }
}
