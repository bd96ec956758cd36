//! File actions on a small base, and what the layer then holds.

use std::sync::Arc;

use cache::{
    layer::{NodeKind, Place, TarLayer, TarLayerWriter},
    view::{Contents, View, ViewLayer},
};
use llb::op::{CopyAction, MkdirAction, MkfileAction, RmAction, SymlinkAction};
use tree::{Entry, Kind, RootPath, Timestamp};

use super::*;

const NOW: Timestamp = Timestamp { secs: 1000, nanos: 0 };

fn path(text: &str) -> RootPath {
    RootPath::clean(text).expect("a test's path is clean")
}

/// A view of one layer: `d/ 0755`, `f 0644 =contents`, `l ->target`, `h @target`; owner `:uid.gid`; all of time 5.
fn view(specs: &[&str]) -> View {
    let mut entries: Vec<(Entry, String)> = specs
        .iter()
        .map(|spec| {
            let mut words = spec.split(' ');
            let name = words.next().expect("a name");
            let kind = if name.ends_with('/') {
                Kind::Dir
            } else {
                Kind::File
            };
            let mut entry = Entry::new(path(name), kind, if kind == Kind::Dir { 0o755 } else { 0o644 });
            entry.mtime = Timestamp::from_secs(5);
            let mut contents = String::new();
            for word in words {
                if let Some(text) = word.strip_prefix('=') {
                    contents = text.to_owned();
                    entry.size = text.len() as u64;
                } else if let Some(target) = word.strip_prefix("->") {
                    (entry.kind, entry.link, entry.mode) = (Kind::Symlink, Some(target.into()), 0o777);
                } else if let Some(target) = word.strip_prefix('@') {
                    (entry.kind, entry.link) = (Kind::HardLink, Some(target.into()));
                } else if let Some(owner) = word.strip_prefix(':') {
                    let (uid, gid) = owner.split_once('.').expect("uid.gid");
                    (entry.uid, entry.gid) = (uid.parse().expect("uid"), gid.parse().expect("gid"));
                } else {
                    entry.mode = u32::from_str_radix(word, 8).expect("a mode");
                }
            }
            (entry, contents)
        })
        .collect();
    entries.sort_by(|left, right| left.0.path.cmp(&right.0.path));
    let mut writer = TarLayerWriter::new(tempfile::tempfile().expect("temporary file"));
    for (entry, contents) in entries {
        writer.add(&entry, contents.as_bytes()).expect("in order");
    }
    let (file, layer) = writer.finish().expect("writes");
    as_view(file, layer)
}

fn as_view(file: std::fs::File, layer: TarLayer) -> View {
    View::new(vec![ViewLayer {
        tree: Arc::new(layer.tree),
        contents: Arc::new(Contents::Tar(file)),
    }])
}

/// What a stage's layer holds: `path mode uid.gid @time [= contents]`.
fn layer_of(stage: &Stage) -> Vec<String> {
    let out = tempfile::tempfile().expect("temporary file");
    let (file, layer) = stage.write(out, &|| false).expect("writes");
    let contents = Contents::Tar(file);
    layer
        .tree
        .iter()
        .skip(1)
        .map(|record| {
            let name = String::from_utf8_lossy(record.path_bytes()).into_owned();
            let NodeKind::Entry(kind) = record.kind() else {
                return format!("-{name}");
            };
            let (uid, gid) = record.owner();
            let link = String::from_utf8_lossy(record.link()).into_owned();
            let rest = match kind {
                Kind::Dir => "/".to_owned(),
                Kind::Symlink => format!(" -> {link}"),
                Kind::HardLink => format!(" @{link}"),
                Kind::File if record.place() != Place::None => {
                    let mut text = String::new();
                    let mut reader = contents.open(record).expect("opens");
                    std::io::Read::read_to_string(&mut reader, &mut text).expect("reads");
                    format!(" ={text}")
                }
                _ => String::new(),
            };
            let (slash, rest) = if rest == "/" {
                ("/", "")
            } else {
                ("", rest.as_str())
            };
            format!(
                "{name}{slash} {:o} {uid}.{gid} @{}{rest}",
                record.mode(),
                record.mtime().secs
            )
        })
        .collect()
}

fn spool() -> std::io::Result<std::fs::File> {
    tempfile::tempfile()
}

fn copying(src: &str, dest: &str) -> CopyAction {
    CopyAction {
        src: src.into(),
        dest: dest.into(),
        mode: -1,
        timestamp: -1,
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..CopyAction::default()
    }
}

