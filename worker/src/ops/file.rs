//! Does a file op: its actions in order, one layer for each result that is given out.
//!
//! ```text
//! inputs ─▶ views ─▶ Stage on the first ─▶ action, action, … ─▶ tar straight into the store ─▶ ref
//! ```
//!
//! Actions work on the same stage as long as nobody else looks at what is between them; what is given out or used twice
//! becomes a layer of its own. Reading and writing happen on a blocking thread.

use std::{
    collections::HashMap,
    io::{BufWriter, Write},
    sync::Arc,
};

use async_trait::async_trait;
use cache::{
    Cache, CacheError, ImmutableRef, RecordInfo,
    checksum::{Selector, checksum},
    layer::LayerError,
    view::View,
};
use llb::{
    Vertex,
    cache::PathSelector,
    op::{Chown, FileAction, FileActionKind, FileInput, FileOp},
};
use oci::Digest;
use solver::{CacheMap, Op, OpContext, OpError};
use tokio_util::sync::CancellationToken;
use tree::Timestamp;

use crate::{
    file::{self, FileError, Ids, Stage},
    meter::ProgressMeter,
    ops::{cache_error, cache_map},
    worker::Worker,
};

/// How many bytes of a layer are gathered before they are written.
const WRITE_BYTES: usize = 256 * 1024;

/// An action that failed, and which of the op's it was.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct FileActionError {
    /// Position of the action in the op.
    pub index: usize,
    /// Why it failed.
    cause: FileError,
}

/// A file op.
pub(crate) struct FileVertex {
    worker: Arc<Worker>,
    vertex: Vertex,
    op: FileOp,
    /// Per input: the paths whose content may stand in for its definition.
    selectors: Vec<Vec<Selector>>,
}

impl FileVertex {
    pub(crate) fn new(worker: Arc<Worker>, vertex: &Vertex, op: &FileOp) -> Result<Self, OpError> {
        let key = llb::cache::op_key(vertex, &worker.options.platform).map_err(OpError::user)?;
        let key = key.ok_or_else(|| OpError::internal("a file op has no key"))?;
        let selectors = key
            .deps
            .into_iter()
            .map(|dep| dep.content.unwrap_or_default().into_iter().map(selector).collect())
            .collect();
        Ok(FileVertex { worker, vertex: vertex.clone(), op: op.clone(), selectors })
    }
}

/// The same selector in the words of the store.
pub(crate) fn selector(path: PathSelector) -> Selector {
    Selector {
        path: path.path,
        wildcard: path.wildcard,
        follow_links: path.follow_links,
        include_patterns: path.include_patterns,
        exclude_patterns: path.exclude_patterns,
        required_paths: path.required_paths,
    }
}

/// The content digest of what `selectors` select in `result`, computed on a blocking thread.
pub(crate) async fn digest_content(
    ctx: &OpContext,
    result: &ImmutableRef,
    selectors: Vec<Selector>,
) -> Result<Digest, OpError> {
    let meter = ProgressMeter::shared(&ctx.progress);
    let view = ctx.unless_canceled(result.view(&meter)).await?.map_err(cache_error)?;
    let result = result.clone();
    let digest = blocking(move || {
        let digest = checksum(&view, &selectors).map_err(layer_error)?;
        result.keep_digests().map_err(cache_error)?;
        Ok(digest)
    });
    ctx.unless_canceled(digest).await?
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpError> + Send + 'static,
) -> Result<T, OpError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| OpError::internal(format!("file operation: {error}")))?
}

/// Whose move it is when a view could not be read.
fn layer_error(error: LayerError) -> OpError {
    match error {
        LayerError::NotFound { path } => OpError::user(format!("failed to calculate checksum of {path:?}: not found")),
        LayerError::Pattern(_) | LayerError::TooManyLinks { .. } | LayerError::ChangedSince { .. } => {
            OpError::user(error)
        }
        other => OpError::environment(other),
    }
}

fn action_error(index: usize, cause: FileError) -> OpError {
    match cause {
        FileError::Cancelled => OpError::canceled(),
        FileError::Layer(LayerError::Io { .. } | LayerError::Tree(_)) => {
            OpError::environment(FileActionError { index, cause })
        }
        cause => OpError::user(FileActionError { index, cause }),
    }
}

