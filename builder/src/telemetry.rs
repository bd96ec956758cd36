//! The program's log: events with fields, on stderr.
//!
//! | program | what is logged | how |
//! |---|---|---|
//! | commands | nothing, unless `--debug` (what our own crates say) or `BUILDER_LOG` asks for it | text |
//! | `serve` | from `--log-level` on, else what `buildkitd.toml` says, else `info` | `--log-format text` or `json`, one object a line |
//!
//! `BUILDER_LOG` is a filter such as `worker=debug,registry=trace` and wins. What a user needs to know is said by progress
//! and errors, not here.
use crate::config::Environment;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

const OWN: [&str; 9] = [
    "builder", "frontend", "solver", "worker", "cache", "registry", "session", "sandbox", "llb",
];

/// Begins to log if that was asked for.
///
/// # Errors
/// A sentence that says why `BUILDER_LOG` is no filter.
pub fn start(is_debug: bool, environment: &Environment) -> Result<(), String> {
    let filter = match (asked(environment)?, is_debug) {
        (Some(filter), _) => filter,
        (None, true) => EnvFilter::new(level_filter("debug")),
        (None, false) => return Ok(()),
    };
    begin(filter, false, environment);
    Ok(())
}

/// Begins a daemon's log.
///
/// # Errors
/// A sentence that says why level, format or `BUILDER_LOG` are none.
pub fn serve(level: &str, format: &str, environment: &Environment) -> Result<(), String> {
    let is_json = match format {
        "text" => false,
        "json" => true,
        other => return Err(format!("unknown log format {other:?}; known are text and json")),
    };
    let level = match level.to_ascii_lowercase().as_str() {
        "panic" | "fatal" | "error" => "error",
        "warn" | "warning" => "warn",
        "info" => "info",
        "debug" => "debug",
        "trace" => "trace",
        other => {
            return Err(format!(
                "unknown log level {other:?}; known are error, warn, info, debug and trace"
            ));
        }
    };
    let filter = asked(environment)?.unwrap_or_else(|| EnvFilter::new(level_filter(level)));
    begin(filter, is_json, environment);
    Ok(())
}

fn asked(environment: &Environment) -> Result<Option<EnvFilter>, String> {
    let text = environment.text("BUILDER_LOG").filter(|text| !text.is_empty());
    let parsed =
        text.map(|text| EnvFilter::try_new(text).map_err(|error| format!("BUILDER_LOG={text}: {error}")));
    parsed.transpose()
}

/// Other people's crates speak from `warn` on.
fn level_filter(level: &str) -> String {
    let others = if level == "error" { "error" } else { "warn" };
    let own = OWN.iter().map(|name| format!(",{name}={level}"));
    own.fold(others.to_owned(), |filter, own| filter + &own)
}

fn begin(filter: EnvFilter, is_json: bool, environment: &Environment) {
    let colour = !environment.is_set("NO_COLOR") && std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second start in one process (in tests) leaves the first in force.
    let _ = match is_json {
        true => log.json().flatten_event(true).try_init(),
        false => log.with_ansi(colour).try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_formats() {
        let nothing = Environment::of(&[]);
        for (level, format, is_good) in [
            ("loud", "text", false),
            ("info", "xml", false),
            ("INFO", "text", true),
            ("warning", "json", true),
        ] {
            assert_eq!(
                serve(level, format, &nothing).is_ok(),
                is_good,
                "{level} {format}"
            );
        }
        assert!(level_filter("debug").starts_with("warn,builder=debug,"));
    }
}
