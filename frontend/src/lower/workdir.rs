//! WORKDIR: a folder, made as the current user.

use llb::op::MkdirAction;
use llb::state::{ActionSpec, Constraints, FileSpec};

use crate::error::Error;
use crate::lint::Rule;
use crate::lower::copy::owner;
use crate::lower::stage::{Scope, Stage};
use crate::lower::{format, names, path};
use crate::parse::ast::Instruction;

impl Stage {
    /// Goes to a folder, in the graph and in the config; relative to the one before.
    pub(super) fn set_dir(&mut self, dir: &str) {
        let dir = path::normalize(&self.image.config.working_dir, dir, false);
        self.image.config.working_dir.clone_from(&dir);
        self.dir = dir;
    }

    pub(super) fn workdir(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        dir: &str,
    ) -> Result<(), Error> {
        let dir = self.expand(scope, instruction, dir)?;
        if !self.is_workdir_set && !dir.starts_with('/') {
            let text = format!(
                "Relative workdir {} can have unexpected results if the base image changes",
                format::quote(&dir)
            );
            scope
                .lint
                .report(Rule::WorkdirRelativePath, &instruction.ranges, &text);
        }
        self.is_workdir_set = true;
        self.set_dir(&dir);
        let dir = self.dir.clone();
        let has_layer = dir != "/";
        if has_layer {
            let platform = self.own_platform(scope);
            let lookup = |name: &str| self.env.get(name).map(str::to_owned);
            let shown = scope
                .lex()
                .expand(&instruction.code, &lookup)
                .map(|found| found.text);
            let text = names::upper_keyword(&shown.unwrap_or_else(|_| instruction.code.clone()));
            let action = MkdirAction {
                path: path::action(&dir, false),
                mode: 0o755,
                make_parents: true,
                timestamp: scope
                    .args
                    .epoch
                    .map_or(-1, |epoch| epoch.saturating_mul(1_000_000_000)),
                ..MkdirAction::default()
            };
            let user = &self.image.config.user;
            let owner = if user.is_empty() { None } else { Some(owner(user)?) };
            let constraints = Constraints::default()
                .named(self.next_name(scope, Some(&platform), &text))
                .located(scope.location(instruction));
            let actions = vec![ActionSpec::Mkdir { action, owner }];
            self.state = FileSpec {
                base: self.state.clone(),
                actions,
            }
            .state(constraints);
        }
        self.commit(scope, format!("WORKDIR {dir}"), has_layer)
    }
}
