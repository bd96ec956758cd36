//! `buildkitd.toml`, read as it is: what `builder serve` takes over from a daemon of BuildKit.
//!
//! ```text
//! --config, else /etc/buildkit/buildkitd.toml, without root ~/.config/buildkit/buildkitd.toml
//!    └─▶ section (keys with their places) ─▶ worker, gc, rest ─▶ DaemonFile
//!                                                         └────▶ warnings; or one error that lists all refusals
//! ```
//!
//! Every key of BuildKit is one of these; a key that is none of BuildKit's is warned about:
//!
//! | | keys |
//! |---|---|
//! | works | `root` `proxyNetwork` `provenanceEnvDir` `insecure-entitlements` `debug` `trace` `log.*` `grpc.{address,debugAddress,uid,gid,tls.*}` `cdi.*` `dns.*` `history.*` `registry.*` `frontend.*`, `worker.oci.{enabled,labels,platforms,gc,gckeepstorage,reservedSpace,maxUsedSpace,minFreeSpace,gcpolicy,binary,max-parallelism,defaultCgroupParent,networkMode}` |
//! | refused when it asks for something | `worker.oci.{enabled=false,apparmor-profile,selinux,userRemapUnsupported,proxySnapshotterPath}`, `networkMode = "cni"` |
//! | warned about | what is done otherwise here: `worker.containerd`, `cache.gha`, `otel`, `system`, CNI, snapshotters, `noProcessSandbox` |
mod section;
mod sizes;
mod gc;
mod worker;

pub use gc::{Gc, GcLimits, GcPolicy, parse_keep_storage};
pub use sizes::Space;
pub use worker::{NetworkMode, OciWorker};

use super::{ConfigError, Environment, RegistryFile};
use section::{Reader, Section};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::DeTable;

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DaemonFile {
    /// Where the store is.
    pub root: Option<PathBuf>,
    /// What builds may be granted.
    pub entitlements: Option<Vec<String>>,
    /// Steps of all builds reach the outside by a proxy only.
    pub is_proxied: Option<bool>,
    /// Where files with additions to provenance are.
    pub provenance_env_dir: Option<PathBuf>,
    /// How the log is written.
    pub log: Log,
    /// Where the daemon listens.
    pub grpc: Grpc,
    /// Devices for steps.
    pub cdi: Cdi,
    /// How steps run, and how large the store may get.
    pub worker: OciWorker,
    /// By registry host.
    pub registry: BTreeMap<String, RegistryFile>,
    /// Name servers of steps.
    pub dns: Option<Dns>,
    /// How long history is kept.
    pub history: History,
    /// Which frontends there are.
    pub frontends: Frontends,
    /// `[system] maxRegistryConcurrency`: transfers from one registry at once.
    pub registry_parallelism: Option<usize>,
}

/// `[log]`
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// `json` or `text`.
    pub format: Option<String>,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: Option<String>,
}

/// `[grpc]`
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Grpc {
    /// Where to listen.
    pub address: Vec<String>,
    /// Where metrics and introspection are.
    pub debug_address: Option<String>,
    /// Who owns unix sockets.
    pub uid: Option<u32>,
    /// Whose group they are.
    pub gid: Option<u32>,
    /// The certificate of TCP ports.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Who signed the clients' certificates.
    pub ca: Option<PathBuf>,
}

/// `[cdi]`
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cdi {
    /// No devices at all.
    pub disabled: Option<bool>,
    /// Where devices are described.
    pub spec_dirs: Option<Vec<PathBuf>>,
    /// Devices, or kinds of them, that every build may use.
    pub auto_allowed: Vec<String>,
}

/// `[dns]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Instead of the machine's.
    pub nameservers: Vec<String>,
    /// Instead of the machine's.
    pub options: Vec<String>,
    /// Instead of the machine's.
    pub search_domains: Vec<String>,
}

/// `[history]`
#[derive(Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Records older than this go.
    pub max_age: Option<Duration>,
    /// If there are more than so many.
    pub max_entries: Option<usize>,
}

/// `[frontend]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontends {
    /// Whether there is `dockerfile.v0`.
    pub has_dockerfile: bool,
    /// Whether there is `gateway.v0`.
    pub has_gateway: bool,
    /// Repositories whose images may be frontends; empty: all.
    pub allowed_repositories: Vec<String>,
}

