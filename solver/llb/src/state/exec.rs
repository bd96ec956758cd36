//! Execs: what is run and what is mounted for it. Mounts are written sorted by destination, and outputs
//! numbered in that order, whatever order they were given in.

use std::sync::Arc;

use crate::op::{
    CacheMount, CdiDevice, ContentCache, ExecMeta, NetMode, SecretEnv, SecretMount, SecurityMode, SshMount,
};
use crate::state::{Constraints, Kind, Node, OutputOf, Spec, State};

/// What is to be run.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    /// Arguments, environment and the like.
    pub meta: ExecMeta,
    /// Which network the process sees.
    pub network: NetMode,
    /// How far the process is confined.
    pub security: SecurityMode,
    /// File systems; one at `/`. Any order.
    pub mounts: Vec<MountSpec>,
    /// Secrets as files, in order, each with its destination.
    pub secrets: Vec<(String, SecretMount)>,
    /// Secrets as variables.
    pub secret_env: Vec<SecretEnv>,
    /// ssh agents, each with its destination; an empty one becomes `/run/buildkit/ssh_agent.<n>`.
    pub ssh: Vec<(String, SshMount)>,
    /// Devices by CDI name.
    pub cdi_devices: Vec<CdiDevice>,
}

/// One file system of an exec.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// Where.
    pub dest: String,
    /// What.
    pub source: MountSource,
    /// Which path inside; empty means all of it.
    pub selector: String,
    /// Whether writing is refused.
    pub readonly: bool,
    /// Whether what is written is thrown away.
    pub discarded: bool,
    /// Whether the content of the input may stand in for its definition in the cache key.
    pub content_cache: ContentCache,
}

/// What is mounted.
#[derive(Clone, Debug)]
pub enum MountSource {
    /// A file system of the graph.
    State(State),
    /// A directory that outlives builds, begun from a file system of the graph.
    Cache(CacheMount, State),
    /// Memory; `size` in bytes, 0 is the kernel's default.
    Tmpfs {
        /// Upper limit in bytes.
        size: i64,
    },
}

impl MountSpec {
    /// A writable mount whose result goes on.
    pub fn new(dest: impl Into<String>, source: MountSource) -> Self {
        Self {
            dest: dest.into(),
            source,
            selector: String::new(),
            readonly: false,
            discarded: false,
            content_cache: ContentCache::Default,
        }
    }

    /// Whether what is written goes on as an output.
    pub(super) fn has_output(&self) -> bool {
        !self.readonly && !self.discarded && matches!(self.source, MountSource::State(_))
    }
}

/// An exec that was added; gives out what its mounts hold afterwards.
#[derive(Clone, Debug)]
pub struct ExecStates(Arc<Node>);

impl ExecSpec {
    /// Adds the exec to the graph; needs a platform in `constraints`.
    pub fn run(self, constraints: Constraints) -> ExecStates {
        ExecStates(Arc::new(Node {
            spec: Spec::Exec(Box::new(self)),
            constraints,
        }))
    }
}

impl ExecStates {
    /// The root file system afterwards.
    pub fn root(&self) -> State {
        let Spec::Exec(spec) = &self.0.spec else {
            return State::scratch();
        };
        match spec.mounts.iter().position(|mount| mount.dest == "/") {
            Some(position) => self.mount(position),
            None => State::scratch(),
        }
    }

    /// What the mount at `position` of [`ExecSpec::mounts`] holds afterwards; a read-only one its source.
    pub fn mount(&self, position: usize) -> State {
        let Spec::Exec(spec) = &self.0.spec else {
            return State::scratch();
        };
        match spec.mounts.get(position) {
            Some(mount) if mount.has_output() => State(Kind::Output {
                node: Arc::clone(&self.0),
                output: OutputOf::Mount(position),
            }),
            Some(MountSpec {
                source: MountSource::State(state),
                ..
            }) => state.clone(),
            _ => State::scratch(),
        }
    }
}
