//! The flags of `build`, named and behaving like those of `docker buildx build`.
//!
//! Boolean flags take an optional value (`--push`, `--push=false`). Flags whose feature is not here yet are
//! declared too, so that using one is refused by its name instead of "unknown flag".
use clap::Args;
use std::path::PathBuf;

const LIMITS: &str = "Limits and network of RUN";
const OUTPUT: &str = "Output";
const CACHE: &str = "Cache";
const PROGRESS: &str = "Progress";

/// The flags of `build`.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = super::exit::HELP)]
pub struct BuildFlags {
    /// The context: a folder, a git or http(s) address, or - for a Dockerfile or tar archive on stdin
    #[arg(value_name = "PATH | URL | -")]
    pub context: String,

    /// Name of the Dockerfile; - is stdin [default: PATH/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,
    /// Name the image: [registry/]repository[:tag]
    #[arg(short, long, value_name = "NAME")]
    pub tag: Vec<String>,
    /// Build this stage
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Set a build argument; without a value, take it from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub build_arg: Vec<String>,
    /// A further context: a folder, docker-image://, oci-layout://, a git or http(s) address
    #[arg(long, value_name = "NAME=SOURCE")]
    pub build_context: Vec<String>,
    /// Build for these platforms
    #[arg(long, value_name = "OS/ARCH[,…]")]
    pub platform: Vec<String>,
    /// Set a label of the image
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Set an annotation: [manifest|index|manifest-descriptor|index-descriptor][[platform]]:key=value
    #[arg(long, value_name = "[TYPE:]KEY=VALUE")]
    pub annotation: Vec<String>,
    /// Offer a secret to RUN: id=ID[,src=FILE][,env=NAME]
    #[arg(long, value_name = "id=ID[,src=FILE|env=NAME]")]
    pub secret: Vec<String>,
    /// Offer an ssh agent or private keys to RUN: default or ID[=SOCKET|KEYFILE[,KEYFILE]…]
    #[arg(long, value_name = "default|ID[=SOCKET|KEY,…]")]
    pub ssh: Vec<String>,
    /// Ask registries for newer images even if the store has some
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL", hide_possible_values = true)]
    pub pull: Option<bool>,

    /// Use nothing from the cache
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL", help_heading = CACHE)]
    pub no_cache: Option<bool>,
    /// Use nothing from the cache in these stages
    #[arg(long, value_name = "STAGE[,…]", help_heading = CACHE)]
    pub no_cache_filter: Vec<String>,
    /// Use a cache of another machine: an image, or type=registry|local,… (see README)
    #[arg(long, value_name = "CACHE", help_heading = CACHE)]
    pub cache_from: Vec<String>,
    /// Give what is built to other machines: type=inline|registry|local,… (see README)
    #[arg(long, value_name = "CACHE", help_heading = CACHE)]
    pub cache_to: Vec<String>,
    /// Say for each step that ran why the cache did not serve
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL", help_heading = CACHE)]
    pub explain: Option<bool>,

    /// Where the result goes: a folder, - (a tar on stdout), or type=image|registry|oci|docker|local|tar|cacheonly,…
    #[arg(short, long, value_name = "OUTPUT", help_heading = OUTPUT)]
    pub output: Vec<String>,
    /// Push the image: --output=type=registry
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL", help_heading = OUTPUT)]
    pub push: Option<bool>,
    /// Load the image into the Docker daemon: --output=type=docker
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL", help_heading = OUTPUT)]
    pub load: Option<bool>,
    /// State something about the result: type=provenance or sbom[,disabled=true][,KEY=VALUE…]
    #[arg(long, value_name = "type=TYPE[,…]", help_heading = OUTPUT)]
    pub attest: Vec<String>,
    /// State how the result was made: --attest=type=provenance
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "mode=min|max[,…]|BOOL", help_heading = OUTPUT)]
    pub provenance: Option<String>,
    /// State what is in the result, as a scanner found: --attest=type=sbom
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "generator=IMAGE[,…]|BOOL", help_heading = OUTPUT)]
    pub sbom: Option<String>,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub iidfile: Option<PathBuf>,
    /// Write what is known about the result to a file, as JSON
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub metadata_file: Option<PathBuf>,

    /// A name for an address: name:ip, name=ip, name=host-gateway
    #[arg(long, value_delimiter = ',', value_name = "NAME:IP", help_heading = LIMITS)]
    pub add_host: Vec<String>,
    /// The network of RUN: default (its own), host or none
    #[arg(long, value_name = "MODE", default_value = "default", help_heading = LIMITS)]
    pub network: String,
    /// Let steps reach the outside by a proxy only, which notes their requests and asks the source policy about them
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = LIMITS)]
    pub proxy_network: Option<bool>,
    /// Allow network.host, security.insecure or device[=NAME[,alias=NAME]]
    #[arg(long, value_name = "ENTITLEMENT", help_heading = LIMITS)]
    pub allow: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    pub shm_size: Option<String>,
    /// A limit of processes: name=soft[:hard]
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = LIMITS)]
    pub ulimit: Vec<String>,
    /// A limit of a step: memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, cpuset-mems
    #[arg(long, value_name = "NAME=VALUE", help_heading = LIMITS)]
    pub resource: Vec<String>,
    /// The cgroup below which steps run
    #[arg(long, value_name = "PATH", help_heading = LIMITS)]
    pub cgroup_parent: Option<String>,
    /// Run steps by this OCI runtime (runc, crun) instead of the built-in executor
    #[arg(long, value_name = "PATH", help_heading = LIMITS)]
    pub oci_runtime: Option<PathBuf>,

    /// Ask about the Dockerfile instead of building: check, outline or targets[,format=json][,ignorestatus=true]
    #[arg(long, value_name = "METHOD", help_heading = PROGRESS)]
    pub call: Option<String>,
    /// Look for mistakes instead of building: --call=check
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL", help_heading = PROGRESS)]
    pub check: Option<bool>,
    /// The old name of --call
    #[arg(long, hide = true)]
    pub print: Option<String>,
    /// How to show progress: auto, tty, plain, rawjson, quiet or none [default: $BUILDKIT_PROGRESS or auto]
    #[arg(long, value_name = "KIND", help_heading = PROGRESS)]
    pub progress: Option<String>,
    /// Print only the image's id, on stdout
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL", help_heading = PROGRESS)]
    pub quiet: Option<bool>,

    #[command(flatten)]
    pub(super) remote: super::remote::RemoteFlags,
    #[command(flatten)]
    pub(super) legacy: LegacyFlags,
    #[command(flatten)]
    pub(super) later: LaterFlags,
}

