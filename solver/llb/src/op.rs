//! The ops of LLB as our own types: what every room of the builder matches on.
//!
//! ```text
//! wire ─▶ decode ─▶ Op ─▶ solver, worker            frontend ─▶ state ─▶ Op ─▶ encode ─▶ wire
//! ```
//!
//! A value that exists has passed the checks of `decode` or was made by `state`: indices point at
//! inputs that are there, enums hold known values, option blocks fit their mount type.
//! Wire names and numbers are in `proto/ops.proto`; nothing here knows how they are encoded.
//! Indices are positions in [`crate::Vertex::inputs`]; `None` stands for "nothing, scratch" (-1 on the wire).

use std::collections::BTreeMap;

use crate::definition::Definition;

/// What one vertex does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "ops live behind the Arc of their vertex and are never moved about"
)]
pub enum Op {
    /// Brings something in from outside: an image, a local directory, a git repository, an HTTP file.
    Source(SourceOp),
    /// Runs a process.
    Exec(ExecOp),
    /// Makes, copies and removes files without running anything.
    File(FileOp),
    /// Lays several results over each other.
    Merge(MergeOp),
    /// What one result adds to another.
    Diff(DiffOp),
    /// Solves a definition found in an input.
    Build(BuildOp),
    /// Hands inputs through unchanged, under one name.
    Passthrough(PassthroughOp),
}

/// A source and its options; the scheme of the identifier says which kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceOp {
    /// `docker-image://…`, `oci-layout://…`, `local://…`, `git://…`, `http://…`, `https://…`
    pub identifier: String,
    /// Options by name; the names are in [`crate::attr`].
    pub attrs: BTreeMap<String, String>,
}

impl SourceOp {
    /// The part of the identifier before `://`, or all of it when there is none.
    pub fn scheme(&self) -> &str {
        self.identifier
            .split_once("://")
            .map_or(self.identifier.as_str(), |(scheme, _)| scheme)
    }

    /// The part of the identifier after `://`; empty when there is none.
    pub fn rest(&self) -> &str {
        self.identifier.split_once("://").map_or("", |(_, rest)| rest)
    }

    /// One option.
    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attrs.get(name).map(String::as_str)
    }
}

/// A process, its file systems and what it may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOp {
    /// Arguments, environment and the like.
    pub meta: ExecMeta,
    /// What is mounted, in the order of the wire (outputs are numbered by it). One has `dest` `/`.
    pub mounts: Vec<Mount>,
    /// Which network the process sees.
    pub network: NetMode,
    /// How far the process is confined.
    pub security: SecurityMode,
    /// Secrets given as environment variables.
    pub secret_env: Vec<SecretEnv>,
    /// Devices by CDI name.
    pub cdi_devices: Vec<CdiDevice>,
}

impl ExecOp {
    /// The mount at `/`.
    pub fn root(&self) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.dest == "/")
    }
}

/// What is run, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecMeta {
    /// Program and arguments, never empty.
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    /// Proxies: put into the environment at run, never part of a key.
    pub proxy_env: Option<ProxyEnv>,
    /// Additional lines of `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
    /// Host name; empty means the default.
    pub hostname: String,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// Parent of the step's cgroup; empty means the default.
    pub cgroup_parent: String,
    /// Whether parents of mount targets that were made for the step are removed again too.
    pub remove_mount_stubs_recursive: bool,
    /// Exit codes that count as success; empty means only 0.
    pub valid_exit_codes: Vec<i32>,
}

/// Proxies by protocol; empty means none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyEnv {
    /// `HTTP_PROXY`
    pub http_proxy: String,
    /// `HTTPS_PROXY`
    pub https_proxy: String,
    /// `FTP_PROXY`
    pub ftp_proxy: String,
    /// `NO_PROXY`
    pub no_proxy: String,
    /// `ALL_PROXY`
    pub all_proxy: String,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostIp {
    /// The name.
    pub host: String,
    /// The address.
    pub ip: String,
}

/// A resource limit, by its name in lower case (`nofile`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ulimit {
    /// Which.
    pub name: String,
    /// The limit now.
    pub soft: i64,
    /// How far the process may raise it.
    pub hard: i64,
}

