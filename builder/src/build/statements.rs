//! What is stated about each platform's result of a build in this process: what a scanner finds in it, how it was made.
use super::attest::{
    Asked, Claim, Provenance, Run, Sbom, ScanError, Scanner, Scope, Stating, core_first, pins,
};
use super::bridge::Bridge;
use super::kept::Stated;
use super::sources::guarded;
use super::{BuildError, permissions};
use crate::request::BuildRequest;
use frontend::Answer;
use llb::Definition;
use std::collections::BTreeSet;
use std::sync::Arc;
use worker::export::Attestation;

/// All that can be stated of how a build's results were made, for the history: as a daemon keeps it.
pub(super) fn for_the_record(
    bridge: &Bridge<'_>,
    (asked, run): (&Asked, &Arc<Run>),
    answer: &Answer,
) -> Stated {
    let builder_id = asked.provenance.as_ref().map(|asked| asked.builder_id.clone());
    let asked = Provenance {
        builder_id: builder_id.unwrap_or_default(),
        ..Provenance::default()
    };
    let mut statements = vec![Vec::new(); answer.platforms.len()];
    if let Err(error) = provenance(bridge, &bridge.scope, run, &asked, answer, &mut statements) {
        tracing::warn!(%error, "the history has no provenance of a build");
    }
    let mut stated = Stated::default();
    for (platform, statements) in answer.platforms.iter().zip(statements) {
        let name = match answer.is_multi_platform {
            true => platform.id.as_str(),
            false => "",
        };
        for one in statements {
            stated.push(name, &platform.id, one);
        }
    }
    stated
}

/// All that is asked to be stated, per platform.
pub(super) async fn statements(
    bridge: &Bridge<'_>,
    request: &BuildRequest,
    (asked, run): (&Asked, &Arc<Run>),
    answer: &Answer,
) -> Result<Vec<Vec<Attestation>>, BuildError> {
    let mut stated = vec![Vec::new(); answer.platforms.len()];
    if let Some(asked) = &asked.sbom {
        scan(bridge, request, asked, answer, &mut stated).await?;
    }
    if let Some(asked) = &asked.provenance {
        provenance(bridge, &bridge.scope, run, asked, answer, &mut stated)?;
    }
    stated.iter_mut().for_each(|one| core_first(one));
    Ok(stated)
}

async fn scan(
    bridge: &Bridge<'_>,
    request: &BuildRequest,
    asked: &Sbom,
    answer: &Answer,
    stated: &mut [Vec<Attestation>],
) -> Result<(), BuildError> {
    let mode = request.pull.then_some("pull");
    let scanner = Scanner::find(bridge, asked, mode).await?;
    for (platform, stated) in answer.platforms.iter().zip(stated) {
        // In nothing there is nothing to find.
        if platform.definition.is_scratch() {
            continue;
        }
        let ignores_cache = request.no_cache == crate::request::NoCache::All;
        let definition = scanner.scan(&platform.id, &platform.definition, &platform.scans, ignores_cache)?;
        let graph = definition.to_graph().map_err(ScanError::from)?;
        permissions::check(&graph, request.entitlements)?;
        stated.extend(scanned(bridge, definition).await?);
    }
    Ok(())
}

/// Runs a scan and reads what it found.
async fn scanned(bridge: &Bridge<'_>, definition: Definition) -> Result<Vec<Attestation>, BuildError> {
    let machine = |error: &dyn std::fmt::Display| BuildError::Machine {
        doing: "read the scanner's findings".to_owned(),
        reason: error.to_string(),
    };
    let definition = match &bridge.guard {
        Some(guard) => guarded(&**guard, &definition).await?,
        None => definition,
    };
    let built = bridge.job.build(&definition).await?;
    let view = match &built.result {
        Some(result) => {
            let meter: Arc<dyn cache::Meter> = Arc::new(cache::NoMeter);
            Some(result.view(&meter).await.map_err(|error| machine(&error))?)
        }
        None => None,
    };
    let reading = tokio::task::spawn_blocking(move || Claim::of_scan().read(view.as_ref()));
    Ok(reading.await.map_err(|error| machine(&error))??)
}

fn provenance(
    bridge: &Bridge<'_>,
    scope: &Scope,
    run: &Arc<Run>,
    asked: &Provenance,
    answer: &Answer,
    stated: &mut [Vec<Attestation>],
) -> Result<(), BuildError> {
    let platforms: Vec<_> = answer
        .platforms
        .iter()
        .map(|platform| platform.platform.clone())
        .collect();
    let stating = Stating {
        asked,
        run,
        pins: &pins(&bridge.job.report(), &bridge.session),
        platforms: &platforms,
        results: &BTreeSet::new(),
    };
    for (platform, stated) in answer.platforms.iter().zip(stated) {
        // Of nothing there is nothing to say.
        if platform.definition.is_scratch() {
            continue;
        }
        let one = stating.of(scope, &platform.definition, Some(&platform.platform));
        stated.push(one.map_err(BuildError::Statement)?);
    }
    Ok(())
}
