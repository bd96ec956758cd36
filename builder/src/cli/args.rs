//! Every command and flag but those of `build`: one declaration each gives parsing, help and completion.
use super::build_flags::BuildFlags;
use super::remote::RemoteFlags;
use super::serve_flags::ServeArgs;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Builds container images from Dockerfiles, without a daemon.
#[derive(Debug, Parser)]
#[command(name = "builder", version, about, after_help = super::exit::HELP, max_term_width = 110)]
#[command(disable_help_subcommand = true, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Where images, layers and caches are kept [default: $BUILDER_ROOT, /var/lib/builder or ~/.local/share/builder]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub root: Option<PathBuf>,
    /// Log to stderr what the program does inside
    #[arg(short = 'D', long, global = true, help_heading = "Global options")]
    pub debug: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image from a Dockerfile
    #[command(visible_alias = "b")]
    Build(Box<BuildFlags>),
    /// List the images in the builder's store
    #[command(visible_alias = "ls")]
    Images(ImagesArgs),
    /// Remove images from the store
    Rmi(RmiArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Send an image to its registry
    Push(PushArgs),
    /// Fetch an image from its registry
    Pull(PullArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Read images from an archive
    Load(LoadArgs),
    /// Show an image's manifest and configuration as JSON
    Inspect(InspectArgs),
    /// Show the instructions an image was made by, or builds that are over (ls, inspect, logs, timing, rm, export, trace)
    History(HistoryArgs),
    /// Run a command in an image, in the same sandbox as RUN
    Run(RunArgs),
    /// Write the digests of base images into a Dockerfile
    Pin(PinArgs),
    /// Show what the store holds and how large it is
    Du(DuArgs),
    /// Remove what no build and no image needs
    Prune(PruneArgs),
    /// Serve builds to buildctl, docker buildx and other builders
    Serve(Box<ServeArgs>),
    /// Connect stdin and stdout to a daemon (for ssh)
    DialStdio(DialStdioArgs),
    /// List what builds: platforms, labels, devices, gc policies
    Workers(WorkersArgs),
    /// Say what this machine can and cannot do, and how to get what is missing
    Doctor(DoctorArgs),
    /// Copy the program into a folder, with the link `build`
    Install(InstallArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
    /// Print the version
    Version,
}

/// `images`
#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Only images whose name contains this
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Print digests only
    #[arg(short, long)]
    pub quiet: bool,
    /// Show whole digests
    #[arg(long)]
    pub no_trunc: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `rmi`
#[derive(Debug, Args)]
pub struct RmiArgs {
    /// Names, or digests
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// No error if there is no such image
    #[arg(short, long)]
    pub force: bool,
}

/// `tag`
#[derive(Debug, Args)]
pub struct TagArgs {
    /// The image
    pub source: String,
    /// Its further name
    pub target: String,
}

/// `push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The image
    pub image: String,
    /// Where to, if not to the image's own name
    #[arg(value_name = "AS")]
    pub target: Option<String>,
    /// Print the digest only
    #[arg(short, long)]
    pub quiet: bool,
}

/// `pin`
#[derive(Debug, Args)]
pub struct PinArgs {
    /// The folder the Dockerfile lies in
    #[arg(value_name = "PATH", default_value = ".")]
    pub path: PathBuf,
    /// The Dockerfile [default: PATH/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Change nothing; list the bases that are not pinned and end with 1 if there are any
    #[arg(long, conflicts_with_all = ["update", "dry_run"])]
    pub check: bool,
    /// Look the tags of pinned bases up again
    #[arg(long)]
    pub update: bool,
    /// Change nothing; print the lines that would change
    #[arg(long)]
    pub dry_run: bool,
    /// A named context of the build: a base of this name is left alone
    #[arg(long = "build-context", value_name = "NAME[=PLACE]")]
    pub build_contexts: Vec<String>,
}

/// `pull`
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The image
    pub image: String,
    /// Which platform's image of several
    #[arg(long)]
    pub platform: Option<String>,
    /// Print the digest only
    #[arg(short, long)]
    pub quiet: bool,
}

/// `save`
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// The file to write [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The archive's format
    #[arg(long, value_enum, default_value_t = ArchiveFormat::Docker)]
    pub format: ArchiveFormat,
}

/// The format of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ArchiveFormat {
    /// An OCI image layout, which `docker load` and `podman load` read as well
    Docker,
    /// An OCI image layout
    Oci,
}

