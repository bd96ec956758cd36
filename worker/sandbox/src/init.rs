//! Runs between clone and exec, in memory shared with the spawner: no allocation, no locks, no panics, no logging.
//!
//! ```text
//! cgroups ─▶ (enter) ─▶ network ─▶ proc, sys, mqueue ─▶ masks ─▶ pivot_root ─▶ limits ─▶ seccomp ─▶ identity ─▶ cwd ─▶ execve
//! ```
//!
//! Everything it needs was prepared in [`Plan`]; what failed is written into memory that the spawner reads.
//! Nothing of the container runs yet, and every target is reached by descriptor.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags};
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType, UnshareFlags};

use crate::filesystem::{self, attach, copy, open_beneath};
use crate::sys::{self, CStringArray, MountAttributes};

/// All that the child does, prepared.
pub(crate) struct Plan {
    /// Files that let the process join cgroups.
    pub(crate) cgroup_doors: Vec<OwnedFd>,
    /// Whether a cgroup namespace is made, with our group as its root.
    pub(crate) own_cgroups: bool,
    /// What network to be in.
    pub(crate) network: NetworkPlan,
    /// A process whose namespaces are joined first, and which of them.
    pub(crate) enter: Option<(OwnedFd, ThreadNameSpaceType)>,
    /// Standard descriptors.
    pub(crate) stdio: [OwnedFd; 3],
    /// Whether they are a terminal.
    pub(crate) terminal: bool,
    /// What to see; `None` for a tool, which sees what was prepared.
    pub(crate) root: Option<RootPlan>,
    /// Number, soft, hard.
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    /// The filter of system calls.
    pub(crate) seccomp: Option<std::rc::Rc<[libc::sock_filter]>>,
    /// Who to be; `None` for a tool.
    pub(crate) identity: Option<Identity>,
    /// Where to begin.
    pub(crate) cwd: CString,
    /// The names to try, in this order.
    pub(crate) programs: Vec<CString>,
    /// Arguments.
    pub(crate) args: CStringArray,
    /// Environment.
    pub(crate) env: CStringArray,
}

/// What network to be in.
pub(crate) enum NetworkPlan {
    /// The one we are in.
    Inherited,
    /// The new one that clone made.
    Loopback,
    /// This one.
    Join(OwnedFd),
}

/// Whom to be.
pub(crate) struct Identity {
    /// User.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Supplementary groups; `None` where the kernel forbids setting them.
    pub(crate) groups: Option<Vec<Gid>>,
    /// Capabilities that remain.
    pub(crate) capabilities: u64,
    /// Whether they are kept by programs that other users run.
    pub(crate) ambient: bool,
    /// The highest capability of this kernel.
    pub(crate) last_capability: u32,
}

/// What becomes of the root.
pub(crate) struct RootPlan {
    /// The new root, attached.
    pub(crate) root: OwnedFd,
    /// Mount points.
    pub(crate) proc: OwnedFd,
    /// `/sys`
    pub(crate) sys: OwnedFd,
    /// `/dev/mqueue`
    pub(crate) mqueue: OwnedFd,
    /// What `/sys/fs/cgroup` shows.
    pub(crate) cgroups: CgroupView,
    /// Host name.
    pub(crate) hostname: CString,
    /// Whether paths are masked and made read-only.
    pub(crate) masked: bool,
    /// A read-only empty directory.
    pub(crate) empty: OwnedFd,
    /// `/dev/null`
    pub(crate) null: OwnedFd,
}

/// What `/sys/fs/cgroup` shows.
pub(crate) enum CgroupView {
    /// The version 2 tree from our group on.
    Unified,
    /// A prepared directory.
    Prepared(OwnedFd),
}

/// Paths in `/proc` over which nothing is shown.
pub(crate) const MASKED_PROC: [&CStr; 9] = [
    c"acpi",
    c"asound",
    c"kcore",
    c"keys",
    c"latency_stats",
    c"timer_list",
    c"timer_stats",
    c"sched_debug",
    c"scsi",
];
/// Paths in `/sys` over which nothing is shown.
pub(crate) const MASKED_SYS: [&CStr; 2] = [c"firmware", c"devices/virtual/powercap"];
/// Paths in `/proc` that cannot be written.
pub(crate) const READONLY_PROC: [&CStr; 5] = [c"bus", c"fs", c"irq", c"sys", c"sysrq-trigger"];

