//! One encoded op to its digest, inputs, platform and [`Op`].

use oci::{Digest, Platform};
use prost::Message as _;

use super::{Door, digest, exec, file, measured};
use crate::definition::{Definition, Edge};
use crate::error::Error;
use crate::generated as pb;
use crate::op::{BuildOp, DiffOp, MergeOp, Op, PassthroughOp, SourceOp};
use crate::wire;

/// A vertex that does not know its neighbours yet.
pub(super) struct Part {
    pub(super) digest: Digest,
    pub(super) inputs: Vec<Edge>,
    pub(super) op: Op,
    pub(super) platform: Option<Platform>,
}

impl Part {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let op_digest = measured(bytes)?;
        let wire = pb::Op::decode(bytes).map_err(|source| Error::Wire {
            what: format!("op {op_digest}"),
            source,
        })?;
        if let Some((message, field)) = wire::unknown_field(bytes) {
            return Err(Error::UnknownField {
                op: op_digest,
                message,
                field,
            });
        }
        let door = Door {
            op: op_digest,
            inputs: wire.inputs.len(),
        };
        door.count("inputs of one op", wire.inputs.len())?;
        let inputs = wire
            .inputs
            .iter()
            .map(|input| edge(op_digest, input))
            .collect::<Result<_, _>>()?;
        let op = match wire.op {
            None => return Err(door.invalid("it says nothing of what is to be done")),
            Some(op) => decode_op(door, op)?,
        };
        Ok(Self {
            digest: op_digest,
            inputs,
            op,
            platform: wire.platform.map(platform),
        })
    }
}

fn decode_op(door: Door, wire: pb::op::Op) -> Result<Op, Error> {
    Ok(match wire {
        pb::op::Op::Source(source) => Op::Source(source_op(door, source)?),
        pb::op::Op::Exec(exec) => Op::Exec(exec::exec(door, exec)?),
        pb::op::Op::File(file) => Op::File(file::file(door, file)?),
        pb::op::Op::Merge(merge) => Op::Merge(merge_op(door, merge)?),
        pb::op::Op::Diff(diff) => Op::Diff(diff_op(door, diff)?),
        pb::op::Op::Build(build) => Op::Build(build_op(door, build)?),
        pb::op::Op::Passthrough(pass) => Op::Passthrough(passthrough_op(door, pass)?),
    })
}

fn source_op(door: Door, wire: pb::SourceOp) -> Result<SourceOp, Error> {
    if !wire.identifier.contains("://") {
        return Err(door.invalid(format!("source {:?} has no scheme", wire.identifier)));
    }
    door.count("options of one source", wire.attrs.len())?;
    Ok(SourceOp {
        identifier: wire.identifier,
        attrs: wire.attrs,
    })
}

fn merge_op(door: Door, wire: pb::MergeOp) -> Result<MergeOp, Error> {
    door.count("inputs of one merge", wire.inputs.len())?;
    let inputs = wire
        .inputs
        .iter()
        .map(|merged| door.input("something merged", merged.input))
        .collect::<Result<_, _>>()?;
    Ok(MergeOp { inputs })
}

fn diff_op(door: Door, wire: pb::DiffOp) -> Result<DiffOp, Error> {
    let (Some(lower), Some(upper)) = (wire.lower, wire.upper) else {
        return Err(door.invalid("a diff without lower or upper side"));
    };
    Ok(DiffOp {
        lower: door.input("the lower side", lower.input)?,
        upper: door.input("the upper side", upper.input)?,
    })
}

fn passthrough_op(door: Door, wire: pb::PassthroughOp) -> Result<PassthroughOp, Error> {
    if wire.id.is_empty() || wire.outputs.is_empty() {
        return Err(door.invalid("a passthrough without id or outputs"));
    }
    door.count("outputs of one passthrough", wire.outputs.len())?;
    let outputs = wire
        .outputs
        .iter()
        .map(|index| {
            door.input("an output", *index)?
                .ok_or_else(|| door.invalid("a passthrough output that is scratch"))
        })
        .collect::<Result<_, _>>()?;
    Ok(PassthroughOp { id: wire.id, outputs })
}

fn build_op(door: Door, wire: pb::BuildOp) -> Result<BuildOp, Error> {
    door.count("inputs of one build", wire.inputs.len())?;
    let inputs = wire
        .inputs
        .into_iter()
        .map(|(name, value)| Ok((name, door.input("an input of the build", value.input)?)))
        .collect::<Result<_, Error>>()?;
    let definition = match wire.def {
        Some(definition) => Some(Box::new(Definition::from_proto(definition)?)),
        None => None,
    };
    Ok(BuildOp {
        builder: door.input("the builder", wire.builder)?,
        inputs,
        definition,
        attrs: wire.attrs,
    })
}

pub(super) fn edge(op: Digest, wire: &pb::Input) -> Result<Edge, Error> {
    let index = u32::try_from(wire.index).map_err(|_| Error::InvalidOp {
        op,
        reason: format!("output index {} of an input", wire.index),
    })?;
    Ok(Edge {
        digest: digest("an input", &wire.digest)?,
        index,
    })
}

fn platform(wire: pb::Platform) -> Platform {
    let some = |text: String| if text.is_empty() { None } else { Some(text) };
    Platform {
        architecture: wire.architecture,
        os: wire.os,
        variant: some(wire.variant),
        os_version: some(wire.os_version),
        os_features: wire.os_features,
    }
}
