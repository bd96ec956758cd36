//! Takes a definition in from the wire: bytes to checked vertices, once, at the door.
//!
//! ```text
//! proto::Definition ─▶ Definition ─▶ to_graph: per op decode ─▶ op ─▶ check indices ─▶ order ─▶ Graph
//! ```
//!
//! 1. Count and measure against `limits`.
//! 2. Decode each op; refuse unknown fields, enums and sub-messages that are missing (`op.rs` here).
//! 3. Follow inputs from the result; what the result does not reach is decoded but not given out.
//! 4. Order inputs before users with petgraph, which also finds cycles (only possible if SHA-256 were
//!    broken, but a stranger's input is never trusted to end a loop).

mod exec;
mod file;
mod metadata;
mod vertex;

use std::collections::HashMap;
use std::sync::Arc;

use oci::Digest;
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use prost::Message as _;

use crate::definition::{Definition, Edge, Graph, Vertex};
use crate::error::Error;
use crate::generated as pb;
use crate::limits::{MAX_NESTING, MAX_OP_BYTES, MAX_OPS, MAX_PARTS};

impl Definition {
    /// Reads a definition as sent. The ops stay as they came; [`Definition::to_graph`] decodes them.
    ///
    /// # Errors
    /// When a digest is none, or something is larger than the limits.
    pub fn from_proto(wire: pb::Definition) -> Result<Self, Error> {
        Self::from_proto_nested(wire, 0)
    }

    /// Reads an encoded `pb.Definition`, as `buildctl` pipes it.
    ///
    /// # Errors
    /// As [`Definition::from_proto`], and when the bytes are no such message.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let wire = pb::Definition::decode(bytes).map_err(|source| Error::Wire {
            what: "definition".to_owned(),
            source,
        })?;
        Self::from_proto(wire)
    }

    fn from_proto_nested(wire: pb::Definition, depth: usize) -> Result<Self, Error> {
        limit("definitions inside each other", depth, MAX_NESTING)?;
        limit("ops", wire.def.len(), MAX_OPS)?;
        limit("metadata entries", wire.metadata.len(), MAX_OPS)?;
        let metadata = wire
            .metadata
            .into_iter()
            .map(|(key, value)| Ok((digest("metadata", &key)?, metadata::metadata(value))))
            .collect::<Result<_, Error>>()?;
        let source = match wire.source {
            Some(source) => metadata::source(source, |nested| Self::from_proto_nested(nested, depth + 1))?,
            None => Default::default(),
        };
        Ok(Self {
            ops: wire.def,
            metadata,
            source,
        })
    }

    /// Decodes and checks every op.
    ///
    /// # Errors
    /// Whatever is wrong with the definition, naming the op.
    pub fn to_graph(&self) -> Result<Graph, Error> {
        let Some((last, ops)) = self.ops.split_last() else {
            return Ok(Graph::default());
        };
        limit("ops", self.ops.len(), MAX_OPS)?;
        let root = result_edge(last)?;
        if ops.is_empty() {
            return Err(Error::NoResult {
                reason: "there is no op but the one that should name it",
            });
        }
        let mut parts = HashMap::with_capacity(ops.len());
        for bytes in ops {
            let part = vertex::Part::decode(bytes)?;
            parts.entry(part.digest).or_insert(part);
        }
        self.assemble(root, parts)
    }

    /// Orders what `root` reaches and makes vertices of it.
    fn assemble(&self, root: Edge, mut parts: HashMap<Digest, vertex::Part>) -> Result<Graph, Error> {
        let mut graph = DiGraph::<Digest, ()>::new();
        let mut nodes = HashMap::<Digest, NodeIndex>::new();
        if !parts.contains_key(&root.digest) {
            return Err(Error::MissingInput {
                op: root.digest,
                input: root.digest,
            });
        }
        let mut open = vec![root.digest];
        nodes.insert(root.digest, graph.add_node(root.digest));
        while let Some(user) = open.pop() {
            for input in parts
                .get(&user)
                .map(|part| part.inputs.as_slice())
                .unwrap_or_default()
            {
                if !parts.contains_key(&input.digest) {
                    return Err(Error::MissingInput {
                        op: user,
                        input: input.digest,
                    });
                }
                let node = *nodes.entry(input.digest).or_insert_with(|| {
                    open.push(input.digest);
                    graph.add_node(input.digest)
                });
                graph.add_edge(node, nodes[&user], ());
            }
        }
        let order = toposort(&graph, None).map_err(|cycle| Error::Cycle {
            op: graph[cycle.node_id()],
        })?;

        let mut done = HashMap::<Digest, Arc<Vertex>>::with_capacity(order.len());
        let mut vertices = Vec::with_capacity(order.len());
        for node in order {
            let digest = graph[node];
            let part = parts.remove(&digest).expect("every node was found in parts");
            for input in &part.inputs {
                check_output(digest, *input, &done[&input.digest])?;
            }
            let metadata = self.metadata.get(&digest).cloned().unwrap_or_default();
            let names: Vec<&str> = part
                .inputs
                .iter()
                .map(|input| done[&input.digest].name())
                .collect();
            let vertex = Vertex::new(
                digest,
                part.inputs.clone(),
                part.op,
                part.platform,
                metadata,
                &names,
            );
            let vertex = Arc::new(vertex);
            done.insert(digest, Arc::clone(&vertex));
            vertices.push(vertex);
        }
        check_output(root.digest, root, &done[&root.digest])?;
        Ok(Graph {
            vertices,
            root: Some(root),
        })
    }
}

