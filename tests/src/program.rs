//! Runs the real binary.
use anyhow::{Context, Result, bail};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long one build of a test may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(300);

/// Who runs the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    #[default]
    Same,
    /// `builder-test`, an ordinary user with sub ids; needs root to become it.
    Ordinary,
    /// The same on a machine where `/dev/net/tun` is for everybody, as distributions have it.
    OrdinaryWithTun,
    /// The same without sub ids: its user namespace has one id only.
    OrdinaryWithoutSubIds,
    /// Root as containers have it, who may neither mount nor set up networks; needs root.
    RootOfContainer,
}

/// The program on one root.
#[derive(Clone, Debug)]
pub struct Program {
    root: PathBuf,
    user: User,
    binary: PathBuf,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code; 128 and the signal for one that was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// The folder `fixtures` of the project.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the project")
        .join("fixtures")
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a program is installed; tests that need one that is not skip by name.
pub fn tool(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

impl Program {
    /// The program with its store at `root`.
    pub fn new(root: &Path, user: User) -> Program {
        Program {
            root: root.to_owned(),
            user,
            binary: Program::binary(),
        }
    }

    /// The same with another copy of the binary, for a user who may not look into this checkout.
    #[must_use]
    pub fn with_binary(mut self, binary: &Path) -> Program {
        self.binary = binary.to_owned();
        self
    }

    /// Where the binary is: beside the tests, built by the same `cargo test`.
    pub fn binary() -> PathBuf {
        if let Some(path) = std::env::var_os("BUILDER_BINARY") {
            return path.into();
        }
        let tests = std::env::current_exe().expect("a test has a path");
        let folder = tests
            .parent()
            .and_then(Path::parent)
            .expect("tests lie in <profile>/deps");
        folder.join("builder")
    }

    /// A command with `args`, the root set and nothing of the user's own configuration.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.user {
            User::Same => Command::new(&self.binary),
            User::Ordinary => {
                let mut command = Command::new("runuser");
                command.args(["-u", "builder-test", "--"]).arg(&self.binary);
                command
            }
            User::OrdinaryWithTun => self.in_private_mounts(
                "mount -t tmpfs -o mode=755 none /dev/net && mknod -m 666 /dev/net/tun c 10 200",
            ),
            User::RootOfContainer => {
                let without = "-sys_admin,-net_admin,-sys_ptrace,-sys_resource,-mknod";
                let mut command = Command::new("setpriv");
                command.args(["--bounding-set", without, "--inh-caps", without, "--"]);
                command.arg(&self.binary);
                command
            }
            User::OrdinaryWithoutSubIds => self.in_private_mounts("mount --bind /dev/null /etc/subuid"),
        };
        command
            .args(args)
            .env("BUILDER_ROOT", &self.root)
            .env("HOME", &self.root)
            .env_remove("DOCKER_CONFIG")
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_RUNTIME_DIR")
            .env("NO_COLOR", "1");
        command
    }

    /// As the ordinary user, on a machine changed by `change` for nobody else.
    fn in_private_mounts(&self, change: &str) -> Command {
        let mut command = Command::new("unshare");
        let script = format!("{change} && exec runuser -u builder-test -- \"$0\" \"$@\"");
        command.args(["--mount", "sh", "-c", &script]).arg(&self.binary);
        command
    }

    /// Runs it in `folder` with `stdin`, to its end.
    ///
    /// # Errors
    /// It cannot be started, or hangs.
    pub fn run(
        &self,
        folder: &Path,
        args: &[&str],
        env: &[(String, String)],
        stdin: &[u8],
    ) -> Result<Output> {
        let mut command = self.command(args);
        command
            .current_dir(folder)
            .envs(env.iter().map(|(name, value)| (name, value)));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        let mut pipe = child.stdin.take().expect("it was asked for");
        let stdin = stdin.to_vec();
        let feeding = std::thread::spawn(move || {
            // A program that reads nothing closes the pipe: that is its right.
            let _ = pipe.write_all(&stdin);
        });
        let id = child.id();
        let begun = Instant::now();
        let watch = std::thread::spawn(move || child.wait_with_output());
        while !watch.is_finished() {
            if begun.elapsed() > PATIENCE {
                let pid = rustix::process::Pid::from_raw(i32::try_from(id)?).context("a pid")?;
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                bail!("builder {args:?} did not end within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        feeding.join().expect("feeding does not panic");
        let output = watch.join().expect("waiting does not panic")?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        Ok(Output {
            code: output.status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it and insists on success.
    ///
    /// # Errors
    /// As [`Program::run`], and for any exit code but 0.
    pub fn must(&self, folder: &Path, args: &[&str]) -> Result<Output> {
        let output = self.run(folder, args, &[], b"")?;
        if output.code != 0 {
            bail!(
                "builder {args:?} ended with {}:\n{}{}",
                output.code,
                output.stdout,
                output.stderr
            );
        }
        Ok(output)
    }
}
