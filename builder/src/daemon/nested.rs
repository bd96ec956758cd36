//! Definitions found in results of a build, solved within it.
//!
//! ```text
//! worker's build op ─▶ check: entitlements, rules about sources ─▶ solve: the build's own job
//! ```
use super::builds::Build;
use super::errors::Failure;
use super::policy;
use super::run::Runner;
use crate::build::Rules;
use async_trait::async_trait;
use cache::ImmutableRef;
use llb::Definition;
use solver::{OpError, SolveError};
use std::sync::{Arc, Weak};
use tonic::Code;
use worker::NestedBuilds;

/// Solves for one build, as long as that is there.
pub(super) struct Nested {
    runner: Arc<Runner>,
    build: Weak<Build>,
}

impl Nested {
    /// Lets the build's steps have definitions solved.
    pub(super) fn allow(runner: &Arc<Runner>, build: &Arc<Build>) {
        build.session.solve_nested_by(Arc::new(Nested {
            runner: runner.clone(),
            build: Arc::downgrade(build),
        }));
    }

    fn build(&self) -> Result<Arc<Build>, OpError> {
        let build = self.build.upgrade();
        build
            .filter(|build| !build.cancel.is_cancelled())
            .ok_or_else(OpError::canceled)
    }
}

#[async_trait]
impl NestedBuilds for Nested {
    async fn check(&self, definition: Definition) -> Result<Definition, OpError> {
        let build = self.build()?;
        let guard = policy::guard(&self.runner, &build, Rules::default());
        let checked = Runner::checked(definition, Runner::granted(&build), guard).await;
        checked.map_err(|failure| refused(&failure))
    }

    async fn solve(&self, definition: &Definition) -> Result<Option<ImmutableRef>, OpError> {
        let build = self.build()?;
        let built = build.job.build(definition).await.map_err(|error| match error {
            SolveError::Canceled => OpError::canceled(),
            SolveError::Vertex { ref error, .. } if error.cause.is_canceled() => OpError::canceled(),
            error => OpError::new(error.blame(), error),
        })?;
        build.scope.saw(None, definition);
        Ok(built.result)
    }
}

fn refused(failure: &Failure) -> OpError {
    match failure.0.code == i32::from(Code::Cancelled) {
        true => OpError::canceled(),
        false => OpError::user(failure.0.message.clone()),
    }
}
