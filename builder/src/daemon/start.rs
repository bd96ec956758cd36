//! The daemon's life: open the store, listen, serve, and end in order.
//!
//! ```text
//! open ─▶ listen ─▶ serve ─▶ (signal) no new builds ─▶ drain or cancel ─▶ barrier ─▶ gone
//! ```
use super::builds::Builds;
use super::content::ContentService;
use super::control::ControlService;
use super::gateway::GatewayService;
use super::listen::{Address, AddressError, Listener, Owner, TlsFiles, connections, listen};
use super::notify::Notify;
use super::observe::calls::CountCalls;
use super::observe::debug;
use super::run::Runner;
use super::traces::{Collector, Traces};
use super::upkeep;
use super::worker_info::WorkerInfo;
use crate::build::{BuildError, Engine};
use crate::config::{Frontends, Gc, Tracing};
use crate::history::{History, Limits};
use crate::request::Entitlements;
use crate::trace::Exporter;
use api::content::content_server::ContentServer;
use api::control::control_server::ControlServer;
use api::gateway::llb_bridge_server::LlbBridgeServer;
use api::trace::trace_service_server::TraceServiceServer;
use futures_util::StreamExt;
use session::{Received, Sessions};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Router;
use tonic::transport::{Certificate, Identity as TlsIdentity, Server, ServerTlsConfig};
use tower::layer::util::{Identity, Stack};

/// Messages taken at most, in bytes.
pub(super) const MAX_MESSAGE: usize = 16 << 20;
/// Bytes a client may send ahead on one stream, and on its connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The largest frame taken: fewer of them to look at.
const MAX_FRAME: u32 = 1 << 20;
/// Calls a client may have open on one connection.
const MAX_STREAMS: u32 = 1000;
/// How long the end of called-off builds is waited for.
const LAST: Duration = Duration::from_secs(10);

/// How a daemon is to be.
#[derive(Debug)]
pub struct Service {
    /// Where it listens.
    pub addresses: Vec<Address>,
    /// TLS of its TCP ports.
    pub tls: Option<TlsFiles>,
    /// TCP without TLS beyond loopback.
    pub allows_open_tcp: bool,
    /// Whose its unix sockets are.
    pub owner: Owner,
    /// What builds may be granted.
    pub allowed: Entitlements,
    /// Whether steps may have devices.
    pub has_devices: bool,
    /// Steps of all builds reach the outside by a proxy only.
    pub is_proxied: bool,
    /// How much history is kept.
    pub history: Limits,
    /// How the store is kept small.
    pub gc: Gc,
    /// Which frontends it has.
    pub frontends: Frontends,
    /// Labels of its worker beside the usual ones.
    pub labels: BTreeMap<String, String>,
    /// What its worker says it builds for; empty: what this machine is.
    pub platforms: Vec<oci::Platform>,
    /// After a first signal, how long builds may go on before they are called off.
    pub drain: Duration,
    /// Where metrics and introspection are.
    pub debug: Option<Address>,
    /// What is added to the environment that provenance states.
    pub environment: serde_json::Map<String, serde_json::Value>,
    /// Where spans go.
    pub tracing: Tracing,
    /// Who is told that it serves, and that it stops.
    pub notify: Notify,
}

/// When a daemon is to end.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// No new builds; those that run have the time that was set.
    pub gently: CancellationToken,
    /// Builds are called off at once.
    pub now: CancellationToken,
}

/// How a daemon ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Served {
    /// Builds that had to be called off.
    pub canceled: usize,
}

