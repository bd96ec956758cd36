//! Both ends of a transfer in one process: whatever changes between two transfers, the copy equals the original, and only
//! what changed travels.
use proptest::prelude::*;
use session::transfer::{Contents, Incoming, Limits, Outcome, Previous, ReceiveError, Receiver, Sender};
use session::wire::fsutil::{Packet, Stat, packet::PacketType};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use tree::{Everything, Root, WalkOptions, walk};

/// One end of a pair of queues.
struct End {
    from: mpsc::Receiver<Packet>,
    to: mpsc::Sender<Packet>,
}

impl Incoming for End {
    fn next(&mut self) -> Option<Result<Packet, String>> {
        self.from.recv().ok().map(Ok)
    }

    fn send(&mut self, packet: Packet) -> bool {
        self.to.send(packet).is_ok()
    }
}

fn ends() -> (End, End) {
    let (to_a, from_b) = mpsc::channel();
    let (to_b, from_a) = mpsc::channel();
    (
        End {
            from: from_b,
            to: to_b,
        },
        End {
            from: from_a,
            to: to_a,
        },
    )
}

/// Sends `from` into `into`, over an older copy if there is one.
fn transfer(from: &Path, into: &Path, previous: Option<&Path>) -> Outcome {
    let (mut here, mut there) = ends();
    let root = Root::open(from).expect("it is there");
    let found = walk(&root, &Everything, WalkOptions { xattrs: false }).expect("readable");
    let entries: Vec<_> = found.into_iter().map(|found| found.entry).collect();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let open = |entry: &tree::Entry| -> std::io::Result<Contents> {
                let opened = root.open_file(&entry.path).map_err(std::io::Error::other)?;
                Ok(Contents::File(opened.0))
            };
            let sender = Sender {
                entries: &entries,
                open: &open,
                hand: None,
                meter: &|_| {},
            };
            sender.run(&mut there).expect("sent");
        });
        let previous = previous.map(|folder| Previous {
            tree: folder.join("tree"),
            index: folder.join("index"),
        });
        receive(&mut here, into, previous.as_ref()).expect("received")
    })
}

fn receive(
    wire: &mut dyn Incoming,
    into: &Path,
    previous: Option<&Previous>,
) -> Result<Outcome, ReceiveError> {
    let receiver = Receiver {
        tree: &into.join("tree"),
        index: &into.join("index"),
        previous,
        asks_for_all: false,
        listed: None,
        hand: None,
        limits: Limits {
            entries: 1000,
            bytes: 1 << 20,
        },
        meter: Arc::new(|_| {}),
    };
    receiver.run(wire)
}

/// Everything a build sees of a directory.
fn picture(folder: &Path) -> BTreeMap<String, String> {
    let root = Root::open(folder).expect("it is there");
    let found = walk(&root, &Everything, WalkOptions { xattrs: false }).expect("readable");
    let describe = |entry: &tree::Entry| {
        let content = match entry.kind {
            tree::Kind::File => fs::read(folder.join(entry.path.as_path())).expect("readable"),
            _ => Vec::new(),
        };
        // A directory whose entries are all as they were keeps its older time, as with BuildKit.
        let time = (entry.kind != tree::Kind::Dir).then_some(entry.mtime);
        format!(
            "{:?} {:o} {:?} {time:?} {content:?}",
            entry.kind, entry.mode, entry.link
        )
    };
    found
        .iter()
        .map(|found| (found.entry.path.display().to_string(), describe(&found.entry)))
        .collect()
}

#[derive(Clone, Debug)]
enum Change {
    Write(u8, u8),
    Remove(u8),
    Dir(u8),
    Link(u8, u8),
    HardLink(u8, u8),
    Mode(u8, u16),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let one = prop_oneof![
        (any::<u8>(), any::<u8>()).prop_map(|(at, content)| Change::Write(at, content)),
        any::<u8>().prop_map(Change::Remove),
        any::<u8>().prop_map(Change::Dir),
        (any::<u8>(), any::<u8>()).prop_map(|(at, to)| Change::Link(at, to)),
        (any::<u8>(), any::<u8>()).prop_map(|(at, to)| Change::HardLink(at, to)),
        (any::<u8>(), 0o400..0o777u16).prop_map(|(at, mode)| Change::Mode(at, mode)),
    ];
    proptest::collection::vec(one, 0..12)
}

