//! A build in this very process: no daemon, no wire.
//!
//! ```text
//! open (store, worker, solver) ─▶ job ─┬─▶ build::run ─▶ Outcome ─▶ files
//!                                      └─▶ screen
//! ```
//!
//! A signal drops the build; then the job is discarded, which waits until every step it ran has ended and
//! given back its mounts. Only after that the process ends.
use super::beside::wants_image;
use super::files;
use super::offer::offer;
use super::provenance::{Mode, of_record};
use super::recorder::Recorder;
use super::remote_file::{NAME, definition, doing};
use super::signals::Signals;
use super::store::{open_store, registry};
use crate::build::{self, BuildError, Engine, Outcome};
use crate::config::{Config, Tracing};
use crate::progress::{Kind, Look, Screen};
use crate::request::{BuildRequest, DockerfileSource};
use cache::Cache;
use session::{Caller, SessionId};
use solver::Solver;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use worker::proxy::ProxyMode;
use worker::{Session, Worker};

/// How a build is shown and run; nothing of it changes the result.
pub struct Setting {
    /// Which display.
    pub kind: Kind,
    /// How it looks.
    pub look: Look,
    /// The archive on stdin, if the context is one.
    pub stdin: Option<Box<dyn Read + Send>>,
    /// The OCI runtime that runs steps instead of the built-in executor.
    pub oci_runtime: Option<PathBuf>,
}

/// Runs a build and writes its files.
///
/// # Errors
/// [`BuildError`].
pub fn build(config: &Config, request: BuildRequest, setting: Setting) -> Result<Outcome, BuildError> {
    runtime()?.block_on(run(config, request, setting))
}

async fn run(config: &Config, mut request: BuildRequest, setting: Setting) -> Result<Outcome, BuildError> {
    let signals = Signals::listen().map_err(|error| machine("listen for signals", error))?;
    let notes = super::caches::prepare(&mut request);
    let engine = open(config, setting.oci_runtime)?;
    if let DockerfileSource::Address(address) = &request.dockerfile {
        let text = tokio::select! {
            biased;
            signal = signals.received() => return Err(BuildError::Cancelled { signal }),
            text = fetch(&engine, address) => text?,
        };
        request.dockerfile = DockerfileSource::Text(text);
    }
    let id = new_id().map_err(|error| machine("make an id", error))?;
    let offer = offer(config, SessionId::new(&id), &request, setting.stdin)?;
    let caller: Arc<dyn Caller> = offer.caller.clone();
    let session = Session::new(caller, &engine.cache, entitlements(&request));
    let mut session = session.with_devices(devices(&request)?);
    if request.is_proxied {
        session = session.with_proxy(ProxyMode::new(build::request_policy(&request)?));
    }
    let session = Arc::new(session);
    let mut job = engine.solver.job(&id, session.clone());
    if request.is_proxied {
        job = job.of_variant(ProxyMode::VARIANT);
    }
    let tracing = Tracing::of(&config.environment);
    let recorder = Recorder::begin(engine.cache.root(), &id, &request, tracing);
    let screen = Screen::start_with(job.progress(), setting.kind, setting.look, recorder.tap())
        .map_err(|error| machine("start the progress display", error))?;
    let mut built = tokio::select! {
        biased;
        signal = signals.received() => Err(BuildError::Cancelled { signal }),
        built = build::run(&engine, &job, session, &request) => built,
    };
    job.discard().await;
    let summary = screen.finish().await;
    let wanted = Mode::of(&config.environment);
    let (history, record) = recorder.finish(&mut built, &engine.cache).await;
    if let (Err(error), Some(record)) = (&built, &record)
        && wants_image(error)
        && let Err(error) = history.remove(&record.id)
    {
        // It is asked anew, and has a record then.
        tracing::warn!(%error, "the record of a build that did not begin is kept");
    }
    let mut outcome = built?;
    outcome.notes.extend(notes);
    super::caches::finish(&request, &outcome.response)?;
    if summary.ran > 0 || engine.cache.is_renamed() {
        outcome.notes.extend(settle(&engine.cache).await);
    }
    outcome.summary = summary;
    let wants_provenance = request.metadata_file.is_some() && request.question.is_none();
    let stated = match record.filter(|_| wants_provenance && wanted != Mode::Disabled) {
        Some(record) => of_record(&history, &record, wanted),
        None => serde_json::Map::new(),
    };
    files::write(&request, &id, &outcome, stated)?;
    Ok(outcome)
}

