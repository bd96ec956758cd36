//! Takes a job from "asked for" to "running": everything prepared in ordinary code, then one clone.
//!
//! ```text
//! Spec ─▶ cgroup ─▶ (own mount namespace) stage ─▶ root ─▶ dev ─▶ files ─▶ mounts ─▶ Plan ─▶ clone ─▶ Running
//! ```
//!
//! 1. The spawner enters a fresh mount namespace; the step will inherit it.
//! 2. The root is mounted and filled; mount points are made and remembered.
//! 3. `init` runs in the clone until it executes the command; the spawner waits for that.
//! 4. The spawner goes back to its own mount namespace. That of the step lives as long as the step.

use std::cell::Cell;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Gid, OFlags};
use rustix::mount::MountAttrFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::cgroup::{Cgroups, Group};
use crate::devices::{self, Guard};
use crate::error::Step;
use crate::filesystem::{self, c_string};
use crate::init::{self, CgroupView, Fault, Identity, NetworkPlan, Place, Plan, RootPlan};
use crate::mounts;
use crate::process::Size;
use crate::rootfs::{self, OverlaySupport, Stage};
use crate::seccomp::Filters;
use crate::spec::{Capabilities, Network, Resource, Root, Seccomp, Security, Spec, Stubs};
use crate::sys::{self, CStringArray, CloneOptions, MountAttributes};
use crate::targets::{self, Kind, Stub};
use crate::terminal;
use crate::wire::{During, Failure};

mod enter; // a further process in a container
mod tool; // a program of the host

pub(crate) use enter::enter;
pub(crate) use tool::tool;

/// What the spawner keeps from job to job.
pub(crate) struct Host {
    /// Its own mount namespace.
    pub(crate) home: Rc<OwnedFd>,
    /// Its own pid namespace.
    pub(crate) processes: OwnedFd,
    /// Compiled filters.
    pub(crate) filters: Filters,
    /// Groups.
    pub(crate) cgroups: Cgroups,
    /// What overlayfs can do.
    pub(crate) overlay: OverlaySupport,
    /// Whether we live in a user namespace, where nodes cannot be made.
    pub(crate) in_user_namespace: bool,
    /// Whether supplementary groups can be set.
    pub(crate) sets_groups: bool,
    /// What we may do ourselves and so can hand on, bit n for capability n.
    pub(crate) capabilities: u64,
    /// The highest capability.
    pub(crate) last_capability: u32,
    /// Numbers the steps.
    pub(crate) count: Cell<u64>,
}

impl Host {
    fn next_number(&self) -> u64 {
        let number = self.count.get();
        self.count.set(number + 1);
        number
    }
}

/// A process that runs, and what is to be undone after it.
pub(crate) struct Running {
    /// Its number.
    pub(crate) pid: i32,
    /// Its descriptor.
    pub(crate) pidfd: OwnedFd,
    /// Its groups.
    pub(crate) group: Option<Group>,
    /// Mount points to remove, and whether with parents.
    pub(crate) stubs: (Vec<Stub>, bool),
    /// What could not be had.
    pub(crate) notes: Vec<String>,
    /// What it is called by the builder.
    pub(crate) number: u64,
    /// The controlling end of its terminal, until it has been sent.
    pub(crate) terminal: Option<OwnedFd>,
    /// The container's own `/dev/pts`.
    pub(crate) terminals: Option<OwnedFd>,
}

/// What stdin, stdout and stderr are.
pub(crate) enum Io {
    /// These descriptors.
    Given([OwnedFd; 3]),
    /// A terminal yet to be made in the container.
    Terminal(Size),
}

/// Starts a step.
pub(crate) fn step(
    host: &mut Host,
    spec: &Spec,
    io: Io,
    network: Option<OwnedFd>,
) -> Result<Running, Failure> {
    check(spec)?;
    let mut notes = Vec::new();
    let number = host.next_number();
    let name = if spec.id.is_empty() { "step" } else { &spec.id };
    let id = format!("{name}-{number}");
    let group = host.cgroups.group(spec, &id, &mut notes)?;
    let away = match Away::from(&host.home) {
        Ok(away) => away,
        Err(failure) => {
            group.remove();
            return Err(failure);
        }
    };
    let started = Stage::create().and_then(|stage| prepare(host, spec, io, network, &stage, &group));
    let started = started.and_then(|prepared| {
        // A failed set-up takes its mount points away again.
        match spawn(&prepared.plan, clone_flags(spec), &group, spec, &mut notes) {
            Ok(cloned) => Ok((cloned, prepared)),
            Err(failure) => {
                targets::remove(prepared.stubs, true);
                Err(failure)
            }
        }
    });
    drop(away);
    match started {
        Ok((cloned, prepared)) => Ok(Running {
            pid: cloned.pid,
            pidfd: cloned.pidfd,
            group: Some(group),
            stubs: removable(prepared.stubs, spec.stubs),
            notes,
            number,
            terminal: prepared.terminal,
            terminals: Some(prepared.terminals),
        }),
        Err(failure) => {
            group.remove();
            Err(failure)
        }
    }
}

