//! What is counted, and the page that shows it. The README lists the names.
use super::text::{Histogram, Kind, Page};
use crate::daemon::run::Runner;
use crate::trace::StepTrail;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::Code;

/// The calls that are told apart; whatever else is called is "other".
const METHODS: [&str; 30] = [
    "/moby.buildkit.v1.Control/Solve",
    "/moby.buildkit.v1.Control/Status",
    "/moby.buildkit.v1.Control/Session",
    "/moby.buildkit.v1.Control/ListWorkers",
    "/moby.buildkit.v1.Control/Info",
    "/moby.buildkit.v1.Control/DiskUsage",
    "/moby.buildkit.v1.Control/Prune",
    "/moby.buildkit.v1.Control/ListenBuildHistory",
    "/moby.buildkit.v1.Control/UpdateBuildHistory",
    "/moby.buildkit.v1.frontend.LLBBridge/ResolveImageConfig",
    "/moby.buildkit.v1.frontend.LLBBridge/ResolveSourceMeta",
    "/moby.buildkit.v1.frontend.LLBBridge/Solve",
    "/moby.buildkit.v1.frontend.LLBBridge/ReadFile",
    "/moby.buildkit.v1.frontend.LLBBridge/ReadDir",
    "/moby.buildkit.v1.frontend.LLBBridge/StatFile",
    "/moby.buildkit.v1.frontend.LLBBridge/Evaluate",
    "/moby.buildkit.v1.frontend.LLBBridge/Ping",
    "/moby.buildkit.v1.frontend.LLBBridge/Return",
    "/moby.buildkit.v1.frontend.LLBBridge/Inputs",
    "/moby.buildkit.v1.frontend.LLBBridge/NewContainer",
    "/moby.buildkit.v1.frontend.LLBBridge/ReleaseContainer",
    "/moby.buildkit.v1.frontend.LLBBridge/ExecProcess",
    "/moby.buildkit.v1.frontend.LLBBridge/Warn",
    "/containerd.services.content.v1.Content/Info",
    "/containerd.services.content.v1.Content/List",
    "/containerd.services.content.v1.Content/Read",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "other",
];
const CODES: usize = 17;

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Ending {
    Done,
    Failed,
    Canceled,
}

const ENDINGS: [(Ending, &str); 3] = [
    (Ending::Done, "done"),
    (Ending::Failed, "failed"),
    (Ending::Canceled, "canceled"),
];

/// One method.
#[derive(Default)]
struct Method {
    times: Histogram,
    open: AtomicU64,
    codes: [AtomicU64; CODES],
}

/// Everything that is counted over the daemon's life.
pub(in crate::daemon) struct Metrics {
    began: SystemTime,
    builds: [AtomicU64; ENDINGS.len()],
    build_times: Histogram,
    steps: [AtomicU64; 3],
    step_times: Histogram,
    swept_bytes: AtomicU64,
    session_received: AtomicU64,
    session_sent: AtomicU64,
    methods: [Method; METHODS.len()],
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            began: SystemTime::now(),
            builds: Default::default(),
            build_times: Histogram::default(),
            steps: Default::default(),
            step_times: Histogram::default(),
            swept_bytes: AtomicU64::new(0),
            session_received: AtomicU64::new(0),
            session_sent: AtomicU64::new(0),
            methods: std::array::from_fn(|_| Method::default()),
        }
    }
}

/// A call that has not been answered yet; one that is dropped was canceled.
pub(super) struct Call {
    metrics: Arc<Metrics>,
    method: usize,
    is_ended: bool,
}

