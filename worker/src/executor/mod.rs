//! Runs one prepared step: by our own sandbox, or by another OCI runtime.
//!
//! ```text
//! Spec ─▶ Executor::run ─▶ Spawner ─▶ Process ─┬─ stdout, stderr ─▶ progress
//!                                              └─ Exit (everything it left is removed by then)
//! ```
//!
//! Cancelling kills pid 1 of the step, and with it all its processes; `run` returns when they are gone.
pub(crate) mod room; // stops a step that writes more than there is room for
mod oci_runtime; // runc, crun and the like

use parking_lot::Mutex;
use sandbox::{Doorway, Exit, Process, Spawner, Spec, Stdio, network::Lease};
use solver::progress::{OutputStream, Sink};
use std::{
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};
use tokio_util::sync::CancellationToken;

/// Bytes of output read at once.
const OUTPUT_BYTES: usize = 32 << 10;

/// Starts steps. One helper process serves all of them; it is started with the first.
#[derive(Default)]
pub(crate) struct Executor {
    spawner: Mutex<Option<Arc<Spawner>>>,
}

/// A step that could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error("read the output of the step")]
    Output(#[source] io::Error),
    #[error("prepare the bundle of another OCI runtime")]
    Bundle(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the step was stopped, as it wrote too much: {0}")]
    Full(#[source] cache::CacheError),
    #[error("canceled")]
    Canceled,
}

impl Executor {
    /// The helper process; started now if it is not there.
    pub(crate) fn spawner(&self) -> Result<Arc<Spawner>, sandbox::Error> {
        let mut slot = self.spawner.lock();
        if let Some(spawner) = slot.as_ref() {
            return Ok(spawner.clone());
        }
        let spawner = Arc::new(Spawner::start()?);
        *slot = Some(spawner.clone());
        Ok(spawner)
    }

    /// Starts the helper process ahead of the first step, so that the step need not wait for it.
    pub(crate) fn warm_up(&self) -> Result<(), sandbox::Error> {
        self.spawner().map(drop)
    }

    /// Runs a step to its end and shows its output.
    pub(crate) async fn run(
        self: &Arc<Self>,
        spec: Spec,
        network: Option<Lease>,
        progress: Sink,
        cancel: &CancellationToken,
    ) -> Result<(Exit, Vec<String>), RunError> {
        // The lease lives as long as the step.
        let start = move |spawner: &Spawner, stdio| {
            let namespace: Option<BorrowedFd<'_>> = network.as_ref().map(AsFd::as_fd);
            let process = spawner.step(&spec, stdio, namespace)?;
            Ok((process, network))
        };
        self.follow(start, progress, cancel).await
    }

    /// Starts something and stays with it to its end; what `start` gives beside the process lives as long.
    async fn follow<K: Send + 'static>(
        self: &Arc<Self>,
        start: impl FnOnce(&Spawner, Stdio) -> Result<(Process, K), sandbox::Error> + Send + 'static,
        progress: Sink,
        cancel: &CancellationToken,
    ) -> Result<(Exit, Vec<String>), RunError> {
        let executor = self.clone();
        let started = tokio::task::spawn_blocking(move || {
            let spawner = executor.spawner()?;
            let (stdio, stdout, stderr) = Stdio::pipes().map_err(RunError::Output)?;
            let (process, kept) = start(&spawner, stdio)?;
            Ok::<_, RunError>((process, stdout, stderr, kept))
        });
        let (mut process, stdout, stderr, _kept) = started.await.map_err(|_| RunError::Canceled)??;
        let notes = process.notes().to_vec();
        let killer = process.killer().map_err(RunError::Output)?;
        let outputs =
            [(OutputStream::Stdout, stdout), (OutputStream::Stderr, stderr)].map(|(stream, pipe)| {
                let progress = progress.clone();
                tokio::task::spawn_blocking(move || show(pipe, stream, &progress))
            });
        let waiting = tokio::task::spawn_blocking(move || wait(&mut process));
        tokio::pin!(waiting);
        let exit = tokio::select! {
            exit = &mut waiting => exit,
            () = cancel.cancelled() => {
                // The end comes through `waiting` all the same, after everything was removed.
                let _ = killer.kill();
                waiting.await
            }
        };
        for output in outputs {
            output
                .await
                .map_err(|_| RunError::Canceled)?
                .map_err(RunError::Output)?;
        }
        let exit = exit.map_err(|_| RunError::Canceled)??;
        if cancel.is_cancelled() {
            return Err(RunError::Canceled);
        }
        Ok((exit, notes))
    }

    /// Starts a process with the given stdio and waits for it: `builder run`.
    pub(crate) fn start(
        &self,
        spec: &Spec,
        stdio: Stdio,
        network: Option<BorrowedFd<'_>>,
    ) -> Result<Process, sandbox::Error> {
        self.spawner()?.step(spec, stdio, network)
    }

    /// Starts a further process in the container of another.
    pub(crate) fn enter(
        &self,
        doorway: Doorway,
        spec: &Spec,
        stdio: Stdio,
    ) -> Result<Process, sandbox::Error> {
        self.spawner()?.enter(doorway, spec, stdio)
    }
}

fn wait(process: &mut Process) -> Result<Exit, sandbox::Error> {
    process.wait()
}

/// Shows what comes out of a pipe until all its writers are gone.
pub(crate) fn show(pipe: OwnedFd, stream: OutputStream, progress: &Sink) -> io::Result<()> {
    let mut pipe = std::fs::File::from(pipe);
    let mut buffer = vec![0; OUTPUT_BYTES];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => progress.log(stream, &buffer[..count]),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
}
