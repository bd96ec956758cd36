//! Containers of gateway frontends: mounts and a network in which one process after the other is started.
//!
//! ```text
//! Wanted ─▶ Worker::container ─▶ Container ── start ─▶ Running (pid 1)
//!             mounts, network        │        start ─▶ Running (entered beside it) …
//!                                    └─ release: all end, then mounts and network go
//! ```
//!
//! 1. The first process is a step like that of RUN; later ones are entered into its namespaces and groups.
//! 2. When the first ends the kernel ends all others, and none can be started any more.
//! 3. What was written goes with the container; a container makes no result.
//!
//! Never by another OCI runtime: who asked for one asked for its walls, so a container is refused there.
mod files; // looked at from outside

pub use files::{Files, FilesError};

use crate::{
    Session, Worker,
    meter::SinkMeter,
    mounts::{Prepared, Preparing},
    network,
    ops::cache_error,
    process,
    proxy::Proxy,
    user,
};
use cache::{ImmutableRef, Meter, view::View};
use llb::op::{ExecMeta, ExecOp, HostIp, Mount, NetMode, SecretEnv, SecurityMode};
use oci::{Digest, Platform};
use sandbox::{Doorway, Exit, Killer, Spec, Stdio, Terminal, network::Lease, spec};
use solver::{
    OpContext, OpError,
    progress::{Sink, VertexInfo},
};
use std::{io, sync::Arc};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

/// One mount of a container.
#[derive(Clone, Debug)]
pub struct MountOf {
    /// As in LLB; its `input` is not looked at, nor is its `output`.
    pub mount: Mount,
    /// What is mounted, for mounts that have contents.
    pub result: Option<ImmutableRef>,
}

/// What a container is made of.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Mounts; exactly one is at `/`.
    pub mounts: Vec<MountOf>,
    /// Its network.
    pub network: NetMode,
    /// Further lines of `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
    /// Its host name; empty means the default.
    pub hostname: String,
    /// Parent of its group; empty means the default.
    pub cgroup_parent: String,
    /// What its programs are for; `None` means this machine.
    pub platform: Option<Platform>,
}

/// One process of a container.
#[derive(Clone, Debug)]
pub struct Process {
    /// Command, environment, working directory, user. Hosts and host name are the container's.
    pub meta: ExecMeta,
    /// How far it is confined.
    pub security: SecurityMode,
    /// Secrets in its environment.
    pub secret_env: Vec<SecretEnv>,
}

/// Mounts and a network, and the processes in them. All end when it is released or dropped.
pub struct Container {
    worker: Arc<Worker>,
    session: Arc<Session>,
    wanted: Wanted,
    /// The root's files, for users and groups.
    view: View,
    meter: Arc<dyn Meter>,
    network: spec::Network,
    kept: Arc<Kept>,
    first: Mutex<Option<First>>,
}

/// What must stay until the last process has ended.
struct Kept {
    prepared: Prepared,
    lease: Option<Lease>,
    proxy: Option<Proxy>,
}

/// The process that holds the container.
struct First {
    doorway: Doorway,
    killer: Killer,
    ended: watch::Receiver<bool>,
}

impl Drop for First {
    fn drop(&mut self) {
        // The thread that waits for its end keeps the mounts until then.
        let _gone = self.killer.kill();
    }
}

impl Worker {
    /// Prepares a container; nothing runs in it yet. Transfers for its mounts are shown under `progress`.
    ///
    /// # Errors
    /// The build may not do this, or a mount cannot be had.
    pub async fn container(
        &self,
        session: Arc<Session>,
        wanted: Wanted,
        progress: Sink,
    ) -> Result<Arc<Container>, OpError> {
        if let Some(runtime) = &self.options.oci_runtime {
            return Err(OpError::user(format!(
                "containers of frontends cannot be run by another OCI runtime ({})",
                runtime.display()
            )));
        }
        process::check_modes(wanted.network, SecurityMode::Sandbox, &session)?;
        let platform = wanted.platform.as_ref().unwrap_or(&self.options.platform);
        crate::emulation::check(platform).map_err(OpError::user)?;
        let (op, inputs) = as_exec(&wanted);
        let vertex = VertexInfo {
            digest: Digest::of(b"container"),
            inputs: Vec::new(),
            name: "container".to_owned(),
            group: None,
        };
        let mut ctx = OpContext::detached(vertex, vec![session.clone()]);
        ctx.progress = progress;
        let meter = SinkMeter::shared(ctx.progress.clone());
        let preparing = Preparing {
            worker: self,
            ctx: &ctx,
            session: &session,
            inputs: &inputs,
            meter: meter.clone(),
            caches_anew: false,
        };
        let prepared = preparing.prepare(&op).await?;
        let root = op.root().and_then(|root| inputs.get(root.input? as usize));
        let view = match root {
            Some(root) => root.view(&meter).await.map_err(cache_error)?,
            None => View::default(),
        };
        let (lease, network, proxy) = self.network_of(&session, wanted.network, &ctx.progress).await?;
        if let Some(proxy) = &proxy {
            // What is written goes with the container, so it is never taken out.
            prepared
                .trust(view.clone(), proxy.certificate().to_owned())
                .await?;
        }
        Ok(Arc::new(Container {
            worker: self.shared(),
            session,
            wanted,
            view,
            meter,
            network,
            kept: Arc::new(Kept {
                prepared,
                lease,
                proxy,
            }),
            first: Mutex::new(None),
        }))
    }
}