fn check_output(user: Digest, edge: Edge, input: &Vertex) -> Result<(), Error> {
    let outputs = input.output_count();
    if (edge.index as usize) < outputs {
        return Ok(());
    }
    Err(Error::MissingOutput {
        op: user,
        input: edge.digest,
        index: edge.index,
        outputs,
    })
}

/// The last entry: no op, one input, which is the result.
fn result_edge(bytes: &[u8]) -> Result<Edge, Error> {
    let wire = pb::Op::decode(bytes).map_err(|source| Error::Wire {
        what: "the last entry of the definition".to_owned(),
        source,
    })?;
    if wire.op.is_some() {
        return Err(Error::NoResult {
            reason: "the last entry is an op",
        });
    }
    let [input] = wire.inputs.as_slice() else {
        return Err(Error::NoResult {
            reason: "the last entry has not exactly one input",
        });
    };
    vertex::edge(Digest::of(bytes), input)
}

/// The digest of encoded op bytes, for error messages, and its limit.
fn measured(bytes: &[u8]) -> Result<Digest, Error> {
    limit("bytes in one op", bytes.len(), MAX_OP_BYTES)?;
    Ok(Digest::of(bytes))
}

fn limit(what: &'static str, found: usize, limit: usize) -> Result<(), Error> {
    if found > limit {
        Err(Error::TooLarge { what, found, limit })
    } else {
        Ok(())
    }
}

fn digest(what: &'static str, text: &str) -> Result<Digest, Error> {
    Digest::parse(text).map_err(|_| Error::NoDigest {
        what,
        found: text.chars().take(100).collect(),
    })
}

/// What the decoders of single ops need: whose op it is, how many inputs it has, and how to complain.
#[derive(Clone, Copy)]
struct Door {
    op: Digest,
    inputs: usize,
}

impl Door {
    /// For what is no op of a definition.
    fn of_gateway(inputs: usize) -> Self {
        Self {
            op: Digest::of(b""),
            inputs,
        }
    }

    fn invalid(self, reason: impl Into<String>) -> Error {
        Error::InvalidOp {
            op: self.op,
            reason: reason.into(),
        }
    }

    fn count(self, what: &'static str, found: usize) -> Result<(), Error> {
        limit(what, found, MAX_PARTS)
    }

    /// An index of an input; -1 is none.
    fn input(self, what: &str, index: i64) -> Result<Option<u32>, Error> {
        match index {
            -1 => Ok(None),
            index => match u32::try_from(index) {
                Ok(position) if (position as usize) < self.inputs => Ok(Some(position)),
                _ => Err(self.invalid(format!("{what} is input {index}, but there are {}", self.inputs))),
            },
        }
    }

    /// A number of an output; -1 is none.
    fn output(self, what: &str, index: i64) -> Result<Option<u32>, Error> {
        match index {
            -1 => Ok(None),
            index => match u32::try_from(index) {
                Ok(number) if (number as usize) < MAX_PARTS => Ok(Some(number)),
                _ => Err(self.invalid(format!("{what} has output number {index}"))),
            },
        }
    }
}
