//! The LLBBridge service: what a frontend asks of the daemon that runs its build.
//!
//! ```text
//! header: the build's id ─▶ Build ─▶ Solve, ReadFile, … on its job ─▶ Return ends the frontend's part
//! ```
//!
//! Refs are solved when something needs them; they are held until the build ends.
use super::builds::Build;
use super::caps;
use super::claims::{self, FrontendClaim};
use super::container_files;
use super::containers;
use super::control::{blocking, internal};
use super::errors::Failure;
use super::image_frontend::{Guest, Question};
use super::policy;
use super::result::{LazyRef, Refs, Solved};
use super::run::{Runner, evaluate};
use super::source_meta::Asker;
use super::worker_info::WorkerInfo;
use crate::build::{CacheEntry, Rules, Scope};
use api::gateway::llb_bridge_server::LlbBridge;
use api::gateway::{
    Attestations, EvaluateRequest, EvaluateResponse, ExecMessage, InputsRequest, InputsResponse,
    NewContainerRequest, NewContainerResponse, PingRequest, PongResponse, ReadDirRequest, ReadDirResponse,
    ReadFileRequest, ReadFileResponse, Ref, RefMap, ReleaseContainerRequest, ReleaseContainerResponse,
    ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceMetaRequest,
    ResolveSourceMetaResponse, Result as WireResult, ReturnRequest, ReturnResponse, SolveRequest,
    SolveResponse, StatFileRequest, StatFileResponse, WarnRequest, WarnResponse, result,
};
use cache::view::{Node, View};
use futures_util::Stream;
use oci::{Digest, Platform};
use session::transfer::stat_of;
use session::wire::fsutil::Stat;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};
use tree::{PatternSet, RootPath};

/// The header that names the build.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// How long a build is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most that is read of one file at once, in bytes; a message has 16 MiB.
pub(super) const MAX_READ: u64 = 15 << 20;
/// The most entries of one directory that are answered.
const MAX_ENTRIES: usize = 100_000;
/// The service.
pub(super) struct GatewayService {
    pub(super) runner: Arc<Runner>,
    pub(super) worker: Arc<WorkerInfo>,
    /// The frontend at the other end, if it is one this daemon runs in a container.
    pub(super) guest: Option<Arc<Guest>>,
}

impl GatewayService {
    async fn build(&self, headers: &MetadataMap, call: &str) -> Result<Arc<Build>, Status> {
        if let Some(guest) = &self.guest {
            guest.build.session.keep_failures();
            return Ok(guest.build.clone());
        }
        let id = headers
            .get(BUILD_ID)
            .and_then(|id| id.to_str().ok())
            .unwrap_or_default();
        let found = self.runner.builds.find(id, PATIENCE).await;
        let found = found.ok_or_else(|| Status::not_found(format!("forwarding {call}: no such job {id}")))?;
        // Who speaks this service may start containers on what a failed step leaves.
        found.session.keep_failures();
        Ok(found)
    }

    /// Whose questions these are.
    fn scope<'a>(&'a self, build: &'a Build) -> &'a Arc<Scope> {
        self.guest.as_ref().map_or(&build.scope, |guest| &guest.scope)
    }

    /// Ends the frontend's part.
    fn take_return(&self, build: &Build, answer: Result<Solved, Failure>) -> Result<(), Failure> {
        match &self.guest {
            Some(guest) => guest.take_return(answer),
            None => build.take_return(answer),
        }
    }

    fn asker<'a>(&'a self, build: &'a Build) -> Asker<'a> {
        Asker {
            engine: &self.runner.engine,
            build,
            scope: self.scope(build),
        }
    }

    /// The files of a ref; `None` is scratch.
    async fn view(&self, build: &Build, id: &str) -> Result<Option<View>, Status> {
        if id.is_empty() {
            return Ok(None);
        }
        let one = build.find_ref(id)?;
        let Some(result) = one.evaluate(build).await? else {
            return Ok(None);
        };
        let meter: Arc<dyn cache::Meter> = Arc::new(cache::NoMeter);
        result
            .view(&meter)
            .await
            .map(Some)
            .map_err(|error| internal(&error))
    }
}

