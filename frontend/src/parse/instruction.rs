//! One logical line to one typed instruction.

use std::sync::Arc;

use oci::Healthcheck;

use crate::error::Error;
use crate::lint::{Lint, Rule};
use crate::options::csv;
use crate::parse::arguments::{self, Json, Split};
use crate::parse::ast::{
    Add, Arg, CommandLine, Content, Copy, Device, Instruction, Kind, Pair, Run, RunNetwork, Sources, Stage,
};
use crate::parse::flags::{Flags, Takes};
use crate::parse::lines::Line;
use crate::parse::place::Places;
use crate::parse::{heredoc, mount, quantity};
use crate::suggest;

const KEYWORDS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// What a line turned out to be.
pub(super) enum Parsed {
    From(Box<Stage>),
    Instruction(Box<Instruction>),
}

/// A line and what the parsers of its parts need.
struct Request<'a> {
    line: &'a Line,
    split: Split,
    escape: char,
    keyword: String,
}

/// Reads one line.
pub(super) fn parse(line: &Line, escape: char, lint: &Lint) -> Result<Parsed, Error> {
    let lint = lint.for_comments(&line.comments);
    let split = arguments::split(line.text.as_str(), escape).map_err(Error::invalid)?;
    let keyword = split.keyword.to_uppercase();
    let request = Request {
        line,
        split,
        escape,
        keyword,
    };
    if request.keyword == "FROM" {
        return Ok(Parsed::From(Box::new(request.from(&lint)?)));
    }
    let kind = request.kind(&lint)?;
    Ok(Parsed::Instruction(Box::new(Instruction {
        kind,
        keyword: request.split.keyword.clone(),
        code: line.text.as_str().trim().to_owned(),
        ranges: line.ranges(),
        places: request.places(),
        comments: line.comments.clone(),
    })))
}

/// The shortest interval of a HEALTHCHECK, in nanoseconds.
const MIN_INTERVAL: i64 = 1_000_000;

