//! One stage while it is lowered: what its file system, variables and config have become so far.

use llb::state::{SourceLocation, State};
use oci::{History, ImageConfig, Platform};
use tree::PatternSet;

use crate::error::Error;
use crate::lint::{Lint, Rule};
use crate::lower::env::{self, Env};
use crate::lower::outline::Capture;
use crate::lower::{Budget, DEFAULT_PATH, HISTORY_COMMENT, Paths, format, names};
use crate::named::PendingLocal;
use crate::parse::ast::{Arg, Instruction, Kind};
use crate::stages::{Command, Given, GlobalArgs, Node, Root};
use crate::suggest;
use crate::words::{Expansion, Lex};

/// A stage's state.
pub(crate) struct Stage {
    pub(crate) state: State,
    pub(crate) env: Env,
    /// Where the variables of the image's config stand.
    pub(super) env_places: env::Places,
    /// Where RUN begins; empty before any WORKDIR.
    pub(crate) dir: String,
    pub(crate) user: String,
    /// What the file system is for, as far as it was said.
    pub(crate) state_platform: Option<Platform>,
    /// What the stage is built for.
    pub(crate) platform: Option<Platform>,
    pub(crate) image: ImageConfig,
    pub(crate) base_image: Option<ImageConfig>,
    /// Whether no instruction is lowered: an image or context that stands for itself.
    pub(crate) is_final: bool,
    /// Whose paths are counted when something is copied from here.
    pub(crate) paths_of: usize,
    pub(crate) local: Option<PendingLocal>,
    /// Every ARG so far, as the history shows them.
    pub(super) build_args: Vec<Arg>,
    pub(super) is_workdir_set: bool,
    /// Steps so far.
    pub(super) index: usize,
    pub(super) seen: Seen,
    /// What it uses itself.
    pub(super) capture: Capture,
}

/// Instructions of which only the last one counts, and their lines.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) cmd: Option<Vec<llb::Range>>,
    pub(super) entrypoint: Option<Vec<llb::Range>>,
    pub(super) healthcheck: Option<Vec<llb::Range>>,
}

/// What the instructions of a stage may look at.
pub(crate) struct Scope<'a> {
    pub(crate) given: &'a Given<'a>,
    pub(crate) args: &'a GlobalArgs,
    pub(crate) node: &'a Node,
    pub(crate) stages: &'a [Option<Stage>],
    pub(crate) done: &'a [bool],
    pub(crate) names: &'a [Node],
    pub(crate) context: &'a State,
    pub(crate) ignore: Option<&'a PatternSet>,
    pub(crate) lint: Lint,
    pub(crate) context_paths: &'a mut Paths,
    pub(crate) paths: &'a mut [Paths],
    pub(crate) is_onbuild: bool,
    pub(crate) budget: &'a mut Budget,
}

impl<'a> Scope<'a> {
    pub(super) fn lex(&self) -> Lex {
        Lex::new(self.given.dockerfile.escape)
    }

    pub(super) fn location(&self, instruction: &Instruction) -> Option<SourceLocation> {
        Some(SourceLocation {
            map: self.given.map.clone(),
            ranges: instruction.ranges.clone(),
        })
    }

    /// What an instruction takes from.
    pub(super) fn source(&self, at: usize) -> Result<&'a Stage, Error> {
        self.stages[at].as_ref().filter(|_| self.done[at]).ok_or_else(|| {
            let (wanted, own) = (&self.names[at], self.node);
            let wanted = if wanted.name.is_empty() {
                &wanted.stage.base
            } else {
                &wanted.name
            };
            Error::invalid(format!(
                "cannot copy from stage {}, it needs to be defined before current stage {}",
                format::quote(wanted),
                format::quote(&own.name)
            ))
        })
    }
}

