//! Raises questions for what an edge still misses, the cheapest first.
//!
//! | missing | asked |
//! |---|---|
//! | own cache map; inputs' keys by definition | at once, all together |
//! | a record that matches in all inputs | the cache, and nothing else while it loads |
//! | a match for some input | that input's deeper keys, then its content |
//! | any match at all | every input's result and content, then the run |

use crate::graph::{Content, Edge, EdgeId, Exec, Level, Question};
use crate::scheduler::{Command, Core};

use super::advance::Outlook;
use super::merge;

pub(super) fn ask<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>) {
    if edge.merged.is_some() || edge.load == Question::Open {
        return;
    }
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    let (inputs, ignore_cache) = (node.inputs.clone(), node.ignore_cache);
    let has_map = !node.maps.is_empty();
    for (index, source) in inputs.iter().enumerate() {
        ask_input(
            core,
            id,
            edge,
            index,
            *source,
            if ignore_cache {
                edge.wanted
            } else {
                Level::CacheFast
            },
        );
    }
    if !has_map {
        return ask_cache_map(core, id);
    }
    if edge.wanted == Level::Complete && !edge.candidates.is_empty() {
        return load(core, id, edge);
    }
    if edge.wanted < Level::CacheSlow {
        return;
    }
    if inputs.is_empty() {
        ask_source(core, id, edge)
    } else {
        ask_deeper(core, id, edge, &inputs)
    }
}

/// A source: its further cache maps, then the run.
fn ask_source<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>) {
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    if !node.has_all_maps {
        ask_cache_map(core, id);
    } else if edge.wanted == Level::Complete {
        run(core, id, edge, &[]);
    }
}

fn ask_deeper<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>, inputs: &[EdgeId]) {
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    let outlook = Outlook::of(core, node, edge);
    let is_hopeless = outlook.is_hopeless || node.ignore_cache;
    if edge.wanted == Level::Complete && (is_hopeless || outlook.is_exhausted) {
        return ask_results(core, id, edge, inputs);
    }
    for (index, source) in inputs.iter().enumerate() {
        let is_matched = !edge.inputs[index].matches.is_empty();
        if is_matched && outlook.is_unmatched {
            continue;
        }
        ask_input(core, id, edge, index, *source, Level::CacheSlow);
        let level = core
            .graph
            .edge(*source)
            .map_or(Level::Initial, |source| source.level);
        if !is_matched && level >= Level::CacheSlow {
            ask_content(core, id, edge, index, *source);
        }
    }
}

/// No match is possible without them: the results and contents of all inputs, then the run.
fn ask_results<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>, inputs: &[EdgeId]) {
    let mut is_ready = true;
    for (index, source) in inputs.iter().enumerate() {
        ask_input(core, id, edge, index, *source, Level::Complete);
        is_ready &= ask_content(core, id, edge, index, *source);
        is_ready &= core
            .graph
            .edge(*source)
            .is_some_and(|source| source.result.is_some());
    }
    if is_ready {
        run(core, id, edge, inputs);
    }
}

/// Asks an input to come up to `level`.
fn ask_input<R>(
    core: &mut Core<R>,
    id: EdgeId,
    edge: &mut Edge<R>,
    index: usize,
    source: EdgeId,
    level: Level,
) where
    R: Clone,
{
    let input = &mut edge.inputs[index];
    if input.asked >= level {
        return;
    }
    let is_first = input.asked == Level::Initial;
    input.asked = level;
    let Some(source_edge) = core.graph.edge_mut(source) else {
        return;
    };
    if is_first {
        source_edge
            .parents
            .push((id, u32::try_from(index).expect("inputs are below 2^32")));
    }
    if source_edge.failure.is_some() {
        // It failed before this edge asked; take the failure in at the next step.
        core.enqueue_again(id, edge);
    } else if source_edge.wanted < level {
        source_edge.wanted = level;
        core.enqueue(source);
    }
}

/// Asks for the content key of an input, and for the input itself if need be; says whether it is known
/// or not to be had.
fn ask_content<R: Clone>(
    core: &mut Core<R>,
    id: EdgeId,
    edge: &mut Edge<R>,
    index: usize,
    source: EdgeId,
) -> bool {
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    if !node.maps[0].deps[index].content {
        return true;
    }
    match node.contents[index] {
        Content::Known(_) => return true,
        Content::Open => return false,
        Content::NotAsked => {}
    }
    ask_input(core, id, edge, index, source, Level::Complete);
    let Some(result) = core.graph.edge(source).and_then(|source| source.result.clone()) else {
        return false;
    };
    let call = core.call(id.node).expect("the node is there");
    let node = core.graph.get_mut(id.node).expect("the node is there");
    node.contents[index] = Content::Open;
    core.commands.push(Command::Content {
        node: id.node,
        input: index,
        result: result.result,
        call,
    });
    false
}

fn ask_cache_map<R: Clone>(core: &mut Core<R>, id: EdgeId) {
    let now = core.now;
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    if node.map_question == Question::Open {
        return;
    }
    let call = core.call(id.node).expect("the node is there");
    let node = core.graph.get_mut(id.node).expect("the node is there");
    node.map_question = Question::Open;
    if node.inputs.is_empty() {
        node.feed.started(now, false);
    }
    core.commands.push(Command::CacheMap {
        node: id.node,
        index: node.maps.len(),
        call,
    });
}

fn load<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>) {
    edge.load = Question::Open;
    let call = core.call(id.node).expect("the edge that takes a step has a node");
    let candidates = edge.candidates.clone();
    core.commands.push(Command::Load {
        edge: id,
        candidates,
        call,
        began: core.now,
    });
}

/// Everything is here: waits for an equal edge if there is one, else for its own turn to run.
fn run<R: Clone>(core: &mut Core<R>, id: EdgeId, edge: &mut Edge<R>, inputs: &[EdgeId]) {
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    if node.is_exec_open() || merge::merge(core, id, edge) {
        return;
    }
    let results = inputs.iter().map(|source| {
        let source = core.graph.edge(*source).and_then(|source| source.result.as_ref());
        source
            .expect("the caller saw the result of every input")
            .result
            .clone()
    });
    let results = results.collect();
    let node = core
        .graph
        .get_mut(id.node)
        .expect("the edge that takes a step has a node");
    node.exec = Exec::Waiting(results);
    match node.op.only_waits() {
        true => core.turns.wait_for_nothing(id.node),
        false => core.turns.wait(id.node),
    }
}

/// Whether something is under way that will bring this edge on.
pub(super) fn has_open_question<R>(core: &Core<R>, id: EdgeId, edge: &Edge<R>) -> bool {
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    let waits_for = |(input, source): (&crate::graph::Input, &EdgeId)| {
        core.graph
            .edge(*source)
            .is_some_and(|source| source.is_queued || source.level < input.asked)
    };
    edge.load == Question::Open
        || edge.merged.is_some()
        || edge.is_queued
        || node.map_question == Question::Open
        || node.is_exec_open()
        || node
            .contents
            .iter()
            .any(|content| matches!(content, Content::Open))
        || edge.inputs.iter().zip(&node.inputs).any(waits_for)
}
