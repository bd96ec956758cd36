//! Frontends that are images: run as a container that asks its questions over its own stdin and stdout.
//!
//! ```text
//! gateway.v0, source=IMAGE ─▶ resolve ─▶ solve ─▶ container ─ stdin, stdout: LLBBridge of this build alone
//! # syntax=IMAGE ───────────┘                         └─ Return ─▶ Solved
//! ```
//!
//! 1. The image is resolved for this machine and solved as a step of the build.
//! 2. Its entrypoint gets the request as `BUILDKIT_FRONTEND_OPT_n`, and a root it may write to; what it writes is lost.
//! 3. The service on its line knows its build: it needs no header, and can reach no other.
//!
//! It may use nothing the build was not granted, and has a network like that of a step, or none where its label says so.
use super::builds::Build;
use super::errors::Failure;
use super::gateway::GatewayService;
use super::result::Solved;
use super::run::Runner;
use super::start::MAX_MESSAGE;
use super::worker_info::WorkerInfo;
use crate::build::attest::ImageSource as Seen;
use crate::build::{Bridge, Rules, Scope, ScopeRequest, guarded};
use api::gateway::llb_bridge_server::LlbBridgeServer;
use cache::ImmutableRef;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use llb::op::{ContentCache, ExecMeta, Mount, MountKind, NetMode, SecurityMode};
use llb::state::{Constraints, ImageSource, marshal};
use oci::{Digest, Platform, Reference};
use parking_lot::Mutex;
use sandbox::Stdio;
use serde_json::{Value, json};
use solver::progress::{Sink, VertexInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::server::Connected;
use worker::container::{Container, MountOf, Process, Running, Wanted};

/// Frontends that asked for frontends that asked for …: no more than this.
pub(super) const MAX_DEPTH: usize = 8;
/// How much of what a frontend said last is shown when it fails, in bytes.
const LAST_WORDS: usize = 4 << 10;
/// Labels of frontend images.
const CAPS_LABEL: &str = "moby.buildkit.frontend.caps";
const NETWORK_LABEL: &str = "moby.buildkit.frontend.network.none";

/// What a frontend is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The request's attributes.
    pub(super) attributes: BTreeMap<String, String>,
    /// Named inputs.
    pub(super) inputs: BTreeMap<String, llb::proto::Definition>,
    /// Who asks; a frontend's own scope once it is asked.
    pub(super) scope: Arc<Scope>,
    /// How many frontends asked for one another before.
    pub(super) depth: usize,
    /// Rules about sources of this question alone.
    pub(super) rules: Rules,
}

/// The frontend in a container, as the service on its line knows it.
pub(super) struct Guest {
    /// The one build it may ask about.
    pub(super) build: Arc<Build>,
    /// Its inputs.
    pub(super) inputs: BTreeMap<String, llb::proto::Definition>,
    /// What it was asked, and looks at.
    pub(super) scope: Arc<Scope>,
    /// How many frontends asked for one another, this one included.
    pub(super) depth: usize,
    returned: Mutex<Option<Result<Solved, Failure>>>,
}

impl Guest {
    /// Takes its answer, once.
    pub(super) fn take_return(&self, answer: Result<Solved, Failure>) -> Result<(), Failure> {
        let mut returned = self.returned.lock();
        if returned.is_some() {
            let message = "the frontend has given its result already";
            return Err(Failure::new(Code::FailedPrecondition, message));
        }
        *returned = Some(answer);
        Ok(())
    }
}

/// Runs the frontend in the image `source`.
pub(super) fn run(
    runner: Arc<Runner>,
    build: Arc<Build>,
    source: String,
    question: Question,
) -> BoxFuture<'static, Result<Solved, Failure>> {
    Box::pin(async move {
        if question.depth >= MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} frontends have asked for one another");
            return Err(Failure::new(Code::FailedPrecondition, message));
        }
        let image = Image::find(&runner, &build, &source, &question).await?;
        image.check_caps(&question)?;
        let root = image.solve(&runner, &build, &question).await?;
        let process = image.process(&build, &runner.worker, &question.attributes);
        let container = container(&runner, &build, root, image.network()).await?;
        let guest = Arc::new(Guest {
            build,
            inputs: question.inputs,
            scope: question.scope,
            depth: question.depth + 1,
            returned: Mutex::default(),
        });
        let ran = serve(&runner, &guest, &container, process).await;
        container.release().await;
        let returned = guest.returned.lock().take();
        // What it says is wrong tells more than its end.
        match (returned, ran) {
            (Some(Err(failure)), _) => Err(failure),
            (_, Err(reason)) => Err(Failure::new(
                Code::Unknown,
                format!("frontend {source}: {reason}"),
            )),
            (Some(Ok(solved)), Ok(())) => Ok(solved),
            (None, Ok(())) => Err(Failure::new(
                Code::Unknown,
                format!("frontend {source} ended without a result"),
            )),
        }
    })
}

