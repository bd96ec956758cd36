//! What is stated about a build's results: for their exporters what was asked for, for the history always all of it.
use super::builds::Build;
use super::errors::Failure;
use super::result::{Refs, Solved};
use crate::build::Stated;
use crate::build::attest::{Asked, AskedError, Pins, Provenance, Run, Stating, pins};
use oci::Platform;
use std::collections::BTreeSet;
use std::sync::Arc;
use tonic::Code;
use worker::export::{Attestation, PlatformResult};

impl From<AskedError> for Failure {
    fn from(error: AskedError) -> Failure {
        Failure::new(Code::Unknown, error.to_string())
    }
}

/// All that can be stated about a build's results.
pub(super) struct Statements<'a> {
    run: &'a Arc<Run>,
    solved: &'a Solved,
    pins: Pins,
    platforms: Vec<Platform>,
    results: BTreeSet<String>,
}

impl<'a> Statements<'a> {
    pub(super) fn new(
        build: &Build,
        run: &'a Arc<Run>,
        solved: &'a Solved,
        platforms: &[PlatformResult],
    ) -> Self {
        Statements {
            run,
            solved,
            pins: pins(&build.job.report(), &build.session),
            platforms: platforms.iter().map(|one| one.platform.clone()).collect(),
            results: solved.each().iter().map(|one| one.id.clone()).collect(),
        }
    }

    /// Adds to each platform's result what is asked to be stated about it.
    pub(super) fn add(&self, asked: &Asked, platforms: &mut [PlatformResult]) -> Result<(), Failure> {
        let Some(asked) = &asked.provenance else {
            return Ok(());
        };
        for platform in platforms {
            platform.attestations.extend(self.provenance(asked, platform)?);
        }
        Ok(())
    }

    /// How one platform's result was made; `None` of nothing, of which there is nothing to say.
    fn provenance(
        &self,
        asked: &Provenance,
        platform: &PlatformResult,
    ) -> Result<Option<Attestation>, Failure> {
        let Some(one) = self.solved.of_platform(&platform.id) else {
            return Ok(None);
        };
        let stating = Stating {
            asked,
            run: self.run,
            pins: &self.pins,
            platforms: &self.platforms,
            results: &self.results,
        };
        let stated = stating.of(&one.scope, &one.definition, Some(&platform.platform));
        stated
            .map(Some)
            .map_err(|error| Failure::new(Code::Unknown, error.to_string()))
    }

    /// How all results were made, in full.
    pub(super) fn for_the_record(&self, asked: &Asked, platforms: &[PlatformResult]) -> Stated {
        let builder_id = asked.provenance.as_ref().map(|asked| asked.builder_id.clone());
        let asked = Provenance {
            builder_id: builder_id.unwrap_or_default(),
            ..Provenance::default()
        };
        let is_one = matches!(self.solved.refs, Refs::One(_));
        let mut stated = Stated::default();
        for platform in platforms {
            let name = if is_one { "" } else { platform.id.as_str() };
            match self.provenance(&asked, platform) {
                Ok(Some(one)) => stated.push(name, &platform.id, one),
                Ok(None) => {}
                Err(failure) => {
                    tracing::warn!(
                        error = failure.0.message,
                        "the history has no provenance of a build"
                    );
                }
            }
        }
        stated
    }
}
