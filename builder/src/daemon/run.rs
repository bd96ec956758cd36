//! One Solve, from request to answer.
//!
//! ```text
//! checks ─▶ Build (job, session, log, record) ─▶ result ─▶ every ref solved ─▶ outputs ─▶ answer
//!                                                  │ of a frontend here, of a definition, or of the client (Return)
//! ```
//!
//! The build is a task of its own. When the call is dropped, because the client is gone, the build is called off, and ends
//! in order: its steps stop, its record is filed, its log is closed.
use super::builds::{Build, Builds};
use super::claims::Scan;
use super::delivery::Delivery;
use super::ending::Left;
use super::errors::Failure;
use super::image_frontend::{self, Question};
use super::imports;
use super::nested::Nested;
use super::observe::metrics::Metrics;
use super::output::Exporter;
use super::policy::{self, Policy, RequestJudge};
use super::records;
use super::result::{LazyRef, Solved};
use super::traces::Traces;
use super::worker_info::WorkerInfo;
use crate::build::attest::{Asked, Run};
use crate::build::caches::Export;
use crate::build::metadata::CONFIG;
use crate::build::{
    Bridge, CacheEntry, Engine, Guard, Kept, Rules, Scope, ScopeRequest, guarded, host_gateway, permissions,
};
use crate::client::new_id;
use crate::config::{Frontends, Gc};
use crate::history::{EventLog, History, Running};
use crate::progress::wire;
use crate::request::Entitlements;
use crate::trace::TraceContext;
use frontend::Options;
use futures_util::future::try_join_all;
use llb::Definition;
use prost::Message;
use session::{Caller, LateCaller, Sessions};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use worker::Session;
use worker::proxy::ProxyMode;

/// What a client asks for, free of the wire.
#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    /// The build's id.
    pub(super) id: String,
    /// The session's id.
    pub(super) session: String,
    /// Which frontend; empty: a definition, or the client's own frontend.
    pub(super) frontend: String,
    /// What the frontend is asked.
    pub(super) attributes: BTreeMap<String, String>,
    /// What to solve, if no frontend is asked.
    pub(super) definition: Option<llb::proto::Definition>,
    /// Named inputs of the frontend.
    pub(super) inputs: BTreeMap<String, llb::proto::Definition>,
    /// Where the result goes.
    pub(super) exporters: Vec<Exporter>,
    /// What the build may use.
    pub(super) entitlements: Vec<String>,
    /// Not worth a record.
    pub(super) is_internal: bool,
    /// Who decides about sources.
    pub(super) policy: Policy,
    /// Steps reach the outside by a proxy only.
    pub(super) is_proxied: bool,
    /// Caches to import.
    pub(super) imports: Vec<CacheEntry>,
    /// Where what is built goes, for other machines.
    pub(super) exports: Vec<Export>,
    /// Its place in a trace.
    pub(super) trace: TraceContext,
}

/// What builds of one daemon share.
pub(super) struct Runner {
    pub(super) engine: Arc<Engine>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) builds: Arc<Builds>,
    pub(super) history: History,
    /// What is said of the one worker.
    pub(super) worker: Arc<WorkerInfo>,
    /// What the daemon's administrator allows.
    pub(super) allowed: Entitlements,
    /// Whether steps may have devices.
    pub(super) has_devices: bool,
    /// Whether all builds are kept to a proxy, asked or not.
    pub(super) is_proxied: bool,
    /// Which frontends there are.
    pub(super) frontends: Frontends,
    /// What is counted.
    pub(super) metrics: Arc<Metrics>,
    /// What the administrator adds to the environment that provenance states.
    pub(super) environment: Arc<serde_json::Map<String, serde_json::Value>>,
    /// Spans of builds.
    pub(super) traces: Arc<Traces>,
    /// How the store is kept small.
    pub(super) gc: Gc,
    /// Cancelled when no new build is taken.
    pub(super) closing: CancellationToken,
}

impl Runner {
    /// Runs a build; dropped, it calls the build off.
    pub(super) async fn solve(
        self: &Arc<Self>,
        request: Request,
    ) -> Result<BTreeMap<String, String>, Failure> {
        if self.closing.is_cancelled() {
            return Err(Failure::new(Code::Unavailable, "the daemon is shutting down"));
        }
        self.builds.check_free(&request.id)?;
        let asked = Asked::parse(&request.attributes)?;
        let allowed = self.entitlements(&request.entitlements)?;
        let (build, running) = self.begin(&request, allowed)?;
        Nested::allow(self, &build);
        self.builds.begin(&build)?;
        let guard = build.cancel.clone().drop_guard();
        let runner = self.clone();
        let task = tokio::spawn(async move { runner.run(build, running, (request, asked), allowed).await });
        let answer = task.await.unwrap_or_else(|error| {
            Err(Failure::new(
                Code::Internal,
                format!("the build ended unexpectedly: {error}"),
            ))
        });
        guard.disarm();
        answer
    }

