//! Takes in what arrived since the edge's last step.
//!
//! ```text
//! equal edge's result ─┐
//! op ran ──────────────┼─▶ result
//! keys of inputs ─▶ matches per input ─ in all inputs ─▶ keys of this edge ─▶ candidates to load
//! failures ────────────┴─▶ failure
//! ```

use std::sync::Arc;

use keys::{CacheKey, Dependency, KeyId, Record};

use crate::error::VertexError;
use crate::graph::{Cached, Content, Edge, EdgeId, Exec, Graph, Level, Node};
use crate::keys::LOCAL;
use crate::op::CacheMap;
use crate::scheduler::Core;

use super::answer;

pub(super) fn absorb<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>) {
    if let Some(target) = edge.merged {
        return follow(core, id, edge, target);
    }
    if let Some(failure) = failure(core, id, edge) {
        edge.failure = Some(failure);
        return;
    }
    if edge.wanted == Level::Complete && take_run(core, id, edge) {
        return;
    }
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    if node.ignore_cache {
        return;
    }
    if node.inputs.is_empty() {
        own_keys(core, id, edge);
    } else if look_up(core, id, edge) {
        intersect(core, id, edge);
    }
}

/// Takes over how the equal edge ended.
fn follow<R: Clone>(core: &Core<R>, id: EdgeId, edge: &mut Edge<R>, target: EdgeId) {
    let Some(target) = core.graph.edge(target) else {
        return;
    };
    edge.result = target.result.clone();
    edge.failure = target.failure.as_ref().map(|failure| {
        // The builds that wait here know this vertex, not the one that ran.
        let node = core
            .graph
            .get(id.node)
            .expect("the edge that takes a step has a node");
        let (digest, name) = (node.info.digest, node.info.name.clone());
        Arc::new(VertexError {
            digest,
            name,
            phase: failure.phase,
            cause: failure.cause.clone(),
        })
    });
}

/// The failure of the vertex itself, or of an input that was asked for something.
fn failure<R>(core: &Core<R>, id: EdgeId, edge: &Edge<R>) -> Option<Arc<VertexError>> {
    let node = core.graph.get(id.node)?;
    let of_inputs = edge
        .inputs
        .iter()
        .zip(&node.inputs)
        .filter(|(input, _)| input.asked > Level::Initial);
    let mut of_inputs = of_inputs.filter_map(|(_, source)| core.graph.edge(*source)?.failure.clone());
    node.failure.clone().or_else(|| of_inputs.next())
}

/// Takes this edge's share of what the op gave, and files it.
fn take_run<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>) -> bool {
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    let Exec::Done(results) = &node.exec else {
        return false;
    };
    let Some((result, name)) = results.get(id.output as usize) else {
        let count = results.len();
        edge.failure = Some(answer::internal(
            node,
            &format!("output {} is asked for, the op gave {count}", id.output),
        ));
        return true;
    };
    let keys = result_keys(&core.graph, id);
    let record = name.clone().map(|result| Record {
        result,
        created: core.now,
    });
    edge.result = Some(Cached {
        result: result.clone(),
        keys: keys.clone(),
    });
    for key in &keys {
        core.stores.file(key, record.as_ref());
    }
    true
}

/// The keys of an output whose inputs are all here.
pub(super) fn result_keys<R>(graph: &Graph<R>, id: EdgeId) -> Vec<CacheKey> {
    let node = graph.get(id.node).expect("the edge that takes a step has a node");
    let output = output(id);
    if node.inputs.is_empty() {
        return node.maps.iter().map(|map| root(map, output)).collect();
    }
    let Some(map) = node.maps.first() else {
        return Vec::new();
    };
    vec![CacheKey::inner(
        map.digest,
        output,
        alternatives(graph, node, map),
    )]
}

fn output(id: EdgeId) -> i32 {
    i32::try_from(id.output).expect("a definition's outputs are checked to be below 2^31")
}

fn root(map: &CacheMap, output: i32) -> CacheKey {
    if map.is_local {
        CacheKey::local(map.digest, output)
    } else {
        CacheKey::root(map.digest, output)
    }
}

