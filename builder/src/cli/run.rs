//! `run`: a command in an image, in the same sandbox as RUN; what it wrote is gone when it has ended.
//!
//! ```text
//! name ─▶ ref and config ─▶ layers as directories ─▶ a writable one on top ─▶ Spec ─▶ process ─▶ its exit code
//! ```
use super::args::{Global, RunArgs};
use super::exit::ExitStatus;
use super::images::platform;
use super::pty::Pty;
use super::values::{UsageError, absolute};
use crate::build::Engine;
use crate::client::{self, Signals};
use crate::config::{Config, DockerCredentials};
use crate::container::{Volume, Wanted, describe};
use crate::stored;
use anyhow::{Context, Result};
use cache::{Meter, NoMeter, RecordInfo};
use llb::op::NetMode;
use oci::{Digest, Platform, Reference};
use sandbox::network::Lease;
use sandbox::spec::{Network, Overlay, Root, Upper};
use sandbox::{Process, Spec, Stdio};
use session::{LocalCaller, LocalOptions, SessionId};
use solver::progress::{Sink, VertexInfo};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use worker::{Entitlements, Session, Worker};

/// How long a process may take to end after a signal.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs the command and ends as it does.
pub(super) fn run(global: &Global, args: RunArgs) -> Result<ExitStatus> {
    let config = Config::load(global.root.clone())?;
    let network = network(&args.network)?;
    let wanted = wanted(&args, &config)?;
    let reference = stored::full_name(&args.image)?;
    let platform = platform(args.platform.as_deref())?.unwrap_or_else(Platform::host);
    let ran = client::runtime()?.block_on(async {
        let engine = client::open(&config, None)?;
        start(&config, &engine, &reference, &platform, &wanted, network).await
    });
    match ran {
        Ok(code) => Ok(ExitStatus(u8::try_from(code).unwrap_or(ExitStatus::USER.0))),
        Err(error) => {
            let (text, _) = super::report(&error);
            super::build::write_stderr(&text);
            Ok(match error.downcast_ref::<sandbox::Error>() {
                Some(sandbox::Error::NotFound { .. }) => ExitStatus::RUN_NOT_FOUND,
                Some(sandbox::Error::Exec { .. }) => ExitStatus::RUN_NOT_STARTED,
                _ => ExitStatus::RUN_SETUP,
            })
        }
    }
}

fn network(text: &str) -> Result<NetMode, UsageError> {
    Ok(match super::values::network(text)? {
        crate::request::NetworkMode::None => NetMode::None,
        crate::request::NetworkMode::Host => NetMode::Host,
        crate::request::NetworkMode::Sandbox => NetMode::Sandbox,
    })
}

fn wanted(args: &RunArgs, config: &Config) -> Result<Wanted, UsageError> {
    let text = |word: &std::ffi::OsString| {
        word.to_str()
            .map(str::to_owned)
            .ok_or_else(|| UsageError::new(format!("{word:?} is no UTF-8")))
    };
    let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.tty && !is_terminal {
        return Err(UsageError::new("--tty: stdin and stdout are no terminal"));
    }
    let env = args.env.iter().filter_map(|pair| match pair.split_once('=') {
        Some(_) => Some(pair.clone()),
        None => config
            .environment
            .text(pair)
            .map(|value| format!("{pair}={value}")),
    });
    Ok(Wanted {
        command: args.command.iter().map(text).collect::<Result<_, _>>()?,
        env: env.collect(),
        entrypoint: args.entrypoint.clone(),
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        volumes: args
            .volume
            .iter()
            .map(|value| volume(value))
            .collect::<Result<_, _>>()?,
        hostname: args.hostname.clone(),
        has_terminal: is_terminal,
    })
}

fn volume(value: &str) -> Result<Volume, UsageError> {
    let wrong = |what: &str| UsageError::new(format!("--volume {value}: {what}"));
    let parts: Vec<&str> = value.split(':').collect();
    let (source, target, is_readonly) = match parts.as_slice() {
        [source, target] | [source, target, "rw"] => (*source, *target, false),
        [source, target, "ro"] => (*source, *target, true),
        _ => return Err(wrong("not of the form source:target[:ro]")),
    };
    if !target.starts_with('/') {
        return Err(wrong("the target is not an absolute path"));
    }
    let source = absolute("--volume", source)?;
    if let Err(error) = std::fs::metadata(&source) {
        return Err(wrong(&error.to_string()));
    }
    Ok(Volume {
        source,
        target: target.to_owned(),
        is_readonly,
    })
}

