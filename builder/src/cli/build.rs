//! `build`: flags to a request, the request to the client, the answer to the screen.
//!
//! ```text
//! BuildFlags ─▶ request() ─▶ BuildRequest ─▶ client (in this process, or on a daemon) ─▶ Outcome ─▶ summary, exit code
//! ```
use super::args::Global;
use super::build_flags::BuildFlags;
use super::call::Call;
use super::exit::ExitStatus;
use super::outputs::OutputFlags;
use super::values::{self, UsageError};
use super::{caches, contexts, outputs};
use crate::client::{self, Setting};
use crate::config::{Config, DockerCredentials};
use crate::progress::{Kind, Look};
use crate::request::{BuildRequest, NoCache};
use anyhow::Result;
use oci::{Platform, Reference};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};

/// Runs a build from its flags.
pub(super) fn run(global: &Global, flags: BuildFlags) -> Result<ExitStatus> {
    flags.later.refuse().map_err(UsageError::from)?;
    for notice in flags.legacy.check().map_err(UsageError::from)? {
        write_stderr(&format!("warning: {notice}\n"));
    }
    let config = Config::load(global.root.clone())?;
    let kind = progress_kind(&flags, &config)?;
    let remote = flags.remote.find(&config.environment)?;
    if remote.is_some() {
        only_here(&flags)?;
    } else {
        caches::check(&flags.cache_from, &flags.cache_to)?;
    }
    let call = match (flags.check, flags.call.as_deref().or(flags.print.as_deref())) {
        (Some(true), _) => Call::parse("check")?,
        (_, Some(text)) => Call::parse(text)?,
        _ => None,
    };
    let asked = || -> Result<(BuildRequest, Stdin), UsageError> {
        let (mut request, stdin) = request(&flags, &config)?;
        if let Some(call) = &call {
            request.question = Some(format!("frontend.{}", call.name));
            request.outputs.clear();
        }
        Ok((request, stdin))
    };
    let (request, stdin) = asked()?;
    let setting = |stdin| Setting {
        look: Look::of(&config.environment),
        kind,
        stdin,
        oci_runtime: flags
            .oci_runtime
            .clone()
            .or_else(|| config.file.worker.oci_runtime.clone()),
    };
    let is_quiet = flags.quiet == Some(true) || flags.progress.as_deref() == Some("quiet");
    let outcome = match &remote {
        Some(remote) => client::build_on(remote, &config, request, setting(stdin))?,
        None => match client::build(&config, request, setting(stdin)) {
            // Stdin can be read but once.
            Err(error) if client::wants_image(&error) && !reads_stdin(&flags) => {
                only_here(&flags)?;
                let (request, stdin) = asked()?;
                client::build_beside(&config, request, setting(stdin))?
            }
            built => built?,
        },
    };
    if let Some(call) = call {
        return call.print(&outcome.response);
    }
    if is_quiet {
        if let Some(id) = outcome.image_id() {
            writeln!(std::io::stdout(), "{id}")?;
        }
    } else if kind != Kind::RawJson {
        write_stderr(&outcome.closing());
    }
    Ok(ExitStatus::DONE)
}

/// Refuses what a daemon cannot be asked for.
fn only_here(flags: &BuildFlags) -> Result<(), UsageError> {
    let refused = [
        (
            "--explain",
            flags.explain == Some(true),
            "builds on a daemon are not explained",
        ),
        (
            "--oci-runtime",
            flags.oci_runtime.is_some(),
            "the daemon decides by what steps are run",
        ),
    ];
    match refused.iter().find(|(_, is_used, _)| *is_used) {
        Some((flag, _, why)) => Err(UsageError::new(format!("{flag}: {why}"))),
        None => Ok(()),
    }
}

/// Whether the context or the Dockerfile comes from stdin.
fn reads_stdin(flags: &BuildFlags) -> bool {
    flags.context == "-" || flags.file.as_deref() == Some("-")
}

fn progress_kind(flags: &BuildFlags, config: &Config) -> Result<Kind, UsageError> {
    if flags.quiet == Some(true) {
        return Ok(Kind::Quiet);
    }
    let name = flags
        .progress
        .as_deref()
        .or_else(|| config.environment.text("BUILDKIT_PROGRESS"));
    Ok(Kind::parse(name.unwrap_or("auto"))?)
}

type Stdin = Option<Box<dyn Read + Send>>;

