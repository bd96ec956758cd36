//! Files handed over as descriptors: what arrives is what was there, and nothing a stranger hands over is believed.
use rustix::fs::OFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use session::hand::{Hands, Key, Line, MAGIC, Offer, TakeError};
use session::transfer::{Contents, Incoming, Limits, Outcome, ReceiveError, Receiver, Sender};
use session::wire::fsutil::Packet;
use std::fs::{self, File};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use tree::{Everything, Root, WalkOptions, walk};

const USER: u32 = 1000;
/// The packet that says that a file was handed over.
const HANDED: i32 = 1001;

/// A daemon's socket that only takes files.
struct Daemon {
    hands: Arc<Hands>,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn new() -> Daemon {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).expect("bound");
        let hands: Arc<Hands> = Arc::default();
        let taking = hands.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let taking = taking.clone();
                std::thread::spawn(move || taking.join(stream, USER));
            }
        });
        Daemon {
            hands,
            socket,
            _folder: folder,
        }
    }

    fn key(&self) -> Arc<Key> {
        Arc::new(self.hands.open(USER).expect("random numbers"))
    }

    fn offer(&self, key: &Key) -> Offer {
        Offer::new(self.socket.clone(), key.token()).expect("a token")
    }

    /// A line whose other end is ours, to do with as we like.
    fn line(&self, key: &Key) -> (UnixStream, Line) {
        let mut stream = UnixStream::connect(&self.socket).expect("connected");
        stream.write_all(&greeting(key.token())).expect("greeted");
        stream.read_exact(&mut [0]).expect("known");
        (stream, key.line(b"0123456789abcdef").expect("it waits"))
    }
}

fn greeting(token: &str) -> Vec<u8> {
    [
        MAGIC.as_slice(),
        b"00000001",
        token.as_bytes(),
        b"0123456789abcdef",
    ]
    .concat()
}

/// One end of a pair of queues; counts what is sent.
struct End {
    from: mpsc::Receiver<Packet>,
    to: mpsc::Sender<Packet>,
    sent: Arc<AtomicU64>,
}

impl Incoming for End {
    fn next(&mut self) -> Option<Result<Packet, String>> {
        self.from.recv().ok().map(Ok)
    }

    fn send(&mut self, packet: Packet) -> bool {
        let bytes = packet.data.len() as u64;
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.to.send(packet).is_ok()
    }
}

/// Sends `from` into `into`; the outcome, the bytes that went over the wire and those that were reported.
fn transfer(
    from: &Path,
    into: &Path,
    offer: Option<&Offer>,
    key: Option<Arc<Key>>,
) -> (Result<Outcome, ReceiveError>, u64, u64) {
    let (to_a, from_b) = mpsc::channel();
    let (to_b, from_a) = mpsc::channel();
    let sent = Arc::new(AtomicU64::new(0));
    let end = |from, to| End {
        from,
        to,
        sent: sent.clone(),
    };
    let (mut here, mut there) = (end(from_b, to_b), end(from_a, to_a));
    let root = Root::open(from).expect("it is there");
    let found = walk(&root, &Everything, WalkOptions { xattrs: false }).expect("readable");
    let entries: Vec<_> = found.into_iter().map(|found| found.entry).collect();
    let metered = Arc::new(AtomicU64::new(0));
    let meter = metered.clone();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            let open = |entry: &tree::Entry| -> std::io::Result<Contents> {
                let opened = root.open_file(&entry.path).map_err(std::io::Error::other)?;
                Ok(Contents::File(opened.0))
            };
            let sender = Sender {
                entries: &entries,
                open: &open,
                hand: offer,
                meter: &|_| {},
            };
            // The receiver may refuse; it says why.
            let _ = sender.run(&mut there);
        });
        let receiver = Receiver {
            tree: &into.join("tree"),
            index: &into.join("index"),
            previous: None,
            asks_for_all: false,
            listed: None,
            hand: key,
            limits: Limits {
                entries: 1000,
                bytes: 64 << 20,
            },
            meter: Arc::new(move |bytes| {
                meter.fetch_add(bytes, Ordering::Relaxed);
            }),
        };
        let outcome = receiver.run(&mut here);
        drop(here);
        outcome
    });
    (
        outcome,
        sent.load(Ordering::Relaxed),
        metered.load(Ordering::Relaxed),
    )
}

