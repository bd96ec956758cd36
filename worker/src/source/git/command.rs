//! One run of the `git` program: a clean environment, no host configuration, no hooks, only transports over the network.
use super::GitError;
use solver::{OpContext, OpError, progress::OutputStream};
use std::{path::Path, process::Stdio};
use tokio::process::Command;

/// How many bytes of what git said are shown in an error.
const SAID_BYTES: usize = 4096;

/// git, as it is run for one source.
pub(super) struct Git {
    pub(super) environment: Vec<(String, std::ffi::OsString)>,
    pub(super) ctx: OpContext,
    pub(super) remote: String,
    /// Gone with this value.
    pub(super) temporary: tempfile::TempDir,
    /// Some agents are served only as long as this is held.
    pub(super) _agent: Option<session::SshAgent>,
}

impl Git {
    /// Runs git beside the checkout and gives what it printed.
    pub(super) async fn run(
        &self,
        action: &'static str,
        git_dir: Option<&Path>,
        args: &[&str],
    ) -> Result<String, OpError> {
        self.run_in(action, git_dir, None, args).await
    }

    /// Runs git in `folder` and gives what it printed.
    pub(super) async fn run_in(
        &self,
        action: &'static str,
        git_dir: Option<&Path>,
        folder: Option<&Path>,
        args: &[&str],
    ) -> Result<String, OpError> {
        let mut command = Command::new("git");
        command
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| is_passed_on(name)));
        command.envs([
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("HOME", "/dev/null"),
            ("LC_ALL", "C"),
        ]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        for setting in [
            "protocol.allow=never",
            "protocol.http.allow=always",
            "protocol.https.allow=always",
            "protocol.ssh.allow=always",
            "protocol.git.allow=always",
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "init.defaultBranch=master",
            "advice.detachedHead=false",
            "safe.directory=*",
            "gc.auto=0",
        ] {
            command.args(["-c", setting]);
        }
        if let Some(git_dir) = git_dir {
            command.arg("--git-dir").arg(git_dir);
        }
        command
            .args(args)
            .current_dir(folder.unwrap_or_else(|| self.temporary.path()));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command
            .spawn()
            .map_err(|error| OpError::environment(GitError::NoGit(error)))?;
        let output = self
            .ctx
            .unless_canceled(child.wait_with_output())
            .await?
            .map_err(OpError::environment)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            let start = said.char_indices().rev().nth(SAID_BYTES).map_or(0, |(at, _)| at);
            let said = said[start..].trim().to_owned();
            return Err(OpError::environment(GitError::Failed {
                action,
                remote: self.remote.clone(),
                said,
            }));
        }
        self.ctx.progress.log(OutputStream::Stderr, said.as_bytes());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Which of our own variables git gets: where programs are, and how to reach the network.
fn is_passed_on(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy().to_ascii_uppercase();
    matches!(
        name.as_str(),
        "PATH" | "HTTP_PROXY" | "HTTPS_PROXY" | "NO_PROXY" | "ALL_PROXY"
    )
}
