//! Layers through all their forms on a real file system, and archives from strangers.

use std::{collections::BTreeMap, io::Read, path::Path, process::Command, sync::Arc};

use tree::{Entry, Kind, Root, RootPath, Timestamp};

use super::*;
use crate::view::{Contents, View, ViewLayer};

fn path(text: &str) -> RootPath {
    RootPath::clean(text).expect("a test's path is clean")
}

fn temp() -> (tempfile::TempDir, Root) {
    let temp = tempfile::tempdir().expect("temporary directory");
    let root = Root::open(temp.path()).expect("just made");
    (temp, root)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// One member of a hand-made archive.
#[derive(Clone)]
struct Member<'a> {
    name: &'a str,
    kind: tar::EntryType,
    link: &'a str,
    contents: &'a [u8],
    mode: u32,
    uid: u64,
}

fn file<'a>(name: &'a str, contents: &'a str) -> Member<'a> {
    Member {
        name,
        kind: tar::EntryType::Regular,
        link: "",
        contents: contents.as_bytes(),
        mode: 0o644,
        uid: 0,
    }
}

fn of_kind<'a>(name: &'a str, kind: tar::EntryType, link: &'a str) -> Member<'a> {
    Member {
        kind,
        link,
        ..file(name, "")
    }
}

fn archive(members: &[Member<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for member in members {
        let mut header = tar::Header::new_gnu();
        // Written as bytes: the crate refuses the names that a stranger uses.
        header.as_old_mut().name[..member.name.len()].copy_from_slice(member.name.as_bytes());
        header.as_old_mut().linkname[..member.link.len()].copy_from_slice(member.link.as_bytes());
        header.set_entry_type(member.kind);
        header.set_mode(member.mode);
        header.set_uid(member.uid);
        header.set_gid(0);
        header.set_mtime(77);
        header.set_size(member.contents.len() as u64);
        header.set_cksum();
        builder.append(&header, member.contents).expect("memory");
    }
    builder.into_inner().expect("memory")
}

/// What a tree says: `path kind mode uid [link]`, whiteouts as `-path`, opaque directories with `!`.
fn said(tree: &TreeIndex) -> Vec<String> {
    tree.iter()
        .skip(1)
        .map(|record| {
            let name = String::from_utf8_lossy(record.path_bytes()).into_owned();
            let NodeKind::Entry(kind) = record.kind() else {
                return format!("-{name}");
            };
            let mark = if record.is_opaque() { "!" } else { "" };
            let link = String::from_utf8_lossy(record.link()).into_owned();
            format!(
                "{name}{mark} {kind:?} {:o} {}{}{link}",
                record.mode(),
                record.owner().0,
                if link.is_empty() { "" } else { " " }
            )
        })
        .collect()
}

fn view_of(tar: &[u8]) -> View {
    let mut out = tempfile::tempfile().expect("temporary file");
    let applied = index_stream(tar, &mut out, Limits::default()).expect("whole");
    View::new(vec![ViewLayer {
        tree: Arc::new(applied.tree),
        contents: Arc::new(Contents::Tar(out)),
    }])
}

fn contents_of(view: &View, name: &str) -> String {
    let node = view.find(&path(name)).expect("resolves").expect("there");
    let mut text = String::new();
    view.open(&node)
        .expect("opens")
        .read_to_string(&mut text)
        .expect("reads");
    text
}

/// Everything on disk beneath a root, with contents.
fn on_disk(root: &Root) -> BTreeMap<String, String> {
    let found = tree::walk(root, &tree::Everything, tree::WalkOptions { xattrs: true }).expect("walks");
    found
        .into_iter()
        .map(|item| {
            let entry = item.entry;
            let mut text = format!(
                "{:?} {:o} {}.{} @{}",
                entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime.secs
            );
            if let Some(link) = &entry.link {
                text += &format!(" {}", String::from_utf8_lossy(link));
            }
            if entry.kind == Kind::File {
                let mut contents = String::new();
                root.open_file(&entry.path)
                    .expect("opens")
                    .0
                    .read_to_string(&mut contents)
                    .expect("text");
                text += &format!(" ={contents}");
            }
            for name in entry.xattrs.keys() {
                text += &format!(" {}", String::from_utf8_lossy(name));
            }
            (String::from_utf8_lossy(entry.path.as_bytes()).into_owned(), text)
        })
        .collect()
}

#[test]
fn hostile_names_stay_inside() {
    use tar::EntryType::{Directory, Link, Symlink};
    let tar = archive(&[
        file("../../escape", "1"),
        file("/abs", "2"),
        of_kind("out", Symlink, "../../../../tmp"),
        file("out/inside", "3"),
        of_kind("etc", Symlink, "/etc"),
        file("etc/passwd", "4"),
        of_kind("hl", Link, "../../escape"),
        of_kind("a/../../b/", Directory, ""),
    ]);
    let wanted = [
        "abs File 644 0",
        "b Dir 644 0",
        "escape File 644 0",
        "etc Symlink 644 0 /etc",
        "hl HardLink 644 0 escape",
        "out Symlink 644 0 ../../../../tmp",
        "tmp Dir 755 0",
        "tmp/inside File 644 0",
    ];
    // `etc -> /etc` with a file beneath: the link leads to the layer's own /etc, which is the link itself.
    let looped = index_stream(&tar[..], std::io::sink(), Limits::default()).expect_err("a circle");
    assert!(matches!(looped, LayerError::TooManyLinks { .. }), "{looped}");
    let fine: Vec<Member<'_>> = vec![
        file("../../escape", "1"),
        file("/abs", "2"),
        of_kind("out", Symlink, "../../../../tmp"),
        file("out/inside", "3"),
        of_kind("etc", Symlink, "/etc"),
        of_kind("hl", Link, "../../escape"),
        of_kind("a/../../b/", Directory, ""),
    ];
    let tar = archive(&fine);
    let index = index_stream(&tar[..], std::io::sink(), Limits::default())
        .expect("whole")
        .tree;
    assert_eq!(said(&index), wanted);
    let (dir, root) = temp();
    let inner = dir.path().join("in");
    std::fs::create_dir(&inner).expect("mkdir");
    drop(root);
    let root = Root::open(&inner).expect("opens");
    let options = DirOptions {
        ownership: Ownership::BestEffort,
        ..DirOptions::default()
    };
    let unpacked =
        unpack_stream(&tar[..], &root, &View::default(), options, Limits::default()).expect("unpacks");
    assert!(unpacked.tree.same_entries(&index));
    assert!(!dir.path().join("escape").exists(), "nothing left the root");
    assert_eq!(
        std::fs::read_to_string(inner.join("tmp/inside")).expect("there"),
        "3"
    );
}