/// `load`
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The archive, or the folder of an image layout [default: stdin]
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Name for images that carry none in the archive
    #[arg(short, long)]
    pub tag: Option<String>,
    /// Print digests only
    #[arg(short, long)]
    pub quiet: bool,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The image
    pub image: String,
    /// Which part to print
    #[arg(long, value_enum, default_value_t = InspectPart::All)]
    pub part: InspectPart,
    /// Which platform's image of several
    #[arg(long)]
    pub platform: Option<String>,
}

/// What `inspect` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum InspectPart {
    /// Names, descriptor, manifest and configuration in one object
    All,
    /// The manifest (or index), byte for byte
    Manifest,
    /// The configuration, byte for byte
    Config,
}

/// `history`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct HistoryArgs {
    /// What to show of builds instead
    #[command(subcommand)]
    pub command: Option<HistoryCommand>,
    /// The image
    #[arg(required = true)]
    pub image: Option<String>,
    /// Show whole instructions
    #[arg(long)]
    pub no_trunc: bool,
    /// Which platform's image of several
    #[arg(long)]
    pub platform: Option<String>,
}

/// `history`, of builds
#[derive(Debug, Subcommand)]
pub enum HistoryCommand {
    /// List builds, the newest first
    Ls(HistoryLsArgs),
    /// Show what a build was asked and how it ended
    Inspect(HistoryRefArgs),
    /// Show again what a build showed
    Logs(HistoryLogsArgs),
    /// Show where a build's time went: bars in the terminal, or a page with the graph
    Timing(HistoryTimingArgs),
    /// Forget builds
    Rm(HistoryRmArgs),
    /// Write builds to a .dockerbuild file, as Docker Desktop reads them
    Export(HistoryExportArgs),
    /// Print the trace of a build for Jaeger
    Trace(HistoryRefArgs),
    /// Write the page of a build and show it in a browser, where there is one
    Open(HistoryRefArgs),
    /// Read builds from .dockerbuild files, of this program or of docker buildx
    Import(HistoryImportArgs),
}

/// `history export`
#[derive(Debug, Args)]
pub struct HistoryExportArgs {
    /// The builds [default: the newest]
    #[arg(value_name = "BUILD")]
    pub builds: Vec<String>,
    /// Every build that is over
    #[arg(long, conflicts_with = "builds")]
    pub all: bool,
    /// The file [default: stdout, where that is no terminal]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `history import`
#[derive(Debug, Args)]
pub struct HistoryImportArgs {
    /// The files [default: stdin, where that is no terminal]; - is stdin
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A file, as docker buildx has it; may be repeated
    #[arg(long = "file", short = 'f', value_name = "FILE", conflicts_with = "files")]
    pub named: Vec<PathBuf>,
}

/// `history ls`
#[derive(Debug, Args)]
pub struct HistoryLsArgs {
    /// Only builds that are so: ref=, status=, repository=, startedAt>, completedAt<, duration>; may be repeated
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// At most so many
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 0)]
    pub limit: usize,
}

/// A build of the history
#[derive(Debug, Args)]
pub struct HistoryRefArgs {
    /// The build's id or the beginning of it; ^1 is the one before the newest [default: the newest]
    #[arg(value_name = "BUILD", default_value = "")]
    pub build: String,
}

/// `history logs`
#[derive(Debug, Args)]
pub struct HistoryLogsArgs {
    /// The build's id or the beginning of it [default: the newest]
    #[arg(value_name = "BUILD", default_value = "")]
    pub build: String,
    /// How: plain or rawjson
    #[arg(long, default_value = "plain")]
    pub progress: String,
}

