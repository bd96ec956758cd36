//! ONE BUILD, all of it, on one screen.
//!
//! ```text
//! 1 ask the frontend, import caches ─▶ 2 check what it wants ─▶ 3 solve every platform at once ─▶ 4 give out ─▶ Outcome
//! ```
use super::attest::{Asked, Request, Run, Scope};
use super::bridge::Bridge;
use super::caches::{self, AllImported, CacheEntry, Export};
use super::metadata::metadata;
use super::outcome::Outcome;
use super::outputs::{self, Built};
use super::sources::{Guard, Rules, guarded, judge_request};
use super::statements::{for_the_record, statements};
use super::{BuildError, host_gateway, permissions};
use crate::request::BuildRequest;
use cache::{Cache, ImmutableRef};
use frontend::{Answer, Options};
use futures_util::future::try_join_all;
use solver::{Job, Solver};
use std::collections::BTreeMap;
use std::sync::Arc;
use worker::proxy::RequestPolicy;
use worker::{Session, Worker};

/// The frontend that answers.
const FRONTEND: &str = "dockerfile.v0";

/// All that builds of one process share.
pub struct Engine {
    /// What is kept.
    pub cache: Cache,
    /// What does the work.
    pub worker: Arc<Worker>,
    /// What decides.
    pub solver: Solver<ImmutableRef>,
}

/// Runs one build to its end; dropping the future cancels it.
///
/// # Errors
/// [`BuildError`], with the lines of the Dockerfile where it is about any.
pub async fn run(
    engine: &Engine,
    job: &Job<ImmutableRef>,
    session: Arc<Session>,
    request: &BuildRequest,
) -> Result<Outcome, BuildError> {
    let imported = AllImported::default();
    let error = match once(
        engine,
        job,
        session.clone(),
        request,
        &request.cache_from,
        &imported,
    )
    .await
    {
        Err(error) if caches::may_be_broken(&imported, &error) => error,
        built => return built,
    };
    // Differs: to BuildKit this is the end of the build. A cache shall never be worse than none.
    caches::forget(&imported);
    job.distrust_imports();
    let mut outcome = once(engine, job, session, request, &[], &AllImported::default()).await?;
    outcome.notes.push(format!(
        "what was imported could not be used, all was built without it: {error}"
    ));
    Ok(outcome)
}

async fn once(
    engine: &Engine,
    job: &Job<ImmutableRef>,
    session: Arc<Session>,
    request: &BuildRequest,
    cache_from: &[CacheEntry],
    imported: &AllImported,
) -> Result<Outcome, BuildError> {
    outputs::check(request)?;
    let exports = exports(request)?;
    let attributes = request.attributes();
    let asked = Asked::parse(&attributes)?;
    let options = options(engine, &attributes, &session).await?;
    let scope = Scope::outermost(Request::default()).inner(Request {
        frontend: FRONTEND.to_owned(),
        attributes,
    });
    let run = Arc::new(Run::begin(job.id().to_owned()));
    let definition_step = format!("[internal] load build definition from {}", options.filename);
    let guard = guard(request)?;
    let bridge = Bridge {
        engine,
        job,
        session: session.clone(),
        definition_step,
        scope,
        guard: guard.clone(),
    };
    if let Some(question) = &request.question {
        let report = frontend::request(&bridge, &options, question).await?;
        let report = report.ok_or_else(|| BuildError::NoQuestion(question.clone()))?;
        let text = |(key, value): (String, Vec<u8>)| (key, String::from_utf8_lossy(&value).into_owned());
        return Ok(Outcome {
            response: report.metadata().into_iter().map(text).collect(),
            ..Outcome::default()
        });
    }
    // Caches are read while the frontend reads the Dockerfile.
    let importing = caches::import(engine, job, &session, cache_from, imported);
    let (answer, ()) = tokio::join!(frontend::build(&bridge, &options), importing);
    let mut answer = answer?;
    if let Some(guard) = &guard {
        for platform in &mut answer.platforms {
            platform.definition = guarded(&**guard, &platform.definition).await?;
        }
    }
    check(&answer, request)?;
    let mut built = solve(job, answer).await?;
    built.attestations = statements(&bridge, request, (&asked, &run), &built.answer).await?;
    let mut outcome = outputs::give(engine, job, &session, request, &built, &exports).await?;
    let text = |(key, value)| Some((key, String::from_utf8(value).ok()?));
    outcome.kept.metadata = metadata(&built.answer).into_iter().filter_map(text).collect();
    outcome.kept.stated = for_the_record(&bridge, (&asked, &run), &built.answer);
    outcome
        .response
        .extend(caches(engine, job, &session, &built, &exports).await?);
    outcome.explanation = explain(engine, job, &session, request);
    outcome.notes.extend(engine.worker.network_fault().map(|fault| {
        format!("steps shared the network of this machine, as they can have none of their own: {fault}")
    }));
    Ok(outcome)
}