/// A frontend image.
struct Image {
    reference: String,
    config: Value,
}

impl Image {
    async fn find(
        runner: &Arc<Runner>,
        build: &Arc<Build>,
        source: &str,
        question: &Question,
    ) -> Result<Image, Failure> {
        let attributes = &question.attributes;
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(Code::Unknown, format!("frontend {source}: {error}"))
        };
        let place = match attributes.get(&format!("context:{source}")) {
            None => source,
            Some(named) => named.strip_prefix("docker-image://").ok_or_else(|| {
                let message = format!(
                    "frontend {source}: a context {named:?} in its place is not supported, only images"
                );
                Failure::new(Code::Unimplemented, message)
            })?,
        };
        let parsed = Reference::parse_normalized(place).map_err(|error| failed(&error))?;
        let bridge = Bridge {
            engine: &runner.engine,
            job: &build.job,
            session: build.session.clone(),
            definition_step: String::new(),
            // Noted below, without the platform nobody asked for.
            scope: Scope::outermost(ScopeRequest::default()),
            guard: super::policy::guard(runner, build, question.rules.clone()),
        };
        let wanted = frontend::ImageRequest {
            reference: parsed.to_string(),
            platform: Platform::host(),
            mode: frontend::ResolveMode::Default,
            place: frontend::ImagePlace::Registry,
            log_name: format!("resolve image config for docker-image://{parsed}"),
        };
        let found = frontend::Gateway::resolve_image(&bridge, &wanted)
            .await
            .map_err(|error| failed(&error))?;
        let config = serde_json::from_slice(&found.config).map_err(|error| failed(&error))?;
        question.scope.saw_image(Seen {
            reference: parsed.clone().with_default_tag().to_string(),
            platform: None,
            digest: found.digest.to_string(),
            is_local: false,
        });
        let name = found.reference.split('@').next().unwrap_or_default();
        let reference = format!("{name}@{}", found.digest);
        Ok(Image { reference, config })
    }

    fn label(&self, name: &str) -> &str {
        self.config["config"]["Labels"][name].as_str().unwrap_or_default()
    }

    fn texts(&self, field: &str) -> Option<Vec<String>> {
        let list = self.config["config"][field].as_array()?;
        Some(
            list.iter()
                .filter_map(|text| text.as_str().map(str::to_owned))
                .collect(),
        )
    }

    fn network(&self) -> NetMode {
        match self.label(NETWORK_LABEL) {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => NetMode::None,
            _ => NetMode::Sandbox,
        }
    }

    /// Whether it says that it can do what it is asked to.
    fn check_caps(&self, question: &Question) -> Result<(), Failure> {
        let has = caps(self.label(CAPS_LABEL));
        let mut wants = caps(
            question
                .attributes
                .get("frontend.caps")
                .map_or("", String::as_str),
        );
        if !question.inputs.is_empty() {
            wants.insert("moby.buildkit.frontend.inputs");
        }
        match wants.difference(&has).next() {
            Some(missing) => Err(Failure::no_frontend_cap(missing)),
            None => Ok(()),
        }
    }

    async fn solve(
        &self,
        runner: &Arc<Runner>,
        build: &Arc<Build>,
        question: &Question,
    ) -> Result<ImmutableRef, Failure> {
        let image = ImageSource {
            reference: self.reference.clone(),
            record_type: "frontend".to_owned(),
            ..ImageSource::default()
        };
        let state = image.state(Constraints::on(Platform::host()));
        let definition = marshal(&state)
            .map_err(|error| Failure::new(Code::Internal, format!("frontend {}: {error}", self.reference)))?;
        let definition = match super::policy::guard(runner, build, question.rules.clone()) {
            None => definition,
            Some(guard) => guarded(&*guard, &definition)
                .await
                .map_err(|denied| Failure::loading(&denied))?,
        };
        let built = build.job.build(&definition).await?;
        question.scope.saw(None, &definition);
        built
            .result
            .ok_or_else(|| Failure::new(Code::Unknown, "gateway source didn't return default result"))
    }

    fn process(&self, build: &Build, worker: &WorkerInfo, attributes: &BTreeMap<String, String>) -> Process {
        let mut env = self.texts("Env").unwrap_or_default();
        let options = attributes.iter().enumerate();
        env.extend(options.map(|(at, (key, value))| format!("BUILDKIT_FRONTEND_OPT_{at}={key}={value}")));
        env.push(format!("BUILDKIT_SESSION_ID={}", build.session.caller().id()));
        env.push(format!("BUILDKIT_WORKERS={}", workers(worker)));
        env.push("BUILDKIT_EXPORTEDPRODUCT=buildkit".to_owned());
        let cwd = self.config["config"]["WorkingDir"].as_str().unwrap_or_default();
        Process {
            meta: ExecMeta {
                args: self
                    .texts("Entrypoint")
                    .filter(|args| !args.is_empty())
                    .unwrap_or_else(|| vec!["/run".to_owned()]),
                env,
                cwd: if cwd.is_empty() { "/" } else { cwd }.to_owned(),
                ..ExecMeta::default()
            },
            security: SecurityMode::Sandbox,
            secret_env: Vec::new(),
        }
    }
}

