//! Stages to LLB and image configs.
//!
//! ```text
//! Plan ─▶ stage after stage: instruction ─▶ expand words ─▶ state, config, history ─▶ the target's
//! ```
//!
//! * `stage` begins a stage, hands each instruction to its file, and expands words.
//! * `run`, `run_mount`, `copy`, `workdir` add to the graph; `config` changes only the image's config.
//! * The build context is promised while stages are lowered and kept at the end, when it is known which of
//!   its paths are used; so are local named contexts.
//!
//! Digests of vertices equal BuildKit's for the same Dockerfile: `tests/equal.rs` compares them.

pub(crate) mod env;
pub(crate) mod path;
pub(crate) mod format;
pub(crate) mod names;
pub(crate) mod outline;
mod ports;
mod signal;
mod stage;
mod run;
mod run_mount;
mod copy;
mod mode;
mod workdir;
mod config;
mod scan; // what an SBOM is made of beside the target

use std::collections::BTreeSet;

use llb::Definition;
use llb::state::{State, marshal};
use oci::{ImageConfig, Platform};
use tree::PatternSet;

use crate::context::{self, Entry};
use crate::error::Error;
use crate::lint::Rule;
use crate::requests::description;
use crate::stages::{Given, Plan};
use outline::Outline;
use stage::{Scope, Stage};

/// Where programs are looked for when an image does not say.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// The target, lowered.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub(crate) definition: Definition,
    pub(crate) image: ImageConfig,
    pub(crate) base_image: Option<ImageConfig>,
    pub(crate) epoch: Option<i64>,
    pub(crate) outline: Outline,
    /// What a scan looks at beside it, by name.
    pub(crate) scans: Vec<(String, Definition)>,
}

/// How many bytes histories, arguments and environments may have together. Each RUN holds a copy of the
/// whole environment, so a small file could ask for any amount of memory.
const MAX_BYTES: usize = 128 << 20;

/// What is left of [`MAX_BYTES`].
#[derive(Debug)]
pub(crate) struct Budget(usize);

impl Budget {
    /// Takes bytes, or fails.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), Error> {
        self.0 = self.0.checked_sub(bytes).ok_or_else(|| {
            Error::invalid(format!(
                "steps, environments and history have more than {MAX_BYTES} bytes together"
            ))
        })?;
        Ok(())
    }
}

/// Paths that are used of a file system; empty means none.
pub(crate) type Paths = BTreeSet<String>;

/// Lowers what the target needs.
pub(crate) fn lower(given: &Given<'_>, entry: &Entry, mut plan: Plan) -> Result<Lowered, Error> {
    let (context, promise) = State::promised();
    let ignore = ignore_patterns(entry)?;
    let mut context_paths = Paths::new();
    let mut paths: Vec<Paths> = plan.nodes.iter().map(|_| Paths::new()).collect();
    let mut stages: Vec<Option<Stage>> = plan.nodes.iter().map(|_| None).collect();
    let mut locals = Vec::new();
    let mut budget = Budget(MAX_BYTES);

    // Images and contexts that are no stages of their own are there from the beginning.
    for (at, node) in plan.nodes.iter_mut().enumerate() {
        if let Some(root) = node.root.take() {
            let mut stage = Stage::of_root(at, root);
            locals.extend(stage.local.take().map(|local| (at, local)));
            stages[at] = Some(stage);
        }
    }
    let is_final: Vec<bool> = stages
        .iter()
        .map(|stage| stage.as_ref().is_some_and(|stage| stage.is_final))
        .collect();
    let mut done: Vec<bool> = is_final.clone();
    for at in plan.reachable.clone() {
        if is_final[at] {
            continue;
        }
        let mut stage = match plan.nodes[at].parent {
            Some(parent) => {
                let parent = stages[parent].as_ref().filter(|_| done[parent]);
                let parent =
                    parent.ok_or_else(|| Error::invalid("a stage is built on one that comes later"))?;
                Stage::of_parent(parent)
            }
            None => stages[at]
                .take()
                .ok_or_else(|| Error::invalid("a stage has no base"))?,
        };
        let commands = std::mem::take(&mut plan.nodes[at].commands);
        let node = &plan.nodes[at];
        let mut scope = Scope {
            given,
            args: &plan.args,
            node,
            stages: &stages,
            done: &done,
            names: &plan.nodes,
            context: &context,
            ignore: ignore.as_ref(),
            lint: given.lint.clone(),
            context_paths: &mut context_paths,
            paths: &mut paths,
            is_onbuild: false,
            budget: &mut budget,
        };
        stage
            .begin(&mut scope)
            .map_err(|error| error.at(&node.stage.ranges))?;
        for command in &commands {
            stage
                .instruction(&mut scope, command)
                .map_err(|error| error.at(&command.instruction.ranges))?;
        }
        stages[at] = Some(stage);
        done[at] = true;
    }

    let reachable = reachable(&plan);
    let outline = outline_of(&plan, &stages, &reachable);
    let extras = scan::extras(&plan, &stages, &reachable, &context);
    let target = stages[plan.target]
        .take()
        .ok_or_else(|| Error::invalid("the target was not lowered"))?;
    paths[target.paths_of].insert("/".to_owned());
    for (at, local) in locals {
        local.keep(follow_paths(&paths[at]));
    }
    given.lint.check()?;
    promise.keep(context::main_context(
        given.options,
        entry,
        follow_paths(&context_paths),
    ));

    let mut image = target.image;
    image.config.labels.extend(given.options.labels.clone());
    set_platform(&mut image, given.platform);
    let definition = marshal(&target.state)?;
    let scans = extras
        .into_iter()
        .map(|(name, state)| Ok((name, marshal(&state)?)));
    let scans = scans.collect::<Result<_, Error>>()?;
    Ok(Lowered {
        definition,
        image,
        base_image: target.base_image,
        epoch: plan.args.epoch,
        outline,
        scans,
    })
}

