//! The worker: what all builds of a process share, and what one build brings along.
//!
//! ```text
//! Worker { cache, registry, options } ─ ops ─▶ solver::Op        Session { caller, registry with its credentials }
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use cache::{Cache, Origin};
use llb::op::NetMode;
use oci::{Platform, Reference};
use registry::Registry;
use sandbox::network::{Lease, Networks};
use sandbox::{Doorway, Exit, Process, Spec, Stdio, spec};
use session::Caller;
use solver::progress::Sink;
use solver::{OpContext, OpError};

use crate::cdi::{DeviceGrants, KnownDevice};
use crate::executor::{Executor, RunError, room};
use crate::network::{self, Dns};
use crate::ops::build::{NestedBuilds, Nesting};
use crate::proxy::{Proxies, Proxy, ProxyMode};
use tokio_util::sync::CancellationToken;

use crate::origins::{Origins, SessionCredentials};
use crate::source::client_store::ClientStore;

/// Choices for a worker.
#[derive(Clone, Debug)]
pub struct Options {
    /// Run steps through this OCI runtime (runc, crun) instead of the builder's own executor.
    pub oci_runtime: Option<PathBuf>,
    /// What this machine is: the platform of ops that name none.
    pub platform: Platform,
    /// Where devices are described (CDI); what lies in a later one wins.
    pub cdi_directories: Vec<PathBuf>,
    /// Devices (`vendor/class=name`) and kinds of them (`vendor/class`) that every build may use.
    pub cdi_auto_allowed: Vec<String>,
    /// Name servers of steps, instead of the machine's.
    pub dns: Dns,
    /// Steps that ask for no network in particular share the machine's.
    pub shares_network: bool,
    /// Above the control groups of steps that name no parent.
    pub cgroup_parent: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            oci_runtime: None,
            platform: Platform::host(),
            cdi_directories: ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"]
                .map(PathBuf::from)
                .into(),
            cdi_auto_allowed: Vec::new(),
            dns: Dns::default(),
            shares_network: false,
            cgroup_parent: None,
        }
    }
}

/// Does the work of all builds of a process.
pub struct Worker {
    /// Where results are kept.
    pub cache: Cache,
    /// How it was set up.
    pub options: Options,
    registry: Registry,
    me: Weak<Worker>,
    origins: Arc<Origins>,
    executor: Arc<Executor>,
    networks: Arc<Networks>,
    /// Build ops that run.
    pub(crate) nesting: Nesting,
    network_fault: OnceLock<String>,
    pub(crate) proxies: Proxies,
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

impl Worker {
    /// A worker on `cache`, which speaks to registries by `registry`.
    pub fn new(cache: Cache, registry: Registry, options: Options) -> Arc<Worker> {
        let origins = Arc::new(Origins::new(registry.clone()));
        cache.set_remotes(origins.clone());
        Arc::new_cyclic(|me| Worker {
            cache,
            options,
            registry,
            me: me.clone(),
            origins,
            executor: Arc::default(),
            networks: Arc::default(),
            nesting: Nesting::default(),
            network_fault: OnceLock::new(),
            proxies: Proxies::default(),
        })
    }

    /// The worker itself, for what outlives a borrow.
    pub fn shared(&self) -> Arc<Worker> {
        self.me.upgrade().expect("a worker is only made inside its Arc")
    }

    /// Starts what the first step will need, so that it need not wait for it. Blocks for some milliseconds.
    ///
    /// # Errors
    /// The helper process that starts steps did not come up.
    pub fn warm_up(&self) -> Result<(), sandbox::Error> {
        self.executor.warm_up()
    }

    /// Starts a process with this stdio, in the network [`Worker::network`] gave for it: `builder run`.
    ///
    /// # Errors
    /// Those of the sandbox.
    pub fn start(
        &self,
        spec: &Spec,
        stdio: Stdio,
        network: Option<&Lease>,
    ) -> Result<Process, sandbox::Error> {
        self.executor.start(spec, stdio, network.map(AsFd::as_fd))
    }

    /// Starts a further process in the container of another.
    pub(crate) fn enter(
        &self,
        doorway: Doorway,
        spec: &Spec,
        stdio: Stdio,
    ) -> Result<Process, sandbox::Error> {
        self.executor.enter(doorway, spec, stdio)
    }

