//! Questions about a Dockerfile that build nothing: `requestid=frontend.lint`, `.outline`, `.targets`, and which there are.
//!
//! ```text
//! load ─▶ parse, plan ⇄ ask, lower (nothing is solved) ─▶ findings, arguments, stages ─▶ Report: JSON and text
//! ```
//!
//! JSON and texts are interface: clients print them as they are, or decode them. Field names and order are those of
//! BuildKit's subrequests, version 1.0.0.

mod report;

use llb::Range;
use serde::Serialize;

use crate::context::{self, Entry};
use crate::dockerfile::{self, Attempt, Mode};
use crate::error::{Error, ErrorKind};
use crate::gateway::Gateway;
use crate::lint::{Finding, Lint};
use crate::lower::outline::Outline;
use crate::metadata::Known;
use crate::options::Options;
use crate::parse::parse;
use report::{Location, Source};

pub use report::Report;

const DESCRIBE: &str = "frontend.subrequests.describe";
const LINT: &str = "frontend.lint";
const OUTLINE: &str = "frontend.outline";
const TARGETS: &str = "frontend.targets";

/// Whether [`request`] answers this.
#[must_use]
pub fn has_request(id: &str) -> bool {
    matches!(id, DESCRIBE | LINT | OUTLINE | TARGETS)
}

/// Answers a question about the Dockerfile; `None` for one that is not known ([`has_request`]).
///
/// # Errors
/// Whatever is wrong with loading the Dockerfile, and with the Dockerfile itself, but for `frontend.lint`, which reports
/// it. [`ErrorKind::FrontendImage`] when the Dockerfile asks for another frontend.
pub async fn request(gateway: &dyn Gateway, options: &Options, id: &str) -> Result<Option<Report>, Error> {
    let entry = context::load(gateway, options).await?;
    dockerfile::check_syntax(options, &entry.source).map_err(|error| error.in_file(&entry.source))?;
    let found = match id {
        DESCRIBE => Ok(describe()),
        LINT => lint(gateway, options, &entry).await,
        OUTLINE => outline(gateway, options, &entry).await,
        TARGETS => targets(&entry),
        _ => return Ok(None),
    };
    found.map(Some).map_err(|error| error.in_file(&entry.source))
}

#[derive(Serialize)]
struct Named {
    name: &'static str,
    description: &'static str,
}

#[derive(Serialize)]
struct Subrequest {
    name: &'static str,
    version: &'static str,
    r#type: &'static str,
    description: &'static str,
    opts: Option<Vec<Named>>,
    inputs: Option<Vec<Named>>,
    metadata: Vec<Named>,
    refs: Option<Vec<Named>>,
}

fn describe() -> Report {
    let named = |name| Named {
        name,
        description: "",
    };
    let one = |name, description, opts| Subrequest {
        name,
        version: report::VERSION,
        r#type: "rpc",
        description,
        opts,
        inputs: None,
        metadata: ["result.json", "result.txt"].map(named).into(),
        refs: None,
    };
    let target = Named {
        name: "target",
        description: "Target build stage",
    };
    // Lint is not listed by BuildKit either; it is known all the same.
    let all = [
        one(
            OUTLINE,
            "List all parameters current build target supports",
            Some(vec![target]),
        ),
        one(
            TARGETS,
            "List all targets current build supports",
            Some(Vec::new()),
        ),
        one(DESCRIBE, "List available subrequest types", None),
    ];
    let mut rows = vec![["NAME".to_owned(), "VERSION".to_owned(), "DESCRIPTION".to_owned()]];
    rows.extend(all.iter().map(|request| {
        let name = request.name.strip_prefix("frontend.").unwrap_or(request.name);
        [name, request.version, request.description].map(str::to_owned)
    }));
    Report::new(&all, report::table(&rows, 1))
}

#[derive(Serialize)]
struct Target<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    base: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    platform: &'a str,
    location: Location,
}

#[derive(Serialize)]
struct Targets<'a> {
    targets: Vec<Target<'a>>,
    sources: [String; 1],
}

fn targets(entry: &Entry) -> Result<Report, Error> {
    let dockerfile = parse(&entry.source.data, &Lint::silent())?;
    let last = dockerfile.stages.len() - 1;
    let stages = dockerfile.stages.iter().enumerate();
    let targets: Vec<Target<'_>> = stages
        .map(|(number, stage)| Target {
            name: &stage.name,
            default: number == last,
            description: description(&stage.comments, &stage.name),
            base: &stage.base,
            platform: &stage.platform,
            location: Location::of(&stage.ranges),
        })
        .collect();
    let mut rows = vec![["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    rows.extend(targets.iter().map(|target| {
        let name = match (target.name, target.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        [name, target.description.to_owned()]
    }));
    let text = report::table(&rows, 1);
    let sources = [report::base64(&entry.source.data)];
    Ok(Report::new(&Targets { targets, sources }, text))
}

