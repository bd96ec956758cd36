//! `SOURCE_DATE_EPOCH`: a number, or the name of something that has a time.
//!
//! | value | the time |
//! |---|---|
//! | number | seconds since 1970 |
//! | `context` | of the build context: a git commit, a file or archive of a URL; a directory of the client has none |
//! | a named context | of that |
//! | a stage `FROM scratch` with one `ADD` of a URL or repository | of what is added; the stage need not be built |
//!
//! What the steps see, and what the image says, is the number.

use llb::state::{Constraints, HttpSource, State, marshal};

use super::args::GlobalArgs;
use crate::error::Error;
use crate::lower::env::Env;
use crate::metadata::Question;
use crate::named;
use crate::parse::ast::{Add, Kind, Stage};
use crate::remote::{self, GitRef, check_digest};
use crate::stages::{Given, SCRATCH};
use crate::words::Lex;

const NAME: &str = "SOURCE_DATE_EPOCH";

impl GlobalArgs {
    /// Takes the value from a build argument or a global ARG; asks for a time that is not known yet.
    pub(super) fn epoch(&mut self, given: &Given<'_>, questions: &mut Vec<Question>) -> Result<(), Error> {
        let of_env = || self.env.get(NAME).filter(|value| !value.is_empty());
        let value = self.build_args.get(NAME).map(String::as_str).or_else(of_env);
        let Some(value) = value.map(str::to_owned) else {
            return Ok(());
        };
        self.epoch = match value.parse() {
            _ if value.is_empty() => None,
            Ok(number) => Some(number),
            Err(_) => match given.known.time(&value) {
                Some(time) => time,
                None => {
                    if let Some((state, log_name)) = self.source(given, &value, questions)? {
                        questions.push(Question::Time {
                            name: value.clone(),
                            source: marshal(&state)?,
                            log_name,
                        });
                    }
                    None
                }
            },
        };
        let text = self.epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
        if self.build_args.contains_key(NAME) {
            if text.is_empty() {
                self.build_args.remove(NAME);
            } else {
                self.build_args.insert(NAME.to_owned(), text.clone());
            }
        }
        if self.env.get(NAME).is_some() {
            if text.is_empty() {
                self.env.remove(NAME);
            } else {
                self.env.set(NAME, &text);
            }
        }
        Ok(())
    }

    /// What `value` names, and the name of the step that asks; `None` for what has no time, or is not known yet.
    fn source(
        &self,
        given: &Given<'_>,
        value: &str,
        questions: &mut Vec<Question>,
    ) -> Result<Option<(State, String)>, Error> {
        if value == "context" {
            let name = "[internal] resolve main build context metadata".to_owned();
            return Ok(given.remote.map(|remote| (remote.clone(), name)));
        }
        // A value that is no name of an image is no name of a context either.
        if let Ok(Some(context)) = named::find(given.options, value, given.target_platform()) {
            let loaded = context.load(given.options, given.known, questions)?;
            let name = format!("[internal] resolve {NAME} named context {value}");
            let loaded = loaded.filter(|loaded| loaded.local.is_none());
            return Ok(loaded.map(|loaded| (loaded.state, name)));
        }
        let stages = &given.dockerfile.stages;
        let is_it = |stage: &&Stage| !stage.name.is_empty() && stage.name.eq_ignore_ascii_case(value);
        let Some(stage) = stages.iter().find(is_it) else {
            let hint =
                "give seconds since 1970, `context`, or the name of a build context or stage".to_owned();
            return Err(Error::invalid(format!("invalid {NAME}: {value}")).hinting(Some(hint)));
        };
        let state = self
            .stage_source(given, stage)
            .map_err(|error| error.at(&stage.ranges))?;
        let name = format!("[internal] resolve {NAME} source stage {}", stage.name);
        Ok(Some((state, name)))
    }

    /// The one thing that a stage adds.
    fn stage_source(&self, given: &Given<'_>, stage: &Stage) -> Result<State, Error> {
        let lex = Lex::new(given.dockerfile.escape);
        let wrong = |text: &str| Error::invalid(format!("{NAME} stage {text}"));
        let mut env = self.env.clone();
        env.remove(NAME);
        if expand(lex, &stage.base, &env)? != SCRATCH {
            return Err(wrong("must use FROM scratch"));
        }
        let mut found = None;
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Arg(args) => {
                    for arg in args {
                        let value = match (self.build_args.get(&arg.name), &arg.value) {
                            (Some(value), _) => value.clone(),
                            (None, Some(value)) => expand(lex, value, &env)?,
                            (None, None) => continue,
                        };
                        env.set(&arg.name, &value);
                    }
                }
                Kind::Add(add) if found.is_none() => found = Some(added(lex, add, &env)?),
                Kind::Add(_) => return Err(wrong("must contain exactly one remote ADD")),
                _ => {
                    let name = instruction.keyword.to_lowercase();
                    return Err(wrong(&format!(
                        "does not meet source-only requirements: unsupported {name} instruction"
                    )));
                }
            }
        }
        found.ok_or_else(|| wrong("must contain exactly one remote ADD"))
    }
}

fn expand(lex: Lex, word: &str, env: &Env) -> Result<String, Error> {
    let found = lex.expand(word, &|name| env.get(name).map(str::to_owned));
    found.map(|found| found.text).map_err(Error::invalid)
}

/// The source of `ADD <URL or repository>`.
fn added(lex: Lex, add: &Add, env: &Env) -> Result<State, Error> {
    let [path] = add.sources.paths.as_slice() else {
        return Err(Error::invalid(format!(
            "{NAME} stage must contain exactly one remote ADD source"
        )));
    };
    let address = expand(lex, path, env)?;
    let checksum = expand(lex, &add.checksum, env)?;
    if remote::is_http(&address) {
        if !checksum.is_empty() {
            check_digest(&checksum)?;
        }
        let source = HttpSource {
            filename: remote::http_filename(&address),
            url: address,
            checksum,
            ..HttpSource::default()
        };
        return Ok(source.state(Constraints::default()));
    }
    match GitRef::parse(&address).map_err(Error::invalid)? {
        Some(git) if !git.is_like_local => {
            let mut source = git.source();
            source.keep_git_dir |= add.keep_git_dir == Some(true);
            if !checksum.is_empty() {
                source.checksum = checksum;
            }
            Ok(source.state(Constraints::default()))
        }
        _ => Err(Error::invalid(format!(
            "{NAME} stage source must be a single HTTP(S) or Git ADD"
        ))),
    }
}
