//! `history open`: the page of a build, written beside its record and shown in a browser where there is one.
//!
//! The path goes to stdout whether or not there is. A browser is there if `BROWSER` names it, or where `DISPLAY` or
//! `WAYLAND_DISPLAY` say that there is a desktop, whose `xdg-open` is asked.
use super::timeline;
use crate::cli::args::HistoryRefArgs;
use crate::cli::exit::ExitStatus;
use crate::config::Environment;
use crate::history::{History, page};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

pub(super) fn open(history: &History, args: &HistoryRefArgs) -> Result<ExitStatus> {
    let record = history.find(&args.build)?;
    let timeline = timeline(history, &record)?;
    let path = history.page(&record, &page(&record, &timeline))?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    if let Some((program, arguments)) = browser(&Environment::read(), &path) {
        let status = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("start the browser {}", program.display()))?;
        anyhow::ensure!(
            status.success(),
            "the browser {} ended with {status}",
            program.display()
        );
    }
    Ok(ExitStatus::DONE)
}

/// Which program shows a page, and with which arguments.
fn browser(environment: &Environment, page: &Path) -> Option<(OsString, Vec<OsString>)> {
    let set = |name: &str| environment.text(name).filter(|text| !text.is_empty());
    let named = set("BROWSER").and_then(|all| all.split(':').find(|one| !one.trim().is_empty()));
    let has_desktop = ["DISPLAY", "WAYLAND_DISPLAY"]
        .iter()
        .any(|name| set(name).is_some());
    let command = named.or(has_desktop.then_some("xdg-open"))?;
    let mut words = command.split_whitespace();
    let program = words.next()?.into();
    let mut is_placed = false;
    let mut arguments: Vec<OsString> = Vec::new();
    for word in words {
        is_placed |= word == "%s";
        arguments.push(if word == "%s" { page.into() } else { word.into() });
    }
    if !is_placed {
        arguments.push(page.into());
    }
    Some((program, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers() {
        for (variables, expected) in [
            (&[][..], None),
            (&[("BROWSER", ""), ("DISPLAY", ":0")], Some("xdg-open /p")),
            (&[("WAYLAND_DISPLAY", "wayland-0")], Some("xdg-open /p")),
            (&[("BROWSER", "one:two"), ("DISPLAY", ":0")], Some("one /p")),
            (&[("BROWSER", "one --new %s -x")], Some("one --new /p -x")),
        ] {
            let found = browser(&Environment::of(variables), Path::new("/p")).map(|(program, arguments)| {
                let words: Vec<String> = std::iter::once(program)
                    .chain(arguments)
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect();
                words.join(" ")
            });
            assert_eq!(found.as_deref(), expected, "{variables:?}");
        }
    }
}