    /// Makes the build's job, log and record.
    fn begin(
        self: &Arc<Self>,
        request: &Request,
        allowed: Entitlements,
    ) -> Result<(Arc<Build>, Option<Running>), Failure> {
        let kept = |error: &dyn std::fmt::Display| {
            Failure::new(Code::Internal, format!("keep the build's log: {error}"))
        };
        let (log, running) = if request.is_internal {
            let folder = tempfile::tempdir().map_err(|error| kept(&error))?;
            // The file lives as long as its descriptor.
            (
                Arc::new(EventLog::create(&folder.path().join("log")).map_err(|error| kept(&error))?),
                None,
            )
        } else {
            let running = self
                .history
                .begin(records::record(request))
                .map_err(|error| kept(&error))?;
            if request.trace.is_shared() {
                self.traces.expect(&request.id, &request.trace);
            }
            (running.log().clone(), Some(running))
        };
        let caller: Arc<dyn Caller> = Arc::new(LateCaller::new(self.sessions.clone(), &request.session));
        let granted = worker::Entitlements {
            network_host: allowed.network_host,
            security_insecure: allowed.security_insecure,
        };
        let session = Session::new(caller, &self.engine.cache, granted);
        let mut session = session.with_devices(devices(&request.entitlements)?);
        let mut judge = None;
        if request.is_proxied || self.is_proxied {
            let made = judge.insert(Arc::new(RequestJudge::default()));
            session = session.with_proxy(ProxyMode::new(Some(made.clone())));
        }
        let session = Arc::new(session);
        let mut job = self.engine.solver.job(&request.id, session.clone());
        if session.proxy().is_some() {
            job = job.of_variant(ProxyMode::VARIANT);
        }
        let build = Build::new(
            request.id.clone(),
            job,
            session,
            log,
            request.inputs.clone(),
            Scope::outermost(ScopeRequest {
                frontend: request.frontend.clone(),
                attributes: request.attributes.clone(),
            }),
            request.policy.clone(),
        );
        let build = Arc::new(build);
        if let Some(judge) = judge {
            judge.begin(self, &build);
        }
        Ok((build, running))
    }

    async fn run(
        self: Arc<Self>,
        build: Arc<Build>,
        running: Option<Running>,
        (request, asked): (Request, Asked),
        allowed: Entitlements,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let run = Run::begin(id()?).in_environment(self.environment.clone());
        let run = Arc::new(run);
        let counted = tokio::spawn(pump(build.job.progress(), build.clone()));
        let mut kept = Kept::default();
        let work = async {
            imports::import(&self.engine, &build, &request.imports).await;
            let mut solved = self.result(&build, &request, allowed).await?;
            if let Some(sbom) = &asked.sbom {
                let scan = Scan {
                    runner: &self,
                    build: &build,
                    scope: &Scope::outermost(ScopeRequest::default()),
                    guard: policy::guard(&self, &build, Rules::default()),
                    asked: sbom,
                    attributes: &request.attributes,
                };
                scan.add(&mut solved, &BTreeMap::new()).await?;
            }
            kept.metadata = records::metadata(&solved);
            let delivery = Delivery {
                runner: &self,
                build: &build,
                request: &request,
                asked: &asked,
                run: &run,
                solved: &solved,
            };
            delivery.give(&mut kept).await
        };
        let mut answer = tokio::select! {
            biased;
            () = build.cancel.cancelled() => Err(Failure::canceled()),
            answer = work => answer,
        };
        if answer.is_err() && !build.cancel.is_cancelled() {
            build.imports.forget();
        }
        if let Ok(response) = &mut answer {
            let passed = kept
                .metadata
                .iter()
                .filter(|(key, _)| key.starts_with("frontend."));
            response.extend(passed.map(|(key, value)| (key.clone(), value.clone())));
        }
        build.containers.release_all().await;
        build.job.stop().await;
        build.left.clear();
        let steps = counted.await.unwrap_or_default();
        // What nobody was told a name of is made durable from time to time (`upkeep`): a power cut would cost the last
        // minute's steps, and waiting for the disk would cost every build.
        if answer.is_ok() && self.engine.cache.is_renamed() {
            self.make_durable().await;
        }
        build.log.close();
        self.builds.end(&build);
        let left = Left { steps, kept };
        let failure = answer.as_ref().err();
        self.ended(&build, &request, failure, running, left).await;
        answer
    }

