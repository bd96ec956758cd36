//! Which machines answer for a registry, and how they are spoken to.
//!
//! | registry | machine |
//! |---|---|
//! | `docker.io` | `registry-1.docker.io` |
//! | any other | itself |
//! | any, for pulls | its mirrors first, in the order given |
//!
//! HTTPS always, except: a host the configuration says is plain; `localhost`, `127.*` and `::1` where HTTPS
//! is refused, as docker does; and so a host somebody asked for as an insecure one.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::Client;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{RegistryError, chain};

/// How one registry is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Machines to ask first for pulls: `host[:port][/path]`, with or without a scheme.
    pub mirrors: Vec<String>,
    /// Whether it speaks plain HTTP.
    pub plain_http: bool,
    /// Whether any certificate will do.
    pub skip_verify: bool,
    /// Whether plain HTTP will do where HTTPS is refused.
    pub falls_back: bool,
    /// Certificates (PEM) of authorities to trust beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// The certificate and the key (PEM) to show to it.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How registries are spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostsConfig {
    /// By registry, as in a reference: `docker.io`, `localhost:5000`.
    pub hosts: BTreeMap<String, HostConfig>,
    /// Blobs, or parts of them, that come from one host at once; without limit if it is not said. What is sent is not
    /// counted: a layer may be fetched while it is sent on, and would wait for itself.
    pub parallelism: Option<usize>,
}

/// One machine that answers for a registry.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// `host[:port]`, to which credentials are bound.
    pub(crate) host: String,
    /// What comes between `/v2/` and the repository, for mirrors that have it.
    pub(crate) prefix: String,
    pub(crate) client: Client,
    pub(crate) is_plain: bool,
    /// Whether HTTP may be tried where HTTPS is refused.
    pub(crate) may_fall_back: bool,
}

impl Endpoint {
    /// The address of `path` below the repository.
    pub(crate) fn url(&self, repository: &str, path: &str, plain: bool) -> String {
        let scheme = if plain { "http" } else { "https" };
        format!("{scheme}://{}/v2/{}{repository}/{path}", self.host, self.prefix)
    }
}

