//! RUN: the command, its mounts, and what the build says about every RUN.

use llb::op::{CdiDevice, ExecMeta, NetMode, ProxyEnv, SecurityMode};
use llb::state::{Constraints, ExecSpec, MountSource, MountSpec};

use crate::dockerfile::is_labs;
use crate::error::Error;
use crate::lower::copy::inline;
use crate::lower::env::Env;
use crate::lower::names;
use crate::lower::stage::{Scope, Stage};
use crate::parse::ast::{Instruction, Mount, MountKind, Run, RunNetwork};
use crate::parse::{chomp, chomp_bytes, heredoc_name};
use crate::words::Lex;

/// Where scripts with a `#!` line are put.
const SCRIPTS: &str = "/dev/pipes/";

impl Stage {
    pub(super) fn run(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        run: &Run,
        sources: &[usize],
    ) -> Result<(), Error> {
        if !run.devices.is_empty() && !is_labs(scope.given.options, scope.given.map) {
            let text = "device feature is only supported in Dockerfile frontend 1.14.0-labs or later";
            let hint = "begin the Dockerfile with # syntax=docker/dockerfile:1-labs".to_owned();
            return Err(Error::invalid(text).hinting(Some(hint)));
        }
        // A command may read any file there is.
        scope.paths[self.paths_of].insert("/".to_owned());
        let mounts = self.mounts(scope, instruction, run)?;
        let mut spec = ExecSpec {
            mounts: vec![MountSpec::new("/", MountSource::State(self.state.clone()))],
            ..ExecSpec::default()
        };
        let (args, shown) = self.command(instruction, run, &mut spec)?;
        self.add_mounts(scope, &instruction.ranges, &mounts, sources, &mut spec)?;
        self.settings(scope, run, &args, &mut spec);

        let meta = &spec.meta;
        let texts = || meta.args.iter().chain(&meta.env).chain([&meta.cwd, &meta.user]);
        let places = spec.mounts.iter().map(|mount| &mount.dest);
        let places = places.chain(spec.secrets.iter().map(|(dest, _)| dest));
        let mut places = places.chain(spec.ssh.iter().map(|(dest, _)| dest));
        if texts().any(|text| text.contains('\0')) || places.any(|place| place.contains('\0')) {
            return Err(Error::invalid(
                "a command, variable, folder, user or mount with a NUL character cannot be run",
            ));
        }
        scope.budget.take(texts().map(String::len).sum())?;

        let text = names::upper_keyword(&self.shown(scope, &shown, &mounts));
        // The platform of the file system, which a stage that began with nothing does not have.
        let platform = self.state_platform.clone();
        let name = self.next_name(scope, platform.as_ref(), &text);
        let exec_platform = platform.unwrap_or_else(|| scope.given.target_platform().clone());
        let constraints = Constraints::on(exec_platform)
            .described(llb::DOCKERFILE_COMMAND, instruction.code.clone())
            .named(name)
            .located(scope.location(instruction))
            .ignoring_cache(scope.node.ignore_cache)
            .limited(scope.given.options.resources.clone());
        self.state = spec.run(constraints).root();
        let history = self.history(&args);
        self.commit(scope, format!("RUN {history} # buildkit"), true)
    }

    /// The arguments, and the text that is shown. A script from a heredoc may become a mount.
    fn command(
        &self,
        instruction: &Instruction,
        run: &Run,
        spec: &mut ExecSpec,
    ) -> Result<(Vec<String>, String), Error> {
        let command = &run.command;
        let mut shown = instruction.code.clone();
        let Some(first) = command.heredocs.first() else {
            let args = if command.is_shell {
                self.with_shell(&command.args)
            } else {
                command.args.clone()
            };
            return Ok((args, shown));
        };
        let [line] = command.args.as_slice() else {
            return Err(Error::invalid("RUN with a heredoc must be in shell form"));
        };
        if heredoc_name(line).is_none() {
            // The shell reads the heredocs itself.
            let mut script = line.clone();
            for doc in &command.heredocs {
                script.push('\n');
                script.push_str(&doc.data);
                script.push_str(&doc.name);
            }
            return Ok((self.with_shell(&[script]), shown));
        }
        let data = if first.is_chomped {
            chomp(&first.data)
        } else {
            first.data.clone()
        };
        shown.push_str(&format!(" ({})", summary(&first.data)));
        if data.starts_with("#!") && self.image.os != "windows" {
            let raw = first.raw.as_ref().map(|raw| match first.is_chomped {
                true => chomp_bytes(raw),
                false => raw.clone(),
            });
            let script = raw.as_deref().unwrap_or(data.as_bytes());
            spec.mounts.push(MountSpec {
                selector: "/".to_owned(),
                readonly: true,
                ..MountSpec::new(SCRIPTS, MountSource::State(inline(&first.name, script, 0o755)))
            });
            return Ok((self.with_shell(&[format!("{SCRIPTS}{}", first.name)]), shown));
        }
        Ok((self.with_shell(&[data]), shown))
    }

