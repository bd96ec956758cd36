//! The steps of a definition, numbered, for the largest provenance.
//!
//! ```text
//! ops ─ inputs before their users ─▶ step0, step1, … ─┬─▶ buildConfig: what each step does
//!                                                      ├─▶ source: which lines of the Dockerfile it is from
//!                                                      └─▶ layers: what the image has of it
//! ```

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llb::op::{FileInput, Op};
use llb::proto;
use llb::{Definition, Graph, Vertex};
use oci::{Descriptor, Digest};
use prost::Message;
use serde_json::{Map, Value, json};

use super::op_json::Json;

/// Attributes of local sources that say something of one session only.
const OF_THE_SESSION: &[&str] = &["local.session", "local.unique"];

type Vertices<'a> = BTreeMap<Digest, &'a Vertex>;

/// A definition's steps.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// By the number of the step.
    steps: Vec<Value>,
    numbers: BTreeMap<Digest, usize>,
}

impl Steps {
    /// The steps of a definition; none of scratch, or of what is no definition.
    pub(super) fn of(definition: &Definition) -> Steps {
        let mut ops: BTreeMap<Digest, proto::Op> = BTreeMap::new();
        let mut last = None;
        for bytes in &definition.ops {
            let Ok(op) = proto::Op::decode(&bytes[..]) else {
                return Steps::default();
            };
            let digest = Digest::of(bytes);
            last = Some(digest);
            ops.insert(digest, op);
        }
        let mut steps = Steps::default();
        for digest in last.map(|last| in_order(&ops, last)).unwrap_or_default() {
            if let Some(op) = ops.get(&digest) {
                steps.add(digest, op.clone());
            }
        }
        steps
    }

    fn add(&mut self, digest: Digest, mut op: proto::Op) {
        let inputs = std::mem::take(&mut op.inputs).into_iter().filter_map(|input| {
            let number = self.numbers.get(&Digest::parse(&input.digest).ok()?)?;
            Some(format!("step{number}:{}", input.index))
        });
        let inputs: Vec<String> = inputs.collect();
        if let Some(proto::op::Op::Source(source)) = &mut op.op {
            source
                .attrs
                .retain(|name, _| !OF_THE_SESSION.contains(&name.as_str()));
        }
        let number = self.steps.len();
        let mut step = Map::new();
        step.insert("id".to_owned(), Value::from(format!("step{number}")));
        step.insert("op".to_owned(), op.json());
        if !inputs.is_empty() {
            step.insert("inputs".to_owned(), json!(inputs));
        }
        self.steps.push(Value::Object(step));
        self.numbers.insert(digest, number);
    }

    /// Each step with what it does, and the digests of their ops.
    pub(super) fn build_config(&self) -> Value {
        let mut out = Map::new();
        self.write(&mut out);
        Value::Object(out)
    }

    fn write(&self, out: &mut Map<String, Value>) {
        if self.steps.is_empty() {
            return;
        }
        let digests: Map<_, _> = self
            .numbers
            .iter()
            .map(|(digest, number)| (digest.to_string(), Value::from(format!("step{number}"))))
            .collect();
        out.insert("llbDefinition".to_owned(), Value::Array(self.steps.clone()));
        out.insert("digestMapping".to_owned(), Value::Object(digests));
    }

    /// The files the steps are from, and which lines of them; `None` if nobody said.
    pub(super) fn source(&self, definition: &Definition) -> Option<Value> {
        if definition.source.infos.is_empty() {
            return None;
        }
        let wire = definition.to_proto().source?;
        let locations = wire.locations.iter().filter_map(|(digest, locations)| {
            let number = self.numbers.get(&Digest::parse(digest).ok()?)?;
            Some((*number, locations.json()))
        });
        // As Go sorts text: step10 before step2. The last op only names the result.
        let ops = self.steps.len().saturating_sub(1);
        let nowhere = (0..ops).map(|number| (number, json!({})));
        let locations: BTreeMap<String, Value> = nowhere
            .chain(locations)
            .map(|(number, value)| (format!("step{number}"), value))
            .collect();
        let infos = definition.source.infos.iter().map(|info| {
            let mut out = Map::new();
            let texts = [
                ("filename", info.filename.clone()),
                ("language", info.language.clone()),
                ("data", STANDARD.encode(&info.data)),
            ];
            let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
            out.extend(texts.map(|(key, text)| (key.to_owned(), Value::from(text))));
            if let Some(definition) = &info.definition {
                Steps::of(definition).write(&mut out);
            }
            Value::Object(out)
        });
        let infos: Vec<_> = infos.collect();
        let mut out = Map::new();
        if !locations.is_empty() {
            out.insert("locations".to_owned(), json!(locations));
        }
        out.insert("infos".to_owned(), Value::Array(infos));
        Some(Value::Object(out))
    }

