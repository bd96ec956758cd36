//! Ctrl-C and SIGTERM as a token everybody can wait for.
//!
//! The first one cancels: steps are killed, what was made is given back, progress is shown to its end. A
//! second one changes nothing for a build, because leaving at once would leave mounts and processes behind; a daemon calls
//! its builds off.
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Set by the first signal.
#[derive(Debug, Clone)]
pub struct Signals {
    token: CancellationToken,
    again: CancellationToken,
    number: Arc<AtomicI32>,
}

impl Signals {
    /// Begins to listen; must be called within a runtime.
    ///
    /// # Errors
    /// The handlers could not be installed.
    pub fn listen() -> std::io::Result<Signals> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let signals = Signals {
            token: CancellationToken::new(),
            again: CancellationToken::new(),
            number: Arc::new(AtomicI32::new(0)),
        };
        let told = signals.clone();
        // Lives as long as the runtime: signals may come until the very end.
        tokio::spawn(async move {
            loop {
                let number = tokio::select! {
                    _ = interrupt.recv() => 2,
                    _ = terminate.recv() => 15,
                    _ = hangup.recv() => 1,
                };
                if told
                    .number
                    .compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst)
                    .is_err()
                {
                    crate::cli::note("cancelling: waiting until every step has ended");
                    told.again.cancel();
                }
                told.token.cancel();
            }
        });
        Ok(signals)
    }

    /// Waits for the first signal; answers its number.
    pub async fn received(&self) -> i32 {
        self.token.cancelled().await;
        self.number.load(Ordering::SeqCst)
    }

    /// The token a second signal sets: a daemon waits for its builds no longer.
    pub fn again(&self) -> &CancellationToken {
        &self.again
    }

    /// The token the first signal sets.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}
