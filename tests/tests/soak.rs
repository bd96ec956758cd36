//! A daemon after a thousand builds, a third of which were called off or whose client was killed: it holds nothing.
//!
//! ```text
//! daemon ◀─ 8 clients, one build after another: a kind and maybe a signal, by chance
//!    └─▶ idle ─▶ no builds, vertices, sessions, mounts, cgroups, processes, open files; after prune no bytes
//! ```
//!
//! Takes minutes, so it is run when asked for: `cargo test -p tests --test soak -- --ignored --nocapture`.
//! `SOAK_BUILDS` says how many builds, `SOAK_SEED` which ones. Every build that was let alone must end as it should, with
//! what it should have made; so this finds rare failures too.
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};
use tests::{Leftovers, Program, User, fixtures, is_root};

/// Clients at the same time.
const CLIENTS: usize = 8;
/// Builds before the daemon's state is noted: after these everything that is kept for good is there.
const WARM_UP: usize = 60;
/// After each of so many builds the daemon is let rest and looked at.
const ROUND: usize = 500;
/// What the daemon may grow by in a round, once it had one: what builds leave would be far more.
const GROWTH_KIB: u64 = 2 << 10;
/// Blobs the daemon may keep open.
const MAX_BLOBS: usize = 64;
/// How long the daemon may take to be idle after the last client has gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// For so long a daemon keeps the logs of builds that are over, for clients that look late.
const LINGER: Duration = Duration::from_secs(11);

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is no number"))
    })
}

/// Chance that can be had again (xorshift).
struct Chance(u64);

