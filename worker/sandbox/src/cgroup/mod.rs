//! One group of processes per step: limits, what was used, and a handle on everything a step leaves running.
//!
//! ```text
//! <hierarchy>[/<parent>]/builder/<pid namespace>-<pid>-<start time of the builder>-<spawner>/<step>
//! ```
//!
//! 1. `hierarchy` finds what is mounted: version 2, version 1 or both.
//! 2. `group` makes a step's directories, writes limits, reads counters, kills and removes.
//! 3. `room` has the builder step aside where its own group is to be divided.
//! 4. `sweep` removes what a killed builder left; `tool_groups` what another OCI runtime made.
//!
//! With both versions mounted, version 2 tells steps apart (cheap) and version 1 is joined only for the limits a
//! step asks for (joining one costs milliseconds). Where nothing can be written, steps run without a group.

mod hierarchy;
mod group;
mod room;
mod sweep;
mod tool_groups;

pub(crate) use group::{Cgroups, Group};
pub(crate) use hierarchy::Hierarchies;
pub(crate) use room::Room;
pub(crate) use sweep::instance_name;
pub use tool_groups::ToolGroups;
