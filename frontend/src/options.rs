//! What a build may be asked to do differently: the attributes of `dockerfile.v0`, parsed once.
//!
//! `Options::from_attributes` takes them as clients send them; a program fills the fields itself.
//! An attribute this frontend does not know is an error: what is asked for is done or refused.

mod parse;

use std::collections::BTreeMap;

use llb::op::{HostIp, NetMode, Ulimit};
use llb::{Definition, LinuxResources};
use oci::Platform;

use crate::gateway::ResolveMode;

pub use parse::OptionsError;
pub use parse::csv;
pub(crate) use parse::go_bool;

/// The choices of one build.
#[derive(Clone, Debug)]
pub struct Options {
    /// Path of the Dockerfile in its context.
    pub filename: String,
    /// Name of the local directory that is the build context.
    pub context_name: String,
    /// Name of the local directory that holds the Dockerfile.
    pub dockerfile_name: String,
    /// Whether the Dockerfile comes from the client even when the context is remote.
    pub force_local_dockerfile: bool,
    /// A remote context: git or http address; `None` is the client's directory.
    pub context: Option<String>,
    /// Only this folder of a remote context.
    pub context_subdir: Option<String>,
    /// Contexts by name: `local:x`, `docker-image://…`, `oci-layout://…`, git and http addresses, `input:x`.
    pub named_contexts: BTreeMap<String, String>,
    /// What earlier transfer a local named context may start from, by context name.
    pub shared_keys: BTreeMap<String, String>,
    /// Definitions handed in, for `input:` contexts.
    pub inputs: BTreeMap<String, Input>,
    /// The stage to build; `None` is the last.
    pub target: Option<String>,
    /// Values for `ARG`.
    pub build_args: BTreeMap<String, String>,
    /// Labels added to the image.
    pub labels: BTreeMap<String, String>,
    /// What to build for; empty means the builder's own platform (or the base image's).
    pub platforms: Vec<Platform>,
    /// Whether the answer is to be an index even for one platform.
    pub multi_platform: Option<bool>,
    /// What the machine runs.
    pub build_platform: Platform,
    /// Which steps the cache may not answer.
    pub no_cache: NoCache,
    /// Whether copies of base images at hand will do.
    pub resolve_mode: ResolveMode,
    /// Network of RUN steps that say nothing themselves.
    pub network: NetMode,
    /// Lines for `/etc/hosts` of RUN steps.
    pub extra_hosts: Vec<HostIp>,
    /// Size of `/dev/shm` in bytes; 0 is the default.
    pub shm_size: i64,
    /// Resource limits of RUN steps.
    pub ulimits: Vec<Ulimit>,
    /// Parent of the steps' cgroups.
    pub cgroup_parent: String,
    /// Limits of the steps' cgroups.
    pub resources: Option<LinuxResources>,
    /// Host name of RUN steps.
    pub hostname: String,
    /// Prefix of cache mount ids.
    pub cache_mount_namespace: String,
    /// The session that has the local directories.
    pub session: String,
    /// Other sessions for single local directories, by name.
    pub local_sessions: BTreeMap<String, String>,
    /// Whether a git context keeps its `.git`; `None` leaves that to the address.
    pub keep_git_dir: Option<bool>,
    /// Overrides of `# check=` (`BUILDKIT_DOCKERFILE_CHECK`).
    pub check: Option<String>,
    /// Overrides of `# syntax=` (`BUILDKIT_SYNTAX`).
    pub syntax: Option<String>,
    /// Whether this frontend was chosen by `# syntax=` already, so that the line is not to be obeyed again.
    pub is_forwarded: bool,
    /// The image by whose name the frontend was chosen, if it was (`source`).
    pub image: Option<String>,
}

/// A definition handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The definition.
    pub definition: Definition,
    /// The image config that belongs to it, as JSON.
    pub config: Option<Vec<u8>>,
}

/// Which steps the cache may not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    /// It may answer all.
    #[default]
    None,
    /// It may answer none.
    All,
    /// It may not answer those of these stages.
    Stages(Vec<String>),
}

impl NoCache {
    /// Whether it covers a stage, by name.
    pub fn covers(&self, stage: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Stages(stages) => stages.iter().any(|name| name.eq_ignore_ascii_case(stage)),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            filename: "Dockerfile".to_owned(),
            context_name: "context".to_owned(),
            dockerfile_name: "dockerfile".to_owned(),
            force_local_dockerfile: false,
            context: None,
            context_subdir: None,
            named_contexts: BTreeMap::new(),
            shared_keys: BTreeMap::new(),
            inputs: BTreeMap::new(),
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            platforms: Vec::new(),
            multi_platform: None,
            build_platform: Platform::host(),
            no_cache: NoCache::None,
            resolve_mode: ResolveMode::Default,
            network: NetMode::Sandbox,
            extra_hosts: Vec::new(),
            shm_size: 0,
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            resources: None,
            hostname: String::new(),
            cache_mount_namespace: String::new(),
            session: String::new(),
            local_sessions: BTreeMap::new(),
            keep_git_dir: None,
            check: None,
            syntax: None,
            is_forwarded: false,
            image: None,
        }
    }
}

impl Options {
    /// Whether the answer names its platforms: asked for, or more than one.
    pub fn is_multi_platform(&self) -> bool {
        self.multi_platform.unwrap_or(self.platforms.len() > 1)
    }

    /// The session that has the local directory of this name.
    pub fn session_of(&self, local: &str) -> &str {
        self.local_sessions.get(local).unwrap_or(&self.session)
    }
}
