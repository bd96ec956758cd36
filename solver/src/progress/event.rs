//! The events a build gives out.

use std::sync::Arc;
use std::time::SystemTime;

use llb::{ProgressGroup, Range, SourceFile};
use oci::Digest;

/// What is always the same about a vertex that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VertexInfo {
    /// Its digest; for a step outside the graph, one made of its id.
    pub digest: Digest,
    /// The digests of its inputs.
    pub inputs: Vec<Digest>,
    /// The name shown.
    pub name: String,
    /// The heading it is shown under.
    pub group: Option<ProgressGroup>,
}

/// Something to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A vertex is announced, starts or completes.
    Vertex(VertexEvent),
    /// A part of a vertex's work moves on.
    Status(StatusEvent),
    /// Output of a process.
    Log(LogEvent),
    /// Something the user should know.
    Warning(WarningEvent),
}

/// The state of a vertex. The same vertex may start and complete several times (looking up its key,
/// loading, running); the times add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VertexEvent {
    /// Which vertex.
    pub vertex: Arc<VertexInfo>,
    /// When the present interval began; `None` only announces the vertex.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub completed: Option<SystemTime>,
    /// Whether the cache answered.
    pub cached: bool,
    /// Why it failed.
    pub error: Option<String>,
}

/// A part of the work: `transferring context:`, `extracting sha256:…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The text shown; says within the vertex which part this is.
    pub id: String,
    /// What is being done (`transferring`).
    pub name: String,
    /// How much is done, usually bytes.
    pub current: u64,
    /// How much there is; 0 if unknown.
    pub total: u64,
    /// When it began.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub completed: Option<SystemTime>,
}

/// A [`Status`] of a vertex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusEvent {
    /// Which vertex.
    pub vertex: Digest,
    /// When this was so.
    pub timestamp: SystemTime,
    /// What.
    pub status: Status,
}

/// Which output of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl OutputStream {
    /// The number used on the wire.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

/// Output of a process, as it came; lines may be cut anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// Which vertex.
    pub vertex: Digest,
    /// Which stream.
    pub stream: OutputStream,
    /// The bytes.
    pub data: Arc<[u8]>,
    /// When.
    pub timestamp: SystemTime,
}

/// Something the user should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warning {
    /// 1 is the lowest.
    pub level: i64,
    /// One line.
    pub short: String,
    /// More lines.
    pub detail: Vec<String>,
    /// Where to read about it.
    pub url: String,
    /// The file it is about.
    pub source: Option<SourceFile>,
    /// The lines it is about.
    pub ranges: Vec<Range>,
}

/// A [`Warning`] of a vertex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarningEvent {
    /// Which vertex.
    pub vertex: Digest,
    /// What.
    pub warning: Warning,
}
