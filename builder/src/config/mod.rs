//! The only place that reads environment variables, home directories and configuration files.
//!
//! ```text
//! environment ─┐
//! builder.toml ┼─▶ Config ─▶ plain values for everybody below
//! config.json  ┘
//! ```
//!
//! | file | what is read |
//! |---|---|
//! | `$BUILDER_CONFIG`, else `~/.config/builder/builder.toml`, else `/etc/builder/builder.toml` | everything of [`file::ConfigFile`] |
//! | `serve --config`, else `/etc/buildkit/buildkitd.toml`, without root `~/.config/buildkit/buildkitd.toml` | [`DaemonFile`], for `serve` alone |
//! | `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json` | credentials, credential helpers, proxies |
//!
//! A key that is not known is an error that names it: a typing mistake in a mirror must not go unnoticed.
mod environment;
mod file;
mod buildkitd;
mod otlp; // where spans go
mod credentials;

pub use buildkitd::{
    DaemonFile, Dns, Frontends, Gc, GcLimits, GcPolicy, NetworkMode, OciWorker, Space, parse_keep_storage,
};
pub use credentials::DockerCredentials;
pub use environment::Environment;
pub use file::{ConfigFile, GcFile, KeyPairFile, RegistryFile, WorkerFile};
pub use otlp::{Otlp, OtlpProtocol, Tracing};

use std::path::PathBuf;

/// What went wrong while the configuration was read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("read configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file does not say what it should.
    #[error("configuration {}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        reason: String,
    },
    /// There is neither `$BUILDER_ROOT` nor a home directory.
    #[error("no place for the builder's store: set BUILDER_ROOT or HOME")]
    NoHome,
}

/// Everything the program was told by its surroundings.
#[derive(Debug)]
pub struct Config {
    /// The environment.
    pub environment: Environment,
    /// The configuration file, or its defaults.
    pub file: ConfigFile,
    /// Where the store is.
    pub root: PathBuf,
    /// What a daemon's configuration lets the store hold, where that is more than the default.
    pub least_ceiling: u64,
    /// How steps run on a daemon.
    pub steps: Steps,
}

/// What a daemon's configuration says about all steps.
#[derive(Debug, Default)]
pub struct Steps {
    /// Name servers.
    pub dns: Dns,
    /// They share the machine's network.
    pub share_network: bool,
    /// Above their control groups.
    pub cgroup_parent: Option<String>,
    /// Devices, or kinds of them, that every build may use.
    pub free_devices: Vec<String>,
    /// Transfers from one registry at once.
    pub registry_parallelism: Option<usize>,
}

impl Config {
    /// Reads all of it.
    ///
    /// # Errors
    /// [`ConfigError`], the user's move in every case.
    pub fn load(root_flag: Option<PathBuf>) -> Result<Config, ConfigError> {
        let environment = Environment::read();
        let file = ConfigFile::load(&environment)?;
        let root = match root_flag
            .or_else(|| environment.builder_root())
            .or_else(|| file.root.clone())
        {
            Some(root) => root,
            None => environment.default_root().ok_or(ConfigError::NoHome)?,
        };
        let root = std::path::absolute(&root).map_err(|source| ConfigError::Read {
            path: root.clone(),
            source,
        })?;
        Ok(Config {
            environment,
            file,
            root,
            least_ceiling: 0,
            steps: Steps::default(),
        })
    }
}
