//! The tar of what one tree has that another has not: two results of which neither need stand on the other.
//!
//! ```text
//! lower view, upper view ─▶ both walked in order ─┬─ only above, or changed ─▶ entry
//!                                                ├─ only below ─▶ whiteout
//!                                                └─ the same ─▶ nothing
//! ```
//!
//! A directory is listed when it changed itself or something beneath it is listed. Files are the same if everything said
//! of them is, and their contents are; contents are read only when all else is equal.
use std::collections::HashMap;
use std::io::{self, Read, Write};

use tree::{Entry, Kind, RootPath};

use super::{LayerError, TarLayer, TarLayerWriter};
use crate::view::{Node, NodeId, View};

const CHUNK: usize = 64 << 10;

/// Writes what `upper` has and `lower` has not as a layer to `out`.
///
/// # Errors
/// Those of reading contents and writing.
pub fn diff_views<W: Write>(lower: &View, upper: &View, out: W) -> Result<(W, TarLayer), LayerError> {
    let mut diff = Diff {
        lower,
        upper,
        written: HashMap::new(),
        parents: Vec::new(),
        writer: TarLayerWriter::new(out),
    };
    let mut levels = vec![Level::new(lower, upper, lower.root(), upper.root(), 0)];
    while let Some(level) = levels.last_mut() {
        let Some(pair) = level.next(lower, upper) else {
            let depth = level.depth;
            levels.pop();
            diff.parents.truncate(depth.saturating_sub(1));
            continue;
        };
        if let Some((below, above)) = diff.pair(pair)? {
            levels.push(Level::new(lower, upper, below, Some(above), diff.parents.len()));
        }
    }
    diff.writer.finish()
}

/// One directory of both sides, the children still to come last first.
struct Level {
    below: Vec<Node>,
    above: Vec<Node>,
    /// Directories entered so far, this one included.
    depth: usize,
}

/// One name: what it is below and above.
type Pair = (Option<Node>, Option<Node>);

impl Level {
    fn new(lower: &View, upper: &View, below: Option<Node>, above: Option<Node>, depth: usize) -> Level {
        let children = |view: &View, node: Option<Node>| {
            let mut children = node
                .filter(Node::is_dir)
                .map(|node| view.children(&node))
                .unwrap_or_default();
            children.reverse();
            children
        };
        Level {
            below: children(lower, below),
            above: children(upper, above),
            depth,
        }
    }

    fn next(&mut self, lower: &View, upper: &View) -> Option<Pair> {
        let path = |view: &View, node: Option<&Node>| node.map(|node| view.record(node.id()).path());
        let (below, above) = (path(lower, self.below.last()), path(upper, self.above.last()));
        match (below, above) {
            (None, None) => None,
            (Some(_), None) => Some((self.below.pop(), None)),
            (None, Some(_)) => Some((None, self.above.pop())),
            (Some(below), Some(above)) => match below.cmp(&above) {
                std::cmp::Ordering::Less => Some((self.below.pop(), None)),
                std::cmp::Ordering::Greater => Some((None, self.above.pop())),
                std::cmp::Ordering::Equal => Some((self.below.pop(), self.above.pop())),
            },
        }
    }
}

struct Diff<'a, W: Write> {
    lower: &'a View,
    upper: &'a View,
    /// Files written so far, so that a further name of one is a link.
    written: HashMap<NodeId, RootPath>,
    /// Directories entered that were not written yet; `None` for one that was.
    parents: Vec<Option<Entry>>,
    writer: TarLayerWriter<W>,
}