impl Stage {
    /// A stage that begins with an image, a context or nothing.
    pub(crate) fn of_root(at: usize, root: Root) -> Self {
        Self {
            state: root.loaded.state,
            env: root.loaded.env,
            env_places: env::Places::default(),
            dir: root.loaded.dir,
            user: String::new(),
            state_platform: root.loaded.platform,
            platform: root.platform,
            image: root.image,
            base_image: root.base_image,
            is_final: root.is_final,
            paths_of: at,
            local: root.loaded.local,
            build_args: Vec::new(),
            is_workdir_set: false,
            index: usize::from(root.is_step),
            seen: Seen::default(),
            capture: Capture::default(),
        }
    }

    /// A stage that is built on another.
    pub(crate) fn of_parent(parent: &Self) -> Self {
        let mut image = parent.image.clone();
        image.config.on_build.clear();
        Self {
            state: parent.state.clone(),
            env: parent.env.clone(),
            env_places: parent.env_places.clone(),
            dir: parent.dir.clone(),
            user: parent.user.clone(),
            state_platform: parent.state_platform.clone(),
            platform: parent.platform.clone(),
            image,
            base_image: parent.base_image.clone(),
            is_final: false,
            paths_of: parent.paths_of,
            local: None,
            build_args: parent.build_args.clone(),
            is_workdir_set: parent.is_workdir_set,
            index: 0,
            seen: Seen::default(),
            capture: Capture::default(),
        }
    }