    async fn result(
        self: &Arc<Self>,
        build: &Arc<Build>,
        request: &Request,
        allowed: Entitlements,
    ) -> Result<Solved, Failure> {
        match (request.frontend.as_str(), &request.definition) {
            ("", None) => build.returned().await,
            ("", Some(definition)) => self
                .definition(
                    build,
                    &build.scope,
                    definition.clone(),
                    allowed,
                    self.guard(build),
                )
                .await
                .map(Solved::of_ref),
            (name, _) => {
                let question = Question {
                    attributes: request.attributes.clone(),
                    inputs: request.inputs.clone(),
                    scope: build.scope.clone(),
                    depth: 0,
                    rules: Rules::default(),
                };
                self.frontend(build, name, question, allowed).await
            }
        }
    }

    /// Who decides about a build's sources, if anybody does.
    fn guard(self: &Arc<Self>, build: &Arc<Build>) -> Option<Arc<dyn Guard>> {
        policy::guard(self, build, Rules::default())
    }

    /// A definition of a stranger as a ref: checked, not yet solved.
    pub(super) async fn definition(
        &self,
        build: &Build,
        scope: &Arc<Scope>,
        definition: llb::proto::Definition,
        allowed: Entitlements,
        guard: Option<Arc<dyn Guard>>,
    ) -> Result<Option<Arc<LazyRef>>, Failure> {
        if definition.def.is_empty() {
            return Ok(None);
        }
        let definition = Definition::from_proto(definition).map_err(|error| unloaded(&error))?;
        let definition = Runner::checked(definition, allowed, guard).await?;
        let one = LazyRef::new(id()?, definition, scope);
        build.hold(&one)?;
        Ok(Some(one))
    }

    /// A stranger's definition that may be solved, with the sources that are to be used.
    pub(super) async fn checked(
        definition: Definition,
        allowed: Entitlements,
        guard: Option<Arc<dyn Guard>>,
    ) -> Result<Definition, Failure> {
        let graph = definition.to_graph().map_err(|error| unloaded(&error))?;
        permissions::check(&graph, allowed).map_err(|error| unloaded(&error))?;
        let Some(guard) = guard else {
            return Ok(definition);
        };
        let guarded = guarded(&*guard, &definition).await;
        guarded.map_err(|denied| Failure::loading(&denied))
    }

    /// The answer of a frontend: the one of this program, or one in an image.
    pub(super) async fn frontend(
        self: &Arc<Self>,
        build: &Arc<Build>,
        name: &str,
        mut question: Question,
        allowed: Entitlements,
    ) -> Result<Solved, Failure> {
        imports::import(&self.engine, build, &imports::of_attributes(&question.attributes)).await;
        question.scope = question.scope.inner(ScopeRequest {
            frontend: name.to_owned(),
            attributes: question.attributes.clone(),
        });
        match name {
            "dockerfile.v0" if self.frontends.has_dockerfile => {}
            "gateway.v0" if self.frontends.has_gateway => {
                let source =
                    question.attributes.get("source").cloned().ok_or_else(|| {
                        Failure::new(Code::InvalidArgument, "no source specified for gateway")
                    })?;
                self.check_allowed(&source)?;
                if !frontend::is_built_in(&source) {
                    return image_frontend::run(self.clone(), build.clone(), source, question).await;
                }
            }
            other => return Err(Failure::new(Code::Unknown, format!("invalid frontend: {other}"))),
        }
        match self.dockerfile(build, &question, allowed).await {
            // `# syntax=` names another frontend; it gets the same question, and knows it was asked for like this.
            Err(Planning::Elsewhere(line)) => {
                let source = line.split_whitespace().next().unwrap_or_default().to_owned();
                question.attributes.insert("cmdline".to_owned(), line);
                question.attributes.insert("source".to_owned(), source.clone());
                question.scope = question.scope.inner(ScopeRequest {
                    frontend: "gateway.v0".to_owned(),
                    attributes: question.attributes.clone(),
                });
                if !self.frontends.has_gateway {
                    let message = format!("# syntax={source}: invalid frontend: gateway.v0");
                    return Err(Failure::new(Code::Unknown, message));
                }
                self.check_allowed(&source)?;
                image_frontend::run(self.clone(), build.clone(), source, question).await
            }
            Err(Planning::Failed(failure)) => Err(failure),
            Ok(solved) => Ok(solved),
        }
    }

