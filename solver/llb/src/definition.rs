//! A whole build graph: the ops as bytes, what is known about each of them, and the lines they came from.
//!
//! ```text
//! wire ─▶ Definition::decode ─▶ Definition ─▶ to_graph ─▶ Graph { vertices, root }
//!                                    ▲
//!                       state::marshal ┘
//! ```
//!
//! The ops stay bytes here, exactly as they came: a vertex's digest is the SHA-256 of them, and other
//! encoders would write other bytes. `Graph` holds them decoded and checked, inputs before their users.
//! Metadata and sources are no part of any digest.

use std::collections::BTreeMap;
use std::sync::Arc;

use oci::{Digest, Platform};

use crate::limits::MAX_NAME;
use crate::op::{FileActionKind, Op};

/// A build graph as it is sent, plus all that is said about its vertices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definition {
    /// Encoded ops. The last one is no op: it names the result. Empty means the result is scratch.
    pub ops: Vec<Vec<u8>>,
    /// What is said about each vertex; not part of its digest.
    pub metadata: BTreeMap<Digest, OpMetadata>,
    /// Which lines of which files the vertices come from.
    pub source: SourceInfo,
}

impl Definition {
    /// Whether this stands for an empty result.
    pub fn is_scratch(&self) -> bool {
        self.ops.is_empty()
    }
}

/// What is said about one vertex beside what it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpMetadata {
    /// Whether the cache may not answer for it.
    pub ignore_cache: bool,
    /// Free text by key; [`CUSTOM_NAME`] is the name shown.
    pub description: BTreeMap<String, String>,
    /// Whether its result goes into an exported cache; `None` leaves that to the exporter.
    pub export_cache: Option<bool>,
    /// Abilities the solver must have for it.
    pub caps: BTreeMap<String, bool>,
    /// Under which heading progress shows it.
    pub progress_group: Option<ProgressGroup>,
    /// Limits for the step's cgroup.
    pub linux_resources: Option<LinuxResources>,
}

/// The key in [`OpMetadata::description`] that holds the name to show.
pub const CUSTOM_NAME: &str = "llb.customname";
/// The key in [`OpMetadata::description`] that holds the text of the Dockerfile instruction.
pub const DOCKERFILE_COMMAND: &str = "com.docker.dockerfile.v1.command";

/// A heading under which several vertices are shown as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressGroup {
    /// Equal for all vertices of the group.
    pub id: String,
    /// What is shown.
    pub name: String,
    /// Whether a vertex with a name of its own is shown under that instead.
    pub weak: bool,
}

/// Limits for a step's cgroup; 0 and empty mean none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinuxResources {
    /// Bytes.
    pub memory: i64,
    /// Bytes of memory and swap together; -1 is unlimited.
    pub memory_swap: i64,
    /// Relative weight.
    pub cpu_shares: u64,
    /// Microseconds.
    pub cpu_period: u64,
    /// Microseconds.
    pub cpu_quota: i64,
    /// `0-3`
    pub cpuset_cpus: String,
    /// `0,1`
    pub cpuset_mems: String,
}

/// Which lines of which files the vertices come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceInfo {
    /// By vertex.
    pub locations: BTreeMap<Digest, Vec<Location>>,
    /// The files.
    pub infos: Vec<SourceFile>,
}

/// A file that vertices come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFile {
    /// Its name as the user knows it.
    pub filename: String,
    /// Its contents.
    pub data: Vec<u8>,
    /// Its language (`Dockerfile`).
    pub language: String,
    /// How the file itself was had.
    pub definition: Option<Box<Definition>>,
}

/// Places in one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// Position in [`SourceInfo::infos`].
    pub source_index: u32,
    /// The places.
    pub ranges: Vec<Range>,
}

/// From `start` to `end`, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First line.
    pub start: Position,
    /// Last line.
    pub end: Position,
}

/// A line, counted from 1, and a character in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Counted from 1.
    pub line: i32,
    /// Counted from 0.
    pub character: i32,
}

