//! The key of an exec.

use oci::{Digest, Platform};

use super::json::{self, Object};
use super::selector::{PathSelector, absolute, dedupe, joined};
use super::{Dep, index};
use crate::error::Error;
use crate::op::{
    CacheMount, CacheSharing, ContentCache, ExecMeta, ExecOp, Mount, MountKind, NetMode, SecurityMode,
};

/// What is hashed.
pub(super) fn text(op: &ExecOp, platform: &Platform) -> String {
    Object::default()
        .raw("Type", json::string("buildkit.exec.v0"))
        .raw("Exec", exec(op).finish())
        .raw("OS", json::string(&platform.os))
        .raw("Arch", json::string(&platform.architecture))
        .text("Variant", platform.variant.as_deref().unwrap_or_default())
        .text("OSVersion", platform.os_version.as_deref().unwrap_or_default())
        .texts("OSFeatures", &platform.os_features)
        .finish()
}

fn exec(op: &ExecOp) -> Object {
    let secrets = op.secret_env.iter().map(|secret| {
        Object::default()
            .text("ID", &secret.id)
            .text("name", &secret.name)
            .flag("optional", secret.optional)
            .finish()
    });
    let devices = op.cdi_devices.iter().map(|device| {
        Object::default()
            .text("name", &device.name)
            .flag("optional", device.optional)
            .finish()
    });
    let network = match op.network {
        NetMode::Sandbox => 0,
        NetMode::Host => 1,
        NetMode::None => 2,
    };
    let security = match op.security {
        SecurityMode::Sandbox => 0,
        SecurityMode::Insecure => 1,
    };
    Object::default()
        .object("meta", Some(meta(&op.meta)))
        .array("mounts", mounts(op))
        .signed("network", network)
        .signed("security", security)
        .array("secretenv", secrets)
        .array("cdiDevices", devices)
}

fn meta(meta: &ExecMeta) -> Object {
    // Addresses of hosts and proxies are left out: they change without changing the result.
    let hosts = meta
        .extra_hosts
        .iter()
        .map(|host| Object::default().text("Host", &host.host).finish());
    let limits = meta.ulimits.iter().map(|limit| {
        Object::default()
            .text("Name", &limit.name)
            .signed("Soft", limit.soft)
            .signed("Hard", limit.hard)
            .finish()
    });
    Object::default()
        .texts("args", &meta.args)
        .texts("env", &meta.env)
        .text("cwd", &meta.cwd)
        .text("user", &meta.user)
        .array("extraHosts", hosts)
        .text("hostname", &meta.hostname)
        .array("ulimit", limits)
        .text("cgroupParent", &meta.cgroup_parent)
        .flag("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .array("validExitCodes", meta.valid_exit_codes.iter().map(i32::to_string))
}

/// The mounts; none when there is only a plain writable root, as in keys of old.
fn mounts(op: &ExecOp) -> Vec<String> {
    if let [only] = op.mounts.as_slice()
        && only.dest == "/"
        && !only.readonly
        && only.kind == MountKind::Bind
    {
        return Vec::new();
    }
    op.mounts.iter().map(mount).collect()
}

fn mount(mount: &Mount) -> String {
    let object = Object::default()
        .signed("input", index(mount.input))
        .text("dest", &mount.dest)
        .signed("output", index(mount.output))
        .flag("readonly", mount.readonly);
    let object = match &mount.kind {
        MountKind::Bind => object,
        MountKind::Secret(secret) => {
            let options = Object::default()
                .text("ID", &secret.id)
                .unsigned("uid", secret.uid)
                .unsigned("gid", secret.gid)
                .unsigned("mode", secret.mode)
                .flag("optional", secret.optional);
            object.signed("mountType", 1).object("secretOpt", Some(options))
        }
        MountKind::Ssh(ssh) => {
            let options = Object::default()
                .text("ID", &ssh.id)
                .unsigned("uid", ssh.uid)
                .unsigned("gid", ssh.gid)
                .unsigned("mode", ssh.mode)
                .flag("optional", ssh.optional);
            object.signed("mountType", 2).object("SSHOpt", Some(options))
        }
        MountKind::Cache(cache) => {
            let options = if is_default_cache(cache, &mount.dest) {
                Object::default().text("ID", &cache.id)
            } else {
                Object::default()
            };
            object.signed("mountType", 3).object("cacheOpt", Some(options))
        }
        MountKind::Tmpfs { size } => object
            .signed("mountType", 4)
            .object("TmpfsOpt", Some(Object::default().signed("size", *size))),
    };
    let content = match mount.content_cache {
        ContentCache::Default => 0,
        ContentCache::On => 1,
        ContentCache::Off => 2,
    };
    object.signed("contentCache", content).finish()
}

/// A cache whose id says no more than its destination: the id is `dest` or `<namespace>/dest`.
fn is_default_cache(cache: &CacheMount, dest: &str) -> bool {
    cache.sharing == CacheSharing::Shared
        && (cache.id == dest || cache.id.split_once('/').is_some_and(|(_, rest)| rest == dest))
}

/// How each input takes part: the paths mounted, and whether their content may speak for it.
pub(super) fn deps(op_digest: Digest, op: &ExecOp, deps: &mut [Dep]) -> Result<(), Error> {
    let mut paths: Vec<Vec<String>> = vec![Vec::new(); deps.len()];
    let mut by_content = vec![false; deps.len()];
    for mount in &op.mounts {
        let (MountKind::Bind | MountKind::Cache(_), Some(input)) = (&mount.kind, mount.input) else {
            continue;
        };
        let input = input as usize;
        if input >= deps.len() {
            return Err(Error::Key {
                op: op_digest,
                reason: format!("a mount of input {input}, which is not there"),
            });
        }
        let path = absolute(&mount.selector);
        // What goes on as an output must not be known by a part of its input only: the rest goes on too.
        let is_safe = mount.output.is_none() || mount.readonly || path == "/";
        by_content[input] = match mount.content_cache {
            ContentCache::Off => false,
            ContentCache::On if !is_safe => {
                return Err(Error::Key {
                    op: op_digest,
                    reason: format!(
                        "the mount at {:?} demands a content key, but its output holds more than {path:?}",
                        mount.dest
                    ),
                });
            }
            ContentCache::On => true,
            ContentCache::Default => is_safe && mount.dest != "/",
        };
        paths[input].push(path);
    }
    for ((dep, paths), by_content) in deps.iter_mut().zip(paths).zip(by_content) {
        if !paths.is_empty() {
            dep.selector = Some(joined(paths.clone()));
        }
        if by_content {
            dep.content = Some(content(paths));
        }
    }
    Ok(())
}

fn content(paths: Vec<String>) -> Vec<PathSelector> {
    let paths = dedupe(paths);
    if paths.iter().any(|path| path == "/") {
        return vec![PathSelector {
            path: "/".to_owned(),
            ..PathSelector::default()
        }];
    }
    paths
        .into_iter()
        .map(|path| PathSelector {
            path,
            follow_links: true,
            ..PathSelector::default()
        })
        .collect()
}
