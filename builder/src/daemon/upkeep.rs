//! What a daemon does from time to time: history, received contexts and the store within their limits, everything durable.
use super::gc;
use super::run::Runner;
use crate::history::Stamp;
use std::sync::Arc;
use std::time::Duration;

/// How often.
const EVERY: Duration = Duration::from_secs(60);
/// Contexts nobody sent for this long are forgotten.
const CONTEXT_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of all kept contexts; the longest unused go first.
const CONTEXT_BYTES: u64 = 10 << 30;

/// Runs until the daemon closes.
pub(super) async fn run(runner: Arc<Runner>) {
    // What was left by the last daemon counts as a build.
    let mut swept_after = None;
    loop {
        tokio::select! {
            () = runner.closing.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let runner = runner.clone();
        let ended = Some(runner.builds.ended());
        let is_sweep = swept_after != ended;
        swept_after = ended;
        let work = tokio::task::spawn_blocking(move || {
            if let Err(error) = runner.history.sweep(Stamp::now()) {
                tracing::warn!(%error, "the history was not swept");
            }
            runner.sessions.received().sweep(CONTEXT_AGE, CONTEXT_BYTES);
            if is_sweep {
                sweep(&runner);
            }
            if is_sweep {
                // Many threads allocate, each where it likes: what they free stays in pieces that the allocator keeps.
                sandbox::give_back_memory();
            }
            if let Err(error) = runner.engine.cache.barrier() {
                tracing::warn!(%error, "the store could not be made durable");
            }
        });
        if let Err(error) = work.await {
            tracing::warn!(%error, "upkeep ended early");
        }
    }
}

fn sweep(runner: &Runner) {
    match gc::sweep(&runner.gc, &runner.engine.cache, runner.sessions.received()) {
        Ok(swept) if swept.records > 0 => {
            runner.metrics.swept(swept.bytes);
            tracing::info!(
                records = swept.records,
                bytes = swept.bytes,
                "removed what was over the limits"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the store was not swept"),
    }
}