/// The place where set-up stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere yet.
    Begin,
    /// cgroup.procs
    JoinCgroup,
    /// setns(2) into the namespaces of another process
    Enter,
    /// setns(2)
    JoinNetwork,
    /// `lo`
    Loopback,
    /// setsid(2), `TIOCSCTTY`
    Terminal,
    /// dup2(2)
    Stdio,
    /// unshare(2)
    CgroupNamespace,
    /// sethostname(2)
    Hostname,
    /// One of the kernel's file systems.
    Filesystem(&'static str, &'static str),
    /// A path in `/proc` or `/sys`.
    Mask(&'static CStr),
    /// A path in `/proc`.
    ReadOnly(&'static CStr),
    /// pivot_root(2)
    Pivot,
    /// prlimit(2), by index.
    Rlimit(usize),
    /// seccomp(2)
    Seccomp,
    /// capset(2), prctl(2)
    Capabilities,
    /// setuid(2) and the like
    Identity,
    /// chdir(2)
    Cwd,
    /// prctl(2)
    DeathSignal,
    /// close_range(2)
    Descriptors,
    /// execve(2)
    Exec,
}

/// Where and why; in memory that both sides see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// The place.
    pub(crate) place: Place,
    /// The error number.
    pub(crate) errno: i32,
}

type Outcome = Result<(), Fault>;

trait At<T> {
    fn at(self, place: Place) -> Result<T, Fault>;
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, place: Place) -> Result<T, Fault> {
        self.map_err(|error| Fault {
            place,
            errno: error.raw_os_error(),
        })
    }
}

impl<T> At<T> for io::Result<T> {
    fn at(self, place: Place) -> Result<T, Fault> {
        self.map_err(|error| Fault {
            place,
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        })
    }
}

/// Does it all; returns only the fault.
pub(crate) fn run(plan: &Plan) -> Fault {
    match set_up_and_exec(plan) {
        Err(fault) => fault,
        Ok(never) => match never {},
    }
}

fn set_up_and_exec(plan: &Plan) -> Result<Infallible, Fault> {
    sys::reset_signals();
    for door in &plan.cgroup_doors {
        rustix::io::write(door, b"0").at(Place::JoinCgroup)?;
    }
    if let Some((process, namespaces)) = &plan.enter {
        rustix::thread::move_into_thread_name_spaces(process.as_fd(), *namespaces).at(Place::Enter)?;
    }
    match &plan.network {
        NetworkPlan::Inherited => {}
        NetworkPlan::Loopback => sys::loopback_up().at(Place::Loopback)?,
        NetworkPlan::Join(namespace) => {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).at(Place::JoinNetwork)?;
        }
    }
    if plan.own_cgroups {
        sys::unshare(UnshareFlags::NEWCGROUP).at(Place::CgroupNamespace)?;
    }
    rustix::process::setsid().at(Place::Terminal)?;
    if plan.terminal {
        rustix::process::ioctl_tiocsctty(&plan.stdio[0]).at(Place::Terminal)?;
    }
    if let Some(root) = &plan.root {
        become_root(root)?;
    }
    rustix::process::umask(Mode::from(0o022));
    for (index, (resource, soft, hard)) in plan.rlimits.iter().enumerate() {
        sys::set_rlimit(*resource, *soft, *hard).at(Place::Rlimit(index))?;
    }
    if let Some(program) = &plan.seccomp {
        sys::install_seccomp(program).at(Place::Seccomp)?;
    }
    if let Some(identity) = &plan.identity {
        assume(identity)?;
    }
    rustix::process::chdir(plan.cwd.as_c_str()).at(Place::Cwd)?;
    if (plan.root.is_some() || plan.enter.is_some()) && !sys::cwd_is_inside_root().at(Place::Cwd)? {
        return Err(Fault {
            place: Place::Cwd,
            errno: libc::EACCES,
        });
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).at(Place::DeathSignal)?;
    for (number, fd) in (0..).zip(&plan.stdio) {
        sys::dup_to(fd.as_fd(), number).at(Place::Stdio)?;
    }
    sys::close_from(3).at(Place::Descriptors)?;
    Err(execute(plan))
}

fn become_root(plan: &RootPlan) -> Outcome {
    rustix::system::sethostname(plan.hostname.to_bytes()).at(Place::Hostname)?;
    let closed = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let place = Place::Filesystem("proc", "/proc");
    let proc = filesystem::create(c"proc", &[], closed).at(place)?;
    attach(&proc, &plan.proc).at(place)?;
    let place = Place::Filesystem("mqueue", "/dev/mqueue");
    let queues = filesystem::create(c"mqueue", &[], closed).at(place)?;
    attach(queues, &plan.mqueue).at(place)?;
    let (sys_attributes, cgroup_attributes) = if plan.masked {
        (closed | MountAttrFlags::MOUNT_ATTR_RDONLY, true)
    } else {
        (closed, false)
    };
    let sysfs = mount_sys(plan, sys_attributes)?;
    mount_cgroups(plan, sysfs.as_fd(), cgroup_attributes)?;
    if plan.masked {
        mask(plan, proc.as_fd(), &MASKED_PROC)?;
        mask(plan, sysfs.as_fd(), &MASKED_SYS)?;
        for path in READONLY_PROC {
            make_readonly(proc.as_fd(), path).at(Place::ReadOnly(path))?;
        }
    }
    pivot(plan.root.as_fd()).at(Place::Pivot)
}