/// Prepares everything, runs, and answers the exit code.
async fn start(
    config: &Config,
    engine: &Engine,
    reference: &Reference,
    platform: &Platform,
    wanted: &Wanted,
    network: NetMode,
) -> Result<i32> {
    let credentials = Arc::new(DockerCredentials::of(&config.environment));
    let options = LocalOptions {
        credentials: Some(credentials),
        ..LocalOptions::default()
    };
    let caller = Arc::new(LocalCaller::new(SessionId::new("run"), options));
    let session = Session::new(caller, &engine.cache, Entitlements::default());
    let vertex = VertexInfo {
        digest: Digest::of(b"run"),
        inputs: Vec::new(),
        name: "run".into(),
        group: None,
    };
    let sink = Sink::silent(Arc::new(vertex));
    let (image, image_config) = engine
        .worker
        .image_ref(&session, reference, platform, &sink)
        .await?;
    let meter: Arc<dyn Meter> = Arc::new(NoMeter);
    let view = image.view(&meter).await?;
    let accounts = cache::view::passwd(&view)?;
    let groups = cache::view::groups(&view)?;
    let (lease, network) = engine.worker.network(network, &sink).await;
    if let Some(fault) = engine.worker.network_fault() {
        super::note(&format!(
            "note: the command shares this machine's network, as it can have none of its own: {fault}"
        ));
    }
    let is_host = network == Network::Host;
    let mut spec = describe(&image_config, wanted, &accounts, &groups, network)?;
    spec.resolv_conf = Some(engine.worker.resolv_conf(is_host));
    let mut lowers = image.directories(&meter).await?;
    lowers.reverse();
    let scratch = engine
        .cache
        .new_mutable(&image, RecordInfo::new(format!("run {}", reference.familiar())))?;
    let upper = Upper {
        dir: scratch.upper(),
        work: scratch.work(),
    };
    spec.root = Root::Overlay(Overlay {
        lowers,
        upper: Some(upper),
    });
    let code = execute(&engine.worker, spec, lease, wanted.has_terminal).await;
    // What was written goes with it.
    drop(scratch);
    code
}

async fn execute(worker: &Arc<Worker>, spec: Spec, lease: Option<Lease>, has_terminal: bool) -> Result<i32> {
    let stdio = match has_terminal {
        true => Stdio::Terminal(Pty::size()),
        false => inherited().context("pass stdin, stdout and stderr on")?,
    };
    let signals = Signals::listen().context("listen for signals")?;
    let mut window = signal(SignalKind::window_change()).context("listen for signals")?;
    let worker = worker.clone();
    let begun =
        tokio::task::spawn_blocking(move || (worker.start(&spec, stdio, lease.as_ref()), lease)).await?;
    // The network is given back when the process has ended.
    let (mut process, _lease) = (begun.0?, begun.1);
    process
        .notes()
        .iter()
        .for_each(|note| super::note(&format!("note: {note}")));
    let mut pty = process.terminal().map(Pty::new);
    if let Some(pty) = &mut pty {
        pty.join().context("join the terminals")?;
    }
    #[expect(
        deprecated,
        reason = "its successor is unsafe; the descriptor is owned here and outlives its registration"
    )]
    let ended = AsyncFd::new(process.ended().try_clone_to_owned()?)?;
    loop {
        tokio::select! {
            ready = ended.readable() => { ready?.retain_ready(); break; }
            _ = window.recv() => pty.iter().for_each(Pty::follow_window),
            number = signals.received() => { stop(&process, number, &ended).await?; break; }
        }
    }
    let exit = tokio::task::spawn_blocking(move || process.wait()).await??;
    if let Some(pty) = &mut pty {
        pty.drain();
    }
    Ok(exit.status.code())
}

/// Passes a signal on; a process that does not mind it is killed.
async fn stop(process: &Process, number: i32, ended: &AsyncFd<std::os::fd::OwnedFd>) -> Result<()> {
    process.signal(number)?;
    if tokio::time::timeout(PATIENCE, ended.readable()).await.is_err() {
        process.kill()?;
    }
    Ok(())
}

fn inherited() -> std::io::Result<Stdio> {
    Ok(Stdio::Descriptors {
        stdin: std::io::stdin().as_fd().try_clone_to_owned()?,
        stdout: std::io::stdout().as_fd().try_clone_to_owned()?,
        stderr: std::io::stderr().as_fd().try_clone_to_owned()?,
    })
}
