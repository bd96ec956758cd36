//! A build's result, given to every exporter at the same time, through the client's session where it is a file.
//!
//! ```text
//! image ─▶ own store, registry        oci, docker, tar ─▶ FileSend, one stream
//! oci, docker with tar=false ─▶ the client's store, blob by blob
//! local ─▶ a folder here ─▶ FileSend, packets
//! ```
//!
//! Nothing is sent before all of it is here: the client is called when the first byte is written.
use super::builds::Build;
use super::delivery::NotGiven;
use super::errors::{Failure, with_causes};
use super::run::Request;
use crate::build::{Engine, Kept};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use session::{Caller, FileSend, SessionError};
use solver::OpError;
use std::collections::BTreeMap;
use std::io::{self, Write};
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
) -> Result<BTreeMap<String, String>, NotGiven> {
    let exports = request.exporters.iter().enumerate().map(|(number, exporter)| {
        let source = &source;
        async move {
            let kind = exporter.kind()?;
            let step = build.job.step(
                &format!("{}-export-{number}", build.id),
                crate::build::title(kind),
            );
            let done = one(engine, build, request, (number, exporter), source, step.sink()).await;
            step.finish(done.as_ref().err().map(|error| error.failure.0.message.clone()));
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
) -> Result<export::Done, NotGiven> {
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
    let mut sending: Option<Sending> = None;
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
            let called = Sending::default();
            sending = Some(called.clone());
            Some(Dest::Writer(Box::new(WhenWritten {
                caller: caller.clone(),
                number,
                runtime: tokio::runtime::Handle::current(),
                writer: None,
                called,
            })))
        }
    };
    let asked = export::Request { kind, attrs, dest };
    let done = export::export(&engine.worker, &build.session, asked, source, sink).await;
    let called = sending.and_then(|sending| sending.lock().take());
    let done = match (done, called) {
        (Ok(done), Some(sent)) => {
            sent.await
                .map_err(|error| internal("send the output", &error))?
                .map_err(session)?;
            done
        }
        (Ok(done), None) => done,
        // What the client said is more to the point than that the writer broke.
        (Err(error), Some(sent)) if sent.is_finished() => match sent.await {
            Ok(Err(refused)) => return Err(session(refused).into()),
            _ => return Err(not_exported(&error)),
        },
        (Err(error), _) => return Err(not_exported(&error)),
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

fn not_exported(error: &OpError) -> NotGiven {
    NotGiven::by(Failure::new(Code::Unknown, with_causes(error.cause())), error)
}

/// The call of the client that takes a file, once it was made.
type Sending = Arc<Mutex<Option<tokio::task::JoinHandle<Result<(), SessionError>>>>>;

/// A file of the client's, which is called when there is something to write.
struct WhenWritten {
    caller: Arc<dyn Caller>,
    number: usize,
    runtime: tokio::runtime::Handle,
    writer: Option<Box<dyn Write + Send>>,
    called: Sending,
}

impl WhenWritten {
    fn writer(&mut self) -> io::Result<&mut Box<dyn Write + Send>> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => {
                // Exporters write on threads that may block.
                let send = self.runtime.block_on(self.caller.send_file(self.number));
                let send = send.map_err(io::Error::other)?;
                let FileSend { writer, done } =
                    send.ok_or_else(|| io::Error::other("the client takes no files"))?;
                *self.called.lock() = Some(done);
                writer
            }
        };
        Ok(self.writer.insert(writer))
    }
}

impl Write for WhenWritten {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.writer()?.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer()?.flush()
    }
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