    /// Whether the administrator lets images of this repository be frontends.
    fn check_allowed(&self, source: &str) -> Result<(), Failure> {
        let allowed = &self.frontends.allowed_repositories;
        if allowed.is_empty() {
            return Ok(());
        }
        let invalid = |error: &dyn std::fmt::Display| {
            Failure::new(
                Code::InvalidArgument,
                format!("gateway source {source:?}: {error}"),
            )
        };
        let name = oci::Reference::parse_normalized(source)
            .map_err(|error| invalid(&error))?
            .name();
        // Checked when the configuration was read.
        let is_name = |text: &String| {
            oci::Reference::parse_normalized(text).is_ok_and(|allowed| allowed.name() == name)
        };
        match allowed.iter().any(is_name) {
            true => Ok(()),
            false => Err(Failure::new(
                Code::Unknown,
                format!("'{source}' is not an allowed gateway source"),
            )),
        }
    }

    async fn dockerfile(
        self: &Arc<Self>,
        build: &Arc<Build>,
        question: &Question,
        allowed: Entitlements,
    ) -> Result<Solved, Planning> {
        let guard = policy::guard(self, build, question.rules.clone());
        let attributes = &question.attributes;
        let mut attributes = attributes.clone();
        host_gateway::resolve(&mut attributes, &self.engine.worker)
            .await
            .map_err(Failure::from)?;
        let mut options = Options::from_attributes(&attributes)
            .map_err(|error| Failure::from(crate::build::BuildError::from(error)))?;
        options.session = build.session.caller().id().to_string();
        options.inputs = inputs(question)?;
        let definition_step = format!("[internal] load build definition from {}", options.filename);
        let bridge = Bridge {
            engine: &self.engine,
            job: &build.job,
            session: build.session.clone(),
            definition_step,
            scope: question.scope.clone(),
            guard: guard.clone(),
        };
        if let Some(request) = attributes.get("requestid") {
            let report = frontend::request(&bridge, &options, request)
                .await
                .map_err(planning)?;
            let report = report.ok_or_else(|| Failure::no_subrequest(request))?;
            let metadata = report.metadata().into_iter();
            return Ok(Solved {
                metadata: metadata.map(|(key, value)| (key, value.into())).collect(),
                ..Solved::of_ref(None)
            });
        }
        let mut answer = frontend::build(&bridge, &options).await.map_err(planning)?;
        for platform in &mut answer.platforms {
            let graph = platform
                .definition
                .to_graph()
                .map_err(|error| Failure::from(solver::SolveError::Definition(Arc::new(error))))?;
            permissions::check(&graph, allowed).map_err(Failure::from)?;
            if let Some(guard) = &guard {
                let made = guarded(&**guard, &platform.definition).await;
                platform.definition = made.map_err(|denied| Failure::loading(&denied))?;
            }
        }
        let mut fault = None;
        let extras = answer.platforms.iter_mut();
        let extras = extras.map(|platform| (platform.id.clone(), std::mem::take(&mut platform.scans)));
        let extras: BTreeMap<String, Vec<(String, Definition)>> = extras.collect();
        let mut solved = Solved::of_answer(answer, &question.scope, || {
            id().unwrap_or_else(|failure| {
                fault = Some(failure);
                String::new()
            })
        });
        if let Some(failure) = fault {
            return Err(failure.into());
        }
        for one in solved.each() {
            build.hold(&one)?;
        }
        if let Some(sbom) = &Asked::parse(&question.attributes).map_err(Failure::from)?.sbom {
            let scan = Scan {
                runner: self,
                build,
                scope: &question.scope,
                guard,
                asked: sbom,
                attributes: &question.attributes,
            };
            scan.add(&mut solved, &extras).await?;
        }
        Ok(solved)
    }

