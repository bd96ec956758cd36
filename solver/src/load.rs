//! A definition to the vertices of one build, ready to be put into the shared graph.
//!
//! ```text
//! Definition ─ to_graph (llb: decoded, checked, pruned) ─▶ Graph ─ plan ─▶ Plan ─▶ scheduler
//!                                                             └─ dot ─▶ text for graphviz
//! ```
//!
//! A plan lists vertices with inputs before their users, so that equal vertices of one or several
//! definitions become one by looking up digest and inputs. What the worker cannot do is found here,
//! before anything runs.

use std::collections::HashMap;
use std::sync::Arc;

use llb::Vertex;
use oci::Digest;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::error::{OpError, Phase, VertexError};
use crate::op::{Op, Ops};
use crate::progress::VertexInfo;

/// One vertex of a build.
pub(crate) struct Step<R> {
    pub(crate) info: Arc<VertexInfo>,
    /// Two steps with equal inputs are one if this is equal: its digest, unless its job is of a variant.
    pub(crate) identity: Digest,
    pub(crate) op: Arc<dyn Op<R>>,
    pub(crate) ignore_cache: bool,
    /// Position in the plan, and output.
    pub(crate) inputs: Vec<(usize, u32)>,
    /// The most steps between this one and the result.
    pub(crate) height: u32,
}

/// The vertices of one build, inputs before their users.
pub(crate) struct Plan<R> {
    pub(crate) steps: Vec<Step<R>>,
    /// Position and output of what is wanted.
    pub(crate) root: (usize, u32),
}

/// What is shown of a vertex.
pub(crate) fn info(vertex: &Vertex) -> Arc<VertexInfo> {
    Arc::new(VertexInfo {
        digest: vertex.digest,
        inputs: vertex.inputs.iter().map(|input| input.digest).collect(),
        name: vertex.name().to_owned(),
        group: vertex.metadata.progress_group.clone(),
    })
}

/// What a vertex is to jobs of a variant.
fn identity(vertex: &Vertex, variant: &str) -> Digest {
    if variant.is_empty() {
        return vertex.digest;
    }
    Digest::of(format!("{}\0{variant}", vertex.digest).as_bytes())
}

/// Makes the plan of a graph that is not scratch, for a job of `variant`.
pub(crate) fn plan<R>(
    graph: &llb::Graph,
    root: llb::Edge,
    ops: &dyn Ops<R>,
    variant: &str,
) -> Result<Plan<R>, VertexError> {
    let position: HashMap<Digest, usize> = graph
        .vertices
        .iter()
        .enumerate()
        .map(|(at, vertex)| (vertex.digest, at))
        .collect();
    let at = |edge: &llb::Edge| (position[&edge.digest], edge.index);
    let mut steps = Vec::with_capacity(graph.vertices.len());
    for vertex in &graph.vertices {
        let op = ops.op(vertex).map_err(|cause| failure(vertex, cause))?;
        let inputs: Vec<_> = vertex.inputs.iter().map(at).collect();
        if inputs.iter().any(|(input, _)| *input >= steps.len()) {
            return Err(failure(
                vertex,
                OpError::internal("an input of the vertex comes after it"),
            ));
        }
        steps.push(Step {
            info: info(vertex),
            identity: identity(vertex, variant),
            op,
            ignore_cache: vertex.metadata.ignore_cache,
            inputs,
            height: 0,
        });
    }
    measure(&mut steps);
    Ok(Plan {
        steps,
        root: at(&root),
    })
}

fn failure(vertex: &Vertex, cause: OpError) -> VertexError {
    VertexError {
        digest: vertex.digest,
        name: vertex.name().to_owned(),
        phase: Phase::Prepare,
        cause,
    }
}

/// Finds out how many steps follow each one; of two that could run, the one with more goes first.
pub(crate) fn measure<R>(steps: &mut [Step<R>]) {
    for at in (0..steps.len()).rev() {
        let height = steps[at].height + 1;
        for index in 0..steps[at].inputs.len() {
            let input = steps[at].inputs[index].0;
            steps[input].height = steps[input].height.max(height);
        }
    }
}

/// The graph as graphviz reads it, for looking at what a frontend made. The longest chain is bold.
///
/// # Errors
/// As for [`llb::Definition::to_graph`].
pub fn dot(definition: &llb::Definition) -> Result<String, llb::Error> {
    let graph = definition.to_graph()?;
    let mut drawn: DiGraph<String, String> = DiGraph::new();
    let mut nodes: HashMap<Digest, NodeIndex> = HashMap::new();
    for vertex in &graph.vertices {
        let digest = vertex.digest.to_string();
        let short = digest.get(..19).unwrap_or(&digest);
        let node = drawn.add_node(format!("{}\n{short}", vertex.name()));
        nodes.insert(vertex.digest, node);
        for input in &vertex.inputs {
            if let Some(from) = nodes.get(&input.digest) {
                drawn.add_edge(
                    *from,
                    node,
                    if input.index == 0 {
                        String::new()
                    } else {
                        input.index.to_string()
                    },
                );
            }
        }
    }
    let critical = critical_path(&drawn);
    let style = |_: &DiGraph<String, String>, (node, _): (NodeIndex, &String)| {
        if critical.contains(&node) {
            "style=bold".to_owned()
        } else {
            String::new()
        }
    };
    let picture = petgraph::dot::Dot::with_attr_getters(&drawn, &[], &|_, _| String::new(), &style);
    Ok(picture.to_string())
}

/// The longest chain of steps, first to last.
fn critical_path(graph: &DiGraph<String, String>) -> Vec<NodeIndex> {
    let Ok(order) = petgraph::algo::toposort(graph, None) else {
        return Vec::new();
    };
    let mut best: HashMap<NodeIndex, (usize, Option<NodeIndex>)> = HashMap::new();
    for node in &order {
        let longest = graph
            .neighbors_directed(*node, petgraph::Direction::Incoming)
            .map(|input| (best.get(&input).map_or(1, |(length, _)| length + 1), Some(input)))
            .max();
        best.insert(*node, longest.unwrap_or((1, None)));
    }
    let mut path = Vec::new();
    let mut at = order
        .into_iter()
        .max_by_key(|node| best.get(node).map(|(length, _)| *length));
    while let Some(node) = at {
        path.push(node);
        at = best.get(&node).and_then(|(_, input)| *input);
    }
    path.reverse();
    path
}