#[test]
fn what_is_no_whole_tar_is_an_error_and_never_a_panic() {
    let tar = archive(&[
        file("a", "contents"),
        of_kind("d/", tar::EntryType::Directory, ""),
        file("d/b", &"x".repeat(2000)),
    ]);
    for length in 0..tar.len() {
        let cut = index_stream(&tar[..length], std::io::sink(), Limits::default());
        // Cut between entries it is whole: like Go and GNU tar we do not insist on the blocks of zeros.
        let whole = matches!(length, 0 | 1024 | 1536 | 4096) || length >= 4608;
        assert_eq!(cut.is_ok(), whole, "{length}");
    }
    let mut state = 7_u32;
    for _ in 0..3000 {
        let mut damaged = tar.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (state >> 8) as usize % damaged.len();
            damaged[at] = (state >> 24) as u8;
            // Half of them with a right checksum, so that what lies behind it is reached.
            let block = at / 512 * 512;
            if state & 1 == 0 && damaged.len() >= block + 512 {
                let header = tar::Header::from_byte_slice(&damaged[block..block + 512]);
                let mut header = header.clone();
                header.set_cksum();
                damaged[block..block + 512].copy_from_slice(header.as_bytes());
            }
        }
        drop(index_stream(&damaged[..], std::io::sink(), Limits::default()));
    }
}

