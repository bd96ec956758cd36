//! The groups of one step: made, limited, read and removed.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::Hierarchies;
use super::hierarchy::controllers_in;
use super::room::{WANTED, processes};
use crate::devices::{self, Guard};
use crate::error::Step;
use crate::spec::{Limits, Spec};
use crate::sys;
use crate::wire::{During, Failure};

/// How often removing a group is tried; its last process may still be leaving.
const REMOVE_ATTEMPTS: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(2);

/// All groups of one builder.
#[derive(Debug)]
pub(crate) struct Cgroups {
    hierarchies: Hierarchies,
    /// `builder/<instance>`
    instance: PathBuf,
    /// Our group in version 2, when it could be made.
    unified: Option<PathBuf>,
    device_program: Option<OwnedFd>,
    /// Groups above those of steps (`--cgroup-parent`) that were not there before us.
    made: RefCell<Vec<PathBuf>>,
}

impl Cgroups {
    /// Makes the group of this builder and removes what dead ones left.
    pub(crate) fn create(instance: &str, is_root: bool) -> Self {
        let hierarchies = Hierarchies::find();
        super::sweep::sweep(&hierarchies, instance);
        let instance = Path::new("builder").join(instance);
        let top = hierarchies.top(is_root);
        let unified = top.and_then(|top| {
            let group = top.join(&instance);
            make_with_controllers(&top, &group).ok().map(|()| group)
        });
        let device_program = match &unified {
            Some(_) if is_root => sys::load_device_program(&devices::program(&[])).ok(),
            _ => None,
        };
        Self {
            hierarchies,
            instance,
            unified,
            device_program,
            made: RefCell::default(),
        }
    }

    /// How devices of a step are confined here.
    pub(crate) fn guard(&self) -> Guard {
        if self.device_program.is_some() {
            Guard::Cgroup
        } else {
            Guard::NoDev
        }
    }

    /// Makes the group of a step and sets its limits. What cannot be had is told in `notes`.
    pub(crate) fn group(&self, spec: &Spec, id: &str, notes: &mut Vec<String>) -> Result<Group, Failure> {
        let parent = parent_path(spec.cgroup_parent.as_deref())?;
        let mut group = Group::none();
        if let Some(base) = self.unified_base(&parent) {
            let dir = base.join(id);
            match create_dir(&dir).and_then(|()| open_dir(&dir)) {
                Ok(fd) => group.unified = Some((dir, fd)),
                Err(error) if self.device_program.is_some() => return Err(error).during(|| making(&dir)),
                Err(error) if !spec.limits.is_empty() => {
                    notes.push(format!("no cgroup for this step: {error}"))
                }
                Err(_) => {}
            }
        }
        if let (Some((dir, fd)), Some(program)) = (&group.unified, &self.device_program)
            && spec.security == crate::spec::Security::Confined
        {
            let step = || Step::Cgroup {
                action: "confine devices in".into(),
                path: dir.clone(),
            };
            if spec.devices.is_empty() {
                sys::attach_device_program(fd.as_fd(), program.as_fd()).during(step)?;
            } else {
                let own = sys::load_device_program(&devices::program(&spec.devices)).during(step)?;
                sys::attach_device_program(fd.as_fd(), own.as_fd()).during(step)?;
            }
            group.confines_devices = true;
        }
        self.limit(&mut group, &spec.limits, &parent, id, notes)?;
        Ok(group)
    }

    fn unified_base(&self, parent: &Path) -> Option<PathBuf> {
        let own = self.unified.as_ref()?;
        if parent.as_os_str().is_empty() {
            return Some(own.clone());
        }
        let top = self.hierarchies.unified.as_ref()?;
        let base = top.join(parent).join(&self.instance);
        self.made.borrow_mut().extend(missing(top, &base));
        make_with_controllers(top, &base).ok()?;
        Some(base)
    }

