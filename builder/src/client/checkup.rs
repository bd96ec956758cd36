//! What a daemon says when it is asked how it is: `doctor --addr`.
//!
//! ```text
//! connect ─▶ Info, ListWorkers, DiskUsage, ListenBuildHistory (for its clock) ─▶ Finding
//! ```
//!
//! Changes nothing there. A daemon that cannot be reached is one finding, and the last.
use super::connect::Remote;
use super::in_process::runtime;
use super::solve::failure;
use crate::build::BuildError;
use crate::doctor::Finding;
use crate::history::Stamp;
use crate::units::show_bytes;
use api::control::control_client::ControlClient;
use api::control::{BuildHistoryRequest, DiskUsageRequest, InfoRequest, ListWorkersRequest};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// The header with the daemon's time.
const CLOCK: &str = "buildkit-current-timestamp";
/// Clocks that differ by more make progress look wrong.
const DRIFT: Duration = Duration::from_secs(5);
/// An answer that takes longer is worth a word.
const SLOW: Duration = Duration::from_millis(500);

/// Asks a daemon how it is.
///
/// # Errors
/// Only this process's own runtime.
pub fn checkup(remote: &Remote) -> Result<Vec<Finding>, BuildError> {
    runtime()?.block_on(async {
        let channel = match remote.connect().await {
            Ok(channel) => channel,
            Err(error) => {
                let remedy = "is it started, and may this user reach it?";
                return Ok(vec![Finding::broken("daemon", chain(&error.into()), remedy)]);
            }
        };
        let mut control = ControlClient::new(channel);
        let mut findings = vec![daemon(&mut control).await];
        findings.extend(workers(&mut control).await);
        findings.push(store(&mut control).await);
        findings.push(history(&mut control).await);
        Ok(findings)
    })
}

async fn daemon(control: &mut ControlClient<Channel>) -> Finding {
    let begun = Instant::now();
    let answer = match control.info(InfoRequest {}).await {
        Ok(answer) => answer.into_inner(),
        Err(error) => return refused("daemon", error),
    };
    let took = begun.elapsed();
    let version = answer.buildkit_version.unwrap_or_default();
    let what = format!(
        "{} {} {}, answers in {:.1} ms",
        version.package,
        version.version,
        version.revision,
        took.as_secs_f64() * 1000.0
    );
    match took > SLOW {
        false => Finding::fine("daemon", what),
        true => Finding::less("daemon", what, "look at its load, and at the line between"),
    }
}

async fn workers(control: &mut ControlClient<Channel>) -> Vec<Finding> {
    let workers = match control.list_workers(ListWorkersRequest::default()).await {
        Ok(answer) => answer.into_inner().record,
        Err(error) => return vec![refused("workers", error)],
    };
    if workers.is_empty() {
        let remedy = "look into the daemon's log";
        return vec![Finding::broken(
            "workers",
            "there is none: nothing can be built",
            remedy,
        )];
    }
    let describe = |worker: &api::types::WorkerRecord| {
        let platforms: Vec<String> = worker
            .platforms
            .iter()
            .map(|platform| format!("{}/{}", platform.os, platform.architecture))
            .collect();
        Finding::fine("worker", format!("{}: {}", worker.id, platforms.join(", ")))
    };
    workers.iter().map(describe).collect()
}

async fn store(control: &mut ControlClient<Channel>) -> Finding {
    match control.disk_usage(DiskUsageRequest::default()).await {
        Ok(answer) => {
            let records = answer.into_inner().record;
            let bytes = records
                .iter()
                .filter_map(|record| u64::try_from(record.size).ok())
                .sum();
            let in_use = records.iter().filter(|record| record.in_use).count();
            let count = records.len();
            Finding::fine(
                "store",
                format!("{count} records, {}, {in_use} in use", show_bytes(bytes)),
            )
        }
        Err(error) => refused("store", error),
    }
}

/// Also tells whether its clock is ours.
async fn history(control: &mut ControlClient<Channel>) -> Finding {
    let asked = BuildHistoryRequest {
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let answer = match control.listen_build_history(asked).await {
        Ok(answer) => answer,
        Err(error) => return refused("history", error),
    };
    let now = Stamp::now();
    let clock = answer.metadata().get(CLOCK).and_then(|value| value.to_str().ok());
    let clock = clock.and_then(Stamp::parse);
    let mut events = answer.into_inner();
    let (mut builds, mut running) = (0, 0);
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                builds += 1;
                let is_over = event.record.is_some_and(|record| record.completed_at.is_some());
                running += usize::from(!is_over);
            }
            Ok(None) => break,
            Err(error) => return refused("history", error),
        }
    }
    let what = format!("{builds} builds, {running} of them run");
    let drift = clock.map(|clock| clock.since(now).max(now.since(clock)));
    match drift.filter(|drift| *drift > DRIFT) {
        None => Finding::fine("history", what),
        Some(drift) => Finding::less(
            "history",
            format!("{what}; its clock differs by {} s from ours", drift.as_secs()),
            "set both clocks, as times of builds are shown wrong",
        ),
    }
}

fn refused(subject: &'static str, error: tonic::Status) -> Finding {
    Finding::broken(subject, chain(&failure(error)), "look into the daemon's log")
}

/// An error with its causes, on one line.
fn chain(error: &BuildError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}
