//! Room for the groups of steps in the group that this builder was started in.
//!
//! ```text
//! <top>                      the builder          <top>                       nobody
//!                                          ─▶     <top>/builder/<instance>/self     the builder
//!                                                 <top>/builder/<instance>/<step>   limited
//! ```
//!
//! Version 2 limits groups below a group only while no process is in that group itself. The top of the hierarchy, where
//! root's steps live, is exempt; a group that was delegated to us (a user's scope or service with `Delegate=yes`, a
//! container) is not. Where nobody but this builder is in it, the builder steps aside, and comes back at the end.
//! Others are never moved.

use std::fs;
use std::path::{Path, PathBuf};

use super::Hierarchies;
use super::group::make_dir;
use super::hierarchy::controllers_in;
use super::sweep::parent_of;
use crate::rootless::is_in_user_namespace;

/// The name of the group that a builder steps aside into.
const ASIDE: &str = "self";
/// How often the group is looked into: children that are just made may appear behind our back.
const LOOKS: usize = 8;
/// How many parents are followed from a process to the builder.
const GENERATIONS: usize = 64;
/// The controllers of which steps have limits or counters.
pub(super) const WANTED: [&str; 5] = ["memory", "cpu", "cpuset", "pids", "io"];

/// A builder that stepped aside; it comes back when this is dropped, once no step has a group any more.
#[derive(Debug)]
pub(crate) struct Room {
    top: PathBuf,
    instance: PathBuf,
    /// The controllers that nobody had below `top` before: the only ones that are taken back.
    ours: Vec<String>,
}

impl Room {
    /// Has this process and what it started step aside for the spawner called `instance`, where that lets controllers be
    /// had. `None` where there is no need, no right, or somebody else. Before the spawner is started: it lives in a pid
    /// namespace of its own and sees nobody here.
    pub(crate) fn make(instance: &str) -> Option<Self> {
        let top = Hierarchies::find().top(!is_in_user_namespace())?;
        Self::make_in(&top, &Path::new("builder").join(instance))
    }

    fn make_in(top: &Path, instance: &Path) -> Option<Self> {
        let builder = std::process::id();
        let missing = missing_controllers(top);
        let is_ours = |there: &[u32]| there.iter().all(|pid| is_of(*pid, builder));
        let mut there = processes(top);
        // The top of all has no type.
        if !top.join("cgroup.type").exists() || missing.is_empty() || there.is_empty() || !is_ours(&there) {
            return None;
        }
        // Dropped, it leaves again.
        let mut room = Self {
            top: top.into(),
            instance: top.join(instance),
            ours: Vec::new(),
        };
        for _ in 0..LOOKS {
            if !is_ours(&there) || room.enter(&there).is_err() {
                break;
            }
            there = processes(top);
            if there.is_empty() {
                room.ours = missing;
                return Some(room);
            }
        }
        None
    }

    fn enter(&self, processes: &[u32]) -> std::io::Result<()> {
        for dir in [self.instance.parent(), Some(&self.instance), Some(&self.aside())]
            .into_iter()
            .flatten()
        {
            make_dir(dir)?;
        }
        let door = self.aside().join("cgroup.procs");
        for pid in processes {
            match fs::write(&door, pid.to_string()) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn aside(&self) -> PathBuf {
        self.instance.join(ASIDE)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let above = self.instance.parent().unwrap_or(&self.top);
        for dir in [&self.instance, above, &self.top] {
            for controller in &self.ours {
                // Refused where another builder has groups here: then everything stays as it is.
                let _refused = fs::write(dir.join("cgroup.subtree_control"), format!("-{controller}"));
            }
        }
        let aside = self.aside();
        for pid in processes(&aside) {
            let _refused = fs::write(self.top.join("cgroup.procs"), pid.to_string());
        }
        for dir in [&aside, &self.instance, above] {
            let _others = fs::remove_dir(dir);
        }
    }
}

/// The group in which a builder was started that may have stepped aside since.
pub(super) fn started_in(own: &Path) -> &Path {
    let mut above = own.ancestors();
    let parts = [above.next(), above.next(), above.next()].map(|part| part.and_then(Path::file_name));
    match (parts, above.next()) {
        ([Some(aside), Some(_), Some(builder)], Some(top)) if aside == ASIDE && builder == "builder" => top,
        _ => own,
    }
}

/// The wanted controllers that `group` has and groups below it do not.
fn missing_controllers(group: &Path) -> Vec<String> {
    let below = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
    let mut missing = controllers_in(group);
    missing.retain(|name| {
        WANTED.contains(&name.as_str()) && !below.split_whitespace().any(|there| there == name)
    });
    missing
}

/// Who is in `group` itself.
pub(super) fn processes(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    // Processes of other pid namespaces are 0, which is nobody's child.
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Whether `pid` is the builder or was started by it.
fn is_of(pid: u32, builder: u32) -> bool {
    let mut at = Some(pid);
    for _ in 0..GENERATIONS {
        match at {
            Some(pid) if pid == builder => return true,
            Some(pid) if pid > 1 => at = parent_of(pid),
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_that_stepped_aside_knows_where_it_was() {
        for (own, expected) in [
            ("user.slice/a.scope", "user.slice/a.scope"),
            ("user.slice/a.scope/builder/1-2-3-0/self", "user.slice/a.scope"),
            ("builder/1-2-3-0/self", ""),
            ("a/builder/self", "a/builder/self"),
            ("", ""),
        ] {
            assert_eq!(started_in(Path::new(own)), Path::new(expected), "{own}");
        }
    }

    #[test]
    fn children_are_told_from_others() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("starts");
        assert!(is_of(own, own));
        assert!(is_of(child.id(), own));
        assert!(!is_of(own, child.id()));
        assert!(!is_of(0, own));
        child.kill().expect("ours");
        child.wait().expect("ends");
    }

    #[test]
    fn nothing_is_done_where_there_is_no_group() {
        let nowhere = Path::new("/sys/fs/cgroup/not-there");
        assert!(Room::make_in(nowhere, Path::new("builder/1-2-3-0")).is_none());
    }
}