fn context(sizes: &[usize]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (number, size) in sizes.iter().enumerate() {
        let bytes: Vec<u8> = (0..*size).map(|at| (at * 7 + number) as u8).collect();
        fs::write(folder.path().join(format!("f{number:03}")), bytes).expect("written");
    }
    folder
}

fn assert_same(from: &Path, into: &Path) {
    for entry in fs::read_dir(from).expect("listed").flatten() {
        let copy = fs::read(into.join("tree").join(entry.file_name())).expect("it came");
        assert_eq!(copy, fs::read(entry.path()).expect("read"), "{:?}", entry.path());
    }
}

#[test]
fn large_files_are_handed_over_and_small_ones_are_sent() {
    let daemon = Daemon::new();
    let key = daemon.key();
    // More large files than may be on their way at once, and one that needs several pieces.
    let mut sizes = vec![70_000; 100];
    sizes.extend([0, 1, 1000, 20 << 20]);
    let from = context(&sizes);
    let into = tempfile::tempdir().expect("a folder");
    let (outcome, wire, metered) = transfer(
        from.path(),
        into.path(),
        Some(&daemon.offer(&key)),
        Some(key.clone()),
    );
    let bytes: usize = sizes.iter().sum();
    let made = Outcome::Made {
        files: sizes.len() as u64,
        bytes: bytes as u64,
        total: bytes as u64,
    };
    assert_eq!(outcome.expect("received"), made);
    assert_same(from.path(), into.path());
    // The name of the transfer goes with each.
    assert_eq!(wire, 1001 + 101 * 16);
    assert!(metered >= bytes as u64, "progress counts what was copied");
}

#[test]
fn where_nothing_can_be_handed_over_the_bytes_are_sent() {
    let daemon = Daemon::new();
    let key = daemon.key();
    let from = context(&[100_000, 200_000]);
    let wrong_token = Offer::new(daemon.socket.clone(), &"0".repeat(32)).expect("a token");
    let nobody = Offer::new(daemon.socket.with_file_name("none"), key.token()).expect("a token");
    for offer in [None, Some(&wrong_token), Some(&nobody)] {
        let into = tempfile::tempdir().expect("a folder");
        let (outcome, wire, _) = transfer(from.path(), into.path(), offer, Some(key.clone()));
        outcome.expect("received");
        assert_same(from.path(), into.path());
        assert_eq!(wire, 300_000);
    }
    assert!(Offer::new(daemon.socket.clone(), "not a token").is_none());
}

#[test]
fn a_session_that_ended_or_is_anothers_takes_nothing() {
    let daemon = Daemon::new();
    let key = daemon.key();
    let token = key.token().to_owned();
    let join = |user: u32| {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        ours.write_all(&greeting(&token)).expect("written");
        daemon.hands.join(theirs, user)
    };
    assert!(join(USER + 1).is_err(), "another user");
    assert!(join(USER).is_ok());
    assert!(key.line(b"0123456789abcdef").is_some());
    assert!(key.line(b"0123456789abcdef").is_none(), "taken");
    assert!(key.line(b"short").is_none());
    assert!(key.line(&[0xff; 16]).is_none());
    for _ in 0..100 {
        // Lines nobody takes: another of the same name replaces the first.
        assert!(join(USER).is_ok());
    }
    drop(key);
    assert!(join(USER).is_err(), "the session has ended");
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    ours.write_all(b"bldrhand and something else").expect("written");
    drop(ours);
    assert!(daemon.hands.join(theirs, USER).is_err());
}

fn give(stream: &UnixStream, descriptor: impl AsFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::empty()).expect("sent");
}