/// All that the flags, the environment and stdin ask for.
fn request(flags: &BuildFlags, config: &Config) -> Result<(BuildRequest, Stdin), UsageError> {
    let environment = &config.environment;
    let found = contexts::find(&flags.context, flags.file.as_deref(), std::io::stdin())?;
    let tags = flags
        .tag
        .iter()
        .map(|tag| reference("--tag", tag))
        .collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = tags.iter().map(ToString::to_string).collect();
    let annotations: Vec<(String, String)> = flags
        .annotation
        .iter()
        .map(|value| values::annotation(value))
        .collect::<Result<Vec<_>, _>>()?
        .concat();
    let outputs = outputs::outputs(&OutputFlags {
        outputs: &flags.output,
        push: flags.push == Some(true),
        load: flags.load == Some(true),
        names: &names,
        annotations: &annotations,
        stdout_is_terminal: std::io::stdout().is_terminal(),
    })?;
    let network = values::network(&flags.network)?;
    let request = BuildRequest {
        context: found.context,
        dockerfile: found.dockerfile,
        named_contexts: flags
            .build_context
            .iter()
            .map(|value| contexts::named(value))
            .collect::<Result<_, _>>()?,
        tags,
        target: flags.target.clone().filter(|target| !target.is_empty()),
        build_args: build_args(flags, config)?,
        labels: values::labels(&flags.label)?,
        platforms: platforms(&flags.platform, environment.text("DOCKER_DEFAULT_PLATFORM"))?,
        no_cache: no_cache(flags),
        cache_from: caches::entries(caches::FROM, &flags.cache_from)?,
        cache_to: caches::entries(caches::TO, &flags.cache_to)?,
        pull: flags.pull == Some(true),
        add_hosts: flags
            .add_host
            .iter()
            .map(|value| values::add_host(value))
            .collect::<Result<_, _>>()?,
        network,
        shm_size: shm_size(flags.shm_size.as_deref())?,
        ulimits: flags
            .ulimit
            .iter()
            .map(|value| values::ulimit(value))
            .collect::<Result<_, _>>()?,
        cgroup_parent: flags.cgroup_parent.clone(),
        resources: resources(flags)?,
        secrets: flags
            .secret
            .iter()
            .map(|value| values::secret(value, environment))
            .collect::<Result<_, _>>()?,
        ssh: flags
            .ssh
            .iter()
            .map(|value| values::ssh(value, environment))
            .collect::<Result<_, _>>()?,
        entitlements: values::entitlements(&flags.allow)?,
        devices: values::devices(&flags.allow)?,
        outputs,
        attests: super::attest::attests(flags)?,
        docker_socket: environment.docker_socket(),
        image_id_file: flags.iidfile.clone(),
        metadata_file: flags.metadata_file.clone(),
        explain: flags.explain == Some(true),
        question: None,
        is_proxied: flags.proxy_network == Some(true),
        source_policy: super::source_policy::of(environment)?,
    };
    Ok((request, found.stdin))
}

pub(super) fn reference(flag: &str, text: &str) -> Result<Reference, UsageError> {
    let reference = Reference::parse_normalized(text)
        .map_err(|error| UsageError::new(format!("{flag} {text}: {error}")))?;
    if reference.digest().is_some() && flag == "--tag" {
        return Err(UsageError::new(format!(
            "{flag} {text}: an image that is to be built has no digest yet"
        )));
    }
    Ok(reference.with_default_tag())
}

/// Given ones first, then `SOURCE_DATE_EPOCH` of the environment, then proxies from Docker's configuration.
fn build_args(flags: &BuildFlags, config: &Config) -> Result<BTreeMap<String, String>, UsageError> {
    let mut args = DockerCredentials::of(&config.environment).proxies();
    if let Some(epoch) = config
        .environment
        .text("SOURCE_DATE_EPOCH")
        .filter(|epoch| !epoch.is_empty())
    {
        args.insert("SOURCE_DATE_EPOCH".into(), epoch.to_owned());
    }
    args.extend(values::build_args(&flags.build_arg, &config.environment)?);
    Ok(args)
}

pub(super) fn platforms(values: &[String], default: Option<&str>) -> Result<Vec<Platform>, UsageError> {
    let given = values.iter().flat_map(|value| value.split(','));
    let default = default
        .filter(|text| values.is_empty() && !text.is_empty())
        .into_iter();
    let mut platforms = Vec::new();
    for text in given.chain(default.flat_map(|value| value.split(','))) {
        let platform = match text.trim() {
            "local" => Platform::host(),
            text => Platform::parse(text)
                .map_err(|error| UsageError::new(format!("--platform {text}: {error}")))?,
        };
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

fn no_cache(flags: &BuildFlags) -> NoCache {
    let stages: Vec<String> = flags
        .no_cache_filter
        .iter()
        .flat_map(|value| value.split(','))
        .map(|stage| stage.trim().to_owned())
        .filter(|stage| !stage.is_empty())
        .collect();
    match (flags.no_cache, stages.is_empty()) {
        (Some(true), _) => NoCache::All,
        (_, true) => NoCache::Never,
        (_, false) => NoCache::Stages(stages),
    }
}

fn shm_size(text: Option<&str>) -> Result<Option<u64>, UsageError> {
    text.map(|text| {
        crate::units::parse_bytes(text)
            .map_err(|error| UsageError::new(format!("--shm-size {text}: {error}")))
    })
    .transpose()
}

fn resources(flags: &BuildFlags) -> Result<BTreeMap<String, String>, UsageError> {
    let mut resources = BTreeMap::new();
    for (name, value) in flags.legacy.resources() {
        resources.extend([values::resource("--", name, value)?]);
    }
    for pair in flags.resource.iter().flat_map(|value| value.split(',')) {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| UsageError::new(format!("--resource {pair}: not of the form name=value")))?;
        resources.extend([values::resource("--resource", name, value)?]);
    }
    Ok(resources)
}

pub(super) fn write_stderr(text: &str) {
    // What cannot be said to a closed stderr is not worth failing for.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