/// Mount points to remove, and whether with parents.
fn removable(made: Vec<Stub>, wanted: Stubs) -> (Vec<Stub>, bool) {
    match wanted {
        Stubs::Keep => (Vec::new(), false),
        Stubs::Remove => (made, false),
        Stubs::RemoveWithParents => (made, true),
    }
}

/// A step that can be cloned, and what is kept of the preparation.
struct Prepared {
    plan: Plan,
    stubs: Vec<Stub>,
    terminal: Option<OwnedFd>,
    terminals: OwnedFd,
}

/// The spawner's stay in another mount namespace; ends with this value. A spawner that cannot come home ends, and
/// with it all its steps: better none than one with the wrong view.
struct Away {
    home: Rc<OwnedFd>,
}

impl Away {
    fn from(home: &Rc<OwnedFd>) -> Result<Self, Failure> {
        sys::unshare(UnshareFlags::NEWNS).during(|| Step::MountNamespace)?;
        Ok(Self {
            home: Rc::clone(home),
        })
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let kind = Some(LinkNameSpaceType::Mount);
        if rustix::thread::move_into_link_name_space(self.home.as_fd(), kind).is_err() {
            sys::exit_now(121);
        }
    }
}

fn check(spec: &Spec) -> Result<(), Failure> {
    let invalid = |text: &str| Err(Failure::Invalid(text.into()));
    let named = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if spec.id.len() > 64 || !spec.id.chars().all(named) {
        return Err(Failure::Invalid(format!(
            "step id {:?} is not a plain name",
            spec.id
        )));
    }
    if spec.args.is_empty() || spec.args[0].is_empty() {
        return invalid("no command was given");
    }
    if !spec.cwd.starts_with('/') {
        return Err(Failure::Invalid(format!(
            "working directory {:?} is not absolute",
            spec.cwd
        )));
    }
    if spec.hostname.len() > 64 {
        return Err(Failure::Invalid(format!(
            "host name {:?} is longer than 64 bytes",
            spec.hostname
        )));
    }
    if let Some(hook) = spec.hooks.first() {
        return Err(Failure::Invalid(format!(
            "the built-in executor runs no hooks ({} {}): use --oci-runtime runc",
            hook.stage, hook.path
        )));
    }
    if spec.env.iter().chain(&spec.args).any(|text| text.contains('\0')) {
        return invalid("an argument or variable holds a zero byte");
    }
    Ok(())
}

fn clone_flags(spec: &Spec) -> i32 {
    let network = if spec.network == Network::None {
        libc::CLONE_NEWNET
    } else {
        0
    };
    libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | network
}

fn prepare(
    host: &mut Host,
    spec: &Spec,
    io: Io,
    network: Option<OwnedFd>,
    stage: &Stage,
    group: &Group,
) -> Result<Prepared, Failure> {
    let insecure = spec.security == Security::Insecure;
    let guard = host.cgroups.guard();
    let root = mount_root(host, spec, stage, guard)?;
    let mut stubs = Vec::new();
    let filled = fill(host, spec, stage, &root, guard, &mut stubs);
    let places = match filled {
        Ok(places) => places,
        Err(failure) => {
            targets::remove(stubs, true);
            return Err(failure);
        }
    };
    let (stdio, terminal) = match io {
        Io::Given(descriptors) => (descriptors, None),
        Io::Terminal(size) => {
            let pair = terminal::open(places.terminals.as_fd(), size, spec.user.uid)?;
            devices::bind_console(&places.dev, &pair.user).during(|| Step::Device("console".into()))?;
            (pair.stdio()?, Some(pair.controller))
        }
    };
    let cgroups = cgroup_view(stage, group)?;
    let null = devices::host_node(b"/dev/null", Some((1, 3))).during(|| Step::Device("null".into()))?;
    let empty = stage.empty().during(|| Step::Mask("directories".into()))?;
    let hostname = c_string(spec.hostname.as_str()).during(|| Step::Hostname)?;
    let root_plan = RootPlan {
        root,
        proc: places.proc,
        sys: places.sys,
        mqueue: places.mqueue,
        cgroups,
        hostname,
        masked: !insecure,
        empty,
        null,
    };
    let plan = Plan {
        cgroup_doors: group.doors()?,
        own_cgroups: true,
        network: match (spec.network, network) {
            (Network::Host, _) => NetworkPlan::Inherited,
            (Network::None, _) => NetworkPlan::Loopback,
            (Network::Own, Some(namespace)) => NetworkPlan::Join(namespace),
            (Network::Own, None) => return Err(Failure::Invalid("no network namespace was given".into())),
        },
        enter: None,
        stdio,
        terminal: terminal.is_some(),
        root: Some(root_plan),
        rlimits: rlimits(spec),
        seccomp: filter(host, spec)?,
        identity: Some(identity(host, spec)),
        cwd: c_string(spec.cwd.as_str()).during(|| Step::Cwd {
            path: spec.cwd.clone(),
        })?,
        programs: programs(&spec.args[0], &spec.env)?,
        args: strings(&spec.args)?,
        env: strings(&spec.env)?,
    };
    Ok(Prepared {
        plan,
        stubs,
        terminal,
        terminals: places.terminals,
    })
}

