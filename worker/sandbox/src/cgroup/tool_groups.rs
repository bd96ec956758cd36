//! A place for the groups that another OCI runtime makes: removed afterwards, however the runtime ended.
//!
//! It is named as those of a builder are, so that what a killed builder left is swept like its own.

use std::path::{Path, PathBuf};

use super::Hierarchies;
use super::group::{missing, parent_path};
use super::sweep::{instance_name, remove_below};

/// Where a runtime is to make its groups; they go with this value.
#[derive(Debug)]
pub struct ToolGroups {
    /// Relative to the root of every hierarchy.
    path: PathBuf,
    /// Groups above it that were not there before.
    made: Vec<PathBuf>,
}

impl ToolGroups {
    /// A place of its own, below `parent` (`--cgroup-parent`) where there is one. `None` without root of the machine,
    /// where runtimes know best which groups they may make, or for a parent that makes no sense.
    #[must_use]
    pub fn new(parent: Option<&str>) -> Option<Self> {
        if crate::rootless::is_in_user_namespace() || !rustix::process::geteuid().is_root() {
            return None;
        }
        let path = parent_path(parent).ok()?.join("builder").join(instance_name()?);
        let hierarchies = Hierarchies::find();
        let mounts = hierarchies.unified.iter().chain(&hierarchies.mounts);
        let made = mounts
            .flat_map(|mount| missing(mount, &mount.join(&path)))
            .collect();
        Some(Self { path, made })
    }

    /// Whether a runtime can be put into a group of ours that confines devices: there is a hierarchy of version 2.
    #[must_use]
    pub fn can_be_ours() -> bool {
        Hierarchies::find().unified.is_some()
    }

    /// As `linux.cgroupsPath` of the runtime's configuration.
    #[must_use]
    pub fn path(&self) -> String {
        Path::new("/")
            .join(&self.path)
            .join("step")
            .to_string_lossy()
            .into_owned()
    }
}

impl Drop for ToolGroups {
    fn drop(&mut self) {
        let hierarchies = Hierarchies::find();
        for mount in hierarchies.unified.iter().chain(&hierarchies.mounts) {
            let group = mount.join(&self.path);
            if group.is_dir() {
                remove_below(&group);
            }
        }
        for group in &self.made {
            // Not empty means that somebody else uses it by now.
            let _kept = std::fs::remove_dir(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_go_with_the_parents_that_were_new() {
        let parent = format!("sandbox-test-{}/inner", std::process::id());
        let hierarchies = Hierarchies::find();
        let mount = hierarchies.unified.iter().chain(&hierarchies.mounts).next();
        // Without root or a hierarchy there is nothing to look at.
        let (Some(groups), Some(mount)) = (ToolGroups::new(Some(&parent)), mount) else {
            return;
        };
        let step = mount.join(groups.path().trim_start_matches('/'));
        std::fs::create_dir_all(step.join("deeper")).expect("made as a runtime does");
        drop(groups);
        assert!(!mount.join(&parent).parent().expect("a parent").exists());
        assert!(ToolGroups::new(Some("../up")).is_none());
    }
}