    /// What is asked for, if the administrator allows it.
    fn entitlements(&self, asked: &[String]) -> Result<Entitlements, Failure> {
        let mut granted = Entitlements::default();
        for name in asked {
            let (place, is_allowed) = match name.as_str() {
                "network.host" => (&mut granted.network_host, self.allowed.network_host),
                "security.insecure" => (&mut granted.security_insecure, self.allowed.security_insecure),
                // Which devices there are is the administrator's word already.
                name if name == "device" || name.starts_with("device=") => match self.has_devices {
                    true => continue,
                    false => return Err(Failure::new(Code::Unknown, "device is not allowed")),
                },
                other => {
                    let message = format!("invalid entitlement: {other}");
                    return Err(Failure::new(Code::Unknown, message));
                }
            };
            if !is_allowed {
                return Err(Failure::new(Code::Unknown, format!("{name} is not allowed")));
            }
            *place = true;
        }
        Ok(granted)
    }

    /// One sync for all the build wrote; its answer waits for it, as it promises that the name is kept.
    async fn make_durable(&self) {
        let cache = self.engine.cache.clone();
        match tokio::task::spawn_blocking(move || cache.barrier()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what was built may not survive a power cut"),
            Err(error) => tracing::warn!(%error, "what was built may not survive a power cut"),
        }
    }

    /// What was granted to a build that runs.
    pub(super) fn granted(build: &Build) -> Entitlements {
        let granted = build.session.entitlements();
        Entitlements {
            network_host: granted.network_host,
            security_insecure: granted.security_insecure,
        }
    }
}

/// A definition that is none, or asks for what it may not have.
fn unloaded(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::Unknown, format!("failed to load LLB: {error}"))
}

/// The devices among what is asked for.
fn devices(asked: &[String]) -> Result<worker::DeviceGrants, Failure> {
    let mut grants = worker::DeviceGrants::default();
    let names = asked.iter().filter_map(|name| match name.as_str() {
        "device" => Some(""),
        name => name.strip_prefix("device="),
    });
    for name in names {
        grants
            .add(name)
            .map_err(|error| Failure::new(Code::InvalidArgument, error.to_string()))?;
    }
    Ok(grants)
}

/// Why the Dockerfile frontend gave no answer.
enum Planning {
    /// Another frontend is to be asked: what `# syntax=` says, whole.
    Elsewhere(String),
    Failed(Failure),
}

impl From<Failure> for Planning {
    fn from(failure: Failure) -> Planning {
        Planning::Failed(failure)
    }
}

fn planning(error: frontend::Error) -> Planning {
    match &*error.kind {
        frontend::ErrorKind::FrontendImage { line, .. } => Planning::Elsewhere(line.clone()),
        _ => Planning::Failed(error.into()),
    }
}

/// Definitions handed in for `input:` contexts, with what is said of each in `input-metadata:`.
fn inputs(question: &Question) -> Result<BTreeMap<String, frontend::Input>, Failure> {
    let invalid = |name: &str, error: &dyn std::fmt::Display| {
        Failure::new(Code::InvalidArgument, format!("frontend input {name:?}: {error}"))
    };
    let one = |(name, definition): (&String, &llb::proto::Definition)| {
        let definition = Definition::from_proto(definition.clone()).map_err(|error| invalid(name, &error))?;
        let metadata = question.attributes.get(&format!("input-metadata:{name}"));
        let metadata: BTreeMap<String, String> = metadata
            .map(|text| serde_json::from_str(text))
            .transpose()
            .map_err(|error| invalid(name, &error))?
            .unwrap_or_default();
        let decode = |text: &String| {
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text)
                .map_err(|error| invalid(name, &error))
        };
        let config = metadata.get(CONFIG).map(decode).transpose()?;
        Ok((name.clone(), frontend::Input { definition, config }))
    };
    question.inputs.iter().map(one).collect()
}

/// Solves refs, all at once.
pub(super) async fn evaluate(build: &Build, refs: &[Arc<LazyRef>]) -> Result<(), Failure> {
    try_join_all(refs.iter().map(|one| one.evaluate(build)))
        .await
        .map(drop)
}

/// A new id for something of this daemon.
pub(super) fn id() -> Result<String, Failure> {
    new_id().map_err(|error| Failure::new(Code::Internal, format!("make an id: {error}")))
}

/// Writes what a build shows into its log, and counts its steps.
async fn pump(mut reader: solver::progress::EventReader, build: Arc<Build>) -> crate::history::Steps {
    let mut counts = crate::history::Counts::default();
    while let Some(events) = reader.next().await {
        counts.take(&events);
        build.trail.take(&events);
        for part in events.chunks(PER_FRAME) {
            build.log.append(&wire::encode(part).encode_to_vec());
        }
    }
    counts.steps()
}

/// Events of one frame: a client takes messages of at most 16 MiB.
const PER_FRAME: usize = 200;
