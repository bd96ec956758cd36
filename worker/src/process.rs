//! A process of a step or container: what LLB says of it as what the sandbox is told.
//!
//! | LLB | sandbox |
//! |---|---|
//! | env, proxies, secrets, the image's user | environment with `PATH` and `HOME` |
//! | ulimits, linux resources | limits of processes, limits of the group |
//! | network, security | checked against what the build may do |
use crate::Session;
use llb::{
    LinuxResources,
    op::{ExecMeta, ExecOp, NetMode, ProxyEnv, SecretEnv, SecurityMode},
};
use sandbox::{Spec, spec};
use solver::OpError;

/// `PATH` of a step whose image names none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The host name steps have unless the build says another.
const DEFAULT_HOSTNAME: &str = "buildkitsandbox";

/// Refuses what this build was not allowed. Every way to a process passes here.
pub(crate) fn check_entitlements(op: &ExecOp, session: &Session) -> Result<(), OpError> {
    // Devices are checked when it is known which they are, in `cdi`.
    check_modes(op.network, op.security, session)
}

/// The part of it that is about network and security.
pub(crate) fn check_modes(
    network: NetMode,
    security: SecurityMode,
    session: &Session,
) -> Result<(), OpError> {
    let allowed = session.entitlements();
    if network == NetMode::Host && !allowed.network_host {
        return Err(OpError::user("network.host is not allowed"));
    }
    if security == SecurityMode::Insecure && !allowed.security_insecure {
        return Err(OpError::user("security.insecure is not allowed"));
    }
    Ok(())
}

/// The environment: the process's own, proxies, `PATH`, secrets, `HOME`.
pub(crate) async fn environment(
    meta: &ExecMeta,
    secrets: &[SecretEnv],
    session: &Session,
    home: &str,
) -> Result<Vec<String>, OpError> {
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
    for secret in secrets {
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

/// The host name asked for, or the usual one.
pub(crate) fn hostname(asked: &str) -> &str {
    match asked {
        "" => DEFAULT_HOSTNAME,
        asked => asked,
    }
}

/// Whether the process is confined.
pub(crate) fn security(mode: SecurityMode) -> spec::Security {
    match mode {
        SecurityMode::Insecure => spec::Security::Insecure,
        SecurityMode::Sandbox => spec::Security::Confined,
    }
}

/// A failure of the sandbox, as that of an op.
pub(crate) fn sandbox_error(error: sandbox::Error) -> OpError {
    match error.blame() {
        sandbox::Blame::User => OpError::user(error),
        sandbox::Blame::Environment => OpError::environment(error),
        sandbox::Blame::Internal => OpError::internal(error),
    }
}

/// Limits of the step's cgroup. They are no part of the cache key.
pub(crate) fn limits(resources: &LinuxResources) -> spec::Limits {
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

/// Limits of each process.
pub(crate) fn rlimits(meta: &ExecMeta) -> Result<Vec<spec::Rlimit>, OpError> {
    meta.ulimits
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

/// A mount of `/dev/shm` by the op is the size asked for (`--shm-size`), not a mount of its own.
pub(crate) fn with_shm_size(mut spec: Spec) -> Spec {
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