    /// The network of a step: what is passed to the sandbox, and what to call it. Where a step can have none of its own
    /// it shares the machine's, and that is said once.
    pub async fn network(&self, mode: NetMode, progress: &Sink) -> (Option<Lease>, spec::Network) {
        match mode {
            NetMode::None => return (None, spec::Network::None),
            NetMode::Host => return (None, spec::Network::Host),
            NetMode::Sandbox if self.options.shares_network => return (None, spec::Network::Host),
            NetMode::Sandbox => {}
        }
        if self.network_fault.get().is_none() {
            let (networks, executor) = (self.networks.clone(), self.executor.clone());
            let lease = move || networks.lease(&*executor.spawner()?);
            let leased = tokio::task::spawn_blocking(lease).await;
            let fault = match leased {
                Ok(Ok(lease)) => return (Some(lease), spec::Network::Own),
                Ok(Err(error)) => chain(&error),
                Err(error) => error.to_string(),
            };
            let said = format!(
                "steps share the network of this machine, as they can have none of their own: {fault}"
            );
            if self.network_fault.set(fault).is_ok() {
                progress.warn(solver::progress::Warning {
                    short: said,
                    ..solver::progress::Warning::default()
                });
            }
        }
        (None, spec::Network::Host)
    }

    /// The network of a step of a build: by a proxy if the build asked for that, else as [`Worker::network`].
    pub(crate) async fn network_of(
        &self,
        session: &Session,
        mode: NetMode,
        progress: &Sink,
    ) -> Result<(Option<Lease>, spec::Network, Option<Proxy>), OpError> {
        let Some(proxied) = session.proxy().filter(|_| mode != NetMode::None) else {
            let (lease, network) = self.network(mode, progress).await;
            return Ok((lease, network, None));
        };
        let networks = self.networks.clone();
        let closed = tokio::task::spawn_blocking(move || networks.closed())
            .await
            .map_err(|_| OpError::canceled())?;
        let (lease, listener) = closed.map_err(crate::process::sandbox_error)?;
        let proxy = self
            .proxies
            .start(listener, mode == NetMode::Host, proxied.policy.clone())
            .map_err(OpError::environment)?;
        Ok((Some(lease), spec::Network::Own, Some(proxy)))
    }

    /// An address by which steps reach this machine (`--add-host name=host-gateway`). Where they share its network, that
    /// is its loopback.
    ///
    /// # Errors
    /// This machine has no address that steps would reach.
    pub async fn host_address(&self) -> Result<IpAddr, sandbox::Error> {
        if self.network_fault.get().is_some() || self.options.shares_network {
            return Ok(Ipv4Addr::LOCALHOST.into());
        }
        let networks = self.networks.clone();
        match tokio::task::spawn_blocking(move || networks.host_address()).await {
            Ok(found) => found.map(IpAddr::V4),
            // The runtime is going away, and the build with it.
            Err(_) => Ok(Ipv4Addr::LOCALHOST.into()),
        }
    }

    /// The `/etc/resolv.conf` of a step.
    pub fn resolv_conf(&self, is_host_network: bool) -> Vec<u8> {
        network::resolv_conf(&self.options.dns, is_host_network)
    }

    /// The parent of a step's control group: the one it names, else the one of all.
    pub(crate) fn cgroup_parent(&self, named: &str) -> Option<String> {
        let named = Some(named.to_owned()).filter(|named| !named.is_empty());
        named.or_else(|| self.options.cgroup_parent.clone())
    }

    /// Why steps have no network of their own, if a step was to have one and could not.
    pub fn network_fault(&self) -> Option<&str> {
        self.network_fault.get().map(String::as_str)
    }

    /// The devices of this machine that steps may ask for. Blocks while descriptions are read.
    pub fn devices(&self) -> Vec<KnownDevice> {
        crate::cdi::known(&self.options.cdi_directories, &self.options.cdi_auto_allowed)
    }

    /// Runs one prepared step, which writes to the directories `written` of the store.
    pub(crate) async fn run_step(
        &self,
        spec: Spec,
        network: Option<Lease>,
        written: Vec<PathBuf>,
        ctx: &OpContext,
    ) -> Result<(Exit, Vec<String>), RunError> {
        let watch = self.cache.watch(written);
        let run = async |stop: CancellationToken| match &self.options.oci_runtime {
            Some(runtime) => {
                let bundle = self.cache.work_dir();
                let bundle = bundle.map_err(|cause| RunError::Bundle(cause.into()))?;
                let progress = ctx.progress.clone();
                let run = self
                    .executor
                    .run_by(runtime, spec, network, bundle, progress, &stop);
                run.await
            }
            None => {
                self.executor
                    .run(spec, network, ctx.progress.clone(), &stop)
                    .await
            }
        };
        room::watched(watch, &ctx.cancel, run).await
    }

    /// The registry client that shows a session's credentials.
    pub(crate) fn registry_for(&self, session: &Session) -> Registry {
        session
            .registry
            .get_or_init(|| {
                self.registry
                    .with_credentials(Arc::new(SessionCredentials::new(session.caller.clone())))
            })
            .clone()
    }

