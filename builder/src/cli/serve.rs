//! `serve` and `dial-stdio`: the daemon, and a way to it for ssh.
//!
//! ```text
//! buildkitd.toml ◀ laid over ─ flags ─▶ DaemonFile ─▶ Service (how the daemon is)
//!                                            └──────▶ Config  (registries, steps, the store's ceiling) ─▶ engine
//! ```
use super::args::{DialStdioArgs, Global};
use super::exit::ExitStatus;
use super::serve_flags::ServeArgs;
use super::values::UsageError;
use crate::client::{self, Signals};
use crate::config::{Config, DaemonFile, Environment, NetworkMode, Steps, Tracing};
use crate::daemon::{self, Address, Notify, Owner, Service, Stop, TlsFiles};
use crate::history::Limits;
use crate::request::Entitlements;
use crate::units;
use anyhow::{Context, Result};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

/// Serves until a signal comes.
pub(super) fn run(global: &Global, args: &ServeArgs) -> Result<ExitStatus> {
    let environment = Environment::read();
    let (mut file, mut warnings) = DaemonFile::load(args.config.as_deref(), &environment)?;
    warnings.extend(args.over(&mut file, &environment)?);
    start_log(global, &file, &environment)?;
    let tracing = Tracing::of(&environment);
    for warning in warnings.iter().chain(&tracing.warnings) {
        tracing::warn!("{warning}");
    }
    let mut config = Config::load(
        global
            .root
            .clone()
            .or_else(|| environment.builder_root())
            .or(file.root.take()),
    )?;
    let mut service = service(&config, args, &mut file)?;
    service.tracing = tracing;
    let oci_runtime = file.worker.binary.take();
    engine_config(&mut config, file);
    // What few long-lived things lie in many heaps would keep a daemon from ever growing smaller.
    sandbox::share_heaps();
    let runtime = client::runtime()?;
    let served = runtime.block_on(async {
        let signals = Signals::listen().context("listen for signals")?;
        let engine = client::open(&config, oci_runtime)?;
        let (ready, told) = oneshot::channel();
        let addresses = service.addresses.clone();
        tokio::spawn(async move {
            if told.await.is_ok() {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                super::note(&format!("serving at {}", addresses.join(", ")));
            }
        });
        let stop = Stop {
            gently: signals.token().clone(),
            now: signals.again().clone(),
        };
        daemon::serve(engine, service, ready, stop)
            .await
            .map_err(anyhow::Error::from)
    })?;
    if served.canceled > 0 {
        super::note(&format!("{} builds were called off", served.canceled));
    }
    Ok(ExitStatus::DONE)
}

fn start_log(global: &Global, file: &DaemonFile, environment: &Environment) -> Result<(), UsageError> {
    let level = match global.debug {
        true => "debug",
        false => file.log.level.as_deref().unwrap_or("info"),
    };
    let format = file.log.format.as_deref().unwrap_or("text");
    crate::telemetry::serve(level, format, environment).map_err(UsageError::from)
}

fn service(config: &Config, args: &ServeArgs, file: &mut DaemonFile) -> Result<Service> {
    let mut addresses = Vec::new();
    for text in &file.grpc.address {
        addresses.push(Address::parse(text).map_err(|error| UsageError::new(format!("--addr: {error}")))?);
    }
    if addresses.is_empty() {
        let socket = config.environment.default_socket();
        let socket = socket.ok_or_else(|| {
            UsageError::new("XDG_RUNTIME_DIR is not set").hint("say where to listen with --addr unix://PATH")
        })?;
        addresses.push(Address::Unix(socket));
    }
    let has_devices = file.cdi.disabled != Some(true);
    let group = args.group.as_deref().map(group_id).transpose()?;
    let drain = units::parse_duration(&args.drain_timeout)
        .map_err(|reason| UsageError::new(format!("--drain-timeout: {reason}")))?;
    let limits = Limits::default();
    let notify = config.environment.os("NOTIFY_SOCKET");
    Ok(Service {
        addresses,
        tls: tls(file)?,
        allows_open_tcp: args.insecure_tcp,
        owner: Owner {
            user: file.grpc.uid,
            group: group.or(file.grpc.gid),
        },
        allowed: entitlements(file.entitlements.as_deref().unwrap_or_default())?,
        has_devices,
        is_proxied: file.is_proxied == Some(true),
        history: Limits {
            max_age: file.history.max_age.unwrap_or(limits.max_age),
            max_entries: file.history.max_entries.unwrap_or(limits.max_entries),
        },
        gc: file.worker.gc.clone(),
        frontends: file.frontends.clone(),
        labels: std::mem::take(&mut file.worker.labels),
        platforms: std::mem::take(&mut file.worker.platforms),
        drain,
        tracing: Tracing::default(),
        environment: file.provenance_environment()?,
        debug: file
            .grpc
            .debug_address
            .as_deref()
            .map(debug_address)
            .transpose()?,
        notify: Notify::of(notify).context("NOTIFY_SOCKET")?,
    })
}

