//! A stack of layers read as one tree, without mounting or unpacking anything.
//!
//! ```text
//! layers (bottom first): tree + contents ─┐
//!                                         ├─▶ node ─▶ child, children, resolve ─▶ entry, open
//! spans of a directory (top first) ───────┘
//! ```
//!
//! A [`Node`] is one path: which layer's record gives its attributes and, for a directory, the span of records that each
//! layer has beneath it. Whiteouts, opaque directories, and files over directories cut the list of spans; so a step down
//! looks only into layers that still have something there.
//!
//! Links are followed only by [`View::resolve`], inside this tree, at most [`MAX_LINKS`] of them.

mod accounts;
mod contents;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use tree::{Entry, Kind, RootPath};

pub use accounts::{Account, Group, groups, passwd};
pub use contents::{ContentReader, Contents, Held};

use crate::layer::{EntryRef, LayerError, NodeKind, TreeIndex};

/// How many symbolic links one lookup follows.
pub const MAX_LINKS: usize = 255;

/// One layer of a view: what it says, and where the bytes are.
#[derive(Debug, Clone)]
pub struct ViewLayer {
    /// The entries.
    pub tree: Arc<TreeIndex>,
    /// The bytes of its files.
    pub contents: Arc<Contents>,
}

/// Layers, merged. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct View {
    layers: Arc<Vec<ViewLayer>>,
    root: Arc<Vec<Span>>,
}

/// Which record of which layer: the identity of an inode, equal for all names of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// Position of the layer, from the bottom.
    pub layer: u32,
    /// Position of the record in the layer's index.
    pub index: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    layer: u32,
    records: Range<u32>,
}

/// One path of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    id: NodeId,
    /// None for all but directories.
    spans: Option<Vec<Span>>,
}

impl Node {
    /// The record that gives its attributes. For a hard link this is the link, see [`View::inode`].
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.spans.is_some()
    }
}

/// Where a path leads after its links are followed.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The path without links, as far as it exists; what does not exist is appended as it is.
    pub path: RootPath,
    /// What is there; none if nothing.
    pub node: Option<Node>,
}

/// A directory while its spans are collected, top layer first.
enum Merging {
    Hidden,
    Other(NodeId),
    Dir {
        spans: Vec<Span>,
        described: Option<NodeId>,
        implied: NodeId,
        closed: bool,
    },
}

impl Merging {
    fn begin(layer: u32, record: EntryRef<'_>, below: Range<u32>) -> Merging {
        let id = NodeId {
            layer,
            index: record.index(),
        };
        if record.is_whiteout() {
            return Merging::Hidden;
        }
        if !record.is_dir() {
            return Merging::Other(id);
        }
        Merging::Dir {
            spans: vec![Span {
                layer,
                records: below,
            }],
            described: (!record.is_implied()).then_some(id),
            implied: id,
            closed: record.is_opaque(),
        }
    }

    /// Takes in what a layer further down says of the same path.
    fn further(&mut self, layer: u32, record: EntryRef<'_>, below: Range<u32>) {
        let Merging::Dir {
            spans,
            described,
            closed,
            ..
        } = self
        else {
            return;
        };
        if *closed {
            return;
        }
        if !record.is_dir() {
            *closed = true;
            return;
        }
        spans.push(Span {
            layer,
            records: below,
        });
        if described.is_none() && !record.is_implied() {
            *described = Some(NodeId {
                layer,
                index: record.index(),
            });
        }
        *closed = record.is_opaque();
    }

    fn is_closed(&self) -> bool {
        match self {
            Merging::Hidden | Merging::Other(_) => true,
            Merging::Dir { closed, .. } => *closed,
        }
    }

    fn finish(self) -> Option<Node> {
        match self {
            Merging::Hidden => None,
            Merging::Other(id) => Some(Node { id, spans: None }),
            Merging::Dir {
                spans,
                described,
                implied,
                ..
            } => Some(Node {
                id: described.unwrap_or(implied),
                spans: Some(spans),
            }),
        }
    }
}

impl View {
    /// A view of `layers`, the lowest first.
    #[must_use]
    pub fn new(layers: Vec<ViewLayer>) -> Self {
        let mut root = Vec::with_capacity(layers.len());
        for (position, layer) in layers.iter().enumerate().rev() {
            let position = u32::try_from(position).expect("layers of an image are limited to 500");
            root.push(Span {
                layer: position,
                records: layer.tree.below(0),
            });
            if layer.tree.get(0).is_opaque() {
                break;
            }
        }
        View {
            layers: Arc::new(layers),
            root: Arc::new(root),
        }
    }

    /// The layers, the lowest first.
    #[must_use]
    pub fn layers(&self) -> &[ViewLayer] {
        &self.layers
    }