/// The target, then the stages it is built on and takes from.
fn reachable(plan: &Plan) -> Vec<usize> {
    let (mut order, mut open) = (Vec::new(), vec![plan.target]);
    let mut seen = BTreeSet::new();
    while let Some(at) = open.pop() {
        if seen.insert(at) {
            order.push(at);
            let node = &plan.nodes[at];
            open.extend(node.uses.iter().rev().chain(&node.parent));
        }
    }
    order
}

/// What the target can be given: by its own instructions, then those of the stages it needs.
fn outline_of(plan: &Plan, stages: &[Option<Stage>], reachable: &[usize]) -> Outline {
    let captures = reachable.iter().filter_map(|at| stages[*at].as_ref());
    let target = &plan.nodes[plan.target].stage;
    Outline {
        name: target.name.clone(),
        description: description(&target.comments, &target.name).to_owned(),
        ..outline::outline(captures.map(|stage| &stage.capture))
    }
}

/// The ignore file's patterns, for the rule that minds copies of ignored files.
fn ignore_patterns(entry: &Entry) -> Result<Option<PatternSet>, Error> {
    if entry.remote.is_some() || entry.ignore.is_empty() {
        return Ok(None);
    }
    PatternSet::new(&entry.ignore)
        .map(Some)
        .map_err(|error| Error::invalid(format!("the ignore file: {error}")))
}

/// Paths relative to the root, sorted; none when all is wanted or nothing is known.
fn follow_paths(paths: &Paths) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    let mut relative: Vec<String> = paths
        .iter()
        .map(|path| path::clean(&format!("./{path}")))
        .collect();
    relative.sort();
    relative
}

/// The config says what was asked for, whatever the base image says.
fn set_platform(image: &mut ImageConfig, asked: Option<&Platform>) {
    if let Some(asked) = asked {
        let is_same = asked.os == image.os && asked.architecture == image.architecture;
        image.os.clone_from(&asked.os);
        image.architecture.clone_from(&asked.architecture);
        if asked.variant.is_some() || !is_same {
            image.variant = asked.variant.clone().unwrap_or_default();
        }
        if asked.os_version.is_some() || !is_same {
            image.os_version = asked.os_version.clone().unwrap_or_default();
        }
        if !asked.os_features.is_empty() {
            image.os_features.clone_from(&asked.os_features);
        }
    }
    let normal = image.platform().normalize();
    image.os = normal.os;
    image.architecture = normal.architecture;
    image.variant = normal.variant.unwrap_or_default();
}

/// Reports a copy of something the ignore file leaves out. With exclusions (`!`) it cannot be told.
fn check_ignored(ignore: Option<&PatternSet>, source: &str, keyword: &str) -> Option<(Rule, String)> {
    let ignore = ignore.filter(|ignore| !ignore.has_exclusions())?;
    let source = path::clean(source);
    let is_root = matches!(source.as_str(), "." | "/");
    let is_ignored = if is_root {
        ignore.matches_all()
    } else {
        ignore.matches(&source)
    };
    is_ignored.then(|| {
        (
            Rule::CopyIgnoredFile,
            format!(
                "Attempting to {keyword} file {} that is excluded by .dockerignore",
                format::quote(&source)
            ),
        )
    })
}