impl Request<'_> {
    fn kind(&self, lint: &Lint) -> Result<Kind, Error> {
        Ok(match self.keyword.as_str() {
            "ADD" => Kind::Add(self.add()?),
            "ARG" => Kind::Arg(self.arg(lint)?),
            "CMD" => Kind::Cmd(self.command(&[])?.1),
            "COPY" => Kind::Copy(self.copy()?),
            "ENTRYPOINT" => Kind::Entrypoint(self.command(&[])?.1),
            "ENV" => Kind::Env(self.pairs()?),
            "EXPOSE" => Kind::Expose(self.expose()?),
            "HEALTHCHECK" => Kind::Healthcheck(self.healthcheck()?),
            "LABEL" => Kind::Label(self.pairs()?),
            "MAINTAINER" => {
                lint.report(
                    Rule::MaintainerDeprecated,
                    &self.line.ranges(),
                    "Maintainer instruction is deprecated in favor of using label",
                );
                Kind::Maintainer(self.one_text()?)
            }
            "ONBUILD" => Kind::OnBuild(self.onbuild()?),
            "RUN" => Kind::Run(self.run()?),
            "SHELL" => Kind::Shell(self.shell()?),
            "STOPSIGNAL" => Kind::StopSignal(self.rest()?),
            "USER" => Kind::User(self.one_text()?),
            "VOLUME" => Kind::Volume(self.volume()?),
            "WORKDIR" => Kind::Workdir(self.one_text()?),
            _ => {
                let error = Error::invalid(format!("unknown instruction: {}", self.split.keyword));
                return Err(error.suggesting(suggest::nearest(&self.split.keyword, KEYWORDS.iter().copied())));
            }
        })
    }

    /// Where everything of the instruction stands in the file.
    fn places(&self) -> Places {
        Places {
            whole: self.line.whole.clone(),
            heredocs: self.line.bodies.clone(),
            text: Arc::clone(&self.line.text),
            at: self.split.at.clone(),
        }
    }

    fn flags(&self, known: &[(&'static str, Takes)]) -> Result<Flags, Error> {
        Flags::parse(&self.split.flags, known)
    }

    fn needs_argument(&self) -> Error {
        Error::invalid(format!("{} requires at least one argument", self.keyword))
    }

    /// The whole rest as one text, where no flag is known.
    fn one_text(&self) -> Result<String, Error> {
        let rest = self.rest()?;
        self.flags(&[])?;
        Ok(rest)
    }

    /// The whole rest as one text. Of STOPSIGNAL and ARG flags are not even looked at, as in BuildKit.
    fn rest(&self) -> Result<String, Error> {
        if self.split.rest.is_empty() {
            return Err(Error::invalid(format!(
                "{} requires exactly one argument",
                self.keyword
            )));
        }
        Ok(self.split.rest.clone())
    }

    /// JSON words, or words at blanks, and whether it was JSON.
    fn json_or_words(&self) -> Result<(Vec<String>, bool), Error> {
        match arguments::json(&self.split.rest) {
            Json::Words(words) => Ok((words, true)),
            Json::NotStrings => Err(not_strings()),
            Json::No => Ok((arguments::plain_words(&self.split.rest), false)),
        }
    }

    fn pairs(&self) -> Result<Vec<Pair>, Error> {
        self.flags(&[])?;
        let pairs = arguments::pairs(&self.split.rest, self.escape, &self.keyword).map_err(Error::invalid)?;
        if pairs.is_empty() {
            return Err(self.needs_argument());
        }
        Ok(pairs)
    }

    fn sources(&self) -> Result<Sources, Error> {
        let (mut words, _) = self.json_or_words()?;
        let (dest, 1..) = (words.pop(), words.len()) else {
            let error = format!(
                "{} requires at least two arguments, but only one was provided. Destination could not be determined",
                self.keyword
            );
            return Err(Error::invalid(error));
        };
        let mut sources = Sources {
            dest: dest.unwrap_or_default(),
            ..Sources::default()
        };
        if heredoc::is_heredoc(&sources.dest) {
            return Err(Error::invalid(format!(
                "{} cannot accept a heredoc as a destination",
                self.keyword
            )));
        }
        for word in words {
            match heredoc::name(&word) {
                None => sources.paths.push(word),
                Some(doc) => {
                    // Of several bodies of one name the last one counts.
                    let body = self.line.heredocs.iter().rev().find(|body| body.name == doc.name);
                    let data = body.map(|body| body.data.clone()).unwrap_or_default();
                    let data = if doc.is_chomped {
                        heredoc::chomp(&data)
                    } else {
                        data
                    };
                    // What is expanded passes through text, as with BuildKit.
                    let raw = body
                        .and_then(|body| body.raw.as_ref())
                        .filter(|_| !doc.is_expanded);
                    let raw = raw.map(|raw| match doc.is_chomped {
                        true => heredoc::chomp_bytes(raw),
                        false => raw.clone(),
                    });
                    sources.contents.push(Content {
                        name: doc.name,
                        data,
                        raw,
                        is_expanded: doc.is_expanded,
                    });
                }
            }
        }
        Ok(sources)
    }

    fn add(&self) -> Result<Add, Error> {
        let sources = self.sources()?;
        let flags = self.flags(&[
            ("chown", Takes::Text),
            ("chmod", Takes::Text),
            ("link", Takes::Bool),
            ("keep-git-dir", Takes::Bool),
            ("checksum", Takes::Text),
            ("unpack", Takes::Bool),
            ("exclude", Takes::Texts),
        ])?;
        Ok(Add {
            sources,
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.flag("link") == Some(true),
            keep_git_dir: flags.flag("keep-git-dir"),
            checksum: flags.text("checksum"),
            unpack: flags.flag("unpack"),
            exclude: flags.texts("exclude"),
        })
    }

    fn copy(&self) -> Result<Copy, Error> {
        let sources = self.sources()?;
        let flags = self.flags(&[
            ("chown", Takes::Text),
            ("from", Takes::Text),
            ("chmod", Takes::Text),
            ("link", Takes::Bool),
            ("exclude", Takes::Texts),
            ("parents", Takes::Bool),
        ])?;
        Ok(Copy {
            sources,
            from: flags.text("from"),
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.flag("link") == Some(true),
            parents: flags.flag("parents") == Some(true),
            exclude: flags.texts("exclude"),
        })
    }

    fn arg(&self, lint: &Lint) -> Result<Vec<Arg>, Error> {
        let words = arguments::quoted_words(&self.split.rest, self.escape);
        if words.is_empty() {
            return Err(self.needs_argument());
        }
        let one = |word: &String| match word.split_once('=') {
            Some(("", _)) => Err(Error::invalid("ARG names can not be blank")),
            Some((name, value)) => Ok(Arg {
                name: name.to_owned(),
                value: Some(value.to_owned()),
            }),
            None => Ok(Arg {
                name: word.clone(),
                value: None,
            }),
        };
        let args: Vec<Arg> = words.iter().map(one).collect::<Result<_, _>>()?;
        self.check_description(
            &args.iter().map(|arg| arg.name.as_str()).collect::<Vec<_>>(),
            lint,
        );
        Ok(args)
    }

    /// A comment right above is taken for a description; it should begin with the name it describes.
    fn check_description(&self, names: &[&str], lint: &Lint) {
        let Some(comment) = self.line.comments.last() else {
            return;
        };
        if !names.contains(&comment.split(' ').next().unwrap_or_default()) {
            let example = match names {
                [only] => only,
                _ => "<arg_key>",
            };
            let keyword = &self.keyword;
            let text = format!("Comment for {keyword} should follow the format: `# {example} <description>`");
            lint.report(Rule::InvalidDefinitionDescription, &self.line.ranges(), &text);
        }
    }

    /// Flags, and a command in shell or exec form.
    fn command(&self, known: &[(&'static str, Takes)]) -> Result<(Flags, CommandLine), Error> {
        let flags = self.flags(known)?;
        let (args, is_shell) = shell_or_json(&self.split.rest)?;
        Ok((
            flags,
            CommandLine {
                args,
                heredocs: self.line.heredocs.clone(),
                is_shell,
            },
        ))
    }

    fn run(&self) -> Result<Run, Error> {
        let (flags, command) = self.command(&[
            ("mount", Takes::Texts),
            ("network", Takes::Text),
            ("security", Takes::Text),
            ("device", Takes::Texts),
        ])?;
        let network = match flags.given("network").unwrap_or("default") {
            "default" => RunNetwork::Default,
            "none" => RunNetwork::None,
            "host" => RunNetwork::Host,
            other => {
                let error = Error::invalid(format!("invalid network mode {other:?}"));
                return Err(error.suggesting(suggest::nearest(other, ["default", "none", "host"])));
            }
        };
        let is_insecure = match flags.given("security").unwrap_or("sandbox") {
            "sandbox" => false,
            "insecure" => true,
            other => {
                let error = Error::invalid(format!("security {other:?} is not valid"));
                return Err(error.suggesting(suggest::nearest(other, ["sandbox", "insecure"])));
            }
        };
        let mounts = flags.texts("mount");
        let mounts_from = mounts
            .iter()
            .map(|value| mount::from(value))
            .collect::<Result<_, _>>()?;
        let devices = flags
            .texts("device")
            .iter()
            .map(|value| device(value))
            .collect::<Result<_, _>>()?;
        Ok(Run {
            command,
            mounts,
            mounts_from,
            network,
            is_insecure,
            devices,
        })
    }

    fn expose(&self) -> Result<Vec<String>, Error> {
        let mut ports = arguments::plain_words(&self.split.rest);
        if ports.is_empty() {
            return Err(self.needs_argument());
        }
        self.flags(&[])?;
        ports.sort();
        Ok(ports)
    }

    fn volume(&self) -> Result<Vec<String>, Error> {
        let (words, _) = self.json_or_words()?;
        if words.is_empty() {
            return Err(self.needs_argument());
        }
        self.flags(&[])?;
        let words: Vec<String> = words.iter().map(|word| word.trim().to_owned()).collect();
        if words.iter().any(String::is_empty) {
            return Err(Error::invalid("VOLUME specified can not be an empty string"));
        }
        Ok(words)
    }

    fn shell(&self) -> Result<Vec<String>, Error> {
        self.flags(&[])?;
        match arguments::json(&self.split.rest) {
            Json::Words(words) if !words.is_empty() => Ok(words),
            Json::Words(_) => Err(self.needs_argument()),
            Json::NotStrings => Err(not_strings()),
            Json::No if self.split.rest.is_empty() => Err(self.needs_argument()),
            Json::No => Err(Error::invalid("SHELL requires the arguments to be in JSON form")
                .hinting(Some("write it as SHELL [\"/bin/bash\", \"-c\"]".to_owned()))),
        }
    }

    fn onbuild(&self) -> Result<String, Error> {
        if self.split.rest.is_empty() {
            return Err(self.needs_argument());
        }
        self.flags(&[])?;
        let inner = arguments::split(&self.split.rest, self.escape).map_err(Error::invalid)?;
        let keyword = inner.keyword.to_uppercase();
        if matches!(keyword.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
            return Err(Error::invalid(match keyword.as_str() {
                "ONBUILD" => "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned(),
                other => format!("{other} isn't allowed as an ONBUILD trigger"),
            }));
        }
        let text = self.line.text.as_str().trim_start();
        let mut trigger = text[self.split.keyword.len()..].trim_start().to_owned();
        for doc in &self.line.heredocs {
            trigger.push('\n');
            trigger.push_str(&doc.data);
            trigger.push_str(&doc.name);
        }
        Ok(trigger)
    }

    fn healthcheck(&self) -> Result<Healthcheck, Error> {
        let rest = &self.split.rest;
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (kind, rest) = (rest[..end].to_uppercase(), rest[end..].trim_start());
        let times = [
            ("interval", Takes::Text),
            ("timeout", Takes::Text),
            ("start-period", Takes::Text),
        ];
        let known = [
            times.as_slice(),
            &[("start-interval", Takes::Text), ("retries", Takes::Text)],
        ]
        .concat();
        match kind.as_str() {
            "" => Err(self.needs_argument()),
            "NONE" if rest.is_empty() => Ok(Healthcheck {
                test: vec![kind],
                ..Healthcheck::default()
            }),
            "NONE" => Err(Error::invalid("HEALTHCHECK NONE takes no arguments")),
            "CMD" => {
                let flags = self.flags(&known)?;
                let (args, is_shell) = shell_or_json(rest)?;
                if args.is_empty() {
                    return Err(Error::invalid("Missing command after HEALTHCHECK CMD"));
                }
                let first = if is_shell { "CMD-SHELL" } else { "CMD" };
                let time = |name: &str| match flags.text(name).as_str() {
                    "" => Ok(0),
                    text => match quantity::duration(text).map_err(Error::invalid)? {
                        short if short != 0 && short < MIN_INTERVAL => Err(Error::invalid(format!(
                            "Interval {name:?} cannot be less than 1ms"
                        ))),
                        time => Ok(time),
                    },
                };
                let retries = match flags.text("retries").as_str() {
                    "" => 0,
                    text => match text.parse::<i32>() {
                        Ok(retries) if retries >= 0 => i64::from(retries),
                        _ => {
                            return Err(Error::invalid(format!("--retries cannot be negative ({text})")));
                        }
                    },
                };
                Ok(Healthcheck {
                    test: std::iter::once(first.to_owned()).chain(args).collect(),
                    interval: time("interval")?,
                    timeout: time("timeout")?,
                    start_period: time("start-period")?,
                    start_interval: time("start-interval")?,
                    retries,
                })
            }
            _ => {
                let error = Error::invalid(format!("Unknown type {kind:?} in HEALTHCHECK (try CMD)"));
                Err(error)
            }
        }
    }

    fn from(&self, lint: &Lint) -> Result<Stage, Error> {
        let words = arguments::plain_words(&self.split.rest);
        let ranges = self.line.ranges();
        if let [_, _, name] = words.as_slice()
            && *name != name.to_lowercase()
        {
            let text = format!("Stage name '{name}' should be lowercase");
            lint.report(Rule::StageNameCasing, &ranges, &text);
        }
        if let [_, as_word, _, ..] = words.as_slice() {
            let keyword = &self.split.keyword;
            let differs = (keyword.to_lowercase() == *keyword && as_word.to_lowercase() != *as_word)
                || (keyword.to_uppercase() == *keyword && as_word.to_uppercase() != *as_word);
            if differs {
                let text = format!("'{as_word}' and '{keyword}' keywords' casing do not match");
                lint.report(Rule::FromAsCasing, &ranges, &text);
            }
        }
        let (base, name) = match words.as_slice() {
            [base] => (base, String::new()),
            [base, as_word, name] if as_word.eq_ignore_ascii_case("as") => (base, stage_name(name)?),
            _ => return Err(Error::invalid("FROM requires either one or three arguments")),
        };
        let flags = self.flags(&[("platform", Takes::Text)])?;
        if !name.is_empty() {
            self.check_description(&[&name], lint);
        }
        Ok(Stage {
            name,
            base: base.clone(),
            platform: flags.text("platform"),
            keyword: self.split.keyword.clone(),
            code: self.line.text.as_str().trim().to_owned(),
            ranges,
            places: self.places(),
            comments: self.line.comments.clone(),
            instructions: Vec::new(),
        })
    }
}

fn stage_name(name: &str) -> Result<String, Error> {
    // One character for one character, as Go lowers them.
    let lower: String = name.chars().filter_map(|c| c.to_lowercase().next()).collect();
    let is_fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    if lower.starts_with(|c: char| c.is_ascii_lowercase()) && lower.chars().all(is_fine) {
        return Ok(lower);
    }
    Err(Error::invalid(format!(
        "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
    )))
}

/// Words of JSON, or the whole text for a shell; nothing at all is no argument.
fn shell_or_json(rest: &str) -> Result<(Vec<String>, bool), Error> {
    match arguments::json(rest) {
        Json::Words(words) => Ok((words, false)),
        Json::NotStrings => Err(not_strings()),
        Json::No if rest.is_empty() => Ok((Vec::new(), true)),
        Json::No => Ok((vec![rest.to_owned()], true)),
    }
}

fn not_strings() -> Error {
    Error::invalid(arguments::NOT_STRINGS)
}

fn device(value: &str) -> Result<Device, Error> {
    let mut device = Device {
        name: String::new(),
        is_required: false,
    };
    let fields =
        csv(value).map_err(|error| Error::invalid(format!("failed to parse csv devices: {error}")))?;
    for field in fields {
        match field.split_once('=') {
            None if field.eq_ignore_ascii_case("required") => device.is_required = true,
            Some((key, value)) if key.eq_ignore_ascii_case("required") => {
                device.is_required = crate::options::go_bool(value).ok_or_else(|| {
                    Error::invalid(format!(
                        "required of a device must be true or false, not {value:?}"
                    ))
                })?;
            }
            Some((key, value)) if key.eq_ignore_ascii_case("name") => value.clone_into(&mut device.name),
            _ if device.name.is_empty() => device.name = field,
            _ => return Err(Error::invalid(format!("unknown device option {field:?}"))),
        }
    }
    if device.name.is_empty() {
        return Err(Error::invalid("a device needs a name"));
    }
    Ok(device)
}
