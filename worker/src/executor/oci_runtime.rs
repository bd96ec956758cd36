//! Runs a step by another OCI runtime: runc, crun, or one that takes the same arguments (`--oci-runtime`).
//!
//! ```text
//! Spec ─▶ bundle/config.json + files ─▶ Tool (overlays on bundle/rootfs and bundle/m<n>) ─▶ RUNTIME run --bundle …
//! ```
//!
//! The runtime runs inside a mount namespace of its own, in which the layers are mounted where `config.json` says; so
//! they are gone when it ends, however it ends. The bundle is thrown away after the step. Secrets lie in memory only.
//!
//! crun gets its groups from us (its own refuse machines with both versions of cgroups, and need `CAP_SYS_RESOURCE`
//! where steps get none); others make them below a group of ours.
//!
//! The network is the one the runtime is started in, so that a step has the same one as by our own sandbox
//! (scenario `run/oci-runtime-runc`).
use super::{Executor, RunError};
use cache::Aside;
use sandbox::{
    Confined, Exit, Spec, Tool, ToolGroups, ToolMount,
    network::Lease,
    spec::{self, Network, Source, Stubs},
};
use serde_json::{Value, json};
use solver::progress::Sink;
use std::{
    fs, io,
    os::fd::AsFd,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_util::sync::CancellationToken;

/// Names of capabilities by number, capabilities(7).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// What a confined step must not see, protocol facts of BuildKit's default spec.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What a confined step must not write.
const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// A secret's file in memory; removed when dropped.
struct MemoryFile(PathBuf);

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // It is in memory: at the worst it goes with the machine.
        let _ = fs::remove_file(&self.0);
    }
}

impl Executor {
    /// Runs a step by `runtime` to its end and shows its output.
    pub(crate) async fn run_by(
        self: &Arc<Self>,
        runtime: &Path,
        spec: Spec,
        network: Option<Lease>,
        bundle: Aside,
        progress: Sink,
        cancel: &CancellationToken,
    ) -> Result<(Exit, Vec<String>), RunError> {
        let runtime = find(runtime).map_err(|cause| RunError::Bundle(cause.into()))?;
        let groups = Groups::of(&runtime, &spec)?;
        let (tool, secrets) = bundled(&runtime, &spec, bundle.path(), &groups)
            .map_err(|cause| RunError::Bundle(cause.into()))?;
        let start = move |spawner: &sandbox::Spawner, stdio| {
            let namespace = network.as_ref().map(AsFd::as_fd);
            let process = spawner.tool(&tool, stdio, namespace)?;
            Ok((process, (bundle, secrets, network, groups)))
        };
        self.follow(start, progress, cancel).await
    }
}

/// Who makes the groups of a step.
enum Groups {
    /// We do; the runtime is started in them.
    Ours(Confined),
    /// The runtime does, below this place.
    Theirs(ToolGroups),
    /// The runtime does, wherever it may.
    Anywhere,
}

impl Groups {
    fn of(runtime: &Path, spec: &Spec) -> Result<Self, RunError> {
        let parent = spec.cgroup_parent.as_deref();
        let place = ToolGroups::new(parent);
        let name = runtime.file_name().unwrap_or_default().to_string_lossy();
        match place {
            Some(_) if name.contains("crun") && ToolGroups::can_be_ours() => Ok(Self::Ours(Confined {
                parent: spec.cgroup_parent.clone(),
                limits: spec.limits.clone(),
                security: spec.security,
                devices: spec.devices.clone(),
            })),
            Some(place) => Ok(Self::Theirs(place)),
            None if parent.is_some() => {
                let reason = format!("a group below {parent:?} cannot be had for another OCI runtime");
                Err(RunError::Bundle(reason.into()))
            }
            None => Ok(Self::Anywhere),
        }
    }
}

/// The full path of a program that is named as people name it.
fn find(program: &Path) -> io::Result<PathBuf> {
    let missing = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("no OCI runtime {}", program.display()),
        )
    };
    if program.components().count() > 1 {
        return program.canonicalize().map_err(|_| missing());
    }
    let folders = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ];
    folders
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
        .ok_or_else(missing)
}

