//! The one place where errors become words, and an exit code.
//!
//! ```text
//! Dockerfile:5
//! --------------------
//!    5 | >>> RUN exit 7
//! --------------------
//! error: process "/bin/sh -c exit 7" did not complete successfully: exit code: 7
//! caused by: …
//! hint: …
//! ```
use super::exit::ExitStatus;
use super::values::UsageError;
use crate::build::BuildError;
use crate::config::ConfigError;
use crate::excerpt::excerpt;
use crate::progress::plain_line;
use solver::Blame;
use std::fmt::Write;

/// What is said about an error, and with what the program ends.
pub fn report(error: &anyhow::Error) -> (String, ExitStatus) {
    let mut text = String::new();
    if let Some(build) = error.downcast_ref::<BuildError>() {
        for lines in build.lines() {
            text.push_str(&excerpt(&lines.filename, &lines.data, &lines.ranges));
        }
    }
    for (number, sentence) in sentences(error).iter().enumerate() {
        let label = if number == 0 { "error" } else { "caused by" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label}: {sentence}");
    }
    if let Some(hint) = hint(error) {
        let _ = writeln!(text, "hint: {}", harmless(&hint));
    }
    (text, status(error))
}

/// True if stdout was closed by whoever read it.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// The chain of causes; what a sentence already ends with is not said again.
fn sentences(error: &anyhow::Error) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for cause in error.chain() {
        let sentence = harmless(&cause.to_string());
        if !said.iter().any(|earlier| earlier.ends_with(&sentence)) {
            said.push(sentence);
        }
    }
    said
}

/// Without control characters; several lines stay several lines.
fn harmless(text: &str) -> String {
    text.lines()
        .map(|line| plain_line(line.as_bytes(), false))
        .collect::<Vec<_>>()
        .join("\n")
}

fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(build) = error.downcast_ref::<BuildError>() {
        return build.hint();
    }
    error
        .downcast_ref::<UsageError>()
        .and_then(|usage| usage.hint.clone())
}

fn status(error: &anyhow::Error) -> ExitStatus {
    if let Some(build) = error.downcast_ref::<BuildError>() {
        return match (build, build.blame()) {
            (BuildError::Cancelled { signal: 15 }, _) => ExitStatus::TERMINATED,
            (BuildError::Cancelled { .. }, _) => ExitStatus::INTERRUPTED,
            (_, Blame::User) => ExitStatus::USER,
            (_, Blame::Environment) => ExitStatus::ENVIRONMENT,
            (_, Blame::Internal) => ExitStatus::INTERNAL,
        };
    }
    if error.downcast_ref::<UsageError>().is_some() {
        return ExitStatus::USAGE;
    }
    if error.downcast_ref::<ConfigError>().is_some() {
        return ExitStatus::USER;
    }
    match error.chain().any(|cause| cause.is::<std::io::Error>()) {
        true => ExitStatus::ENVIRONMENT,
        false => ExitStatus::USER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_chain_is_told_once() {
        let io = std::io::Error::other("disk \u{1b}[2J gone");
        let error = Err::<(), _>(io).context("write the image").expect_err("an error");
        let (text, status) = report(&error);
        assert_eq!(text, "error: write the image\ncaused by: disk \\u{1b}[2J gone\n");
        assert_eq!(status, ExitStatus::ENVIRONMENT);
    }

    #[test]
    fn a_usage_error_has_its_hint_and_code() {
        let error = anyhow::Error::from(UsageError::new("--x: unknown").hint("use --y"));
        assert_eq!(
            report(&error),
            ("error: --x: unknown\nhint: use --y\n".into(), ExitStatus::USAGE)
        );
    }

    #[test]
    fn cancelling_has_codes_of_its_own() {
        for (signal, expected) in [(2, ExitStatus::INTERRUPTED), (15, ExitStatus::TERMINATED)] {
            let error = anyhow::Error::from(BuildError::Cancelled { signal });
            assert_eq!(report(&error).1, expected);
        }
    }
}