#[async_trait]
impl Op<ImmutableRef> for FileVertex {
    async fn cache_map(&self, _: &OpContext, _: usize) -> Result<(CacheMap, bool), OpError> {
        Ok((cache_map(&self.vertex, &self.worker.options.platform)?, true))
    }

    async fn content_digest(
        &self,
        ctx: &OpContext,
        input: usize,
        result: &ImmutableRef,
    ) -> Result<Option<Digest>, OpError> {
        let Some(selectors) = self.selectors.get(input) else {
            return Err(OpError::internal(format!("input {input} of a file op is missing")));
        };
        digest_content(ctx, result, selectors.clone()).await.map(Some)
    }

    async fn exec(&self, ctx: &OpContext, inputs: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let meter = ProgressMeter::shared(&ctx.progress);
        let mut ready = Vec::with_capacity(inputs.len());
        for (index, input) in inputs.into_iter().enumerate() {
            let is_base = |action: &FileAction| action.input == FileInput::Input(u32::try_from(index).unwrap_or(0));
            let input = match self.op.actions.iter().any(is_base) {
                // A layer can only be kept on top of what is kept.
                true => ctx.unless_canceled(input.persist(&meter)).await?.map_err(cache_error)?,
                false => input,
            };
            let view = ctx.unless_canceled(input.view(&meter)).await?.map_err(cache_error)?;
            ready.push((input, view));
        }
        let run = Run {
            cache: self.worker.cache.clone(),
            info: RecordInfo::new(self.vertex.name()),
            uses: uses(&self.op.actions),
            inputs: ready,
            results: Vec::new(),
            cancel: ctx.cancel.clone(),
            now: Timestamp::now(),
        };
        let actions = self.op.actions.clone();
        blocking(move || run.all(&actions)).await
    }
}

/// How often each action's result is looked at by others; what is given out counts twice, so that it becomes a layer.
fn uses(actions: &[FileAction]) -> HashMap<u32, usize> {
    let mut uses = HashMap::new();
    for (index, action) in actions.iter().enumerate() {
        if let FileInput::Action(used) = action.input {
            *uses.entry(used).or_default() += 1;
        }
        // A source is read as a view, so it has to be a layer.
        if let FileInput::Action(used) = action.secondary_input {
            *uses.entry(used).or_default() += 2;
        }
        if action.output.is_some() {
            *uses.entry(u32::try_from(index).unwrap_or(u32::MAX)).or_default() += 2;
        }
    }
    uses
}

/// The result of an action.
enum State {
    /// Changes on top of a ref that only the next action will see.
    Staged(ImmutableRef, Stage),
    /// A ref of its own.
    Kept(ImmutableRef, View),
    /// Went on into the next action.
    Taken,
}

/// One run of a file op.
struct Run {
    cache: Cache,
    info: RecordInfo,
    uses: HashMap<u32, usize>,
    inputs: Vec<(ImmutableRef, View)>,
    results: Vec<State>,
    cancel: CancellationToken,
    now: Timestamp,
}

impl Run {
    fn all(mut self, actions: &[FileAction]) -> Result<Vec<ImmutableRef>, OpError> {
        let mut outputs: Vec<(u32, ImmutableRef)> = Vec::new();
        for (index, action) in actions.iter().enumerate() {
            if self.cancel.is_cancelled() {
                return Err(OpError::canceled());
            }
            let (base, mut stage) = self.stage(action.input)?;
            self.act(&mut stage, action).map_err(|cause| action_error(index, cause))?;
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            let state = if self.uses.get(&number).copied().unwrap_or(0) > 1 {
                let (made, view) = self.keep(&base, &stage, index)?;
                if let Some(output) = action.output {
                    outputs.push((output, made.clone()));
                }
                State::Kept(made, view)
            } else {
                State::Staged(base, stage)
            };
            self.results.push(state);
        }
        outputs.sort_by_key(|(output, _)| *output);
        let in_order = outputs.iter().enumerate().all(|(at, (output, _))| at == *output as usize);
        if outputs.is_empty() || !in_order {
            return Err(OpError::user("the outputs of a file op are not numbered from 0 without gaps"));
        }
        Ok(outputs.into_iter().map(|(_, made)| made).collect())
    }

