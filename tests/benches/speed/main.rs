//! Our own overhead against what the same machine does bare, and against BuildKit: `cargo bench -p tests`.
//!
//! ```text
//! workload ─▶ the program, several times ──────────────▶ least time ─┐
//! bare equivalent, or BuildKit's daemon ─▶ likewise ───▶ least time ─┴▶ a row: figure, goal, met or missed
//! ```
//!
//! 1. `own` are builds without a daemon; `service` builds through one.
//! 2. `daemon` starts and watches daemons, and runs clients.
//!
//! Needs the release binary: `cargo build --release -p builder` first (`cargo bench` builds only itself). With
//! `BENCH_BUILDKITD` and `BENCH_BUILDCTL` naming BuildKit's programs the rows through a daemon are measured with these too,
//! in the same run; without them such rows say that nothing was compared.
//!
//! Nothing here asserts: machines differ, and a neighbour's load is not our regression. Rows that miss their
//! goal say so; `cargo bench -p tests -- --strict` ends with code 1 if any does. Rows may be chosen by name.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

mod daemon;
mod own;
mod service;

use anyhow::{Result, bail, ensure};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tests::Program;

/// How often each figure is taken; the least counts.
const TIMES: usize = 5;

/// One line of the table.
struct Row {
    what: Cow<'static, str>,
    figure: String,
    goal: Cow<'static, str>,
    is_met: bool,
}

type Bench = fn(&Path) -> Result<Vec<Row>>;

const BENCHES: [(&str, Bench); 12] = [
    ("run", own::run_step),
    ("cached", own::cached),
    ("copy", own::copy_step),
    ("gzip", own::gzip),
    ("context", own::context),
    ("memory", own::memory),
    ("wide", own::wide),
    ("idle", service::idle),
    ("served", service::served),
    ("sent", service::sent),
    ("same32", service::same32),
    ("many", service::many),
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let is_strict = args.iter().any(|arg| arg == "--strict");
    let chosen: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let mut has_missed = false;
    println!("{:<46} {:>36}   {:<44}", "what", "figure", "goal");
    for (name, bench) in BENCHES {
        if !chosen.is_empty() && !chosen.iter().any(|wanted| *wanted == name) {
            continue;
        }
        let folder = tempfile::tempdir()?;
        match bench(folder.path()) {
            Ok(rows) => {
                for row in rows {
                    let mark = if row.is_met { "met" } else { "MISSED" };
                    println!("{:<46} {:>36}   {:<44} {mark}", row.what, row.figure, row.goal);
                    has_missed |= !row.is_met;
                }
            }
            Err(error) => {
                println!("{name:<46} could not be measured: {error:#}");
                has_missed = true;
            }
        }
    }
    if is_strict && has_missed {
        bail!("a goal was missed");
    }
    Ok(())
}

/// The least time of several runs of `work`, each prepared by `prepare`.
fn least(prepare: impl FnMut() -> Result<()>, work: impl FnMut() -> Result<()>) -> Result<Duration> {
    least_of(TIMES, prepare, work)
}

/// The least time of `times` runs of `work`, each prepared by `prepare`.
fn least_of(
    times: usize,
    mut prepare: impl FnMut() -> Result<()>,
    mut work: impl FnMut() -> Result<()>,
) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..times {
        prepare()?;
        let begun = Instant::now();
        work()?;
        best = best.min(begun.elapsed());
    }
    Ok(best)
}

fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("BUILDER_BINARY") {
        Some(path) => path.into(),
        None => Program::binary(),
    };
    ensure!(
        path.exists(),
        "there is no {}: run `cargo build --release -p builder` first",
        path.display()
    );
    Ok(path)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
