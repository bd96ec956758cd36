//! The frontend's questions, answered by the solver and the worker.
//!
//! ```text
//! frontend ─ read_files ────▶ job.build(local source, git, …) ─▶ view of the result ─▶ bytes
//!          ─ resolve_image ─▶ worker (registry, own store, layouts) ─▶ digest and config
//!          ─ source_time ───▶ worker (git, http) ─▶ when a source was made
//!          ─ warn ──────────▶ progress of the step that loaded the file
//! ```
use super::attest::{ImageSource, Scope};
use super::run::Engine;
use super::sources::{Guard, guarded};
use async_trait::async_trait;
use cache::ImmutableRef;
use cache::view::View;
use frontend::{FileRequest, Gateway, GatewayError, ImagePlace, ImageRequest, ResolvedImage, Warning};
use llb::Definition;
use llb::op::{Op, SourceOp};
use oci::{Digest, Reference};
use solver::progress::{Sink, Step, VertexInfo};
use solver::{Blame, Job, OpError, SolveError};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use tree::RootPath;
use worker::{Session, SourceMetadata};

/// The most a frontend may read of one file, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Answers for one build.
pub(crate) struct Bridge<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) job: &'a Job<ImmutableRef>,
    pub(crate) session: Arc<Session>,
    /// The name of the step under which warnings are shown.
    pub(crate) definition_step: String,
    /// Where is noted what the frontend looks at.
    pub(crate) scope: Arc<Scope>,
    /// Who decides which sources may be used, if anybody does.
    pub(crate) guard: Option<Arc<dyn Guard>>,
}

/// Whose move an answer's failure is, if the answerer said.
pub(super) fn blame_of(error: &GatewayError) -> Option<Blame> {
    if let Some(solve) = error.0.downcast_ref::<SolveError>() {
        return Some(solve.blame());
    }
    error.0.downcast_ref::<OpError>().map(OpError::blame)
}

#[async_trait]
impl Gateway for Bridge<'_> {
    async fn read_files(
        &self,
        from: &Definition,
        files: &[FileRequest],
    ) -> Result<Vec<Option<Vec<u8>>>, GatewayError> {
        let Some(view) = self.view(&*self.guarded(from).await?).await? else {
            return Ok(vec![None; files.len()]);
        };
        let files = files.to_vec();
        let read = move || files.iter().map(|file| read_file(&view, file)).collect();
        tokio::task::spawn_blocking(read)
            .await
            .map_err(GatewayError::new)?
    }

    async fn resolve_image(&self, request: &ImageRequest) -> Result<ResolvedImage, GatewayError> {
        let request = &*self.decided(request).await?;
        let step = self.job.step(
            &format!("{}@{}", request.log_name, request.platform),
            &request.log_name,
        );
        let found = self.resolve(request, step.sink()).await;
        step.finish(found.as_ref().err().map(ToString::to_string));
        found
    }

    async fn source_time(&self, source: &Definition, log_name: &str) -> Result<Option<i64>, GatewayError> {
        let source = &*self.guarded(source).await?;
        let Some(op) = only_source(source)? else {
            return Ok(None);
        };
        let step = self.job.step(&format!("{log_name} {}", op.identifier), log_name);
        let found = self.time_of(&op, source, &step).await;
        step.finish(found.as_ref().err().map(ToString::to_string));
        found
    }

    fn warn(&self, warning: Warning) {
        let digest = warning
            .vertex
            .unwrap_or_else(|| Digest::of(self.definition_step.as_bytes()));
        let vertex = VertexInfo {
            digest,
            inputs: Vec::new(),
            name: self.definition_step.clone(),
            group: None,
        };
        let step = self.job.step_as(vertex);
        step.sink().warn(solver::progress::Warning {
            level: 1,
            short: warning.message,
            detail: vec![warning.detail],
            url: warning.url,
            source: Some(llb::SourceFile {
                filename: warning.source.filename.clone(),
                data: warning.source.data.clone(),
                language: warning.source.language.clone(),
                definition: None,
            }),
            ranges: warning.location.ranges,
        });
        step.finish(None);
    }
}

/// The source of a definition that has no more than one.
fn only_source(definition: &Definition) -> Result<Option<SourceOp>, GatewayError> {
    let graph = definition.to_graph().map_err(GatewayError::new)?;
    let mut sources = graph.vertices.iter().filter_map(|vertex| match &vertex.op {
        Op::Source(source) => Some(source.clone()),
        _ => None,
    });
    Ok(sources.next().filter(|_| sources.next().is_none()))
}

/// The image a source is, and where it is looked for; `None` for other sources.
pub(crate) fn image_of(op: &SourceOp) -> Option<(String, ImagePlace)> {
    let (scheme, reference) = op.identifier.split_once("://")?;
    let place = match scheme {
        "docker-image" => ImagePlace::Registry,
        "oci-layout" => {
            let store = op.attrs.get(llb::attr::OCI_LAYOUT_STORE).cloned();
            let name = || reference.split(['@', ':']).next().unwrap_or_default().to_owned();
            ImagePlace::OciLayout {
                store: store.filter(|store| !store.is_empty()).unwrap_or_else(name),
            }
        }
        _ => return None,
    };
    Some((reference.to_owned(), place))
}

