//! The environment variables, read once.
//!
//! | variable | what for |
//! |---|---|
//! | `BUILDER_ROOT`, `XDG_DATA_HOME`, `HOME` | where the store is |
//! | `BUILDER_CONFIG`, `XDG_CONFIG_HOME` | where the configuration file is |
//! | `DOCKER_CONFIG` | where Docker's configuration is |
//! | `DOCKER_HOST` | which Docker daemon `--load` means (unix sockets) |
//! | `DOCKER_DEFAULT_PLATFORM` | the default of `--platform` |
//! | `SOURCE_DATE_EPOCH` | a build argument when it is set |
//! | `SSH_AUTH_SOCK` | the agent of `--ssh default` |
//! | `NO_COLOR`, `BUILDKIT_COLORS`, `BUILDKIT_TTY_LOG_LINES`, `BUILDKIT_PROGRESS`, `TERM` | how progress looks |
//! | `BUILDER_LOG` | the log filter |
//! | `OTEL_*` | where a daemon's spans go (`otlp.rs`) |
//! | `NOTIFY_SOCKET` | who is told that a daemon serves |
//! | `BUILDKIT_NO_CLIENT_TOKEN` | daemons are shown credentials instead of tokens |
//! | `BUILDKITD_LOG_LEVEL`, `BUILDKITD_DEBUGADDR` | defaults of flags of `serve` |
//! | any | `--build-arg NAME` without a value, `--secret id=…,env=NAME` |
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// A snapshot of the environment.
#[derive(Clone, Default)]
pub struct Environment {
    vars: BTreeMap<OsString, OsString>,
    is_root: bool,
}

impl std::fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.vars.keys()).finish()
    }
}

impl Environment {
    /// Reads the process's environment.
    pub fn read() -> Environment {
        let is_root = rustix::process::geteuid().is_root() && !sandbox_made_us_root();
        Environment {
            vars: std::env::vars_os().collect(),
            is_root,
        }
    }

    /// An environment made of these pairs, for tests.
    pub fn of(pairs: &[(&str, &str)]) -> Environment {
        let vars = pairs
            .iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        Environment { vars, is_root: false }
    }

    /// Where a daemon of this user listens if nothing else is said.
    pub fn default_socket(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some("/run/builder/builderd.sock".into());
        }
        let folder = self.text("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty())?;
        Some(PathBuf::from(folder).join("builder/builderd.sock"))
    }

    /// A variable's value, where it is set and is UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.vars.get(std::ffi::OsStr::new(name))?.to_str()
    }

    /// A variable's bytes.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        use std::os::unix::ffi::OsStrExt;
        self.vars
            .get(std::ffi::OsStr::new(name))
            .map(|value| value.as_bytes().to_vec())
    }

    /// A variable, whatever its bytes.
    pub fn os(&self, name: &str) -> Option<&std::ffi::OsStr> {
        self.vars.get(std::ffi::OsStr::new(name)).map(OsString::as_os_str)
    }

    /// A variable as a path; empty counts as unset.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.vars
            .get(std::ffi::OsStr::new(name))
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    }

    /// True for a variable that is set to something.
    pub fn is_set(&self, name: &str) -> bool {
        self.vars
            .get(std::ffi::OsStr::new(name))
            .is_some_and(|value| !value.is_empty())
    }

    /// `$BUILDER_ROOT`.
    pub fn builder_root(&self) -> Option<PathBuf> {
        self.path("BUILDER_ROOT")
    }

    /// `/var/lib/builder` for root, else below the user's data home.
    pub fn default_root(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some(PathBuf::from("/var/lib/builder"));
        }
        let data = self
            .path("XDG_DATA_HOME")
            .or_else(|| Some(self.path("HOME")?.join(".local/share")))?;
        Some(data.join("builder"))
    }

    /// The configuration files in the order in which they are looked for; the first is required if named by a variable.
    pub fn config_files(&self) -> (Option<PathBuf>, Vec<PathBuf>) {
        let home = self
            .path("XDG_CONFIG_HOME")
            .or_else(|| Some(self.path("HOME")?.join(".config")));
        let mut candidates: Vec<PathBuf> = home
            .into_iter()
            .map(|dir| dir.join("builder/builder.toml"))
            .collect();
        candidates.push("/etc/builder/builder.toml".into());
        (self.path("BUILDER_CONFIG"), candidates)
    }

    /// Where BuildKit's daemon has its configuration.
    pub fn buildkitd_file(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some("/etc/buildkit/buildkitd.toml".into());
        }
        let home = self
            .path("XDG_CONFIG_HOME")
            .or_else(|| Some(self.path("HOME")?.join(".config")))?;
        Some(home.join("buildkit/buildkitd.toml"))
    }

    /// Docker's configuration file, whether or not it exists.
    pub fn docker_config(&self) -> Option<PathBuf> {
        let folder = self
            .path("DOCKER_CONFIG")
            .or_else(|| Some(self.path("HOME")?.join(".docker")))?;
        Some(folder.join("config.json"))
    }

    /// Where the seeds of this user's keys for registries are kept, whether or not there are any yet.
    pub fn token_seeds(&self) -> Option<PathBuf> {
        Some(self.docker_config()?.with_file_name(".token_seed"))
    }

    /// The socket of the Docker daemon `--load` talks to; `None` if `DOCKER_HOST` is not a unix socket.
    pub fn docker_socket(&self) -> Option<PathBuf> {
        match self.text("DOCKER_HOST").filter(|host| !host.is_empty()) {
            None => Some("/var/run/docker.sock".into()),
            Some(host) => host.strip_prefix("unix://").map(PathBuf::from),
        }
    }
}

/// True inside the user namespace an ordinary user's builder runs in, where everybody looks like root.
fn sandbox_made_us_root() -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else {
        return false;
    };
    let mut fields = map.split_whitespace().map(str::parse::<u64>);
    !matches!((fields.next(), fields.next()), (Some(Ok(0)), Some(Ok(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_below_the_users_data_home() {
        for (vars, expected) in [
            (&[("HOME", "/home/u")][..], Some("/home/u/.local/share/builder")),
            (
                &[("HOME", "/home/u"), ("XDG_DATA_HOME", "/data")][..],
                Some("/data/builder"),
            ),
            (&[][..], None),
        ] {
            assert_eq!(
                Environment::of(vars).default_root(),
                expected.map(PathBuf::from),
                "{vars:?}"
            );
        }
    }

    #[test]
    fn debug_prints_no_value() {
        let shown = format!("{:?}", Environment::of(&[("TOKEN", "hunter2")]));
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"));
    }
}