fn rlimits(spec: &Spec) -> Vec<(u32, u64, u64)> {
    let numbered = |limit: &crate::spec::Rlimit| (number_of(limit.resource), limit.soft, limit.hard);
    spec.rlimits.iter().map(numbered).collect()
}

fn capabilities(spec: &Spec) -> Capabilities {
    match spec.security {
        Security::Insecure => Capabilities::ALL,
        Security::Confined => spec.capabilities,
    }
}

fn filter(host: &mut Host, spec: &Spec) -> Result<Option<Rc<[libc::sock_filter]>>, Failure> {
    if spec.security == Security::Insecure || spec.seccomp == Seccomp::Off {
        return Ok(None);
    }
    let filter = host.filters.get(capabilities(spec));
    let missing = || Failure::Invalid("there is no seccomp profile for this architecture".into());
    filter.map(Some).ok_or_else(missing)
}

fn identity(host: &Host, spec: &Spec) -> Identity {
    let groups = spec.user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    Identity {
        uid: spec.user.uid,
        gid: spec.user.gid,
        groups: host.sets_groups.then_some(groups),
        capabilities: capabilities(spec).0 & host.capabilities,
        ambient: spec.security == Security::Insecure,
        last_capability: host.last_capability,
    }
}

fn mount_root(host: &Host, spec: &Spec, stage: &Stage, guard: Guard) -> Result<OwnedFd, Failure> {
    let step = || Step::Root(rootfs::name_of(&spec.root));
    let (root, readonly) = match &spec.root {
        Root::Overlay(overlay) => (stage.root(overlay, &host.overlay)?, false),
        Root::Directory { path, readonly } => {
            let source = rustix::fs::openat(
                rustix::fs::CWD,
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .during(step)?;
            let tree = filesystem::copy(source).during(step)?;
            filesystem::attach(&tree, stage.open(c"root").during(step)?).during(step)?;
            (tree, *readonly)
        }
    };
    let nodev = guard == Guard::NoDev && spec.security == Security::Confined && !host.in_user_namespace;
    let attributes =
        if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 } | if nodev { libc::MOUNT_ATTR_NODEV } else { 0 };
    if attributes != 0 {
        sys::mount_setattr(root.as_fd(), MountAttributes::set(attributes)).during(step)?;
    }
    Ok(root)
}

/// Mount points of what `init` mounts.
struct Places {
    proc: OwnedFd,
    sys: OwnedFd,
    mqueue: OwnedFd,
    /// `/dev` and `/dev/pts` themselves.
    dev: OwnedFd,
    terminals: OwnedFd,
}

