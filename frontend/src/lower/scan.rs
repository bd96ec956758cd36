//! What a scan for an SBOM looks at beside the target.
//!
//! | argument | where it is on, as `true` or with the stage's name in it |
//! |---|---|
//! | `BUILDKIT_SBOM_SCAN_CONTEXT` | for the target: the build context |
//! | `BUILDKIT_SBOM_SCAN_STAGE` | for a stage the target is built on or takes from: that stage |
//!
//! A stage's own ARG counts before the one ahead of all stages.

use llb::state::State;

use crate::lower::stage::{SCAN_CONTEXT, SCAN_STAGE, Stage};
use crate::options::go_bool;
use crate::stages::Plan;

/// States by name, sorted; `reachable` are the target, and the stages it is built on and takes from.
pub(super) fn extras(
    plan: &Plan,
    stages: &[Option<Stage>],
    reachable: &[usize],
    context: &State,
) -> Vec<(String, State)> {
    let is_on = |at: usize, argument: &str| {
        let stage = stages[at].as_ref()?;
        let own = stage.build_args.iter().rev();
        let mut own = own
            .filter(|arg| arg.name == argument)
            .filter_map(|arg| arg.value.as_deref());
        let value = own.next().or_else(|| plan.args.env.get(argument))?;
        let name = plan.nodes[at].stage.name.as_str();
        let is_on = go_bool(value).unwrap_or_else(|| value.split(',').any(|one| one == name));
        is_on.then_some(stage)
    };
    let mut extras = Vec::new();
    if is_on(plan.target, SCAN_CONTEXT).is_some() {
        extras.push(("context".to_owned(), context.clone()));
    }
    for at in reachable.iter().filter(|at| **at != plan.target) {
        if let Some(stage) = is_on(*at, SCAN_STAGE) {
            extras.push((plan.nodes[*at].stage.name.clone(), stage.state.clone()));
        }
    }
    extras.sort_by(|a, b| a.0.cmp(&b.0));
    extras.dedup_by(|a, b| a.0 == b.0);
    extras
}
