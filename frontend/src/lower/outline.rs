//! What a target can be given: arguments, secrets and agents that it and what it is built of use.
//!
//! ```text
//! global ARG ─▶ Capture ─▶ each stage: FROM's names, ARG, RUN --mount ─▶ target ─▶ parents ─▶ sources ─▶ Outline
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use llb::Range;

/// What is known of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outline {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) args: Vec<Argument>,
    pub(crate) secrets: Vec<Needed>,
    pub(crate) ssh: Vec<Needed>,
}

/// A build argument.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Argument {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) value: String,
    pub(crate) ranges: Vec<Range>,
    /// Arguments that its default is made of.
    pub(crate) made_of: BTreeSet<String>,
}

/// A secret or an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needed {
    pub(crate) id: String,
    pub(crate) is_required: bool,
    pub(crate) ranges: Vec<Range>,
}

/// What one stage uses itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Capture {
    /// Its own arguments.
    pub(crate) args: BTreeMap<String, Argument>,
    /// Those before the first FROM.
    pub(crate) globals: Arc<BTreeMap<String, Argument>>,
    pub(crate) used: BTreeSet<String>,
    pub(crate) secrets: BTreeMap<String, Needed>,
    pub(crate) ssh: BTreeMap<String, Needed>,
}

impl Capture {
    /// Notes that a step needs something of the client; the first to say so counts.
    pub(crate) fn needs(all: &mut BTreeMap<String, Needed>, id: &str, is_required: bool, ranges: &[Range]) {
        all.entry(id.to_owned()).or_insert_with(|| Needed {
            id: id.to_owned(),
            is_required,
            ranges: ranges.to_vec(),
        });
    }

    /// The arguments that are used, with those that their defaults are made of.
    fn used_args(&self) -> Vec<&Argument> {
        let find = |name: &str| self.args.get(name).or_else(|| self.globals.get(name));
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = self.used.iter().map(String::as_str).collect();
        while let Some(name) = open.pop() {
            if seen.insert(name)
                && let Some(arg) = find(name)
            {
                open.extend(arg.made_of.iter().map(String::as_str));
            }
        }
        seen.into_iter().filter_map(find).collect()
    }
}

/// Puts together what stages use, in this order: the first to name something counts.
pub(crate) fn outline<'a>(captures: impl Iterator<Item = &'a Capture>) -> Outline {
    let (mut args, mut secrets, mut ssh) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for capture in captures {
        for arg in capture.used_args() {
            args.entry(arg.name.as_str()).or_insert_with(|| arg.clone());
        }
        for (all, own) in [(&mut secrets, &capture.secrets), (&mut ssh, &capture.ssh)] {
            for one in own.values() {
                all.entry(one.id.as_str()).or_insert_with(|| one.clone());
            }
        }
    }
    let line = |ranges: &[Range]| ranges.first().map(|range| range.start.line);
    let mut outline = Outline {
        args: args.into_values().collect(),
        secrets: secrets.into_values().collect(),
        ssh: ssh.into_values().collect(),
        ..Outline::default()
    };
    outline.args.sort_by_key(|arg| line(&arg.ranges));
    outline.secrets.sort_by_key(|one| line(&one.ranges));
    outline.ssh.sort_by_key(|one| line(&one.ranges));
    outline
}