/// Why steps ran, if that was asked for; and what this build was made of, for explaining the next one.
fn explain(
    engine: &Engine,
    job: &Job<ImmutableRef>,
    session: &Session,
    request: &BuildRequest,
) -> Option<String> {
    let (root, report) = (engine.cache.root(), job.report());
    let BuildRequest {
        context,
        dockerfile,
        target,
        platforms,
        ..
    } = request;
    let name = format!("{context:?} {dockerfile:?} {target:?} {platforms:?}");
    let words = request
        .explain
        .then(|| worker::explain::explain(root, &name, &report, session.notes()));
    if let Err(error) = worker::explain::remember(root, &name, &report, session.notes()) {
        tracing::warn!(%error, "this build is not remembered for --explain");
    }
    words
}

/// Gives what was built to other machines.
async fn caches(
    engine: &Engine,
    job: &Job<ImmutableRef>,
    session: &Session,
    built: &Built,
    exports: &[Export],
) -> Result<BTreeMap<String, String>, BuildError> {
    let keys = built.results.iter().flat_map(|built| built.keys.clone());
    let keys: Vec<_> = keys.collect();
    caches::export(engine, job, session, &keys, exports)
        .await
        .map_err(|error| BuildError::CacheExport {
            reason: error.to_string(),
            blame: error.blame,
        })
}

/// What the caches of a request mean; mistakes are found before anything is built.
fn exports(request: &BuildRequest) -> Result<Vec<Export>, BuildError> {
    let exports = request.cache_to.iter().map(|entry| entry.export());
    Ok(exports.collect::<Result<_, _>>()?)
}

/// Who decides about the sources, if the request says anything of them.
fn guard(request: &BuildRequest) -> Result<Option<Arc<dyn Guard>>, BuildError> {
    let rules = Rules::new(request.source_policy.as_slice())?;
    let guard: Arc<dyn Guard> = Arc::new(rules.clone());
    Ok((!rules.is_empty()).then_some(guard))
}

/// Who decides about requests of proxied steps, if the request says anything of sources.
///
/// # Errors
/// Its rules are none.
pub(crate) fn request_policy(request: &BuildRequest) -> Result<Option<Arc<dyn RequestPolicy>>, BuildError> {
    Ok(guard(request)?.map(|guard| Arc::new(Requests(guard)) as Arc<dyn RequestPolicy>))
}

struct Requests(Arc<dyn Guard>);

#[async_trait::async_trait]
impl RequestPolicy for Requests {
    async fn judge(&self, address: &str) -> Result<Option<String>, String> {
        judge_request(&*self.0, address).await
    }
}

async fn options(
    engine: &Engine,
    attributes: &BTreeMap<String, String>,
    session: &Session,
) -> Result<Options, BuildError> {
    let mut attributes = attributes.clone();
    host_gateway::resolve(&mut attributes, &engine.worker).await?;
    let mut options = Options::from_attributes(&attributes)?;
    options.session = session.caller().id().to_string();
    Ok(options)
}

fn check(answer: &Answer, request: &BuildRequest) -> Result<(), BuildError> {
    for platform in &answer.platforms {
        let graph = platform
            .definition
            .to_graph()
            .map_err(|error| solver::SolveError::Definition(Arc::new(error)))?;
        permissions::check(&graph, request.entitlements)?;
    }
    Ok(())
}

async fn solve(job: &Job<ImmutableRef>, answer: Answer) -> Result<Built, BuildError> {
    let results = try_join_all(
        answer
            .platforms
            .iter()
            .map(|platform| job.build(&platform.definition)),
    )
    .await?;
    Ok(Built {
        results,
        answer,
        attestations: Vec::new(),
    })
}