impl<W: Write> Diff<'_, W> {
    /// Writes what is to be said of one name; answers the directories to enter.
    fn pair(&mut self, pair: Pair) -> Result<Option<(Option<Node>, Node)>, LayerError> {
        let (below, above) = match pair {
            (Some(below), None) => {
                self.write_parents()?;
                self.writer.add_whiteout(&self.lower.record(below.id()).path())?;
                return Ok(None);
            }
            (below, Some(above)) => (below, above),
            (None, None) => return Ok(None),
        };
        let entry = self.upper.entry(&above)?;
        let is_same = match &below {
            Some(below) => self.is_same(below, &above, &entry)?,
            None => false,
        };
        if !entry.is_dir() {
            if !is_same {
                self.write(&above, entry)?;
            }
            return Ok(None);
        }
        self.parents.push(Some(entry));
        if !is_same {
            self.write_parents()?;
        }
        // What was no directory below has nothing to compare with.
        Ok(Some((below.filter(Node::is_dir), above)))
    }

    fn is_same(&self, below: &Node, above: &Node, entry: &Entry) -> Result<bool, LayerError> {
        let before = self.lower.entry(below)?;
        if before != *entry {
            return Ok(false);
        }
        if entry.kind != Kind::File || entry.size == 0 {
            return Ok(true);
        }
        let (mut one, mut other) = (self.lower.open(below)?, self.upper.open(above)?);
        let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
        loop {
            let (one, other) = (fill(&mut one, &mut left)?, fill(&mut other, &mut right)?);
            if left[..one] != right[..other] {
                return Ok(false);
            }
            if one == 0 {
                return Ok(true);
            }
        }
    }

    fn write(&mut self, node: &Node, mut entry: Entry) -> Result<(), LayerError> {
        self.write_parents()?;
        if entry.kind != Kind::File {
            return self.writer.add(&entry, io::empty());
        }
        let inode = self.upper.inode(node.id())?;
        if let Some(first) = self.written.get(&inode) {
            entry.link = Some(first.as_bytes().to_vec());
            entry.kind = Kind::HardLink;
            return self.writer.add(&entry, io::empty());
        }
        self.written.insert(inode, entry.path.clone());
        let contents = self.upper.open(node)?;
        self.writer.add(&entry, contents)
    }

    fn write_parents(&mut self) -> Result<(), LayerError> {
        for parent in &mut self.parents {
            if let Some(entry) = parent.take() {
                self.writer.add(&entry, io::empty())?;
            }
        }
        Ok(())
    }
}