fn fill(
    host: &Host,
    spec: &Spec,
    stage: &Stage,
    root: &OwnedFd,
    guard: Guard,
    stubs: &mut Vec<Stub>,
) -> Result<Places, Failure> {
    let insecure = spec.security == Security::Insecure;
    let root = root.as_fd();
    let owner = Some((spec.user.uid, spec.user.gid));
    let mut kept = Vec::new();
    let cwd = || Step::Cwd {
        path: spec.cwd.clone(),
    };
    targets::ensure(root, &spec.cwd, Kind::Directory, owner, &mut kept).during(cwd)?;
    let target = |path: &str| {
        targets::ensure(root, path, Kind::Directory, None, &mut Vec::new())
            .during(|| Step::Target { target: path.into() })
    };
    let (proc, sys) = (target("/proc")?, target("/sys")?);
    let dev = devices::create(guard, insecure)?;
    filesystem::attach(&dev, target("/dev")?).during(|| Step::Mount {
        target: "/dev".into(),
    })?;
    if guard == Guard::NoDev {
        devices::bind_nodes(&dev)?;
    }
    if insecure {
        devices::bind_more(&dev)?;
    }
    let below = |name: &std::ffi::CStr| {
        let step = || Step::Target {
            target: format!("/dev/{}", name.to_string_lossy()),
        };
        filesystem::open_beneath(dev.as_fd(), name).during(step)
    };
    let terminals = devices::terminals()?;
    filesystem::attach(&terminals, below(c"pts")?).during(|| Step::Mount {
        target: "/dev/pts".into(),
    })?;
    let shm = mounts::tmpfs("/dev/shm", Some(spec.shm_size_bytes), 0o1777)?;
    let noexec = u64::from(MountAttrFlags::MOUNT_ATTR_NOEXEC.bits());
    let shm_step = || Step::Mount {
        target: "/dev/shm".into(),
    };
    sys::mount_setattr(shm.as_fd(), MountAttributes::set(noexec)).during(shm_step)?;
    filesystem::attach(shm, below(c"shm")?).during(shm_step)?;
    let mqueue = below(c"mqueue")?;
    for (path, content) in [
        ("/etc/resolv.conf", &spec.resolv_conf),
        ("/etc/hosts", &spec.hosts),
    ] {
        if let Some(content) = content {
            bind_file(stage, root, path, content, stubs)?;
        }
    }
    for mount in &spec.mounts {
        mounts::apply(mount, root, stage, &host.overlay, stubs)?;
    }
    for device in &spec.devices {
        let step = || Step::Device(device.path.clone());
        let numbers = Some((device.major, device.minor));
        let source =
            devices::host_node(device.source.as_os_str().as_encoded_bytes(), numbers).during(step)?;
        let node = filesystem::copy(source).during(step)?;
        mounts::attach_at(&node, &device.path, Kind::File, root, stubs)?;
    }
    // A mount may have covered the directory made above.
    targets::ensure(root, &spec.cwd, Kind::Directory, owner, &mut kept).during(cwd)?;
    Ok(Places {
        proc,
        sys,
        mqueue,
        dev,
        terminals,
    })
}

fn bind_file(
    stage: &Stage,
    root: std::os::fd::BorrowedFd<'_>,
    path: &str,
    content: &[u8],
    stubs: &mut Vec<Stub>,
) -> Result<(), Failure> {
    let step = || Step::Mount { target: path.into() };
    let file = stage.file(content, 0o644, (0, 0)).during(step)?;
    let tree = filesystem::copy(file).during(step)?;
    sys::mount_setattr(tree.as_fd(), MountAttributes::set(libc::MOUNT_ATTR_RDONLY)).during(step)?;
    mounts::attach_at(&tree, path, Kind::File, root, stubs)
}