fn copied(
    base: &[&str],
    source: &[&str],
    action: &CopyAction,
    owner: Option<Ids>,
) -> Result<Vec<String>, FileError> {
    let mut stage = Stage::new(view(base), NOW);
    copy(&mut stage, &view(source), action, owner, &spool)?;
    Ok(layer_of(&stage))
}

const SOURCE: &[&str] = &[
    "a =A",
    "d/ 0700 :3.4",
    "d/b 0600 =B",
    "d/e/",
    "d/e/c.go =C",
    "l ->d",
    "h1 =H",
    "h2 @h1",
];

#[test]
fn files_and_directories_land_where_they_should() {
    for (src, dest, wanted) in [
        ("/a", "/x", &["x 644 0.0 @5 =A"][..]),
        ("/a", "/new/x", &["new/ 755 0.0 @1000", "new/x 644 0.0 @5 =A"]),
        ("/a", "/app/", &["app/ 711 7.8 @1000", "app/a 644 0.0 @5 =A"]),
        ("/a", "/app", &["app/ 711 7.8 @1000", "app/a 644 0.0 @5 =A"]),
        ("/a", "/lnk/", &["app/ 711 7.8 @1000", "app/a 644 0.0 @5 =A"]),
        // New: made as a parent, with the source's time. There already: keeps its attributes, takes the time.
        ("/d/e", "/n", &["n/ 755 0.0 @5", "n/c.go 644 0.0 @5 =C"]),
        ("/d/e", "/app", &["app/ 711 7.8 @5", "app/c.go 644 0.0 @5 =C"]),
        ("/l/b", "/x", &["x 600 0.0 @5 =B"]),
        ("/none*", "/nowhere/", &[]),
        (
            "/h*",
            "/k/",
            &["k/ 755 0.0 @1000", "k/h1 644 0.0 @5 =H", "k/h2 644 0.0 @5 =H"],
        ),
    ] {
        let layer = copied(
            &["app/ 711 :7.8", "lnk ->/app"],
            SOURCE,
            &copying(src, dest),
            None,
        )
        .expect(src);
        assert_eq!(layer, wanted, "{src} {dest}");
    }
}

#[test]
fn a_whole_tree_keeps_hard_links_links_and_attributes() {
    let layer = copied(&["d/ 0711", "d/b =old"], SOURCE, &copying("/", "/"), None).expect("copies");
    assert_eq!(
        layer,
        [
            "a 644 0.0 @5 =A",
            "d/ 700 3.4 @5",
            "d/b 600 0.0 @5 =B",
            "d/e/ 755 0.0 @5",
            "d/e/c.go 644 0.0 @5 =C",
            "h1 644 0.0 @5 =H",
            "h2 644 0.0 @5 @h1",
            "l 777 0.0 @5 -> d",
        ]
    );
}

#[test]
fn owner_and_mode_reach_the_parents_made() {
    let action = CopyAction {
        mode: 0o600,
        ..copying("/a", "/own/deep/")
    };
    let layer = copied(&[], SOURCE, &action, Some(Ids { uid: 7, gid: 8 })).expect("copies");
    assert_eq!(
        layer,
        [
            "own/ 600 7.8 @1000",
            "own/deep/ 600 7.8 @1000",
            "own/deep/a 600 7.8 @5 =A"
        ]
    );
    let action = CopyAction {
        mode_str: "u+x,g=w".into(),
        ..copying("/d", "/d")
    };
    let layer = copied(&[], SOURCE, &action, None).expect("copies");
    assert_eq!(
        layer[1..],
        ["d/b 720 0.0 @5 =B", "d/e/ 725 0.0 @5", "d/e/c.go 724 0.0 @5 =C"]
    );
    let action = CopyAction {
        timestamp: 9_000_000_000,
        ..copying("/d/e", "/p/q")
    };
    let layer = copied(&[], SOURCE, &action, None).expect("copies");
    assert_eq!(
        layer,
        ["p/ 755 0.0 @9", "p/q/ 755 0.0 @9", "p/q/c.go 644 0.0 @9 =C"]
    );
}

#[test]
fn patterns_choose_and_make_only_what_is_needed() {
    let only_go = CopyAction {
        include_patterns: vec!["**/*.go".into()],
        ..copying("/d", "/o")
    };
    let layer = copied(&[], SOURCE, &only_go, None).expect("copies");
    assert_eq!(
        layer,
        ["o/ 755 0.0 @5", "o/e/ 755 0.0 @1000", "o/e/c.go 644 0.0 @5 =C"]
    );
    let no_go = CopyAction {
        exclude_patterns: vec!["**/*.go".into()],
        ..copying("/d", "/o")
    };
    let layer = copied(&[], SOURCE, &no_go, None).expect("copies");
    assert_eq!(layer, ["o/ 755 0.0 @5", "o/b 600 0.0 @5 =B", "o/e/ 755 0.0 @5"]);
    let but_c = CopyAction {
        exclude_patterns: vec!["*".into(), "!e/c.go".into()],
        ..copying("/d", "/o")
    };
    let layer = copied(&[], SOURCE, &but_c, None).expect("copies");
    assert_eq!(
        layer,
        ["o/ 755 0.0 @5", "o/e/ 755 0.0 @1000", "o/e/c.go 644 0.0 @5 =C"]
    );
}