/// The mounts as those of an op, whose inputs are numbered.
fn as_exec(wanted: &Wanted) -> (ExecOp, Vec<ImmutableRef>) {
    let mut inputs = Vec::new();
    let mut mounts = Vec::new();
    for MountOf { mount, result } in &wanted.mounts {
        let mut mount = mount.clone();
        mount.output = None;
        mount.input = result.as_ref().map(|result| {
            inputs.push(result.clone());
            u32::try_from(inputs.len() - 1).unwrap_or(u32::MAX)
        });
        mounts.push(mount);
    }
    let op = ExecOp {
        meta: ExecMeta::default(),
        mounts,
        network: wanted.network,
        security: SecurityMode::Sandbox,
        secret_env: Vec::new(),
        cdi_devices: Vec::new(),
    };
    (op, inputs)
}

impl Container {
    /// Starts a process: the first holds the container, the others are beside it.
    ///
    /// # Errors
    /// The build may not do this, there is no such command or user, or the container has ended.
    pub async fn start(&self, wanted: Process, stdio: Stdio) -> Result<Running, OpError> {
        process::check_modes(self.wanted.network, wanted.security, &self.session)?;
        let spec = self.spec(&wanted).await?;
        // One at a time, so that it is known which is the first.
        let mut first = self.first.lock().await;
        let (worker, kept) = (self.worker.clone(), self.kept.clone());
        let doorway = first.as_ref().map(|first| first.doorway);
        let begun = tokio::task::spawn_blocking(move || match doorway {
            Some(doorway) => worker.enter(doorway, &spec, stdio),
            None => worker.start(&spec, stdio, kept.lease.as_ref()),
        });
        let begun = begun.await.map_err(|_| OpError::canceled())?;
        let mut process = begun.map_err(process::sandbox_error)?;
        let notes = process.notes().to_vec();
        let killer = process.killer().map_err(OpError::environment)?;
        let (terminal, doorway) = (process.terminal(), process.doorway());
        let (tell, ended) = watch::channel(false);
        let kept = self.kept.clone();
        let waiting = tokio::task::spawn_blocking(move || {
            let exit = process.wait();
            drop(kept);
            tell.send_replace(true);
            exit
        });
        let mut running = Running {
            killer,
            terminal,
            notes,
            waiting: Some(waiting),
        };
        if first.is_none() {
            match running.killer.try_clone() {
                Ok(killer) => {
                    *first = Some(First {
                        doorway,
                        killer,
                        ended,
                    });
                }
                Err(error) => {
                    running.kill().map_err(OpError::environment)?;
                    let _ended = running.wait().await;
                    return Err(OpError::environment(error));
                }
            }
        }
        Ok(running)
    }

    async fn spec(&self, wanted: &Process) -> Result<Spec, OpError> {
        let meta = &wanted.meta;
        let found = user::find_user(&self.view, &meta.user).map_err(OpError::user)?;
        let hostname = process::hostname(&self.wanted.hostname);
        let mut env = process::environment(meta, &wanted.secret_env, &self.session, &found.home).await?;
        if let Some(proxy) = &self.kept.proxy {
            proxy.announce(&mut env);
        }
        let is_host = self.network == spec::Network::Host;
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let spec = Spec {
            root: self.kept.prepared.root.clone(),
            mounts: self.kept.prepared.mounts.clone(),
            args: meta.args.clone(),
            env,
            cwd: text(&meta.cwd).unwrap_or_else(|| "/".to_owned()),
            user: found.user,
            hostname: hostname.to_owned(),
            hosts: Some(network::hosts(hostname, &self.wanted.extra_hosts)),
            resolv_conf: Some(self.worker.resolv_conf(is_host)),
            security: process::security(wanted.security),
            network: self.network,
            rlimits: process::rlimits(meta)?,
            cgroup_parent: self.worker.cgroup_parent(&self.wanted.cgroup_parent),
            ..Spec::default()
        };
        Ok(process::with_shm_size(spec))
    }

    /// Ends all its processes and returns when they, its mounts and its network are gone.
    pub async fn release(&self) {
        let first = self.first.lock().await.take();
        if let Some(first) = first {
            let mut ended = first.ended.clone();
            drop(first);
            // An error means that the thread that waited is gone, and the process with it.
            let _told = ended.wait_for(|ended| *ended).await;
        }
    }
}

/// A process of a container. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    killer: Killer,
    terminal: Option<Terminal>,
    notes: Vec<String>,
    waiting: Option<JoinHandle<Result<Exit, sandbox::Error>>>,
}

impl Running {
    /// The controlling end of its terminal, where one was asked for.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    /// What could not be had and was done without, in plain words.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Sends it a signal; one that has ended is left alone.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        self.killer.signal(number)
    }

    /// Ends it; the first process of a container takes all others along.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn kill(&self) -> io::Result<()> {
        self.killer.kill()
    }

    /// Waits for its end. Can be dropped and asked again; after the end has been told once it is an error.
    ///
    /// # Errors
    /// Those of the sandbox.
    pub async fn wait(&mut self) -> Result<Exit, OpError> {
        let waiting = self
            .waiting
            .as_mut()
            .ok_or_else(|| OpError::internal("the end of a process was asked for twice"))?;
        let exit = waiting.await.map_err(|_| OpError::canceled())?;
        self.waiting = None;
        exit.map_err(process::sandbox_error)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.waiting.is_some() {
            // The thread that waits for it sees to the rest.
            let _gone = self.killer.kill();
        }
    }
}
