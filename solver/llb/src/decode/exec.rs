//! An encoded exec op to [`ExecOp`].

use super::Door;
use crate::error::Error;
use crate::generated as pb;
use crate::op::{
    CacheMount, CacheSharing, CdiDevice, ContentCache, ExecMeta, ExecOp, HostIp, Mount, MountKind, NetMode,
    ProxyEnv, SecretEnv, SecretMount, SecurityMode, SshMount, Ulimit,
};

pub(super) fn exec(door: Door, wire: pb::ExecOp) -> Result<ExecOp, Error> {
    door.count("mounts of one exec", wire.mounts.len())?;
    let network = match pb::NetMode::try_from(wire.network) {
        Ok(pb::NetMode::Unset) => NetMode::Sandbox,
        Ok(pb::NetMode::Host) => NetMode::Host,
        Ok(pb::NetMode::None) => NetMode::None,
        Err(_) => return Err(door.invalid(format!("unknown network mode {}", wire.network))),
    };
    let security = match pb::SecurityMode::try_from(wire.security) {
        Ok(pb::SecurityMode::Sandbox) => SecurityMode::Sandbox,
        Ok(pb::SecurityMode::Insecure) => SecurityMode::Insecure,
        Err(_) => return Err(door.invalid(format!("unknown security mode {}", wire.security))),
    };
    let meta = meta(
        door,
        wire.meta
            .ok_or_else(|| door.invalid("an exec without arguments"))?,
    )?;
    let mounts = wire
        .mounts
        .into_iter()
        .map(|m| mount(door, m))
        .collect::<Result<Vec<_>, _>>()?;
    match mounts
        .iter()
        .filter(|mount| mount.dest == "/")
        .collect::<Vec<_>>()
        .as_slice()
    {
        [root] if root.kind == MountKind::Bind => {}
        [_] => return Err(door.invalid("what is mounted at / is no bind mount")),
        found => return Err(door.invalid(format!("{} mounts at /, there must be one", found.len()))),
    }
    let secret_env = wire
        .secretenv
        .into_iter()
        .map(|s| SecretEnv {
            id: s.id,
            name: s.name,
            optional: s.optional,
        })
        .collect();
    let cdi_devices = wire
        .cdi_devices
        .into_iter()
        .map(|d| CdiDevice {
            name: d.name,
            optional: d.optional,
        })
        .collect();
    Ok(ExecOp {
        meta,
        mounts,
        network,
        security,
        secret_env,
        cdi_devices,
    })
}

impl ExecOp {
    /// The container a gateway client asks for, checked like an exec op of so many inputs.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_container(wire: pb::ExecOp, inputs: usize) -> Result<Self, String> {
        exec(Door::of_gateway(inputs), wire).map_err(reason)
    }
}

impl ExecMeta {
    /// What a gateway client wants to be run in its container.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_process(wire: pb::Meta) -> Result<Self, String> {
        meta(Door::of_gateway(0), wire).map_err(reason)
    }
}

/// Without the digest of the op, as there is none.
fn reason(error: Error) -> String {
    match error {
        Error::InvalidOp { reason, .. } => reason,
        other => other.to_string(),
    }
}

fn meta(door: Door, wire: pb::Meta) -> Result<ExecMeta, Error> {
    if wire.args.is_empty() {
        return Err(door.invalid("an exec without arguments"));
    }
    let text = [
        wire.args.as_slice(),
        &wire.env,
        std::slice::from_ref(&wire.cwd),
        std::slice::from_ref(&wire.user),
    ];
    if text.concat().iter().any(|text| text.contains('\0')) {
        return Err(door.invalid("an argument, variable, directory or user with a NUL in it"));
    }
    Ok(ExecMeta {
        args: wire.args,
        env: wire.env,
        cwd: wire.cwd,
        user: wire.user,
        proxy_env: wire.proxy_env.map(|p| ProxyEnv {
            http_proxy: p.http_proxy,
            https_proxy: p.https_proxy,
            ftp_proxy: p.ftp_proxy,
            no_proxy: p.no_proxy,
            all_proxy: p.all_proxy,
        }),
        extra_hosts: wire
            .extra_hosts
            .into_iter()
            .map(|h| HostIp {
                host: h.host,
                ip: h.ip,
            })
            .collect(),
        hostname: wire.hostname,
        ulimits: wire
            .ulimit
            .into_iter()
            .map(|u| Ulimit {
                name: u.name,
                soft: u.soft,
                hard: u.hard,
            })
            .collect(),
        cgroup_parent: wire.cgroup_parent,
        remove_mount_stubs_recursive: wire.remove_mount_stubs_recursive,
        valid_exit_codes: wire.valid_exit_codes,
    })
}

