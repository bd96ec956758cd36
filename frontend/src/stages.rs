//! Who builds on whom: stages, the images and contexts they name, and which of them the target needs.
//!
//! ```text
//! Dockerfile, build arguments, Known ─▶ nodes ─▶ target ─▶ edges ─▶ reachable ─▶ bases, ONBUILD ─▶ Plan
//!                                                                                   └─▶ Questions
//! ```
//!
//! 1. Each FROM becomes a node; a named context of the same name takes its place.
//! 2. COPY --from and RUN --mount=from name other nodes; an image or context named there becomes a node
//!    of its own, behind the stages.
//! 3. From the target, everything reachable is resolved; the rest is only checked for spelling.
//! 4. ONBUILD triggers of what a stage is built on are put before its own instructions; they may name
//!    further nodes, then 3 is done again.
//!
//! Nothing is asked here: what is not known becomes a [`Question`], and planning starts again with the answer.

mod args;
mod base;
mod epoch; // SOURCE_DATE_EPOCH

use std::collections::BTreeSet;

use llb::Range;
use llb::state::{SourceMap, State};
use oci::{ImageConfig, Platform};
use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::lint::{Lint, Rule};
use crate::lower::format::quote;
use crate::metadata::{Known, Question};
use crate::named::{self, Loaded, Named};
use crate::options::Options;
use crate::parse::ast::{Dockerfile, Instruction, Kind, Stage};
use crate::parse::parse_trigger;
use crate::suggest;
use crate::words::{Lex, NOTHING};

pub(crate) use args::GlobalArgs;

/// The name that means an empty file system.
pub(crate) const SCRATCH: &str = "scratch";

/// What is known before planning.
pub(crate) struct Given<'a> {
    pub(crate) dockerfile: &'a Dockerfile,
    pub(crate) options: &'a Options,
    /// The platform that was asked for.
    pub(crate) platform: Option<&'a Platform>,
    pub(crate) known: &'a Known,
    pub(crate) lint: &'a Lint,
    pub(crate) map: &'a Arc<SourceMap>,
    /// A remote build context.
    pub(crate) remote: Option<&'a State>,
    /// Whether all stages are wanted, not only those the target needs.
    pub(crate) is_whole: bool,
}

impl Given<'_> {
    /// What is built for.
    pub(crate) fn target_platform(&self) -> &Platform {
        self.platform.unwrap_or(&self.options.build_platform)
    }
}

/// The stages of one build, in the order in which they are lowered.
pub(crate) struct Plan {
    pub(crate) nodes: Vec<Node>,
    pub(crate) target: usize,
    pub(crate) reachable: BTreeSet<usize>,
    pub(crate) args: GlobalArgs,
}

/// A stage, or an image or context that is used like one.
#[derive(Default)]
pub(crate) struct Node {
    pub(crate) stage: Stage,
    /// Shown in names of steps; empty when there is only one.
    pub(crate) name: String,
    /// From `--platform`.
    pub(crate) platform: Option<Platform>,
    /// The stage it is built on.
    pub(crate) parent: Option<usize>,
    pub(crate) commands: Vec<Command>,
    pub(crate) ignore_cache: bool,
    /// Steps that are counted in names; 0 means none are named.
    pub(crate) total: usize,
    /// Whether it stands for an image or context only.
    pub(crate) is_pseudo: bool,
    named: Option<Named>,
    /// The nodes it takes from.
    pub(crate) uses: BTreeSet<usize>,
    /// Arguments that FROM is made of.
    pub(crate) used_args: BTreeSet<String>,
    pub(crate) root: Option<Root>,
    has_parent_triggers: bool,
}

/// What a stage without parent begins with.
pub(crate) struct Root {
    pub(crate) loaded: Loaded,
    pub(crate) platform: Option<Platform>,
    pub(crate) image: ImageConfig,
    pub(crate) base_image: Option<ImageConfig>,
    /// Whether the stage is only that: a named context in its place, or a pseudo stage.
    pub(crate) is_final: bool,
    /// Whether FROM was a step with a number.
    pub(crate) is_step: bool,
}