#[test]
fn conflicts_are_said() {
    let fails = |base: &[&str], action: &CopyAction| {
        copied(base, SOURCE, action, None).expect_err("fails").to_string()
    };
    assert_eq!(fails(&[], &copying("/none", "/x")), "/none: not found");
    assert_eq!(
        fails(&["e"], &copying("/d", "/")),
        "cannot copy to non-directory: /e"
    );
    assert_eq!(
        fails(&["b/"], &copying("/d", "/")),
        "cannot replace to directory /b with file"
    );
    assert_eq!(
        fails(&["x =1"], &copying("/a", "/x/")),
        "create directory /x: not a directory"
    );
    let strict = CopyAction {
        allow_empty_wildcard: false,
        ..copying("/n*", "/x")
    };
    assert_eq!(fails(&[], &strict), "/n*: not found");
    let replace = CopyAction {
        always_replace_existing: true,
        ..copying("/d", "/")
    };
    let layer = copied(&["b/", "b/in", "e"], SOURCE, &replace, None).expect("replaces");
    assert_eq!(
        layer,
        ["b 600 0.0 @5 =B", "e/ 755 0.0 @5", "e/c.go 644 0.0 @5 =C"]
    );
}

#[test]
fn making_and_removing() {
    let base = view(&[
        "d/",
        "d/x =1",
        "d/y =2",
        "d/sub/",
        "d/sub/z =3",
        "etc/",
        "etc/conf 0600 :1.2 =old",
        "l ->d",
    ]);
    let mut stage = Stage::new(base, NOW);
    let dir = |path: &str, make_parents| MkdirAction {
        path: path.into(),
        mode: 0o750,
        make_parents,
        owner: None,
        timestamp: -1,
    };
    mkdir(
        &mut stage,
        &dir("/l/new/deep", true),
        Some(Ids { uid: 1, gid: 1 }),
    )
    .expect("makes");
    mkdir(&mut stage, &dir("/d", false), None).expect("is there");
    assert_eq!(
        mkdir(&mut stage, &dir("/no/parent", false), None)
            .expect_err("fails")
            .to_string(),
        "/no: not found"
    );
    let file = |path: &str, data: &str| MkfileAction {
        path: path.into(),
        mode: 0o640,
        data: data.into(),
        owner: None,
        timestamp: 7_000_000_000,
    };
    mkfile(&mut stage, &file("/etc/conf", "new"), None).expect("overwrites");
    mkfile(&mut stage, &file("/f", ""), Some(Ids { uid: 5, gid: 6 })).expect("makes");
    let link = SymlinkAction {
        oldpath: "f".into(),
        newpath: "/g".into(),
        owner: None,
        timestamp: -1,
    };
    symlink(&mut stage, &link, None).expect("links");
    assert_eq!(
        symlink(&mut stage, &link, None).expect_err("fails").to_string(),
        "create link /f: file exists"
    );
    let rm = |path: &str, allow_wildcard, allow_not_found| RmAction {
        path: path.into(),
        allow_not_found,
        allow_wildcard,
    };
    remove(&mut stage, &rm("/d/[xy]", true, false)).expect("removes");
    remove(&mut stage, &rm("/d/sub", false, false)).expect("removes");
    remove(&mut stage, &rm("/none", false, true)).expect("allowed");
    assert!(remove(&mut stage, &rm("/none", false, false)).is_err());
    assert!(remove(&mut stage, &rm("/", false, true)).is_err());
    mkdir(&mut stage, &dir("/d/sub", false), None).expect("makes again");
    assert_eq!(
        layer_of(&stage),
        [
            "d/ 755 0.0 @1000",
            "d/new/ 750 1.1 @1000",
            "d/new/deep/ 750 1.1 @1000",
            "d/sub/ 750 0.0 @1000",
            "-d/sub/z",
            "-d/x",
            "-d/y",
            "etc/ 755 0.0 @1000",
            "etc/conf 600 1.2 @7 =new",
            "f 640 5.6 @7",
            "g 777 0.0 @1000 -> f",
        ]
    );
}

