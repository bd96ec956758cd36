//! The command line: flags in, a request out, and every word the user reads on failure.
//!
//! ```text
//! argv ─▶ args ─▶ (build) values, contexts, outputs ─▶ BuildRequest ─▶ client
//!            └──▶ (others) images, store, run, serve, doctor, install
//! errors ─▶ report ─▶ stderr and an exit code
//! ```
//!
//! Called by the name `build` the program means `builder build`.
mod args;
mod remote;
mod build_flags;
mod attest; // --attest, --provenance, --sbom
mod values;
mod contexts;
mod outputs;
mod source_policy;
mod caches; // --cache-from, --cache-to
mod build;
mod call; // --call, --check
mod table;
mod images;
mod transfer;
mod store;
mod pty;
mod run;
mod pin;
mod serve_flags;
mod serve;
mod history;
mod workers;
mod doctor;
mod install;
mod report;
mod exit;

pub use args::{Cli, Command, command};
pub use exit::ExitStatus;
pub use report::{is_closed_pipe, report};

pub(crate) use outputs::is_true;

use anyhow::Result;

/// Runs one command; its exit status is the program's.
///
/// # Errors
/// Whatever stopped the command, for [`report`].
pub fn run(cli: Cli) -> Result<ExitStatus> {
    // A daemon's log is as its configuration says, which is not read yet.
    if !matches!(cli.command, Command::Serve(_)) {
        crate::telemetry::start(cli.global.debug, &crate::config::Environment::read())
            .map_err(values::UsageError::from)?;
    }
    match cli.command {
        Command::Build(flags) => build::run(&cli.global, *flags),
        Command::Images(args) => images::list(&cli.global, &args),
        Command::Rmi(args) => images::remove(&cli.global, &args),
        Command::Tag(args) => images::tag(&cli.global, &args),
        Command::Inspect(args) => images::inspect(&cli.global, &args),
        Command::History(args) => history::run(&cli.global, &args),
        Command::Push(args) => transfer::push(&cli.global, &args),
        Command::Pull(args) => transfer::pull(&cli.global, &args),
        Command::Save(args) => transfer::save(&cli.global, &args),
        Command::Load(args) => transfer::load(&cli.global, &args),
        Command::Run(args) => run::run(&cli.global, args),
        Command::Pin(args) => pin::run(&cli.global, &args),
        Command::Du(args) => store::usage(&cli.global, &args),
        Command::Prune(args) => store::prune(&cli.global, &args),
        Command::Serve(args) => serve::run(&cli.global, &args),
        Command::DialStdio(args) => serve::dial(&cli.global, &args),
        Command::Workers(args) => workers::run(&cli.global, &args),
        Command::Doctor(args) => doctor::run(&cli.global, &args),
        Command::Install(args) => install::run(&args),
        Command::Completion(args) => install::completion(&args),
        Command::Version => install::version(),
    }
}

/// Says something beside the progress display.
pub(crate) fn note(text: &str) {
    build::write_stderr(&format!("{text}\n"));
}
