//! What to run and inside what: plain data, decided by the worker, carried out by the spawner.
//!
//! ```text
//! worker (ops/exec, executor) ─▶ Spec ─▶ Sandbox::start ─▶ (sealed file) ─▶ spawner ─▶ launch
//! ```
//!
//! A `Spec` holds no descriptors and no handles; it can be printed, compared, stored and sent. Defaults
//! are those of a RUN step: Docker's capabilities, the default seccomp profile, a network without links.
//! Paths on the host are `PathBuf`, paths inside the container are `String`.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything the sandbox needs to know of one process and its surroundings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Names the cgroup of the step; letters, digits, `-` and `_` only, at most 64. Empty: one is made up.
    pub id: String,
    /// What becomes `/`.
    pub root: Root,
    /// Mounted in the order given, after the standard ones, so parents must come first.
    pub mounts: Vec<Mount>,
    /// The command; the first word is looked up in `PATH` of [`Spec::env`] when it has no `/`.
    pub args: Vec<String>,
    /// The whole environment, as `NAME=value`; nothing is inherited.
    pub env: Vec<String>,
    /// Absolute working directory; made (0755, owned by [`Spec::user`]) when it is missing.
    pub cwd: String,
    /// Whom the process runs as, in the numbers of the container.
    pub user: User,
    /// Host name of the step's own UTS namespace.
    pub hostname: String,
    /// Contents of `/etc/hosts`, bound read-only; `None` leaves the image's file.
    pub hosts: Option<Vec<u8>>,
    /// Contents of `/etc/resolv.conf`, bound read-only; `None` leaves the image's file.
    pub resolv_conf: Option<Vec<u8>>,
    /// Bounding, permitted and effective capabilities; the inheritable and ambient sets stay empty.
    pub capabilities: Capabilities,
    /// Which system calls may be made.
    pub seccomp: Seccomp,
    /// Whether the step is confined at all.
    pub security: Security,
    /// Which network it sees.
    pub network: Network,
    /// Resource limits that replace the inherited ones.
    pub rlimits: Vec<Rlimit>,
    /// Limits enforced by a cgroup.
    pub limits: Limits,
    /// The cgroup below which ours is made: `path/like/this` or systemd's `name.slice`.
    pub cgroup_parent: Option<String>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size_bytes: u64,
    /// Which mount points that were made for this run are removed after it.
    pub stubs: Stubs,
    /// Further devices of the host.
    pub devices: Vec<DeviceNode>,
    /// Programs of the host to be run at points of the container's life; other OCI runtimes do that, this one refuses.
    pub hooks: Vec<Hook>,
}

/// A device node of the host that the container may open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path inside the container.
    pub path: String,
    /// The node on the host.
    pub source: PathBuf,
    /// What kind it is.
    pub kind: DeviceKind,
    /// Its numbers.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// Whether it may be opened for reading; where no program confines devices that is up to its mode.
    pub may_read: bool,
    /// Whether it may be opened for writing; likewise.
    pub may_write: bool,
}

/// The kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A stream of bytes.
    Character,
    /// A disk.
    Block,
}

/// A program of the host, run at a point of a container's life (runtime-spec, "POSIX-platform Hooks").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// `createRuntime`, `createContainer`, …
    pub stage: String,
    /// The program.
    pub path: String,
    /// Its arguments, its name first.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// How long it may take.
    pub timeout_seconds: Option<i64>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            id: String::new(),
            root: Root::Directory {
                path: PathBuf::new(),
                readonly: false,
            },
            mounts: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: "/".into(),
            user: User::default(),
            hostname: "buildkitsandbox".into(),
            hosts: None,
            resolv_conf: None,
            capabilities: Capabilities::DOCKER,
            seccomp: Seccomp::Default,
            security: Security::Confined,
            network: Network::None,
            rlimits: Vec::new(),
            limits: Limits::default(),
            cgroup_parent: None,
            shm_size_bytes: 64 << 20,
            stubs: Stubs::RemoveWithParents,
            devices: Vec::new(),
            hooks: Vec::new(),
        }
    }
}

