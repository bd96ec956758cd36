//! The program's log: events with fields, on stderr, only where they are asked for.
//!
//! `--debug` shows what this program's own crates say; `BUILDER_LOG` is a filter such as `worker=debug,registry=trace`
//! and wins. Without either nothing is logged: what a user needs to know is said by progress and errors.
use crate::config::Environment;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

const DEBUG: &str =
    "warn,builder=debug,frontend=debug,solver=debug,worker=debug,cache=debug,registry=debug,session=debug";

/// Begins to log if that was asked for.
///
/// # Errors
/// A sentence that says why `BUILDER_LOG` is no filter.
pub fn start(is_debug: bool, environment: &Environment) -> Result<(), String> {
    let filter = match (
        environment.text("BUILDER_LOG").filter(|text| !text.is_empty()),
        is_debug,
    ) {
        (Some(text), _) => {
            EnvFilter::try_new(text).map_err(|error| format!("BUILDER_LOG={text}: {error}"))?
        }
        (None, true) => EnvFilter::new(DEBUG),
        (None, false) => return Ok(()),
    };
    let colour = !environment.is_set("NO_COLOR") && std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour);
    // A second start in one process (in tests) leaves the first in force.
    let _ = log.try_init();
    Ok(())
}