impl Bridge<'_> {
    /// A definition with the sources that are to be used.
    async fn guarded<'a>(&self, definition: &'a Definition) -> Result<Cow<'a, Definition>, GatewayError> {
        let Some(guard) = &self.guard else {
            return Ok(Cow::Borrowed(definition));
        };
        let made = guarded(&**guard, definition).await;
        made.map(Cow::Owned).map_err(GatewayError::new)
    }

    /// The image that is to be used.
    async fn decided<'a>(&self, request: &'a ImageRequest) -> Result<Cow<'a, ImageRequest>, GatewayError> {
        let Some(guard) = &self.guard else {
            return Ok(Cow::Borrowed(request));
        };
        let (scheme, attrs) = match &request.place {
            ImagePlace::Registry => ("docker-image", BTreeMap::new()),
            ImagePlace::OciLayout { store } => (
                "oci-layout",
                [(llb::attr::OCI_LAYOUT_STORE.to_owned(), store.clone())].into(),
            ),
        };
        let asked = SourceOp {
            identifier: format!("{scheme}://{}", request.reference),
            attrs,
        };
        let wanted = guard.decide(asked.clone(), Some(&request.platform)).await;
        let wanted = wanted.map_err(GatewayError::new)?;
        if wanted == asked {
            return Ok(Cow::Borrowed(request));
        }
        let (reference, place) = image_of(&wanted).ok_or_else(|| {
            let message = format!("policy puts {} in place of an image", wanted.identifier);
            GatewayError::new(message)
        })?;
        Ok(Cow::Owned(ImageRequest {
            reference,
            place,
            ..request.clone()
        }))
    }

    /// A definition's result as one tree; `None` is scratch.
    async fn view(&self, definition: &Definition) -> Result<Option<View>, GatewayError> {
        let built = self.job.build(definition).await.map_err(GatewayError::new)?;
        self.scope.saw(None, definition);
        let Some(result) = built.result else {
            return Ok(None);
        };
        let meter: Arc<dyn cache::Meter> = Arc::new(cache::NoMeter);
        result.view(&meter).await.map(Some).map_err(GatewayError::new)
    }

    async fn time_of(
        &self,
        op: &SourceOp,
        definition: &Definition,
        step: &Step,
    ) -> Result<Option<i64>, GatewayError> {
        let worker = &self.engine.worker;
        let asked = {
            let extras = worker::Extras {
                git_objects: true,
                checksum: None,
            };
            worker.source_metadata(op, extras, &self.job.context(step)).await
        };
        match asked.map_err(GatewayError::new)? {
            Some(SourceMetadata::Git(git)) => Ok(git.committed()),
            Some(SourceMetadata::Http(http)) => {
                if let Some(time) = http.last_modified {
                    let since = time.duration_since(UNIX_EPOCH).map_err(GatewayError::new)?;
                    return Ok(i64::try_from(since.as_secs()).ok());
                }
                let path = RootPath::clean(&http.filename).map_err(GatewayError::new)?;
                let Some(view) = self.view(definition).await? else {
                    return Ok(None);
                };
                let newest = tokio::task::spawn_blocking(move || {
                    let found = view.find(&path).map_err(GatewayError::new)?;
                    let opened = found.map(|node| view.open(&node)).transpose();
                    let opened = opened.map_err(GatewayError::new)?;
                    Ok(opened.and_then(worker::newest_file))
                });
                newest.await.map_err(GatewayError::new)?
            }
            None => Ok(None),
        }
    }

    async fn resolve(&self, request: &ImageRequest, sink: &Sink) -> Result<ResolvedImage, GatewayError> {
        let reference = Reference::parse_normalized(&request.reference).map_err(GatewayError::new)?;
        let mode = match request.mode {
            frontend::ResolveMode::Default => worker::ResolveMode::Default,
            frontend::ResolveMode::Pull => worker::ResolveMode::Pull,
            frontend::ResolveMode::Local => worker::ResolveMode::Local,
        };
        let place = match &request.place {
            frontend::ImagePlace::Registry => worker::ImagePlace::Registry,
            frontend::ImagePlace::OciLayout { store } => {
                worker::ImagePlace::OciLayout { store: store.clone() }
            }
        };
        let worker = &self.engine.worker;
        let found = worker
            .resolve_image(&self.session, &reference, &request.platform, mode, place, sink)
            .await
            .map_err(GatewayError::new)?;
        let is_local = matches!(request.place, frontend::ImagePlace::OciLayout { .. });
        self.scope.saw_image(ImageSource {
            reference: reference.with_default_tag().to_string(),
            platform: Some(request.platform.clone()),
            digest: found.digest.to_string(),
            is_local,
        });
        Ok(ResolvedImage {
            reference: found.reference,
            digest: found.digest,
            config: found.config,
        })
    }
}

/// A file of a result; `None` where there is none, or it is no file.
fn read_file(view: &View, file: &FileRequest) -> Result<Option<Vec<u8>>, GatewayError> {
    let path = RootPath::clean(file.path.as_bytes()).map_err(GatewayError::new)?;
    let Some(node) = view.find(&path).map_err(GatewayError::new)? else {
        return Ok(None);
    };
    if view.entry(&node).map_err(GatewayError::new)?.kind != tree::Kind::File {
        return Ok(None);
    }
    let limit = file.limit.unwrap_or(MAX_FILE_BYTES + 1);
    let mut bytes = Vec::new();
    let mut reader = std::io::Read::take(view.open(&node).map_err(GatewayError::new)?, limit);
    std::io::Read::read_to_end(&mut reader, &mut bytes).map_err(GatewayError::new)?;
    if file.limit.is_none() && bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(GatewayError::new(format!(
            "{} has more than {MAX_FILE_BYTES} bytes",
            file.path
        )));
    }
    Ok(Some(bytes))
}