#[test]
fn limits_hold() {
    let many: Vec<String> = (0..20).map(|number| format!("f{number}")).collect();
    let members: Vec<Member<'_>> = many.iter().map(|name| file(name, "12345")).collect();
    let tar = archive(&members);
    let with = |limits| index_stream(&tar[..], std::io::sink(), limits).map(|applied| applied.tree.len());
    assert!(matches!(
        with(Limits {
            entries: 19,
            ..Limits::default()
        }),
        Err(LayerError::Limit { what: "entries", .. })
    ));
    assert!(matches!(
        with(Limits {
            bytes: 99,
            ..Limits::default()
        }),
        Err(LayerError::Limit { .. })
    ));
    assert_eq!(
        with(Limits {
            entries: 20,
            bytes: 100
        })
        .expect("within"),
        21
    );
    let id = archive(&[Member {
        uid: (1 << 31) - 1,
        ..file("x", "")
    }]);
    assert!(matches!(
        index_stream(&id[..], std::io::sink(), Limits::default()),
        Err(LayerError::BadTar { .. })
    ));
    let long = "x".repeat(2_000_000);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(long.len() as u64);
    header.set_cksum();
    let mut pax = header.as_bytes().to_vec();
    pax.extend_from_slice(long.as_bytes());
    assert!(matches!(
        index_stream(&pax[..], std::io::sink(), Limits::default()),
        Err(LayerError::Limit { .. })
    ));
}

#[test]
fn a_layer_unpacked_at_once_equals_one_made_from_its_index() {
    if !is_root() {
        return; // owners cannot be set
    }
    use tar::EntryType::{Directory, Fifo, Link, Symlink};
    let lower = view_of(&archive(&[
        Member {
            mode: 0o711,
            uid: 9,
            ..of_kind("keep/", Directory, "")
        },
        file("keep/old", "old"),
        file("gone", "gone"),
        of_kind("opaque/", Directory, ""),
        file("opaque/hidden", "hidden"),
    ]));
    let tar = archive(&[
        file("late/first", "1"),
        Member {
            mode: 0o4755,
            uid: 5,
            ..file("setuid", "s")
        },
        of_kind("link", Symlink, "setuid"),
        of_kind("z", Link, "setuid"),
        of_kind("lower-link", Link, "keep/old"),
        Member {
            mode: 0o500,
            ..of_kind("late/", Directory, "")
        },
        file("keep/new", "new"),
        file("keep/.wh.old", ""),
        file(".wh.gone", ""),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/shown", "shown"),
        of_kind("pipe", Fifo, ""),
        file("twice", "first"),
        file("twice", "second"),
        file("was-file", "x"),
        file("was-file/now/dir", "y"),
        of_kind("was-dir/", Directory, ""),
        file("was-dir/in", "x"),
        file("was-dir", "file"),
    ]);
    let (_one, first) = temp();
    let unpacked =
        unpack_stream(&tar[..], &first, &lower, DirOptions::default(), Limits::default()).expect("unpacks");
    let mut kept = tempfile::tempfile().expect("temporary file");
    let indexed = index_stream(&tar[..], &mut kept, Limits::default()).expect("indexes");
    assert_eq!(unpacked.diff_id, indexed.diff_id);
    assert_eq!(unpacked.diff_id.digest(), oci::Digest::of(&tar));
    let (_two, second) = temp();
    materialise(
        &indexed.tree,
        &Contents::Tar(kept),
        &second,
        &lower,
        DirOptions::default(),
    )
    .expect("makes");
    let disk = on_disk(&first);
    assert_eq!(disk, on_disk(&second));
    for (name, wanted) in [
        ("setuid", "File 4755 5.0 @77 =s"),
        ("keep", "Dir 711 9.0 @77"), // not described by the layer: as below
        ("keep/old", "Char 0 0.0"),
        ("gone", "Char 0 0.0"),
        ("late", "Dir 500 0.0 @77"),
        ("opaque", "Dir 755 0.0"),
        ("lower-link", "File 644 0.0 @77 =old"),
        ("twice", "File 644 0.0 @77 =second"),
        ("was-file/now/dir", "File 644 0.0 @77 =y"),
        ("was-dir", "File 644 0.0 @77 =file"),
        ("z", "HardLink 644 0.0 @77 setuid"),
    ] {
        let found = &disk[name];
        // `z`'s header came last and speaks for both names.
        let wanted = if name == "setuid" {
            "File 644 0.0 @77 =s"
        } else {
            wanted
        };
        assert!(found.starts_with(wanted), "{name}: {found}");
    }
    assert!(
        disk["opaque"].ends_with("trusted.overlay.opaque"),
        "{}",
        disk["opaque"]
    );
    // Read back from the directory it says the same, but that the hard link into the lower layer is a copy now, that a
    // link has the mode all links have, and that the directory that was not described has attributes.
    let scanned = scan_upper(&first, DirOptions::default()).expect("scans");
    let differing: Vec<String> = said(&scanned)
        .into_iter()
        .filter(|line| !said(&indexed.tree).contains(line))
        .collect();
    assert_eq!(
        differing,
        [
            "keep Dir 711 9",
            "link Symlink 777 0 setuid",
            "lower-link File 644 0"
        ]
    );
}