/// Flags of the old `docker build`; hidden, as in buildx.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct LegacyFlags {
    #[arg(short = 'm', long, hide = true)]
    pub(super) memory: Option<String>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub(super) memory_swap: Option<String>,
    #[arg(short = 'c', long, hide = true)]
    pub(super) cpu_shares: Option<String>,
    #[arg(long, hide = true)]
    pub(super) cpu_period: Option<String>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub(super) cpu_quota: Option<String>,
    #[arg(long, hide = true)]
    pub(super) cpuset_cpus: Option<String>,
    #[arg(long, hide = true)]
    pub(super) cpuset_mems: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(super) rm: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(super) force_rm: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(super) compress: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(super) squash: Option<bool>,
    #[arg(long, hide = true)]
    pub(super) isolation: Option<String>,
    #[arg(long, hide = true)]
    pub(super) security_opt: Vec<String>,
}

/// Flags of buildx whose feature is not here yet.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct LaterFlags {
    #[arg(long, hide = true)]
    pub(super) policy: Vec<String>,
    #[arg(long, hide = true)]
    pub(super) builder: Option<String>,
}

/// A boolean as Go's flag packages read it.
pub(super) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

impl LaterFlags {
    /// Refuses by name what cannot be done yet.
    pub(super) fn refuse(&self) -> Result<(), String> {
        let refused = [
            (
                "--policy",
                !self.policy.is_empty(),
                "Rego policies are not read; rules of EXPERIMENTAL_BUILDKIT_SOURCE_POLICY are",
            ),
            (
                "--builder",
                self.builder.is_some(),
                "there are no builder instances; this program builds by itself",
            ),
        ];
        match refused.iter().find(|(_, used, _)| *used) {
            Some((flag, _, why)) => Err(format!("{flag}: {why}")),
            None => Ok(()),
        }
    }
}

impl LegacyFlags {
    /// Refuses what cannot be done; answers what is accepted without an effect, in sentences.
    pub(super) fn check(&self) -> Result<Vec<&'static str>, String> {
        if self.rm == Some(false) {
            return Err("--rm=false: a step leaves no container that could be kept".into());
        }
        if self.squash == Some(true) {
            return Err("--squash: not supported; use a last stage FROM scratch with COPY --from".into());
        }
        if !self.security_opt.is_empty() {
            return Err(
                "--security-opt: not supported; use RUN --security=insecure and --allow security.insecure"
                    .into(),
            );
        }
        if let Some(isolation) = self
            .isolation
            .as_deref()
            .filter(|isolation| !matches!(*isolation, "" | "default"))
        {
            return Err(format!("--isolation={isolation}: only default is known on Linux"));
        }
        Ok(match self.compress {
            Some(true) => vec!["--compress has no effect: the context is read in place, nothing is sent"],
            _ => Vec::new(),
        })
    }

    /// The old flags as `--resource` has them.
    pub(super) fn resources(&self) -> impl Iterator<Item = (&'static str, &String)> {
        [
            ("memory", &self.memory),
            ("memory-swap", &self.memory_swap),
            ("cpu-shares", &self.cpu_shares),
            ("cpu-period", &self.cpu_period),
            ("cpu-quota", &self.cpu_quota),
            ("cpuset-cpus", &self.cpuset_cpus),
            ("cpuset-mems", &self.cpuset_mems),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)))
    }
}