/// Serves until `stop` says so; `ready` is told when every socket listens.
///
/// # Errors
/// The store cannot be opened, or an address cannot be used.
pub async fn serve(
    engine: Engine,
    service: Service,
    ready: oneshot::Sender<()>,
    stop: Stop,
) -> Result<Served, BuildError> {
    let root = engine.cache.root().to_owned();
    let received = Received::open(&engine.cache.received_folder())
        .map_err(|error| machine("open the received contexts", error))?;
    let otlp = service.tracing.otlp.as_ref();
    let exporter = otlp.map(Exporter::start).transpose();
    let exporter = exporter.map_err(|error| machine("set up traces", error))?;
    let traces = Traces::new(exporter, service.tracing.resource);
    let worker = WorkerInfo::new(&root, service.labels, service.platforms, service.gc.clone());
    let worker = Arc::new(worker);
    let runner = Arc::new(Runner {
        engine: Arc::new(engine),
        sessions: Sessions::new(Arc::new(received)),
        builds: Arc::new(Builds::default()),
        history: History::new(&root, service.history),
        allowed: service.allowed,
        has_devices: service.has_devices,
        is_proxied: service.is_proxied,
        frontends: service.frontends,
        gc: service.gc,
        metrics: Arc::default(),
        traces: Arc::new(traces),
        environment: Arc::new(service.environment),
        worker: worker.clone(),
        closing: CancellationToken::new(),
    });
    let mut listeners = Vec::new();
    for address in &service.addresses {
        let made = listen(
            address,
            service.owner,
            service.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()),
            service.allows_open_tcp,
        );
        listeners.extend(made.map_err(|error: AddressError| machine("listen", error))?);
        tracing::info!(%address, "listening");
    }
    let tls = service.tls.as_ref().map(tls).transpose()?;
    if let Some(address) = &service.debug {
        // Whoever is let at the address may look: that is what it is for.
        let made = listen(address, Owner::default(), false, true);
        let made = made.map_err(|error: AddressError| machine("listen", error))?;
        tracing::info!(%address, "metrics and introspection");
        made.into_iter()
            .for_each(|listener| debug::serve(&runner, listener));
    }
    let (tasks, gone) = (TaskTracker::new(), CancellationToken::new());
    for listener in listeners {
        let (router, ended) = (router(&runner, &worker, &listener, tls.as_ref())?, gone.clone());
        let hands = runner.sessions.hands().clone();
        tasks.spawn(async move {
            let served = match listener {
                Listener::Unix(listener, _unlinked_at_the_end) => {
                    let connections = connections(listener, hands, ended.clone())
                        .filter(|made| std::future::ready(accepted(made)));
                    router
                        .serve_with_incoming_shutdown(connections, ended.cancelled_owned())
                        .await
                }
                Listener::Tcp(listener) => {
                    let connections =
                        TcpListenerStream::new(listener).filter(|made| std::future::ready(accepted(made)));
                    router
                        .serve_with_incoming_shutdown(connections, ended.cancelled_owned())
                        .await
                }
            };
            if let Err(error) = served {
                tracing::error!(%error, "a listener ended");
            }
        });
    }
    tasks.close();
    let upkeep = tokio::spawn(upkeep::run(runner.clone()));
    service.notify.ready();
    // Nobody may be waiting to hear it.
    let _ = ready.send(());
    stop.gently.cancelled().await;
    runner.closing.cancel();
    service.notify.stopping(runner.builds.count());
    let canceled = end_builds(&runner.builds, service.drain, &stop.now).await;
    gone.cancel();
    // Connections of clients that stay are cut: their builds have ended.
    let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
    upkeep.abort();
    runner.traces.flush().await;
    let cache = runner.engine.cache.clone();
    let synced = tokio::task::spawn_blocking(move || cache.barrier()).await;
    if let Ok(Err(error)) = synced {
        tracing::warn!(%error, "the store could not be made durable");
    }
    Ok(Served { canceled })
}

/// Lets builds end, then calls off those that do not.
async fn end_builds(builds: &Builds, drain: Duration, now: &CancellationToken) -> usize {
    tracing::info!(builds = builds.count(), "shutting down");
    tokio::select! {
        () = builds.idle() => return 0,
        () = tokio::time::sleep(drain) => {}
        () = now.cancelled() => {}
    }
    let canceled = builds.count();
    tracing::info!(builds = canceled, "calling off what still runs");
    builds.cancel_all();
    let _ = tokio::time::timeout(LAST, builds.idle()).await;
    canceled
}

/// A connection that could not be accepted (no descriptor left, a client gone already) must not end the listener.
fn accepted<T>(made: &std::io::Result<T>) -> bool {
    if let Err(error) = made {
        tracing::warn!(%error, "a connection was not accepted");
    }
    made.is_ok()
}

fn router(
    runner: &Arc<Runner>,
    worker: &Arc<WorkerInfo>,
    listener: &Listener,
    tls: Option<&ServerTlsConfig>,
) -> Result<Router<Stack<CountCalls, Identity>>, BuildError> {
    let mut server = Server::builder()
        .max_frame_size(MAX_FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .layer(CountCalls(runner.metrics.clone()));
    if let (Listener::Tcp(_), Some(tls)) = (listener, tls) {
        server = server
            .tls_config(tls.clone())
            .map_err(|error| machine("set TLS up", error))?;
    }
    let control = ControlService {
        runner: runner.clone(),
        worker: worker.clone(),
    };
    let gateway = GatewayService {
        runner: runner.clone(),
        worker: worker.clone(),
        guest: None,
    };
    let content = ContentService {
        runner: runner.clone(),
    };
    let (_, health) = tonic_health::server::health_reporter();
    Ok(server
        .add_service(health)
        .add_service(
            ControlServer::new(control)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            LlbBridgeServer::new(gateway)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(ContentServer::new(content).max_encoding_message_size(MAX_MESSAGE))
        .add_service(
            TraceServiceServer::new(Collector(runner.traces.clone())).max_decoding_message_size(MAX_MESSAGE),
        ))
}

fn tls(files: &TlsFiles) -> Result<ServerTlsConfig, BuildError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|error| machine(&format!("read {}", path.display()), error))
    };
    let identity = TlsIdentity::from_pem(read(&files.cert)?, read(&files.key)?);
    let config = ServerTlsConfig::new().identity(identity);
    Ok(match &files.client_ca {
        Some(path) => config.client_ca_root(Certificate::from_pem(read(path)?)),
        None => config,
    })
}

fn machine(doing: &str, error: impl std::fmt::Display) -> BuildError {
    BuildError::Machine {
        doing: doing.to_owned(),
        reason: error.to_string(),
    }
}
