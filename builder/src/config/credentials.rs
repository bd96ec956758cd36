//! Registry credentials and proxies from Docker's configuration.
//!
//! Helpers (`credHelpers`, `credsStore`) are run by `docker_credential`. Docker Hub has four spellings; all
//! are tried. What is configured but cannot be had is an error, never silently anonymous: a push that fails
//! with "denied" would hide the broken helper.
use super::Environment;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;
use session::{CredentialLookup, RegistryCredential, Secret};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Docker's `config.json`.
#[derive(Debug, Clone)]
pub struct DockerCredentials {
    path: Option<PathBuf>,
}

impl DockerCredentials {
    /// The file the environment points to; it need not exist.
    pub fn of(environment: &Environment) -> DockerCredentials {
        DockerCredentials {
            path: environment.docker_config(),
        }
    }

    /// Build arguments from the `proxies.default` section, in the spellings Docker sets.
    pub fn proxies(&self) -> BTreeMap<String, String> {
        let parsed: Option<DockerConfig> = self
            .path
            .as_ref()
            .and_then(|path| std::fs::read(path).ok())
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        parsed
            .and_then(|mut config| config.proxies.remove("default"))
            .map(Proxies::build_args)
            .unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    proxies: BTreeMap<String, Proxies>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Proxies {
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
    ftp_proxy: String,
    all_proxy: String,
}

impl Proxies {
    fn build_args(self) -> BTreeMap<String, String> {
        [
            ("HTTP_PROXY", self.http_proxy),
            ("HTTPS_PROXY", self.https_proxy),
            ("NO_PROXY", self.no_proxy),
            ("FTP_PROXY", self.ftp_proxy),
            ("ALL_PROXY", self.all_proxy),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .flat_map(|(name, value)| {
            [
                (name.to_owned(), value.clone()),
                (name.to_ascii_lowercase(), value),
            ]
        })
        .collect()
    }
}

impl CredentialLookup for DockerCredentials {
    fn lookup(&self, host: &str) -> Result<Option<RegistryCredential>, String> {
        let Some(path) = &self.path else { return Ok(None) };
        for name in spellings(host) {
            let file = match std::fs::File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(format!("open {}: {error}", path.display())),
            };
            match docker_credential::get_credential_from_reader(file, name) {
                Ok(credential) => return Ok(Some(converted(credential))),
                Err(CredentialRetrievalError::NoCredentialConfigured) => {}
                Err(error) => match nothing_stored(&error) {
                    true => {}
                    false => return Err(format!("{}: {}", path.display(), described(&error))),
                },
            }
        }
        Ok(None)
    }
}

/// The names under which a host's credentials may be stored.
fn spellings(host: &str) -> Vec<&str> {
    match host {
        "docker.io" | "registry-1.docker.io" | "index.docker.io" => {
            vec![
                "https://index.docker.io/v1/",
                "index.docker.io",
                "docker.io",
                "registry-1.docker.io",
            ]
        }
        other => vec![other],
    }
}

fn converted(credential: DockerCredential) -> RegistryCredential {
    match credential {
        DockerCredential::IdentityToken(token) => RegistryCredential::IdentityToken(Secret::from(token)),
        // By the protocol of the helpers this user name marks a token.
        DockerCredential::UsernamePassword(name, token) if name == "<token>" => {
            RegistryCredential::IdentityToken(Secret::from(token))
        }
        DockerCredential::UsernamePassword(username, password) => RegistryCredential::Basic {
            username,
            secret: Secret::from(password),
        },
    }
}

/// Helpers say so by a sentence on stdout when they hold nothing for a host.
fn nothing_stored(error: &CredentialRetrievalError) -> bool {
    matches!(error, CredentialRetrievalError::HelperFailure { stdout, .. }
        if stdout.contains("credentials not found"))
}

/// Without a helper's stdout: it may hold half a secret.
fn described(error: &CredentialRetrievalError) -> String {
    match error {
        CredentialRetrievalError::HelperFailure { helper, stderr, .. } => {
            format!("credential helper {helper:?} failed: {}", stderr.trim())
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, DockerCredentials) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).expect("written");
        (folder, DockerCredentials { path: Some(path) })
    }

    #[test]
    fn hub_credentials_are_found_under_the_old_name() {
        // base64 of "user:password"
        let (_folder, found) =
            config(r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNzd29yZA=="}}}"#);
        let expected = RegistryCredential::Basic {
            username: "user".into(),
            secret: Secret::from("password".to_owned()),
        };
        assert_eq!(found.lookup("docker.io"), Ok(Some(expected)));
        assert_eq!(found.lookup("ghcr.io"), Ok(None));
    }

    #[test]
    fn a_helper_that_is_not_there_is_an_error() {
        let (_folder, found) = config(r#"{"credHelpers":{"ghcr.io":"no-such-helper-anywhere"}}"#);
        assert!(found.lookup("ghcr.io").is_err());
        assert_eq!(found.lookup("quay.io"), Ok(None));
    }

    #[test]
    fn proxies_become_build_arguments_in_both_cases() {
        let (_folder, found) = config(r#"{"proxies":{"default":{"httpProxy":"http://p:3128"}}}"#);
        let args = found.proxies();
        assert_eq!(args["HTTP_PROXY"], "http://p:3128");
        assert_eq!(args["http_proxy"], "http://p:3128");
        assert_eq!(args.len(), 2);
    }
}
