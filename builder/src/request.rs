//! All that a build was asked, free of flags, environment variables and wires.
//!
//! ```text
//! cli/build ─▶ BuildRequest ─┬─▶ attributes()  what the Dockerfile frontend is told
//!                            ├─▶ client        which directories, secrets, agents the session offers
//!                            └─▶ build/run     outputs, limits, files to write
//! ```
//!
//! Every value is checked before it gets here; nothing below asks again. Values that are secret are not in
//! here at all, only where they come from.
use crate::build::CacheEntry;
use oci::{Platform, Reference};
use session::{SecretSource, SshSource};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// One build, as it was asked for.
#[derive(Debug)]
pub struct BuildRequest {
    /// Where the files come from.
    pub context: ContextSource,
    /// Where the Dockerfile comes from.
    pub dockerfile: DockerfileSource,
    /// `--build-context name=…`, in the order given.
    pub named_contexts: Vec<(String, NamedContext)>,
    /// `--tag`.
    pub tags: Vec<Reference>,
    /// `--target`; `None` is the last stage.
    pub target: Option<String>,
    /// `--build-arg`, and proxies from Docker's configuration.
    pub build_args: BTreeMap<String, String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--platform`; empty is this machine's.
    pub platforms: Vec<Platform>,
    /// `--no-cache` and `--no-cache-filter`.
    pub no_cache: NoCache,
    /// `--pull`: ask the registry even if the image is in the store.
    pub pull: bool,
    /// `--add-host`.
    pub add_hosts: Vec<(String, HostAddress)>,
    /// `--network`.
    pub network: NetworkMode,
    /// `--shm-size`, in bytes.
    pub shm_size: Option<u64>,
    /// `--ulimit`.
    pub ulimits: Vec<Ulimit>,
    /// `--cgroup-parent`.
    pub cgroup_parent: Option<String>,
    /// `--resource`.
    pub resources: BTreeMap<String, String>,
    /// `--secret`, by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// `--ssh`, by id.
    pub ssh: BTreeMap<String, SshSource>,
    /// `--allow`.
    pub entitlements: Entitlements,
    /// `--allow device[=NAME]`, without `device=`; an empty one means all.
    pub devices: Vec<String>,
    /// `--output`, `--push`, `--load`; never empty unless nothing is to be kept.
    pub outputs: Vec<Output>,
    /// `--attest`, `--provenance`, `--sbom`: what to state about the result, by kind, with how.
    pub attests: BTreeMap<String, String>,
    /// The socket of the Docker daemon that `--load` means.
    pub docker_socket: Option<PathBuf>,
    /// `--iidfile`.
    pub image_id_file: Option<PathBuf>,
    /// `--metadata-file`.
    pub metadata_file: Option<PathBuf>,
    /// `--call`: what is asked of the frontend instead of a build, such as `frontend.lint`.
    pub question: Option<String>,
    /// `--proxy-network`: steps reach the outside by a proxy only.
    pub is_proxied: bool,
    /// Which sources may be used, and what instead of some.
    pub source_policy: Option<api::sourcepolicy::Policy>,
    /// `--cache-from`.
    pub cache_from: Vec<CacheEntry>,
    /// `--cache-to`.
    pub cache_to: Vec<CacheEntry>,
    /// `--explain`: say why each step that ran was not served by the cache.
    pub explain: bool,
}

/// Where the files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    /// A directory of this machine, absolute.
    Directory(PathBuf),
    /// A git or http(s) address, given to the frontend as it is.
    Remote(String),
    /// A tar archive on stdin, compressed or not.
    StdinTar,
    /// No files at all: only a Dockerfile came (on stdin).
    Empty,
}

/// Where the Dockerfile comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfileSource {
    /// A path inside the context.
    InContext(String),
    /// A file of this machine outside the context.
    File {
        /// Its folder, absolute; its ignore file is looked for there.
        directory: PathBuf,
        /// Its name in that folder.
        name: String,
    },
    /// The text itself: it came on stdin or from an address.
    Text(Vec<u8>),
    /// An http(s) address; fetched before the build, and [`DockerfileSource::Text`] from then on.
    Address(String),
}

/// One `--build-context`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// A directory of this machine, absolute.
    Directory(PathBuf),
    /// `oci-layout://path[:tag][@digest]`: a layout of this machine.
    OciLayout {
        /// The layout's root, absolute.
        path: PathBuf,
        /// The tag it was named by.
        tag: Option<String>,
        /// Which manifest of it.
        digest: oci::Digest,
    },
    /// `docker-image://…`, a git or an http(s) address: the frontend resolves it.
    Remote(String),
}

