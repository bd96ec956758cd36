//! The store and the registry client, opened as the configuration says.
use crate::build::BuildError;
use crate::config::{Config, DockerCredentials, RegistryFile};
use async_trait::async_trait;
use cache::layer::{DirOptions, OverlayXattrs, Ownership};
use cache::{Cache, Options};
use registry::{Credential, CredentialError, Credentials, HostConfig, HostsConfig, Password, Registry};
use session::{CredentialLookup, RegistryCredential, Secret};
use std::path::PathBuf;
use std::sync::Arc;

/// Opens the store.
///
/// # Errors
/// [`BuildError::Store`].
pub fn open_store(config: &Config) -> Result<Cache, BuildError> {
    let failed = |reason: String| BuildError::Store {
        root: config.root.clone(),
        reason,
    };
    // Checked when the file was read.
    let ceiling = config
        .file
        .gc
        .max_used_space
        .as_deref()
        .and_then(|size| crate::units::parse_bytes(size).ok());
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let options = Options {
        ceiling,
        least_ceiling: config.least_ceiling,
        dirs: dir_options(&map),
    };
    Cache::open(&config.root, options).map_err(|error| {
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            reason = format!("{reason}: {next}");
            cause = next.source();
        }
        failed(reason)
    })
}

/// How directories of layers can be made under this map of user ids.
fn dir_options(uid_map: &str) -> DirOptions {
    let ranges: Vec<Vec<u64>> = uid_map
        .lines()
        .map(|line| {
            line.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect()
        })
        .collect();
    let is_whole = ranges
        .iter()
        .any(|range| matches!(range.as_slice(), [0, 0, count] if *count >= u64::from(u32::MAX)));
    let mapped: u64 = ranges.iter().filter_map(|range| range.get(2)).sum();
    match (is_whole, mapped > 1) {
        (true, _) => DirOptions {
            ownership: Ownership::Exact,
            xattrs: OverlayXattrs::Trusted,
        },
        (false, true) => DirOptions {
            ownership: Ownership::Exact,
            xattrs: OverlayXattrs::User,
        },
        (false, false) => DirOptions {
            ownership: Ownership::BestEffort,
            xattrs: OverlayXattrs::User,
        },
    }
}

/// The hosts of the configuration file as the registry client takes them.
pub fn hosts(config: &Config) -> HostsConfig {
    let hosts = config
        .file
        .registry
        .iter()
        .map(|(host, file)| (host.clone(), host_config(file)));
    HostsConfig {
        hosts: hosts.collect(),
        parallelism: config.steps.registry_parallelism,
    }
}

/// One registry, with what lies in its folders of certificates; a folder that is not there holds nothing.
fn host_config(file: &RegistryFile) -> HostConfig {
    let mut ca_files = file.ca.clone();
    let mut pairs: Vec<(PathBuf, PathBuf)> = file
        .keypair
        .iter()
        .map(|pair| (pair.cert.clone(), pair.key.clone()))
        .collect();
    for folder in &file.tls_config_dirs {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => ca_files.push(path),
                Some("cert") => pairs.push((path.clone(), path.with_extension("key"))),
                _ => {}
            }
        }
    }
    HostConfig {
        mirrors: file.mirrors.clone(),
        plain_http: file.http,
        skip_verify: file.insecure,
        falls_back: false,
        ca_files,
        identity: pairs.into_iter().next(),
    }
}

/// A registry client with the user's own credentials, for `push` and `pull`.
///
/// # Errors
/// A certificate file cannot be read.
pub(super) fn registry(config: &Config) -> Result<Registry, BuildError> {
    Registry::new(hosts(config), Arc::new(UserCredentials::of(config))).map_err(|error| BuildError::Machine {
        doing: "set up the registry client".into(),
        reason: error.to_string(),
    })
}

/// The user's own credentials.
pub(super) struct UserCredentials(DockerCredentials);

impl UserCredentials {
    /// Those of Docker's configuration.
    pub(super) fn of(config: &Config) -> UserCredentials {
        UserCredentials(DockerCredentials::of(&config.environment))
    }
}

#[async_trait]
impl Credentials for UserCredentials {
    async fn credentials(&self, host: &str) -> Result<Option<Credential>, CredentialError> {
        let (lookup, host) = (self.0.clone(), host.to_owned());
        let found = tokio::task::spawn_blocking(move || lookup.lookup(&host)).await??;
        let text = |secret: &Secret| Password::new(secret.expose_text().unwrap_or_default());
        Ok(found.map(|found| match &found {
            RegistryCredential::Basic { username, secret } => Credential::Basic {
                username: username.clone(),
                secret: text(secret),
            },
            RegistryCredential::IdentityToken(token) => Credential::IdentityToken(text(token)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_certificates_are_looked_into() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["b.crt", "a.crt", "client.cert", "client.key", "README"] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        let file = RegistryFile {
            ca: vec!["own.pem".into()],
            tls_config_dirs: vec!["/nonexistent".into(), folder.path().to_owned()],
            ..RegistryFile::default()
        };
        let host = host_config(&file);
        let at = |name: &str| folder.path().join(name);
        assert_eq!(host.ca_files, ["own.pem".into(), at("a.crt"), at("b.crt")]);
        assert_eq!(host.identity, Some((at("client.cert"), at("client.key"))));
    }

    #[test]
    fn directories_are_made_as_the_user_namespace_allows() {
        for (map, ownership, xattrs) in [
            (
                "         0          0 4294967295\n",
                Ownership::Exact,
                OverlayXattrs::Trusted,
            ),
            (
                "0 1000 1\n1 100000 65536\n",
                Ownership::Exact,
                OverlayXattrs::User,
            ),
            ("0 1000 1\n", Ownership::BestEffort, OverlayXattrs::User),
            ("", Ownership::BestEffort, OverlayXattrs::User),
        ] {
            let options = dir_options(map);
            assert_eq!(
                (options.ownership, options.xattrs),
                (ownership, xattrs),
                "{map:?}"
            );
        }
    }
}
