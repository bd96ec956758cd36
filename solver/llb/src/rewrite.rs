//! The same graph with other sources: what is left of a definition after somebody has decided about its sources.
//!
//! ```text
//! Definition + { vertex: SourceOp } ─▶ sources encoded anew ─▶ their users, whose inputs have new names ─▶ Definition
//! ```
//!
//! Every op that is the same stays the bytes it came as. Metadata and lines go with their vertex to its new name; an op
//! the result does not reach is left out.

use std::collections::{BTreeMap, HashMap};

use oci::Digest;
use prost::Message as _;

use crate::definition::{Definition, Edge};
use crate::encode::{op_bytes, result_bytes};
use crate::error::Error;
use crate::generated as pb;
use crate::op::{Op, SourceOp};

impl Definition {
    /// The definition with other sources in place of these vertices; what is no source is left as it is.
    ///
    /// # Errors
    /// Whatever is wrong with the definition, naming the op.
    pub fn with_sources(&self, sources: &BTreeMap<Digest, SourceOp>) -> Result<Definition, Error> {
        let graph = self.to_graph()?;
        let Some(root) = graph.root else {
            return Ok(self.clone());
        };
        let bytes: HashMap<Digest, &Vec<u8>> = self.ops.iter().map(|op| (Digest::of(op), op)).collect();
        let mut renamed: HashMap<Digest, Digest> = HashMap::new();
        let mut ops = Vec::with_capacity(graph.vertices.len() + 1);
        for vertex in &graph.vertices {
            let came = bytes[&vertex.digest];
            let made = match (&vertex.op, sources.get(&vertex.digest)) {
                (Op::Source(_), Some(source)) => {
                    let op = Op::Source(source.clone());
                    op_bytes(&vertex.inputs, &op, vertex.platform.as_ref())
                }
                _ if vertex
                    .inputs
                    .iter()
                    .any(|input| renamed.contains_key(&input.digest)) =>
                {
                    with_inputs(came, &vertex.inputs, &renamed)?
                }
                _ => came.clone(),
            };
            let digest = Digest::of(&made);
            if digest != vertex.digest {
                renamed.insert(vertex.digest, digest);
            }
            ops.push(made);
        }
        ops.push(result_bytes(&edge(root, &renamed)));
        let name = |digest: &Digest| renamed.get(digest).copied().unwrap_or(*digest);
        let mut source = self.source.clone();
        source.locations = source
            .locations
            .into_iter()
            .map(|(digest, places)| (name(&digest), places))
            .collect();
        Ok(Definition {
            ops,
            metadata: self
                .metadata
                .iter()
                .map(|(digest, metadata)| (name(digest), metadata.clone()))
                .collect(),
            source,
        })
    }
}

fn edge(of: Edge, renamed: &HashMap<Digest, Digest>) -> Edge {
    Edge {
        digest: renamed.get(&of.digest).copied().unwrap_or(of.digest),
        index: of.index,
    }
}

/// An op as it came, with its inputs under their new names.
fn with_inputs(bytes: &[u8], inputs: &[Edge], renamed: &HashMap<Digest, Digest>) -> Result<Vec<u8>, Error> {
    let wire = |source| Error::Wire {
        what: format!("op {}", Digest::of(bytes)),
        source,
    };
    // Fields 10 and 11 come before the op itself, as Go writes them.
    let mut head = pb::Op::decode(bytes).map_err(wire)?;
    let tail = pb::Op {
        op: head.op.take(),
        ..pb::Op::default()
    };
    head.inputs = inputs
        .iter()
        .map(|input| {
            let input = edge(*input, renamed);
            pb::Input {
                digest: input.digest.to_string(),
                index: i64::from(input.index),
            }
        })
        .collect();
    let mut made = head.encode_to_vec();
    made.extend(tail.encode_to_vec());
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::OpMetadata;
    use crate::op::DiffOp;

    fn source(identifier: &str) -> SourceOp {
        SourceOp {
            identifier: identifier.to_owned(),
            attrs: BTreeMap::new(),
        }
    }

    /// Two sources and a diff of them; the digests of the sources, and the definition.
    fn diff_of(lower: &str, upper: &str) -> ([Digest; 2], Definition) {
        let sources = [lower, upper].map(|name| op_bytes(&[], &Op::Source(source(name)), None));
        let digests = [Digest::of(&sources[0]), Digest::of(&sources[1])];
        let edges = digests.map(|digest| Edge { digest, index: 0 });
        let diff = op_bytes(
            &edges,
            &Op::Diff(DiffOp {
                lower: Some(0),
                upper: Some(1),
            }),
            None,
        );
        let digest = Digest::of(&diff);
        let mut ops = sources.to_vec();
        ops.extend([diff, result_bytes(&Edge { digest, index: 0 })]);
        let metadata = OpMetadata {
            ignore_cache: true,
            ..OpMetadata::default()
        };
        let definition = Definition {
            ops,
            metadata: [(digest, metadata)].into(),
            ..Definition::default()
        };
        (digests, definition)
    }

    #[test]
    fn another_source_makes_the_definition_that_was_made_with_it() {
        let ([lower, _], before) = diff_of("docker-image://a", "docker-image://b");
        let (_, wanted) = diff_of("docker-image://c", "docker-image://b");
        let sources = [(lower, source("docker-image://c"))].into();
        let after = before.with_sources(&sources).expect("a good definition");
        assert_eq!(
            after.to_graph().expect("it stays one"),
            wanted.to_graph().expect("good")
        );
        let names = |one: &Definition| one.metadata.keys().copied().collect::<Vec<_>>();
        assert_eq!(names(&after), names(&wanted));
    }

    #[test]
    fn nothing_to_change_changes_no_byte() {
        let (_, before) = diff_of("docker-image://a", "docker-image://b");
        let mut after = before.with_sources(&BTreeMap::new()).expect("a good definition");
        let mut ops = before.ops.clone();
        // The order may be another.
        ops.sort();
        after.ops.sort();
        assert_eq!(after.ops, ops);
    }
}
