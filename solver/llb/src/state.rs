//! Builds graphs: the API a frontend writes LLB with.
//!
//! ```text
//! source::image(…) ─▶ State ─▶ exec / file / merge / diff ─▶ State ─▶ marshal ─▶ Definition
//! ```
//!
//! A [`State`] is a file system that does not exist yet: one output of a node, or scratch. Nodes point at
//! the states they use; `marshal` walks them from the result, inputs first, and names each by its bytes.
//!
//! A state may be promised before it is known ([`State::promised`]): the build context is used by many
//! nodes, but which of its paths are needed is known only after the last of them.
//!
//! This layer adds nothing by itself: no default platform, no PATH, no working directory. What goes into
//! an op is what the caller puts there, so an op's bytes can be read off the call.

mod source;
mod exec;
mod file;
mod merge;
mod marshal;

use std::sync::{Arc, OnceLock};

use oci::Platform;

use crate::definition::{Definition, Edge, LinuxResources, OpMetadata, ProgressGroup, Range};
use crate::error::Error;

pub use exec::{ExecSpec, ExecStates, MountSource, MountSpec};
pub use file::{ActionSpec, ChownSpec, FileSpec, OwnerSpec};
pub use marshal::marshal;
pub use merge::{diff, merge};
pub use source::{GitSource, GitSsh, HttpSource, ImageSource, LocalSource, OciLayoutSource, source};

/// A file system that does not exist yet. Cheap to clone; equal only to its own clones.
#[derive(Clone, Debug, Default)]
pub struct State(Kind);

#[derive(Clone, Debug, Default)]
enum Kind {
    #[default]
    Scratch,
    Output {
        node: Arc<Node>,
        output: OutputOf,
    },
    Promised(Arc<OnceLock<State>>),
}

/// Which output of its node a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OutputOf {
    First,
    /// Of an exec, the mount at this position of [`ExecSpec::mounts`]; numbers follow the sorted mounts.
    Mount(usize),
}

/// What will become a vertex.
#[derive(Debug)]
struct Node {
    spec: Spec,
    constraints: Constraints,
}

#[derive(Debug)]
enum Spec {
    Source(crate::op::SourceOp),
    Exec(Box<ExecSpec>),
    File(Box<FileSpec>),
    Merge(Vec<State>),
    /// Ops written by someone else, and which of their outputs is meant.
    Whole(Box<Definition>, Edge),
    Diff {
        lower: State,
        upper: State,
    },
}

/// What is said about a vertex when it is made.
#[derive(Clone, Debug, Default)]
pub struct Constraints {
    /// What it works for. Part of the digest of execs, images and OCI layouts, and of nothing else.
    pub platform: Option<Platform>,
    /// See [`OpMetadata`]. Abilities the op itself needs are added when it is written.
    pub metadata: OpMetadata,
    /// The lines it comes from.
    pub locations: Vec<SourceLocation>,
}

impl Constraints {
    /// Nothing but a platform.
    pub fn on(platform: Platform) -> Self {
        Self {
            platform: Some(platform),
            ..Self::default()
        }
    }

    /// Gives the vertex a name to show.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.metadata
            .description
            .insert(crate::CUSTOM_NAME.to_owned(), name.into());
        self
    }

    /// Adds a line of free text.
    #[must_use]
    pub fn described(mut self, key: &str, text: impl Into<String>) -> Self {
        self.metadata.description.insert(key.to_owned(), text.into());
        self
    }

    /// Adds the lines the vertex comes from.
    #[must_use]
    pub fn located(mut self, location: Option<SourceLocation>) -> Self {
        self.locations.extend(location);
        self
    }

    /// Sets whether the cache may not answer.
    #[must_use]
    pub fn ignoring_cache(mut self, ignore: bool) -> Self {
        self.metadata.ignore_cache = ignore;
        self
    }

    /// Shows the vertex under a heading.
    #[must_use]
    pub fn grouped(mut self, group: Option<ProgressGroup>) -> Self {
        self.metadata.progress_group = group;
        self
    }

    /// Limits the step's cgroup.
    #[must_use]
    pub fn limited(mut self, resources: Option<LinuxResources>) -> Self {
        self.metadata.linux_resources = resources;
        self
    }
}

/// A file that vertices come from, shared by their locations.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceMap {
    /// Its name as the user knows it.
    pub filename: String,
    /// Its language (`Dockerfile`).
    pub language: String,
    /// Its contents.
    pub data: Vec<u8>,
    /// How the file itself was had.
    pub definition: Option<crate::Definition>,
}

/// Lines of a file.
#[derive(Clone, Debug)]
pub struct SourceLocation {
    /// The file.
    pub map: Arc<SourceMap>,
    /// The lines.
    pub ranges: Vec<Range>,
}

impl State {
    /// An empty file system.
    pub fn scratch() -> Self {
        Self(Kind::Scratch)
    }

    /// A state that will be known later; `marshal` fails when the promise was not kept.
    pub fn promised() -> (Self, Promise) {
        let slot = Arc::new(OnceLock::new());
        (Self(Kind::Promised(Arc::clone(&slot))), Promise(slot))
    }

    /// The result of a definition that came from somewhere else; its ops are taken over byte for byte.
    ///
    /// # Errors
    /// Whatever is wrong with the definition.
    pub fn from_definition(definition: Definition) -> Result<Self, Error> {
        let root = definition.to_graph()?.root;
        Ok(root.map_or_else(Self::scratch, |root| {
            Self::output_of(Spec::Whole(Box::new(definition), root), Constraints::default())
        }))
    }

    /// Whether this is known to be an empty file system.
    pub fn is_scratch(&self) -> bool {
        match &self.0 {
            Kind::Scratch => true,
            Kind::Output { .. } => false,
            Kind::Promised(slot) => slot.get().is_some_and(State::is_scratch),
        }
    }

    fn output_of(spec: Spec, constraints: Constraints) -> Self {
        Self(Kind::Output {
            node: Arc::new(Node { spec, constraints }),
            output: OutputOf::First,
        })
    }
}

/// The other end of [`State::promised`].
#[derive(Debug)]
pub struct Promise(Arc<OnceLock<State>>);

impl Promise {
    /// Says what the state is. A second answer is not heard.
    pub fn keep(self, state: State) {
        let _ = self.0.set(state);
    }
}
