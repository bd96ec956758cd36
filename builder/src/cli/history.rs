//! `history`: of an image, its instructions; of builds, what is kept of them.
mod bundles; // export, import
mod open;

use super::args::{
    Global, HistoryArgs, HistoryCommand, HistoryLogsArgs, HistoryLsArgs, HistoryRefArgs, HistoryRmArgs,
    HistoryTimingArgs,
};
use super::exit::ExitStatus;
use super::table::{Table, ago};
use super::values::UsageError;
use crate::config::Config;
use crate::history::{
    History, Limits, LogReader, Outcome, Query, Record, Stamp, Timeline, bars, jaeger, page,
};
use crate::progress::{Replay, plain_line, window, wire};
use anyhow::{Context, Result};
use prost::Message;
use serde_json::json;
use solver::progress::Event;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Columns of a chart that goes to no terminal.
const COLUMNS: usize = 120;
/// The longest name of a build in a list.
const NAME_WIDTH: usize = 40;

/// Runs one of them.
pub(super) fn run(global: &Global, args: &HistoryArgs) -> Result<ExitStatus> {
    let Some(command) = &args.command else {
        return super::images::history(global, args);
    };
    let config = Config::load(global.root.clone())?;
    let history = History::new(&config.root, Limits::default());
    match command {
        HistoryCommand::Ls(args) => list(&history, args),
        HistoryCommand::Inspect(args) => inspect(&history, args),
        HistoryCommand::Logs(args) => logs(&history, args),
        HistoryCommand::Timing(args) => timing(&history, args),
        HistoryCommand::Rm(args) => remove(&history, args),
        HistoryCommand::Export(args) => bundles::export(&config, &history, args),
        HistoryCommand::Trace(args) => trace(&history, args),
        HistoryCommand::Open(args) => open::open(&history, args),
        HistoryCommand::Import(args) => bundles::import(&history, args),
    }
}

fn list(history: &History, args: &HistoryLsArgs) -> Result<ExitStatus> {
    let now = Stamp::now();
    let query = Query::parse(&args.filter, args.limit, now)
        .map_err(|error| UsageError::new(format!("--filter: {error}")))?;
    let records = query.choose(history.list()?);
    let mut out = std::io::stdout().lock();
    let mut table = Table::new(&["BUILD ID", "NAME", "STATUS", "CREATED AT", "DURATION", "STEPS"]);
    for record in &records {
        if args.json {
            writeln!(out, "{}", summary(record, now))?;
            continue;
        }
        let plus = if record.completed.is_none() { "+" } else { "" };
        let name = plain_line(record.name().as_bytes(), false);
        table.row(vec![
            record.id.clone(),
            crate::progress::clip(&name, NAME_WIDTH).to_owned(),
            word(record.outcome()).to_owned(),
            ago(record.created.system_time(), SystemTime::now()),
            format!("{}{plus}", seconds(record.duration(now))),
            format!("{} ({} cached)", record.steps.total, record.steps.cached),
        ]);
    }
    if !args.json {
        out.write_all(table.text().as_bytes())?;
    }
    Ok(ExitStatus::DONE)
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Running => "Running",
        Outcome::Completed => "Completed",
        Outcome::Failed => "Error",
        Outcome::Canceled => "Canceled",
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

/// As `buildx history ls --format json` has it.
fn summary(record: &Record, now: Stamp) -> serde_json::Value {
    json!({
        "ref": record.id,
        "name": record.name(),
        "status": word(record.outcome()),
        "created_at": record.created.to_string(),
        "completed_at": record.completed.map(|time| time.to_string()),
        "duration_seconds": record.duration(now).as_secs_f64(),
        "total_steps": record.steps.total,
        "completed_steps": record.steps.completed,
        "cached_steps": record.steps.cached,
    })
}

fn inspect(history: &History, args: &HistoryRefArgs) -> Result<ExitStatus> {
    let record = history.find(&args.build)?;
    let text = serde_json::to_string_pretty(&record).context("show the record")?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitStatus::DONE)
}