/// An instruction and the nodes it takes from: one for COPY --from, one for each mount of RUN.
pub(crate) struct Command {
    pub(crate) instruction: Instruction,
    pub(crate) sources: Vec<usize>,
    pub(crate) is_onbuild: bool,
}

/// Plans a build; `Err` of the inner result are the questions to answer first.
pub(crate) fn plan(given: &Given<'_>) -> Result<Result<Plan, Vec<Question>>, Error> {
    check_names(given);
    let mut questions = Vec::new();
    let args = args::global(given, &mut questions)?;
    let mut planner = Planner {
        given,
        args,
        nodes: Vec::new(),
        questions,
    };
    planner.stages()?;
    let target = planner.target()?;
    planner.edges()?;
    planner.check_cycles()?;
    if let [only] = planner.nodes.as_mut_slice() {
        only.name.clear();
    }
    let reachable = planner.resolve(target)?;
    if !planner.questions.is_empty() {
        return Ok(Err(planner.questions));
    }
    Ok(Ok(Plan {
        nodes: planner.nodes,
        target,
        reachable,
        args: planner.args,
    }))
}

struct Planner<'a> {
    given: &'a Given<'a>,
    args: GlobalArgs,
    nodes: Vec<Node>,
    questions: Vec<Question>,
}

impl Planner<'_> {
    fn lex(&self) -> Lex {
        Lex::new(self.given.dockerfile.escape)
    }

    fn stages(&mut self) -> Result<(), Error> {
        for (number, stage) in self.given.dockerfile.stages.iter().enumerate() {
            let node = self
                .stage(number, stage)
                .map_err(|error| error.at(&stage.ranges))?;
            self.nodes.push(node);
        }
        Ok(())
    }

    fn stage(&self, number: usize, stage: &Stage) -> Result<Node, Error> {
        let lint = self.given.lint.for_comments(&stage.comments);
        let base = self.args.expand(self.lex(), &stage.base)?;
        self.args.report_undefined(&base, &stage.ranges, &lint);
        if base.text.is_empty() {
            return Err(Error::invalid(format!(
                "base name ({}) should not be blank",
                stage.base
            )));
        }
        let mut node = Node {
            stage: stage.clone(),
            name: stage.name.clone(),
            ..Node::default()
        };
        node.stage.base = base.text;
        node.used_args.extend(base.matched);
        if !stage.platform.is_empty() {
            let (platform, used) = self.args.platform(self.lex(), stage, &lint)?;
            node.platform = Some(platform);
            node.used_args.extend(used);
        }
        if !stage.name.is_empty() {
            let platform = node.platform.as_ref().unwrap_or(self.given.target_platform());
            if let Some(named) = named::find(self.given.options, &stage.name, platform)? {
                node.named = Some(named);
                return Ok(node);
            }
        }
        node.parent = self.named_stage_exactly(&node.stage.base);
        if stage.name.is_empty() {
            node.name = format!("stage-{number}");
        }
        let is_step = |kind: &Kind| {
            matches!(
                kind,
                Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_)
            )
        };
        let steps = stage
            .instructions
            .iter()
            .filter(|instruction| is_step(&instruction.kind))
            .count();
        node.total = steps + usize::from(node.stage.base != SCRATCH && node.parent.is_none());
        node.ignore_cache = self.given.options.no_cache.covers(&stage.name);
        Ok(node)
    }

    /// The last stage of that name so far; FROM minds the case.
    fn named_stage_exactly(&self, name: &str) -> Option<usize> {
        self.nodes
            .iter()
            .rposition(|node| !node.is_pseudo && !node.stage.name.is_empty() && node.stage.name == name)
    }

    /// The last stage of that name, whatever the case.
    fn named_stage(&self, name: &str) -> Option<usize> {
        self.named_stage_exactly(&name.to_lowercase())
    }

    fn target(&self) -> Result<usize, Error> {
        let Some(target) = &self.given.options.target else {
            return Ok(self.nodes.len() - 1);
        };
        self.named_stage(target).ok_or_else(|| {
            let hint = suggest::hint(target, self.nodes.iter().map(|node| node.name.as_str()));
            Error::from(ErrorKind::UnknownTarget {
                target: target.clone(),
            })
            .hinting(hint)
        })
    }

    fn edges(&mut self) -> Result<(), Error> {
        for at in 0..self.nodes.len() {
            for instruction in self.nodes[at].stage.instructions.clone() {
                let ranges = instruction.ranges.clone();
                let command = self
                    .command(at, instruction, false)
                    .map_err(|error| error.at(&ranges))?;
                self.nodes[at].commands.push(command);
            }
        }
        Ok(())
    }

    /// Finds the nodes an instruction takes from, and makes those that are no stages.
    fn command(&mut self, at: usize, instruction: Instruction, is_onbuild: bool) -> Result<Command, Error> {
        let mut sources = Vec::new();
        match &instruction.kind {
            Kind::Copy(copy) if !copy.from.is_empty() => {
                let ranges = instruction.ranges.clone();
                sources.push(self.copy_source(&copy.from, &ranges)?);
            }
            Kind::Run(run) => {
                for from in &run.mounts_from {
                    let name = if from.is_empty() { SCRATCH } else { from.as_str() };
                    let source = self.named_stage(name);
                    sources.push(source.unwrap_or_else(|| self.pseudo(name, &[])));
                }
            }
            _ => {}
        }
        self.nodes[at].uses.extend(&sources);
        Ok(Command {
            instruction,
            sources,
            is_onbuild,
        })
    }

    fn copy_source(&mut self, from: &str, ranges: &[Range]) -> Result<usize, Error> {
        if self.lex().expand(from, NOTHING).map_err(Error::invalid)?.text != from {
            return Err(Error::invalid(
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global \
                 scope as a workaround",
            ));
        }
        match from.parse::<i64>() {
            Ok(number) => match usize::try_from(number) {
                Ok(number) if number < self.nodes.len() => Ok(number),
                _ => Err(Error::invalid(format!("invalid stage index {number}"))),
            },
            Err(_) => Ok(self
                .named_stage(from)
                .unwrap_or_else(|| self.pseudo(from, ranges))),
        }
    }

    /// A node for an image or context that is no stage.
    fn pseudo(&mut self, base: &str, ranges: &[Range]) -> usize {
        let stage = Stage {
            base: base.to_owned(),
            ranges: ranges.to_vec(),
            ..Stage::default()
        };
        self.nodes.push(Node {
            stage,
            is_pseudo: true,
            ..Node::default()
        });
        self.nodes.len() - 1
    }

    fn check_cycles(&self) -> Result<(), Error> {
        let mut graph = petgraph::graph::DiGraph::<usize, ()>::new();
        let indices: Vec<_> = (0..self.nodes.len()).map(|at| graph.add_node(at)).collect();
        for (at, node) in self.nodes.iter().enumerate() {
            for source in node.uses.iter().chain(&node.parent) {
                graph.add_edge(indices[*source], indices[at], ());
            }
        }
        let Some(cycle) = petgraph::algo::kosaraju_scc(&graph)
            .into_iter()
            .find(|group| group.len() > 1)
        else {
            return Ok(());
        };
        let mut members: Vec<usize> = cycle.iter().map(|index| graph[*index]).collect();
        members.sort_unstable();
        let first = &self.nodes[members[0]].name;
        let commands = members.iter().flat_map(|at| &self.nodes[*at].commands);
        let inside = commands.filter(|command| command.sources.iter().any(|source| members.contains(source)));
        let ranges: Vec<Range> = inside
            .flat_map(|command| command.instruction.ranges.clone())
            .collect();
        Err(Error::invalid(format!("circular dependency detected on stage: {first}")).at(&ranges))
    }

    fn reachable(&self, target: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::from([target]);
        let mut open = vec![target];
        while let Some(at) = open.pop() {
            let node = &self.nodes[at];
            open.extend(
                node.uses
                    .iter()
                    .chain(&node.parent)
                    .copied()
                    .filter(|next| found.insert(*next)),
            );
        }
        found
    }

    /// Resolves what the target needs, until no trigger adds anything.
    fn resolve(&mut self, target: usize) -> Result<BTreeSet<usize>, Error> {
        loop {
            let reachable = match self.given.is_whole {
                true => (0..self.nodes.len()).collect(),
                false => self.reachable(target),
            };
            for at in 0..self.nodes.len() {
                if self.nodes[at].parent.is_none() && self.nodes[at].root.is_none() {
                    let ranges = self.nodes[at].stage.ranges.clone();
                    self.root(at, reachable.contains(&at))
                        .map_err(|error| error.at(&ranges))?;
                }
            }
            let mut is_done = true;
            for at in &reachable {
                let ranges = self.nodes[*at].stage.ranges.clone();
                is_done &= !self.triggers(*at).map_err(|error| error.at(&ranges))?;
            }
            if is_done {
                return Ok(reachable);
            }
        }
    }

    /// Puts the ONBUILD triggers of what a stage is built on before its instructions; says whether they
    /// name further nodes.
    fn triggers(&mut self, at: usize) -> Result<bool, Error> {
        let mut texts = Vec::new();
        if let Some(root) = &mut self.nodes[at].root
            && !root.is_final
        {
            texts.append(&mut root.image.config.on_build);
        }
        if let Some(parent) = self.nodes[at].parent
            && !self.nodes[at].has_parent_triggers
        {
            let instructions = self.nodes[parent]
                .commands
                .iter()
                .map(|command| &command.instruction.kind);
            texts.extend(instructions.filter_map(|kind| match kind {
                Kind::OnBuild(trigger) => Some(trigger.clone()),
                _ => None,
            }));
            self.nodes[at].has_parent_triggers = true;
        }
        let mut commands = Vec::with_capacity(texts.len());
        for text in &texts {
            let instruction = parse_trigger(text, &self.nodes[at].stage, &Lint::silent())?;
            commands.push(self.command(at, instruction, true)?);
        }
        let names_others = commands.iter().any(|command| !command.sources.is_empty());
        let node = &mut self.nodes[at];
        node.total += commands.len();
        commands.append(&mut node.commands);
        node.commands = commands;
        Ok(names_others)
    }
}