/// Writes the bundle; gives what is to be run, and what must live as long.
fn bundled(
    runtime: &Path,
    spec: &Spec,
    bundle: &Path,
    groups: &Groups,
) -> io::Result<(Tool, Vec<MemoryFile>)> {
    let mut making = Making {
        bundle,
        layers: Vec::new(),
        mounts: Vec::new(),
        targets: Vec::new(),
        secrets: Vec::new(),
    };
    let rootfs = bundle.join("rootfs");
    fs::create_dir(&rootfs)?;
    let spec::Root::Overlay(overlay) = &spec.root else {
        return Err(io::Error::other("the root of a step is a stack of layers"));
    };
    making.layers.push(ToolMount {
        target: rootfs,
        overlay: overlay.clone(),
    });
    making.standard(spec);
    for (name, target, content) in [
        ("hosts", "/etc/hosts", &spec.hosts),
        ("resolv.conf", "/etc/resolv.conf", &spec.resolv_conf),
    ] {
        if let Some(content) = content {
            let path = bundle.join(name);
            fs::write(&path, content)?;
            making.bind(&path, target, true, false);
        }
    }
    for mount in &spec.mounts {
        making.mount(mount)?;
    }
    let id = format!(
        "builder-{}",
        bundle
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    );
    let config = config(spec, &making.mounts, groups);
    // Whatever the specification does not know is a mistake of ours: better found here than by the runtime.
    let checked: oci_spec::runtime::Spec = serde_json::from_value(config).map_err(io::Error::other)?;
    fs::write(
        bundle.join("config.json"),
        serde_json::to_vec(&checked).map_err(io::Error::other)?,
    )?;
    let text = |path: &Path| path.display().to_string();
    let state = bundle.join("state");
    fs::create_dir(&state)?;
    let mut args = vec![text(runtime), "--root".into(), text(&state)];
    let confined = match groups {
        Groups::Ours(confined) => {
            args.push("--cgroup-manager=disabled".into());
            Some(confined.clone())
        }
        Groups::Theirs(_) | Groups::Anywhere => None,
    };
    args.extend(["run".into(), "--bundle".into(), text(bundle), id]);
    let tool = Tool {
        args,
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        cwd: bundle.to_owned(),
        mounts: making.layers,
        targets: making.targets,
        directories: vec![(spec.cwd.clone(), spec.user.uid, spec.user.gid)],
        stubs: if spec.stubs == Stubs::Keep {
            Stubs::Keep
        } else {
            spec.stubs
        },
        confined,
    };
    Ok((tool, making.secrets))
}

/// The bundle as it grows.
struct Making<'a> {
    bundle: &'a Path,
    layers: Vec<ToolMount>,
    mounts: Vec<Value>,
    targets: Vec<(String, bool)>,
    secrets: Vec<MemoryFile>,
}