/// What becomes the root directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Root {
    /// A stack of layers seen as one.
    Overlay(Overlay),
    /// A directory of the host, as it is.
    Directory {
        /// Where it is.
        path: PathBuf,
        /// Whether writing is refused.
        readonly: bool,
    },
}

/// Layer directories seen as one tree; without [`Overlay::upper`] it is read-only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overlay {
    /// Layer directories in overlayfs form, **top first**. May be empty: then the tree begins empty.
    pub lowers: Vec<PathBuf>,
    /// Where changes go.
    pub upper: Option<Upper>,
}

/// The writable side of an overlay; both directories lie on the same file system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Upper {
    /// Receives the changes.
    pub dir: PathBuf,
    /// Scratch space of the kernel; must be empty.
    pub work: PathBuf,
}

/// One more mount inside the root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the container; links in it are followed inside the root, missing parts are made.
    pub target: String,
    /// What appears there.
    pub source: Source,
    /// Whether writing is refused.
    pub readonly: bool,
    /// `nosuid`, `nodev`, `noexec`.
    pub flags: MountFlags,
}

/// Restrictions on one mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    /// Set-user-id bits have no effect.
    pub nosuid: bool,
    /// Device nodes have no effect.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
}

/// What a [`Mount`] shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Source {
    /// A file or directory of the host.
    Bind {
        /// The root of what may be shown.
        path: PathBuf,
        /// A path beneath it, resolved as if `path` were `/`; empty for all of it.
        subpath: String,
    },
    /// A stack of layers.
    Overlay {
        /// The layers.
        overlay: Overlay,
        /// A path beneath it, resolved as if the stack were `/`; empty for all of it.
        subpath: String,
    },
    /// Memory.
    Tmpfs {
        /// At most so many bytes; `None` for the kernel's default.
        size_bytes: Option<u64>,
        /// Mode of its root directory.
        mode: u32,
    },
    /// One file that exists in memory only.
    Secret(SecretFile),
    /// A unix socket of the host.
    Socket {
        /// Where it listens.
        path: PathBuf,
        /// Owner and mode that the socket shows inside; applied to the socket itself.
        uid: u32,
        /// See `uid`.
        gid: u32,
        /// See `uid`.
        mode: u32,
    },
}

/// A secret that appears as a file; never touches a disk and is not printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFile {
    /// The bytes.
    pub content: Vec<u8>,
    /// Mode, 0777 at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretFile")
            .field("content", &"(not shown)")
            .field("mode", &format_args!("{:#o}", self.mode))
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .finish()
    }
}

/// Numeric identity of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A set of capabilities, bit n for capability n of capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// The 14 that Docker gives: CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP
    /// NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE.
    pub const DOCKER: Self = Self(0xa804_25fb);
    /// Every capability the kernel knows.
    pub const ALL: Self = Self(u64::MAX);
    /// None at all.
    pub const NONE: Self = Self(0);

    /// Tells whether capability number `bit` is in the set.
    #[must_use]
    pub const fn has(self, bit: u32) -> bool {
        bit < 64 && self.0 & (1 << bit) != 0
    }
}

/// Which system calls may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Docker's default rules, with those that depend on capabilities applied to [`Spec::capabilities`].
    Default,
    /// No filter.
    Off,
}

/// Whether the step is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Security {
    /// Masked and read-only paths, the given capabilities, the given seccomp rules.
    Confined,
    /// `RUN --security=insecure`: every capability (ambient too), no filter, nothing masked, `/sys` and cgroups
    /// writable, more devices. [`Spec::capabilities`] and [`Spec::seccomp`] are not looked at.
    Insecure,
}

/// Which network the process sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// That of the builder itself.
    Host,
    /// A new one in which only loopback is up.
    None,
    /// The namespace given along with the spec ([`crate::network::Lease`]).
    Own,
}

/// One resource limit, by its number in getrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Which.
    pub resource: Resource,
    /// The limit in force; `u64::MAX` for none.
    pub soft: u64,
    /// How far it may be raised.
    pub hard: u64,
}

