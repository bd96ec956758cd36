//! A Dockerfile as values: stages and typed instructions. Nothing is expanded yet.

use llb::Range;
use oci::Healthcheck;

use crate::parse::place::Places;

/// A whole file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dockerfile {
    pub(crate) stages: Vec<Stage>,
    /// ARG instructions before the first FROM.
    pub(crate) global_args: Vec<Instruction>,
    /// What continues lines and escapes characters.
    pub(crate) escape: char,
}

/// FROM and what follows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Stage {
    /// The name given by AS, in lower case; empty when there is none.
    pub(crate) name: String,
    /// What follows FROM.
    pub(crate) base: String,
    /// The value of `--platform`; empty when there is none.
    pub(crate) platform: String,
    /// FROM as it is written.
    pub(crate) keyword: String,
    /// The whole line.
    pub(crate) code: String,
    pub(crate) ranges: Vec<Range>,
    /// Where its parts stand, in bytes of the file; of an ONBUILD trigger in those of the trigger.
    pub(crate) places: Places,
    pub(crate) comments: Vec<String>,
    pub(crate) instructions: Vec<Instruction>,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Instruction {
    pub(crate) kind: Kind,
    /// The keyword as it is written.
    pub(crate) keyword: String,
    /// The whole line, continuations joined.
    pub(crate) code: String,
    pub(crate) ranges: Vec<Range>,
    /// Where its parts stand, in bytes of the file; of an ONBUILD trigger in those of the trigger.
    pub(crate) places: Places,
    pub(crate) comments: Vec<String>,
}

/// What an instruction says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Add(Add),
    Arg(Vec<Arg>),
    Cmd(CommandLine),
    Copy(Copy),
    Entrypoint(CommandLine),
    Env(Vec<Pair>),
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Vec<Pair>),
    Maintainer(String),
    OnBuild(String),
    Run(Run),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// `key=value`, or `key value` in the old form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) is_legacy: bool,
}

/// `name` or `name=default`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arg {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

/// What is copied, and where to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    pub(crate) paths: Vec<String>,
    pub(crate) contents: Vec<Content>,
    pub(crate) dest: String,
}

/// A file written in the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) name: String,
    pub(crate) data: String,
    /// Its bytes, where they are no UTF-8 and nothing in them is expanded.
    pub(crate) raw: Option<Vec<u8>>,
    /// Whether variables in it are expanded.
    pub(crate) is_expanded: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Add {
    pub(crate) sources: Sources,
    pub(crate) chown: String,
    pub(crate) chmod: String,
    pub(crate) link: bool,
    pub(crate) keep_git_dir: Option<bool>,
    pub(crate) checksum: String,
    pub(crate) unpack: Option<bool>,
    pub(crate) exclude: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) sources: Sources,
    pub(crate) from: String,
    pub(crate) chown: String,
    pub(crate) chmod: String,
    pub(crate) link: bool,
    pub(crate) parents: bool,
    pub(crate) exclude: Vec<String>,
}

/// A command in shell or exec form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// Of the shell form, one text.
    pub(crate) args: Vec<String>,
    pub(crate) heredocs: Vec<Heredoc>,
    pub(crate) is_shell: bool,
}

/// A text between `<<NAME` and `NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heredoc {
    pub(crate) name: String,
    pub(crate) data: String,
    /// Its bytes, where they are no UTF-8.
    pub(crate) raw: Option<Vec<u8>>,
    /// Whether leading tabs are removed.
    pub(crate) is_chomped: bool,
    /// Whether variables in it are expanded.
    pub(crate) is_expanded: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) command: CommandLine,
    /// `--mount` values; expanded and read when the stage is lowered.
    pub(crate) mounts: Vec<String>,
    /// `from` of each mount, which is never expanded.
    pub(crate) mounts_from: Vec<String>,
    pub(crate) network: RunNetwork,
    pub(crate) is_insecure: bool,
    pub(crate) devices: Vec<Device>,
}

/// `--network` of RUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RunNetwork {
    /// What the build says.
    #[default]
    Default,
    None,
    Host,
}

/// `--device` of RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) is_required: bool,
}

/// One `--mount` of RUN, expanded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) kind: MountKind,
    pub(crate) from: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) is_readonly: bool,
    pub(crate) size: i64,
    pub(crate) id: String,
    pub(crate) sharing: Option<llb::op::CacheSharing>,
    pub(crate) is_required: bool,
    pub(crate) env: Option<String>,
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MountKind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}
