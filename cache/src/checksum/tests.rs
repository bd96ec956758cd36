//! Vectors exported by BuildKit (protocol/cache.md), and what follows from its rules.

use std::sync::Arc;

use tree::{Entry, Kind, RootPath};

use super::*;
use crate::{
    layer::{TarLayerWriter, TreeBuilder},
    view::{Contents, ViewLayer},
};

fn path(text: &str) -> RootPath {
    RootPath::clean(text).expect("a test's path is clean")
}

/// A layer of files `(path, contents)`; a path ending in `/` is a directory 0755, `a->b` a link.
fn view(files: &[(&str, &str)]) -> View {
    let mut sorted: Vec<(Entry, &str)> = files
        .iter()
        .map(|(name, contents)| {
            if let Some((name, target)) = name.split_once("->") {
                let mut entry = Entry::new(path(name), Kind::Symlink, 0o777);
                entry.link = Some(target.into());
                return (entry, "");
            }
            if name.ends_with('/') {
                return (Entry::dir(path(name), 0o755), "");
            }
            let mut entry = Entry::new(path(name), Kind::File, 0o644);
            entry.size = contents.len() as u64;
            (entry, *contents)
        })
        .collect();
    sorted.sort_by(|left, right| left.0.path.cmp(&right.0.path));
    let mut writer = TarLayerWriter::new(tempfile::tempfile().expect("temporary file"));
    for (entry, contents) in sorted {
        writer.add(&entry, contents.as_bytes()).expect("in order");
    }
    let (file, layer) = writer.finish().expect("writes");
    View::new(vec![ViewLayer {
        tree: Arc::new(layer.tree),
        contents: Arc::new(Contents::Tar(file)),
    }])
}

fn plain(path: &str) -> Selector {
    Selector {
        path: path.into(),
        follow_links: true,
        ..Selector::default()
    }
}

fn wildcard(path: &str) -> Selector {
    Selector {
        wildcard: true,
        ..plain(path)
    }
}

/// The root key of a content digest: what the cache stores (output index -1).
fn content_key(view: &View, selectors: &[Selector]) -> String {
    Digest::of(format!("{}@-1", checksum(view, selectors).expect("there")).as_bytes()).hex()
}

#[test]
fn equals_keys_exported_by_buildkit() {
    let context = view(&[("a.txt", "aaa\n"), ("sub/", ""), ("sub/s.txt", "s\n")]);
    assert_eq!(
        content_key(&context, &[plain("/a.txt"), plain("/sub")]),
        "b2e7c8b6dc2f571dc2bd622b26086977cc2c0f81a3a2525f960eb9a95f8d594f"
    );
    let app = view(&[
        ("app/", ""),
        ("app/a.txt", "aaa\n"),
        ("app/out", "x\n"),
        ("app/s.txt", "s\n"),
    ]);
    assert_eq!(
        content_key(&app, &[plain("/app")]),
        "50477aeb1383ec2c68c1011892802b2a241d5ec35db717b33e2a00db3dab8e6d"
    );
}

#[test]
fn names_and_times_of_a_file_do_not_count_but_attributes_do() {
    let one = |change: fn(&mut Entry)| {
        let mut entry = Entry::new(path("f"), Kind::File, 0o644);
        change(&mut entry);
        let digest: HeaderDigest = header::attributes(&entry).finalize().into();
        digest
    };
    let base = one(|_| {});
    assert_eq!(base, one(|entry| entry.path = path("other")));
    assert_eq!(base, one(|entry| entry.mtime.secs = 9));
    assert_eq!(
        base,
        one(|entry| drop(entry.xattrs.insert(b"security.selinux".to_vec(), vec![1])))
    );
    for change in [
        (|entry| entry.mode = 0o4644) as fn(&mut Entry),
        |entry| entry.uid = 1,
        |entry| entry.gid = 1,
        |entry| entry.kind = Kind::Fifo,
        |entry| drop(entry.xattrs.insert(b"user.x".to_vec(), vec![1])),
        |entry| drop(entry.xattrs.insert(b"security.capability".to_vec(), vec![1])),
    ] {
        assert_ne!(base, one(change));
    }
}

#[test]
fn links_and_absence() {
    let view = view(&[
        ("d/", ""),
        ("d/f", "x"),
        ("l->d/f", ""),
        ("dl->d", ""),
        ("loop->loop", ""),
    ]);
    let of = |selector: Selector| checksum_path(&view, &selector);
    assert_eq!(of(plain("/l")).expect("there"), of(plain("/d/f")).expect("there"));
    assert_eq!(
        of(plain("/dl/f")).expect("there"),
        of(plain("/d/f")).expect("there")
    );
    let unfollowed = Selector {
        path: "/l".into(),
        ..Selector::default()
    };
    assert_ne!(of(unfollowed).expect("there"), of(plain("/d/f")).expect("there"));
    let error = of(plain("/none")).expect_err("not there");
    assert_eq!(error.to_string(), "\"/none\": not found");
    assert!(matches!(of(plain("/loop")), Err(LayerError::TooManyLinks { .. })));
}