/// One output of one vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// The vertex.
    pub digest: Digest,
    /// Which of its outputs.
    pub index: u32,
}

/// One op with its inputs, decoded and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vertex {
    /// SHA-256 of the bytes as they came.
    pub digest: Digest,
    /// What it works on.
    pub inputs: Vec<Edge>,
    /// What it does.
    pub op: Op,
    /// What it works for, as sent; `None` means the machine's own.
    pub platform: Option<Platform>,
    /// What is said about it.
    pub metadata: OpMetadata,
    name: String,
}

impl Vertex {
    pub(crate) fn new(
        digest: Digest,
        inputs: Vec<Edge>,
        op: Op,
        platform: Option<Platform>,
        metadata: OpMetadata,
        input_names: &[&str],
    ) -> Self {
        let name = match metadata.description.get(CUSTOM_NAME) {
            Some(name) if !name.is_empty() => name.clone(),
            _ => default_name(&op, input_names),
        };
        Self {
            digest,
            inputs,
            op,
            platform,
            metadata,
            name,
        }
    }

    /// The name to show: the one its maker gave it, else one made of what it does.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many outputs it has.
    pub fn output_count(&self) -> usize {
        let highest = match &self.op {
            Op::Source(_) | Op::Merge(_) | Op::Diff(_) | Op::Build(_) => Some(0),
            Op::Exec(exec) => exec.mounts.iter().filter_map(|mount| mount.result()).max(),
            Op::File(file) => file.actions.iter().filter_map(|action| action.output).max(),
            Op::Passthrough(pass) => return pass.outputs.len(),
        };
        highest.map_or(0, |index| index as usize + 1)
    }
}

/// A definition decoded and checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// Every vertex the result depends on, inputs before their users.
    pub vertices: Vec<Arc<Vertex>>,
    /// The result; `None` is scratch.
    pub root: Option<Edge>,
}

impl Graph {
    /// The vertex with this digest.
    pub fn vertex(&self, digest: &Digest) -> Option<&Arc<Vertex>> {
        self.vertices.iter().find(|vertex| vertex.digest == *digest)
    }
}

/// The name of a vertex that was given none.
fn default_name(op: &Op, inputs: &[&str]) -> String {
    let input = |index: Option<u32>| match index {
        Some(index) => inputs.get(index as usize).copied().unwrap_or("?"),
        None => "scratch",
    };
    match op {
        Op::Source(source) => source.identifier.clone(),
        Op::Exec(exec) => exec.meta.args.join(" "),
        Op::File(file) => file
            .actions
            .iter()
            .map(|a| action_name(&a.kind))
            .collect::<Vec<_>>()
            .join(", "),
        Op::Merge(merge) => {
            let mut names = String::new();
            for (at, index) in merge.inputs.iter().enumerate() {
                names.push_str(if at == 0 { "" } else { ", " });
                names.push_str(input(*index));
                if names.len() > MAX_NAME {
                    break;
                }
            }
            shortened(format!("merge ({names})"))
        }
        Op::Diff(diff) => shortened(format!("diff ({}) -> ({})", input(diff.lower), input(diff.upper))),
        Op::Build(_) => "build".to_owned(),
        Op::Passthrough(pass) => format!("passthrough {}", pass.id),
    }
}

/// A name that is made of names of inputs, which are made of names …: cut where it gets too long.
fn shortened(mut name: String) -> String {
    if name.len() > MAX_NAME {
        name.truncate(name.floor_char_boundary(MAX_NAME));
        name.push('…');
    }
    name
}

fn action_name(action: &FileActionKind) -> String {
    match action {
        FileActionKind::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
        FileActionKind::Mkfile(mkfile) => format!("mkfile {}", mkfile.path),
        FileActionKind::Mkdir(mkdir) => format!("mkdir {}", mkdir.path),
        FileActionKind::Rm(rm) => format!("rm {}", rm.path),
        FileActionKind::Symlink(link) => format!("symlink {} -> {}", link.newpath, link.oldpath),
    }
}