/// Which stages must run again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NoCache {
    /// None: the cache may serve all.
    #[default]
    Never,
    /// All.
    All,
    /// Those named.
    Stages(Vec<String>),
}

/// What `--add-host` points a name at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAddress {
    /// An address.
    Ip(IpAddr),
    /// `host-gateway`: the machine that builds.
    Gateway,
}

/// The network of RUN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// A network of its own, with a way out.
    #[default]
    Sandbox,
    /// The machine's network.
    Host,
    /// Loopback only.
    None,
}

/// One `--ulimit name=soft[:hard]`; -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// `nofile`, `nproc`, …
    pub name: String,
    /// The soft limit.
    pub soft: i64,
    /// The hard limit.
    pub hard: i64,
}

/// What the build may use beyond the ordinary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entitlements {
    /// `network.host`.
    pub network_host: bool,
    /// `security.insecure`.
    pub security_insecure: bool,
}

/// One thing to make of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Which exporter.
    pub kind: OutputKind,
    /// Its attributes, named as BuildKit names them, without `type` and `dest`.
    pub attrs: BTreeMap<String, String>,
    /// Where a file or directory goes.
    pub dest: Option<Destination>,
}

/// Which exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// Into the builder's own image store, pushed if `push=true`.
    Image,
    /// An OCI archive or layout.
    Oci,
    /// A Docker archive, or an image of a running Docker daemon.
    Docker,
    /// The result's files in a directory.
    Local,
    /// The result's files in a tar.
    Tar,
    /// Nothing; what was built stays in the cache.
    CacheOnly,
}

/// Where a file or directory goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A path, absolute.
    Path(PathBuf),
    /// Standard output.
    Stdout,
    /// The Docker daemon of this machine.
    DockerDaemon,
}

impl OutputKind {
    /// The exporter's name, as in `type=…`.
    pub fn name(self) -> &'static str {
        match self {
            OutputKind::Image => "image",
            OutputKind::Oci => "oci",
            OutputKind::Docker => "docker",
            OutputKind::Local => "local",
            OutputKind::Tar => "tar",
            OutputKind::CacheOnly => "cacheonly",
        }
    }
}

impl NetworkMode {
    /// The value of the frontend's `force-network-mode`; `None` leaves the Dockerfile its say.
    fn forced(self) -> Option<&'static str> {
        match self {
            NetworkMode::Sandbox => None,
            NetworkMode::Host => Some("host"),
            NetworkMode::None => Some("none"),
        }
    }
}

/// The local name under which the session offers the context.
pub const LOCAL_CONTEXT: &str = "context";
/// The local name under which the session offers the folder of the Dockerfile.
pub const LOCAL_DOCKERFILE: &str = "dockerfile";
/// The id under which the session offers the tar that came on stdin.
pub const STDIN_UPLOAD: &str = "stdin";

