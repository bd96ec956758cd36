//! `--call` and `--check`: a question about the Dockerfile instead of a build, and how its answer is printed.
//!
//! ```text
//! --call=outline,format=json ─▶ Call ─▶ (client: the frontend's answer) ─▶ JSON as it is, or words ─▶ exit code
//! ```
use super::exit::ExitStatus;
use super::values::UsageError;
use crate::excerpt::excerpt;
use crate::progress::plain_line;
use anyhow::{Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::ops::RangeInclusive;

/// What is asked, and how the answer is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// `lint`, `outline`, `targets`, or whatever another frontend knows.
    pub(super) name: String,
    is_json: bool,
    ignores_status: bool,
}

impl Call {
    /// Reads the value of `--call`; `None` means to build.
    pub(super) fn parse(text: &str) -> Result<Option<Call>, UsageError> {
        let wrong = |what: String| UsageError::new(format!("--call {text}: {what}"));
        let mut call = Call {
            name: String::new(),
            is_json: false,
            ignores_status: false,
        };
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("format", "json")) => call.is_json = true,
                Some(("format", "text" | "")) => call.is_json = false,
                Some(("format", other)) => return Err(wrong(format!("no format {other:?}: text or json"))),
                Some(("ignorestatus", value)) => {
                    call.ignores_status = match value {
                        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                        _ => return Err(wrong(format!("ignorestatus is {value:?}, not true or false"))),
                    };
                }
                Some(_) => return Err(wrong(format!("invalid print field: {field}"))),
                None if call.name.is_empty() => field.clone_into(&mut call.name),
                None => return Err(wrong(format!("invalid print value: {text}"))),
            }
        }
        if call.name == "check" {
            "lint".clone_into(&mut call.name);
        }
        Ok((!matches!(call.name.as_str(), "" | "build")).then_some(call))
    }

    /// Prints the answer and says with what to exit.
    pub(super) fn print(&self, answer: &BTreeMap<String, String>) -> Result<ExitStatus> {
        let mut out = std::io::stdout().lock();
        let json = answer.get("result.json");
        let text = answer.get("result.txt");
        let lint = match self.name.as_str() {
            "lint" => json.map(|json| serde_json::from_str::<Lint>(json)).transpose()?,
            _ => None,
        };
        match (json, text) {
            (Some(json), _) if self.is_json => writeln!(out, "{json}")?,
            (_, Some(text)) => {
                let count = lint.as_ref().map_or(0, Lint::warnings);
                match count {
                    0 => {}
                    1 => writeln!(out, "Check complete, 1 warning has been found!")?,
                    _ => writeln!(out, "Check complete, {count} warnings have been found!")?,
                }
                // The Dockerfile may be a stranger's: nothing in it is to reach the terminal as a command.
                for line in text.split_inclusive('\n') {
                    let end = if line.ends_with('\n') { "\n" } else { "" };
                    write!(out, "{}{end}", plain_line(line.as_bytes(), false))?;
                }
            }
            _ => bail!("the frontend gave no answer to {}", self.name),
        }
        if let Some(lint) = lint {
            if let Some(failure) = lint.failure() {
                if !self.is_json && lint.warnings() > 0 {
                    writeln!(out)?;
                }
                bail!("{failure}");
            }
            if lint.warnings() == 0 && !self.is_json {
                writeln!(out, "Check complete, no warnings found.")?;
            }
        }
        let status = answer.get("result.statuscode").map(String::as_str);
        let status = status.and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok(ExitStatus(if self.ignores_status { 0 } else { status }))
    }
}

/// What the exit code and the closing words need of a lint report.
#[derive(Deserialize)]
struct Lint {
    #[serde(default)]
    warnings: Option<Vec<serde::de::IgnoredAny>>,
    #[serde(default)]
    sources: Vec<Source>,
    #[serde(rename = "buildError")]
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Source {
    #[serde(default)]
    filename: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Failure {
    message: String,
    #[serde(default)]
    location: Location,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Location {
    source_index: usize,
    ranges: Vec<Lines>,
}

#[derive(Deserialize)]
struct Lines {
    start: Position,
    end: Position,
}

#[derive(Deserialize)]
struct Position {
    #[serde(default)]
    line: usize,
}

impl Lint {
    fn warnings(&self) -> usize {
        self.warnings.as_ref().map_or(0, Vec::len)
    }

    /// Why the Dockerfile cannot be built, with its lines.
    fn failure(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        let mut text = error.message.clone();
        let lines = |lines: &Lines| -> RangeInclusive<usize> {
            lines.start.line..=lines.end.line.max(lines.start.line)
        };
        let hits: Vec<_> = error.location.ranges.iter().map(lines).collect();
        if let Some(source) = self.sources.get(error.location.source_index)
            && let Ok(data) = STANDARD.decode(&source.data)
        {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{}", excerpt(&source.filename, &data, &hits));
        }
        Some(text.trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_call() {
        let call = |name: &str, is_json, ignores_status| {
            Some(Call {
                name: name.to_owned(),
                is_json,
                ignores_status,
            })
        };
        for (text, expected) in [
            ("", None),
            ("build", None),
            ("check", call("lint", false, false)),
            ("lint,format=json", call("lint", true, false)),
            ("format=json,outline", call("outline", true, false)),
            ("targets,ignorestatus=1", call("targets", false, true)),
            ("check,format=text,ignorestatus=false", call("lint", false, false)),
        ] {
            assert_eq!(Call::parse(text).expect(text), expected, "{text}");
        }
        for text in [
            "outline,targets",
            "outline,colour=red",
            "check,format=yaml",
            "check,ignorestatus=maybe",
        ] {
            assert!(Call::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_failure_has_its_lines() {
        let json = r#"{"warnings":null,"sources":[{"filename":"Dockerfile","data":"RlJPTSBhClJVTgo="}],
            "buildError":{"message":"oh no","location":{"ranges":[{"start":{"line":2},"end":{"line":2}}]}}}"#;
        let lint: Lint = serde_json::from_str(json).expect("it is one");
        let failure = lint.failure().expect("it failed");
        assert!(failure.starts_with("oh no\nDockerfile:2\n"), "{failure}");
        assert!(failure.contains("2 | >>> RUN"), "{failure}");
        assert_eq!(lint.warnings(), 0);
    }
}
