//! `history export` and `history import`: builds as files that travel.
use crate::cli::args::{HistoryExportArgs, HistoryImportArgs};
use crate::cli::exit::ExitStatus;
use crate::cli::values::UsageError;
use crate::config::Config;
use crate::history::{History, Taken, import as take, write_bundle};
use crate::progress::plain_line;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;

pub(super) fn export(config: &Config, history: &History, args: &HistoryExportArgs) -> Result<ExitStatus> {
    let mut records = match (args.all, &args.builds[..]) {
        (true, _) => history.list()?,
        (false, []) => vec![history.find("")?],
        (false, builds) => builds
            .iter()
            .map(|build| history.find(build))
            .collect::<Result<_, _>>()?,
    };
    if args.all {
        records.retain(|record| record.completed.is_some());
    }
    if let Some(running) = records.iter().find(|record| record.completed.is_none()) {
        return Err(UsageError::new(format!("build {} still runs", running.id)).into());
    }
    if records.is_empty() {
        return Err(UsageError::new("there is no build that is over").into());
    }
    match &args.output {
        Some(path) => {
            let named = || format!("write {}", path.display());
            let file = File::create(path).with_context(named)?;
            write_bundle(history, &config.root, &records, std::io::BufWriter::new(file))
                .with_context(named)?;
            writeln!(std::io::stdout(), "written {}", path.display())?;
        }
        None if std::io::stdout().is_terminal() => {
            let error = UsageError::new("history export: an archive would be written to the terminal");
            return Err(error.hint("add --output FILE, or redirect stdout").into());
        }
        None => write_bundle(history, &config.root, &records, std::io::stdout().lock())?,
    }
    Ok(ExitStatus::DONE)
}

pub(super) fn import(history: &History, args: &HistoryImportArgs) -> Result<ExitStatus> {
    let stdin = Path::new("-");
    let mut files: Vec<&Path> = args.files.iter().chain(&args.named).map(AsRef::as_ref).collect();
    if files.is_empty() {
        if std::io::stdin().is_terminal() {
            let error = UsageError::new("history import: there is no file to read");
            return Err(error.hint("name files, or redirect one to stdin").into());
        }
        files.push(stdin);
    }
    for path in files {
        let taken = if path == stdin {
            take(history, std::io::stdin().lock()).context("read stdin")?
        } else {
            let named = || format!("read {}", path.display());
            take(history, File::open(path).with_context(named)?).with_context(named)?
        };
        for Taken { record, is_new } in taken {
            let name = plain_line(record.name().as_bytes(), false);
            let (id, word) = (
                &record.id,
                if is_new {
                    "imported"
                } else {
                    "kept, as it was there"
                },
            );
            writeln!(std::io::stdout(), "{word} {id} {name}")?;
        }
    }
    Ok(ExitStatus::DONE)
}
