//! File actions, in order, each group of them one layer.
//!
//! ```text
//! inputs ─ views ─▶ stages (one per chain of actions) ─ crate::file ─▶ written as a layer where an output asks for it
//! ```
//!
//! An action whose result only the next one uses hands its stage on. One whose result is used twice, or as a source, is
//! written first and read back.
use super::{cache_error as failed, keyed::Run};
use crate::{
    Left, Session, Subject, Worker,
    file::{self, FileError, Stage},
    meter::SinkMeter,
};
use async_trait::async_trait;
use cache::{Cache, ImmutableRef, Meter, RecordInfo, view::View};
use llb::op::{Chown, FileAction, FileActionKind, FileInput, FileOp};
use solver::{OpContext, OpError};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tree::Timestamp;

/// The run of a file op.
pub(super) struct FileRun {
    worker: Arc<Worker>,
    op: FileOp,
}

impl FileRun {
    pub(super) fn new(worker: Arc<Worker>, op: &FileOp) -> FileRun {
        FileRun {
            worker,
            op: op.clone(),
        }
    }
}

#[async_trait]
impl Run for FileRun {
    async fn run(&self, ctx: &OpContext, inputs: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let meter = SinkMeter::shared(ctx.progress.clone());
        let mut bases = inputs;
        for action in &self.op.actions {
            // A context that is built upon is kept from then on; one that is copied from is read in place.
            if let FileInput::Input(index) = action.input
                && let Some(base) = bases.get_mut(index as usize)
            {
                *base = base.persist(&meter).await.map_err(failed)?;
            }
        }
        let mut views = Vec::with_capacity(bases.len());
        for base in &bases {
            views.push(ctx.unless_canceled(base.view(&meter)).await?.map_err(failed)?);
        }
        let actions = Actions {
            cache: self.worker.cache.clone(),
            info: RecordInfo::new(ctx.vertex.name.clone()),
            cancel: ctx.cancel.clone(),
            handle: tokio::runtime::Handle::current(),
            bases,
            views,
            meter,
            made: Vec::new(),
            actions: self.op.actions.len(),
            is_looked_into: Session::keeps_failures(ctx),
        };
        let op = self.op.clone();
        let done = tokio::task::spawn_blocking(move || actions.run(&op)).await;
        done.map_err(|_| OpError::canceled())?
    }
}

/// What became of an action.
enum Made {
    /// Changes not written yet, on top of a base.
    Stage(Box<Stage>, ImmutableRef),
    /// Written.
    Ref(ImmutableRef),
    /// Handed on to a later action.
    Taken,
}

struct Actions {
    cache: Cache,
    info: RecordInfo,
    cancel: CancellationToken,
    handle: tokio::runtime::Handle,
    bases: Vec<ImmutableRef>,
    views: Vec<View>,
    meter: Arc<dyn Meter>,
    made: Vec<Made>,
    /// How many there are.
    actions: usize,
    is_looked_into: bool,
}

impl Actions {
    fn run(mut self, op: &FileOp) -> Result<Vec<ImmutableRef>, OpError> {
        let uses = uses(op);
        let mut outputs: Vec<(u32, usize)> = Vec::new();
        for (index, action) in op.actions.iter().enumerate() {
            let (mut stage, base) = self.stage(action.input, &uses)?;
            let source = self.view(action.secondary_input)?;
            self.act(&mut stage, action, &source)
                .map_err(|cause| self.failed(index, &base, told(cause)))?;
            self.made.push(Made::Stage(Box::new(stage), base));
            if let Some(output) = action.output {
                outputs.push((output, index));
            }
        }
        outputs.sort_unstable();
        outputs.iter().map(|(_, index)| self.written(*index)).collect()
    }

    /// The failure of an action, with what it had where a client may look into it.
    /// Differs: beneath a failed action lies what its chain of actions began with, not what that has written so far.
    fn failed(&self, index: usize, base: &ImmutableRef, error: OpError) -> OpError {
        if !self.is_looked_into || error.is_canceled() {
            return error;
        }
        let mut mounts = vec![None; self.actions];
        mounts[index] = Some(base.clone());
        error.leaving(Left {
            inputs: self.bases.iter().cloned().map(Some).collect(),
            mounts,
            subject: Some(Subject::FileAction(index)),
        })
    }