fn mount(door: Door, wire: pb::Mount) -> Result<Mount, Error> {
    let dest = wire.dest.clone();
    let what = format!("the mount at {dest:?}");
    if dest.is_empty() {
        return Err(door.invalid("a mount without destination"));
    }
    if !wire.result_id.is_empty() {
        return Err(door.invalid(format!("{what} names a result; only gateway containers may")));
    }
    let content_cache = match pb::MountContentCache::try_from(wire.content_cache) {
        Ok(pb::MountContentCache::Default) => ContentCache::Default,
        Ok(pb::MountContentCache::On) => ContentCache::On,
        Ok(pb::MountContentCache::Off) => ContentCache::Off,
        Err(_) => return Err(door.invalid(format!("{what} has content cache {}", wire.content_cache))),
    };
    let input = door.input(&what, wire.input)?;
    let output = door.output(&what, wire.output)?;
    let (selector, readonly) = (wire.selector.clone(), wire.readonly);
    let kind = kind(door, &what, wire)?;
    Ok(Mount {
        input,
        selector,
        dest,
        output,
        readonly,
        kind,
        content_cache,
    })
}

/// The kind of a mount; an option block of another kind is a contradiction, not something to ignore.
fn kind(door: Door, what: &str, wire: pb::Mount) -> Result<MountKind, Error> {
    let blocks = (wire.tmpfs_opt, wire.cache_opt, wire.secret_opt, wire.ssh_opt);
    let kind = match (pb::MountType::try_from(wire.mount_type), blocks) {
        (Ok(pb::MountType::Bind), (None, None, None, None)) => MountKind::Bind,
        (Ok(pb::MountType::Tmpfs), (tmpfs, None, None, None)) => MountKind::Tmpfs {
            size: tmpfs.map_or(0, |tmpfs| tmpfs.size),
        },
        (Ok(pb::MountType::Cache), (None, Some(cache), None, None)) => {
            let sharing = match pb::CacheSharingOpt::try_from(cache.sharing) {
                Ok(pb::CacheSharingOpt::Shared) => CacheSharing::Shared,
                Ok(pb::CacheSharingOpt::Private) => CacheSharing::Private,
                Ok(pb::CacheSharingOpt::Locked) => CacheSharing::Locked,
                Err(_) => return Err(door.invalid(format!("{what} has sharing {}", cache.sharing))),
            };
            MountKind::Cache(CacheMount {
                id: cache.id,
                sharing,
            })
        }
        (Ok(pb::MountType::Secret), (None, None, Some(s), None)) => MountKind::Secret(SecretMount {
            id: s.id,
            uid: s.uid,
            gid: s.gid,
            mode: s.mode,
            optional: s.optional,
        }),
        (Ok(pb::MountType::Ssh), (None, None, None, Some(s))) => MountKind::Ssh(SshMount {
            id: s.id,
            uid: s.uid,
            gid: s.gid,
            mode: s.mode,
            optional: s.optional,
        }),
        (Ok(_), _) => return Err(door.invalid(format!("{what} has options that do not fit its type"))),
        (Err(_), _) => return Err(door.invalid(format!("{what} has unknown type {}", wire.mount_type))),
    };
    Ok(kind)
}
