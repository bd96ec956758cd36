//! RUN: a process on the layers of its inputs.
//!
//! ```text
//! mounts ─▶ user ─▶ Spec ─▶ executor ─▶ exit 0: commit what was written · else: error with command and code
//! ```
//!
//! Where a client may look into it, a failed step leaves its mounts with the error ([`Left`]).
use crate::{
    Session, Worker, cdi,
    executor::RunError,
    meter::SinkMeter,
    mounts::{Left, Prepared, Preparing},
    network,
    ops::{cache_error, keyed::Run, limits::looser},
    process,
    proxy::{Capture, Proxy, Trusted},
    user,
};
use async_trait::async_trait;
use cache::ImmutableRef;
use llb::{
    LinuxResources, Vertex,
    op::{ExecOp, Mount},
};
use oci::Platform;
use parking_lot::Mutex;
use sandbox::{Exit, Spec, spec};
use solver::{OpContext, OpError, progress::OutputStream};
use std::any::Any;
use std::sync::Arc;

/// A process of a step ended as it should not.
#[derive(Clone, Debug, thiserror::Error)]
#[error("process {command:?} did not complete successfully: {how}")]
pub struct ExitError {
    /// The arguments, joined by spaces.
    pub command: String,
    /// The exit code; 128 and its number for a signal.
    pub code: i32,
    /// In words.
    pub how: String,
}

/// The run of an exec op.
pub(super) struct ExecRun {
    worker: Arc<Worker>,
    op: ExecOp,
    platform: Platform,
    caches_anew: bool,
    /// Those of all builds that wait for it, until it is run.
    limits: Mutex<Option<LinuxResources>>,
}

impl ExecRun {
    pub(super) fn new(worker: Arc<Worker>, vertex: &Vertex, op: &ExecOp) -> ExecRun {
        let platform = vertex
            .platform
            .clone()
            .unwrap_or_else(|| worker.options.platform.clone());
        ExecRun {
            worker,
            op: op.clone(),
            platform,
            caches_anew: vertex.metadata.ignore_cache,
            limits: Mutex::new(vertex.metadata.linux_resources.clone()),
        }
    }

    /// Puts the devices it asks for into its description.
    async fn give_devices(&self, spec: &mut Spec, session: &Session) -> Result<Vec<String>, OpError> {
        let wanted = &self.op.cdi_devices;
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let directories = self.worker.options.cdi_directories.clone();
        let registry = tokio::task::spawn_blocking(move || cdi::Registry::read(&directories))
            .await
            .map_err(|_| OpError::canceled())?
            .with_free(&self.worker.options.cdi_auto_allowed);
        cdi::apply(spec, wanted, &registry, session.devices()).map_err(OpError::user)
    }

    fn error(&self, exit: &Exit) -> OpError {
        let command = self.op.meta.args.join(" ");
        let code = exit.status.code();
        let mut how = format!("exit code: {code}");
        if exit.is_out_of_memory {
            how.push_str(" (the memory limit of the step was reached)");
        }
        OpError::user(ExitError { command, code, how })
    }

    /// The contents of each mount as they are before the step.
    fn found(&self, inputs: &[ImmutableRef]) -> Vec<Option<ImmutableRef>> {
        let of = |mount: &Mount| inputs.get(mount.input? as usize).cloned();
        self.op.mounts.iter().map(of).collect()
    }

