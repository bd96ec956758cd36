//! RUN: a process on the layers of its inputs.
//!
//! ```text
//! mounts ─▶ user ─▶ Spec ─▶ executor ─▶ exit 0: commit what was written · else: error with command and code
//! ```
use crate::{
    Session, Worker,
    executor::RunError,
    meter::SinkMeter,
    mounts::Preparing,
    network,
    ops::{cache_error, keyed::Run},
    user,
};
use async_trait::async_trait;
use cache::ImmutableRef;
use llb::{
    LinuxResources, Vertex,
    op::{ExecOp, NetMode, ProxyEnv, SecurityMode},
};
use oci::Platform;
use sandbox::{Exit, Spec, spec};
use solver::{OpContext, OpError, progress::OutputStream};
use std::sync::Arc;

/// `PATH` of a step whose image names none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The host name steps have unless the build says another.
const DEFAULT_HOSTNAME: &str = "buildkitsandbox";

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
    limits: spec::Limits,
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
            limits: vertex
                .metadata
                .linux_resources
                .as_ref()
                .map_or_else(spec::Limits::default, limits),
        }
    }

    /// Refuses what this build was not allowed. Every way to a process passes here.
    fn check_entitlements(&self, session: &Session) -> Result<(), OpError> {
        let allowed = session.entitlements();
        if self.op.network == NetMode::Host && !allowed.network_host {
            return Err(OpError::user("network.host is not allowed"));
        }
        if self.op.security == SecurityMode::Insecure && !allowed.security_insecure {
            return Err(OpError::user("security.insecure is not allowed"));
        }
        if let Some(device) = self.op.cdi_devices.iter().find(|device| !device.optional) {
            return Err(OpError::user(format!(
                "devices are not supported yet: {}",
                device.name
            )));
        }
        Ok(())
    }

    /// The environment: the op's, proxies, `PATH`, secrets, `HOME`.
    async fn environment(&self, session: &Session, home: &str) -> Result<Vec<String>, OpError> {
        let meta = &self.op.meta;
        let mut env = meta.env.clone();
        if let Some(proxy) = &meta.proxy_env {
            env.extend(proxy_variables(proxy));
        }
        let has = |env: &[String], name: &str| {
            env.iter()
                .any(|variable| variable.split_once('=').is_some_and(|(found, _)| found == name))
        };
        if !has(&env, "PATH") {
            env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for secret in &self.op.secret_env {
            match session.caller().secret(&secret.id).await.map_err(OpError::user)? {
                Some(value) => {
                    let text = value.expose_text();
                    let text = text.filter(|text| !text.contains('\0')).ok_or_else(|| {
                        OpError::user(format!(
                            "secret {} cannot be an environment variable: it is no text",
                            secret.id
                        ))
                    })?;
                    env.push(format!("{}={text}", secret.name));
                }
                None if secret.optional => {}
                None => return Err(OpError::user(format!("secret {}: not found", secret.id))),
            }
        }
        if !has(&env, "HOME") {
            env.push(format!("HOME={home}"));
        }
        Ok(env)
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
}

#[async_trait]
impl Run for ExecRun {
    async fn run(&self, ctx: &OpContext, inputs: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let session = Session::of(ctx)?;
        self.check_entitlements(&session)?;
        crate::emulation::check(&self.platform).map_err(OpError::user)?;
        let meter = SinkMeter::shared(ctx.progress.clone());
        let preparing = Preparing {
            worker: &self.worker,
            ctx,
            session: &session,
            inputs: &inputs,
            meter: meter.clone(),
            caches_anew: self.caches_anew,
        };
        let prepared = preparing.prepare(&self.op).await?;
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
        let hostname = if meta.hostname.is_empty() {
            DEFAULT_HOSTNAME
        } else {
            &meta.hostname
        };
        let (lease, network) = self.worker.network(self.op.network, &ctx.progress).await;
        let is_host_network = network == spec::Network::Host;
        let insecure = self.op.security == SecurityMode::Insecure;
        let spec = Spec {
            root: prepared.root.clone(),
            mounts: prepared.mounts.clone(),
            args: meta.args.clone(),
            env: self.environment(&session, &found.home).await?,
            cwd: if meta.cwd.is_empty() {
                "/".to_owned()
            } else {
                meta.cwd.clone()
            },
            user: found.user,
            hostname: hostname.to_owned(),
            hosts: Some(network::hosts(hostname, &meta.extra_hosts)),
            resolv_conf: Some(network::resolv_conf(is_host_network)),
            security: if insecure {
                spec::Security::Insecure
            } else {
                spec::Security::Confined
            },
            network,
            rlimits: rlimits(&self.op)?,
            limits: self.limits.clone(),
            cgroup_parent: Some(meta.cgroup_parent.clone()).filter(|parent| !parent.is_empty()),
            stubs: match meta.remove_mount_stubs_recursive {
                true => spec::Stubs::RemoveWithParents,
                false => spec::Stubs::Remove,
            },
            ..Spec::default()
        };
        let spec = with_shm_size(spec);
        let ran = self.worker.run_step(spec, lease, ctx).await;
        let (exit, notes) = ran.map_err(|cause| match cause {
            RunError::Canceled => OpError::canceled(),
            RunError::Sandbox(cause) => match cause.blame() {
                sandbox::Blame::User => OpError::user(cause),
                sandbox::Blame::Environment => OpError::environment(cause),
                sandbox::Blame::Internal => OpError::internal(cause),
            },
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
        tokio::task::spawn_blocking(move || prepared.commit())
            .await
            .map_err(|_| OpError::canceled())?
    }
}

/// A mount of `/dev/shm` by the op is the size asked for (`--shm-size`), not a mount of its own.
fn with_shm_size(mut spec: Spec) -> Spec {
    let is_shm = |mount: &spec::Mount| {
        mount.target == "/dev/shm"
            && matches!(
                mount.source,
                spec::Source::Tmpfs {
                    size_bytes: Some(_),
                    ..
                }
            )
    };
    if let Some(at) = spec.mounts.iter().position(is_shm)
        && let spec::Source::Tmpfs {
            size_bytes: Some(size),
            ..
        } = spec.mounts.remove(at).source
    {
        spec.shm_size_bytes = size;
    }
    spec
}

/// Limits of the step's cgroup. They are no part of the cache key.
/// Differs: where two builds run one step at once, the limits of the first hold, not the looser of both.
fn limits(resources: &LinuxResources) -> spec::Limits {
    let above_zero = |number: u64| Some(number).filter(|number| *number > 0);
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    spec::Limits {
        memory_bytes: u64::try_from(resources.memory).ok().and_then(above_zero),
        memory_swap_bytes: match resources.memory_swap {
            0 => None,
            // -1 is no limit.
            bytes => Some(u64::try_from(bytes).unwrap_or(u64::MAX)),
        },
        cpu_shares: above_zero(resources.cpu_shares),
        cpu_quota_us: u64::try_from(resources.cpu_quota).ok().and_then(above_zero),
        cpu_period_us: above_zero(resources.cpu_period),
        cpuset_cpus: text(&resources.cpuset_cpus),
        cpuset_mems: text(&resources.cpuset_mems),
        pids: None,
    }
}

fn rlimits(op: &ExecOp) -> Result<Vec<spec::Rlimit>, OpError> {
    op.meta
        .ulimits
        .iter()
        .map(|ulimit| {
            let resource = spec::Resource::parse(&ulimit.name)
                .ok_or_else(|| OpError::user(format!("unknown ulimit {:?}", ulimit.name)))?;
            let value = |number: i64| u64::try_from(number).unwrap_or(u64::MAX);
            Ok(spec::Rlimit {
                resource,
                soft: value(ulimit.soft),
                hard: value(ulimit.hard),
            })
        })
        .collect()
}

/// The proxy variables in both cases, as programs look for either.
fn proxy_variables(proxy: &ProxyEnv) -> Vec<String> {
    let named = [
        ("HTTP_PROXY", &proxy.http_proxy),
        ("HTTPS_PROXY", &proxy.https_proxy),
        ("FTP_PROXY", &proxy.ftp_proxy),
        ("NO_PROXY", &proxy.no_proxy),
        ("ALL_PROXY", &proxy.all_proxy),
    ];
    let set = named.into_iter().filter(|(_, value)| !value.is_empty());
    set.flat_map(|(name, value)| {
        [
            format!("{name}={value}"),
            format!("{}={value}", name.to_lowercase()),
        ]
    })
    .collect()
}