pub(crate) struct Hosts {
    config: HostsConfig,
    /// Made when first needed: reading the system's certificates takes a while.
    default: OnceLock<Client>,
    special: Mutex<HashMap<String, Client>>,
    /// Loopback hosts that were found to speak plain HTTP.
    found_plain: Mutex<HashMap<String, bool>>,
    /// By host.
    transfers: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

fn builder() -> reqwest::ClientBuilder {
    Client::builder()
        .user_agent(concat!("builder/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(20))
        .read_timeout(Duration::from_secs(60))
        .pool_idle_timeout(Duration::from_secs(90))
        .redirect(reqwest::redirect::Policy::limited(5))
}

fn build(builder: reqwest::ClientBuilder) -> Result<Client, RegistryError> {
    builder.build().map_err(|error| RegistryError::Setup {
        reason: chain(&error),
    })
}

impl Hosts {
    pub(crate) fn new(config: HostsConfig) -> Result<Self, RegistryError> {
        // Somebody else in the process may have chosen a provider already; either will do.
        drop(rustls::crypto::ring::default_provider().install_default());
        let hosts = Self {
            default: OnceLock::new(),
            special: Mutex::default(),
            found_plain: Mutex::default(),
            transfers: Arc::default(),
            config,
        };
        for (name, config) in &hosts.config.hosts {
            if !config.ca_files.is_empty() || config.identity.is_some() {
                hosts.client(name)?;
            }
        }
        Ok(hosts)
    }

    /// Waits until one more transfer may come from `host`; it has its place until the answer is dropped.
    pub(crate) async fn transfer(&self, host: &str) -> Option<OwnedSemaphorePermit> {
        let most = self.config.parallelism?;
        let places = {
            let mut transfers = self.transfers.lock();
            let places = transfers.entry(host.to_owned());
            places
                .or_insert_with(|| Arc::new(Semaphore::new(most.clamp(1, 1 << 20))))
                .clone()
        };
        // Never closed.
        places.acquire_owned().await.ok()
    }

    /// The same, but this registry is spoken to without being sure who it is.
    pub(crate) fn insecure(&self, domain: &str) -> Self {
        let mut config = self.config.clone();
        let host = config.hosts.entry(domain.to_owned()).or_default();
        (host.skip_verify, host.falls_back) = (true, true);
        let default = OnceLock::new();
        if let Some(client) = self.default.get() {
            let _ = default.set(client.clone());
        }
        Self {
            config,
            default,
            special: Mutex::default(),
            found_plain: Mutex::default(),
            // The same machines, by whichever way: what is under way to one counts for both.
            transfers: self.transfers.clone(),
        }
    }

    fn default_client(&self) -> Result<Client, RegistryError> {
        if let Some(client) = self.default.get() {
            return Ok(client.clone());
        }
        let made = build(builder())?;
        Ok(self.default.get_or_init(|| made).clone())
    }

    fn client(&self, name: &str) -> Result<Client, RegistryError> {
        let Some(config) = self.config.hosts.get(name) else {
            return self.default_client();
        };
        if !config.skip_verify && config.ca_files.is_empty() && config.identity.is_none() {
            return self.default_client();
        }
        if let Some(client) = self.special.lock().get(name) {
            return Ok(client.clone());
        }
        let mut made = builder().tls_danger_accept_invalid_certs(config.skip_verify);
        for path in &config.ca_files {
            let fault = |reason: String| RegistryError::Certificate {
                path: path.clone(),
                reason,
            };
            let pem = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
            let certificates =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| fault(chain(&error)))?;
            if certificates.is_empty() {
                return Err(fault("holds no certificate".to_owned()));
            }
            for certificate in certificates {
                made = made.add_root_certificate(certificate);
            }
        }
        if let Some((certificate, key)) = &config.identity {
            made = made.identity(identity(certificate, key)?);
        }
        let client = build(made)?;
        self.special.lock().insert(name.to_owned(), client.clone());
        Ok(client)
    }

    /// The HTTP client for a machine, as credentials are bound to it.
    pub(crate) fn client_of(&self, host: &str) -> Result<Client, RegistryError> {
        self.client(match host {
            "registry-1.docker.io" => oci::DOCKER_HUB,
            host => host,
        })
    }

    /// The registry itself.
    pub(crate) fn origin(&self, domain: &str) -> Result<Endpoint, RegistryError> {
        let host = if domain == oci::DOCKER_HUB {
            "registry-1.docker.io"
        } else {
            domain
        };
        self.endpoint(domain, host, "")
    }

    /// Who to ask for a pull, in order.
    pub(crate) fn for_pull(&self, domain: &str) -> Result<Vec<Endpoint>, RegistryError> {
        let mut endpoints = Vec::new();
        for mirror in self
            .config
            .hosts
            .get(domain)
            .map(|config| config.mirrors.as_slice())
            .unwrap_or_default()
        {
            let (is_plain, rest) = match mirror.split_once("://") {
                Some(("http", rest)) => (true, rest),
                Some((_, rest)) => (false, rest),
                None => (false, mirror.as_str()),
            };
            let rest = rest.trim_end_matches('/');
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let path = path
                .strip_prefix("v2")
                .map_or(path, |path| path.trim_start_matches('/'));
            let prefix = if path.is_empty() {
                String::new()
            } else {
                format!("{path}/")
            };
            let mut endpoint = self.endpoint(host, host, &prefix)?;
            endpoint.is_plain |= is_plain;
            endpoints.push(endpoint);
        }
        endpoints.push(self.origin(domain)?);
        Ok(endpoints)
    }

    fn endpoint(&self, name: &str, host: &str, prefix: &str) -> Result<Endpoint, RegistryError> {
        let config = self.config.hosts.get(name);
        let known = self.found_plain.lock().get(host).copied();
        Ok(Endpoint {
            host: host.to_owned(),
            prefix: prefix.to_owned(),
            client: self.client(name)?,
            is_plain: known.unwrap_or_else(|| config.is_some_and(|config| config.plain_http)),
            may_fall_back: known.is_none()
                && (is_loopback(host) || config.is_some_and(|config| config.falls_back)),
        })
    }

    /// Remembers how a loopback host speaks.
    pub(crate) fn remember(&self, host: &str, is_plain: bool) {
        self.found_plain.lock().insert(host.to_owned(), is_plain);
    }
}

/// What is shown to a registry that asks for a certificate.
fn identity(certificate: &Path, key: &Path) -> Result<reqwest::Identity, RegistryError> {
    let fault = |path: &Path, reason: String| RegistryError::Certificate {
        path: path.to_owned(),
        reason,
    };
    let read = |path: &Path| std::fs::read(path).map_err(|error| fault(path, error.to_string()));
    let mut pem = read(key)?;
    pem.push(b'\n');
    pem.extend(read(certificate)?);
    reqwest::Identity::from_pem(&pem).map_err(|error| fault(certificate, chain(&error)))
}

/// Whether `host[:port]` is this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    match name.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_name_and_address() {
        for (host, expected) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("docker.io", false),
            ("localhost.example.com", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }

    #[test]
    fn only_the_registry_that_is_named_is_insecure() {
        let hosts = Hosts::new(HostsConfig::default()).expect("no certificates");
        let insecure = hosts.insecure("plain.example:5000");
        let falls_back = |hosts: &Hosts, domain| hosts.origin(domain).expect("an endpoint").may_fall_back;
        assert!(falls_back(&insecure, "plain.example:5000"));
        assert!(!falls_back(&insecure, "other.example"));
        assert!(!falls_back(&hosts, "plain.example:5000"));
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        let mirrors = vec![
            "mirror.example:5000".into(),
            "http://plain.example/hub".into(),
            "https://x.example/v2/y/".into(),
        ];
        let hosts = [(
            "docker.io".to_owned(),
            HostConfig {
                mirrors,
                ..HostConfig::default()
            },
        )]
        .into();
        let hosts = Hosts::new(HostsConfig {
            hosts,
            ..HostsConfig::default()
        })
        .expect("no certificates");
        let urls: Vec<_> = hosts
            .for_pull("docker.io")
            .expect("endpoints")
            .iter()
            .map(|e| e.url("library/a", "tags", e.is_plain))
            .collect();
        assert_eq!(
            urls,
            [
                "https://mirror.example:5000/v2/library/a/tags",
                "http://plain.example/v2/hub/library/a/tags",
                "https://x.example/v2/y/library/a/tags",
                "https://registry-1.docker.io/v2/library/a/tags",
            ]
        );
    }

    #[tokio::test]
    async fn no_more_come_from_a_host_than_may() {
        use futures_util::FutureExt;
        let hosts = Hosts::new(HostsConfig {
            parallelism: Some(1),
            ..HostsConfig::default()
        });
        let hosts = hosts.expect("valid");
        let first = hosts.transfer("a").await;
        assert!(first.is_some());
        assert!(
            hosts.transfer("b").now_or_never().flatten().is_some(),
            "each host has its own"
        );
        assert!(hosts.transfer("a").now_or_never().is_none(), "it waits");
        drop(first);
        assert!(hosts.transfer("a").now_or_never().flatten().is_some());
        let hosts = Hosts::new(HostsConfig::default()).expect("valid");
        assert!(
            hosts.transfer("a").now_or_never().is_some(),
            "without a limit nothing waits"
        );
    }
}