/// Runs a real overlay mount: the kernel's own idea of what a step leaves behind.
fn with_overlay(lower: &Path, run: impl FnOnce(&Path)) -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().expect("temporary directory");
    for name in ["upper", "work", "merged"] {
        std::fs::create_dir(dir.path().join(name)).expect("mkdir");
    }
    let at = |name: &str| dir.path().join(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off",
        lower.display(),
        at("upper"),
        at("work")
    );
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options, &at("merged")])
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return None; // no overlayfs here
    }
    run(&dir.path().join("merged"));
    let unmounted = Command::new("umount")
        .arg(at("merged"))
        .status()
        .expect("umount runs");
    assert!(unmounted.success());
    Some(dir)
}

#[test]
fn the_difference_of_a_step_is_what_it_changed() {
    if !is_root() {
        return; // cannot mount
    }
    let base = archive(&[
        of_kind("d/", tar::EntryType::Directory, ""),
        file("d/a", "a"),
        file("d/b", "b"),
        of_kind("q/", tar::EntryType::Directory, ""),
        of_kind("q/r/", tar::EntryType::Directory, ""),
        file("q/r/a", "a"),
        file("q/r/b", "b"),
        file("q/x", "x"),
        file("same", "same"),
        file("hard", "hard"),
        of_kind("untouched/", tar::EntryType::Directory, ""),
        file("untouched/f", "f"),
    ]);
    let lower = view_of(&base);
    let (lower_dir, lower_root) = temp();
    unpack_stream(
        &base[..],
        &lower_root,
        &View::default(),
        DirOptions::default(),
        Limits::default(),
    )
    .expect("unpacks");
    let script = "set -e; cd \"$0\"; rm d/a; echo new > d/n; chmod 600 d/b
        rm -r q; mkdir -p q/r; echo 2 > q/r/b
        dd if=/dev/null of=same conv=notrunc 2>/dev/null; touch -d @77 same
        ln hard hard2; mkfifo -m 640 p; ln -s target s; mkdir empty; touch '.wh.not' 2>/dev/null || true; rm -f .wh.not
        python3 -c 'import socket; s=socket.socket(socket.AF_UNIX); s.bind(\"sock\")' 2>/dev/null || true";
    let Some(step) = with_overlay(lower_dir.path(), |merged| {
        let status = Command::new("sh")
            .args(["-c", script])
            .arg(merged)
            .status()
            .expect("sh runs");
        assert!(status.success());
    }) else {
        return;
    };
    let upper = Root::open(&step.path().join("upper")).expect("opens");
    let scanned = scan_upper(&upper, DirOptions::default()).expect("scans");
    let out = tempfile::NamedTempFile::new().expect("temporary file");
    let contents = Contents::Dir(upper);
    let (_, layer) = diff_dir(&scanned, &contents, &lower, out.reopen().expect("opens")).expect("writes");
    assert_eq!(
        said(&layer.tree),
        [
            "d Dir 644 0",
            "-d/a",
            "d/b File 600 0",
            "d/n File 644 0",
            "empty Dir 755 0",
            "hard File 644 0",
            "hard2 HardLink 644 0 hard",
            "p Fifo 640 0",
            "q Dir 755 0",
            "q/r Dir 755 0",
            "-q/r/a",
            "q/r/b File 644 0",
            "-q/x",
            "s Symlink 777 0 target",
        ]
    );
    // GNU tar reads it the same.
    let listing = Command::new("tar")
        .arg("-tf")
        .arg(out.path())
        .output()
        .expect("tar runs");
    assert!(listing.status.success());
    let names = String::from_utf8(listing.stdout).expect("text");
    let names: Vec<&str> = names.lines().collect();
    assert_eq!(names[..5], ["d/", "d/.wh.a", "d/b", "d/n", "empty/"]);
    // Laid over the base again it gives what the step left.
    let bytes = std::fs::read(out.path()).expect("reads");
    assert_eq!(oci::Digest::of(&bytes), layer.diff_id.digest());
    let mut kept = tempfile::tempfile().expect("temporary file");
    let again = index_stream(&bytes[..], &mut kept, Limits::default()).expect("whole");
    assert!(again.tree.same_entries(&layer.tree));
    let merged = lower.with_layer(ViewLayer {
        tree: Arc::new(again.tree),
        contents: Arc::new(Contents::Tar(kept)),
    });
    assert_eq!(contents_of(&merged, "q/r/b"), "2\n");
    assert_eq!(contents_of(&merged, "hard2"), "hard");
    for gone in ["d/a", "q/r/a", "q/x"] {
        assert!(merged.lookup(&path(gone)).is_none(), "{gone}");
    }
    // A step without changes is a valid empty tar.
    let Some(idle) = with_overlay(lower_dir.path(), |_| {}) else {
        return;
    };
    let upper = Root::open(&idle.path().join("upper")).expect("opens");
    let scanned = scan_upper(&upper, DirOptions::default()).expect("scans");
    let (bytes, layer) = diff_dir(&scanned, &Contents::Dir(upper), &lower, Vec::new()).expect("writes");
    assert!(layer.tree.is_empty());
    assert_eq!(bytes, vec![0; 1024]);
}

