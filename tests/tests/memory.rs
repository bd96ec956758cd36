//! A file far larger than what either end may hold goes to a daemon: over TCP as bytes, on one machine as a descriptor.
//!
//! ```text
//! client ─▶ daemon ─▶ COPY        the most either ever had resident (VmHWM) stays below a bound
//! ```
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use tests::{Program, User};

/// The file: sparse, so that neither end waits for a disk.
const BYTES: u64 = 1 << 30;
/// What a daemon may have resident: the program itself, windows of HTTP/2 and buffers.
const DAEMON_KIB: u64 = 120 << 10;
const CLIENT_KIB: u64 = 80 << 10;

/// A daemon that ends with the test.
struct Daemon(Child);

impl Daemon {
    /// Starts one; gives the address it says it serves at.
    fn start(root: &Path, address: &str) -> (Daemon, String) {
        let program = Program::new(root, User::Same);
        let mut child = program
            .command(&["serve", "--addr", address])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let serving = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("serving at ").map(|(_, at)| at.trim().to_owned()));
        std::thread::spawn(move || lines.for_each(drop));
        (Daemon(child), serving.expect("it serves"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

/// The most a process ever had resident, in KiB; nothing of one that is gone.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[test]
fn a_file_larger_than_memory_may_grow_passes_through() {
    let folder = tempfile::tempdir().expect("a folder");
    let context = folder.path().join("context");
    fs::create_dir(&context).expect("made");
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY big /\n").expect("written");
    let big = File::create(context.join("big")).expect("made");
    big.set_len(BYTES).expect("made large");
    let unix = format!("unix://{}", folder.path().join("s.sock").display());
    // Free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr());
    let tcp = format!("tcp://{}", port.expect("a port"));
    for address in [&tcp, &unix] {
        let root = folder.path().join("root");
        let (daemon, serving) = Daemon::start(&root, address);
        let client = Program::new(&folder.path().join("client"), User::Same);
        let mut command = client.command(&["build", "--addr", &serving, "--progress=quiet"]);
        command.args(["-o", "type=cacheonly"]).arg(&context);
        let mut child = command.stdin(Stdio::null()).spawn().expect("the client starts");
        let mut most = 0;
        let ended = loop {
            most = most.max(peak(child.id()).unwrap_or(0));
            if let Some(ended) = child.try_wait().expect("it is ours") {
                break ended;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        assert!(ended.success(), "{serving}: the build failed");
        let daemon_peak = peak(daemon.0.id()).expect("it runs");
        assert!(
            daemon_peak <= DAEMON_KIB,
            "{serving}: the daemon had {daemon_peak} KiB"
        );
        assert!(most <= CLIENT_KIB, "{serving}: the client had {most} KiB");
        drop(daemon);
        fs::remove_dir_all(&root).expect("removed");
    }
}
