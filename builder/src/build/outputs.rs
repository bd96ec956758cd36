//! What was built, given to every output at the same time.
//!
//! ```text
//! Built ─▶ export (worker) ─┬─▶ own store, registry      answer: digests, names
//!                           ├─▶ file (aside, renamed), stdout
//!                           ├─▶ directory
//!                           └─▶ Docker daemon
//! ```
//!
//! Each output is a step of its own on the screen. A file is there whole or not at all.
use super::BuildError;
use super::caches::{self, Export};
use super::docker_daemon::DockerLoad;
use super::outcome::{BuiltImage, Outcome};
use super::run::Engine;
use crate::request::{BuildRequest, Destination, Output, OutputKind};
use cache::ImmutableRef;
use frontend::Answer;
use futures_util::future::try_join_all;
use solver::{Blame, BuiltResult, Job};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use tempfile::NamedTempFile;
use worker::Session;
use worker::export::{self, Attestation, Dest, Kind, PlatformResult, Source};

/// The frontend's answer and the solver's results, one per platform.
pub(super) struct Built {
    pub(super) answer: Answer,
    pub(super) results: Vec<BuiltResult<ImmutableRef>>,
    /// What is stated of each; none of any if nothing is.
    pub(super) attestations: Vec<Vec<Attestation>>,
}

/// Fails for outputs that cannot be given whatever is built: better now than after an hour.
pub(crate) fn check(request: &BuildRequest) -> Result<(), BuildError> {
    for output in &request.outputs {
        match &output.dest {
            Some(Destination::DockerDaemon) => {
                DockerLoad::reach(request.docker_socket.as_deref()).map_err(|error| docker_error(&error))?;
            }
            Some(Destination::Path(path)) if output.kind != OutputKind::Local => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
                    return Err(BuildError::Export {
                        output: output.kind.name().into(),
                        reason: format!("there is no folder {}", folder.display()),
                        blame: Blame::User,
                    });
                }
            }
            Some(Destination::Path(_) | Destination::Stdout) | None => {}
        }
    }
    Ok(())
}

fn docker_error(error: &std::io::Error) -> BuildError {
    BuildError::Export {
        output: "docker".into(),
        reason: error.to_string(),
        blame: Blame::Environment,
    }
}

/// Gives the result to all outputs; the first failure ends them all.
pub(super) async fn give(
    engine: &Engine,
    job: &Job<ImmutableRef>,
    session: &Arc<Session>,
    request: &BuildRequest,
    built: &Built,
    caches: &[Export],
) -> Result<Outcome, BuildError> {
    let source = source(job, built, caches);
    let exports = request
        .outputs
        .iter()
        .enumerate()
        .filter(|(_, output)| output.kind != OutputKind::CacheOnly);
    let done = try_join_all(exports.map(|(number, output)| {
        let (source, id) = (&source, format!("{}-export-{number}", job.id()));
        async move {
            let step = job.step(&id, title(kind_of(output.kind)));
            let done = one(engine, session, request, output, source, step.sink()).await;
            step.finish(done.as_ref().err().map(ToString::to_string));
            done.map(|done| (number, output, done))
        }
    }))
    .await?;
    let mut outcome = Outcome::default();
    for (number, output, done) in done {
        outcome.kept.exported(number, &done);
        outcome.given.push(sentence(output));
        outcome.response.extend(done.response);
        if outcome.images.is_empty() {
            outcome.images = done.images.into_iter().map(built_image).collect();
        }
    }
    Ok(outcome)
}

fn built_image(image: export::Image) -> BuiltImage {
    BuiltImage {
        platform: image.platform,
        digest: image.digest,
        size: image.size,
        layers: image.layers.len(),
    }
}

fn source(job: &Job<ImmutableRef>, built: &Built, caches: &[Export]) -> Source {
    let platforms =
        built
            .answer
            .platforms
            .iter()
            .zip(&built.results)
            .enumerate()
            .map(|(number, (platform, result))| PlatformResult {
                id: platform.id.clone(),
                platform: platform.platform.clone(),
                result: result.result.clone(),
                inline_cache: caches::inline(job, caches, &result.keys),
                config: platform.config.clone(),
                base_config: platform.base_config.clone(),
                epoch: platform.epoch,
                attestations: built.attestations.get(number).cloned().unwrap_or_default(),
            });
    Source {
        platforms: platforms.collect(),
        is_index: built.answer.is_multi_platform,
    }
}

/// The name of an exporter's step.
pub(crate) fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Image => "exporting to image",
        Kind::Oci => "exporting to oci image format",
        Kind::Docker => "exporting to docker image format",
        Kind::Local => "exporting to client directory",
        Kind::Tar => "exporting to client tarball",
    }
}

fn kind_of(kind: OutputKind) -> Kind {
    match kind {
        OutputKind::Image | OutputKind::CacheOnly => Kind::Image,
        OutputKind::Oci => Kind::Oci,
        OutputKind::Docker => Kind::Docker,
        OutputKind::Local => Kind::Local,
        OutputKind::Tar => Kind::Tar,
    }
}

pub(crate) fn sentence(output: &Output) -> String {
    let name = output.attrs.get("name").map_or("without a name", String::as_str);
    match (&output.dest, output.kind) {
        (Some(Destination::Path(path)), _) => format!("written {}", path.display()),
        (Some(Destination::Stdout), _) => "written to stdout".to_owned(),
        (Some(Destination::DockerDaemon), _) => format!("loaded  {name} into the Docker daemon"),
        (None, _)
            if output
                .attrs
                .get("push")
                .is_some_and(|push| crate::cli::is_true(push)) =>
        {
            format!("pushed  {name}")
        }
        (None, _) if !output.attrs.contains_key("name") => {
            "kept    without a name: add -t NAME to find it again".to_owned()
        }
        (None, _) => format!("named   {name}"),
    }
}

