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

async fn from_entry(gateway: &dyn Gateway, options: &Options, entry: &Entry) -> Result<Answer, Error> {
    check_syntax(options, &entry.source)?;
    let asked: Vec<Option<&Platform>> = if options.platforms.is_empty() {
        vec![None]
    } else {
        options.platforms.iter().map(Some).collect()
    };
    let mut known = Known::default();
    while known.goes_on() {
        let (mut questions, mut names, mut lowered) = (Vec::new(), Vec::new(), Vec::new());
        for platform in &asked {
            let lint = lint(options, entry)?;
            match attempt(options, entry, *platform, &known, &lint, Mode::Build)? {
                Attempt::Done(done) => lowered.push((*platform, *done, lint.findings())),
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
    Err(ErrorKind::Endless.into())
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

/// What a Dockerfile is lowered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To be built.
    Build,
    /// To tell what its target can be given.
    Outline,
    /// To find what is wrong with it; without a target in all stages.
    Lint,
}

pub(crate) enum Attempt {
    Done(Box<Lowered>),
    /// What must be answered first, and names that may have been meant.
    Ask(Vec<crate::metadata::Question>, Vec<String>),
}

/// Findings as the request or the Dockerfile's head configures them.
pub(crate) fn lint(options: &Options, entry: &Entry) -> Result<Lint, Error> {
    match &options.check {
        Some(check) => Lint::new(check),
        None => {
            let found = directive(&entry.source.data, "check");
            let value = found.map(|(value, _)| value).unwrap_or_default();
            Lint::new(value.split(' ').next().unwrap_or_default())
        }
    }
}

/// Everything that needs no waiting: parse, plan, and lower if nothing is missing.
pub(crate) fn attempt(
    options: &Options,
    entry: &Entry,
    platform: Option<&Platform>,
    known: &Known,
    lint: &Lint,
    mode: Mode,
) -> Result<Attempt, Error> {
    let dockerfile = parse(&entry.source.data, lint)?;
    let given = Given {
        dockerfile: &dockerfile,
        options,
        platform,
        known,
        lint,
        map: &entry.source,
        remote: entry.remote.as_ref(),
        is_whole: mode == Mode::Lint && options.target.is_none(),
    };
    match plan(&given)? {
        Err(questions) => {
            let names = dockerfile.stages.iter().map(|stage| stage.name.clone()).collect();
            Ok(Attempt::Ask(questions, names))
        }
        Ok(plan) => Ok(Attempt::Done(Box::new(lower(&given, entry, plan)?))),
    }
}

/// `# syntax=docker/dockerfile…` is what this frontend is; other images would have to be run.
pub(crate) fn check_syntax(options: &Options, source: &SourceMap) -> Result<(), Error> {
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

/// Whether what only the labs images of the frontend know is asked for: by the image that was chosen, by
/// `BUILDKIT_SYNTAX`, or by the syntax line.
pub(crate) fn is_labs(options: &Options, source: &SourceMap) -> bool {
    let line = || syntax(&source.data).map(|(image, _)| image);
    let chosen = options
        .image
        .clone()
        .or_else(|| options.syntax.clone())
        .or_else(line);
    chosen.is_some_and(|image| {
        let name = image.split_whitespace().next().unwrap_or_default();
        let tag = name.split('@').next().and_then(|name| name.rsplit_once(':'));
        tag.is_some_and(|(_, tag)| tag == "labs" || tag.ends_with("-labs"))
    })
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
        scans: lowered.scans,
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
