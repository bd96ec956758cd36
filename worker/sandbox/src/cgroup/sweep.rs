//! Finds and removes groups of builders that were killed.
//!
//! A group of ours is named `<pid namespace>-<pid>-<start time>-<spawner>`; when no process with that number started then,
//! its builder is dead: what still runs in it is killed, and it is removed. Groups of builders in other pid
//! namespaces are left alone, as nothing is known of them here.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Hierarchies;
use super::group::remove_dir;

/// Removes the groups of dead builders that lived in the same pid namespace as `instance` from every hierarchy.
pub(super) fn sweep(hierarchies: &Hierarchies, instance: &str) {
    let namespace = instance.split('-').next().unwrap_or_default();
    let own = hierarchies.top(false);
    for top in hierarchies
        .unified
        .iter()
        .chain(own.iter())
        .chain(&hierarchies.mounts)
    {
        let Ok(instances) = fs::read_dir(top.join("builder")) else {
            continue;
        };
        for instance in instances.flatten() {
            let name = instance.file_name();
            if instance.path().is_dir() && name.to_str().is_some_and(|name| is_dead(name, namespace)) {
                remove_below(&instance.path());
            }
        }
    }
}

/// The name of the group of a spawner of this process, unique on this machine until it is switched off.
pub(crate) fn instance_name() -> Option<String> {
    static SPAWNERS: AtomicU32 = AtomicU32::new(0);
    let namespace = fs::metadata("/proc/self/ns/pid").ok()?.ino();
    let pid = std::process::id();
    let number = SPAWNERS.fetch_add(1, Ordering::Relaxed);
    Some(format!("{namespace}-{pid}-{}-{number}", start_time(pid)?))
}

fn is_dead(instance: &str, namespace: &str) -> bool {
    let parts: Vec<u64> = instance.split('-').filter_map(|part| part.parse().ok()).collect();
    let [its_namespace, pid, started, _] = parts[..] else {
        return false;
    };
    namespace == its_namespace.to_string()
        && u32::try_from(pid).is_ok_and(|pid| start_time(pid) != Some(started))
}

/// When `pid` started, in ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    field(pid, 22)
}

/// Who started `pid`.
pub(super) fn parent_of(pid: u32) -> Option<u32> {
    field(pid, 4)?.try_into().ok()
}

/// A field of `/proc/<pid>/stat`, numbered as in proc(5); from the third on.
fn field(pid: u32, number: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; fields are counted behind its end.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(number - 3)?.parse().ok()
}

/// Removes a group and those below it.
pub(super) fn remove_below(dir: &Path) {
    if let Ok(children) = fs::read_dir(dir) {
        for child in children.flatten().filter(|child| child.path().is_dir()) {
            remove_below(&child.path());
        }
    }
    remove_dir(dir);
}

/// Kills every process in the group: at once where the kernel can, else one by one.
pub(super) fn kill_all(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in procs
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter_map(rustix::process::Pid::from_raw)
    {
        // It may be gone already.
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_are_told_from_the_dead() {
        let pid = std::process::id();
        let name = instance_name().expect("we are in /proc");
        let namespace = name.split('-').next().expect("parts").to_owned();
        assert!(!is_dead(&name, &namespace));
        assert!(
            is_dead(&format!("{namespace}-{pid}-1-0"), &namespace),
            "another process of that number"
        );
        assert!(
            !is_dead(&format!("1-{pid}-1-0"), &namespace),
            "another pid namespace"
        );
        assert!(!is_dead("something-else", &namespace), "not ours, not touched");
    }
}