/// `history timing`
#[derive(Debug, Args)]
pub struct HistoryTimingArgs {
    /// The build's id or the beginning of it [default: the newest]
    #[arg(value_name = "BUILD", default_value = "")]
    pub build: String,
    /// Show steps of the cache as well
    #[arg(long)]
    pub all: bool,
    /// Write a page with the graph and the times instead; - is stdout
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `history rm`
#[derive(Debug, Args)]
pub struct HistoryRmArgs {
    /// The builds
    #[arg(value_name = "BUILD", required_unless_present = "all")]
    pub builds: Vec<String>,
    /// Every build that is over and not pinned
    #[arg(long, conflicts_with = "builds")]
    pub all: bool,
}

/// `run`
#[derive(Debug, Args)]
#[command(trailing_var_arg = true)]
pub struct RunArgs {
    /// The image
    pub image: String,
    /// The command and its arguments [default: the image's]
    #[arg(value_name = "COMMAND", allow_hyphen_values = true)]
    pub command: Vec<OsString>,
    /// Set a variable; without a value, pass on this shell's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Run this program instead of the image's entrypoint ("" for none)
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Run as this user[:group]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Start in this folder of the image
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Bind a folder or file of this machine: source:target[:ro]
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    pub volume: Vec<String>,
    /// The network: its own, the machine's, or none
    #[arg(long, value_name = "default|host|none", default_value = "default")]
    pub network: String,
    /// The host name inside
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Keep stdin open (always done)
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal [default: if stdin and stdout are one]
    #[arg(short, long)]
    pub tty: bool,
    /// Remove what the command wrote when it has ended (always done)
    #[arg(long)]
    pub rm: bool,
    /// Which platform's image of several
    #[arg(long)]
    pub platform: Option<String>,
}

/// `du`
#[derive(Debug, Args)]
pub struct DuArgs {
    /// Only records for which this holds, such as type==source.local, inuse, id~=abc, until=24h
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Show everything known about each record
    #[arg(long)]
    pub verbose: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Of a daemon instead of the store here.
    #[command(flatten)]
    pub remote: RemoteFlags,
}

/// `prune`
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Also remove internal records, frontends and what several share
    #[arg(short, long)]
    pub all: bool,
    /// Only records for which this holds, such as type==exec.cachemount or until=24h
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Remove until no more than this much is used
    #[arg(long, value_name = "SIZE")]
    pub max_used_space: Option<String>,
    /// Remove until this much of the disk is free
    #[arg(long, value_name = "SIZE")]
    pub min_free_space: Option<String>,
    /// Always keep this much
    #[arg(long, visible_alias = "keep-storage", value_name = "SIZE")]
    pub reserved_space: Option<String>,
    /// Show everything known about each record removed
    #[arg(long)]
    pub verbose: bool,
    /// Of a daemon instead of the store here.
    #[command(flatten)]
    pub remote: RemoteFlags,
}

/// `dial-stdio`
#[derive(Debug, Args)]
pub struct DialStdioArgs {
    /// The daemon's socket: unix://PATH [default: that of `serve`]
    #[arg(long, value_name = "ADDRESS")]
    pub addr: Option<String>,
}

/// `workers`
#[derive(Debug, Args)]
pub struct WorkersArgs {
    /// Only workers that are so: id==…, labels.NAME==…; of a daemon
    #[arg(long, short = 'f', value_name = "FILTER", requires = "addr")]
    pub filter: Vec<String>,
    /// Show everything known
    #[arg(long, short = 'v')]
    pub verbose: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Of a daemon instead of this machine.
    #[command(flatten)]
    pub remote: RemoteFlags,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    /// A daemon instead of this machine.
    #[command(flatten)]
    pub remote: RemoteFlags,
}

/// `install`
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// The folder [default: /usr/local/bin for root, else ~/.local/bin]
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `completion`
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// The command line's definition, for parsing and completion.
pub fn command() -> clap::Command {
    Cli::command()
}

impl Cli {
    /// Parses arguments; under the name `build` they are those of `builder build`.
    ///
    /// # Errors
    /// What clap says; it prints itself and knows its exit code.
    pub fn parse_from_name(argv: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
        let mut argv: Vec<OsString> = argv.into_iter().collect();
        let called = argv.first().map(Path::new).and_then(Path::file_name);
        let mut definition = command();
        if called.is_some_and(|name| name == "build") {
            argv.splice(0..1, ["builder".into(), "build".into()]);
            definition = definition.mut_subcommand("build", |build| build.bin_name("build"));
        }
        let mut matches = definition.try_get_matches_from_mut(argv)?;
        Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut definition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::parse_from_name(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn called_as_build_it_builds() {
        for line in [
            "build -t a:1 .",
            "/usr/local/bin/build -t a:1 .",
            "builder build -t a:1 .",
            "builder b -t a:1 .",
        ] {
            let cli = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(matches!(cli.command, Command::Build(_)), "{line}");
        }
    }

    #[test]
    fn what_follows_the_image_belongs_to_the_command() {
        let Ok(Cli {
            command: Command::Run(args),
            ..
        }) = parse("builder run -e A=1 img ls -l --root /")
        else {
            panic!("not parsed as run");
        };
        assert_eq!(args.command, ["ls", "-l", "--root", "/"]);
        assert_eq!(args.env, ["A=1"]);
    }

    #[test]
    fn a_misspelt_flag_is_refused_with_a_suggestion() {
        let error = parse("builder build --built-arg A=1 .")
            .expect_err("unknown")
            .to_string();
        assert!(
            error.contains("--built-arg") && error.contains("--build-arg"),
            "{error}"
        );
    }
}