/// The resources of getrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    /// `RLIMIT_AS`
    As,
    /// `RLIMIT_CORE`
    Core,
    /// `RLIMIT_CPU`
    Cpu,
    /// `RLIMIT_DATA`
    Data,
    /// `RLIMIT_FSIZE`
    Fsize,
    /// `RLIMIT_LOCKS`
    Locks,
    /// `RLIMIT_MEMLOCK`
    Memlock,
    /// `RLIMIT_MSGQUEUE`
    Msgqueue,
    /// `RLIMIT_NICE`
    Nice,
    /// `RLIMIT_NOFILE`
    Nofile,
    /// `RLIMIT_NPROC`
    Nproc,
    /// `RLIMIT_RSS`
    Rss,
    /// `RLIMIT_RTPRIO`
    Rtprio,
    /// `RLIMIT_RTTIME`
    Rttime,
    /// `RLIMIT_SIGPENDING`
    Sigpending,
    /// `RLIMIT_STACK`
    Stack,
}

impl Resource {
    const NAMES: [(&'static str, Self); 16] = [
        ("as", Self::As),
        ("core", Self::Core),
        ("cpu", Self::Cpu),
        ("data", Self::Data),
        ("fsize", Self::Fsize),
        ("locks", Self::Locks),
        ("memlock", Self::Memlock),
        ("msgqueue", Self::Msgqueue),
        ("nice", Self::Nice),
        ("nofile", Self::Nofile),
        ("nproc", Self::Nproc),
        ("rss", Self::Rss),
        ("rtprio", Self::Rtprio),
        ("rttime", Self::Rttime),
        ("sigpending", Self::Sigpending),
        ("stack", Self::Stack),
    ];

    /// The resource called `name` (`nofile`, `RLIMIT_NOFILE`), whatever its case.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let name = name.strip_prefix("rlimit_").unwrap_or(&name);
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, resource)| *resource)
    }

    /// Its name as `--ulimit` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, resource)| *resource == self)
            .map(|(name, _)| *name)
            .expect("the table lists every variant")
    }
}

/// Limits of the step's cgroup; `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes of memory and swap together, as in Docker's `--memory-swap`; `Some(u64::MAX)` for unlimited swap.
    pub memory_swap_bytes: Option<u64>,
    /// Relative weight, 2 to 262144; 1024 is ordinary.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU per period.
    pub cpu_quota_us: Option<u64>,
    /// Length of a period in microseconds; 100000 when only a quota is given.
    pub cpu_period_us: Option<u64>,
    /// CPUs, as `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as `0-1`.
    pub cpuset_mems: Option<String>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Limits {
    /// Tells whether there is nothing to enforce.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What happens to mount points (and `/etc/hosts`, `/etc/resolv.conf`) that had to be made and are still empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stubs {
    /// They stay.
    Keep,
    /// They are removed, their parents stay.
    Remove,
    /// They are removed together with the parents that had to be made.
    RemoveWithParents,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_have_names_that_parse_back() {
        for (name, resource) in Resource::NAMES {
            assert_eq!(Resource::parse(name), Some(resource));
            assert_eq!(resource.name(), name);
        }
        assert_eq!(Resource::parse("RLIMIT_NOFILE"), Some(Resource::Nofile));
        assert_eq!(Resource::parse("files"), None);
    }

    #[test]
    fn dockers_capabilities_are_the_fourteen() {
        let named = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
        let mask = named.iter().fold(0_u64, |mask, bit| mask | 1 << bit);
        assert_eq!(Capabilities::DOCKER, Capabilities(mask));
        assert!(!Capabilities::DOCKER.has(21), "no SYS_ADMIN");
    }

    #[test]
    fn a_secret_is_not_printed() {
        let secret = SecretFile {
            content: b"hunter2".to_vec(),
            mode: 0o400,
            uid: 0,
            gid: 0,
        };
        assert!(!format!("{secret:?}").contains("104"), "{secret:?}");
    }
}
