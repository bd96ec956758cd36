//! The pages behind `--debugaddr`: plain HTTP, read only.
//!
//! | page | |
//! |---|---|
//! | `/metrics` | counters, in Prometheus' text format |
//! | `/healthz` | `ok`, or 503 while the daemon shuts down |
//! | `/debug/builds` | builds that run: their steps, how each is, what it waits for |
//! | `/debug/solver` `/debug/sessions` `/debug/contexts` `/debug/leases` | what the daemon holds |
//! | `/debug/pprof/…` and BuildKit's other pages for Go | 501, by name |
//!
//! Differs: BuildKit's `/debug` is that of Go's runtime; ours shows builds instead.
use super::metrics;
use crate::daemon::builds::Build;
use crate::daemon::listen::Listener;
use crate::daemon::run::Runner;
use crate::history::Stamp;
use http::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

/// Who looks at the same time; more wait.
const MAX_CONNECTIONS: usize = 64;
/// A connection ends after this, whatever it does.
const LONGEST_CONNECTION: Duration = Duration::from_secs(60);

const INDEX: &str =
    "/metrics\n/healthz\n/debug/builds\n/debug/contexts\n/debug/leases\n/debug/sessions\n/debug/solver\n";

/// Serves the pages until the daemon ends.
pub(in crate::daemon) fn serve(runner: &Arc<Runner>, listener: Listener) {
    let runner = runner.clone();
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else {
                return;
            };
            let one = match &listener {
                Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(connection(runner.clone(), stream, place));
                }),
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(connection(runner.clone(), stream, place));
                }),
            };
            if let Err(error) = one {
                tracing::warn!(%error, "a connection to the metrics was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
}

async fn connection<S, P>(runner: Arc<Runner>, stream: S, _place: P)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = tower::service_fn(move |request: Request<_>| {
        let runner = runner.clone();
        async move { Ok::<_, Infallible>(answer(runner, &request).await) }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let served = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let served = tokio::time::timeout(LONGEST_CONNECTION, served).await;
    if let Ok(Err(error)) = served {
        tracing::debug!(%error, "a connection to the metrics ended early");
    }
}

async fn answer<B>(runner: Arc<Runner>, request: &Request<B>) -> Response<String> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/healthz" if runner.closing.is_cancelled() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
        }
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/" | "/debug" | "/debug/" => text(StatusCode::OK, INDEX),
        "/metrics" => match page(move || metrics::page(&runner)).await {
            Some(page) => with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page),
            None => text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made\n"),
        },
        "/debug/builds" => of_json(&json!(
            runner
                .builds
                .all()
                .iter()
                .map(|one| build(one))
                .collect::<Vec<_>>()
        )),
        "/debug/solver" => of_json(&solver(&runner)),
        "/debug/sessions" => of_json(&json!(runner.sessions.ids())),
        "/debug/contexts" => match page(move || contexts(&runner)).await {
            Some(contexts) => of_json(&contexts),
            None => text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made\n"),
        },
        "/debug/leases" => {
            let leases = runner.engine.cache.leases().into_iter();
            of_json(&leases.map(|since| json!({ "since": stamp(since) })).collect())
        }
        path if is_of_go(path) => text(
            StatusCode::NOT_IMPLEMENTED,
            &format!(
                "{path} is a page of Go's runtime; this program is profiled by perf, and shows its builds at /debug/builds\n"
            ),
        ),
        _ => text(
            StatusCode::NOT_FOUND,
            "no such page; those there are:\n/metrics /healthz /debug/\n",
        ),
    }
}

fn is_of_go(path: &str) -> bool {
    const PAGES: [&str; 7] = [
        "/debug/pprof",
        "/debug/vars",
        "/debug/requests",
        "/debug/events",
        "/debug/gc",
        "/debug/cache",
        "/debug/flight",
    ];
    PAGES.iter().any(|page| path.starts_with(page))
}

/// What reads files is done where it may block.
async fn page<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(make).await.ok()
}

fn build(build: &Build) -> Value {
    let steps = build.trail.steps();
    let steps: Vec<Value> = steps
        .iter()
        .map(|step| {
            json!({
                "digest": step.vertex.digest.to_string(),
                "name": step.vertex.name,
                "inputs": step.vertex.inputs.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "state": step.state(),
                "doing": step.doing,
                "started": step.started.map(stamp),
                "completed": step.completed.map(stamp),
                "error": step.error,
            })
        })
        .collect();
    json!({
        "id": build.id,
        "begun": stamp(build.begun),
        "seconds": build.begun.elapsed().unwrap_or_default().as_secs_f64(),
        "session": build.session.caller().id().to_string(),
        "is_canceled": build.cancel.is_cancelled(),
        "refs": build.ref_count(),
        "results_of_failed_steps": build.left.count(),
        "steps": steps,
    })
}

fn solver(runner: &Runner) -> Value {
    let held = runner.engine.solver.holdings();
    json!({
        "builds": held.builds,
        "vertices": held.vertices,
        "running": held.running,
        "waiting": held.waiting,
        "edges": held.indexed,
    })
}

fn contexts(runner: &Runner) -> Value {
    let kept = runner.sessions.received().list();
    let kept = kept.iter().map(|one| {
        json!({
            "id": one.id,
            "name": one.name,
            "bytes": one.bytes,
            "is_in_use": one.is_in_use,
            "made": stamp(one.made),
            "used": stamp(one.used),
        })
    });
    kept.collect()
}

fn stamp(time: SystemTime) -> String {
    Stamp::from(time).to_string()
}

fn text(status: StatusCode, text: &str) -> Response<String> {
    with_type(status, "text/plain; charset=utf-8", text.to_owned())
}

fn of_json(value: &Value) -> Response<String> {
    with_type(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn with_type(status: StatusCode, kind: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