/// Every key each input is known by now.
fn alternatives<R>(graph: &Graph<R>, node: &Node<R>, map: &CacheMap) -> Vec<Vec<Dependency>> {
    let of_input = |(index, source): (usize, &EdgeId)| {
        let source = graph.edge(*source);
        let keys = source.map_or(&[][..], |source| match &source.result {
            Some(result) => &result.keys,
            None => &source.keys,
        });
        let selector = map.deps[index].selector;
        let by_definition = keys.iter().map(|key| Dependency {
            key: key.clone(),
            selector,
        });
        let by_content = match &node.contents[index] {
            Content::Known(Some(key)) => Some(Dependency {
                key: key.clone(),
                selector: None,
            }),
            _ => None,
        };
        by_definition.chain(by_content).collect()
    };
    node.inputs.iter().enumerate().map(of_input).collect()
}

/// The keys of an op without inputs: one per cache map.
fn own_keys<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>) {
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    for map in &node.maps[edge.maps_seen..] {
        let key = root(map, output(id));
        for (slot, found) in core.stores.ids(&node.imports, &key) {
            edge.candidates.extend(core.stores.candidates(&key, slot, &found));
        }
        edge.keys.push(key);
    }
    edge.maps_seen = node.maps.len();
    sort_candidates(edge);
}

/// Looks up what the inputs' new keys lead to; says whether anything was found.
fn look_up<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>) -> bool {
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    let Some(map) = node.maps.first() else {
        return false;
    };
    let link = |index: usize, selector| keys::Link {
        input: u32::try_from(index).expect("a definition's inputs are checked to be below 2^32"),
        output: output(id),
        digest: map.digest,
        selector,
    };
    let mut has_found = false;
    for (index, input) in edge.inputs.iter_mut().enumerate() {
        let before = input.matches.len();
        if let Some(source) = core.graph.edge(node.inputs[index]) {
            for key in &source.keys[input.probed..] {
                let link = link(index, map.deps[index].selector);
                input.matches.extend(core.stores.query(&node.imports, key, &link));
            }
            input.probed = source.keys.len();
        }
        if let (Content::Known(Some(key)), false) = (&node.contents[index], input.probed_content) {
            let link = link(index, None);
            input.matches.extend(core.stores.query(&node.imports, key, &link));
            input.probed_content = true;
        }
        if input.matches.len() > before {
            input.matches.sort_unstable();
            input.matches.dedup();
            has_found = true;
        }
    }
    has_found
}

/// What every input leads to is a key of this edge.
fn intersect<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>) {
    let Some((first, others)) = edge.inputs.split_first() else {
        return;
    };
    let in_all = |found: &&(usize, KeyId)| {
        others
            .iter()
            .all(|other| other.matches.binary_search(found).is_ok())
    };
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    let has_content = node
        .contents
        .iter()
        .any(|content| matches!(content, Content::Known(Some(_))));
    let common: Vec<_> = first.matches.iter().filter(in_all).copied().collect();
    for (slot, found) in common {
        if edge.found.contains(&(slot, found)) {
            continue;
        }
        edge.found.push((slot, found));
        for key in result_keys(&core.graph, id) {
            core.stores.remember(&key, slot, found);
            // What an imported cache knows is filed when its result was had.
            if has_content && slot == LOCAL {
                core.stores.link_alternatives(&key);
            }
            edge.candidates.extend(core.stores.candidates(&key, slot, &found));
            edge.keys.push(key);
        }
    }
    sort_candidates(edge);
}

/// Those of the local store first, then newest first.
///
/// Differs: BuildKit takes the newest wherever it is; what is here need not be fetched.
fn sort_candidates<R>(edge: &mut Edge<R>) {
    edge.candidates.sort_by(|a, b| {
        let is_remote = (a.slot != LOCAL).cmp(&(b.slot != LOCAL));
        is_remote
            .then(b.record.created.cmp(&a.record.created))
            .then(a.slot.cmp(&b.slot))
    });
    edge.drop_tried();
}