impl Default for Frontends {
    fn default() -> Frontends {
        Frontends {
            has_dockerfile: true,
            has_gateway: true,
            allowed_repositories: Vec::new(),
        }
    }
}

impl DaemonFile {
    /// Reads the file that was named, else the one where BuildKit has it, which need not be there; with what is to be
    /// warned about.
    ///
    /// Differs: a file that was named and is not there is an error; BuildKit goes on without.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or asks for what this daemon cannot do.
    pub fn load(
        named: Option<&Path>,
        environment: &Environment,
    ) -> Result<(DaemonFile, Vec<String>), ConfigError> {
        let default = || environment.buildkitd_file();
        let Some(path) = named.map(Path::to_owned).or_else(default) else {
            return Ok(Default::default());
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let (file, warnings) = parse(&text).map_err(|reason| ConfigError::Parse {
                    path: path.clone(),
                    reason,
                })?;
                let warnings = warnings.into_iter();
                let warnings = warnings.map(|warning| format!("{}: {warning}", path.display()));
                Ok((file, warnings.collect()))
            }
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Default::default())
            }
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }
}

/// Where BuildKit looks if nothing is said.
const PROVENANCE_FOLDER: &str = "/etc/buildkit/provenance.d";

impl DaemonFile {
    /// What the files `*.json` of `provenanceEnvDir` say together, in the order of their names; a folder that is not there
    /// says nothing.
    ///
    /// # Errors
    /// A file cannot be read, or is no JSON object.
    pub fn provenance_environment(&self) -> Result<Map<String, Value>, ConfigError> {
        let folder = self.provenance_env_dir.clone();
        let folder = folder.unwrap_or_else(|| PROVENANCE_FOLDER.into());
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| ConfigError::Read { path, source }
        };
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
            Err(error) => return Err(read(&folder)(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(read(&folder))?.path();
            if path.extension().is_some_and(|extension| extension == "json") && path.is_file() {
                paths.push(path);
            }
        }
        paths.sort();
        let mut environment = Map::new();
        for path in paths {
            let text = std::fs::read(&path).map_err(read(&path))?;
            let said: Map<String, Value> =
                serde_json::from_slice(&text).map_err(|error| ConfigError::Parse {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
            environment.extend(said);
        }
        Ok(environment)
    }
}

fn parse(text: &str) -> Result<(DaemonFile, Vec<String>), String> {
    let table = DeTable::parse(text).map_err(|error| error.to_string())?;
    let reader = Reader::new(text);
    let file = read(Section::new(&reader, String::new(), table.into_inner()));
    let findings = reader.findings();
    match findings.refused.is_empty() {
        true => Ok((file, findings.warned)),
        false => Err(findings.refused.join("\n")),
    }
}

fn read(mut top: Section<'_, '_>) -> DaemonFile {
    let mut file = DaemonFile {
        root: top.path("root"),
        entitlements: top.texts("insecure-entitlements"),
        is_proxied: top.bool("proxyNetwork"),
        provenance_env_dir: top.path("provenanceEnvDir"),
        ..DaemonFile::default()
    };
    let (is_debug, is_trace) = (top.bool("debug"), top.bool("trace"));
    if let Some(section) = top.section("log") {
        file.log = log(section);
    }
    if file.log.level.is_none() {
        let old = [(is_trace, "trace"), (is_debug, "debug")];
        let level = old.iter().find(|(is_on, _)| *is_on == Some(true));
        file.log.level = level.map(|(_, level)| (*level).to_owned());
    }
    if let Some(section) = top.section("grpc") {
        file.grpc = grpc(section);
    }
    if let Some(section) = top.section("cdi") {
        file.cdi = cdi(section);
    }
    if let Some(section) = top.section("worker") {
        file.worker = worker::read(section);
    }
    if let Some(section) = top.section("registry") {
        let registries = section.into_named().into_iter();
        file.registry = registries
            .map(|(host, section)| (host, registry(section)))
            .collect();
    }
    file.dns = top.section("dns").map(dns);
    if let Some(section) = top.section("history") {
        file.history = history(section);
    }
    if let Some(section) = top.section("frontend") {
        file.frontends = frontends(section);
    }
    if let Some(mut section) = top.section("otel") {
        section.warn("socketPath", "steps are given no collector of traces here");
        section.finish();
    }
    if let Some(mut section) = top.section("system") {
        section.warn(
            "platformsCacheMaxAge",
            "platforms are looked at with every build here",
        );
        file.registry_parallelism = section
            .count::<usize>("maxRegistryConcurrency")
            .filter(|most| *most > 0);
        section.finish();
    }
    top.warn("cache", "there is no cache of GitHub Actions here");
    top.warn("ghacache", "there is no cache of GitHub Actions here");
    top.finish();
    file
}

fn log(mut section: Section<'_, '_>) -> Log {
    let log = Log {
        format: section.text("format"),
        level: section.text("level"),
    };
    section.finish();
    log
}

fn grpc(mut section: Section<'_, '_>) -> Grpc {
    let mut grpc = Grpc {
        address: section.texts("address").unwrap_or_default(),
        debug_address: section.text("debugAddress"),
        uid: section.count("uid"),
        gid: section.count("gid"),
        ..Grpc::default()
    };
    section.warn("securityDescriptor", "is for Windows");
    if let Some(mut tls) = section.section("tls") {
        grpc.cert = tls.path("cert");
        grpc.key = tls.path("key");
        grpc.ca = tls.path("ca");
        tls.finish();
    }
    section.finish();
    grpc
}

fn cdi(mut section: Section<'_, '_>) -> Cdi {
    let cdi = Cdi {
        disabled: section.bool("disabled"),
        spec_dirs: section.paths("specDirs").filter(|dirs| !dirs.is_empty()),
        auto_allowed: section.texts("autoAllowed").unwrap_or_default(),
    };
    section.finish();
    cdi
}

fn dns(mut section: Section<'_, '_>) -> Dns {
    let dns = Dns {
        nameservers: section.texts("nameservers").unwrap_or_default(),
        options: section.texts("options").unwrap_or_default(),
        search_domains: section.texts("searchDomains").unwrap_or_default(),
    };
    for server in &dns.nameservers {
        if server.parse::<std::net::IpAddr>().is_err() {
            section.refuse_here("nameservers", &format!("{server:?} is not an address"));
        }
    }
    let words = dns.options.iter().chain(&dns.search_domains);
    for word in words.filter(|word| word.is_empty() || word.contains(char::is_whitespace)) {
        section.refuse_here("options, searchDomains", &format!("{word:?} is not one word"));
    }
    section.finish();
    dns
}

fn history(mut section: Section<'_, '_>) -> History {
    let history = History {
        max_age: section.duration("maxAge"),
        max_entries: section.count("maxEntries"),
    };
    section.finish();
    history
}

fn registry(mut section: Section<'_, '_>) -> RegistryFile {
    let mut file = RegistryFile {
        mirrors: section.texts("mirrors").unwrap_or_default(),
        http: section.bool("http").unwrap_or_default(),
        insecure: section.bool("insecure").unwrap_or_default(),
        ca: section.paths("ca").unwrap_or_default(),
        tls_config_dirs: section.paths("tlsconfigdir").unwrap_or_default(),
        ..RegistryFile::default()
    };
    for mut pair in section.sections("keypair").unwrap_or_default() {
        match (pair.path("key"), pair.path("cert")) {
            (Some(key), Some(cert)) => file.keypair.push(super::KeyPairFile { key, cert }),
            _ => pair.refuse_here("key, cert", "both must be said"),
        }
        pair.finish();
    }
    section.finish();
    file
}

fn frontends(mut section: Section<'_, '_>) -> Frontends {
    let mut frontends = Frontends::default();
    if let Some(mut one) = section.section("dockerfile.v0") {
        frontends.has_dockerfile = one.bool("enabled").unwrap_or(true);
        one.finish();
    }
    if let Some(mut one) = section.section("gateway.v0") {
        frontends.has_gateway = one.bool("enabled").unwrap_or(true);
        frontends.allowed_repositories = one.texts("allowedRepositories").unwrap_or_default();
        for name in &frontends.allowed_repositories {
            if let Err(error) = oci::Reference::parse_normalized(name) {
                one.refuse_here("allowedRepositories", &format!("{name:?}: {error}"));
            }
        }
        one.finish();
    }
    section.finish();
    frontends
}

#[cfg(test)]
mod tests;
