//! Runs one process in namespaces of its own; the only crate with unsafe code and the only one that changes namespaces.
//!
//! ```text
//! Spec ─▶ spawner ─(socket, descriptors)─▶ serve ─▶ launch ─▶ init ─▶ execve
//!                                            │        ├ rootfs, mounts, devices, stubs, cgroup
//!                                            ▼        └ seccomp, capabilities
//!                                         Process ◀─ started, ended
//! ```

pub mod error;
pub mod spec;

pub use error::{Blame, Error};
pub use spec::Spec;