fn check_names(given: &Given<'_>) {
    let stages = &given.dockerfile.stages;
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for stage in stages.iter().filter(|stage| !stage.name.is_empty()) {
        if matches!(stage.name.as_str(), "scratch" | "context") {
            let text = format!(
                "Stage name should not use the same name as reserved stage {}",
                quote(&stage.name)
            );
            given.lint.report(Rule::ReservedStageName, &stage.ranges, &text);
        }
        if !names.insert(&stage.name) {
            let text = format!(
                "Duplicate stage name {}, stage names should be unique",
                quote(&stage.name)
            );
            given.lint.report(Rule::DuplicateStageName, &stage.ranges, &text);
        }
    }
    let keywords = || {
        stages.iter().flat_map(|stage| {
            let instructions = stage.instructions.iter().map(|i| (i.keyword.as_str(), &i.ranges));
            std::iter::once((stage.keyword.as_str(), &stage.ranges)).chain(instructions)
        })
    };
    let count = |is: fn(&str) -> String| keywords().filter(|(keyword, _)| is(keyword) == *keyword).count();
    let is_lower = count(|keyword| keyword.to_lowercase()) > count(|keyword| keyword.to_uppercase());
    for (keyword, ranges) in keywords() {
        let (wanted, case) = if is_lower {
            (keyword.to_lowercase(), "lowercase")
        } else {
            (keyword.to_uppercase(), "uppercase")
        };
        if keyword != wanted {
            let text = format!("Command '{keyword}' should match the case of the command majority ({case})");
            given
                .lint
                .report(Rule::ConsistentInstructionCasing, ranges, &text);
        }
    }
}
