//! A program of the host (an OCI runtime) that sees layers mounted where it expects them, and nothing else changed.
//!
//! It lives in a mount namespace of its own with a `/proc` that fits, so that whatever was mounted for it is gone
//! when it ends, however it ends.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::{DeviceNode, Limits, Overlay, Security, Stubs};

/// The program and what it needs to see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// The program, by its full path, and its arguments.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<String>,
    /// Where it begins.
    pub cwd: PathBuf,
    /// Directories on which overlays are mounted before it starts, in this order.
    pub mounts: Vec<ToolMount>,
    /// Mount points the tool will make in the first of `mounts`, absolute inside it; `true` for directories. They
    /// are made beforehand, so that they can be removed afterwards.
    pub targets: Vec<(String, bool)>,
    /// Directories that must exist in the first of `mounts`, with their owner; they stay.
    pub directories: Vec<(String, u32, u32)>,
    /// Which targets are removed.
    pub stubs: Stubs,
    /// A group of its own for it, for a runtime that leaves groups to others.
    pub confined: Option<Confined>,
}

/// What the group of a tool decides. The tool sees the unified hierarchy only, wherever it looks for groups: what it
/// starts is in the group already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confined {
    /// Above the group (`--cgroup-parent`).
    pub parent: Option<String>,
    /// What may be used.
    pub limits: Limits,
    /// Whether devices are confined.
    pub security: Security,
    /// Devices that may be opened beside the usual ones.
    pub devices: Vec<DeviceNode>,
}

/// Layers mounted on a directory of the host, for the tool only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolMount {
    /// An existing directory.
    pub target: PathBuf,
    /// What is mounted there.
    pub overlay: Overlay,
}