    /// What the image has of each step its layers come from: all layers up to that step.
    /// Differs: BuildKit lists other results too, where their layers happen to be packed.
    pub(super) fn layers(&self, graph: &Graph, layers: &[Descriptor]) -> BTreeMap<String, Value> {
        let vertices: Vertices<'_> = graph.vertices.iter().map(|one| (one.digest, &**one)).collect();
        let mut found = BTreeMap::new();
        let mut at = graph.root.map(|root| (root, layers.len()));
        while let Some((edge, count)) = at {
            let (Some(number), Some(vertex)) = (self.numbers.get(&edge.digest), vertices.get(&edge.digest))
            else {
                break;
            };
            let Some(chain) = layers.get(..count).filter(|chain| !chain.is_empty()) else {
                break;
            };
            let chain: Vec<_> = chain
                .iter()
                .map(|layer| Descriptor::new(&layer.media_type, layer.digest, layer.size))
                .collect();
            found.insert(format!("step{number}:{}", edge.index), json!([chain]));
            at = base(&vertices, vertex, edge.index)
                .and_then(|(base, own)| Some((base, count.checked_sub(own)?)));
        }
        found
    }
}

/// Ops from inputs to users, each input's own inputs before the next input.
fn in_order(ops: &BTreeMap<Digest, proto::Op>, last: Digest) -> Vec<Digest> {
    let inputs = |digest: &Digest| -> Vec<Digest> {
        let inputs = ops.get(digest).map(|op| op.inputs.as_slice()).unwrap_or_default();
        inputs
            .iter()
            .filter_map(|input| Digest::parse(&input.digest).ok())
            .collect()
    };
    let (mut order, mut seen) = (Vec::new(), std::collections::BTreeSet::from([last]));
    let mut stack = vec![(last, inputs(&last).into_iter())];
    while let Some((digest, rest)) = stack.last_mut() {
        match rest.next() {
            Some(next) if seen.insert(next) => stack.push((next, inputs(&next).into_iter())),
            Some(_) => {}
            None => {
                order.push(*digest);
                stack.pop();
            }
        }
    }
    order
}

/// What a result stands on, and how many layers it adds; `None` if it stands on nothing, or that cannot be told.
fn base(vertices: &Vertices<'_>, vertex: &Vertex, output: u32) -> Option<(llb::Edge, usize)> {
    let input = |index: u32| vertex.inputs.get(index as usize).copied();
    match &vertex.op {
        Op::Exec(exec) => {
            let mount = exec.mounts.iter().find(|mount| mount.result() == Some(output))?;
            Some((input(mount.input?)?, 1))
        }
        Op::File(file) => match file.actions.first()?.input {
            FileInput::Input(index) => Some((input(index)?, 1)),
            FileInput::Scratch | FileInput::Action(_) => None,
        },
        Op::Merge(_) => {
            let (first, others) = vertex.inputs.split_first()?;
            let own: Option<usize> = others.iter().map(|other| count(vertices, other)).sum();
            Some((*first, own?))
        }
        Op::Source(_) | Op::Diff(_) | Op::Build(_) | Op::Passthrough(_) => None,
    }
}

/// How many layers a result that stands on nothing has.
fn count(vertices: &Vertices<'_>, edge: &llb::Edge) -> Option<usize> {
    let (mut at, mut layers) = (*edge, 0);
    loop {
        let vertex = vertices.get(&at.digest)?;
        match base(vertices, vertex, at.index) {
            Some((next, own)) => {
                layers += own;
                at = next;
            }
            None if matches!(vertex.op, Op::Exec(_) | Op::File(_)) => return Some(layers + 1),
            None => return None,
        }
    }
}