/// Reads until the chunk is full or the contents end.
fn fill(reader: &mut impl Read, chunk: &mut [u8]) -> Result<usize, LayerError> {
    let mut filled = 0;
    while filled < chunk.len() {
        match reader.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => {
                return Err(LayerError::Io {
                    action: "compare two files",
                    cause,
                });
            }
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Contents, ViewLayer};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use tree::Timestamp;

    /// A layer of `(path, contents)`; a path that ends in a slash is a directory, contents beginning with `->` a link,
    /// with `=` a further name of a file.
    fn layer(files: &BTreeMap<&str, &str>) -> ViewLayer {
        let mut writer = TarLayerWriter::new(tempfile::tempfile().expect("a file"));
        let mut entries: Vec<(Entry, &str)> = files
            .iter()
            .map(|(path, contents)| {
                let clean = RootPath::clean(path.trim_end_matches('/')).expect("clean");
                let mut entry = Entry::dir(clean, 0o755);
                entry.mtime = Timestamp::from_secs(1000);
                if !path.ends_with('/') {
                    let link = contents.strip_prefix("->");
                    entry.kind = if link.is_some() { Kind::Symlink } else { Kind::File };
                    entry.link = link.map(|link| link.as_bytes().to_vec());
                    entry.size = if link.is_some() { 0 } else { contents.len() as u64 };
                }
                (entry, *contents)
            })
            .collect();
        entries.sort_by(|(one, _), (other, _)| one.path.cmp(&other.path));
        for (entry, contents) in &entries {
            let contents = if entry.kind == Kind::File {
                contents.as_bytes()
            } else {
                &[]
            };
            writer.add(entry, contents).expect("in order");
        }
        let (file, layer) = writer.finish().expect("finished");
        ViewLayer {
            tree: Arc::new(layer.tree),
            contents: Arc::new(Contents::Tar(file)),
        }
    }

    fn difference(lower: &View, upper: &View) -> (ViewLayer, Vec<String>) {
        let (file, layer) =
            diff_views(lower, upper, tempfile::tempfile().expect("a file")).expect("compared");
        let names = layer.tree.iter().skip(1).map(|record| {
            let sign = if record.is_whiteout() { "-" } else { "+" };
            format!("{sign}{}", record.path().display())
        });
        let names = names.collect();
        let layer = ViewLayer {
            tree: Arc::new(layer.tree),
            contents: Arc::new(Contents::Tar(file)),
        };
        (layer, names)
    }

    fn picture(view: &View) -> Vec<String> {
        let mut lines = Vec::new();
        let root = view.root().expect("a root");
        let seen = view.walk::<LayerError>(&root, &mut |node, entry| {
            let mut contents = String::new();
            if entry.kind == Kind::File {
                view.open(node)?.read_to_string(&mut contents).expect("readable");
            }
            lines.push(format!(
                "{} {:?} {:?} {contents}",
                entry.path.display(),
                entry.kind,
                entry.link
            ));
            Ok(())
        });
        seen.expect("readable");
        lines
    }

    #[test]
    fn what_is_added_changed_and_gone() {
        let lower = BTreeMap::from([
            ("a/", ""),
            ("a/same", "x"),
            ("a/changed", "one"),
            ("a/gone", "x"),
            ("b/", ""),
            ("b/deep/", ""),
            ("b/deep/f", "x"),
            ("dir-to-file/", ""),
            ("dir-to-file/x", "x"),
            ("file-to-dir", "x"),
        ]);
        let upper = BTreeMap::from([
            ("a/", ""),
            ("a/same", "x"),
            ("a/changed", "two"),
            ("a/new", "x"),
            ("dir-to-file", "now"),
            ("file-to-dir/", ""),
            ("file-to-dir/x", "x"),
            ("untouched/", ""),
        ]);
        let (lower, upper) = (View::new(vec![layer(&lower)]), View::new(vec![layer(&upper)]));
        let (made, names) = difference(&lower, &upper);
        assert_eq!(
            names,
            [
                "+/a",
                "+/a/changed",
                "-/a/gone",
                "+/a/new",
                "-/b",
                "+/dir-to-file",
                "+/file-to-dir",
                "+/file-to-dir/x",
                "+/untouched"
            ]
        );
        assert_eq!(picture(&lower.with_layer(made)), picture(&upper));
        assert!(difference(&upper, &upper).1.is_empty());
    }

    fn trees() -> impl Strategy<Value = BTreeMap<&'static str, &'static str>> {
        let content = prop::sample::select(vec!["", "x", "y", "->x"]);
        let one = (
            prop::sample::select(vec!["a", "a/b", "a/c", "a/b/d", "e", "e/f", "g"]),
            content,
            any::<bool>(),
        );
        proptest::collection::vec(one, 0..8).prop_map(|found| {
            let mut tree: BTreeMap<&'static str, &'static str> = BTreeMap::new();
            for (path, content, is_dir) in found {
                let as_dir = match path {
                    "a" => "a/",
                    "a/b" => "a/b/",
                    "e" => "e/",
                    other => other,
                };
                // What is inside needs its directories; what is no directory can have nothing inside.
                let needs: &[&'static str] = match path {
                    "a/b" | "a/c" => &["a/"],
                    "a/b/d" => &["a/", "a/b/"],
                    "e/f" => &["e/"],
                    _ => &[],
                };
                let bare = |dir: &str| dir.trim_end_matches('/').to_owned();
                if needs.iter().any(|dir| tree.contains_key(bare(dir).as_str()))
                    || tree.contains_key(as_dir)
                    || tree.contains_key(path)
                {
                    continue;
                }
                needs.iter().for_each(|dir| {
                    tree.insert(dir, "");
                });
                if is_dir && as_dir.ends_with('/') {
                    tree.insert(as_dir, "");
                } else {
                    tree.insert(path, content);
                }
            }
            tree
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn lower_and_difference_are_upper(lower in trees(), upper in trees()) {
            let (lower, upper) = (View::new(vec![layer(&lower)]), View::new(vec![layer(&upper)]));
            let (made, names) = difference(&lower, &upper);
            prop_assert_eq!(picture(&lower.with_layer(made)), picture(&upper), "{:?}", names);
        }
    }
}
