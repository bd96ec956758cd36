//! What a build may use beyond the ordinary: an entitlement must have been asked for.
//!
//! Checked over the whole graph before anything runs, so that a step deep in a build does not surprise after
//! an hour.
use super::error::BuildError;
use crate::request::Entitlements;
use llb::op::{NetMode, SecurityMode};
use llb::{Graph, Op};

/// Fails at the first vertex that wants what is not allowed.
pub(crate) fn check(graph: &Graph, allowed: Entitlements) -> Result<(), BuildError> {
    for vertex in &graph.vertices {
        let Op::Exec(exec) = &vertex.op else { continue };
        let wanted = [
            (
                "network.host",
                exec.network == NetMode::Host && !allowed.network_host,
            ),
            (
                "security.insecure",
                exec.security == SecurityMode::Insecure && !allowed.security_insecure,
            ),
        ];
        if let Some((name, _)) = wanted.iter().find(|(_, is_missing)| *is_missing) {
            return Err(BuildError::NotAllowed {
                entitlement: name,
                step: vertex.name().to_owned(),
            });
        }
    }
    Ok(())
}