/// A user namespace may mount sysfs only along with its own network; else the host's is shown.
fn mount_sys(plan: &RootPlan, attributes: MountAttrFlags) -> Result<OwnedFd, Fault> {
    let place = Place::Filesystem("sysfs", "/sys");
    let mount = match filesystem::create(c"sysfs", &[], attributes) {
        Err(Errno::PERM) => {
            let host = rustix::fs::openat(rustix::fs::CWD, c"/sys", path_only(), Mode::empty()).at(place)?;
            let mount = copy(host).at(place)?;
            let readonly = MountAttributes::set(u64::from(attributes.bits()));
            sys::mount_setattr(mount.as_fd(), readonly).at(place)?;
            mount
        }
        other => other.at(place)?,
    };
    attach(&mount, &plan.sys).at(place)?;
    Ok(mount)
}

fn path_only() -> rustix::fs::OFlags {
    rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC
}

fn mount_cgroups(plan: &RootPlan, sysfs: BorrowedFd<'_>, readonly: bool) -> Outcome {
    let place = Place::Filesystem("cgroup2", "/sys/fs/cgroup");
    let target = match open_beneath(sysfs, c"fs/cgroup") {
        Err(Errno::NOENT) => return Ok(()),
        other => other.at(place)?,
    };
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if readonly {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let mount = match &plan.cgroups {
        CgroupView::Prepared(dir) => copy(dir),
        CgroupView::Unified => match filesystem::create(c"cgroup2", &[], attributes) {
            Err(Errno::PERM) => copy(&plan.empty),
            other => other,
        },
    };
    attach(mount.at(place)?, target).at(place)
}

fn mask(plan: &RootPlan, dir: BorrowedFd<'_>, paths: &[&'static CStr]) -> Outcome {
    for path in paths {
        mask_one(plan, dir, path).at(Place::Mask(path))?;
    }
    Ok(())
}

fn mask_one(plan: &RootPlan, dir: BorrowedFd<'_>, path: &CStr) -> rustix::io::Result<()> {
    let target = match open_beneath(dir, path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let is_dir = FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode) == FileType::Directory;
    attach(copy(if is_dir { &plan.empty } else { &plan.null })?, target)
}

fn make_readonly(proc: BorrowedFd<'_>, path: &CStr) -> rustix::io::Result<()> {
    let target = match open_beneath(proc, path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mount = copy(&target)?;
    let attributes = MountAttributes::set(libc::MOUNT_ATTR_RDONLY);
    sys::mount_setattr(mount.as_fd(), attributes)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    attach(mount, target)
}

/// The old root ends up on top of the new one, the staging area on top of that; both are taken off. Unmounting `.`
/// takes off the topmost only, so this goes on until the old root itself is gone: else it would be one `/..` away.
fn pivot(root: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let old = rustix::fs::open(c"/", flags, Mode::empty())?;
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(c".", c".")?;
    rustix::process::fchdir(&old)?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    loop {
        match rustix::mount::unmount(c".", UnmountFlags::DETACH) {
            Ok(()) => {}
            // The old root is no part of this namespace any more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    rustix::process::chdir(c"/")
}

/// Becomes the user, with the given capabilities and no way to get others.
fn assume(identity: &Identity) -> Outcome {
    for number in 0..=identity.last_capability {
        if identity.capabilities & (1 << number) == 0 {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::remove_capability_from_bounding_set(capability).at(Place::Capabilities)?;
        }
    }
    rustix::thread::set_keep_capabilities(true).at(Place::Capabilities)?;
    if let Some(groups) = &identity.groups {
        rustix::thread::set_thread_groups(groups).at(Place::Identity)?;
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).at(Place::Identity)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).at(Place::Identity)?;
    // Changing the user has cleared the effective set; the permitted one was kept.
    let all = u64::MAX >> (63 - identity.last_capability.min(63));
    let kept = CapabilitySet::from_bits_retain(identity.capabilities & all);
    let inheritable = if identity.ambient {
        kept
    } else {
        CapabilitySet::empty()
    };
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable,
    };
    rustix::thread::set_capabilities(None, sets).at(Place::Capabilities)?;
    if identity.ambient {
        for number in (0..=identity.last_capability).filter(|number| kept.bits() & (1 << number) != 0) {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::configure_capability_in_ambient_set(capability, true).at(Place::Capabilities)?;
        }
    }
    Ok(())
}

/// Tries the names in order, as execvp(3) does: what is missing or not executable gives way to the next.
fn execute(plan: &Plan) -> Fault {
    let mut errno = libc::ENOENT;
    for program in &plan.programs {
        let failed = sys::execve(program, &plan.args, &plan.env)
            .raw_os_error()
            .unwrap_or(libc::EIO);
        match failed {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => errno = failed,
            other => {
                return Fault {
                    place: Place::Exec,
                    errno: other,
                };
            }
        }
    }
    Fault {
        place: Place::Exec,
        errno,
    }
}

/// Keeps other processes from looking into this one; lasts until execve.
pub(crate) fn hide() -> rustix::io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// The directory of a failed working directory, for messages.
pub(crate) fn cwd_of(plan: &Plan) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(plan.cwd.to_bytes()))
}