/// Without a scheme it is a port.
fn debug_address(text: &str) -> Result<Address, UsageError> {
    let whole = match text.contains("://") {
        true => text.to_owned(),
        false => format!("tcp://{text}"),
    };
    match Address::parse(&whole) {
        Ok(Address::Inherited) | Err(_) => Err(UsageError::new(format!(
            "--debugaddr {text}: must be HOST:PORT or unix://PATH"
        ))),
        Ok(address) => Ok(address),
    }
}

fn entitlements(names: &[String]) -> Result<Entitlements, UsageError> {
    let mut allowed = Entitlements::default();
    for name in names {
        match name.as_str() {
            "network.host" => allowed.network_host = true,
            "security.insecure" => allowed.security_insecure = true,
            // Devices always may be, unless there are none.
            "device" => {}
            other => {
                let error = UsageError::new(format!("--allow-insecure-entitlement {other}: unknown"));
                return Err(error.hint("known are network.host, security.insecure and device"));
            }
        }
    }
    Ok(allowed)
}

fn tls(file: &DaemonFile) -> Result<Option<TlsFiles>, UsageError> {
    let grpc = &file.grpc;
    match (&grpc.cert, &grpc.key) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: grpc.ca.clone(),
        })),
        (None, None) if grpc.ca.is_none() => Ok(None),
        _ => Err(UsageError::new(
            "TLS needs a certificate and its key: say --tlscert and --tlskey, or cert and key in [grpc.tls]",
        )),
    }
}

/// What the engine takes from the daemon's file. A registry in it counts more than the one in `builder.toml`.
fn engine_config(config: &mut Config, file: DaemonFile) {
    let worker = file.worker;
    config.file.registry.extend(file.registry);
    if file.cdi.disabled == Some(true) {
        config.file.cdi.spec_dirs = Some(Vec::new());
    } else if let Some(folders) = &file.cdi.spec_dirs {
        config.file.cdi.spec_dirs = Some(folders.clone());
    }
    if worker.max_parallelism.is_some() {
        config.file.worker.max_parallelism = worker.max_parallelism;
    }
    config.least_ceiling = worker.gc.least_ceiling(daemon::disk_bytes(&config.root));
    config.steps = Steps {
        dns: file.dns.unwrap_or_default(),
        share_network: worker.network == NetworkMode::Host,
        cgroup_parent: worker.cgroup_parent,
        free_devices: file.cdi.auto_allowed,
        registry_parallelism: file.registry_parallelism,
    };
}

/// The number of a group.
fn group_id(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group").context("read /etc/group")?;
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    });
    found.ok_or_else(|| UsageError::new(format!("--group {name}: there is no such group")).into())
}

/// Connects stdin and stdout to the daemon's socket, until either end closes.
pub(super) fn dial(global: &Global, args: &DialStdioArgs) -> Result<ExitStatus> {
    let config = Config::load(global.root.clone())?;
    let path = match &args.addr {
        Some(text) => match Address::parse(text)
            .map_err(|error| UsageError::new(format!("--addr: {error}")))?
        {
            Address::Unix(path) => path,
            other => {
                return Err(
                    UsageError::new(format!("--addr {other}: dial-stdio connects to unix sockets")).into(),
                );
            }
        },
        None => config
            .environment
            .default_socket()
            .ok_or_else(|| UsageError::new("say where the daemon is with --addr unix://PATH"))?,
    };
    client::runtime()?.block_on(async {
        let stream = tokio::net::UnixStream::connect(&path).await;
        let stream = stream.with_context(|| format!("connect to the daemon at {}", path.display()))?;
        let (mut from, mut to) = stream.into_split();
        let (mut stdin, mut stdout) = (tokio::io::stdin(), tokio::io::stdout());
        let sent = async {
            tokio::io::copy(&mut stdin, &mut to).await?;
            to.shutdown().await
        };
        let received = async {
            tokio::io::copy(&mut from, &mut stdout).await?;
            stdout.flush().await
        };
        // The daemon's end decides: what it still has to say is passed on after stdin has ended.
        tokio::pin!(sent, received);
        tokio::select! {
            done = &mut received => done?,
            done = &mut sent => {
                done?;
                received.await?;
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(ExitStatus::DONE)
}
