//! The flow: from a request to an answer.
//!
//! ```text
//! load ─▶ syntax ─▶ parse ─▶ for each platform: plan ⇄ ask ─▶ lower ─▶ warn ─▶ Answer
//! ```

use std::sync::Arc;

use llb::state::SourceMap;
use llb::{Location, Position, Range};
use oci::{ImageConfig, Platform};

use crate::answer::{Answer, PlatformAnswer};
use crate::context::{self, Entry};
use crate::error::{Error, ErrorKind};
use crate::gateway::{Gateway, Warning};
use crate::lint::{Finding, Lint};
use crate::lower::{Lowered, lower};
use crate::metadata::Known;
use crate::options::Options;
use crate::parse::{directive, parse, syntax};
use crate::stages::{Given, plan};

/// Rounds of questions before giving up; each needs an answer that names something new.
const MAX_ROUNDS: usize = 20;

/// Builds definitions and image configs from a Dockerfile.
///
/// # Errors
/// Whatever is wrong with the request, the Dockerfile or what it names, with its lines and a hint.
pub async fn build(gateway: &dyn Gateway, options: &Options) -> Result<Answer, Error> {
    let entry = context::load(gateway, options).await?;
    from_entry(gateway, options, &entry)
        .await
        .map_err(|error| error.in_file(&entry.source))
}

/// Only finds out whether the Dockerfile asks for another frontend, which is then the one to answer whatever is asked.
///
/// # Errors
/// [`ErrorKind::FrontendImage`] if it does; whatever is wrong with the request or with loading the Dockerfile.
pub async fn obey_syntax(gateway: &dyn Gateway, options: &Options) -> Result<(), Error> {
    let entry = context::load(gateway, options).await?;
    check_syntax(options, &entry.source).map_err(|error| error.in_file(&entry.source))
}

async fn from_entry(gateway: &dyn Gateway, options: &Options, entry: &Entry) -> Result<Answer, Error> {
    check_syntax(options, &entry.source)?;
    let asked: Vec<Option<&Platform>> = if options.platforms.is_empty() {
        vec![None]
    } else {
        options.platforms.iter().map(Some).collect()
    };
    let mut known = Known::default();
    for _ in 0..MAX_ROUNDS {
        let (mut questions, mut names, mut lowered) = (Vec::new(), Vec::new(), Vec::new());
        for platform in &asked {
            match attempt(options, entry, *platform, &known)? {
                Attempt::Done(done, findings) => lowered.push((*platform, *done, findings)),
                Attempt::Ask(open, stages) => {
                    questions.extend(open);
                    names = stages;
                }
            }
        }
        if questions.is_empty() {
            return Ok(finish(gateway, options, entry, lowered));
        }
        known.ask(gateway, options, questions, &names).await?;
    }
    Err(Error::invalid(
        "base images name each other without end in their ONBUILD triggers",
    ))
}

/// Warns, and puts the answer together.
fn finish(
    gateway: &dyn Gateway,
    options: &Options,
    entry: &Entry,
    lowered: Vec<(Option<&Platform>, Lowered, Vec<Finding>)>,
) -> Answer {
    let mut platforms = Vec::with_capacity(lowered.len());
    for (number, (platform, lowered, findings)) in lowered.into_iter().enumerate() {
        // Every platform finds the same.
        if number == 0 {
            findings
                .into_iter()
                .for_each(|finding| gateway.warn(warning(finding, entry)));
        }
        platforms.push(answer(options, platform, lowered));
    }
    Answer {
        platforms,
        is_multi_platform: options.is_multi_platform(),
    }
}

enum Attempt {
    Done(Box<Lowered>, Vec<Finding>),
    Ask(Vec<crate::metadata::Question>, Vec<String>),
}

/// Everything that needs no waiting: parse, plan, and lower if nothing is missing.
fn attempt(
    options: &Options,
    entry: &Entry,
    platform: Option<&Platform>,
    known: &Known,
) -> Result<Attempt, Error> {
    let check = match &options.check {
        Some(check) => check.clone(),
        None => directive(&entry.source.data, "check")
            .map(|(value, _)| value)
            .unwrap_or_default(),
    };
    let check = if options.check.is_some() {
        check.as_str()
    } else {
        check.split(' ').next().unwrap_or_default()
    };
    let lint = Lint::new(check)?;
    let dockerfile = parse(&entry.source.data, &lint)?;
    let given = Given {
        dockerfile: &dockerfile,
        options,
        platform,
        known,
        lint: &lint,
        map: &entry.source,
        remote: entry.remote.as_ref(),
    };
    match plan(&given)? {
        Err(questions) => {
            let names = dockerfile.stages.iter().map(|stage| stage.name.clone()).collect();
            Ok(Attempt::Ask(questions, names))
        }
        Ok(plan) => Ok(Attempt::Done(
            Box::new(lower(&given, entry, plan)?),
            lint.findings(),
        )),
    }
}

/// `# syntax=docker/dockerfile…` is what this frontend is; other images would have to be run.
fn check_syntax(options: &Options, source: &SourceMap) -> Result<(), Error> {
    if options.is_forwarded {
        return Ok(());
    }
    let (image, line) = match &options.syntax {
        Some(image) => (image.clone(), None),
        None => match syntax(&source.data) {
            Some((image, line)) => (image, Some(line)),
            None => return Ok(()),
        },
    };
    let whole = image;
    let image = whole.split_whitespace().next().unwrap_or_default().to_owned();
    if is_built_in(&image) {
        return Ok(());
    }
    let position = |line| Position { line, character: 0 };
    let ranges: Vec<Range> = line
        .into_iter()
        .map(|line| Range {
            start: position(line),
            end: position(line),
        })
        .collect();
    let hint = "remove the syntax line, or name docker/dockerfile".to_owned();
    Err(Error::from(ErrorKind::FrontendImage { image, line: whole })
        .at(&ranges)
        .hinting(Some(hint)))
}

/// Whether this frontend does what is asked of `image`: Docker's own images, and the name of the built-in one.
#[must_use]
pub fn is_built_in(image: &str) -> bool {
    if image == "dockerfile.v0" {
        return true;
    }
    let Ok(reference) = oci::Reference::parse_normalized(image) else {
        return false;
    };
    reference.domain() == oci::DOCKER_HUB
        && matches!(
            reference.path(),
            "docker/dockerfile" | "docker/dockerfile-upstream"
        )
}

fn answer(options: &Options, asked: Option<&Platform>, lowered: Lowered) -> PlatformAnswer {
    let platform = asked
        .cloned()
        .unwrap_or_else(|| options.build_platform.clone())
        .normalize();
    PlatformAnswer {
        id: platform.to_string(),
        platform,
        definition: lowered.definition,
        config: lowered.image.to_json(),
        base_config: lowered.base_image.as_ref().map(ImageConfig::to_json),
        epoch: lowered.epoch,
    }
}

fn warning(finding: Finding, entry: &Entry) -> Warning {
    let line = finding.ranges.first().map_or(0, |range| range.start.line);
    let shown = if line > 0 {
        format!(" (line {line})")
    } else {
        String::new()
    };
    Warning {
        rule: finding.rule.name(),
        message: format!("{}: {}{shown}", finding.rule.name(), finding.text),
        detail: finding.rule.about().to_owned(),
        url: finding.rule.url(),
        location: Location {
            source_index: 0,
            ranges: finding.ranges,
        },
        source: Arc::clone(&entry.source),
        vertex: entry.vertex,
    }
}