/// Which network a process sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetMode {
    /// Its own, with a way out.
    #[default]
    Sandbox,
    /// The host's.
    Host,
    /// Loopback only.
    None,
}

/// How far a process is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SecurityMode {
    /// As usual.
    #[default]
    Sandbox,
    /// Privileged; needs the entitlement `security.insecure`.
    Insecure,
}

/// A secret given as an environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretEnv {
    /// Which secret.
    pub id: String,
    /// Name of the variable.
    pub name: String,
    /// Whether its absence is fine.
    pub optional: bool,
}

/// A device by its CDI name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CdiDevice {
    /// `vendor/class=name`
    pub name: String,
    /// Whether its absence is fine.
    pub optional: bool,
}

/// One mount of an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Which input is mounted; `None` is scratch (or nothing, for secret, ssh, tmpfs, unseeded cache).
    pub input: Option<u32>,
    /// Which path inside the input; empty means all of it.
    pub selector: String,
    /// Where. May be relative to the working directory.
    pub dest: String,
    /// Under which number the result is given out. Means something for bind mounts only: secret and ssh
    /// mounts carry a 0 on the wire; use [`Mount::result`] to ask.
    pub output: Option<u32>,
    /// Whether writing is refused.
    pub readonly: bool,
    /// What kind of mount.
    pub kind: MountKind,
    /// Whether the content of the input may stand in for its definition in the cache key.
    pub content_cache: ContentCache,
}

impl Mount {
    /// The output number under which this mount's content is given out, if it is.
    pub fn result(&self) -> Option<u32> {
        match self.kind {
            MountKind::Bind => self.output,
            MountKind::Secret(_) | MountKind::Ssh(_) | MountKind::Cache(_) | MountKind::Tmpfs { .. } => None,
        }
    }
}

/// What kind of mount, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// An input, or scratch.
    Bind,
    /// A secret as a file.
    Secret(SecretMount),
    /// The client's ssh agent as a socket.
    Ssh(SshMount),
    /// A directory that outlives builds.
    Cache(CacheMount),
    /// Memory; `size` in bytes, 0 means the kernel's default.
    Tmpfs {
        /// Upper limit in bytes.
        size: i64,
    },
}

/// A secret as a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretMount {
    /// Which secret.
    pub id: String,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
    /// Permission bits of the file.
    pub mode: u32,
    /// Whether its absence is fine.
    pub optional: bool,
}

/// The client's ssh agent as a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SshMount {
    /// Which agent; empty means `default`.
    pub id: String,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// Permission bits of the socket.
    pub mode: u32,
    /// Whether its absence is fine.
    pub optional: bool,
}

/// A directory that outlives builds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheMount {
    /// Which directory.
    pub id: String,
    /// Who may use it at the same time.
    pub sharing: CacheSharing,
}

/// Who may use a cache directory at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheSharing {
    /// Everyone, the same directory.
    #[default]
    Shared,
    /// A second user at the same time gets another directory.
    Private,
    /// A second user waits.
    Locked,
}

/// Whether the content of an input may stand in for its definition in the cache key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ContentCache {
    /// Where it is safe.
    #[default]
    Default,
    /// Always.
    On,
    /// Never.
    Off,
}

/// File actions, done in order in one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileOp {
    /// The actions, at least one.
    pub actions: Vec<FileAction>,
}

/// One action and what it works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileAction {
    /// The directory that is changed.
    pub input: FileInput,
    /// Where a copy takes from.
    pub secondary_input: FileInput,
    /// Under which number the result is given out, if it is.
    pub output: Option<u32>,
    /// What is done.
    pub kind: FileActionKind,
}

/// A directory a file action works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileInput {
    /// An empty directory.
    Scratch,
    /// An input of the vertex.
    Input(u32),
    /// The result of an earlier action of the same op.
    Action(u32),
}

/// What a file action does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileActionKind {
    /// Copies files.
    Copy(CopyAction),
    /// Makes a file.
    Mkfile(MkfileAction),
    /// Makes a directory.
    Mkdir(MkdirAction),
    /// Removes files.
    Rm(RmAction),
    /// Makes a symbolic link.
    Symlink(SymlinkAction),
}

