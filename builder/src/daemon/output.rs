//! A build's result, given to every exporter at the same time, through the client's session where it is a file.
//!
//! ```text
//! image ─▶ own store, registry        oci, docker, tar ─▶ FileSend, one stream
//! oci, docker with tar=false ─▶ the client's store, blob by blob
//! local ─▶ a folder here ─▶ FileSend, packets
//! ```
use super::builds::Build;
use super::errors::Failure;
use super::run::Request;
use crate::build::{Engine, Kept};
use futures_util::future::try_join_all;
use session::{FileSend, SessionError};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Code;
use worker::export::{self, Dest, Kind, Source};

/// Where a result goes, as a client asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Exporter {
    /// `image`, `local`, `tar`, `oci`, `docker`.
    pub(super) kind: String,
    /// Its attributes.
    pub(super) attributes: BTreeMap<String, String>,
}

impl Exporter {
    /// Which exporter of the worker's this is.
    pub(super) fn kind(&self) -> Result<Kind, Failure> {
        Ok(match self.kind.as_str() {
            "image" => Kind::Image,
            "oci" => Kind::Oci,
            "docker" => Kind::Docker,
            "local" => Kind::Local,
            "tar" => Kind::Tar,
            other => {
                return Err(Failure::new(
                    Code::Unknown,
                    format!("exporter {other:?} could not be found"),
                ));
            }
        })
    }

    /// `tar=false`: blobs into the client's store instead of an archive.
    fn wants_blobs(&self) -> bool {
        let tar = self.attributes.get("tar");
        tar.is_some_and(|tar| !crate::cli::is_true(tar))
    }

    /// What must be wrong before anything is built.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.kind()?;
        Ok(())
    }
}

/// Gives the result to all exporters; the first failure ends them all. `kept` is told what they made.
pub(super) async fn give(
    engine: &Engine,
    build: &Build,
    request: &Request,
    source: Source,
    kept: &mut Kept,
) -> Result<BTreeMap<String, String>, Failure> {
    let exports = request.exporters.iter().enumerate().map(|(number, exporter)| {
        let source = &source;
        async move {
            let kind = exporter.kind()?;
            let step = build.job.step(
                &format!("{}-export-{number}", build.id),
                crate::build::title(kind),
            );
            let done = one(engine, build, request, (number, exporter), source, step.sink()).await;
            step.finish(done.as_ref().err().map(|failure| failure.0.message.clone()));
            done.map(|done| (number, done))
        }
    });
    let mut response = BTreeMap::new();
    for (number, done) in try_join_all(exports).await? {
        kept.exported(number, &done);
        response.extend(done.response);
    }
    Ok(response)
}

async fn one(
    engine: &Engine,
    build: &Build,
    request: &Request,
    (number, exporter): (usize, &Exporter),
    source: &Source,
    sink: &solver::progress::Sink,
) -> Result<export::Done, Failure> {
    let kind = exporter.kind()?;
    let mut attrs = exporter.attributes.clone();
    // A name of something that has a time is worked out by the frontend.
    let is_number = |epoch: &&String| epoch.is_empty() || epoch.parse::<i64>().is_ok();
    let epoch = request.attributes.get("build-arg:SOURCE_DATE_EPOCH");
    if let Some(epoch) = epoch.filter(is_number) {
        attrs
            .entry("source-date-epoch".into())
            .or_insert_with(|| epoch.clone());
    }
    // Told by clients for other daemons' sake.
    for name in ["buildinfo-attrs", "prefer-image-digest", "context"] {
        attrs.remove(name);
    }
    let caller = build.session.caller();
    let mut sending: Option<FileSend> = None;
    let mut folder = None;
    let dest = match kind {
        Kind::Image => None,
        Kind::Local => {
            let made = engine
                .cache
                .work_dir()
                .map_err(|error| internal("make a folder for the output", &error))?;
            let made = Arc::new(made);
            folder = Some(made.clone());
            Some(Dest::Aside(made))
        }
        Kind::Oci | Kind::Docker if exporter.wants_blobs() => Some(Dest::Caller),
        Kind::Oci | Kind::Docker | Kind::Tar => {
            let send = caller.send_file(number).await.map_err(session)?;
            let send = send.ok_or_else(|| Failure::new(Code::Unknown, "the client takes no files"))?;
            let FileSend { writer, done } = send;
            sending = Some(FileSend {
                writer: Box::new(std::io::sink()),
                done,
            });
            Some(Dest::Writer(writer))
        }
    };
    let asked = export::Request { kind, attrs, dest };
    let done = export::export(&engine.worker, &build.session, asked, source, sink).await;
    let done = match (done, sending) {
        (Ok(done), Some(sending)) => {
            sending
                .done
                .await
                .map_err(|error| internal("send the output", &error))?
                .map_err(session)?;
            done
        }
        (Ok(done), None) => done,
        // What the client said is more to the point than that the writer broke.
        (Err(error), Some(sending)) if sending.done.is_finished() => match sending.done.await {
            Ok(Err(refused)) => return Err(session(refused)),
            _ => return Err(Failure::new(Code::Unknown, error.to_string())),
        },
        (Err(error), _) => return Err(Failure::new(Code::Unknown, error.to_string())),
    };
    if let Some(folder) = folder {
        let activity = sink.begin("copying files", "copying files");
        let total = std::sync::atomic::AtomicU64::new(0);
        let activity = Arc::new((parking_lot::Mutex::new(activity), total));
        let meter = Arc::new(move |bytes: u64| {
            let total = activity.1.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed) + bytes;
            activity.0.lock().set(total, 0);
        });
        caller
            .send_dir(number, &folder.path().join("out"), meter)
            .await
            .map_err(session)?;
    }
    Ok(done)
}

fn session(error: SessionError) -> Failure {
    let code = match error {
        SessionError::Missing { .. } => Code::NotFound,
        SessionError::Ended { .. } => Code::Cancelled,
        _ => Code::Unknown,
    };
    Failure::new(code, error.to_string())
}

fn internal(doing: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::Internal, format!("{doing}: {error}"))
}