#[test]
fn only_plain_files_open_for_reading_are_taken() {
    let daemon = Daemon::new();
    let key = daemon.key();
    let (stream, mut line) = daemon.line(&key);
    let folder = context(&[100]);
    let file = folder.path().join("f000");
    let opened = |flags: OFlags, path: &Path| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty()).expect("opened")
    };
    let read = OFlags::RDONLY;
    give(&stream, opened(read, &file));
    let mut text = Vec::new();
    line.take()
        .expect("a plain file")
        .read_to_end(&mut text)
        .expect("read");
    assert_eq!(text.len(), 100);
    for (what, descriptor) in [
        ("a folder", opened(read, folder.path())),
        ("a device", opened(read, Path::new("/dev/zero"))),
        ("a file of proc", opened(read, Path::new("/proc/self/environ"))),
        ("a name only", opened(OFlags::PATH, &file)),
        ("open for writing only", opened(OFlags::WRONLY, &file)),
        ("a socket", UnixStream::pair().expect("a pair").0.into()),
        ("a pipe", rustix::pipe::pipe().expect("a pipe").0),
    ] {
        give(&stream, descriptor);
        assert!(matches!(line.take(), Err(TakeError::Kind)), "{what}");
    }
    (&stream).write_all(&[0]).expect("written");
    assert!(matches!(line.take(), Err(TakeError::Nothing)), "no descriptor");
    drop(stream);
    assert!(line.take().is_err(), "nobody is there");
}

/// Says what it was told to, and hears nothing.
struct Script(std::vec::IntoIter<Packet>);

impl Incoming for Script {
    fn next(&mut self) -> Option<Result<Packet, String>> {
        self.0.next().map(Ok)
    }

    fn send(&mut self, _: Packet) -> bool {
        true
    }
}

#[test]
fn what_is_said_to_be_handed_over_is_checked() {
    let daemon = Daemon::new();
    let key = daemon.key();
    let stat = Packet {
        stat: Some(session::wire::fsutil::Stat {
            path: "f".into(),
            mode: 0o644,
            size: 4,
            ..Default::default()
        }),
        ..Packet::default()
    };
    let end = Packet::default();
    let handed = |id, name: &'static [u8]| Packet {
        r#type: HANDED,
        id,
        data: name.into(),
        ..Packet::default()
    };
    let data = Packet {
        r#type: 2,
        data: (&b"x"[..]).into(),
        ..Packet::default()
    };
    let refused = |packets: Vec<Packet>, key: Option<Arc<Key>>| {
        let into = tempfile::tempdir().expect("a folder");
        let receiver = Receiver {
            tree: &into.path().join("tree"),
            index: &into.path().join("index"),
            previous: None,
            asks_for_all: false,
            listed: None,
            hand: key,
            limits: Limits {
                entries: 10,
                bytes: 1000,
            },
            meter: Arc::new(|_| {}),
        };
        receiver
            .run(&mut Script(packets.into_iter()))
            .expect_err("refused")
            .to_string()
    };
    let name = b"0123456789abcdef";
    let list = [stat, end];
    let with = |more: &[Packet]| [&list[..], more].concat();
    for (packets, key, why) in [
        (with(&[handed(0, name)]), None, "nobody made"),
        (with(&[handed(0, name)]), Some(key.clone()), "unknown line"),
        (with(&[handed(1, name)]), Some(key.clone()), "nobody asked for"),
        (with(&[data, handed(0, name)]), Some(key.clone()), "both"),
    ] {
        let error = refused(packets, key);
        assert!(error.contains(why), "{error}");
    }
    // A file larger than the limit.
    let large = context(&[5000]);
    let mut stream = UnixStream::connect(&daemon.socket).expect("connected");
    stream.write_all(&greeting(key.token())).expect("greeted");
    stream.read_exact(&mut [0]).expect("known");
    give(&stream, File::open(large.path().join("f000")).expect("opened"));
    let error = refused(with(&[handed(0, name)]), Some(key));
    assert!(error.contains("more than 1000 bytes"), "{error}");
}
