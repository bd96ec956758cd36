//! Arguments before the first FROM: those that go without saying, and those the Dockerfile declares.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use llb::Range;
use oci::{Platform, Reference};

use crate::error::Error;
use crate::lint::{Lint, Rule};
use crate::lower::env::Env;
use crate::lower::format::quote;
use crate::lower::outline::Argument;
use crate::metadata::Question;
use crate::parse::ast::{Kind, Stage};
use crate::requests::description;
use crate::stages::Given;
use crate::suggest;
use crate::words::{Expansion, Lex};

/// The global arguments, and what follows from them.
#[derive(Clone, Debug, Default)]
pub(crate) struct GlobalArgs {
    pub(crate) env: Env,
    /// Every name that is declared, with a value or not.
    declared: Vec<String>,
    /// Build arguments, as the stages see them.
    pub(crate) build_args: BTreeMap<String, String>,
    /// `SOURCE_DATE_EPOCH`, seconds since 1970.
    pub(crate) epoch: Option<i64>,
    /// The declared ones, as an outline tells them.
    pub(crate) outlined: Arc<BTreeMap<String, Argument>>,
}

/// Works out the global arguments.
pub(super) fn global(given: &Given<'_>, questions: &mut Vec<Question>) -> Result<GlobalArgs, Error> {
    let options = given.options;
    let last = given
        .dockerfile
        .stages
        .last()
        .map_or("", |stage| stage.name.as_str());
    let target = options.target.as_deref().unwrap_or(last);
    let automatic = automatic(
        &options.build_platform,
        given.target_platform(),
        target,
        &options.build_args,
    );
    check_defaults(given, &automatic);
    let mut args = GlobalArgs {
        env: automatic,
        build_args: options.build_args.clone(),
        ..GlobalArgs::default()
    };
    args.declare(given, &options.build_args)?;
    args.epoch(given, questions)?;
    Ok(args)
}

/// Arguments that are there without being declared; build arguments may replace their values.
fn automatic(build: &Platform, target: &Platform, name: &str, overrides: &BTreeMap<String, String>) -> Env {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let without_version = Platform {
        os_version: None,
        ..build.clone()
    };
    let values = [
        ("BUILDPLATFORM", without_version.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", text(&build.os_version)),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", text(&build.variant)),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", text(&target.os_version)),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", text(&target.variant)),
        (
            "TARGETSTAGE",
            if name.is_empty() {
                "default".to_owned()
            } else {
                name.to_owned()
            },
        ),
    ];
    let mut env = Env::default();
    for (name, value) in values {
        env.set(name, overrides.get(name).unwrap_or(&value));
    }
    env
}

/// FROM should name an image when no build arguments are given.
fn check_defaults(given: &Given<'_>, automatic: &Env) {
    let mut args = GlobalArgs {
        env: automatic.clone(),
        ..GlobalArgs::default()
    };
    if args.declare(given, &BTreeMap::new()).is_err() {
        return;
    }
    for stage in &given.dockerfile.stages {
        let Ok(base) = args.expand(Lex::new(given.dockerfile.escape), &stage.base) else {
            return;
        };
        if Reference::parse_normalized(&base.text).is_err() {
            let text = format!(
                "Default value for ARG {} results in empty or invalid base image name",
                stage.base
            );
            given
                .lint
                .report(Rule::InvalidDefaultArgInFrom, &stage.ranges, &text);
        }
    }
}

impl GlobalArgs {
    fn declare(&mut self, given: &Given<'_>, build_args: &BTreeMap<String, String>) -> Result<(), Error> {
        let lex = Lex::new(given.dockerfile.escape);
        for instruction in &given.dockerfile.global_args {
            let Kind::Arg(args) = &instruction.kind else {
                continue;
            };
            for arg in args {
                let mut made_of = BTreeSet::new();
                let value = match (build_args.get(&arg.name), &arg.value) {
                    (Some(value), _) => Some(value.clone()),
                    (None, Some(value)) => {
                        let found = self.expand(lex, value);
                        let found = found.map_err(|error| error.at(&instruction.ranges))?;
                        made_of.extend(found.matched);
                        Some(found.text)
                    }
                    (None, None) => None,
                };
                if let Some(value) = &value {
                    self.env.set(&arg.name, value);
                }
                if made_of.remove(&arg.name)
                    && let Some(earlier) = self.outlined.get(&arg.name)
                {
                    made_of.extend(earlier.made_of.iter().cloned());
                }
                let outlined = Argument {
                    name: arg.name.clone(),
                    description: description(&instruction.comments, &arg.name).to_owned(),
                    value: value.unwrap_or_default(),
                    ranges: instruction.ranges.clone(),
                    made_of,
                };
                Arc::make_mut(&mut self.outlined).insert(arg.name.clone(), outlined);
                self.declared.push(arg.name.clone());
            }
        }
        Ok(())
    }

    /// Expands a word of FROM.
    pub(super) fn expand(&self, lex: Lex, word: &str) -> Result<Expansion, Error> {
        lex.expand(word, &|name| self.env.get(name).map(str::to_owned))
            .map_err(Error::invalid)
    }

    /// Reports arguments that are used but not declared.
    pub(super) fn report_undefined(&self, used: &Expansion, ranges: &[Range], lint: &Lint) {
        let known = || self.env.names().chain(self.declared.iter().map(String::as_str));
        for name in used
            .unmatched
            .iter()
            .filter(|name| !known().any(|known| known == name.as_str()))
        {
            let hint = suggest::nearest(name, known())
                .map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
            let text = format!("FROM argument '{name}' is not declared{hint}");
            lint.report(Rule::UndefinedArgInFrom, ranges, &text);
        }
    }

    /// The value of `FROM --platform`.
    pub(super) fn platform(
        &self,
        lex: Lex,
        stage: &Stage,
        lint: &Lint,
    ) -> Result<(Platform, BTreeSet<String>), Error> {
        let found = self.expand(lex, &stage.platform)?;
        self.report_undefined(&found, &stage.ranges, lint);
        let target = self.env.get("TARGETPLATFORM");
        let uses_target_only = found.unmatched.is_empty() && found.matched.iter().eq(["TARGETPLATFORM"]);
        if uses_target_only && Some(found.text.as_str()) == target {
            let text = format!(
                "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                stage.platform
            );
            lint.report(Rule::RedundantTargetPlatform, &stage.ranges, &text);
        }
        let near = || {
            let unmatched = found.unmatched.iter();
            unmatched
                .flat_map(|name| suggest::nearest(name, self.env.names()))
                .next()
        };
        if found.text.is_empty() {
            let error = format!("empty platform value from expression {}", stage.platform);
            return Err(Error::invalid(error).suggesting(near()));
        }
        let platform = Platform::parse(&found.text).map_err(|_| {
            let (written, parsed) = (&stage.platform, quote(&found.text));
            // What the peer's library says of it.
            let reason = format!("{parsed}: cannot parse platform specifier: invalid argument");
            Error::invalid(format!("failed to parse platform {written}: {reason}")).suggesting(near())
        })?;
        let is_constant = found.matched.is_empty() && found.unmatched.is_empty();
        if is_constant && !stage.name.contains(&platform.os) && !stage.name.contains(&platform.architecture) {
            let text = format!(
                "FROM --platform flag should not use constant value {}",
                quote(&found.text)
            );
            lint.report(Rule::FromPlatformFlagConstDisallowed, &stage.ranges, &text);
        }
        Ok((platform, found.matched))
    }
}
