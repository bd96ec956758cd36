//! `builder.toml`: what an administrator or user sets once.
//!
//! ```toml
//! root = "/srv/builder"                    # where the store is
//!
//! [registry."docker.io"]
//! mirrors = ["mirror.example:5000/hub"]    # asked first, in this order
//! [registry."registry.lan:5000"]
//! http = true                              # plain http
//! insecure = true                          # https, whatever the certificate says
//! ca = ["/etc/ssl/lan.pem"]                # more certificates to believe
//! keypair = [{key = "k.pem", cert = "c.pem"}]  # what to show to it
//! tlsconfigdir = ["/etc/certs.d/lan"]      # folders of such files
//!
//! [worker]
//! max-parallelism = 4                      # steps at once; default: the number of processors
//! oci-runtime = "/usr/bin/crun"            # runs steps instead of the built-in executor
//!
//! [cdi]
//! spec-dirs = ["/etc/cdi", "/var/run/cdi"]  # where devices for RUN --device are described
//!
//! [gc]
//! max-used-space = "100GB"                 # the ceiling of the store
//! ```
use super::{ConfigError, Environment};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConfigFile {
    /// Where the store is.
    pub root: Option<PathBuf>,
    /// By registry host.
    pub registry: BTreeMap<String, RegistryFile>,
    /// How steps run.
    pub worker: WorkerFile,
    /// How large the store may get.
    pub gc: GcFile,
    /// Devices for steps.
    pub cdi: CdiFile,
}

/// One registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RegistryFile {
    /// Hosts (with an optional path) asked before the registry itself.
    pub mirrors: Vec<String>,
    /// Plain http.
    pub http: bool,
    /// https without looking at the certificate.
    pub insecure: bool,
    /// PEM files to believe.
    pub ca: Vec<PathBuf>,
    /// Certificates to show to it; the first is used.
    pub keypair: Vec<KeyPairFile>,
    /// Folders with `*.crt` to believe, and `*.cert` with `*.key` to show.
    #[serde(rename = "tlsconfigdir")]
    pub tls_config_dirs: Vec<PathBuf>,
}

/// A certificate and its key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPairFile {
    /// The key, PEM.
    pub key: PathBuf,
    /// The certificate, PEM.
    pub cert: PathBuf,
}

/// How steps run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WorkerFile {
    /// Steps at once.
    pub max_parallelism: Option<usize>,
    /// An OCI runtime to run steps by.
    pub oci_runtime: Option<PathBuf>,
}

/// Devices for steps.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CdiFile {
    /// Where they are described; what lies in a later directory wins.
    pub spec_dirs: Option<Vec<PathBuf>>,
}

/// How large the store may get.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GcFile {
    /// The ceiling, as a size with a unit.
    pub max_used_space: Option<String>,
}

impl ConfigFile {
    pub(super) fn load(environment: &Environment) -> Result<ConfigFile, ConfigError> {
        let (named, candidates) = environment.config_files();
        if let Some(path) = named {
            let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
                path: path.clone(),
                source,
            })?;
            return parse(&path, &text);
        }
        for path in candidates {
            match std::fs::read_to_string(&path) {
                Ok(text) => return parse(&path, &text),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // Inside a user namespace another user's home may be closed; that is the same as not there.
                Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {}
                Err(source) => return Err(ConfigError::Read { path, source }),
            }
        }
        Ok(ConfigFile::default())
    }
}

fn parse(path: &Path, text: &str) -> Result<ConfigFile, ConfigError> {
    let failed = |reason: String| ConfigError::Parse {
        path: path.to_owned(),
        reason,
    };
    let file: ConfigFile = toml::from_str(text).map_err(|error| failed(error.to_string()))?;
    if let Some(size) = &file.gc.max_used_space {
        crate::units::parse_bytes(size).map_err(|reason| failed(format!("gc.max-used-space: {reason}")))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named() {
        let error = parse(Path::new("b.toml"), "[registry.\"a\"]\nmiror = []\n").expect_err("misspelt");
        assert!(error.to_string().contains("miror"), "{error}");
    }

    #[test]
    fn the_example_of_the_docs_is_read() {
        let text = r#"
            [registry."docker.io"]
            mirrors = ["mirror.example:5000/hub"]
            [worker]
            max-parallelism = 4
            [gc]
            max-used-space = "100GB"
        "#;
        let file = parse(Path::new("b.toml"), text).expect("valid");
        assert_eq!(file.registry["docker.io"].mirrors, ["mirror.example:5000/hub"]);
        assert_eq!(file.worker.max_parallelism, Some(4));
        assert!(parse(Path::new("b.toml"), "[gc]\nmax-used-space = \"lots\"").is_err());
    }
}