impl Call {
    pub(super) fn end(mut self, code: usize, time: Duration) {
        self.is_ended = true;
        let method = &self.metrics.methods[self.method];
        method.times.observe(time);
        method.codes[code.min(CODES - 1)].fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let method = &self.metrics.methods[self.method];
        method.open.fetch_sub(1, Ordering::Relaxed);
        if !self.is_ended {
            method.codes[Code::Cancelled as usize].fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Metrics {
    /// A client calls a method.
    pub(super) fn begin_call(self: &Arc<Self>, path: &str) -> Call {
        let known = METHODS.iter().position(|method| *method == path);
        let method = known.unwrap_or(METHODS.len() - 1);
        self.methods[method].open.fetch_add(1, Ordering::Relaxed);
        Call {
            metrics: self.clone(),
            method,
            is_ended: false,
        }
    }

    /// A build has ended.
    pub(in crate::daemon) fn build_ended(&self, ending: Ending, time: Duration, steps: &[StepTrail]) {
        self.builds[ending as usize].fetch_add(1, Ordering::Relaxed);
        self.build_times.observe(time);
        for step in steps {
            let outcome = match step.state() {
                "cached" => 1,
                "failed" => 2,
                "done" => 0,
                _ => continue,
            };
            self.steps[outcome].fetch_add(1, Ordering::Relaxed);
            if let (0 | 2, Some(started), Some(completed)) = (outcome, step.started, step.completed) {
                self.step_times
                    .observe(completed.duration_since(started).unwrap_or_default());
            }
        }
    }

    /// Old records were removed.
    pub(in crate::daemon) fn swept(&self, bytes: u64) {
        self.swept_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes came from a client through its session.
    pub(in crate::daemon) fn session_received(&self, bytes: usize) {
        self.session_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes went to a client through its session.
    pub(in crate::daemon) fn session_sent(&self, bytes: usize) {
        self.session_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn calls(&self, page: &mut Page) {
        page.metric(
            "builder_rpc_seconds",
            Kind::Histogram,
            "Time until a call is answered.",
        );
        let used = |method: &&(&str, &Method)| method.1.times.count() > 0;
        let methods: Vec<_> = METHODS.into_iter().zip(&self.methods).collect();
        for (name, method) in methods.iter().filter(used) {
            page.histogram("builder_rpc_seconds", &[("method", name)], &method.times);
        }
        page.metric(
            "builder_rpc_total",
            Kind::Counter,
            "Calls by the code of the answer.",
        );
        for (name, method) in &methods {
            for (code, count) in method.codes.iter().enumerate() {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let code = format!("{:?}", Code::from(i32::try_from(code).unwrap_or_default()));
                    page.value("builder_rpc_total", &[("method", name), ("code", &code)], count);
                }
            }
        }
        page.metric(
            "builder_rpc_open",
            Kind::Gauge,
            "Calls that wait for their answer.",
        );
        for (name, method) in &methods {
            let open = method.open.load(Ordering::Relaxed);
            if open > 0 {
                page.value("builder_rpc_open", &[("method", name)], open);
            }
        }
    }

    fn builds(&self, page: &mut Page) {
        page.metric("builder_builds_total", Kind::Counter, "Builds that have ended.");
        for ((_, name), count) in ENDINGS.iter().zip(&self.builds) {
            let count = count.load(Ordering::Relaxed);
            page.value("builder_builds_total", &[("outcome", name)], count);
        }
        page.metric("builder_build_seconds", Kind::Histogram, "How long builds took.");
        page.histogram("builder_build_seconds", &[], &self.build_times);
        page.metric(
            "builder_steps_total",
            Kind::Counter,
            "Steps of builds that have ended.",
        );
        for (name, count) in ["run", "cached", "failed"].iter().zip(&self.steps) {
            let count = count.load(Ordering::Relaxed);
            page.value("builder_steps_total", &[("outcome", name)], count);
        }
        page.metric(
            "builder_step_seconds",
            Kind::Histogram,
            "How long steps took that ran.",
        );
        page.histogram("builder_step_seconds", &[], &self.step_times);
    }
}

/// The whole page. Blocks: the store is measured.
pub(super) fn page(runner: &Runner) -> String {
    let mut page = Page::default();
    let metrics = &runner.metrics;
    page.metric("builder_info", Kind::Gauge, "Which program this is.");
    let version = env!("CARGO_PKG_VERSION");
    page.value(
        "builder_info",
        &[("version", version), ("worker", &runner.worker.id)],
        1,
    );
    metrics.builds(&mut page);
    now(runner, &mut page);
    bytes(runner, &mut page);
    metrics.calls(&mut page);
    process(metrics.began, &mut page);
    page.finish()
}

fn now(runner: &Runner, page: &mut Page) {
    let held = runner.engine.solver.holdings();
    let gauges = [
        (
            "builder_builds_running",
            "Builds that run.",
            runner.builds.count(),
        ),
        ("builder_steps_running", "Steps that run.", held.running),
        (
            "builder_steps_queued",
            "Steps that wait for their turn.",
            held.waiting,
        ),
        (
            "builder_graph_vertices",
            "Vertices of all builds that run.",
            held.vertices,
        ),
        (
            "builder_sessions",
            "Sessions of clients.",
            runner.sessions.count(),
        ),
    ];
    for (name, help, value) in gauges {
        page.one(name, Kind::Gauge, help, value);
    }
}

fn bytes(runner: &Runner, page: &mut Page) {
    let registry = runner.engine.worker.registry_counters();
    let counters = [
        (
            "builder_pulled_bytes_total",
            "Blobs from registries.",
            registry.fetched_bytes(),
        ),
        (
            "builder_pushed_bytes_total",
            "Blobs to registries.",
            registry.pushed_bytes(),
        ),
        (
            "builder_registry_requests_total",
            "Requests to registries.",
            registry.requests(),
        ),
        (
            "builder_session_received_bytes_total",
            "What clients sent through their sessions.",
            runner.metrics.session_received.load(Ordering::Relaxed),
        ),
        (
            "builder_session_sent_bytes_total",
            "What was sent to clients through their sessions.",
            runner.metrics.session_sent.load(Ordering::Relaxed),
        ),
        (
            "builder_swept_bytes_total",
            "What was removed to keep the store within its limits.",
            runner.metrics.swept_bytes.load(Ordering::Relaxed),
        ),
    ];
    for (name, help, value) in counters {
        page.one(name, Kind::Counter, help, value);
    }
    match runner.engine.cache.used_bytes() {
        Ok(bytes) => page.one("builder_store_bytes", Kind::Gauge, "Bytes of the store.", bytes),
        Err(error) => tracing::warn!(%error, "the store was not measured"),
    }
    let kept = runner.sessions.received().list();
    let kept_bytes: u64 = kept.iter().map(|one| one.bytes).sum();
    let help = "Contexts that are kept between builds.";
    page.one("builder_contexts_bytes", Kind::Gauge, help, kept_bytes);
}

/// The names every exporter has for these.
fn process(began: SystemTime, page: &mut Page) {
    let began = began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let help = "When the daemon began, in seconds since 1970.";
    page.one("process_start_time_seconds", Kind::Gauge, help, began);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    if let Some(kib) = field("VmRSS:") {
        let help = "Resident memory.";
        page.one("process_resident_memory_bytes", Kind::Gauge, help, kib * 1024);
    }
    if let Some(threads) = field("Threads:") {
        page.one("process_threads", Kind::Gauge, "Threads.", threads);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // The one that lists them is not counted.
        let open = open.count().saturating_sub(1);
        page.one("process_open_fds", Kind::Gauge, "Open descriptors.", open);
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let tasks = runtime.metrics().num_alive_tasks();
        page.one("builder_tasks", Kind::Gauge, "Asynchronous tasks.", tasks);
    }
}
