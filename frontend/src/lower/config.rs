//! Instructions that change only the config: ENV, ARG, LABEL, CMD, ENTRYPOINT, EXPOSE and the like.

use oci::Healthcheck;

use crate::error::Error;
use crate::lint::Rule;
use crate::lower::outline::Argument;
use crate::lower::stage::{Scope, Stage, is_scan_arg};
use crate::lower::{format, ports, signal};
use crate::parse::ast::{Arg, CommandLine, Instruction, Pair};
use crate::requests::description;

impl Stage {
    /// Pairs with both sides expanded; the old form is reported.
    fn pairs(
        &self,
        scope: &Scope<'_>,
        instruction: &Instruction,
        pairs: &[Pair],
    ) -> Result<Vec<(String, String)>, Error> {
        let keyword = &instruction.keyword;
        let expanded = pairs
            .iter()
            .map(|pair| {
                let key = self.expand(scope, instruction, &pair.key)?;
                Ok((key, self.expand(scope, instruction, &pair.value)?))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        for _ in pairs.iter().filter(|pair| pair.is_legacy) {
            let text = format!(
                "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
            );
            scope
                .lint
                .report(Rule::LegacyKeyValueFormat, &instruction.ranges, &text);
        }
        Ok(expanded)
    }

    pub(super) fn env(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        pairs: &[Pair],
    ) -> Result<(), Error> {
        let mut text = "ENV".to_owned();
        for (name, value) in self.pairs(scope, instruction, pairs)? {
            check_secret(scope, instruction, "ENV", &name);
            text.push_str(&format!(" {name}={value}"));
            self.env.set(&name, &value);
            self.env_places.set(&mut self.image.config.env, &name, &value);
        }
        self.commit(scope, text, false)
    }

    pub(super) fn label(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        pairs: &[Pair],
    ) -> Result<(), Error> {
        let mut text = "LABEL".to_owned();
        for (key, value) in self.pairs(scope, instruction, pairs)? {
            text.push_str(&format!(" {key}={value}"));
            self.image.config.labels.insert(key, value);
        }
        self.commit(scope, text, false)
    }

    pub(super) fn arg(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        args: &[Arg],
    ) -> Result<(), Error> {
        let mut texts = Vec::with_capacity(args.len());
        for arg in args {
            check_secret(scope, instruction, "ARG", &arg.name);
            let value = match (scope.args.build_args.get(&arg.name), &arg.value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(scope, instruction, default)?),
                (None, None) => scope.args.env.get(&arg.name).map(str::to_owned),
            };
            let mut text = arg.name.clone();
            if let Some(value) = &value {
                if !is_scan_arg(&arg.name) {
                    self.env.set(&arg.name, value);
                }
                text.push_str(&format!("={value}"));
            }
            texts.push(text);
            // One without a value of its own is the global one of its name.
            let is_global = arg.value.is_none()
                && !scope.args.build_args.contains_key(&arg.name)
                && scope.args.env.get(&arg.name).is_some();
            if !is_global {
                let outlined = Argument {
                    name: arg.name.clone(),
                    description: description(&instruction.comments, &arg.name).to_owned(),
                    value: value.clone().unwrap_or_default(),
                    ranges: instruction.ranges.clone(),
                    ..Argument::default()
                };
                self.capture.args.insert(arg.name.clone(), outlined);
            }
            self.capture.used.insert(arg.name.clone());
            self.build_args.push(Arg {
                name: arg.name.clone(),
                value,
            });
        }
        self.commit(scope, format!("ARG {}", texts.join(" ")), false)
    }

    /// The words of a command, in shell form behind the shell; the shell form is reported where it matters.
    fn words(&self, scope: &Scope<'_>, instruction: &Instruction, command: &CommandLine) -> Vec<String> {
        if !command.is_shell {
            return command.args.clone();
        }
        if self.image.config.shell.is_empty() {
            let text = format!(
                "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                instruction.keyword
            );
            scope
                .lint
                .report(Rule::JSONArgsRecommended, &instruction.ranges, &text);
        }
        self.with_shell(&command.args)
    }

    /// A text behind the stage's shell.
    pub(super) fn with_shell(&self, args: &[String]) -> Vec<String> {
        let shell = &self.image.config.shell;
        let mut words: Vec<String> = match (shell.is_empty(), self.image.os.as_str()) {
            (false, _) => shell.clone(),
            (true, "windows") => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
            (true, _) => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
        };
        words.push(args.join(" "));
        words
    }

    pub(super) fn cmd(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        command: &CommandLine,
    ) -> Result<(), Error> {
        let earlier = self.seen.cmd.replace(instruction.ranges.clone());
        report_earlier(scope, instruction, earlier);
        let words = self.words(scope, instruction, command);
        let text = format!("CMD {}", format::quoted(&words));
        self.image.config.cmd = words;
        self.image.config.args_escaped = true;
        self.commit(scope, text, false)
    }

    pub(super) fn entrypoint(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        command: &CommandLine,
    ) -> Result<(), Error> {
        let earlier = self.seen.entrypoint.replace(instruction.ranges.clone());
        report_earlier(scope, instruction, earlier);
        let words = self.words(scope, instruction, command);
        let text = format!("ENTRYPOINT {}", format::quoted(&words));
        self.image.config.entrypoint = words;
        // A CMD of the base image belongs to its own entry point.
        if self.seen.cmd.is_none() {
            self.image.config.cmd.clear();
        }
        self.commit(scope, text, false)
    }

    pub(super) fn healthcheck(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        check: &Healthcheck,
    ) -> Result<(), Error> {
        let earlier = self.seen.healthcheck.replace(instruction.ranges.clone());
        report_earlier(scope, instruction, earlier);
        let text = format!(
            "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            format::plain(&check.test),
            format::duration(check.interval),
            format::duration(check.timeout),
            format::duration(check.start_period),
            format::duration(check.start_interval),
            check.retries,
        );
        self.image.config.healthcheck = Some(check.clone());
        self.commit(scope, text, false)
    }

    pub(super) fn expose(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        words: &[String],
    ) -> Result<(), Error> {
        let mut exposed = Vec::new();
        for word in words {
            let lookup = |name: &str| self.env.get(name).map(str::to_owned);
            for word in scope.lex().expand(word, &lookup).map_err(Error::invalid)?.words {
                let ports = ports::parse(&word).map_err(Error::invalid)?;
                if ports.has_upper_case {
                    let text = format!("Defined protocol '{word}' in EXPOSE instruction should be lowercase");
                    scope
                        .lint
                        .report(Rule::ExposeProtoCasing, &instruction.ranges, &text);
                }
                if ports.has_host {
                    let text = format!(
                        "EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
                    );
                    scope
                        .lint
                        .report(Rule::ExposeInvalidFormat, &instruction.ranges, &text);
                }
                exposed.extend(ports.exposed);
            }
        }
        for port in &exposed {
            self.image
                .config
                .exposed_ports
                .insert(port.clone(), Default::default());
        }
        self.commit(scope, format!("EXPOSE {}", format::plain(&exposed)), false)
    }

    pub(super) fn volume(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        words: &[String],
    ) -> Result<(), Error> {
        let volumes = self.expand_all(scope, instruction, words)?;
        if volumes.iter().any(String::is_empty) {
            return Err(Error::invalid("VOLUME cannot be an empty path"));
        }
        for volume in &volumes {
            self.image
                .config
                .volumes
                .insert(volume.clone(), Default::default());
        }
        self.commit(scope, format!("VOLUME {}", format::plain(&volumes)), false)
    }

    pub(super) fn user(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        user: &str,
    ) -> Result<(), Error> {
        let user = self.expand(scope, instruction, user)?;
        self.user.clone_from(&user);
        self.image.config.user.clone_from(&user);
        self.commit(scope, format!("USER {user}"), false)
    }

    pub(super) fn stop_signal(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        signal: &str,
    ) -> Result<(), Error> {
        let signal = self.expand(scope, instruction, signal)?;
        if !signal::is_known(&signal) {
            return Err(Error::invalid(format!("invalid signal: {signal}")));
        }
        self.image.config.stop_signal.clone_from(&signal);
        self.commit(scope, format!("STOPSIGNAL {signal}"), false)
    }

    pub(super) fn shell(&mut self, scope: &mut Scope<'_>, shell: &[String]) -> Result<(), Error> {
        self.image.config.shell = shell.to_vec();
        self.commit(scope, format!("SHELL {}", format::plain(shell)), false)
    }

    pub(super) fn maintainer(&mut self, scope: &mut Scope<'_>, author: &str) -> Result<(), Error> {
        author.clone_into(&mut self.image.author);
        self.commit(scope, format!("MAINTAINER {author}"), false)
    }
}

/// Reports the earlier one of two instructions of which only the last counts.
fn report_earlier(scope: &Scope<'_>, instruction: &Instruction, earlier: Option<Vec<llb::Range>>) {
    if let Some(ranges) = earlier {
        let text = format!(
            "Multiple {} instructions should not be used in the same stage because only the last one will be used",
            instruction.keyword
        );
        scope
            .lint
            .report(Rule::MultipleInstructionsDisallowed, &ranges, &text);
    }
}

/// Words in a name that say the value is secret.
const SECRET: [&str; 10] = [
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];
/// Words in a name that say it is not, after all.
const NOT_SECRET: [&str; 3] = ["public", "file", "version"];

fn check_secret(scope: &Scope<'_>, instruction: &Instruction, keyword: &str, name: &str) {
    let lower = name.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|part| words.contains(&part));
    if has(&SECRET) && !has(&NOT_SECRET) {
        let text = format!(
            "Do not use ARG or ENV instructions for sensitive data ({keyword} {})",
            format::quote(name)
        );
        scope
            .lint
            .report(Rule::SecretsUsedInArgOrEnv, &instruction.ranges, &text);
    }
}