/// A Dockerfile from an http address, checked against what is kept of it from last time as any http source is.
async fn fetch(engine: &Engine, address: &str) -> Result<Vec<u8>, BuildError> {
    let definition = definition(address)?;
    let caller: Arc<dyn Caller> = Arc::new(session::LocalCaller::new(
        SessionId::new("fetch"),
        session::LocalOptions::default(),
    ));
    let session = Arc::new(Session::new(
        caller,
        &engine.cache,
        worker::Entitlements::default(),
    ));
    let job = engine.solver.job("fetch", session.clone());
    let bridge = build::Bridge {
        engine,
        job: &job,
        session,
        definition_step: String::new(),
        scope: build::Scope::outermost(build::ScopeRequest::default()),
        guard: None,
    };
    let read =
        frontend::Gateway::read_files(&bridge, &definition, &[frontend::FileRequest::whole(NAME)]).await;
    job.stop().await;
    let files = read.map_err(|error| machine(&doing(address), error))?;
    let text = files.into_iter().next().flatten();
    text.ok_or_else(|| machine(&doing(address), "the answer is empty"))
}

/// The engine of this process: store, worker and solver.
///
/// # Errors
/// The store cannot be opened, or the configuration names a file that cannot be read.
pub fn open(config: &Config, oci_runtime: Option<PathBuf>) -> Result<Engine, BuildError> {
    let cache = open_store(config)?;
    let steps = &config.steps;
    let mut options = worker::Options {
        oci_runtime,
        dns: worker::Dns {
            nameservers: steps.dns.nameservers.clone(),
            options: steps.dns.options.clone(),
            search_domains: steps.dns.search_domains.clone(),
        },
        shares_network: steps.share_network,
        cgroup_parent: steps.cgroup_parent.clone(),
        cdi_auto_allowed: steps.free_devices.clone(),
        ..worker::Options::default()
    };
    if let Some(directories) = &config.file.cdi.spec_dirs {
        options.cdi_directories.clone_from(directories);
    }
    let worker = Worker::new(cache.clone(), registry(config)?, options);
    let options = solver::Options {
        max_parallelism: parallelism(config),
        ..solver::Options::default()
    };
    let solver = Solver::new(worker.clone(), Arc::new(cache.keys()), options);
    Ok(Engine {
        cache,
        worker,
        solver,
    })
}

/// Makes what was built survive a power cut: one sync for the whole build. A build the cache served has nothing worth
/// waiting for, unless it gave something a new name. Answers what to tell the user on failure.
async fn settle(cache: &Cache) -> Option<String> {
    let cache = cache.clone();
    let synced = tokio::task::spawn_blocking(move || cache.barrier()).await;
    match synced {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("what was built may not survive a power cut: {error}")),
        Err(error) => Some(format!("what was built may not survive a power cut: {error}")),
    }
}

fn entitlements(request: &BuildRequest) -> worker::Entitlements {
    worker::Entitlements {
        network_host: request.entitlements.network_host,
        security_insecure: request.entitlements.security_insecure,
    }
}

fn devices(request: &BuildRequest) -> Result<worker::DeviceGrants, BuildError> {
    let mut grants = worker::DeviceGrants::default();
    for name in &request.devices {
        grants
            .add(name)
            .map_err(|error| machine("allow a device", error))?;
    }
    Ok(grants)
}

/// As configured, else without limit: steps wait for networks and each other more than for processors.
fn parallelism(config: &Config) -> Option<usize> {
    config.file.worker.max_parallelism.filter(|steps| *steps > 0)
}

/// The runtime everything asynchronous runs on.
pub fn runtime() -> Result<tokio::runtime::Runtime, BuildError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("builder")
        .build()
        .map_err(|error| machine("start the runtime", error))
}

pub(super) fn machine(doing: &str, error: impl std::fmt::Display) -> BuildError {
    BuildError::Machine {
        doing: doing.to_owned(),
        reason: error.to_string(),
    }
}

/// 25 characters of base 36, as BuildKit's ids.
pub(crate) fn new_id() -> std::io::Result<String> {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut number = u128::from_le_bytes(bytes);
    let mut id = String::with_capacity(25);
    for _ in 0..25 {
        id.push(char::from(DIGITS[(number % 36) as usize]));
        number /= 36;
    }
    Ok(id)
}