/// Few names, so that changes meet.
fn name(number: u8) -> String {
    let parts = ["a", "a.txt", "b", "a/x", "a/y", "b/a", "b/a/z", "c-"];
    parts[usize::from(number) % parts.len()].to_owned()
}

fn apply(folder: &Path, changes: &[Change]) {
    static TICK: AtomicU64 = AtomicU64::new(1);
    for change in changes {
        // What cannot be done (a file in the way, nothing there) is not done: the tree is what it is.
        let _ = match change {
            Change::Write(at, content) => {
                fs::write(folder.join(name(*at)), vec![*content; usize::from(*content)])
            }
            Change::Remove(at) => {
                let path = folder.join(name(*at));
                fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path))
            }
            Change::Dir(at) => fs::create_dir(folder.join(name(*at))),
            Change::Link(at, to) => symlink(name(*to), folder.join(name(*at))),
            Change::HardLink(at, to) => fs::hard_link(folder.join(name(*to)), folder.join(name(*at))),
            Change::Mode(at, mode) => {
                let mode = fs::Permissions::from_mode(u32::from(*mode) | 0o600);
                let path = folder.join(name(*at));
                match fs::symlink_metadata(&path) {
                    Ok(data) if data.is_file() => fs::set_permissions(path, mode),
                    _ => Ok(()),
                }
            }
        };
    }
    // Times of files are unlike any before, as those of real changes are.
    let root = Root::open(folder).expect("it is there");
    for change in changes {
        if let Change::Write(at, _) = change {
            let tick = i64::try_from(TICK.fetch_add(1, Ordering::Relaxed)).expect("small");
            let path = tree::RootPath::clean(name(*at)).expect("clean");
            let _ = root.set_mtime(&path, tree::Timestamp::from_secs(1_000_000 + tick));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn the_copy_equals_the_original(first in changes(), second in changes()) {
        let work = tempfile::tempdir().expect("a folder");
        let from = work.path().join("from");
        fs::create_dir(&from).expect("made");
        apply(&from, &first);
        let one = work.path().join("1");
        transfer(&from, &one, None);
        prop_assert_eq!(picture(&one.join("tree")), picture(&from));
        let again = transfer(&from, &work.path().join("same"), Some(&one));
        prop_assert_eq!(again, Outcome::Unchanged);
        let before = picture(&one.join("tree"));
        apply(&from, &second);
        let two = work.path().join("2");
        let outcome = transfer(&from, &two, Some(&one));
        let newest = if outcome == Outcome::Unchanged { &one } else { &two };
        prop_assert_eq!(picture(&newest.join("tree")), picture(&from));
        prop_assert_eq!(picture(&one.join("tree")), before, "an older copy never changes");
    }
}

#[test]
fn only_what_changed_travels() {
    let work = tempfile::tempdir().expect("a folder");
    let from = work.path().join("from");
    fs::create_dir(&from).expect("made");
    for number in 0..50 {
        fs::write(from.join(format!("f{number:02}")), vec![b'x'; 1000]).expect("written");
    }
    let (one, two) = (work.path().join("1"), work.path().join("2"));
    assert_eq!(
        transfer(&from, &one, None),
        Outcome::Made {
            files: 50,
            bytes: 50_000,
            total: 50_000,
        }
    );
    fs::write(from.join("f25"), b"changed").expect("written");
    assert_eq!(
        transfer(&from, &two, Some(&one)),
        Outcome::Made {
            files: 1,
            bytes: 7,
            total: 49_007,
        }
    );
    let inode = |folder: &Path| fs::metadata(folder.join("tree/f00")).expect("there").ino();
    assert_eq!(inode(&one), inode(&two), "an unchanged file is not copied");
}

/// What a hostile client sends, one packet after the other.
struct Script(std::vec::IntoIter<Packet>);

impl Incoming for Script {
    fn next(&mut self) -> Option<Result<Packet, String>> {
        self.0.next().map(Ok)
    }

    fn send(&mut self, _: Packet) -> bool {
        true
    }
}

fn stat(path: &str, mode: u32, link: &str) -> Packet {
    Packet {
        r#type: PacketType::PacketStat.into(),
        stat: Some(Stat {
            path: path.into(),
            mode,
            linkname: link.into(),
            ..Stat::default()
        }),
        ..Packet::default()
    }
}

fn data(id: u32, bytes: &'static [u8]) -> Packet {
    Packet {
        r#type: PacketType::PacketData.into(),
        id,
        data: bytes.into(),
        ..Packet::default()
    }
}

fn end() -> Packet {
    Packet {
        r#type: PacketType::PacketStat.into(),
        ..Packet::default()
    }
}

fn fin() -> Packet {
    Packet {
        r#type: PacketType::PacketFin.into(),
        ..Packet::default()
    }
}

#[test]
fn hostile_packets_are_refused_and_nothing_leaves_the_directory() {
    const DIR: u32 = 1 << 31 | 0o755;
    const LINK: u32 = 1 << 27 | 0o777;
    let cases: Vec<(&str, Vec<Packet>)> = vec![
        ("out of the directory", vec![stat("../x", 0o644, "")]),
        ("absolute", vec![stat("/etc/x", 0o644, "")]),
        ("without its directory", vec![stat("a/b", 0o644, "")]),
        (
            "beneath a file",
            vec![stat("a", 0o644, ""), stat("a/b", 0o644, "")],
        ),
        (
            "beneath a link",
            vec![stat("a", LINK, "/etc"), stat("a/passwd", 0o644, "")],
        ),
        ("backwards", vec![stat("b", 0o644, ""), stat("a", 0o644, "")]),
        ("twice", vec![stat("a", 0o644, ""), stat("a", 0o644, "")]),
        (
            "back into a directory left",
            vec![stat("a", DIR, ""), stat("b", 0o644, ""), stat("a/x", 0o644, "")],
        ),
        ("a link to itself", vec![stat("a", 0o644, "a"), end()]),
        (
            "a hard link out",
            vec![stat("a", 0o644, "../../../etc/passwd"), end()],
        ),
        (
            "a hard link through a link",
            vec![stat("a", LINK, "/etc"), stat("b", 0o644, "a/passwd"), end()],
        ),
        ("data unasked", vec![stat("a", DIR, ""), data(0, b"x")]),
        ("data of nothing", vec![data(7, b"x")]),
        (
            "data after its end",
            vec![stat("a", 0o644, ""), data(0, b""), data(0, b"x")],
        ),
        ("two ends", vec![stat("a", 0o644, ""), end(), end()]),
        (
            "more after the end",
            vec![stat("a", 0o644, ""), end(), stat("b", 0o644, "")],
        ),
        ("FIN unasked", vec![fin()]),
        (
            "the client's own packet",
            vec![Packet {
                r#type: PacketType::PacketReq.into(),
                ..Packet::default()
            }],
        ),
        (
            "an unknown packet",
            vec![Packet {
                r#type: 77,
                ..Packet::default()
            }],
        ),
        (
            "an end in the middle",
            vec![stat("a", 0o644, ""), end(), data(0, b"x")],
        ),
        (
            "too much promised",
            vec![Packet {
                stat: Some(Stat {
                    path: "a".into(),
                    size: 1 << 40,
                    ..Stat::default()
                }),
                ..end()
            }],
        ),
        (
            "too many",
            (0..2000)
                .map(|number| stat(&format!("d{number:04}"), DIR, ""))
                .collect(),
        ),
    ];
    for (what, packets) in cases {
        let work = tempfile::tempdir().expect("a folder");
        let outcome = receive(&mut Script(packets.into_iter()), &work.path().join("in"), None);
        assert!(outcome.is_err(), "{what}: {outcome:?}");
        let beside = fs::read_dir(work.path()).expect("readable").count();
        assert!(beside <= 1, "{what}: something was made outside");
    }
}

#[test]
fn a_good_script_is_taken() {
    let work = tempfile::tempdir().expect("a folder");
    let packets = vec![
        stat("a", 0o640, ""),
        stat("b", 0o640, "a"),
        end(),
        data(0, b"hel"),
        data(0, b"lo"),
        data(0, b""),
        fin(),
    ];
    let outcome = receive(&mut Script(packets.into_iter()), work.path(), None).expect("taken");
    assert_eq!(
        outcome,
        Outcome::Made {
            files: 1,
            bytes: 5,
            total: 5,
        }
    );
    assert_eq!(fs::read(work.path().join("tree/b")).expect("there"), b"hello");
}
