//! Stops a step that writes more than the store or its disk has room for.
//!
//! ```text
//! run(step) ──────────────▶ its end ─▶ checked once more ─▶ its outcome
//!   └ watch: check, wait, check … ─▶ full: the step is cancelled ─▶ RunError::Full
//! ```
use super::RunError;
use cache::{CacheError, Watch};
use std::future::Future;
use tokio_util::sync::CancellationToken;

/// Runs a step under a watch; `run` gets the token that stops it.
pub(crate) async fn watched<T, F: Future<Output = Result<T, RunError>>>(
    watch: Watch,
    cancel: &CancellationToken,
    run: impl FnOnce(CancellationToken) -> F,
) -> Result<T, RunError> {
    let stop = cancel.child_token();
    let running = run(stop.clone());
    tokio::pin!(running);
    let watching = until_full(watch, stop.clone());
    tokio::pin!(watching);
    tokio::select! {
        outcome = &mut running => {
            // What it wrote last is not kept either when there is no room for it.
            stop.cancel();
            match (outcome, watching.await) {
                (Ok(_), Some(full)) => Err(RunError::Full(full)),
                (outcome, _) => outcome,
            }
        }
        full = &mut watching => {
            stop.cancel();
            let outcome = running.await;
            full.map_or(outcome, |full| Err(RunError::Full(full)))
        }
    }
}

/// Checks until there is no room, or until told to stop and once more then.
async fn until_full(mut watch: Watch, stop: CancellationToken) -> Option<CacheError> {
    loop {
        let is_last = stop.is_cancelled();
        let checking = tokio::task::spawn_blocking(move || (watch.check(), watch));
        // The runtime is going away, and the step with it.
        let (checked, back) = checking.await.ok()?;
        watch = back;
        let interval = match checked {
            Err(full) => return Some(full),
            Ok(_) if is_last => return None,
            Ok(interval) => interval,
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(interval) => {}
        }
    }
}