impl BuildRequest {
    /// What the frontend is told, named as `dockerfile.v0` names it.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let mut attrs = BTreeMap::new();
        let mut set = |key: &str, value: String| attrs.insert(key.to_owned(), value);
        let filename = match &self.dockerfile {
            DockerfileSource::InContext(name) | DockerfileSource::File { name, .. } => name.as_str(),
            DockerfileSource::Text(_) | DockerfileSource::Address(_) => "Dockerfile",
        };
        set("filename", filename.to_owned());
        match &self.context {
            ContextSource::Remote(address) => {
                set("context", address.clone());
            }
            ContextSource::StdinTar => {
                set("context", format!("http://buildkit-session/{STDIN_UPLOAD}"));
            }
            ContextSource::Directory(_) | ContextSource::Empty => {}
        }
        if self.is_dockerfile_apart() {
            set("dockerfilekey", LOCAL_DOCKERFILE.to_owned());
        }
        if let Some(target) = &self.target {
            set("target", target.clone());
        }
        if !self.platforms.is_empty() {
            set("platform", join(self.platforms.iter().map(ToString::to_string)));
        }
        match &self.no_cache {
            NoCache::Never => {}
            NoCache::All => {
                set("no-cache", String::new());
            }
            NoCache::Stages(stages) => {
                set("no-cache", stages.join(","));
            }
        }
        set(
            "image-resolve-mode",
            if self.pull { "pull" } else { "default" }.to_owned(),
        );
        self.limits(&mut attrs);
        attrs.extend(
            self.build_args
                .iter()
                .map(|(key, value)| (format!("build-arg:{key}"), value.clone())),
        );
        attrs.extend(
            self.attests
                .iter()
                .map(|(kind, value)| (format!("attest:{kind}"), value.clone())),
        );
        attrs.extend(
            self.labels
                .iter()
                .map(|(key, value)| (format!("label:{key}"), value.clone())),
        );
        attrs.extend(
            self.named_contexts
                .iter()
                .map(|(name, context)| (format!("context:{name}"), context.attribute(name))),
        );
        attrs
    }

    /// True if the Dockerfile is not read from the context itself.
    pub fn is_dockerfile_apart(&self) -> bool {
        matches!(self.context, ContextSource::Remote(_) | ContextSource::StdinTar)
            && !matches!(self.dockerfile, DockerfileSource::InContext(_))
    }

    fn limits(&self, attrs: &mut BTreeMap<String, String>) {
        let mut set = |key: &str, value: String| attrs.insert(key.to_owned(), value);
        if let Some(mode) = self.network.forced() {
            set("force-network-mode", mode.to_owned());
        }
        if !self.add_hosts.is_empty() {
            set(
                "add-hosts",
                join(
                    self.add_hosts
                        .iter()
                        .map(|(name, address)| format!("{name}={address}")),
                ),
            );
        }
        if let Some(bytes) = self.shm_size {
            set("shm-size", bytes.to_string());
        }
        if !self.ulimits.is_empty() {
            set("ulimit", join(self.ulimits.iter().map(ToString::to_string)));
        }
        if let Some(parent) = &self.cgroup_parent {
            set("cgroup-parent", parent.clone());
        }
        for (key, value) in &self.resources {
            set(key, value.clone());
        }
    }
}

impl NamedContext {
    fn attribute(&self, name: &str) -> String {
        match self {
            NamedContext::Directory(_) => format!("local:{}", local_name(name)),
            NamedContext::OciLayout { tag, digest, .. } => {
                let mut text = format!("oci-layout://{}", layout_store(name));
                if let Some(tag) = tag {
                    text.push(':');
                    text.push_str(tag);
                }
                text.push('@');
                text.push_str(&digest.to_string());
                text
            }
            NamedContext::Remote(address) => address.clone(),
        }
    }
}

/// The local name of a named context: its own, unless the build's context or Dockerfile has that one.
pub fn local_name(context: &str) -> String {
    match context {
        LOCAL_CONTEXT | LOCAL_DOCKERFILE => format!("_{context}"),
        other => other.to_owned(),
    }
}

/// The store name of a named context's layout; a name of a repository, whatever the context is called.
pub fn layout_store(context: &str) -> String {
    let plain: String = context
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    format!("layout-{}", plain.trim_matches('-'))
}

fn join(values: impl Iterator<Item = String>) -> String {
    values.collect::<Vec<_>>().join(",")
}

impl std::fmt::Display for HostAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HostAddress::Ip(address) => address.fmt(f),
            HostAddress::Gateway => f.write_str("host-gateway"),
        }
    }
}

impl std::fmt::Display for Ulimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}:{}", self.name, self.soft, self.hard)
    }
}
