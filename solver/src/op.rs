//! The door through which the solver has work done.
//!
//! ```text
//! vertex ─ Ops::op ─▶ Op ─ cache_map ─▶ what its key is made of
//!                      ├─ content_digest(input, result) ─▶ a key by content
//!                      └─ exec(results of inputs) ─▶ results
//! record ─ Ops::load ─▶ result            result ─ Ops::save ─▶ the name it is kept under
//! record of an imported cache ─ ImportedCache::load ─▶ result
//! ```
//!
//! The solver calls each of them at most once per vertex, however many builds want it; again only when
//! the build whose session a call used went away while others still wait.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use keys::{KeyStore, ResultId};
use llb::Vertex;
use oci::Digest;
use tokio_util::sync::CancellationToken;

use crate::error::OpError;
use crate::progress::{Sink, VertexInfo};

/// What the cache key of an op is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMap {
    /// The op's own digest.
    pub digest: Digest,
    /// How each input enters the key, one per input of the vertex.
    pub deps: Vec<Dep>,
    /// Whether the digest means something in this process only (a local context): then nothing is
    /// filed or found under it, and users match by content.
    pub is_local: bool,
    /// JSON of what the digest was made from, for explaining a miss; empty when there is nothing to say.
    pub explain: String,
    /// What a source was found to be, a digest or a commit; for statements about the build, no part of the key.
    pub pin: Option<String>,
}

/// How one input enters the key of an op.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dep {
    /// The part of the input that matters, when it is known by its definition.
    pub selector: Option<Digest>,
    /// Whether the content of the input may stand in for its definition.
    pub content: bool,
}

/// One vertex, ready to be asked and run.
#[async_trait]
pub trait Op<R>: Send + Sync {
    /// What the key is made of. Sources may have several answers, each better and dearer than the one
    /// before; the flag says that there are no more. Ops with inputs are asked for the first only.
    async fn cache_map(&self, ctx: &OpContext, index: usize) -> Result<(CacheMap, bool), OpError>;

    /// The digest of the part of input number `input` that matters, `result` being that input; `None`
    /// if it has no key by content after all. Called only where [`Dep::content`] is set.
    async fn content_digest(
        &self,
        ctx: &OpContext,
        input: usize,
        result: &R,
    ) -> Result<Option<Digest>, OpError>
    where
        R: Sync,
    {
        // What asks for no content of its inputs is not asked for it either.
        let _ = (ctx, input, result);
        Ok(None)
    }

    /// Runs, and gives one result per output.
    async fn exec(&self, ctx: &OpContext, inputs: Vec<R>) -> Result<Vec<R>, OpError>;

    /// What a build says of how it is run that is no part of what it is, such as limits; its kind is between ops.
    fn terms(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// Another build wants the same, for which `other` was made: one run serves both, by terms that suit both.
    fn join(&self, _other: &dyn Op<R>) {}

    /// Whether running it is nothing but waiting for other ops. Such a one takes no turn: it would keep from running what
    /// it waits for.
    fn only_waits(&self) -> bool {
        false
    }
}

/// Everything the solver needs of the worker.
#[async_trait]
pub trait Ops<R>: Send + Sync {
    /// The op of a vertex. Cheap: it does not ask the world anything.
    ///
    /// # Errors
    /// The vertex asks for something this worker cannot do.
    fn op(&self, vertex: &Vertex) -> Result<Arc<dyn Op<R>>, OpError>;

    /// The result kept under `id`, or `None` if it is gone: then its record is forgotten.
    ///
    /// # Errors
    /// It could not be looked up; another record is tried, then the op is run.
    async fn load(&self, id: &ResultId) -> Result<Option<R>, OpError>;

    /// Keeps a result for later builds and says under which name; `None` for what is not to be kept (a
    /// context read in place).
    ///
    /// # Errors
    /// It could not be kept; the build goes on and the step will run again next time.
    async fn save(&self, result: &R) -> Result<Option<ResultId>, OpError>;
}

/// A cache of another machine that a job may use: its keys, and how their results are had.
#[async_trait]
pub trait ImportedCache<R>: Send + Sync {
    /// Its keys; they are only asked.
    fn keys(&self) -> Arc<dyn KeyStore>;

    /// The result of a record of its keys, or `None` if it is not to be had: then another record is tried, and then the op
    /// is run. What was loaded is filed in the local store.
    ///
    /// # Errors
    /// As for `None`; the log says why.
    async fn load(&self, progress: &Sink, id: &ResultId) -> Result<Option<R>, OpError>;
}

/// What a build brings along for the ops that run for it (the worker keeps its session there).
pub type Group = Arc<dyn Any + Send + Sync>;

/// What an op is called with.
#[derive(Clone)]
pub struct OpContext {
    /// Which vertex this is.
    pub vertex: Arc<VertexInfo>,
    /// Where to report progress; everything is shown under the vertex.
    pub progress: Sink,
    /// Set when nobody wants the answer any more: stop, clean up, return.
    pub cancel: CancellationToken,
    pub(crate) groups: Groups,
}

/// The groups of the builds that hold a vertex, with the number of the build.
pub(crate) type Groups = Arc<parking_lot::Mutex<Vec<(u64, Group)>>>;

impl OpContext {
    /// A context for calling an op outside of a solver, in tests.
    #[must_use]
    pub fn detached(vertex: VertexInfo, groups: Vec<Group>) -> Self {
        let vertex = Arc::new(vertex);
        Self {
            progress: Sink::silent(vertex.clone()),
            vertex,
            cancel: CancellationToken::new(),
            groups: Arc::new(parking_lot::Mutex::new(
                groups.into_iter().map(|group| (0, group)).collect(),
            )),
        }
    }

    /// The groups of the builds that want this vertex now, the one that asked first before the others.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        self.groups
            .lock()
            .iter()
            .map(|(_, group)| group.clone())
            .collect()
    }

    /// The first group of type `T`.
    #[must_use]
    pub fn group<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.groups()
            .into_iter()
            .find_map(|group| group.downcast::<T>().ok())
    }

    /// Waits for `work`, but not longer than somebody wants it.
    ///
    /// # Errors
    /// [`OpError::canceled`] when nobody does; `work` is dropped then.
    pub async fn unless_canceled<T>(&self, work: impl Future<Output = T>) -> Result<T, OpError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(OpError::canceled()),
            done = work => Ok(done),
        }
    }
}