/// Names of a list of caps, without what is said about each behind a `+`.
fn caps(list: &str) -> BTreeSet<&str> {
    let names = list.split(',').filter_map(|cap| cap.split('+').next());
    names.filter(|name| !name.is_empty()).collect()
}

/// The one worker, as Go's JSON has it.
fn workers(worker: &WorkerInfo) -> String {
    let record = worker.record();
    let version = record.buildkit_version.unwrap_or_default();
    json!([{
        "id": worker.id,
        "labels": worker.labels(),
        "platforms": worker.platforms(),
        "gcPolicy": null,
        "buildkitVersion": {"package": version.package, "version": version.version, "revision": version.revision},
        "cdiDevices": null,
    }])
    .to_string()
}

async fn container(
    runner: &Runner,
    build: &Build,
    root: ImmutableRef,
    network: NetMode,
) -> Result<Arc<Container>, Failure> {
    let mount = Mount {
        input: None,
        selector: String::new(),
        dest: "/".to_owned(),
        output: None,
        readonly: false,
        kind: MountKind::Bind,
        content_cache: ContentCache::Default,
    };
    let wanted = Wanted {
        mounts: vec![MountOf {
            mount,
            result: Some(root),
        }],
        network,
        extra_hosts: Vec::new(),
        hostname: String::new(),
        cgroup_parent: String::new(),
        platform: None,
    };
    let vertex = VertexInfo {
        digest: Digest::of(b"frontend"),
        inputs: Vec::new(),
        name: "frontend".to_owned(),
        group: None,
    };
    let worker = &runner.engine.worker;
    let made = worker.container(build.session.clone(), wanted, Sink::silent(Arc::new(vertex)));
    made.await
        .map_err(|error| Failure::new(Code::Unknown, format!("run the frontend: {error}")))
}

/// Serves the frontend until its process has ended.
async fn serve(
    runner: &Arc<Runner>,
    guest: &Arc<Guest>,
    container: &Container,
    process: Process,
) -> Result<(), String> {
    let text = |error: io::Error| format!("make its line: {error}");
    let (stdio, line, stderr) = line().map_err(text)?;
    let mut running: Running = container
        .start(process, stdio)
        .await
        .map_err(|error| error.to_string())?;
    let service = GatewayService {
        runner: runner.clone(),
        worker: runner.worker.clone(),
        guest: Some(guest.clone()),
    };
    let service = LlbBridgeServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let (_, health) = tonic_health::server::health_reporter();
    let ended = CancellationToken::new();
    // No more than one ever comes; an end of the list would be taken for an order to hang up.
    let lines = tokio_stream::once(Ok::<_, io::Error>(line)).chain(futures_util::stream::pending());
    let serving = tonic::transport::Server::builder()
        .add_service(health)
        .add_service(service)
        .serve_with_incoming_shutdown(lines, ended.clone().cancelled_owned());
    let waiting = async {
        let exit = running.wait().await;
        ended.cancel();
        exit
    };
    let (served, said, exit) = tokio::join!(serving, last_words(stderr), waiting);
    let exit = exit.map_err(|error| error.to_string())?;
    match exit.status.code() {
        0 => served.map_err(|error| format!("its line broke: {error}")),
        code if said.is_empty() => Err(format!("exit code: {code}")),
        code => Err(format!("exit code: {code}: {said}")),
    }
}

fn line() -> io::Result<(Stdio, Line, pipe::Receiver)> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let ((stdin, to), (from, stdout), (said, stderr)) = (pipe()?, pipe()?, pipe()?);
    let stdio = Stdio::Descriptors {
        stdin,
        stdout,
        stderr,
    };
    let line = Line {
        from: pipe::Receiver::from_owned_fd(from)?,
        to: pipe::Sender::from_owned_fd(to)?,
    };
    Ok((stdio, line, pipe::Receiver::from_owned_fd(said)?))
}

/// The end of what a frontend says on stderr.
async fn last_words(mut stderr: pipe::Receiver) -> String {
    let (mut kept, mut buffer) = (Vec::new(), vec![0; LAST_WORDS]);
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(LAST_WORDS);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// Stdin and stdout of the frontend, from this side.
struct Line {
    from: pipe::Receiver,
    to: pipe::Sender,
}

impl Connected for Line {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.from).poll_read(cx, into)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.to).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_are_names_in_front_of_a_plus() {
        let found = caps("moby.buildkit.frontend.inputs,a+b,,+c");
        assert_eq!(found, BTreeSet::from(["a", "moby.buildkit.frontend.inputs"]));
        assert!(caps("").is_empty());
    }
}