    /// Takes over what the image's config says.
    pub(crate) fn begin(&mut self, scope: &mut Scope<'_>) -> Result<(), Error> {
        self.capture.globals = scope.args.outlined.clone();
        self.capture.used.clone_from(&scope.node.used_args);
        let platform = self
            .platform
            .get_or_insert_with(|| scope.given.target_platform().clone());
        let has_path = self
            .image
            .config
            .env
            .iter()
            .any(|line| env::split(line).0 == "PATH");
        if !has_path && platform.os != "windows" {
            self.image.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for line in &self.image.config.env {
            let (name, value) = env::split(line);
            self.env.set(name, value);
        }
        if !self.image.config.working_dir.is_empty() {
            let dir = self.image.config.working_dir.clone();
            self.set_dir(&dir);
        }
        if !self.image.config.user.is_empty() {
            self.user.clone_from(&self.image.config.user);
        }
        Ok(())
    }

    /// Lowers one instruction.
    pub(crate) fn instruction(&mut self, scope: &mut Scope<'_>, command: &Command) -> Result<(), Error> {
        let instruction = &command.instruction;
        scope.is_onbuild = command.is_onbuild;
        let file_lint = scope.lint.clone();
        scope.lint = file_lint.for_comments(&instruction.comments);
        let done = match &instruction.kind {
            Kind::Add(add) => self.add(scope, instruction, add),
            Kind::Arg(args) => self.arg(scope, instruction, args),
            Kind::Cmd(cmd) => self.cmd(scope, instruction, cmd),
            Kind::Copy(copy) => self.copy(scope, instruction, copy, &command.sources),
            Kind::Entrypoint(entrypoint) => self.entrypoint(scope, instruction, entrypoint),
            Kind::Env(pairs) => self.env(scope, instruction, pairs),
            Kind::Expose(ports) => self.expose(scope, instruction, ports),
            Kind::Healthcheck(check) => self.healthcheck(scope, instruction, check),
            Kind::Label(pairs) => self.label(scope, instruction, pairs),
            Kind::Maintainer(author) => self.maintainer(scope, author),
            Kind::OnBuild(trigger) => {
                self.image.config.on_build.push(trigger.clone());
                Ok(())
            }
            Kind::Run(run) => self.run(scope, instruction, run, &command.sources),
            Kind::Shell(shell) => self.shell(scope, shell),
            Kind::StopSignal(signal) => self.stop_signal(scope, instruction, signal),
            Kind::User(user) => self.user(scope, instruction, user),
            Kind::Volume(volumes) => self.volume(scope, instruction, volumes),
            Kind::Workdir(dir) => self.workdir(scope, instruction, dir),
        };
        scope.lint = file_lint;
        done
    }

    /// Expands a word with the stage's variables.
    pub(super) fn expand(
        &self,
        scope: &Scope<'_>,
        instruction: &Instruction,
        word: &str,
    ) -> Result<String, Error> {
        self.expand_by(scope.lex(), scope, instruction, word)
            .map(|found| found.text)
    }

    pub(super) fn expand_by(
        &self,
        lex: Lex,
        scope: &Scope<'_>,
        instruction: &Instruction,
        word: &str,
    ) -> Result<Expansion, Error> {
        let found = lex
            .expand(word, &|name| self.env.get(name).map(str::to_owned))
            .map_err(Error::invalid)?;
        for name in &found.unmatched {
            let is_declared = self.build_args.iter().any(|arg| arg.name == *name);
            if !is_declared && !is_scan_arg(name) {
                let hint = suggest::nearest(name, self.env.names());
                let hint = hint.map_or_else(String::new, |near| format!(" (did you mean ${near}?)"));
                let text = format!("Usage of undefined variable '${name}'{hint}");
                scope.lint.report(Rule::UndefinedVar, &instruction.ranges, &text);
            }
        }
        Ok(found)
    }

    /// Expands each word of a list.
    pub(super) fn expand_all(
        &self,
        scope: &Scope<'_>,
        instruction: &Instruction,
        words: &[String],
    ) -> Result<Vec<String>, Error> {
        words
            .iter()
            .map(|word| self.expand(scope, instruction, word))
            .collect()
    }

    /// What the stage is built for.
    pub(super) fn own_platform(&self, scope: &Scope<'_>) -> Platform {
        self.platform
            .clone()
            .unwrap_or_else(|| scope.given.target_platform().clone())
    }

    /// The name of the next step; it takes the next number.
    pub(super) fn next_name(&mut self, scope: &Scope<'_>, platform: Option<&Platform>, text: &str) -> String {
        self.index += usize::from(scope.node.total > 0);
        self.name(scope, platform, text)
    }

    /// The name of the same step once more.
    pub(super) fn name(&self, scope: &Scope<'_>, platform: Option<&Platform>, text: &str) -> String {
        let platform = platform.filter(|_| scope.given.options.is_multi_platform());
        let place = names::Place {
            shown: platform.map(|platform| names::platform(platform, &self.env)),
            name: &scope.node.name,
            index: self.index,
            total: scope.node.total,
            is_onbuild: scope.is_onbuild,
        };
        names::prefixed(&place, text)
    }

    /// Adds a line to the image's history.
    pub(super) fn commit(
        &mut self,
        scope: &mut Scope<'_>,
        text: String,
        has_layer: bool,
    ) -> Result<(), Error> {
        scope.budget.take(text.len())?;
        self.image.history.push(History {
            created: scope.args.epoch.and_then(rfc3339),
            created_by: text,
            comment: HISTORY_COMMENT.to_owned(),
            empty_layer: !has_layer,
            ..History::default()
        });
        Ok(())
    }
}

/// Whether a scan looks at the build context.
pub(super) const SCAN_CONTEXT: &str = "BUILDKIT_SBOM_SCAN_CONTEXT";
/// Whether it looks at a stage that is not the target.
pub(super) const SCAN_STAGE: &str = "BUILDKIT_SBOM_SCAN_STAGE";

/// Arguments that steer the SBOM scan and are no variables.
pub(super) fn is_scan_arg(name: &str) -> bool {
    matches!(name, SCAN_CONTEXT | SCAN_STAGE)
}

/// Seconds since 1970 as `2023-11-14T22:13:20Z`; none for years that have more than four digits.
fn rfc3339(seconds: i64) -> Option<String> {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date: years begin in March here, so that the leap day is the last one.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    (0..=9999).contains(&year).then(|| {
        format!(
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z",
            second % 60
        )
    })
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds).as_deref(), Some(expected));
        }
        assert_eq!(rfc3339(i64::MAX / 4), None);
    }
}
