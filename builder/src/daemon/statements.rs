//! What is stated about a build's results, for their exporters.
use super::builds::Build;
use super::errors::Failure;
use super::result::Solved;
use crate::build::attest::{Asked, AskedError, Run, Stating, pins};
use std::collections::BTreeSet;
use std::sync::Arc;
use tonic::Code;
use worker::export::PlatformResult;

impl From<AskedError> for Failure {
    fn from(error: AskedError) -> Failure {
        Failure::new(Code::Unknown, error.to_string())
    }
}

/// Adds to each platform's result what is asked to be stated about it.
pub(super) fn add(
    build: &Build,
    run: &Arc<Run>,
    asked: &Asked,
    solved: &Solved,
    platforms: &mut [PlatformResult],
) -> Result<(), Failure> {
    let Some(asked) = &asked.provenance else {
        return Ok(());
    };
    let results: BTreeSet<String> = solved.each().iter().map(|one| one.id.clone()).collect();
    let all: Vec<_> = platforms.iter().map(|one| one.platform.clone()).collect();
    let stating = Stating {
        asked,
        run,
        pins: &pins(&build.job.report()),
        platforms: &all,
        results: &results,
    };
    for platform in platforms {
        // Of nothing there is nothing to say.
        let Some(one) = solved.of_platform(&platform.id) else {
            continue;
        };
        let stated = stating.of(&one.scope, &one.definition, Some(&platform.platform));
        let stated = stated.map_err(|error| Failure::new(Code::Unknown, error.to_string()))?;
        platform.attestations.push(stated);
    }
    Ok(())
}
