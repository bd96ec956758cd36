//! Runs one process in namespaces of its own; the only crate with unsafe code and the only one that changes namespaces.
//!
//! ```text
//! builder:  Spec ─▶ Spawner::step ──(socket, descriptors)──┐            Process ◀─ Started, Ended
//! spawner:                                   serve ─▶ launch ─▶ init ─▶ execve
//!                                                        ├ cgroup, rootfs, devices, targets, mounts
//!                                                        └ seccomp
//! ```
//!
//! 1. `Spawner::start` makes the helper, once; without root `rootless::enter` comes first.
//! 2. A [`Spec`] says everything; the helper prepares it, clones, and `init` carries it out in the clone.
//! 3. The [`Process`] tells how it ended, after everything it left is removed.
//!
//! Never: a path of the container used on the host; a descriptor or variable of the builder inside a step; a process
//! that outlives the helper, however the helper or the builder ends.

pub mod spec;
pub mod error;
pub mod process;
pub mod tool;
pub mod rootless;
pub mod spawner;
mod wire;
mod serve;
mod launch;
mod cgroup;
mod rootfs;
mod devices;
mod terminal;
mod targets;
mod mounts;
mod seccomp;
mod init;
mod filesystem;
mod memory;
mod sys;
pub mod network;
#[cfg(test)]
mod tests;

pub use cgroup::ToolGroups;
pub use error::{Blame, Error};
pub use memory::{give_back_memory, share_heaps};
pub use process::{Doorway, Exit, Killer, Process, Size, Status, Stdio, Terminal, Usage};
pub use seccomp::oci_profile;
pub use spawner::{Spawner, spawner_main};
pub use spec::Spec;
pub use tool::{Confined, Tool, ToolMount};
