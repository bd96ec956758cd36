//! A build's result on its way out: every ref solved, what is stated about it, given to its exporters and caches.
//!
//! ```text
//! Solved ─▶ platforms, keys ─▶ claims, statements ─▶ output::give ─▶ caches::export ─▶ answer
//!    └─ a layer of an imported cache is broken: once more, without what was imported ──────┘
//! ```
use super::builds::Build;
use super::claims;
use super::errors::Failure;
use super::output;
use super::result::Solved;
use super::run::{Request, Runner};
use super::statements::Statements;
use crate::build::Kept;
use crate::build::attest::{Asked, Run};
use crate::build::caches::{self, Export};
use cache::CacheError;
use keys::CacheKey;
use solver::OpError;
use std::collections::BTreeMap;
use std::sync::Arc;
use worker::export::{PlatformResult, Source};

/// One result to be given out.
pub(super) struct Delivery<'a> {
    pub(super) runner: &'a Runner,
    pub(super) build: &'a Build,
    pub(super) request: &'a Request,
    pub(super) asked: &'a Asked,
    pub(super) run: &'a Arc<Run>,
    pub(super) solved: &'a Solved,
}

/// Why a result was not given.
pub(super) struct NotGiven {
    pub(super) failure: Failure,
    /// Whether something of the store could not be read.
    pub(super) is_broken: bool,
}

impl From<Failure> for NotGiven {
    fn from(failure: Failure) -> NotGiven {
        NotGiven {
            failure,
            is_broken: false,
        }
    }
}

impl NotGiven {
    /// What an exporter says.
    pub(super) fn by(failure: Failure, error: &OpError) -> NotGiven {
        let is_broken = error.find::<CacheError>().is_some();
        NotGiven { failure, is_broken }
    }
}

impl Delivery<'_> {
    /// Gives it; where what came with a cache cannot be read, that is built instead.
    /// `kept` is told what was made.
    pub(super) async fn give(&self, kept: &mut Kept) -> Result<BTreeMap<String, String>, Failure> {
        let Delivery { build, solved, .. } = self;
        let before = kept.clone();
        let delivered = match self.once(kept).await {
            Err(NotGiven {
                failure,
                is_broken: true,
            }) if build.imports.are_used() => {
                build.imports.distrust(&build.job, &failure.0.message);
                solved.each().iter().for_each(|one| one.reset());
                *kept = before;
                self.once(kept).await
            }
            delivered => delivered,
        };
        delivered.map_err(|not_given| not_given.failure)
    }

    async fn once(&self, kept: &mut Kept) -> Result<BTreeMap<String, String>, NotGiven> {
        let Delivery {
            runner,
            build,
            request,
            asked,
            run,
            solved,
        } = self;
        let platforms = solved.platforms(build).await?;
        let (mut platforms, keys) = with_caches(build, platforms, &request.exports);
        claims::read(build, solved, &mut platforms).await?;
        let all = Statements::new(build, run, solved, &platforms);
        all.add(asked, &mut platforms)?;
        if !request.is_internal {
            kept.stated = all.for_the_record(asked, &platforms);
        }
        let engine = &runner.engine;
        let is_index = solved.is_index();
        let source = Source { platforms, is_index };
        let mut response = output::give(engine, build, request, source, kept).await?;
        let exported = caches::export(engine, &build.job, &build.session, &keys, &request.exports).await;
        response.extend(exported.map_err(|error| {
            let is_broken = error.is_of_store;
            NotGiven {
                failure: error.into(),
                is_broken,
            }
        })?);
        Ok(response)
    }
}

/// Results with what an image is to say of their keys, and the keys of all.
fn with_caches(
    build: &Build,
    platforms: Vec<(PlatformResult, Vec<CacheKey>)>,
    exports: &[Export],
) -> (Vec<PlatformResult>, Vec<CacheKey>) {
    let mut all = Vec::new();
    let platforms = platforms.into_iter().map(|(mut platform, keys)| {
        platform.inline_cache = caches::inline(&build.job, exports, &keys);
        all.extend(keys);
        platform
    });
    (platforms.collect(), all)
}
