//! A place for the groups that another OCI runtime makes: removed afterwards, however the runtime ended.
//!
//! It is named as those of a builder are, so that what a killed builder left is swept like its own.

use std::path::{Path, PathBuf};

use super::sweep::{instance_name, remove_below};
use super::{Hierarchies, group::parent_path};

/// Where a runtime is to make its groups; they go with this value.
#[derive(Debug)]
pub struct ToolGroups {
    /// Relative to the root of every hierarchy.
    path: PathBuf,
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
        Some(Self { path })
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
    }
}
