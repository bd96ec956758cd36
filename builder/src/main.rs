//! `builder`, and under the name `build`: `builder build`.
use builder::cli::{self, Cli, Command, ExitStatus};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: the helper that starts steps is this program again, and without root a user
    // namespace can only be entered while there is one thread.
    sandbox::spawner_main();
    let cli = match Cli::parse_from_name(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with code 0; mistakes to stderr with 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(ExitStatus::USAGE.0));
        }
    };
    if needs_sandbox(&cli.command)
        && let Err(error) = sandbox::rootless::enter()
    {
        return fail(&anyhow::Error::new(error).context("enter a user namespace (builder doctor says more)"));
    }
    match cli::run(cli) {
        Ok(status) => ExitCode::from(status.0),
        Err(error) => fail(&error),
    }
}

/// Commands that touch neither store nor sandbox stay where they are.
fn needs_sandbox(command: &Command) -> bool {
    !matches!(
        command,
        Command::Install(_)
            | Command::Completion(_)
            | Command::Version
            | Command::Doctor(_)
            | Command::DialStdio(_)
    )
}

fn fail(error: &anyhow::Error) -> ExitCode {
    if cli::is_closed_pipe(error) {
        // Whoever read our output has seen enough; as if SIGPIPE had ended us.
        return ExitCode::from(141);
    }
    let (text, status) = cli::report(error);
    // A closed stderr leaves the exit code to speak.
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(status.0)
}