impl Making<'_> {
    /// What every step has.
    fn standard(&mut self, spec: &Spec) {
        let shm = format!("size={}", spec.shm_size_bytes);
        let insecure = spec.security == spec::Security::Insecure;
        let sys = if insecure { "rw" } else { "ro" };
        self.mounts.extend([
            json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                   "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
            json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                   "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
            json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                   "options": ["nosuid", "noexec", "nodev", "mode=1777", shm]}),
            json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                   "options": ["nosuid", "noexec", "nodev"]}),
        ]);
        // Who is not the master of the network namespace may not mount its view of the devices.
        let foreign = spec.network != Network::None && sandbox::rootless::is_in_user_namespace();
        self.mounts.push(if foreign {
            json!({"destination": "/sys", "type": "bind", "source": "/sys",
                   "options": ["rbind", "nosuid", "noexec", "nodev", sys]})
        } else {
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", sys]})
        });
    }

    fn bind(&mut self, from: &Path, target: &str, readonly: bool, is_dir: bool) {
        let access = if readonly { "ro" } else { "rw" };
        self.mounts.push(
            json!({"destination": target, "type": "bind", "source": from, "options": ["rbind", access]}),
        );
        self.targets.push((target.to_owned(), is_dir));
    }

    fn mount(&mut self, mount: &spec::Mount) -> io::Result<()> {
        let target = mount.target.as_str();
        match &mount.source {
            Source::Bind { path, subpath } => {
                let from = beneath(path, subpath)?;
                let is_dir = from.is_dir();
                self.bind(&from, target, mount.readonly, is_dir);
            }
            Source::Overlay { overlay, subpath } => {
                let folder = self.bundle.join(format!("m{}", self.layers.len()));
                fs::create_dir(&folder)?;
                // What a sub path is, is known by the layer that has it topmost.
                let found = overlay
                    .lowers
                    .iter()
                    .find_map(|lower| beneath(lower, subpath).ok().filter(|p| p.exists()));
                let is_dir = found.is_none_or(|found| found.is_dir());
                self.layers.push(ToolMount {
                    target: folder.clone(),
                    overlay: overlay.clone(),
                });
                let from = folder.join(subpath.trim_start_matches('/'));
                self.bind(&from, target, mount.readonly, is_dir);
            }
            Source::Tmpfs { size_bytes, mode } => {
                let mut options = vec!["nosuid".to_owned(), format!("mode={mode:o}")];
                options.extend(size_bytes.map(|size| format!("size={size}")));
                self.mounts.push(
                    json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}),
                );
                self.targets.push((target.to_owned(), true));
            }
            Source::Secret(secret) => {
                let name = self
                    .bundle
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default();
                let path = PathBuf::from(format!("/dev/shm/builder-{name}-{}", self.secrets.len()));
                let file = fs::File::options().write(true).create_new(true).open(&path)?;
                self.secrets.push(MemoryFile(path.clone()));
                file.set_permissions(fs::Permissions::from_mode(secret.mode))?;
                io::Write::write_all(&mut &file, &secret.content)?;
                chown(&path, Some(secret.uid), Some(secret.gid))?;
                self.bind(&path, target, true, false);
            }
            Source::Socket { path, uid, gid, mode } => {
                chown(path, Some(*uid), Some(*gid))?;
                fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
                self.bind(path, target, false, false);
            }
        }
        Ok(())
    }
}

/// A path beneath a directory, no link on it followed out of it.
fn beneath(root: &Path, subpath: &str) -> io::Result<PathBuf> {
    let clean = tree::RootPath::clean(subpath.trim_start_matches('/')).map_err(io::Error::other)?;
    // A clean path shows with a slash before it; joined, that would be a path of the host.
    let path = root.join(clean.display().to_string().trim_start_matches('/'));
    let found = path.canonicalize()?;
    match found.starts_with(root.canonicalize()?) {
        true => Ok(found),
        false => Err(io::Error::other(format!(
            "{subpath:?} leads out of {}",
            root.display()
        ))),
    }
}

