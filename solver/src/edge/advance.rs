//! Works out how far an edge has come.
//!
//! | level | an edge with inputs has it when |
//! |---|---|
//! | `CacheFast` | its cache map is here and every input is at least `CacheFast` |
//! | `CacheSlow` | no further key can be found without running it: every input has a match or can have none; or one can have none, whatever the others do |
//! | `Complete` | the result is here |
//!
//! An edge without inputs is `CacheFast` with its first cache map and `CacheSlow` with its last.

use crate::graph::{Content, Edge, EdgeId, Level, Node};
use crate::scheduler::Core;

pub(super) fn advance<R>(core: &Core<R>, id: EdgeId, edge: &mut Edge<R>) {
    let level = if edge.result.is_some() {
        Level::Complete
    } else {
        level(core, id, edge)
    };
    edge.level = edge.level.max(level);
}

fn level<R>(core: &Core<R>, id: EdgeId, edge: &Edge<R>) -> Level {
    let node = core
        .graph
        .get(id.node)
        .expect("the edge that takes a step has a node");
    if node.inputs.is_empty() {
        return match node.maps.is_empty() {
            true => Level::Initial,
            false if node.has_all_maps => Level::CacheSlow,
            false => Level::CacheFast,
        };
    }
    if node.ignore_cache {
        return Level::CacheSlow;
    }
    if node.maps.is_empty() {
        return Level::Initial;
    }
    let outlook = Outlook::of(core, node, edge);
    if outlook.is_hopeless || outlook.is_exhausted {
        Level::CacheSlow
    } else if outlook.lowest_input >= Level::CacheFast {
        Level::CacheFast
    } else {
        Level::Initial
    }
}

/// What can still be hoped for from the inputs' keys.
pub(super) struct Outlook {
    pub(super) lowest_input: Level,
    /// Some input has no match and cannot get one.
    pub(super) is_hopeless: bool,
    /// No input can get a further match without a result that is not needed otherwise.
    pub(super) is_exhausted: bool,
    /// Some input has no match.
    pub(super) is_unmatched: bool,
}

impl Outlook {
    pub(super) fn of<R>(core: &Core<R>, node: &Node<R>, edge: &Edge<R>) -> Self {
        let mut outlook = Self {
            lowest_input: Level::Complete,
            is_hopeless: false,
            is_exhausted: true,
            is_unmatched: false,
        };
        for (index, input) in edge.inputs.iter().enumerate() {
            let level = core
                .graph
                .edge(node.inputs[index])
                .map_or(Level::Initial, |source| source.level);
            outlook.lowest_input = outlook.lowest_input.min(level);
            let has_content = node.maps.first().is_some_and(|map| map.deps[index].content);
            let content_is_open = has_content && !matches!(node.contents[index], Content::Known(_));
            let is_matched = !input.matches.is_empty();
            let is_exhausted = level >= Level::CacheSlow && (is_matched || !content_is_open);
            outlook.is_unmatched |= !is_matched;
            outlook.is_hopeless |= !is_matched && is_exhausted;
            outlook.is_exhausted &= is_exhausted;
        }
        outlook
    }
}
