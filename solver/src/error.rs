//! Which vertex failed, doing what, and why.
//!
//! ```text
//! Op ─▶ OpError ─▶ VertexError (digest, name, phase) ─▶ SolveError, with the lines of the build's own definition
//! ```

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, OnceLock};

use llb::{Location, SourceFile};
use oci::Digest;

/// Whose move it is after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The user's: a wrong instruction, a file that is not there, a command that fails.
    User,
    /// Disk, network, kernel, registry.
    Environment,
    /// Ours: an invariant was broken.
    Internal,
}

/// Why an op failed. Cheap to clone: all who wait for the op get the same.
#[derive(Clone)]
pub struct OpError {
    blame: Blame,
    canceled: bool,
    wrapped: Arc<Wrapped>,
}

/// What all copies of an error share.
struct Wrapped {
    source: Box<dyn StdError + Send + Sync>,
    left: OnceLock<Box<dyn Any + Send + Sync>>,
}

#[derive(Debug, thiserror::Error)]
#[error("context canceled")]
struct Canceled;

impl Wrapped {
    fn new(source: Box<dyn StdError + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            source,
            left: OnceLock::new(),
        })
    }
}

impl OpError {
    /// Wraps what went wrong.
    pub fn new(blame: Blame, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            blame,
            canceled: false,
            wrapped: Wrapped::new(source.into()),
        }
    }

    /// A mistake of the user's.
    pub fn user(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Blame::User, source)
    }

    /// A fault of disk, network, kernel or registry.
    pub fn environment(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Blame::Environment, source)
    }

    /// A fault of ours.
    pub fn internal(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Blame::Internal, source)
    }

    /// The op stopped because it was told to, or because the session it used is gone. If someone else
    /// still wants the vertex it is started again with the sessions that are left.
    #[must_use]
    pub fn canceled() -> Self {
        Self {
            blame: Blame::User,
            canceled: true,
            wrapped: Wrapped::new(Box::new(Canceled)),
        }
    }

    /// The same, with what the op leaves behind for whoever wants to look into it. Kept as long as the error is; what was
    /// left first stays.
    #[must_use]
    pub fn leaving(self, left: impl Any + Send + Sync) -> Self {
        // Taken by what is there already, if anything is.
        let _first = self.wrapped.left.set(Box::new(left));
        self
    }

    /// What the op left behind, if it is a `T`.
    #[must_use]
    pub fn left<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.wrapped.left.get()?.downcast_ref()
    }

    /// Whose move it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        self.blame
    }

    /// Whether the op stopped because it was told to.
    #[must_use]
    pub fn is_canceled(&self) -> bool {
        self.canceled
    }

    /// What was wrapped, if it or one of its causes is a `T` (the exit code of a process).
    #[must_use]
    pub fn find<T: StdError + 'static>(&self) -> Option<&T> {
        let mut error: &(dyn StdError + 'static) = &*self.wrapped.source;
        loop {
            if let Some(found) = error.downcast_ref::<T>() {
                return Some(found);
            }
            error = error.source()?;
        }
    }

    /// The wrapped error.
    #[must_use]
    pub fn cause(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.wrapped.source
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.wrapped.source.fmt(f)
    }
}

impl fmt::Debug for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpError({:?}, {:?})", self.blame, self.wrapped.source)
    }
}

impl StdError for OpError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.wrapped.source.source()
    }
}

/// What a vertex was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Finding the op for it.
    Prepare,
    /// Finding out what its key is made of.
    CacheMap,
    /// Digesting the content of an input.
    Content,
    /// Running.
    Exec,
    /// Deciding; a fault of the solver.
    Solve,
}

/// A failed vertex, without the lines it came from: every build looks those up in its own definition.
#[derive(Clone, Debug)]
pub struct VertexError {
    /// The vertex.
    pub digest: Digest,
    /// The name it is shown under.
    pub name: String,
    /// What it was doing.
    pub phase: Phase,
    /// Why it failed.
    pub cause: OpError,
}

impl fmt::Display for VertexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.phase {
            Phase::CacheMap => f.write_str("failed to load cache key: ")?,
            Phase::Content => f.write_str("failed to compute cache key: ")?,
            Phase::Prepare | Phase::Exec => {}
            Phase::Solve => write!(f, "internal error at {:?}: ", self.name)?,
        }
        self.cause.fmt(f)
    }
}

impl StdError for VertexError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.source()
    }
}

/// Lines of one file that a failed vertex came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, with its contents.
    pub file: SourceFile,
    /// The lines.
    pub location: Location,
}

/// Why a build gave no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SolveError {
    /// A vertex failed.
    #[error("{error}")]
    Vertex {
        /// Which, doing what, and why.
        #[source]
        error: VertexError,
        /// The lines it came from; empty when the definition does not say.
        places: Vec<Place>,
    },
    /// The definition is not one.
    #[error("invalid definition: {0}")]
    Definition(Arc<llb::Error>),
    /// The job ended while the build ran.
    #[error("context canceled")]
    Canceled,
}

impl SolveError {
    /// Whose move it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Vertex { error, .. } => error.cause.blame(),
            Self::Definition(_) | Self::Canceled => Blame::User,
        }
    }

    /// The failed vertex, if it was one.
    #[must_use]
    pub fn vertex(&self) -> Option<&VertexError> {
        match self {
            Self::Vertex { error, .. } => Some(error),
            Self::Definition(_) | Self::Canceled => None,
        }
    }
}