    fn act(&self, stage: &mut Stage, action: &FileAction, source: &View) -> Result<(), FileError> {
        let owner = |chown: &Option<Chown>| {
            file::find_owner(chown.as_ref(), &mut |input| {
                Ok(self.views.get(input as usize).cloned().unwrap_or_default())
            })
        };
        match &action.kind {
            FileActionKind::Copy(copy) => {
                let spool = || tempfile::tempfile_in(self.cache.root().join("ingest"));
                file::copy(stage, source, copy, owner(&copy.owner)?, &spool)
            }
            FileActionKind::Mkfile(make) => file::mkfile(stage, make, owner(&make.owner)?),
            FileActionKind::Mkdir(make) => file::mkdir(stage, make, owner(&make.owner)?),
            FileActionKind::Rm(remove) => file::remove(stage, remove),
            FileActionKind::Symlink(link) => file::symlink(stage, link, owner(&link.owner)?),
        }
    }

    /// The stage an action changes, with the ref it stands on.
    fn stage(&mut self, input: FileInput, uses: &[usize]) -> Result<(Stage, ImmutableRef), OpError> {
        let base = match input {
            FileInput::Scratch => self.cache.scratch(),
            FileInput::Input(index) => self
                .bases
                .get(index as usize)
                .cloned()
                .ok_or_else(|| out_of_range(index))?,
            FileInput::Action(index) => {
                let at = index as usize;
                if uses.get(at) == Some(&1) {
                    let made = self.made.get_mut(at).ok_or_else(|| out_of_range(index))?;
                    if let Made::Stage(stage, base) = std::mem::replace(made, Made::Taken) {
                        return Ok((*stage, base));
                    }
                }
                self.written(at)?
            }
        };
        let view = self.handle.block_on(base.view(&self.meter)).map_err(failed)?;
        Ok((Stage::new(view, Timestamp::now()), base))
    }

    fn view(&mut self, input: FileInput) -> Result<View, OpError> {
        match input {
            FileInput::Scratch => Ok(View::default()),
            FileInput::Input(index) => self
                .views
                .get(index as usize)
                .cloned()
                .ok_or_else(|| out_of_range(index)),
            FileInput::Action(index) => {
                let written = self.written(index as usize)?;
                self.handle.block_on(written.view(&self.meter)).map_err(failed)
            }
        }
    }

    /// The result of an action as a ref.
    fn written(&mut self, index: usize) -> Result<ImmutableRef, OpError> {
        let out_of_range = || out_of_range(u32::try_from(index).unwrap_or(u32::MAX));
        let made = self.made.get_mut(index).ok_or_else(out_of_range)?;
        let written = match std::mem::replace(made, Made::Taken) {
            Made::Ref(found) => found,
            Made::Taken => {
                return Err(OpError::internal(
                    "the result of a file action was handed on already",
                ));
            }
            Made::Stage(stage, base) => {
                let cancelled = || self.cancel.is_cancelled();
                let received = self.cache.received_folder();
                if stage.is_worth_linking(&received).map_err(told)? {
                    let made = self.cache.new_mutable(&base, self.info.clone()).map_err(failed)?;
                    stage
                        .link_into(&made.upper(), &received, &cancelled)
                        .map_err(told)?;
                    let written = made.commit().map_err(failed)?;
                    self.made[index] = Made::Ref(written.clone());
                    return Ok(written);
                }
                let ingest = self.cache.content().ingest().map_err(failed)?;
                let (ingest, layer) = stage.write(ingest, &cancelled).map_err(told)?;
                self.cache
                    .add_tar_layer(&base, ingest, layer, self.info.clone())
                    .map_err(failed)?
            }
        };
        self.made[index] = Made::Ref(written.clone());
        Ok(written)
    }
}

/// How often the result of each action is used.
fn uses(op: &FileOp) -> Vec<usize> {
    let mut uses = vec![0; op.actions.len()];
    for action in &op.actions {
        if let FileInput::Action(index) = action.input
            && let Some(count) = uses.get_mut(index as usize)
        {
            *count += 1;
        }
        if let FileInput::Action(index) = action.secondary_input
            && let Some(count) = uses.get_mut(index as usize)
        {
            *count += 2;
        }
    }
    for (count, action) in uses.iter_mut().zip(&op.actions) {
        *count += usize::from(action.output.is_some()) * 2;
    }
    uses
}

fn out_of_range(index: u32) -> OpError {
    OpError::user(format!("index {index} of a file action is out of range"))
}

fn told(cause: FileError) -> OpError {
    match cause {
        FileError::Cancelled => OpError::canceled(),
        cause => OpError::user(cause),
    }
}
