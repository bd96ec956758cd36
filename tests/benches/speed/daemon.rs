//! Daemons, ours and BuildKit's, and clients of either.
use super::binary;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tests::{Program, User, fixtures};

/// How long a daemon may take until somebody can connect.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often memory is looked at; the kernel keeps the peak, but not beyond the end of a process.
const LOOK: Duration = Duration::from_millis(1);

/// Whose daemon.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Ours.
    Ours,
    /// BuildKit's, at this path.
    BuildKit(PathBuf),
}

/// BuildKit's daemon and its client, if the environment names both.
pub(super) fn reference() -> Option<(Kind, Client)> {
    let daemon = std::env::var_os("BENCH_BUILDKITD")?.into();
    let client = std::env::var_os("BENCH_BUILDCTL")?.into();
    Some((Kind::BuildKit(daemon), Client::Buildctl(client)))
}

/// A daemon that listens, on a root of its own; killed and removed at the end.
pub(super) struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// Starts one with an empty store.
    pub(super) fn start(kind: &Kind) -> Result<Daemon> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("s.sock");
        let address = format!("unix://{}", socket.display());
        let root = folder.path().join("root");
        let mut command = match kind {
            Kind::Ours => {
                binary()?;
                Program::new(&root, User::Same).command(&["serve", "--addr", &address])
            }
            Kind::BuildKit(path) => {
                let mut command = Command::new(path);
                command.args(["--addr", &address, "--oci-worker-snapshotter=overlayfs", "--root"]);
                command.arg(&root);
                command
            }
        };
        let log = fs::File::create(folder.path().join("log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start a daemon")?;
        let mut daemon = Daemon { child, folder };
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            if let Some(ended) = daemon.child.try_wait()? {
                bail!("the daemon ended with {ended}: {}", daemon.log());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "the daemon does not listen: {}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn address(&self) -> String {
        format!("unix://{}", self.folder.path().join("s.sock").display())
    }

    /// Its resident memory now, in KiB.
    pub(super) fn resident(&self) -> Result<u64> {
        status(self.child.id(), "VmRSS:").context("the daemon has ended")
    }

    /// The most it ever had resident, in KiB.
    pub(super) fn peak(&self) -> Result<u64> {
        status(self.child.id(), "VmHWM:").context("the daemon has ended")
    }

    /// A build of a folder `context`, through this daemon, given out nowhere.
    fn build(&self, client: &Client, context: &Path) -> Command {
        let layout = fixtures().join("bases/busybox");
        let mut command;
        match client {
            Client::Ours => {
                let program = Program::new(&self.folder.path().join("client"), User::Same);
                command = program.command(&["build", "--addr", &self.address(), "--progress=quiet"]);
                command.args(["-o", "type=cacheonly"]);
                let base = format!("base=oci-layout://{}", layout.display());
                command.args(["--build-context", &base]).arg(context);
            }
            Client::Buildctl(path) => {
                let option = |name: &str| format!("{name}={}", context.display());
                command = Command::new(path);
                command.args(["--addr", &self.address(), "build", "--progress=plain"]);
                command.args(["--frontend", "dockerfile.v0", "--local", &option("context")]);
                command.args(["--local", &option("dockerfile"), "--oci-layout"]);
                command.arg(format!("base={}", layout.display()));
                let digest = base_digest(&layout).unwrap_or_default();
                command.args(["--opt", &format!("context:base=oci-layout://base@{digest}")]);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Builds, and insists on success.
    pub(super) fn must(&self, client: &Client, context: &Path) -> Result<()> {
        let output = self.build(client, context).stderr(Stdio::piped()).output()?;
        ensure!(
            output.status.success(),
            "{}\nthe daemon says: {}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        Ok(())
    }

    /// Builds `count` times at once.
    pub(super) fn must_all(&self, client: &Client, context: &Path, count: usize) -> Result<()> {
        let mut running = Vec::new();
        for _ in 0..count {
            running.push(self.build(client, context).stderr(Stdio::null()).spawn()?);
        }
        for mut child in running {
            ensure!(child.wait()?.success(), "a client failed: {}", self.log());
        }
        Ok(())
    }

    /// Builds, and says how much memory the client had resident at most, in KiB.
    pub(super) fn client_peak(&self, client: &Client, context: &Path) -> Result<u64> {
        let mut child = self.build(client, context).stderr(Stdio::null()).spawn()?;
        let mut peak = 0;
        loop {
            peak = peak.max(status(child.id(), "VmHWM:").unwrap_or(0));
            if let Some(ended) = child.try_wait()? {
                ensure!(ended.success(), "the client failed: {}", self.log());
                return Ok(peak);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Who asks for a build.
#[derive(Clone, Debug)]
pub(super) enum Client {
    /// `builder build --addr`.
    Ours,
    /// BuildKit's, at this path.
    Buildctl(PathBuf),
}

/// A line of `/proc/<pid>/status`, in KiB.
fn status(pid: u32, field: &str) -> Option<u64> {
    let mut text = String::new();
    fs::File::open(format!("/proc/{pid}/status"))
        .and_then(|mut file| file.read_to_string(&mut text))
        .ok()?;
    text.lines().find_map(|line| {
        line.strip_prefix(field)?
            .trim()
            .strip_suffix(" kB")?
            .trim()
            .parse()
            .ok()
    })
}

fn base_digest(layout: &Path) -> Result<String> {
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"].as_str();
    Ok(digest.context("the base has no manifest")?.to_owned())
}