#[tonic::async_trait]
impl LlbBridge for GatewayService {
    type ExecProcessStream = Pin<Box<dyn Stream<Item = Result<ExecMessage, Status>> + Send>>;

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PongResponse>, Status> {
        self.build(request.metadata(), "Ping").await?;
        Ok(Response::new(PongResponse {
            frontend_api_caps: caps::frontend(),
            llb_caps: caps::definition(),
            workers: vec![self.worker.record()],
        }))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let build = self.build(request.metadata(), "Solve").await?;
        let asked = request.into_inner();
        let rules = rules(&asked.source_policies)?;
        let granted = Runner::granted(&build);
        let last = asked
            .r#final
            .then(|| last_words(&asked.exporter_attr))
            .transpose()?;
        let imports: Vec<_> = asked
            .cache_imports
            .into_iter()
            .map(|entry| CacheEntry {
                kind: entry.r#type,
                attrs: entry.attrs,
            })
            .collect();
        let work = async {
            super::imports::import(&self.runner.engine, &build, &imports).await;
            let solved = match (asked.definition, asked.frontend.as_str()) {
                (Some(definition), "") => self
                    .runner
                    .definition(
                        &build,
                        self.scope(&build),
                        definition,
                        granted,
                        policy::guard(&self.runner, &build, rules),
                    )
                    .await
                    .map(Solved::of_ref)?,
                (None, "") => Solved::of_ref(None),
                (Some(definition), _) if !definition.def.is_empty() => {
                    return Err(Failure::new(
                        Code::InvalidArgument,
                        "cannot solve with both definition and frontend",
                    ));
                }
                (_, name) => {
                    let question = Question {
                        attributes: asked.frontend_opt,
                        inputs: asked.frontend_inputs,
                        scope: self.scope(&build).clone(),
                        depth: self.guest.as_ref().map_or(0, |guest| guest.depth),
                        rules,
                    };
                    self.runner.frontend(&build, name, question, granted).await?
                }
            };
            if asked.evaluate {
                evaluate(&build, &solved.each()).await?;
            }
            Ok(solved)
        };
        let solved = tokio::select! {
            biased;
            () = build.cancel.cancelled() => Err(Failure::canceled()),
            solved = work => solved,
        };
        let solved = solved?;
        if let Some(metadata) = last {
            let mut answer = solved.clone();
            answer.metadata = metadata.into_iter().chain(answer.metadata).collect();
            self.take_return(&build, Ok(answer))?;
        }
        let result = Some(wire_result(&solved));
        Ok(Response::new(SolveResponse {
            result,
            ..SolveResponse::default()
        }))
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Result<Response<ReturnResponse>, Status> {
        let build = self.build(request.metadata(), "Return").await?;
        let asked = request.into_inner();
        let answer = match (asked.error, asked.result) {
            (Some(error), _) => Err(Failure::from(error)),
            (None, Some(result)) => Ok(solved_of(&build, result)?),
            (None, None) => return Err(Status::invalid_argument("neither a result nor an error")),
        };
        self.take_return(&build, answer)?;
        Ok(Response::new(ReturnResponse {}))
    }

    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Result<Response<ResolveImageConfigResponse>, Status> {
        let build = self.build(request.metadata(), "ResolveImageConfig").await?;
        let asked = request.into_inner();
        let (scheme, attrs) = match asked.resolver_type {
            0 => ("docker-image", BTreeMap::new()),
            1 => {
                let store = (llb::attr::OCI_LAYOUT_STORE.to_owned(), asked.store_id);
                ("oci-layout", BTreeMap::from([store]))
            }
            other => return Err(Status::invalid_argument(format!("unknown resolver type {other}"))),
        };
        let mut op = llb::op::SourceOp {
            identifier: format!("{scheme}://{}", asked.r#ref),
            attrs,
        };
        let platform = asked.platform.map(platform_of);
        if let Some(guard) = policy::guard(&self.runner, &build, rules(&asked.source_policies)?) {
            op = guard
                .decide(op, platform.as_ref())
                .await
                .map_err(|denied| Failure::resolving(&denied))?;
        }
        let found = self
            .asker(&build)
            .image(&op, platform, &asked.resolve_mode, asked.log_name)
            .await?;
        Ok(Response::new(ResolveImageConfigResponse {
            digest: found.digest.to_string(),
            config: found.config.into(),
            r#ref: found.reference,
        }))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Result<Response<ResolveSourceMetaResponse>, Status> {
        let build = self.build(request.metadata(), "ResolveSourceMeta").await?;
        let asked = request.into_inner();
        let guard = policy::guard(&self.runner, &build, rules(&asked.source_policies)?);
        self.asker(&build).resolve(asked, guard).await.map(Response::new)
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let build = self.build(request.metadata(), "ReadFile").await?;
        let asked = request.into_inner();
        let view = self.view(&build, &asked.r#ref).await?;
        let data = blocking(move || {
            let (view, node) = find(view, &asked.file_path)?;
            let range = asked.range.unwrap_or_default();
            let number = |value: i64| u64::try_from(value).unwrap_or_default();
            read(
                &view,
                &node,
                &asked.file_path,
                number(range.offset),
                number(range.length),
            )
        });
        let data = data.await??.into();
        Ok(Response::new(ReadFileResponse { data }))
    }

    async fn read_dir(&self, request: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        let build = self.build(request.metadata(), "ReadDir").await?;
        let asked = request.into_inner();
        let view = self.view(&build, &asked.r#ref).await?;
        let entries = blocking(move || {
            let (view, node) = find(view, &asked.dir_path)?;
            if !node.is_dir() {
                return Err(Status::unknown(format!("{}: not a directory", asked.dir_path)));
            }
            let pattern = &asked.include_pattern;
            let wanted = (!pattern.is_empty())
                .then(|| PatternSet::new(&[pattern]))
                .transpose();
            let wanted = wanted.map_err(|error| Status::invalid_argument(error.to_string()))?;
            let mut entries = Vec::new();
            for child in view.children(&node) {
                let stat = stat(&view, &child)?;
                if wanted.as_ref().is_none_or(|wanted| wanted.matches(&stat.path)) {
                    entries.push(stat);
                }
                if entries.len() > MAX_ENTRIES {
                    return Err(Status::resource_exhausted(format!(
                        "{} has more than {MAX_ENTRIES} entries",
                        asked.dir_path
                    )));
                }
            }
            Ok(entries)
        });
        let entries = entries.await??;
        Ok(Response::new(ReadDirResponse { entries }))
    }

    async fn stat_file(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let build = self.build(request.metadata(), "StatFile").await?;
        let asked = request.into_inner();
        let view = self.view(&build, &asked.r#ref).await?;
        let found = blocking(move || {
            let (view, node) = find(view, &asked.path)?;
            stat(&view, &node)
        });
        let stat = Some(found.await??);
        Ok(Response::new(StatFileResponse { stat }))
    }

    async fn evaluate(
        &self,
        request: Request<EvaluateRequest>,
    ) -> Result<Response<EvaluateResponse>, Status> {
        let build = self.build(request.metadata(), "Evaluate").await?;
        let one = build.find_ref(&request.into_inner().r#ref)?;
        evaluate(&build, &[one]).await?;
        Ok(Response::new(EvaluateResponse {}))
    }

    async fn inputs(&self, request: Request<InputsRequest>) -> Result<Response<InputsResponse>, Status> {
        let build = self.build(request.metadata(), "Inputs").await?;
        let inputs = self.guest.as_ref().map(|guest| &guest.inputs);
        let definitions = inputs.unwrap_or(&build.inputs).clone();
        Ok(Response::new(InputsResponse { definitions }))
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Result<Response<WarnResponse>, Status> {
        let build = self.build(request.metadata(), "Warn").await?;
        let asked = request.into_inner();
        let vertex =
            Digest::parse(&asked.digest).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let position = |at: Option<llb::proto::Position>| {
            at.map_or_else(llb::Position::default, |at| llb::Position {
                line: at.line,
                character: at.character,
            })
        };
        let warning = solver::progress::Warning {
            level: asked.level,
            short: text(&asked.short),
            detail: asked.detail.iter().map(|line| text(line)).collect(),
            url: asked.url,
            source: asked.info.map(|info| llb::SourceFile {
                filename: info.filename,
                data: info.data,
                language: info.language,
                definition: None,
            }),
            ranges: asked
                .ranges
                .into_iter()
                .map(|range| llb::Range {
                    start: position(range.start),
                    end: position(range.end),
                })
                .collect(),
        };
        let event = solver::progress::Event::Warning(solver::progress::WarningEvent { vertex, warning });
        build
            .log
            .append(&prost::Message::encode_to_vec(&crate::progress::wire::encode(&[
                event,
            ])));
        Ok(Response::new(WarnResponse {}))
    }

    async fn new_container(
        &self,
        request: Request<NewContainerRequest>,
    ) -> Result<Response<NewContainerResponse>, Status> {
        let build = self.build(request.metadata(), "NewContainer").await?;
        containers::create(&self.runner.engine.worker, &build, request.into_inner()).await?;
        Ok(Response::new(NewContainerResponse {}))
    }

    async fn release_container(
        &self,
        request: Request<ReleaseContainerRequest>,
    ) -> Result<Response<ReleaseContainerResponse>, Status> {
        let build = self.build(request.metadata(), "ReleaseContainer").await?;
        build
            .containers
            .release(&request.into_inner().container_id)
            .await?;
        Ok(Response::new(ReleaseContainerResponse {}))
    }

    async fn exec_process(
        &self,
        request: Request<Streaming<ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let build = self.build(request.metadata(), "ExecProcess").await?;
        Ok(Response::new(Box::pin(containers::exec(
            build,
            request.into_inner(),
        ))))
    }

    async fn read_file_container(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let build = self.build(request.metadata(), "ReadFileContainer").await?;
        container_files::read(&build, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn read_dir_container(
        &self,
        request: Request<ReadDirRequest>,
    ) -> Result<Response<ReadDirResponse>, Status> {
        let build = self.build(request.metadata(), "ReadDirContainer").await?;
        container_files::list(&build, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn stat_file_container(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let build = self.build(request.metadata(), "StatFileContainer").await?;
        container_files::stat(&build, request.into_inner())
            .await
            .map(Response::new)
    }
}

/// The rules of one call.
fn rules(policies: &[api::sourcepolicy::Policy]) -> Result<Rules, Status> {
    Rules::new(policies).map_err(|error| Status::invalid_argument(error.to_string()))
}

pub(super) fn platform_of(wire: llb::proto::Platform) -> Platform {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Platform {
        architecture: wire.architecture,
        os: wire.os,
        variant: some(wire.variant),
        os_version: some(wire.os_version),
        os_features: wire.os_features,
    }
}

/// What a client of the first kind says of the result with its last question: JSON of texts in base64.
fn last_words(json: &[u8]) -> Result<BTreeMap<String, bytes::Bytes>, Status> {
    let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(format!("ExporterAttr: {error}"));
    if json.is_empty() {
        return Ok(BTreeMap::new());
    }
    let texts: BTreeMap<String, String> = serde_json::from_slice(json).map_err(|error| invalid(&error))?;
    let decoded = texts.into_iter().map(|(key, text)| {
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text);
        Ok((key, bytes.map_err(|error| invalid(&error))?.into()))
    });
    decoded.collect()
}

fn wire_result(solved: &Solved) -> WireResult {
    let one = |one: &Option<Arc<LazyRef>>| match one {
        None => Ref::default(),
        Some(one) => Ref {
            id: one.id.clone(),
            def: Some(one.definition.to_proto()),
        },
    };
    let result = match &solved.refs {
        Refs::One(only) => result::Result::Ref(one(only)),
        Refs::Many(many) => result::Result::Refs(RefMap {
            refs: many.iter().map(|(id, this)| (id.clone(), one(this))).collect(),
        }),
    };
    WireResult {
        result: Some(result),
        metadata: solved.metadata.clone(),
        attestations: solved
            .claims
            .iter()
            .map(|(platform, claims)| {
                let attestation = claims.iter().map(FrontendClaim::to_wire).collect();
                (platform.clone(), Attestations { attestation })
            })
            .collect(),
    }
}

/// What a client's frontend answers, with its ids as the refs they name.
fn solved_of(build: &Build, result: WireResult) -> Result<Solved, Failure> {
    let find = |id: &str| {
        if id.is_empty() {
            Ok(None)
        } else {
            build.find_ref(id).map(Some)
        }
    };
    let refs = match result.result {
        None => Refs::One(None),
        Some(result::Result::RefDeprecated(id)) => Refs::One(find(&id)?),
        Some(result::Result::Ref(one)) => Refs::One(find(&one.id)?),
        Some(result::Result::RefsDeprecated(map)) => {
            let many = map
                .refs
                .into_iter()
                .map(|(platform, id)| Ok((platform, find(&id)?)));
            Refs::Many(many.collect::<Result<_, Failure>>()?)
        }
        Some(result::Result::Refs(map)) => {
            let many = map
                .refs
                .into_iter()
                .map(|(platform, one)| Ok((platform, find(&one.id)?)));
            Refs::Many(many.collect::<Result<_, Failure>>()?)
        }
    };
    Ok(Solved {
        refs,
        metadata: result.metadata,
        claims: claims::of_wire(build, result.attestations)?,
    })
}

/// A path of a result, links followed inside it.
fn find(view: Option<View>, path: &str) -> Result<(View, Node), Status> {
    let missing = || Status::not_found(format!("{path}: no such file or directory"));
    let view = view.ok_or_else(missing)?;
    let clean =
        RootPath::clean(path.as_bytes()).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let node = view
        .find(&clean)
        .map_err(|error| internal(&error))?
        .ok_or_else(missing)?;
    Ok((view, node))
}

fn read(view: &View, node: &Node, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, Status> {
    use std::io::Read;
    let entry = view.entry(node).map_err(|error| internal(&error))?;
    if entry.kind == tree::Kind::Dir {
        return Err(Status::unknown(format!("read {path}: is a directory")));
    }
    let failed = |error: std::io::Error| Status::unknown(format!("read {path}: {error}"));
    let mut reader = view.open(node).map_err(|error| internal(&error))?;
    std::io::copy(&mut (&mut reader).take(offset), &mut std::io::sink()).map_err(failed)?;
    let wanted = if length == 0 {
        MAX_READ + 1
    } else {
        length.min(MAX_READ + 1)
    };
    let mut data = Vec::new();
    reader.take(wanted).read_to_end(&mut data).map_err(failed)?;
    if data.len() as u64 > MAX_READ {
        return Err(Status::resource_exhausted(format!(
            "{path} has more than {MAX_READ} bytes: read it in parts"
        )));
    }
    Ok(data)
}

/// As clients expect it: the path is the last name alone.
fn stat(view: &View, node: &Node) -> Result<Stat, Status> {
    let entry = view.entry(node).map_err(|error| internal(&error))?;
    let name = entry
        .path
        .file_name()
        .map(|name| String::from_utf8_lossy(name).into_owned());
    Ok(Stat {
        path: name.unwrap_or_else(|| "/".into()),
        ..stat_of(&entry)
    })
}