/// What a comment above an instruction says of a name: `# name what it is`.
pub(crate) fn description<'a>(comments: &'a [String], name: &str) -> &'a str {
    let of = |line: &'a String| line.strip_prefix(name)?.strip_prefix(' ');
    match name {
        "" => "",
        _ => comments.iter().find_map(of).unwrap_or_default(),
    }
}

async fn outline(gateway: &dyn Gateway, options: &Options, entry: &Entry) -> Result<Report, Error> {
    let (found, _) = run(gateway, options, entry, Mode::Outline).await;
    let outline = found?;
    Ok(report::outline(&outline, &entry.source.data))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Warning {
    rule_name: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    url: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
    location: Location,
}

#[derive(Serialize)]
struct BuildError {
    message: String,
    location: Location,
}

#[derive(Serialize)]
struct LintResults<'a> {
    /// `null` when there are none.
    warnings: Option<Vec<Warning>>,
    sources: [Source<'a>; 1],
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    error: Option<BuildError>,
}

async fn lint(gateway: &dyn Gateway, options: &Options, entry: &Entry) -> Result<Report, Error> {
    let (outcome, findings) = run(gateway, options, entry, Mode::Lint).await;
    // What the world does not answer is a finding too, as with BuildKit.
    let error = outcome.err().map(|error| BuildError {
        message: with_causes(&error),
        location: Location::of(&merged(&error.ranges)),
    });
    let mut text = String::new();
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.ranges.first().map(|range| range.start.line));
    for finding in sorted {
        let url = finding.rule.url();
        let more = if url.is_empty() {
            String::new()
        } else {
            format!(" - {url}")
        };
        text += &format!("\nWARNING: {}{more}\n{}\n", finding.rule.name(), finding.text);
        text += &report::excerpt(&entry.source, &finding.ranges);
    }
    let warnings: Vec<Warning> = findings
        .into_iter()
        .map(|finding| Warning {
            rule_name: finding.rule.name(),
            description: finding.rule.about(),
            url: finding.rule.url(),
            detail: finding.text,
            location: Location::of(&finding.ranges),
        })
        .collect();
    let is_clean = warnings.is_empty() && error.is_none();
    let results = LintResults {
        warnings: (!warnings.is_empty()).then_some(warnings),
        sources: [Source::of(&entry.source)],
        error,
    };
    let mut report = Report::new(&results, text);
    report.status = Some(u8::from(!is_clean));
    Ok(report)
}

/// An error and what caused it, in one line.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors show what caused them themselves.
        if !text.ends_with(&more) {
            text.push_str(&format!(": {more}"));
        }
        cause = error.source();
    }
    text
}

/// Lines that are named by several ranges, once; in order.
fn merged(ranges: &[Range]) -> Vec<Range> {
    let mut ranges = ranges.to_vec();
    ranges.sort_by_key(|range| range.start.line);
    ranges.dedup_by(|next, kept| {
        let is_inside = next.start.line <= kept.end.line;
        if is_inside {
            kept.end.line = kept.end.line.max(next.end.line);
        }
        is_inside
    });
    ranges
}

/// Everything up to the definition; what was found on the way, however it ends.
async fn run(
    gateway: &dyn Gateway,
    options: &Options,
    entry: &Entry,
    mode: Mode,
) -> (Result<Outline, Error>, Vec<Finding>) {
    let mut known = Known::default();
    loop {
        let (attempt, findings) = attempt(options, entry, &known, mode);
        let (questions, names) = match attempt {
            Err(error) => return (Err(error), findings),
            Ok(Attempt::Done(lowered)) => return (Ok(lowered.outline), findings),
            Ok(Attempt::Ask(questions, names)) => (questions, names),
        };
        if !known.goes_on() {
            return (Err(ErrorKind::Endless.into()), findings);
        }
        if let Err(error) = known.ask(gateway, options, questions, &names).await {
            return (Err(error), findings);
        }
    }
}

/// One attempt, and what it found.
fn attempt(
    options: &Options,
    entry: &Entry,
    known: &Known,
    mode: Mode,
) -> (Result<Attempt, Error>, Vec<Finding>) {
    match dockerfile::lint(options, entry) {
        Ok(lint) => {
            let attempt = dockerfile::attempt(options, entry, None, known, &lint, mode);
            (attempt, lint.findings())
        }
        Err(error) => (Err(error), Vec::new()),
    }
}
