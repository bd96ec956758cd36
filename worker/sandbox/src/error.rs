//! What can go wrong, one variant per step, so that "operation not permitted" always says which operation.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A process could not be started or its end could not be learned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The helper process that starts steps did not come up.
    #[error("start the spawner: {what}")]
    StartSpawner {
        /// Which part of it.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The helper process ended; nothing it had started runs any more.
    #[error("the spawner process ended while {doing}")]
    SpawnerGone {
        /// What was asked of it.
        doing: &'static str,
    },
    /// A message to or from the helper process failed.
    #[error("talk to the spawner: {what}")]
    Talk {
        /// Which message.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The spec itself cannot be carried out.
    #[error("{0}")]
    Invalid(String),
    /// One step of the set-up failed.
    #[error("{step}: {}", io::Error::from_raw_os_error(*errno))]
    Setup {
        /// Which step.
        step: Step,
        /// The kernel's error number.
        errno: i32,
    },
    /// The command does not exist in the container.
    #[error("exec: {program:?}: executable file not found in $PATH")]
    NotFound {
        /// The first argument.
        program: String,
    },
    /// The command exists but cannot be executed.
    #[error("exec {program:?}: {}", io::Error::from_raw_os_error(*errno))]
    Exec {
        /// The first argument.
        program: String,
        /// The kernel's error number.
        errno: i32,
    },
    /// A network could not be set up.
    #[error("network: {what}")]
    Network {
        /// What was attempted, on what.
        what: String,
        /// What the kernel or the program said.
        source: io::Error,
    },
    /// The user namespace of an ordinary user could not be entered.
    #[error("run without root: {what}")]
    Rootless {
        /// What was attempted, and a hint.
        what: String,
        /// What the kernel or the program said.
        source: io::Error,
    },
}

/// Whose move it is when something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The build's author: the command or its options.
    User,
    /// The machine: disk, kernel, rights.
    Environment,
    /// This program.
    Internal,
}

impl Error {
    /// Whose move it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::NotFound { .. } | Self::Exec { .. } | Self::Invalid(_) => Blame::User,
            Self::Setup {
                step: Step::Target { .. } | Step::Cwd { .. } | Step::Subpath { .. },
                ..
            } => Blame::User,
            Self::StartSpawner { .. } | Self::Setup { .. } | Self::Network { .. } | Self::Rootless { .. } => {
                Blame::Environment
            }
            Self::SpawnerGone { .. } | Self::Talk { .. } => Blame::Internal,
        }
    }
}

/// The steps of setting a process up, as they appear in [`Error::Setup`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Step {
    /// unshare(2)
    #[error("make a mount namespace")]
    MountNamespace,
    /// setns(2) back to the spawner's own mounts
    #[error("leave the mount namespace of a step")]
    LeaveNamespace,
    /// A layer directory.
    #[error("open layer directory {0:?}")]
    Layer(PathBuf),
    /// The stack of layers.
    #[error("mount an overlay of {lowers} layers: {detail}")]
    Overlay {
        /// How many layers lie below.
        lowers: usize,
        /// The kernel's own words, where it gave any.
        detail: String,
    },
    /// The root directory.
    #[error("make {0:?} the root directory")]
    Root(PathBuf),
    /// One of the kernel's own file systems.
    #[error("mount {fs} on {target}")]
    Filesystem {
        /// Its type.
        fs: String,
        /// Where.
        target: String,
    },
    /// A device node.
    #[error("make device node {0}")]
    Device(String),
    /// A mount point.
    #[error("make mount point {target:?} in the container")]
    Target {
        /// Its path in the container.
        target: String,
    },
    /// What is to be mounted.
    #[error("open mount source {path:?} for {target:?}")]
    Source {
        /// Path on the host.
        path: PathBuf,
        /// Path in the container.
        target: String,
    },
    /// A path beneath what is to be mounted.
    #[error("open {subpath:?} in the source of mount {target:?}")]
    Subpath {
        /// Path beneath the source.
        subpath: String,
        /// Path in the container.
        target: String,
    },
    /// The mount itself.
    #[error("mount {target:?} in the container")]
    Mount {
        /// Its path in the container.
        target: String,
    },
    /// A secret file.
    #[error("write secret {target:?}")]
    Secret {
        /// Its path in the container.
        target: String,
    },
    /// The socket forwarded into the step.
    #[error("set owner and mode of socket {0:?}")]
    Socket(PathBuf),
    /// A cgroup.
    #[error("{action} cgroup {path:?}")]
    Cgroup {
        /// What was to be done.
        action: String,
        /// The directory or file.
        path: PathBuf,
    },
    /// clone(2)
    #[error("clone a process with its own namespaces")]
    Clone,
    /// setns(2) for a further process of a container.
    #[error("enter the container")]
    Enter,
    /// The network namespace.
    #[error("join the network namespace of the step")]
    JoinNetwork,
    /// Loopback in a namespace of its own.
    #[error("bring up the loopback interface")]
    Loopback,
    /// Session and terminal.
    #[error("make the terminal the controlling one")]
    Terminal,
    /// dup2(2)
    #[error("connect stdin, stdout and stderr")]
    Stdio,
    /// The cgroup namespace.
    #[error("make a cgroup namespace")]
    CgroupNamespace,
    /// sethostname(2)
    #[error("set the host name")]
    Hostname,
    /// One masked path.
    #[error("mask {0}")]
    Mask(String),
    /// One read-only path.
    #[error("make {0} read-only")]
    ReadOnly(String),
    /// One limit.
    #[error("set limit {0}")]
    Rlimit(String),
    /// Capabilities.
    #[error("set capabilities")]
    Capabilities,
    /// setgroups, setgid, setuid
    #[error("become user {uid}, group {gid}")]
    User {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// The working directory.
    #[error("enter working directory {path:?}")]
    Cwd {
        /// Its path in the container.
        path: String,
    },
    /// The filter of system calls.
    #[error("install the seccomp filter")]
    Seccomp,
    /// close_range(2)
    #[error("close inherited descriptors")]
    Descriptors,
    /// PR_SET_PDEATHSIG
    #[error("ask to die with the spawner")]
    DeathSignal,
}