/// Copies files from the secondary input onto the input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyAction {
    /// Path in the source, maybe with wildcards.
    pub src: String,
    /// Path in the destination; ends with `/` for "into this directory".
    pub dest: String,
    /// New owner.
    pub owner: Option<Chown>,
    /// New permission bits; -1 keeps those of the source.
    pub mode: i32,
    /// New permissions in symbolic form (`u+x`); empty means none.
    pub mode_str: String,
    /// Whether links in `src` are resolved.
    pub follow_symlink: bool,
    /// Whether of a directory its contents are copied, not the directory itself.
    pub dir_copy_contents: bool,
    /// Whether an archive is unpacked.
    pub attempt_unpack: bool,
    /// Whether missing parents of `dest` are made.
    pub create_dest_path: bool,
    /// Whether `src` may hold wildcards.
    pub allow_wildcard: bool,
    /// Whether wildcards may match nothing.
    pub allow_empty_wildcard: bool,
    /// Nanoseconds since 1970; -1 keeps the time of the source.
    pub timestamp: i64,
    /// Only what matches one of these is copied; empty means everything.
    pub include_patterns: Vec<String>,
    /// What matches one of these is not copied.
    pub exclude_patterns: Vec<String>,
    /// Whether a destination of another type is replaced.
    pub always_replace_existing: bool,
    /// Paths that must be among what is included.
    pub required_paths: Vec<String>,
}

/// Makes a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MkfileAction {
    /// Where.
    pub path: String,
    /// Permission bits.
    pub mode: i32,
    /// Contents.
    pub data: Vec<u8>,
    /// Owner; `None` is root.
    pub owner: Option<Chown>,
    /// Nanoseconds since 1970; -1 is now.
    pub timestamp: i64,
}

/// Makes a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MkdirAction {
    /// Where.
    pub path: String,
    /// Permission bits.
    pub mode: i32,
    /// Whether missing parents are made too.
    pub make_parents: bool,
    /// Owner; `None` is root.
    pub owner: Option<Chown>,
    /// Nanoseconds since 1970; -1 is now.
    pub timestamp: i64,
}

/// Removes files, with all that is in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RmAction {
    /// What.
    pub path: String,
    /// Whether its absence is fine.
    pub allow_not_found: bool,
    /// Whether `path` may hold wildcards.
    pub allow_wildcard: bool,
}

/// Makes a symbolic link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymlinkAction {
    /// What the link says.
    pub oldpath: String,
    /// Where the link is.
    pub newpath: String,
    /// Owner; `None` is root.
    pub owner: Option<Chown>,
    /// Nanoseconds since 1970; -1 is now.
    pub timestamp: i64,
}

/// A new owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chown {
    /// The user; `None` leaves it.
    pub user: Option<Owner>,
    /// The group; `None` takes the user's.
    pub group: Option<Owner>,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// By number.
    Id(u32),
    /// By name, looked up in `/etc/passwd` or `/etc/group` of an input; without an input every name is 0.
    Name {
        /// The name.
        name: String,
        /// Where it is looked up.
        input: Option<u32>,
    },
}

/// Lays inputs over each other, later ones on top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergeOp {
    /// Bottom first; `None` is scratch.
    pub inputs: Vec<Option<u32>>,
}

/// What `upper` adds to `lower`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiffOp {
    /// `None` is scratch.
    pub lower: Option<u32>,
    /// `None` is scratch.
    pub upper: Option<u32>,
}

/// Hands inputs through unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassthroughOp {
    /// Under this name.
    pub id: String,
    /// Which input each output is.
    pub outputs: Vec<u32>,
}

/// Solves a definition found in an input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOp {
    /// Who solves it; `None` is the solver itself.
    pub builder: Option<u32>,
    /// Named inputs.
    pub inputs: BTreeMap<String, Option<u32>>,
    /// The definition itself, when it is not in an input.
    pub definition: Option<Box<Definition>>,
    /// Options by name.
    pub attrs: BTreeMap<String, String>,
}