    /// What an action is to work on.
    fn stage(&mut self, input: FileInput) -> Result<(ImmutableRef, Stage), OpError> {
        let missing = || OpError::user("a file action works on a result that is not there");
        match input {
            FileInput::Scratch => Ok((self.cache.scratch(), Stage::new(View::default(), self.now))),
            FileInput::Input(index) => {
                let (base, view) = self.inputs.get(index as usize).ok_or_else(missing)?;
                Ok((base.clone(), Stage::new(view.clone(), self.now)))
            }
            FileInput::Action(index) => {
                let state = self.results.get_mut(index as usize).ok_or_else(missing)?;
                match std::mem::replace(state, State::Taken) {
                    State::Staged(base, stage) => Ok((base, stage)),
                    State::Kept(made, view) => {
                        *state = State::Kept(made.clone(), view.clone());
                        Ok((made, Stage::new(view, self.now)))
                    }
                    State::Taken => Err(missing()),
                }
            }
        }
    }

    fn view(&self, input: FileInput) -> Result<View, FileError> {
        let found = match input {
            FileInput::Scratch => Some(View::default()),
            FileInput::Input(index) => self.inputs.get(index as usize).map(|(_, view)| view.clone()),
            FileInput::Action(index) => match self.results.get(index as usize) {
                Some(State::Kept(_, view)) => Some(view.clone()),
                Some(State::Staged(..) | State::Taken) | None => None,
            },
        };
        found.ok_or_else(|| FileError::NotFound { path: format!("the result that {input:?} names") })
    }

    fn owner(&self, chown: Option<&Chown>) -> Result<Option<Ids>, FileError> {
        file::find_owner(chown, &mut |index| {
            let inputs = u32::try_from(self.inputs.len()).unwrap_or(u32::MAX);
            self.view(match index.checked_sub(inputs) {
                None => FileInput::Input(index),
                Some(action) => FileInput::Action(action),
            })
        })
    }

    fn act(&self, stage: &mut Stage, action: &FileAction) -> Result<(), FileError> {
        match &action.kind {
            FileActionKind::Mkdir(mkdir) => file::mkdir(stage, mkdir, self.owner(mkdir.owner.as_ref())?),
            FileActionKind::Mkfile(mkfile) => file::mkfile(stage, mkfile, self.owner(mkfile.owner.as_ref())?),
            FileActionKind::Symlink(link) => file::symlink(stage, link, self.owner(link.owner.as_ref())?),
            FileActionKind::Rm(rm) => file::remove(stage, rm),
            FileActionKind::Copy(copy) => {
                let source = self.view(action.secondary_input)?;
                let spool = || tempfile::tempfile_in(self.cache.root().join("ingest"));
                file::copy(stage, &source, copy, self.owner(copy.owner.as_ref())?, &spool)
            }
        }
    }

    /// Writes a stage as a layer.
    fn keep(&self, base: &ImmutableRef, stage: &Stage, index: usize) -> Result<(ImmutableRef, View), OpError> {
        let ingest = self.cache.content().ingest().map_err(cache_error)?;
        let out = BufWriter::with_capacity(WRITE_BYTES, ingest);
        let cancelled = || self.cancel.is_cancelled();
        let (mut out, layer) = stage.write(out, &cancelled).map_err(|cause| action_error(index, cause))?;
        out.flush().map_err(|source| write_error(source))?;
        let ingest = out.into_inner().map_err(|error| write_error(error.into_error()))?;
        let made = self.cache.add_tar_layer(base, ingest, layer, self.info.clone()).map_err(cache_error)?;
        let view = made.ready_view().ok_or_else(|| OpError::internal("a layer just written cannot be read"))?;
        Ok((made, view))
    }
}

fn write_error(source: std::io::Error) -> OpError {
    match source.downcast::<CacheError>() {
        Ok(error) => cache_error(error),
        Err(source) => OpError::environment(source),
    }
}