#[test]
fn the_root_of_a_context_counts_for_nothing() {
    let tree = |builder: TreeBuilder| {
        View::new(vec![ViewLayer {
            tree: Arc::new(builder.finish()),
            contents: Arc::new(Contents::None),
        }])
    };
    let sum = |header: &[u8]| {
        let mut bytes = vec![0];
        bytes.extend_from_slice(Digest::of(header).to_string().as_bytes());
        Digest::of(&bytes)
    };
    let empty = checksum_path(&tree(TreeBuilder::for_context()), &Selector::default()).expect("there");
    assert_eq!(empty, sum(b""));
    let header = b"namemode493uid0gid0size0typeflag5linknameunamegnamedevmajor0devminor0";
    let image = checksum_path(&tree(TreeBuilder::new()), &Selector::default()).expect("there");
    assert_eq!(image, sum(header));
    assert_eq!(
        checksum_path(&View::default(), &Selector::default()).expect("there"),
        sum(header)
    );
}

#[test]
fn digests_are_kept_with_the_layer() {
    let view = view(&[("a", "1"), ("b", "2"), ("c/", ""), ("c/d", "3")]);
    checksum(&view, &[]).expect("there");
    let tree = &view.layers()[0].tree;
    assert!(tree.has_new_digests());
    let known = ["a", "b", "c/d"]
        .iter()
        .all(|name| tree.digest(tree.find(&path(name)).expect("there")).is_some());
    assert!(known);
    // The same index over contents that cannot be opened: nothing is read again.
    let blind = ViewLayer {
        tree: Arc::clone(tree),
        contents: Arc::new(Contents::None),
    };
    assert_eq!(
        checksum(&View::new(vec![blind]), &[]).expect("all is known"),
        checksum(&view, &[]).expect("there")
    );
}

#[test]
fn wildcards_list_what_they_match() {
    let view = view(&[
        ("foo", "1"),
        ("fig", "2"),
        ("d/", ""),
        ("d/foo", "1"),
        ("d/sub/", ""),
        ("d/sub/x", "3"),
    ]);
    let of = |selector: Selector| checksum_path(&view, &selector).expect("there");
    let header = |name: &str| of(plain(name)).to_string();
    // One match of another name than the pattern's: a list of one.
    assert_eq!(
        of(wildcard("/fo*")),
        Digest::of(format!("\0foo{}", header("/foo")).as_bytes())
    );
    assert_eq!(of(wildcard("/fo?")), of(wildcard("/fo*")));
    let both = format!("\0fig{}\0foo{}", header("/fig"), header("/foo"));
    assert_eq!(of(wildcard("/f*")), Digest::of(both.as_bytes()));
    // The fixed prefix is cut: the same files elsewhere give the same list.
    assert_eq!(of(wildcard("/d/fo*")), of(wildcard("/fo*")));
    assert_eq!(of(wildcard("/none*")), Digest::of(b""));
}

#[test]
fn filters_list_parents_only_of_what_matches() {
    let view = view(&[
        ("d/", ""),
        ("d/a.go", "1"),
        ("d/b.md", "2"),
        ("d/e/", ""),
        ("d/e/c.md", "3"),
    ]);
    let with = |include: &[&str], exclude: &[&str]| Selector {
        include_patterns: include.iter().map(ToString::to_string).collect(),
        exclude_patterns: exclude.iter().map(ToString::to_string).collect(),
        ..plain("/d")
    };
    let of = |selector: Selector| checksum_path(&view, &selector).expect("there");
    let dir: HeaderDigest = header::attributes(&Entry::dir(path("d"), 0o755))
        .finalize()
        .into();
    let file = |name: &str| of(plain(name)).to_string();
    let only_go = format!("\0{}\0a.go{}", text(&dir), file("/d/a.go"));
    assert_eq!(of(with(&["*.go"], &[])), Digest::of(only_go.as_bytes()));
    assert_eq!(of(with(&[], &["**/*.md", "e"])), Digest::of(only_go.as_bytes()));
    assert_eq!(of(with(&["*.none"], &[])), Digest::of(b""));
    let deep = format!("\0{}\0e{}\0e\0c.md{}", text(&dir), text(&dir), file("/d/e/c.md"));
    assert_eq!(of(with(&["e/*.md"], &[])), Digest::of(deep.as_bytes()));
    let required = Selector {
        required_paths: vec!["/d/none".into()],
        ..with(&["*.go"], &[])
    };
    assert!(matches!(
        checksum_path(&view, &required),
        Err(LayerError::NotFound { .. })
    ));
}