async fn one(
    engine: &Engine,
    session: &Arc<Session>,
    request: &BuildRequest,
    output: &Output,
    source: &Source,
    sink: &solver::progress::Sink,
) -> Result<export::Done, BuildError> {
    let failed = |doing: &str, error: std::io::Error| BuildError::Machine {
        doing: doing.to_owned(),
        reason: error.to_string(),
    };
    let mut attrs = output.attrs.clone();
    // A name of something that has a time is worked out by the frontend.
    let is_number = |epoch: &&String| epoch.is_empty() || epoch.parse::<i64>().is_ok();
    if let Some(epoch) = request.build_args.get("SOURCE_DATE_EPOCH").filter(is_number) {
        attrs
            .entry("source-date-epoch".into())
            .or_insert_with(|| epoch.clone());
    }
    let kind = match output.kind {
        OutputKind::Image | OutputKind::CacheOnly => Kind::Image,
        OutputKind::Oci => Kind::Oci,
        OutputKind::Docker => Kind::Docker,
        OutputKind::Local => Kind::Local,
        OutputKind::Tar => Kind::Tar,
    };
    let (placed, end) = place(output, request.docker_socket.as_deref())?;
    let dest = match placed {
        Placed::Nowhere => None,
        Placed::Folder(path) | Placed::Layout(path) => Some(Dest::Dir(path)),
        Placed::Writer(writer) => Some(Dest::Writer(writer)),
    };
    let asked = export::Request { kind, attrs, dest };
    let done = export::export(&engine.worker, session, asked, source, sink)
        .await
        .map_err(|error| BuildError::Export {
            output: output.kind.name().into(),
            reason: error.to_string(),
            blame: error.blame(),
        })?;
    let name = output.kind.name();
    tokio::task::spawn_blocking(move || end.finish())
        .await
        .map_err(|error| failed("finish the export", std::io::Error::other(error)))?
        .map_err(|error| failed(&format!("finish the export as {name}"), error))?;
    Ok(done)
}

/// Where an output goes on this machine.
pub(crate) enum Placed {
    /// Not to a file.
    Nowhere,
    /// Files into a folder.
    Folder(std::path::PathBuf),
    /// Blobs into the folder of an image layout.
    Layout(std::path::PathBuf),
    /// One archive's bytes.
    Writer(Box<dyn Write + Send>),
}

/// Opens an output's place; it is whole once the [`End`] was finished.
pub(crate) fn place(output: &Output, docker_socket: Option<&Path>) -> Result<(Placed, End), BuildError> {
    let failed = |doing: &str, error: std::io::Error| BuildError::Machine {
        doing: doing.to_owned(),
        reason: error.to_string(),
    };
    Ok(match &output.dest {
        None => (Placed::Nowhere, End::Nothing),
        Some(Destination::Path(path)) if output.kind == OutputKind::Local => {
            (Placed::Folder(path.clone()), End::Nothing)
        }
        Some(Destination::Path(path)) if is_layout(output) => (Placed::Layout(path.clone()), End::Nothing),
        Some(Destination::Path(path)) => {
            let (writer, file) =
                file(path).map_err(|error| failed(&format!("write {}", path.display()), error))?;
            let end = file.map_or(End::Nothing, |file| End::Rename(file, path.clone()));
            (Placed::Writer(writer), end)
        }
        Some(Destination::Stdout) => (Placed::Writer(Box::new(std::io::stdout())), End::Nothing),
        Some(Destination::DockerDaemon) => {
            let load = DockerLoad::begin(docker_socket).map_err(|error| docker_error(&error))?;
            let writer = load
                .writer()
                .map_err(|error| failed("talk to the Docker daemon", error))?;
            (Placed::Writer(writer), End::Docker(load))
        }
    })
}

/// `tar=false`: a folder instead of an archive.
fn is_layout(output: &Output) -> bool {
    output
        .attrs
        .get("tar")
        .is_some_and(|tar| !crate::cli::is_true(tar))
}

/// What is left to do when every byte is written.
pub(crate) enum End {
    Nothing,
    Rename(NamedTempFile, std::path::PathBuf),
    Docker(DockerLoad),
}

impl End {
    pub(crate) fn finish(self) -> std::io::Result<()> {
        match self {
            End::Nothing => Ok(()),
            End::Rename(file, path) => {
                // What a file made by a shell would have.
                std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o644))?;
                file.persist(path).map(|_| ()).map_err(|error| error.error)
            }
            End::Docker(load) => load.finish(),
        }
    }
}

type Writing = (Box<dyn Write + Send>, Option<NamedTempFile>);

/// A file to be renamed to `path`; a pipe or device is written as it is.
fn file(path: &Path) -> std::io::Result<Writing> {
    let is_special = std::fs::metadata(path).is_ok_and(|found| {
        let kind = found.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_block_device()
    });
    if is_special {
        return Ok((
            Box::new(std::fs::OpenOptions::new().write(true).open(path)?),
            None,
        ));
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let aside = NamedTempFile::new_in(folder)?;
    Ok((Box::new(std::io::BufWriter::new(aside.reopen()?)), Some(aside)))
}
