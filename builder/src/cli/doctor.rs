//! `doctor`: what this machine, or a daemon, can and cannot do, in plain words.
use super::args::{DoctorArgs, Global};
use super::exit::ExitStatus;
use crate::client;
use crate::config::Config;
use crate::doctor::{Finding, State, examine};
use anyhow::Result;
use serde_json::json;
use std::io::Write;

/// Prints every finding; fails if steps cannot run.
pub(super) fn run(global: &Global, args: &DoctorArgs) -> Result<ExitStatus> {
    let config = Config::load(global.root.clone())?;
    // Only when it is said: a variable for builds must not keep the machine from being looked at.
    let remote = match args.remote.addr {
        Some(_) => args.remote.find(&config.environment)?,
        None => None,
    };
    let findings = match &remote {
        Some(remote) => client::checkup(remote)?,
        None => examine(&config),
    };
    let mut out = std::io::stdout().lock();
    for finding in &findings {
        match args.json {
            true => writeln!(out, "{}", as_json(finding))?,
            false => print(&mut out, finding)?,
        }
    }
    if !args.json && remote.is_none() {
        writeln!(out, "  store            {}", config.root.display())?;
    }
    let is_broken = findings.iter().any(|finding| finding.state == State::Broken);
    Ok(if is_broken {
        ExitStatus::ENVIRONMENT
    } else {
        ExitStatus::DONE
    })
}

fn print(out: &mut impl Write, finding: &Finding) -> std::io::Result<()> {
    let mark = match finding.state {
        State::Fine => " ",
        State::Less => "-",
        State::Broken => "!",
    };
    writeln!(out, "{mark} {:16} {}", finding.subject, finding.what)?;
    match &finding.remedy {
        Some(remedy) => writeln!(out, "  {:16} → {remedy}", ""),
        None => Ok(()),
    }
}

fn as_json(finding: &Finding) -> serde_json::Value {
    let state = match finding.state {
        State::Fine => "fine",
        State::Less => "less",
        State::Broken => "broken",
    };
    json!({"subject": finding.subject, "state": state, "what": finding.what, "remedy": finding.remedy})
}