impl Chance {
    fn of(seed: u64, build: usize) -> Chance {
        let mut chance = Chance((seed ^ (build as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1));
        chance.below(1);
        chance.below(1);
        chance
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct Daemon {
    child: Child,
    place: PathBuf,
    program: Program,
}

impl Daemon {
    fn start(place: &Path) -> Daemon {
        let program = Program::new(&place.join("root"), User::Same);
        let address = format!("unix://{}", place.join("s.sock").display());
        let debug = format!("unix://{}", place.join("d.sock").display());
        let mut child = program
            .command(&["serve", "--addr", &address, "--debugaddr", &debug])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let first = lines
            .by_ref()
            .find(|line| line.as_ref().is_ok_and(|line| line.contains("serving at")));
        assert!(first.is_some(), "the daemon ended before it listened");
        thread::spawn(move || lines.for_each(drop));
        Daemon {
            child,
            place: place.to_owned(),
            program,
        }
    }

    fn address(&self) -> String {
        format!("--addr=unix://{}", self.place.join("s.sock").display())
    }

    /// A page of the debug address.
    fn page(&self, path: &str) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.place.join("d.sock")).expect("it listens");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"
        )
        .expect("asked");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let (_, body) = text.split_once("\r\n\r\n").expect("a body");
        // The body may come in one chunk.
        let from = body.find(['{', '[']).expect("JSON");
        let to = body.rfind(['}', ']']).expect("JSON");
        serde_json::from_str(&body[from..=to]).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    /// What it works on, in words; nothing when it is idle.
    fn busy(&self) -> Vec<String> {
        let mut found = Vec::new();
        let solver = self.page("/debug/solver");
        for what in ["builds", "vertices", "running", "waiting"] {
            if solver[what] != 0 {
                found.push(format!("solver: {} {what}", solver[what]));
            }
        }
        for page in ["/debug/builds", "/debug/sessions"] {
            let all = self.page(page);
            if all.as_array().is_none_or(|all| !all.is_empty()) {
                found.push(format!("{page}: {all}"));
            }
        }
        found
    }

    fn settle(&self) {
        let begun = Instant::now();
        loop {
            let busy = self.busy();
            if busy.is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "after all builds: {busy:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Names of its open files. Of the store's blobs it keeps some open on purpose, the last ones used; these are left out,
    /// unless they are too many.
    fn files(&self) -> Vec<String> {
        let folder = format!("/proc/{}/fd", self.child.id());
        let entries = fs::read_dir(folder).expect("it runs").flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .map(|name| name.display().to_string())
            .collect();
        names.sort();
        let is_blob = |name: &String| name.contains("/blobs/sha256/");
        if names.iter().filter(|name| is_blob(name)).count() <= MAX_BLOBS {
            names.retain(|name| !is_blob(name));
        }
        names
    }

    fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status
            .lines()
            .find(|line| line.starts_with("RssAnon:"))
            .expect("a line");
        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// What a build that is let alone must do.
enum End {
    /// Make this file of its output, with these contents.
    Made(PathBuf, String),
    /// Make this file, whatever it holds.
    Exists(PathBuf),
    /// Fail, and say so.
    Fails(&'static str),
    /// End well.
    Well,
}

struct Plan {
    args: Vec<String>,
    end: End,
}

/// One of the kinds of builds, in a folder of its own.
fn plan(daemon: &Daemon, folder: &Path, build: usize, chance: &mut Chance) -> Plan {
    let context = folder.join("context");
    let out = folder.join("out");
    let _ = fs::remove_dir_all(&context);
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&context).expect("made");
    let write = |name: &str, text: &str| fs::write(context.join(name), text).expect("written");
    let base = fixtures().join("bases/busybox");
    let mut args = vec![
        "build".to_owned(),
        daemon.address(),
        format!("--build-context=busybox=oci-layout://{}", base.display()),
        ["--progress=plain", "--progress=quiet", "-q"][chance.below(3) as usize].to_owned(),
    ];
    let local = format!("--output=type=local,dest={}", out.display());
    let text = format!("{build} of {}\n", chance.below(4));
    write("f", &text);
    let (dockerfile, more, end) = match chance.below(10) {
        0 => (
            "FROM busybox AS a\nCOPY f /f\nRUN cat /f > /g\nFROM scratch\nCOPY --from=a /g /g\n".to_owned(),
            vec![local],
            End::Made(out.join("g"), text),
        ),
        // The same for all, at the same time.
        1 | 2 => (
            format!(
                "FROM busybox AS a\nRUN usleep 20000; echo {0} > /s\nFROM scratch\nCOPY --from=a /s /s\n",
                build / 16
            ),
            vec![local],
            End::Made(out.join("s"), format!("{}\n", build / 16)),
        ),
        3 => (
            format!("FROM busybox\nRUN usleep {}; exit 3\n", chance.below(30_000)),
            Vec::new(),
            End::Fails("exit code: 3"),
        ),
        4 => (
            "FROM busybox\nRUN --network=host true\n".to_owned(),
            Vec::new(),
            End::Fails("network.host is not allowed"),
        ),
        5 => (
            "FROM busybox\nRUNN true\n".to_owned(),
            Vec::new(),
            End::Fails("unknown instruction"),
        ),
        6 => (
            format!("FROM busybox\nCOPY f /\nRUN echo {build} > /n\n"),
            vec![format!(
                "--output=type=oci,dest={}",
                folder.join("out.tar").display()
            )],
            End::Exists(folder.join("out.tar")),
        ),
        7 => {
            fs::write(folder.join("secret"), "hidden").expect("written");
            (
                format!(
                    "FROM busybox\nRUN --mount=type=cache,target=/c --mount=type=secret,id=s,required \
                     cat /run/secrets/s >> /c/{}; usleep 10000 & wait\n",
                    build % 3
                ),
                vec![
                    format!("--secret=id=s,src={}", folder.join("secret").display()),
                    "--no-cache".to_owned(),
                ],
                End::Well,
            )
        }
        8 => {
            for number in 0..100 {
                write(&format!("n{number}"), &format!("{}", number * (build % 5)));
            }
            (
                "FROM scratch\nCOPY . /all\n".to_owned(),
                vec![local],
                End::Made(out.join("all/n7"), format!("{}", 7 * (build % 5))),
            )
        }
        _ => (
            "FROM busybox\nCOPY f /\n".to_owned(),
            vec!["--call=check".to_owned()],
            End::Well,
        ),
    };
    write("Dockerfile", &dockerfile);
    args.extend(more);
    args.push(context.display().to_string());
    Plan { args, end }
}

/// Runs one build; true if it was let alone.
fn run(daemon: &Daemon, folder: &Path, build: usize, seed: u64, may_disturb: bool) -> bool {
    use rustix::process::{Pid, Signal, kill_process};
    let mut chance = Chance::of(seed, build);
    let Plan { args, end } = plan(daemon, folder, build, &mut chance);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let errors = fs::File::create(folder.join("errors")).expect("made");
    let mut child = daemon
        .program
        .command(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .expect("the client starts");
    let signal = match chance.below(9) {
        0 => Some(Signal::INT),
        1 => Some(Signal::TERM),
        2 => Some(Signal::KILL),
        _ => None,
    };
    if let Some(signal) = signal.filter(|_| may_disturb) {
        thread::sleep(Duration::from_millis(chance.below(250)));
        let _ = kill_process(Pid::from_child(&child), signal);
        child.wait().expect("collected");
        return false;
    }
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(120) {
            let _ = child.kill();
            panic!(
                "build {build} (seed {seed}) hangs: {args:?}; the daemon: {:?}",
                daemon.busy()
            );
        }
        thread::sleep(Duration::from_millis(2));
    };
    let said = fs::read_to_string(folder.join("errors")).expect("written");
    let told = || format!("build {build} (seed {seed}) ended with {status}: {args:?}\n{said}");
    match end {
        End::Fails(words) => assert!(!status.success() && said.contains(words), "{}", told()),
        End::Well => assert!(status.success(), "{}", told()),
        End::Exists(path) => assert!(status.success() && path.exists(), "{}", told()),
        End::Made(path, text) => {
            assert!(status.success(), "{}", told());
            let made = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{error}: {}", told()));
            assert_eq!(made, text, "{}", told());
        }
    }
    true
}

/// Runs builds `from..to`; how many were let alone.
fn builds(daemon: &Daemon, from: usize, to: usize, seed: u64, may_disturb: bool) -> usize {
    let next = AtomicUsize::new(from);
    let alone = AtomicUsize::new(0);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (next, alone) = (&next, &alone);
            scope.spawn(move || {
                let folder = daemon.place.join(format!("client{client}"));
                fs::create_dir_all(&folder).expect("made");
                loop {
                    let build = next.fetch_add(1, Ordering::Relaxed);
                    if build >= to {
                        return;
                    }
                    if run(daemon, &folder, build, seed, may_disturb) {
                        alone.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    alone.into_inner()
}

/// What is still there after a while; nothing as soon as there is nothing.
fn at_rest(look: impl Fn() -> Vec<String>) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let found = look();
        if found.is_empty() || begun.elapsed() > PATIENCE {
            return found;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Files below the store's folders of contents, which an empty store has none of.
fn contents(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["layers", "blobs/sha256", "caches", "active", "ingest", "trash"] {
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            found.push(format!("{folder}/{}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_builds_leave_nothing() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let seed = number("SOAK_SEED", u64::from(std::process::id()));
    let count = usize::try_from(number("SOAK_BUILDS", 1000)).expect("a count");
    eprintln!("SOAK_SEED={seed} SOAK_BUILDS={count}");
    let place = tempfile::Builder::new()
        .prefix("builder-soak-")
        .tempdir()
        .expect("a temporary folder");
    let root = place.path().join("root");
    let daemon = Daemon::start(place.path());
    let begun = Instant::now();
    builds(&daemon, 0, WARM_UP, seed, false);
    daemon.settle();
    thread::sleep(LINGER + Duration::from_secs(1));
    let (before, files, resident) = (Leftovers::look(&root), daemon.files(), daemon.resident_kib());
    eprintln!(
        "after {WARM_UP} builds, {:?}: {} open files, {resident} KiB",
        begun.elapsed(),
        files.len()
    );
    let (mut alone, mut rounds) = (0, Vec::new());
    for from in (0..count).step_by(ROUND) {
        let to = count.min(from + ROUND);
        alone += builds(&daemon, WARM_UP + from, WARM_UP + to, seed, true);
        daemon.settle();
        // It keeps the logs of builds for a while, and then gives back what it does not need.
        thread::sleep(LINGER + Duration::from_secs(1));
        rounds.push(daemon.resident_kib());
        eprintln!(
            "after {to} more, {:?}: {} KiB",
            begun.elapsed(),
            rounds[rounds.len() - 1]
        );
    }
    let left = at_rest(|| Leftovers::look(&root).since(&before));
    let more = at_rest(|| {
        let now = daemon.files();
        let is_more = now.len() > files.len();
        if is_more { now } else { Vec::new() }
    });
    eprintln!("{alone} were let alone; {} open files", daemon.files().len());
    if !left.is_empty() {
        let kept = place.keep();
        panic!("left behind in {}: {left:?}", kept.display());
    }
    assert!(more.is_empty(), "open files: {files:#?} became {more:#?}");
    // The first round finds what the warm-up did not; after it, nothing grows with builds.
    for pair in rounds.windows(2) {
        assert!(
            pair[1] <= pair[0] + GROWTH_KIB,
            "{resident} KiB became {rounds:?}"
        );
    }
    let first = rounds.first().copied().unwrap_or(resident);
    assert!(first <= resident + (8 << 10), "{resident} KiB became {first} KiB");
    daemon
        .program
        .must(place.path(), &["prune", "-f", "--all", &daemon.address()])
        .expect("prune works");
    let kept = contents(&root);
    assert!(kept.is_empty(), "after prune: {kept:?}");
}