    fn limit(
        &self,
        group: &mut Group,
        limits: &Limits,
        parent: &Path,
        id: &str,
        notes: &mut Vec<String>,
    ) -> Result<(), Failure> {
        for (controller, unified, legacy) in settings(limits) {
            if unified.is_empty() {
                continue;
            }
            let in_unified = group
                .unified
                .as_ref()
                .filter(|(dir, _)| controllers_in(dir).iter().any(|name| name == controller));
            if let Some((dir, _)) = in_unified {
                write_all(dir, &unified)?;
            } else if let Some(mount) = self.hierarchies.legacy.get(controller) {
                let base = mount.join(parent).join(&self.instance);
                if !parent.as_os_str().is_empty() {
                    self.made.borrow_mut().extend(missing(mount, &base));
                }
                let dir = base.join(id);
                if let Err(error) = make_legacy(mount, &dir) {
                    notes.push(format!(
                        "the {controller} limit is not in force: {}: {error}",
                        dir.display()
                    ));
                    continue;
                }
                group.legacy.push((controller, dir.clone()));
                write_all(&dir, &legacy)?;
            } else {
                notes.push(format!(
                    "the {controller} limit is not in force: no such cgroup controller here"
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let legacy = self
            .hierarchies
            .legacy
            .values()
            .map(|mount| mount.join(&self.instance));
        // The deepest first, as each was noted with its parents behind it.
        let made = self.made.take();
        for dir in self.unified.iter().cloned().chain(legacy).chain(made) {
            // Not empty means that somebody else still uses it; the next builder's sweep sees to it.
            let _kept = fs::remove_dir(dir);
        }
    }
}

/// Those of `group` and its parents below `top` that are not there yet, the deepest first.
pub(super) fn missing(top: &Path, group: &Path) -> Vec<PathBuf> {
    let below = group.ancestors().take_while(|dir| *dir != top);
    below.filter(|dir| !dir.exists()).map(Into::into).collect()
}

/// Makes `group` below `top`, with every controller that can be had enabled on the way.
fn make_with_controllers(top: &Path, group: &Path) -> io::Result<()> {
    let below = group.strip_prefix(top).map_err(io::Error::other)?;
    let mut at = top.to_path_buf();
    for part in below.components() {
        enable_controllers(&at);
        at.push(part);
        make_dir(&at)?;
    }
    enable_controllers(&at);
    // Some file systems pretend: make sure that a group below can really be made.
    let probe = at.join("probe");
    make_dir(&probe)?;
    fs::remove_dir(probe)
}

/// Lets groups below `group` have every wanted controller. Where processes live beside them none is tried: some would
/// be refused, the others would make `group` a tree of threads, whose groups below take no process any more.
fn enable_controllers(group: &Path) {
    if group.join("cgroup.type").exists() && !processes(group).is_empty() {
        return;
    }
    for controller in controllers_in(group) {
        if WANTED.contains(&controller.as_str()) {
            // What was refused is reported as not in force when a step asks for it.
            let _refused = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

/// Only root may add to a group, whatever our umask.
fn create_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path)
}

pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    match create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Version 1: every group of `cpuset` needs CPUs and memory nodes before it takes processes.
fn make_legacy(mount: &Path, dir: &Path) -> io::Result<()> {
    let below = dir.strip_prefix(mount).map_err(io::Error::other)?;
    let mut at = mount.to_path_buf();
    for part in below.components() {
        let above = at.clone();
        at.push(part);
        make_dir(&at)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let (Ok(ours), Ok(theirs)) = (
                fs::read_to_string(at.join(file)),
                fs::read_to_string(above.join(file)),
            ) && ours.trim().is_empty()
            {
                fs::write(at.join(file), theirs)?;
            }
        }
    }
    Ok(())
}

type Files = Vec<(&'static str, String)>;

/// Controller, files of version 2, files of version 1.
fn settings(limits: &Limits) -> [(&'static str, Files, Files); 4] {
    let text = |value: u64| {
        if value == u64::MAX {
            "max".to_owned()
        } else {
            value.to_string()
        }
    };
    let legacy_text = |value: u64| {
        if value == u64::MAX {
            "-1".to_owned()
        } else {
            value.to_string()
        }
    };
    let mut memory: (Files, Files) = Default::default();
    if let Some(bytes) = limits.memory_bytes {
        memory.0.push(("memory.max", text(bytes)));
        memory.1.push(("memory.limit_in_bytes", legacy_text(bytes)));
    }
    if let Some(both) = limits.memory_swap_bytes {
        let swap = if both == u64::MAX {
            both
        } else {
            both.saturating_sub(limits.memory_bytes.unwrap_or(0))
        };
        memory.0.push(("memory.swap.max", text(swap)));
        memory.1.push(("memory.memsw.limit_in_bytes", legacy_text(both)));
    }
    let mut cpu: (Files, Files) = Default::default();
    if let Some(shares) = limits.cpu_shares {
        let shares = shares.clamp(2, 262_144);
        cpu.0
            .push(("cpu.weight", (1 + (shares - 2) * 9999 / 262_142).to_string()));
        cpu.1.push(("cpu.shares", shares.to_string()));
    }
    if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
        let period = limits.cpu_period_us.unwrap_or(100_000);
        let quota = limits.cpu_quota_us.unwrap_or(u64::MAX);
        cpu.0.push(("cpu.max", format!("{} {period}", text(quota))));
        cpu.1.push(("cpu.cfs_period_us", period.to_string()));
        cpu.1.push(("cpu.cfs_quota_us", legacy_text(quota)));
    }
    let mut cpuset = Files::new();
    if let Some(cpus) = &limits.cpuset_cpus {
        cpuset.push(("cpuset.cpus", cpus.clone()));
    }
    if let Some(mems) = &limits.cpuset_mems {
        cpuset.push(("cpuset.mems", mems.clone()));
    }
    let pids: Files = limits
        .pids
        .map(|pids| ("pids.max", text(pids)))
        .into_iter()
        .collect();
    [
        ("memory", memory.0, memory.1),
        ("cpu", cpu.0, cpu.1),
        ("cpuset", cpuset.clone(), cpuset),
        ("pids", pids.clone(), pids),
    ]
}

fn write_all(dir: &Path, files: &Files) -> Result<(), Failure> {
    for (name, value) in files {
        let path = dir.join(name);
        match fs::write(&path, value) {
            // Swap accounting may be compiled out or switched off; the memory limit itself holds.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.contains("sw") => {}
            other => other.during(|| Step::Cgroup {
                action: format!("write {value:?} to"),
                path,
            })?,
        }
    }
    Ok(())
}

/// `--cgroup-parent` as a path below the hierarchy's root.
pub(super) fn parent_path(parent: Option<&str>) -> Result<PathBuf, Failure> {
    let Some(parent) = parent.filter(|parent| !parent.is_empty()) else {
        return Ok(PathBuf::new());
    };
    let invalid = || Failure::Invalid(format!("cgroup parent {parent:?} is not a path of plain names"));
    let name = parent.split(':').next().unwrap_or(parent);
    if let Some(slice) = name.strip_suffix(".slice").filter(|slice| !slice.contains('/')) {
        let mut path = PathBuf::new();
        let mut prefix = String::new();
        for part in slice.split('-') {
            if part.is_empty() {
                return Err(invalid());
            }
            prefix = if prefix.is_empty() {
                part.into()
            } else {
                format!("{prefix}-{part}")
            };
            path.push(format!("{prefix}.slice"));
        }
        return Ok(path);
    }
    let parts: Vec<_> = name.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() || parts.iter().any(|part| *part == "." || *part == "..") {
        return Err(invalid());
    }
    Ok(parts.iter().collect())
}

/// The groups of one step.
#[derive(Debug)]
pub(crate) struct Group {
    unified: Option<(PathBuf, OwnedFd)>,
    legacy: Vec<(&'static str, PathBuf)>,
    confines_devices: bool,
}

impl Group {
    /// No group at all.
    pub(crate) fn none() -> Self {
        Self {
            unified: None,
            legacy: Vec::new(),
            confines_devices: false,
        }
    }

    /// Whether the group decides which devices may be opened; then the step must be in it.
    pub(crate) fn confines_devices(&self) -> bool {
        self.confines_devices
    }

    /// The version 2 group, for clone3(2).
    pub(crate) fn unified(&self) -> Option<&OwnedFd> {
        self.unified.as_ref().map(|(_, fd)| fd)
    }

    /// The files of version 1 to which a process writes `0` in order to join.
    pub(crate) fn doors(&self) -> Result<Vec<OwnedFd>, Failure> {
        let mut doors = Vec::new();
        for (_, dir) in &self.legacy {
            let path = dir.join("cgroup.procs");
            let file = fs::File::options().write(true).open(&path);
            doors.push(
                file.during(|| Step::Cgroup {
                    action: "open".into(),
                    path,
                })?
                .into(),
            );
        }
        Ok(doors)
    }

    /// The version 1 groups, for a look at them from inside.
    pub(crate) fn legacy(&self) -> &[(&'static str, PathBuf)] {
        &self.legacy
    }

    /// Whether the memory limit killed something.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        let unified = self.unified.iter().map(|(dir, _)| dir.join("memory.events"));
        let legacy = self.legacy.iter().map(|(_, dir)| dir.join("memory.oom_control"));
        unified
            .chain(legacy)
            .any(|file| counter(&file, "oom_kill").is_some_and(|count| count > 0))
    }

    /// Most memory ever in use, in bytes, where a controller counted it.
    pub(crate) fn peak_memory_bytes(&self) -> Option<u64> {
        let unified = self.unified.iter().map(|(dir, _)| dir.join("memory.peak"));
        let legacy = self
            .legacy
            .iter()
            .map(|(_, dir)| dir.join("memory.max_usage_in_bytes"));
        unified
            .chain(legacy)
            .find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
    }

    /// User and system time of everything that ever ran in the group.
    pub(crate) fn times(&self) -> Option<(Duration, Duration)> {
        let file = self.unified.as_ref()?.0.join("cpu.stat");
        let micros = |name| counter(&file, name).map(Duration::from_micros);
        Some((micros("user_usec")?, micros("system_usec")?))
    }

    /// Ends whatever is left and removes the groups.
    pub(crate) fn remove(self) {
        for dir in self
            .unified
            .iter()
            .map(|(dir, _)| dir)
            .chain(self.legacy.iter().map(|(_, dir)| dir))
        {
            remove_dir(dir);
        }
    }
}

/// Removes a group; kills what is in it when there is something.
pub(super) fn remove_dir(dir: &Path) {
    for _ in 0..REMOVE_ATTEMPTS {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                super::sweep::kill_all(dir);
                std::thread::sleep(REMOVE_PAUSE);
            }
            _ => return,
        }
    }
}

fn counter(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split(' ').next() == Some(name))?;
    line.split(' ').nth(1)?.parse().ok()
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())?)
}

fn making(dir: &Path) -> Step {
    Step::Cgroup {
        action: "make".into(),
        path: dir.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_plain_paths_or_slices() {
        let cases = [
            (None, Some("")),
            (Some("/a/b/"), Some("a/b")),
            (Some("ci-jobs.slice"), Some("ci.slice/ci-jobs.slice")),
            (Some("system.slice:builder:x"), Some("system.slice")),
            (Some("../up"), None),
            (Some("-.slice"), None),
            (Some("/"), None),
        ];
        for (parent, expected) in cases {
            assert_eq!(
                parent_path(parent).ok(),
                expected.map(PathBuf::from),
                "{parent:?}"
            );
        }
    }

    #[test]
    fn limits_have_files_in_both_versions() {
        let limits = Limits {
            memory_bytes: Some(1 << 20),
            memory_swap_bytes: Some(3 << 20),
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            pids: Some(7),
            ..Limits::default()
        };
        let [memory, cpu, cpuset, pids] = settings(&limits);
        assert_eq!(
            memory.1,
            [
                ("memory.max", "1048576".into()),
                ("memory.swap.max", "2097152".into())
            ]
        );
        assert_eq!(memory.2[1], ("memory.memsw.limit_in_bytes", "3145728".into()));
        assert_eq!(
            cpu.1,
            [("cpu.weight", "39".into()), ("cpu.max", "50000 100000".into())]
        );
        assert_eq!(cpu.2[2], ("cpu.cfs_quota_us", "50000".into()));
        assert!(cpuset.1.is_empty());
        assert_eq!(pids.1, [("pids.max", "7".into())]);
    }
}
