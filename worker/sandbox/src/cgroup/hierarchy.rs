//! Which cgroup hierarchies are mounted where, and where this process is in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// Mount point of version 2.
    pub(crate) unified: Option<PathBuf>,
    /// Our own place in version 2, relative to the mount point.
    pub(crate) own: PathBuf,
    /// Mount points of version 1, by controller.
    pub(crate) legacy: BTreeMap<String, PathBuf>,
    /// Every mount point of version 1, those of controllers that are not used here, too.
    pub(crate) mounts: Vec<PathBuf>,
}

impl Hierarchies {
    /// Reads them from `/proc/self`.
    pub(crate) fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::parse(&mounts, &own)
    }

    fn parse(mounts: &str, own: &str) -> Self {
        let mut found = Self::default();
        for line in mounts.lines() {
            let Some((place, kind)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = place.split(' ').nth(4).map(PathBuf::from) else {
                continue;
            };
            let mut kind = kind.split(' ');
            match kind.next() {
                Some("cgroup2") if found.unified.is_none() => found.unified = Some(point),
                Some("cgroup") => {
                    found.mounts.push(point.clone());
                    for controller in kind.nth(1).unwrap_or_default().split(',') {
                        if matches!(controller, "memory" | "cpu" | "cpuset" | "pids") {
                            found
                                .legacy
                                .entry(controller.into())
                                .or_insert_with(|| point.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap_or_default();
        // A place above the root of our cgroup namespace begins with `..`; it cannot be reached.
        found.own = if own.starts_with("..") {
            PathBuf::new()
        } else {
            own.into()
        };
        found
    }

    /// The group of version 2 in which this builder has groups: of root the top of all, else the one it was started in.
    pub(super) fn top(&self, is_root: bool) -> Option<PathBuf> {
        let unified = self.unified.as_ref()?;
        Some(if is_root {
            unified.clone()
        } else {
            unified.join(super::room::started_in(&self.own))
        })
    }

    /// "v2", "v1", "hybrid" or "none".
    #[cfg(test)]
    fn version(&self) -> &'static str {
        match (&self.unified, self.legacy.is_empty()) {
            (Some(_), true) => "v2",
            (Some(_), false) => "hybrid",
            (None, false) => "v1",
            (None, true) => "none",
        }
    }
}

/// The controllers available in a version 2 group.
pub(super) fn controllers_in(group: &Path) -> Vec<String> {
    let text = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_apart() {
        let v2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let memory = "43 32 0:36 / /sys/fs/cgroup/memory rw shared:21 - cgroup cgroup rw,memory\n";
        let cpu = "44 32 0:37 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let unified = "45 32 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n";
        let cases = [
            (v2.to_owned(), "v2", 0),
            (format!("{memory}{cpu}{unified}"), "hybrid", 2),
            (memory.to_owned(), "v1", 1),
            ("nonsense".to_owned(), "none", 0),
        ];
        for (mounts, version, legacy) in cases {
            let found = Hierarchies::parse(&mounts, "9:memory:/x\n0::/user.slice/a.scope\n");
            assert_eq!(
                (found.version(), found.legacy.len()),
                (version, legacy),
                "{mounts}"
            );
            assert_eq!(found.own, Path::new("user.slice/a.scope"));
        }
    }
}