#[test]
fn random_changes_come_out_again() {
    // apply(diff(x)) == x, on small random trees with removals, replacements and further names.
    let mut state = 42_u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let names = ["a", "b", "c"];
    for round in 0..200 {
        let mut layers = Vec::new();
        let mut model: BTreeMap<Vec<u8>, String> = BTreeMap::new();
        for layer in 0..3 {
            let mut builder = TreeBuilder::new();
            for _ in 0..random(6) {
                let depth = 1 + random(3);
                let parts: Vec<&str> = (0..depth)
                    .map(|_| names[usize::try_from(random(3)).expect("small")])
                    .collect();
                let at = path(&parts.join("/"));
                match random(4) {
                    0 => builder.add_whiteout(&at),
                    1 => builder.add(Entry::dir(at, 0o700), Place::None),
                    2 => builder.set_opaque(&at),
                    _ => builder.add(
                        Entry::new(at, Kind::File, u32::try_from(layer).expect("small")),
                        Place::None,
                    ),
                }
            }
            let tree = builder.finish();
            apply_to_model(&mut model, &tree);
            layers.push(ViewLayer {
                tree: Arc::new(tree),
                contents: Arc::new(Contents::None),
            });
        }
        let view = View::new(layers);
        let mut listed = BTreeMap::new();
        let root = view.root().expect("three layers");
        view.walk::<LayerError>(&root, &mut |_, entry| {
            listed.insert(entry.path.as_bytes().to_vec(), format!("{:?}", entry.kind));
            Ok(())
        })
        .expect("walks");
        assert_eq!(listed, model, "round {round}");
        for name in model.keys() {
            assert!(view.lookup(&RootPath::clean(name).expect("clean")).is_some());
        }
    }
}

/// What laying a layer over a plain map of paths means.
fn apply_to_model(model: &mut BTreeMap<Vec<u8>, String>, tree: &TreeIndex) {
    let remove_below = |model: &mut BTreeMap<Vec<u8>, String>, dir: &[u8]| {
        let prefix = [dir, b"/"].concat();
        model.retain(|path, _| !(dir.is_empty() || path.starts_with(&prefix)));
    };
    for record in tree.iter() {
        let path = record.path_bytes().to_vec();
        if record.is_opaque() {
            remove_below(model, &path);
        }
        if path.is_empty() {
            continue;
        }
        match record.kind() {
            NodeKind::Whiteout => {
                remove_below(model, &path);
                model.remove(&path);
            }
            NodeKind::Entry(kind) => {
                if kind != Kind::Dir {
                    remove_below(model, &path);
                }
                model.insert(path, format!("{kind:?}"));
            }
        }
    }
}