    /// The same, for a registry that was asked for as an insecure one (`registry.insecure`).
    pub(crate) fn registry_to(
        &self,
        session: &Session,
        reference: &Reference,
        is_insecure: bool,
    ) -> Registry {
        let registry = self.registry_for(session);
        match is_insecure {
            true => registry.insecure(reference.domain()),
            false => registry,
        }
    }

    /// Remembers which session can fetch what an image is made of, as long as that session lasts.
    pub(crate) fn remember_origin(&self, origin: &Origin, registry: &Registry) {
        self.origins.remember(origin, registry);
    }

    /// Remembers which client has the layers of a layout.
    pub(crate) fn remember_client(&self, store: &ClientStore) {
        self.origins.remember_client(store);
    }

    /// What was asked of registries so far.
    pub fn registry_counters(&self) -> &registry::Counters {
        self.registry.counters()
    }
}

/// What one client's build brings along; the solver hands it to ops as the job's group.
pub struct Session {
    caller: Arc<dyn Caller>,
    registry: std::sync::OnceLock<Registry>,
    entitlements: Entitlements,
    devices: DeviceGrants,
    proxy: Option<ProxyMode>,
    notes: crate::explain::Notes,
    /// Its client may look into steps that fail.
    keeps_failures: AtomicBool,
    nested: OnceLock<Arc<dyn NestedBuilds>>,
    /// Keeps what the build uses from gc.
    _lease: cache::Lease,
}

/// What a build was allowed to do (`--allow`), the daemon's word included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entitlements {
    /// Steps may use the host's network.
    pub network_host: bool,
    /// Steps may run without a sandbox around what they may do.
    pub security_insecure: bool,
}

impl Session {
    /// The session of `caller`, which holds what it uses in `cache` until it is dropped.
    pub fn new(caller: Arc<dyn Caller>, cache: &Cache, entitlements: Entitlements) -> Session {
        Session {
            caller,
            registry: std::sync::OnceLock::new(),
            entitlements,
            devices: DeviceGrants::default(),
            proxy: None,
            notes: <_>::default(),
            keeps_failures: AtomicBool::new(false),
            nested: OnceLock::new(),
            _lease: cache.lease(),
        }
    }

    /// Who asked for the build.
    pub fn caller(&self) -> &Arc<dyn Caller> {
        &self.caller
    }

    /// What its copies took from contexts.
    pub fn notes(&self) -> &crate::explain::Notes {
        &self.notes
    }

    /// The same, for a build whose steps reach the outside by a proxy only.
    #[must_use]
    pub fn with_proxy(self, proxy: ProxyMode) -> Session {
        Session {
            proxy: Some(proxy),
            ..self
        }
    }

    /// How its steps are kept to a proxy, if they are.
    pub fn proxy(&self) -> Option<&ProxyMode> {
        self.proxy.as_ref()
    }

    /// The same, for a build that may use these devices.
    #[must_use]
    pub fn with_devices(self, devices: DeviceGrants) -> Session {
        Session { devices, ..self }
    }

    /// Which devices the build may use.
    pub fn devices(&self) -> &DeviceGrants {
        &self.devices
    }

    /// What the build may do.
    pub fn entitlements(&self) -> Entitlements {
        self.entitlements
    }

    /// Says how definitions that are found in results are solved; the first word counts.
    pub fn solve_nested_by(&self, nested: Arc<dyn NestedBuilds>) {
        let _first = self.nested.set(nested);
    }

    /// How definitions that are found in results are solved.
    pub(crate) fn nested_builds(&self) -> Option<&Arc<dyn NestedBuilds>> {
        self.nested.get()
    }

    /// From now on steps that fail leave what they had and wrote with their error.
    pub fn keep_failures(&self) {
        self.keeps_failures.store(true, Ordering::Relaxed);
    }

    /// Whether a build that wants this vertex may look into its failure.
    pub(crate) fn keeps_failures(ctx: &OpContext) -> bool {
        let sessions = ctx
            .groups()
            .into_iter()
            .filter_map(|group| group.downcast::<Session>().ok());
        let mut asked = sessions.map(|session| session.keeps_failures.load(Ordering::Relaxed));
        asked.any(|is_kept| is_kept)
    }

    /// The session of the build that wants this vertex: of several the first whose client is there.
    ///
    /// # Errors
    /// An op was called for a job without a session: a mistake of this program.
    pub fn of(ctx: &OpContext) -> Result<Arc<Session>, OpError> {
        let all: Vec<_> = ctx
            .groups()
            .into_iter()
            .filter_map(|group| group.downcast::<Session>().ok())
            .collect();
        let living = all.iter().find(|session| !session.caller().is_gone());
        living
            .or(all.first())
            .cloned()
            .ok_or_else(|| OpError::internal("the job of this step has no session"))
    }
}