    /// What the build and the flags say beside the command.
    fn settings(&self, scope: &Scope<'_>, run: &Run, args: &[String], spec: &mut ExecSpec) {
        let options = scope.given.options;
        spec.meta = ExecMeta {
            args: args.to_vec(),
            env: self.env.to_lines(),
            cwd: if self.dir.is_empty() {
                "/".to_owned()
            } else {
                self.dir.clone()
            },
            user: self.user.clone(),
            proxy_env: proxies(scope),
            extra_hosts: options.extra_hosts.clone(),
            hostname: options.hostname.clone(),
            ulimits: options.ulimits.clone(),
            cgroup_parent: options.cgroup_parent.clone(),
            remove_mount_stubs_recursive: true,
            valid_exit_codes: Vec::new(),
        };
        spec.network = match run.network {
            RunNetwork::Default => options.network,
            RunNetwork::None => NetMode::None,
            RunNetwork::Host => NetMode::Host,
        };
        spec.security = if run.is_insecure {
            SecurityMode::Insecure
        } else {
            SecurityMode::Sandbox
        };
        spec.cdi_devices = run
            .devices
            .iter()
            .map(|device| CdiDevice {
                name: device.name.clone(),
                optional: !device.is_required,
            })
            .collect();
        if options.shm_size > 0 {
            spec.mounts.push(MountSpec::new(
                "/dev/shm",
                MountSource::Tmpfs {
                    size: options.shm_size,
                },
            ));
        }
    }

    /// The text of the command with variables that are set; values of secrets are masked.
    fn shown(&self, scope: &Scope<'_>, text: &str, mounts: &[Mount]) -> String {
        let mut masked = Env::default();
        for mount in mounts.iter().filter(|mount| mount.kind == MountKind::Secret) {
            if let Some(name) = &mount.env {
                masked.set(name, "****");
            }
        }
        let lex = Lex {
            raw_quotes: true,
            keep_unset: true,
            ..scope.lex()
        };
        let lookup = |name: &str| masked.get(name).or_else(|| self.env.get(name)).map(str::to_owned);
        lex.expand(text, &lookup)
            .map_or_else(|_| text.to_owned(), |found| found.text)
    }

    /// The line of the history: arguments of the build that were declared, then the command.
    fn history(&self, args: &[String]) -> String {
        let mut declared = Env::default();
        let mut order: Vec<&str> = Vec::new();
        for arg in &self.build_args {
            let value = self
                .env
                .get(&arg.name)
                .or(arg.value.as_deref())
                .unwrap_or_default();
            declared.set(&arg.name, value);
            if !order.contains(&arg.name.as_str()) {
                order.push(&arg.name);
            }
        }
        let mut words: Vec<String> = Vec::new();
        if !order.is_empty() {
            words.push(format!("|{}", order.len()));
            words.extend(
                order
                    .iter()
                    .map(|name| format!("{name}={}", declared.get(name).unwrap_or_default())),
            );
        }
        words.extend(args.iter().cloned());
        words.join(" ")
    }
}

/// The first line of a script, and whether there is more.
fn summary(text: &str) -> String {
    let text = text.trim().replace("\r\n", "\n");
    match text.split_once('\n') {
        Some((first, _)) => format!("{first}..."),
        None => text,
    }
}

/// Proxies given as build arguments, whatever their case. They are no part of any key.
fn proxies(scope: &Scope<'_>) -> Option<ProxyEnv> {
    let mut proxies = ProxyEnv::default();
    let mut is_any = false;
    for (name, value) in &scope.args.build_args {
        let field = match name.to_lowercase().as_str() {
            "http_proxy" => &mut proxies.http_proxy,
            "https_proxy" => &mut proxies.https_proxy,
            "ftp_proxy" => &mut proxies.ftp_proxy,
            "no_proxy" => &mut proxies.no_proxy,
            "all_proxy" => &mut proxies.all_proxy,
            _ => continue,
        };
        field.clone_from(value);
        is_any = true;
    }
    is_any.then_some(proxies)
}