#[test]
fn timestamps_can_be_clamped() {
    let tar = archive(&[
        file("a", "contents"),
        of_kind("d/", tar::EntryType::Directory, ""),
        file("d/.wh.x", ""),
    ]);
    let (rewritten, diff_id, size) = rewrite_timestamps(&tar[..], Vec::new(), 50).expect("rewrites");
    assert_eq!(
        (oci::Digest::of(&rewritten), rewritten.len() as u64),
        (diff_id.digest(), size)
    );
    let applied = index_stream(&rewritten[..], std::io::sink(), Limits::default()).expect("whole");
    assert_eq!(said(&applied.tree), ["a File 644 0", "d Dir 644 0", "-d/x"]);
    assert!(
        applied
            .tree
            .iter()
            .skip(1)
            .all(|record| record.mtime() <= Timestamp::from_secs(50))
    );
    let (same, ..) = rewrite_timestamps(&rewritten[..], Vec::new(), 50).expect("rewrites");
    assert_eq!(same, rewritten, "the same again gives the same bytes");
}

#[test]
fn long_names_and_large_numbers_survive() {
    let long = format!("{}/{}", "d".repeat(150), "é".repeat(60));
    let mut entry = Entry::new(path(&long), Kind::File, 0o6711);
    (entry.uid, entry.gid, entry.mtime, entry.size) =
        (3_000_000, 2_100_000, Timestamp { secs: -5, nanos: 9 }, 3);
    entry
        .xattrs
        .insert(b"security.capability".to_vec(), vec![1, 0, 10, 13]);
    entry.xattrs.insert(b"user.dropped".to_vec(), vec![1]);
    let mut link = Entry::new(path("zz"), Kind::Symlink, 0o777);
    link.link = Some("t".repeat(300).into_bytes());
    let mut device = Entry::new(path("zzz"), Kind::Block, 0o660);
    device.rdev = (259, 1_048_575);
    let mut writer = TarLayerWriter::new(Vec::new());
    writer.add(&entry, &b"abc"[..]).expect("writes");
    writer.add(&link, std::io::empty()).expect("writes");
    writer.add(&device, std::io::empty()).expect("writes");
    let (bytes, written) = writer.finish().expect("writes");
    let read = index_stream(&bytes[..], std::io::sink(), Limits::default()).expect("whole");
    assert_eq!(read.diff_id, written.diff_id);
    let find = |name: &str| {
        read.tree
            .get(read.tree.find(&path(name)).expect("there"))
            .entry()
            .expect("an entry")
    };
    let wanted_xattrs = BTreeMap::from([(b"security.capability".to_vec(), vec![1, 0, 10, 13])]);
    let wanted = Entry {
        mtime: Timestamp::from_secs(-5),
        xattrs: wanted_xattrs,
        ..entry
    };
    assert_eq!(find(&long), wanted);
    assert_eq!(find("zz"), link);
    assert_eq!(find("zzz"), device);
    let mut out_of_order = TarLayerWriter::new(Vec::new());
    out_of_order
        .add(&Entry::dir(path("b"), 0o755), std::io::empty())
        .expect("first");
    assert!(matches!(
        out_of_order.add(&Entry::dir(path("a"), 0o755), std::io::empty()),
        Err(LayerError::OutOfOrder { .. })
    ));
    let mut short = Entry::new(path("x"), Kind::File, 0o644);
    short.size = 3;
    for (contents, found) in [("ab", 2), ("abcd", 4)] {
        let error = TarLayerWriter::new(Vec::new())
            .add(&short, contents.as_bytes())
            .expect_err("changed");
        assert!(
            matches!(error, LayerError::Changed { expected: 3, found: f, .. } if f == found),
            "{error}"
        );
    }
}