/// Version 1 groups that the step is in are shown under their names; version 2 as a whole.
fn cgroup_view(stage: &Stage, group: &Group) -> Result<CgroupView, Failure> {
    if group.legacy().is_empty() {
        return match group.unified() {
            Some(_) => Ok(CgroupView::Unified),
            None => Ok(CgroupView::Prepared(
                stage.empty().during(|| Step::Mask("/sys/fs/cgroup".into()))?,
            )),
        };
    }
    let step = || Step::Filesystem {
        fs: "tmpfs".into(),
        target: "/sys/fs/cgroup".into(),
    };
    let dir = stage.open(c"m").during(step)?;
    for (controller, path) in group.legacy() {
        let name = c_string(*controller).during(step)?;
        rustix::fs::mkdirat(
            stage.dir(),
            c_string(format!("m/{controller}")).during(step)?,
            0o755.into(),
        )
        .during(step)?;
        let source = rustix::fs::openat(
            rustix::fs::CWD,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .during(step)?;
        let tree = filesystem::copy(source).during(step)?;
        sys::mount_setattr(tree.as_fd(), MountAttributes::set(libc::MOUNT_ATTR_RDONLY)).during(step)?;
        let target = filesystem::open_beneath(dir.as_fd(), &name).during(step)?;
        filesystem::attach(tree, target).during(step)?;
    }
    Ok(CgroupView::Prepared(dir))
}

fn number_of(resource: Resource) -> u32 {
    match resource {
        Resource::As => libc::RLIMIT_AS,
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Cpu => libc::RLIMIT_CPU,
        Resource::Data => libc::RLIMIT_DATA,
        Resource::Fsize => libc::RLIMIT_FSIZE,
        Resource::Locks => libc::RLIMIT_LOCKS,
        Resource::Memlock => libc::RLIMIT_MEMLOCK,
        Resource::Msgqueue => libc::RLIMIT_MSGQUEUE,
        Resource::Nice => libc::RLIMIT_NICE,
        Resource::Nofile => libc::RLIMIT_NOFILE,
        Resource::Nproc => libc::RLIMIT_NPROC,
        Resource::Rss => libc::RLIMIT_RSS,
        Resource::Rtprio => libc::RLIMIT_RTPRIO,
        Resource::Rttime => libc::RLIMIT_RTTIME,
        Resource::Sigpending => libc::RLIMIT_SIGPENDING,
        Resource::Stack => libc::RLIMIT_STACK,
    }
}

/// The names to execute: the word itself when it has a slash, else it in every directory of `PATH`.
fn programs(word: &str, env: &[String]) -> Result<Vec<CString>, Failure> {
    let c = |text: String| c_string(text).during(|| Step::Descriptors);
    if word.contains('/') {
        return Ok(vec![c(word.into())?]);
    }
    let path = env
        .iter()
        .rev()
        .find_map(|pair| pair.strip_prefix("PATH="))
        .unwrap_or_default();
    path.split(':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| c(format!("{dir}/{word}")))
        .collect()
}

fn strings(texts: &[String]) -> Result<CStringArray, Failure> {
    let all: Result<Vec<_>, _> = texts.iter().map(|text| c_string(text.as_str())).collect();
    Ok(CStringArray::new(all.during(|| Step::Descriptors)?))
}

fn spawn(
    plan: &Plan,
    flags: i32,
    group: &Group,
    spec: &Spec,
    notes: &mut Vec<String>,
) -> Result<sys::Cloned, Failure> {
    let fault = Cell::new(Fault {
        place: Place::Begin,
        errno: 0,
    });
    let mut child = || {
        fault.set(init::run(plan));
        127
    };
    let options = CloneOptions {
        flags,
        cgroup: group.unified().map(AsFd::as_fd),
    };
    let cloned = match sys::clone_vfork(&options, &mut child) {
        // Not ours to enter (no delegation), or no clone3: the group only counts; it confines where it must.
        Err(error) if options.cgroup.is_some() && !group.confines_devices() => {
            if !spec.limits.is_empty() {
                notes.push(format!(
                    "the limits of the step are not in force: join its cgroup: {error}"
                ));
            }
            sys::clone_vfork(&CloneOptions { flags, cgroup: None }, &mut child)
        }
        other => other,
    };
    let cloned = cloned.during(|| Step::Clone)?;
    let fault = fault.get();
    if fault.place == Place::Begin {
        return Ok(cloned);
    }
    // It has failed and is gone; nobody else will reap it.
    let _ended = rustix::process::waitid(
        rustix::process::WaitId::PidFd(cloned.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    Err(explain(fault, plan, spec))
}

fn explain(fault: Fault, plan: &Plan, spec: &Spec) -> Failure {
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let step = match fault.place {
        Place::Begin | Place::JoinCgroup => Step::Cgroup {
            action: "join".into(),
            path: "of the step".into(),
        },
        Place::Enter => Step::Enter,
        Place::JoinNetwork => Step::JoinNetwork,
        Place::Loopback => Step::Loopback,
        Place::Terminal => Step::Terminal,
        Place::Stdio => Step::Stdio,
        Place::CgroupNamespace => Step::CgroupNamespace,
        Place::Hostname => Step::Hostname,
        Place::Filesystem(fs, target) => Step::Filesystem {
            fs: fs.into(),
            target: target.into(),
        },
        Place::Mask(path) => Step::Mask(text(path)),
        Place::ReadOnly(path) => Step::ReadOnly(format!("/proc/{}", text(path))),
        Place::Pivot => Step::Root(rootfs::name_of(&spec.root)),
        Place::Rlimit(index) => Step::Rlimit(
            spec.rlimits
                .get(index)
                .map_or("?", |limit| limit.resource.name())
                .into(),
        ),
        Place::Seccomp => Step::Seccomp,
        Place::Capabilities => Step::Capabilities,
        Place::Identity => Step::User {
            uid: spec.user.uid,
            gid: spec.user.gid,
        },
        Place::Cwd => Step::Cwd {
            path: init::cwd_of(plan).to_string_lossy().into_owned(),
        },
        Place::DeathSignal => Step::DeathSignal,
        Place::Descriptors => Step::Descriptors,
        Place::Exec => {
            let program = spec.args.first().cloned().unwrap_or_default();
            let missing = fault.errno == libc::ENOENT && !program.contains('/');
            return if missing {
                Failure::NotFound(program)
            } else {
                Failure::Exec(program, fault.errno)
            };
        }
    };
    Failure::Setup(step, fault.errno)
}