#[test]
fn archives_are_unpacked_where_asked() {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, contents: &str, link: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).expect("short");
        header.set_entry_type(kind);
        header.set_size(contents.len() as u64);
        header.set_mode(0o640);
        header.set_uid(3);
        header.set_gid(4);
        header.set_mtime(77);
        if !link.is_empty() {
            header.set_link_name(link).expect("short");
        }
        header.set_cksum();
        archive.append(&header, contents.as_bytes()).expect("memory");
    };
    add("dir/", tar::EntryType::Directory, "", "");
    add("dir/z", tar::EntryType::Regular, "Z", "");
    add("dir/a", tar::EntryType::Link, "", "dir/z");
    add(".wh.x", tar::EntryType::Regular, "W", "");
    add("lib/so", tar::EntryType::Regular, "S", "");
    let bytes = archive.into_inner().expect("memory");
    let packed = zstd::encode_all(&bytes[..], 1).expect("memory");
    let mut writer = TarLayerWriter::new(tempfile::tempfile().expect("temporary file"));
    let mut entry = Entry::new(path("a.tar.zst"), Kind::File, 0o644);
    entry.size = packed.len() as u64;
    writer.add(&entry, &packed[..]).expect("writes");
    let mut text = Entry::new(path("b.txt"), Kind::File, 0o644);
    text.size = 1;
    writer.add(&text, &b"B"[..]).expect("writes");
    let (file, layer) = writer.finish().expect("writes");
    let source = as_view(file, layer);
    let mut stage = Stage::new(view(&["o/", "o/lib ->usr", "o/usr/", "o/dir =file"]), NOW);
    let action = CopyAction {
        attempt_unpack: true,
        ..copying("/*", "/o/")
    };
    copy(&mut stage, &source, &action, Some(Ids { uid: 9, gid: 9 }), &spool).expect("unpacks");
    assert_eq!(
        layer_of(&stage),
        [
            "o/ 755 0.0 @1000",
            "o/.wh.x 640 9.9 @77 =W",
            "o/b.txt 644 9.9 @0 =B",
            "o/dir/ 640 9.9 @77",
            "o/dir/a 640 9.9 @77 =Z",
            "o/dir/z 640 9.9 @77 @o/dir/a",
            "o/usr/ 755 0.0 @1000",
            "o/usr/so 640 9.9 @77 =S",
        ]
    );
}

#[test]
fn owners_are_found_in_the_image_and_nobody_is_root() {
    use llb::op::{Chown, Owner};
    let image = view(&[
        "etc/",
        "etc/passwd =app:x:10:20::/:\nweb:x:30:40::/:",
        "etc/group =staff:x:50:",
    ]);
    let real = {
        let mut stage = Stage::new(image, NOW);
        let data = b"app:x:10:20::/:\nweb:x:30:40::/:\n".to_vec();
        let action = MkfileAction {
            path: "/etc/passwd".into(),
            mode: 0o644,
            data,
            owner: None,
            timestamp: -1,
        };
        mkfile(&mut stage, &action, None).expect("writes");
        let (file, layer) = stage
            .write(tempfile::tempfile().expect("temporary file"), &|| false)
            .expect("writes");
        let group = view(&["etc/", "etc/group =staff:x:50:"]);
        group.with_layer(ViewLayer {
            tree: Arc::new(layer.tree),
            contents: Arc::new(Contents::Tar(file)),
        })
    };
    let name = |name: &str| {
        Some(Owner::Name {
            name: name.into(),
            input: Some(0),
        })
    };
    for (user, group, wanted) in [
        (name("web"), None, (30, 40)),
        (name("web"), name("staff"), (30, 50)),
        (name("none"), name("none"), (0, 0)),
        (name("app"), name("none"), (10, 20)),
        (Some(Owner::Id(7)), None, (7, 7)),
        (Some(Owner::Id(7)), Some(Owner::Id(8)), (7, 8)),
        (None, Some(Owner::Id(8)), (0, 8)),
    ] {
        let chown = Chown { user, group };
        let ids = find_owner(Some(&chown), &mut |_| Ok(real.clone()))
            .expect("reads")
            .expect("asked");
        assert_eq!((ids.uid, ids.gid), wanted, "{chown:?}");
    }
    let nowhere = || {
        Some(Owner::Name {
            name: "web".into(),
            input: None,
        })
    };
    for (user, group) in [
        (nowhere(), None),
        (None, nowhere()),
        (Some(Owner::Id(7)), nowhere()),
    ] {
        let chown = Chown { user, group };
        let refused =
            find_owner(Some(&chown), &mut |_| Ok(real.clone())).expect_err("nobody has a name there");
        assert!(matches!(refused, FileError::NobodyHere { .. }), "{refused}");
    }
}
