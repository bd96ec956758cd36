//! What happens when a build ends: what only it held goes, what others hold stays and goes on.
//!
//! ```text
//! end ─▶ holds given back ─▶ nodes nobody holds leave ─▶ wishes of those that stay worked out anew ─▶ runs stopped
//! ```
//!
//! A run nobody waits for any more is told to stop; its vertex stays if a build holds it, and runs again if
//! it is wanted again.

use std::collections::HashSet;

use tokio_util::task::TaskTracker;

use super::Core;
use crate::graph::{BuildId, EdgeId, Exec, Level, Node, NodeId};

/// What a build that ended leaves behind, to be dropped outside of all locks.
pub(crate) struct Leftovers<R> {
    /// The calls that were told to stop and have not returned.
    pub(crate) tasks: Vec<TaskTracker>,
    #[expect(
        clippy::vec_box,
        reason = "the graph gives nodes out in their boxes; moving them again would copy them"
    )]
    nodes: Vec<Box<Node<R>>>,
}

impl<R> Default for Leftovers<R> {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            nodes: Vec::new(),
        }
    }
}

impl<R: Clone> Core<R> {
    /// Ends a build: what no other build holds leaves the graph, and its calls are told to stop.
    pub(crate) fn end(&mut self, build: BuildId) -> Leftovers<R> {
        self.now = (self.clock)();
        let Some(ended) = self.builds.remove(&build) else {
            return Leftovers::default();
        };
        if let Some(root) = ended.root.and_then(|root| self.graph.edge_mut(root)) {
            root.builds.retain(|other| *other != build);
        }
        let stream = &ended.owner.stream;
        let mut gone = Vec::new();
        for id in &ended.nodes {
            let Some(node) = self.graph.get_mut(*id) else {
                continue;
            };
            node.holders.retain(|holder| *holder != build);
            node.groups.lock().retain(|(holder, _)| *holder != build.0);
            node.has_lost_holder = true;
            let mut others = node.holders.iter().filter_map(|holder| self.builds.get(holder));
            if !others.any(|other| other.owner.job == ended.owner.job) {
                node.feed.unwatch(stream);
            }
            if node.holders.is_empty() {
                gone.push(*id);
            }
        }
        let leftovers = self.remove(gone);
        if let Some(root) = ended.root {
            self.lower(root);
        }
        self.run();
        leftovers
    }

    fn remove(&mut self, gone: Vec<NodeId>) -> Leftovers<R> {
        let mut leftovers = Leftovers::default();
        let mut touched = HashSet::new();
        for id in gone {
            for edge in self.graph.edges_of(id) {
                self.index.forget(edge);
            }
            self.turns.withdraw(id);
            let Some(mut node) = self.graph.remove(id) else {
                continue;
            };
            node.cancel.cancel();
            leftovers.tasks.extend(node.tasks.take());
            touched.extend(node.inputs.iter().copied());
            touched.extend(node.edges.iter().flatten().filter_map(|edge| edge.merged));
            leftovers.nodes.push(node);
        }
        for id in touched {
            self.forget_users(id);
            self.lower(id);
        }
        leftovers
    }

    /// Drops the users of an edge that left the graph.
    fn forget_users(&mut self, id: EdgeId) {
        let Some(mut edge) = self.graph.take_edge(id) else {
            return;
        };
        edge.parents
            .retain(|(parent, _)| self.graph.get(parent.node).is_some());
        edge.followers
            .retain(|follower| self.graph.get(follower.node).is_some());
        self.graph.put_edge(id, edge);
    }

    /// Works out anew how far an edge is wanted, now that somebody who asked is gone; so too for what
    /// it had asked of its inputs. A run nobody waits for any more is stopped.
    fn lower(&mut self, id: EdgeId) {
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            let Some(edge) = self.graph.edge(id) else { continue };
            let asked = edge.parents.iter().filter_map(|(parent, input)| {
                Some(self.graph.edge(*parent)?.inputs.get(*input as usize)?.asked)
            });
            let is_awaited = !edge.builds.is_empty() || !edge.followers.is_empty();
            let wanted = if is_awaited {
                Level::Complete
            } else {
                asked.max().unwrap_or_default()
            };
            if wanted >= edge.wanted || edge.is_settled() {
                continue;
            }
            let inputs = self
                .graph
                .get(id.node)
                .map(|node| node.inputs.clone())
                .unwrap_or_default();
            let edge = self.graph.edge_mut(id).expect("it was there above");
            edge.wanted = wanted;
            for (input, source) in edge.inputs.iter_mut().zip(inputs) {
                if input.asked > wanted {
                    // Never less than what it keeps being told about: it stays among the users.
                    input.asked = wanted.max(Level::CacheFast);
                    open.push(source);
                }
            }
            self.stop_unwanted(id.node);
        }
    }

    fn stop_unwanted(&mut self, id: NodeId) {
        let Some(node) = self.graph.get_mut(id) else {
            return;
        };
        if node
            .edges
            .iter()
            .flatten()
            .any(|edge| edge.wanted == Level::Complete && !edge.is_settled())
        {
            return;
        }
        match &node.exec {
            Exec::Waiting(_) => {
                node.exec = Exec::NotAsked;
                self.turns.withdraw(id);
            }
            Exec::Running => {
                node.exec = Exec::Stopping;
                if let Some(cancel) = node.exec_cancel.take() {
                    cancel.cancel();
                }
            }
            Exec::NotAsked | Exec::Stopping | Exec::Done(_) => {}
        }
    }
}