    /// This view with one layer more on top.
    #[must_use]
    pub fn with_layer(&self, layer: ViewLayer) -> View {
        let mut layers = self.layers.as_ref().clone();
        layers.push(layer);
        View::new(layers)
    }

    fn layer(&self, layer: u32) -> &ViewLayer {
        &self.layers[layer as usize]
    }

    /// The root directory. An empty view has none.
    #[must_use]
    pub fn root(&self) -> Option<Node> {
        let described = self
            .root
            .iter()
            .find(|span| !self.layer(span.layer).tree.get(0).is_implied());
        let top = described.or_else(|| self.root.first())?;
        Some(Node {
            id: NodeId {
                layer: top.layer,
                index: 0,
            },
            spans: Some(self.root.to_vec()),
        })
    }

    /// The record behind a node.
    ///
    /// # Panics
    /// If the node is of another view.
    #[must_use]
    pub fn record(&self, id: NodeId) -> EntryRef<'_> {
        self.layer(id.layer).tree.get(id.index)
    }

    /// What `dir` has under `name`.
    #[must_use]
    pub fn child(&self, dir: &Node, name: &[u8]) -> Option<Node> {
        let spans = dir.spans.as_ref()?;
        let parent = self.record(dir.id).path_bytes();
        let mut path = Vec::with_capacity(parent.len() + 1 + name.len());
        path.extend_from_slice(parent);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let mut merging: Option<Merging> = None;
        for span in spans {
            let tree = &self.layer(span.layer).tree;
            let Some(index) = tree.find_within(span.records.clone(), &path) else {
                continue;
            };
            let (record, below) = (tree.get(index), tree.below(index));
            match &mut merging {
                None => merging = Some(Merging::begin(span.layer, record, below)),
                Some(merging) => merging.further(span.layer, record, below),
            }
            if merging.as_ref().is_some_and(Merging::is_closed) {
                break;
            }
        }
        merging?.finish()
    }

    /// Everything directly in `dir`, sorted by name.
    #[must_use]
    pub fn children(&self, dir: &Node) -> Vec<Node> {
        let Some(spans) = &dir.spans else {
            return Vec::new();
        };
        if let [span] = &spans[..] {
            let tree = &self.layer(span.layer).tree;
            return tree
                .children(span.records.clone())
                .filter_map(|index| Merging::begin(span.layer, tree.get(index), tree.below(index)).finish())
                .collect();
        }
        let mut merged: BTreeMap<&[u8], Merging> = BTreeMap::new();
        for span in spans {
            let tree = &self.layer(span.layer).tree;
            for index in tree.children(span.records.clone()) {
                let (record, below) = (tree.get(index), tree.below(index));
                match merged.entry(record.name()) {
                    std::collections::btree_map::Entry::Vacant(slot) => {
                        slot.insert(Merging::begin(span.layer, record, below));
                    }
                    std::collections::btree_map::Entry::Occupied(mut slot) => {
                        slot.get_mut().further(span.layer, record, below);
                    }
                }
            }
        }
        merged.into_values().filter_map(Merging::finish).collect()
    }

    /// What is at `path` itself. A symbolic link on the way is not followed: nothing is beneath a link.
    #[must_use]
    pub fn lookup(&self, path: &RootPath) -> Option<Node> {
        let mut node = self.root()?;
        for name in path.components() {
            node = self.child(&node, name)?;
        }
        Some(node)
    }

    /// Follows `path` with all links on the way, and the last one too if `follow_last`, never leaving this tree.
    ///
    /// # Errors
    /// [`LayerError::TooManyLinks`].
    pub fn resolve(&self, path: &RootPath, follow_last: bool) -> Result<Resolved, LayerError> {
        let mut left: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        let Some(root) = self.root() else {
            return Ok(Resolved {
                path: path.clone(),
                node: None,
            });
        };
        let mut walked = vec![root];
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                if names.pop().is_some() {
                    walked.pop();
                }
                continue;
            }
            let here = walked.last().expect("the root is never popped");
            let Some(child) = self.child(here, &name) else {
                return Ok(Resolved {
                    path: rest_of(names, name, left)?,
                    node: None,
                });
            };
            let record = self.record(child.id);
            if record.kind() == NodeKind::Entry(Kind::Symlink) && (follow_last || !left.is_empty()) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(LayerError::TooManyLinks {
                        path: path.display().to_string(),
                    });
                }
                let target = record.link();
                if target.first() == Some(&b'/') {
                    walked.truncate(1);
                    names.clear();
                }
                let parts = target
                    .split(|&byte| byte == b'/')
                    .filter(|part| !part.is_empty() && *part != b".");
                left.extend(parts.rev().map(<[u8]>::to_vec));
                continue;
            }
            names.push(name);
            walked.push(child);
        }
        Ok(Resolved {
            path: joined(&names)?,
            node: walked.pop(),
        })
    }

    /// What is at `path` after all links.
    ///
    /// # Errors
    /// [`LayerError::TooManyLinks`].
    pub fn find(&self, path: &RootPath) -> Result<Option<Node>, LayerError> {
        Ok(self.resolve(path, true)?.node)
    }

    /// The record that holds attributes and contents of a node: for a hard link, of the file it names.
    ///
    /// # Errors
    /// [`LayerError::DanglingHardLink`].
    pub fn inode(&self, id: NodeId) -> Result<NodeId, LayerError> {
        let record = self.record(id);
        if record.kind() != NodeKind::Entry(Kind::HardLink) {
            return Ok(id);
        }
        let dangling = || LayerError::DanglingHardLink {
            path: String::from_utf8_lossy(record.path_bytes()).into_owned(),
            target: String::from_utf8_lossy(record.link()).into_owned(),
        };
        let tree = &self.layer(id.layer).tree;
        let target = RootPath::clean(record.link()).map_err(|_| dangling())?;
        if let Some(index) = tree.find(&target).filter(|&index| !tree.get(index).is_whiteout()) {
            if tree.get(index).kind() == NodeKind::Entry(Kind::File) {
                return Ok(NodeId {
                    layer: id.layer,
                    index,
                });
            }
            return Err(dangling());
        }
        let below = View::new(self.layers[..id.layer as usize].to_vec());
        let found = below.lookup(&target).ok_or_else(dangling)?;
        match below.record(found.id).kind() {
            NodeKind::Entry(Kind::File) => Ok(found.id),
            NodeKind::Entry(Kind::HardLink) => below.inode(found.id),
            _ => Err(dangling()),
        }
    }

    /// The entry at a node. Hard links are shown as the files they are; [`View::inode`] tells which are the same.
    ///
    /// # Errors
    /// [`LayerError::DanglingHardLink`].
    pub fn entry(&self, node: &Node) -> Result<Entry, LayerError> {
        let inode = self.inode(node.id)?;
        let mut entry = self.record(inode).entry().expect("a node is never a whiteout");
        if inode != node.id {
            entry.path = self.record(node.id).path();
        }
        Ok(entry)
    }

    /// The contents of a file.
    ///
    /// # Errors
    /// Those of opening it; [`tree::Error::NotAFile`] for anything else than a file.
    pub fn open(&self, node: &Node) -> Result<ContentReader<'_>, LayerError> {
        let inode = self.inode(node.id)?;
        let layer = self.layer(inode.layer);
        layer.contents.open(self.record(inode))
    }

    /// All of a file that is at most `limit` bytes long; none if there is no regular file at `path` (after links).
    ///
    /// # Errors
    /// [`LayerError::Limit`] for a longer one; those of reading.
    pub fn read_small(&self, path: &RootPath, limit: u64) -> Result<Option<Vec<u8>>, LayerError> {
        let Some(node) = self.find(path)? else {
            return Ok(None);
        };
        let entry = self.entry(&node)?;
        if entry.kind != Kind::File {
            return Ok(None);
        }
        if entry.size > limit {
            return Err(LayerError::Limit {
                what: "bytes in one small file",
                limit,
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size).unwrap_or(0));
        let reader = self.open(&node)?;
        std::io::Read::read_to_end(&mut std::io::Read::take(reader, limit + 1), &mut bytes)
            .map_err(LayerError::io("read contents"))?;
        if bytes.len() as u64 > limit {
            return Err(LayerError::Limit {
                what: "bytes in one small file",
                limit,
            });
        }
        Ok(Some(bytes))
    }

    /// Calls `visit` with everything beneath `top` in order, `top` itself left out; stops at the first error.
    ///
    /// # Errors
    /// Those of `visit`, and [`LayerError::DanglingHardLink`].
    pub fn walk<E: From<LayerError>>(
        &self,
        top: &Node,
        visit: &mut dyn FnMut(&Node, Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut stack = vec![self.children(top).into_iter()];
        while let Some(level) = stack.last_mut() {
            let Some(node) = level.next() else {
                stack.pop();
                continue;
            };
            visit(&node, self.entry(&node)?)?;
            if node.is_dir() {
                stack.push(self.children(&node).into_iter());
            }
        }
        Ok(())
    }
}

fn joined(names: &[Vec<u8>]) -> Result<RootPath, LayerError> {
    RootPath::clean(names.join(&b'/')).map_err(|cause| LayerError::Tree(cause.into()))
}

/// The path walked so far, the name that is missing, and what was to come (where `..` has its usual meaning).
fn rest_of(mut names: Vec<Vec<u8>>, missing: Vec<u8>, left: Vec<Vec<u8>>) -> Result<RootPath, LayerError> {
    names.push(missing);
    names.extend(left.into_iter().rev());
    joined(&names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Place, TreeBuilder};

    fn path(text: &str) -> RootPath {
        RootPath::clean(text).expect("a test's path is clean")
    }

    /// `d/` a directory, `f` a file, `l->t` a link, `h=t` a hard link, `-w` a whiteout, `o!` an opaque directory.
    fn layer(spec: &[&str]) -> ViewLayer {
        let mut builder = TreeBuilder::new();
        for item in spec {
            if let Some(gone) = item.strip_prefix('-') {
                builder.add_whiteout(&path(gone));
            } else if let Some((name, target)) = item.split_once("->") {
                let mut entry = Entry::new(path(name), Kind::Symlink, 0o777);
                entry.link = Some(target.into());
                builder.add(entry, Place::None);
            } else if let Some((name, target)) = item.split_once('=') {
                let mut entry = Entry::new(path(name), Kind::HardLink, 0o644);
                entry.link = Some(target.into());
                builder.add(entry, Place::None);
            } else if let Some(dir) = item.strip_suffix('/') {
                builder.add(Entry::dir(path(dir), 0o700), Place::None);
            } else if let Some(dir) = item.strip_suffix('!') {
                builder.set_opaque(&path(dir));
            } else {
                builder.add(Entry::new(path(item), Kind::File, 0o644), Place::None);
            }
        }
        ViewLayer {
            tree: Arc::new(builder.finish()),
            contents: Arc::new(Contents::None),
        }
    }

    fn listed(view: &View) -> Vec<String> {
        let mut all = Vec::new();
        if let Some(root) = view.root() {
            view.walk::<LayerError>(&root, &mut |node, entry| {
                all.push(format!(
                    "{}@{}",
                    String::from_utf8_lossy(entry.path.as_bytes()),
                    node.id().layer
                ));
                Ok(())
            })
            .expect("walks");
        }
        all
    }

    #[test]
    fn layers_merge_as_overlays_do() {
        let view = View::new(vec![
            layer(&["a/", "a/x", "a/y", "b", "c/", "c/z", "e/", "e/f"]),
            layer(&["-a/x", "a/w", "-b", "c", "e!", "e/g"]),
            layer(&["b/", "b/new", "c/", "c/later"]),
        ]);
        // `a` is only implied in the middle layer, so its attributes are those of the lowest.
        assert_eq!(
            listed(&view),
            [
                "a@0",
                "a/w@1",
                "a/y@0",
                "b@2",
                "b/new@2",
                "c@2",
                "c/later@2",
                "e@1",
                "e/g@1"
            ]
        );
        for gone in ["a/x", "c/z", "e/f", "b/old", "nothing/at/all"] {
            assert!(view.lookup(&path(gone)).is_none(), "{gone}");
        }
        assert_eq!(
            view.record(view.lookup(&path("a")).expect("there").id()).mode(),
            0o700
        );
        assert!(View::default().root().is_none());
    }

    #[test]
    fn links_are_followed_inside_only() {
        let view = View::new(vec![
            layer(&[
                "usr/bin/",
                "usr/bin/sh",
                "bin->usr/bin",
                "up->../../../usr",
                "loop->loop",
                "dir/abs->/bin/sh",
            ]),
            layer(&["far->dir/abs"]),
        ]);
        for (from, to) in [
            ("bin/sh", "usr/bin/sh"),
            ("up/bin/sh", "usr/bin/sh"),
            ("far", "usr/bin/sh"),
            ("bin/none/x", "usr/bin/none/x"),
            ("dir/../bin", "usr/bin"),
        ] {
            assert_eq!(
                view.resolve(&path(from), true).expect("resolves").path,
                path(to),
                "{from}"
            );
        }
        assert_eq!(
            view.resolve(&path("bin"), false).expect("resolves").path,
            path("bin")
        );
        assert!(matches!(
            view.find(&path("loop/x")),
            Err(LayerError::TooManyLinks { .. })
        ));
    }

    #[test]
    fn hard_links_reach_into_lower_layers() {
        let view = View::new(vec![layer(&["f", "g=f"]), layer(&["h=g", "k=none"])]);
        let id = |name: &str| view.inode(view.lookup(&path(name)).expect("there").id());
        assert_eq!(id("g").expect("whole"), id("f").expect("whole"));
        assert_eq!(id("h").expect("whole"), id("f").expect("whole"));
        assert!(matches!(id("k"), Err(LayerError::DanglingHardLink { .. })));
    }
}