fn logs(history: &History, args: &HistoryLogsArgs) -> Result<ExitStatus> {
    let as_json = match args.progress.as_str() {
        "plain" => false,
        "rawjson" => true,
        other => {
            let error = UsageError::new(format!("--progress {other}: unknown"));
            return Err(error.hint("known are plain and rawjson").into());
        }
    };
    let record = history.find(&args.build)?;
    let mut out = std::io::stdout().lock();
    let mut replay = Replay::new(as_json);
    read(history, &record, |events| {
        out.write_all(replay.text(events).as_bytes()).map_err(Into::into)
    })?;
    out.write_all(replay.finish().as_bytes())?;
    Ok(ExitStatus::DONE)
}

fn timing(history: &History, args: &HistoryTimingArgs) -> Result<ExitStatus> {
    let record = history.find(&args.build)?;
    let timeline = timeline(history, &record)?;
    let mut out = std::io::stdout().lock();
    match args.html.as_deref() {
        Some(path) if path == Path::new("-") => out.write_all(page(&record, &timeline).as_bytes())?,
        Some(path) => {
            std::fs::write(path, page(&record, &timeline))
                .with_context(|| format!("write {}", path.display()))?;
            writeln!(out, "written {}", path.display())?;
        }
        None => {
            let columns = if std::io::stdout().is_terminal() {
                window().0
            } else {
                COLUMNS
            };
            let name = plain_line(record.name().as_bytes(), false);
            writeln!(
                out,
                "{} {name}: {}",
                record.id,
                word(record.outcome()).to_lowercase()
            )?;
            out.write_all(bars(&timeline, columns, args.all).as_bytes())?;
        }
    }
    Ok(ExitStatus::DONE)
}

fn remove(history: &History, args: &HistoryRmArgs) -> Result<ExitStatus> {
    let builds: Vec<String> = match args.all {
        true => {
            let records = history.list()?;
            let over = records
                .into_iter()
                .filter(|record| record.completed.is_some() && !record.is_pinned);
            over.map(|record| record.id).collect()
        }
        false => args.builds.clone(),
    };
    for build in builds {
        let record = history.find(&build)?;
        history.remove(&record.id)?;
        writeln!(std::io::stdout(), "removed {}", record.id)?;
    }
    Ok(ExitStatus::DONE)
}

fn trace(history: &History, args: &HistoryRefArgs) -> Result<ExitStatus> {
    let record = history.find(&args.build)?;
    let mut bytes = Vec::new();
    let kept = match &record.trace {
        Some(trace) => history.open_blob(&trace.digest)?,
        None => None,
    };
    if let Some(mut file) = kept {
        file.read_to_end(&mut bytes).context("read the trace")?;
    }
    let Some(page) = jaeger(&bytes) else {
        let error = UsageError::new(format!(
            "build {} has no trace: a daemon writes one within seconds of a build's end, builds without a daemon have none",
            record.id
        ));
        return Err(error.hint("history timing shows where its time went").into());
    };
    writeln!(std::io::stdout(), "{page:#}")?;
    Ok(ExitStatus::DONE)
}

/// Goes through what a build showed.
fn timeline(history: &History, record: &Record) -> Result<Timeline> {
    let mut timeline = Timeline::default();
    read(history, record, |events| {
        events.iter().for_each(|event| timeline.apply(event));
        Ok(())
    })?;
    Ok(timeline.finish())
}

fn read(history: &History, record: &Record, mut each: impl FnMut(&[Event]) -> Result<()>) -> Result<()> {
    let mut reader: LogReader = history.log(record)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        while let Some(frame) = reader.next().await.context("read the build's log")? {
            let response =
                api::control::StatusResponse::decode(&frame[..]).context("read the build's log")?;
            each(&wire::decode(response))?;
        }
        Ok(())
    })
}