    /// Runs the process; what was prepared for it is in `kept`, however it ends.
    async fn step(
        &self,
        ctx: &OpContext,
        session: &Session,
        inputs: &[ImmutableRef],
        kept: &mut Option<Prepared>,
    ) -> Result<(), OpError> {
        process::check_entitlements(&self.op, session)?;
        crate::emulation::check(&self.platform).map_err(OpError::user)?;
        let meter = SinkMeter::shared(ctx.progress.clone());
        let preparing = Preparing {
            worker: &self.worker,
            ctx,
            session,
            inputs,
            meter: meter.clone(),
            caches_anew: self.caches_anew,
        };
        let prepared = &*kept.insert(preparing.prepare(&self.op).await?);
        let root = self
            .op
            .root()
            .and_then(|root| root.input)
            .and_then(|index| inputs.get(index as usize));
        let view = match root {
            Some(root) => root.view(&meter).await.map_err(cache_error)?,
            None => cache::view::View::default(),
        };
        let meta = &self.op.meta;
        let found = user::find_user(&view, &meta.user).map_err(|cause| {
            let (command, how) = (meta.args.join(" "), cause.to_string());
            OpError::user(ExitError {
                command,
                code: 1,
                how,
            })
        })?;
        let hostname = process::hostname(&meta.hostname);
        let (lease, network, proxy) = self
            .worker
            .network_of(session, self.op.network, &ctx.progress)
            .await?;
        let is_host_network = network == spec::Network::Host;
        let mut env = process::environment(meta, &self.op.secret_env, session, &found.home).await?;
        let mut trusted = None;
        if let Some(proxy) = &proxy {
            proxy.announce(&mut env);
            trusted = prepared.trust(view, proxy.certificate().to_owned()).await?;
        }
        let spec = Spec {
            root: prepared.root.clone(),
            mounts: prepared.mounts.clone(),
            args: meta.args.clone(),
            env,
            cwd: if meta.cwd.is_empty() {
                "/".to_owned()
            } else {
                meta.cwd.clone()
            },
            user: found.user,
            hostname: hostname.to_owned(),
            hosts: Some(network::hosts(hostname, &meta.extra_hosts)),
            resolv_conf: Some(self.worker.resolv_conf(is_host_network)),
            security: process::security(self.op.security),
            network,
            rlimits: process::rlimits(meta)?,
            limits: self
                .limits
                .lock()
                .as_ref()
                .map_or_else(spec::Limits::default, process::limits),
            cgroup_parent: self.worker.cgroup_parent(&meta.cgroup_parent),
            stubs: match meta.remove_mount_stubs_recursive {
                true => spec::Stubs::RemoveWithParents,
                false => spec::Stubs::Remove,
            },
            ..Spec::default()
        };
        let mut spec = process::with_shm_size(spec);
        for note in self.give_devices(&mut spec, session).await? {
            ctx.progress
                .log(OutputStream::Stderr, format!("note: {note}\n").as_bytes());
        }
        let ran = self.worker.run_step(spec, lease, prepared.written(), ctx).await;
        after(proxy, trusted, ctx).await?;
        let (exit, notes) = ran.map_err(|cause| match cause {
            RunError::Canceled => OpError::canceled(),
            RunError::Sandbox(cause) => process::sandbox_error(cause),
            cause => OpError::environment(cause),
        })?;
        for note in notes {
            ctx.progress
                .log(OutputStream::Stderr, format!("note: {note}\n").as_bytes());
        }
        let is_fine = match self.op.meta.valid_exit_codes.as_slice() {
            [] => exit.status.code() == 0,
            valid => valid.contains(&exit.status.code()),
        };
        if !is_fine || exit.is_out_of_memory && exit.status.code() != 0 {
            return Err(self.error(&exit));
        }
        Ok(())
    }
}

/// Ends the proxy of a step that is over: its requests are shown and noted, its certificate is taken out.
async fn after(proxy: Option<Proxy>, trusted: Option<Trusted>, ctx: &OpContext) -> Result<(), OpError> {
    if let Some(proxy) = proxy {
        let capture = proxy.finish().await;
        ctx.progress.log(OutputStream::Stderr, capture.log().as_bytes());
        note_requests(ctx, &capture);
    }
    if let Some(trusted) = trusted {
        let taken = tokio::task::spawn_blocking(move || trusted.take_out()).await;
        taken
            .map_err(|_| OpError::canceled())?
            .map_err(OpError::environment)?;
    }
    Ok(())
}

/// Tells all builds that want this step what it asked the outside for.
fn note_requests(ctx: &OpContext, capture: &Arc<Capture>) {
    for group in ctx.groups() {
        if let Ok(session) = group.downcast::<Session>()
            && let Some(proxied) = session.proxy()
        {
            proxied.captures.note(ctx.vertex.digest, capture.clone());
        }
    }
}

#[async_trait]
impl Run for ExecRun {
    fn terms(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(self.limits.lock().clone()))
    }

    fn join(&self, terms: Option<Arc<dyn Any + Send + Sync>>) {
        let other = terms.and_then(|terms| terms.downcast::<Option<LinuxResources>>().ok());
        if let Some(other) = other {
            let mut limits = self.limits.lock();
            *limits = looser(limits.as_ref(), other.as_ref().as_ref());
        }
    }

    async fn run(&self, ctx: &OpContext, inputs: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let session = Session::of(ctx)?;
        let mut prepared = None;
        let ran = self.step(ctx, &session, &inputs, &mut prepared).await;
        let is_looked_into = Session::keeps_failures(ctx);
        let found = self.found(&inputs);
        let ending = tokio::task::spawn_blocking(move || match (ran, prepared) {
            (Ok(()), Some(prepared)) => prepared.commit(),
            (Ok(()), None) => Err(OpError::internal("a step without mounts")),
            (Err(error), _) if !is_looked_into || error.is_canceled() => Err(error),
            (Err(error), Some(prepared)) => Err(error.leaving(prepared.leave(found))),
            (Err(error), None) => Err(error.leaving(Left {
                mounts: found.clone(),
                inputs: found,
                subject: None,
            })),
        });
        ending.await.map_err(|_| OpError::canceled())?
    }
}