fn config(spec: &Spec, mounts: &[Value], groups: &Groups) -> Value {
    let insecure = spec.security == spec::Security::Insecure;
    let given = if insecure {
        spec::Capabilities::ALL
    } else {
        spec.capabilities
    };
    let bounding = bounding_set();
    let capabilities: Vec<String> = (0u32..)
        .zip(CAPABILITIES)
        .filter(|(bit, _)| given.has(*bit) && bounding.has(*bit))
        .map(|(_, name)| format!("CAP_{name}"))
        .collect();
    let mut sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    if insecure {
        // Whoever the user is, as in our own executor.
        sets["inheritable"] = json!(capabilities);
        sets["ambient"] = json!(capabilities);
    }
    let mut namespaces = vec![
        json!({"type": "mount"}),
        json!({"type": "pid"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
    ];
    if spec.network == Network::None {
        namespaces.push(json!({"type": "network"}));
    }
    let rlimits: Vec<Value> = spec
        .rlimits
        .iter()
        .map(|limit| {
            let name = format!("RLIMIT_{}", limit.resource.name().to_uppercase());
            json!({"type": name, "soft": limit.soft, "hard": limit.hard})
        })
        .collect();
    let mut linux = json!({
        "namespaces": namespaces,
        "maskedPaths": if insecure { Vec::new() } else { MASKED.to_vec() },
        "readonlyPaths": if insecure { Vec::new() } else { READONLY.to_vec() },
    });
    if !matches!(groups, Groups::Ours(_)) {
        linux["resources"] = resources(spec, insecure);
    }
    if let Groups::Theirs(place) = groups {
        linux["cgroupsPath"] = json!(place.path());
    }
    if let Some(filter) = sandbox::oci_profile(spec.capabilities).filter(|_| !insecure) {
        linux["seccomp"] = filter;
    }
    if !spec.devices.is_empty() {
        linux["devices"] = spec.devices.iter().map(device).collect();
    }
    let mut hooks = json!({});
    for hook in &spec.hooks {
        let one =
            json!({"path": hook.path, "args": hook.args, "env": hook.env, "timeout": hook.timeout_seconds});
        match hooks[&hook.stage].as_array_mut() {
            Some(all) => all.push(one),
            None => hooks[&hook.stage] = json!([one]),
        }
    }
    json!({
        "ociVersion": "1.0.2",
        "hooks": hooks,
        "process": {
            "terminal": false,
            "user": {"uid": spec.user.uid, "gid": spec.user.gid, "additionalGids": spec.user.groups},
            "args": spec.args,
            "env": spec.env,
            "cwd": spec.cwd,
            "capabilities": sets,
            "rlimits": rlimits,
            "noNewPrivileges": false,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": spec.hostname,
        "mounts": mounts,
        "linux": linux,
    })
}

/// What this machine grants at all: runtimes fail on what they are told to give and cannot.
fn bounding_set() -> spec::Capabilities {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .map_or(spec::Capabilities::ALL, spec::Capabilities)
}

fn letter(device: &spec::DeviceNode) -> &'static str {
    match device.kind {
        spec::DeviceKind::Character => "c",
        spec::DeviceKind::Block => "b",
    }
}

/// A node as the runtime makes it, with the owner and mode that the host's has.
fn device(device: &spec::DeviceNode) -> Value {
    use std::os::unix::fs::MetadataExt;
    let mut node =
        json!({"path": device.path, "type": letter(device), "major": device.major, "minor": device.minor});
    if let Ok(meta) = fs::symlink_metadata(&device.source) {
        node["fileMode"] = json!(meta.mode() & 0o777);
        node["uid"] = json!(meta.uid());
        node["gid"] = json!(meta.gid());
    }
    node
}

/// Devices and limits; only what is limited is named.
fn resources(spec: &Spec, insecure: bool) -> Value {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(-1);
    let limits = &spec.limits;
    let mut rules = vec![json!({"allow": insecure, "access": "rwm"})];
    for device in &spec.devices {
        let access = [(device.may_read, "r"), (device.may_write, "w"), (true, "m")];
        let access: String = access
            .iter()
            .filter(|(may, _)| *may)
            .map(|(_, letter)| *letter)
            .collect();
        rules.push(
            json!({"allow": true, "type": letter(device), "major": device.major, "minor": device.minor,
                          "access": access}),
        );
    }
    let mut all = json!({"devices": rules});
    let mut set = |group: &str, name: &str, value: Option<Value>| {
        if let Some(value) = value {
            all[group][name] = value;
        }
    };
    set(
        "memory",
        "limit",
        limits.memory_bytes.map(|bytes| json!(signed(bytes))),
    );
    set(
        "memory",
        "swap",
        limits.memory_swap_bytes.map(|bytes| json!(signed(bytes))),
    );
    set("cpu", "shares", limits.cpu_shares.map(|shares| json!(shares)));
    set(
        "cpu",
        "quota",
        limits.cpu_quota_us.map(|quota| json!(signed(quota))),
    );
    set("cpu", "period", limits.cpu_period_us.map(|period| json!(period)));
    set("cpu", "cpus", limits.cpuset_cpus.as_ref().map(|cpus| json!(cpus)));
    set("cpu", "mems", limits.cpuset_mems.as_ref().map(|mems| json!(mems)));
    set("pids", "limit", limits.pids.map(|pids| json!(signed(pids))));
    all
}
