//! The flags of `serve`: those of BuildKit's daemon by the same names, and a few of our own.
//!
//! ```text
//! flags ─▶ over: laid over what buildkitd.toml says ─▶ DaemonFile
//!     └──▶ warnings (flags without effect), refusals (what this daemon cannot do)
//! ```
use super::values::UsageError;
use crate::config::{DaemonFile, Environment, NetworkMode, parse_keep_storage};
use clap::Args;
use std::path::PathBuf;

/// `serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where buildkitd.toml is [default: /etc/buildkit/buildkitd.toml, without root ~/.config/buildkit/buildkitd.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to listen: unix://PATH, tcp://HOST:PORT, fd:// (sockets of systemd)
    /// [default: unix:///run/builder/builderd.sock, without root unix://$XDG_RUNTIME_DIR/builder/builderd.sock]
    #[arg(long, value_name = "ADDRESS", verbatim_doc_comment)]
    pub addr: Vec<String>,
    /// Who may use the unix sockets beside the user that serves: a group, by name or number
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// The certificate of TCP ports (PEM)
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// Whoever signed the certificates of clients that may build (PEM)
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// Let everybody who reaches the TCP port run commands on this machine
    #[arg(long)]
    pub insecure_tcp: bool,
    /// What builds may be granted: network.host, security.insecure, device (which always is unless --cdi-disabled)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub allow_insecure_entitlement: Vec<String>,
    /// Let steps of all builds reach the outside by a proxy only, which notes and judges their requests
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub proxy_network: Option<bool>,
    /// Where metrics and introspection are: HOST:PORT or unix://PATH; whoever reaches it sees what is built
    #[arg(long, visible_alias = "metrics-addr", value_name = "ADDRESS")]
    pub debugaddr: Option<String>,
    /// How the log is written
    #[arg(long, value_name = "text|json", value_parser = ["text", "json"])]
    pub log_format: Option<String>,
    /// How much is logged: error, warn, info, debug, trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// After a first signal, how long builds may go on before they are called off, such as 30s or 1h
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub drain_timeout: String,
    /// Run steps by this OCI runtime (runc, crun) instead of the built-in executor
    #[arg(long, visible_alias = "oci-worker-binary", value_name = "PATH")]
    pub oci_runtime: Option<PathBuf>,
    /// How the worker is.
    #[command(flatten, next_help_heading = "Worker")]
    pub worker: WorkerFlags,
    /// What other daemons have.
    #[command(flatten)]
    pub unused: UnusedFlags,
}

/// Flags of the one worker.
#[derive(Debug, Args)]
pub struct WorkerFlags {
    /// No devices for steps
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub cdi_disabled: Option<bool>,
    /// Where devices are described
    #[arg(long, value_name = "DIR")]
    pub cdi_spec_dir: Vec<PathBuf>,
    /// A label of the worker
    #[arg(long, value_name = "KEY=VALUE")]
    pub oci_worker_labels: Vec<String>,
    /// What the worker says it builds for
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    pub oci_worker_platform: Vec<String>,
    /// Which network steps have: auto (their own) or host
    #[arg(long, value_name = "auto|bridge|host")]
    pub oci_worker_net: Option<String>,
    /// Steps at once
    #[arg(long, value_name = "COUNT")]
    pub oci_max_parallelism: Option<usize>,
    /// Whether the store is kept within limits
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub oci_worker_gc: Option<bool>,
    /// The limits: RESERVED[,FREE[,MAXIMUM]] in megabytes
    #[arg(long, value_name = "SIZES")]
    pub oci_worker_gc_keepstorage: Option<String>,
    /// There is only this worker
    #[arg(long, hide = true, value_name = "BOOL")]
    pub oci_worker: Option<String>,
}

/// Flags of BuildKit's daemon that ask for what is done otherwise here, or cannot be done.
#[derive(Debug, Args)]
pub struct UnusedFlags {
    /// The old name of --log-level=trace
    #[arg(long, hide = true)]
    pub trace: bool,
    /// Refused
    #[arg(long, hide = true, value_name = "NAME")]
    pub oci_worker_apparmor_profile: Option<String>,
    /// Refused
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub oci_worker_selinux: Option<bool>,
    /// Refused
    #[arg(long, hide = true, value_name = "PATH")]
    pub oci_worker_proxy_snapshotter_path: Option<String>,
    /// Refused where it is true
    #[arg(long, hide = true, value_name = "BOOL")]
    pub containerd_worker: Option<String>,
    /// Without effect
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rootless: Option<bool>,
    /// Without effect
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub oci_worker_rootless: Option<bool>,
    /// Without effect
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub oci_worker_no_process_sandbox: Option<bool>,
    /// Without effect
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub save_cache_debug: Option<bool>,
    /// Without effect
    #[arg(long, hide = true, value_name = "NAME")]
    pub oci_worker_snapshotter: Option<String>,
    /// Without effect
    #[arg(long, hide = true, value_name = "PATH")]
    pub otel_socket_path: Option<String>,
    /// Without effect
    #[arg(long, hide = true, value_name = "PATH")]
    pub oci_cni_config_path: Option<String>,
    /// Without effect
    #[arg(long, hide = true, value_name = "PATH")]
    pub oci_cni_binary_dir: Option<String>,
    /// Without effect
    #[arg(long, hide = true, value_name = "COUNT")]
    pub oci_cni_pool_size: Option<String>,
    /// Without effect
    #[arg(long, hide = true, value_name = "ADDRESS")]
    pub containerd_worker_addr: Option<String>,
    /// Without effect
    #[arg(long, hide = true, value_name = "KEY=VALUE")]
    pub containerd_worker_labels: Vec<String>,
    /// Without effect
    #[arg(long, hide = true, value_name = "NAME")]
    pub containerd_worker_namespace: Option<String>,
    /// Without effect
    #[arg(long, hide = true, value_name = "NAME")]
    pub containerd_worker_snapshotter: Option<String>,
    /// Without effect
    #[arg(long, hide = true, value_name = "NET")]
    pub containerd_worker_net: Option<String>,
    /// Without effect
    #[arg(long, hide = true, value_name = "SIZES")]
    pub containerd_worker_gc_keepstorage: Option<String>,
}

impl ServeArgs {
    /// Lays the flags over the file, as BuildKit's daemon does; answers what to warn about.
    ///
    /// # Errors
    /// A flag's value is none, or it asks for what this daemon cannot do.
    pub(super) fn over(
        &self,
        file: &mut DaemonFile,
        environment: &Environment,
    ) -> Result<Vec<String>, UsageError> {
        self.unused.refuse()?;
        if !self.addr.is_empty() {
            file.grpc.address.clone_from(&self.addr);
        }
        let text = |flag: &Option<String>, variable: &str| {
            let variable = environment.text(variable).filter(|text| !text.is_empty());
            flag.clone().or_else(|| variable.map(str::to_owned))
        };
        set(
            &mut file.grpc.debug_address,
            text(&self.debugaddr, "BUILDKITD_DEBUGADDR"),
        );
        set(&mut file.grpc.cert, self.tlscert.clone());
        set(&mut file.grpc.key, self.tlskey.clone());
        set(&mut file.grpc.ca, self.tlscacert.clone());
        set(&mut file.log.format, self.log_format.clone());
        let trace = self.unused.trace.then(|| "trace".to_owned());
        set(
            &mut file.log.level,
            text(&self.log_level.clone().or(trace), "BUILDKITD_LOG_LEVEL"),
        );
        if !self.allow_insecure_entitlement.is_empty() {
            file.entitlements = Some(self.allow_insecure_entitlement.clone());
        }
        set(&mut file.is_proxied, self.proxy_network);
        set(&mut file.worker.binary, self.oci_runtime.clone());
        self.worker.over(file)?;
        let mut warnings = self.unused.without_effect();
        if self.unused.trace {
            warnings.push("--trace is an old name of --log-level=trace".to_owned());
        }
        Ok(warnings)
    }
}

impl WorkerFlags {
    fn over(&self, file: &mut DaemonFile) -> Result<(), UsageError> {
        set(&mut file.cdi.disabled, self.cdi_disabled);
        if !self.cdi_spec_dir.is_empty() {
            file.cdi.spec_dirs = Some(self.cdi_spec_dir.clone());
        }
        let worker = &mut file.worker;
        for label in &self.oci_worker_labels {
            let pair = label.split_once('=');
            let (key, value) = pair
                .ok_or_else(|| UsageError::new(format!("--oci-worker-labels {label}: must be KEY=VALUE")))?;
            worker.labels.insert(key.to_owned(), value.to_owned());
        }
        if !self.oci_worker_platform.is_empty() {
            let parsed = self
                .oci_worker_platform
                .iter()
                .map(|text| oci::Platform::parse(text));
            let parsed: Result<_, _> = parsed.collect();
            worker.platforms =
                parsed.map_err(|error| UsageError::new(format!("--oci-worker-platform: {error}")))?;
        }
        if let Some(mode) = &self.oci_worker_net {
            worker.network = NetworkMode::parse(mode)
                .map_err(|reason| UsageError::new(format!("--oci-worker-net: {reason}")))?;
        }
        if let Some(steps) = self.oci_max_parallelism {
            worker.max_parallelism = Some(steps).filter(|steps| *steps > 0);
        }
        set(&mut worker.gc.is_on, self.oci_worker_gc);
        if let Some(text) = &self.oci_worker_gc_keepstorage {
            worker.gc.limits = parse_keep_storage(text)
                .map_err(|reason| UsageError::new(format!("--oci-worker-gc-keepstorage: {reason}")))?;
        }
        if is_false(self.oci_worker.as_deref()) {
            return Err(UsageError::new("--oci-worker=false: there is no other worker"));
        }
        Ok(())
    }
}

impl UnusedFlags {
    fn refuse(&self) -> Result<(), UsageError> {
        let is_said = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let is_containerd = self.containerd_worker.as_deref();
        let refused = [
            (
                is_said(&self.oci_worker_apparmor_profile),
                "--oci-worker-apparmor-profile: steps cannot be put under a profile of AppArmor here",
            ),
            (
                self.oci_worker_selinux == Some(true),
                "--oci-worker-selinux: steps are given no labels of SELinux here",
            ),
            (
                is_said(&self.oci_worker_proxy_snapshotter_path),
                "--oci-worker-proxy-snapshotter-path: there are no snapshotters beside the built-in one",
            ),
            (
                is_containerd.is_some_and(|text| text != "auto" && !is_false(Some(text))),
                "--containerd-worker: there is no containerd worker here",
            ),
        ];
        match refused.iter().find(|(is_asked, _)| *is_asked) {
            Some((_, why)) => Err(UsageError::new(*why)),
            None => Ok(()),
        }
    }

    /// Flags that were said and change nothing.
    fn without_effect(&self) -> Vec<String> {
        let snapshotter = self.oci_worker_snapshotter.as_deref();
        let said = [
            ("rootless", self.rootless == Some(true)),
            ("oci-worker-rootless", self.oci_worker_rootless == Some(true)),
            (
                "oci-worker-no-process-sandbox",
                self.oci_worker_no_process_sandbox == Some(true),
            ),
            ("save-cache-debug", self.save_cache_debug == Some(true)),
            (
                "oci-worker-snapshotter",
                snapshotter.is_some_and(|name| !matches!(name, "auto" | "overlayfs")),
            ),
            ("otel-socket-path", self.otel_socket_path.is_some()),
            ("oci-cni-config-path", self.oci_cni_config_path.is_some()),
            ("oci-cni-binary-dir", self.oci_cni_binary_dir.is_some()),
            ("oci-cni-pool-size", self.oci_cni_pool_size.is_some()),
            ("containerd-worker-addr", self.containerd_worker_addr.is_some()),
            (
                "containerd-worker-labels",
                !self.containerd_worker_labels.is_empty(),
            ),
            (
                "containerd-worker-namespace",
                self.containerd_worker_namespace.is_some(),
            ),
            (
                "containerd-worker-snapshotter",
                self.containerd_worker_snapshotter.is_some(),
            ),
            ("containerd-worker-net", self.containerd_worker_net.is_some()),
            (
                "containerd-worker-gc-keepstorage",
                self.containerd_worker_gc_keepstorage.is_some(),
            ),
        ];
        let said = said.iter().filter(|(_, is_said)| *is_said);
        said.map(|(name, _)| format!("--{name} has no effect here"))
            .collect()
    }
}

fn set<T>(place: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *place = value;
    }
}

fn is_false(text: Option<&str>) -> bool {
    text.is_some_and(|text| matches!(text, "false" | "0" | "f" | "F" | "FALSE" | "False"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn over(flags: &[&str], variables: &[(&str, &str)]) -> Result<(DaemonFile, Vec<String>), String> {
        let flags = ["serve"].iter().chain(flags);
        let program = Program::try_parse_from(flags).map_err(|error| error.to_string())?;
        let mut file = DaemonFile::default();
        let warnings = program.args.over(&mut file, &Environment::of(variables));
        warnings
            .map(|warnings| (file, warnings))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn flags_lie_over_the_file() {
        let flags = [
            "--addr=unix:///a",
            "--addr=tcp://b:1",
            "--debugaddr=127.0.0.1:1",
            "--log-format=json",
            "--cdi-disabled",
            "--oci-worker=true",
            "--oci-worker-labels=a=b",
            "--oci-worker-platform=linux/amd64,linux/arm64",
            "--oci-worker-net=host",
            "--oci-worker-gc=false",
            "--oci-worker-gc-keepstorage=100",
            "--oci-worker-binary=crun",
            "--oci-max-parallelism=3",
            "--oci-worker-snapshotter=overlayfs",
            "--containerd-worker=false",
        ];
        let (file, warnings) = over(&flags, &[("BUILDKITD_LOG_LEVEL", "warn")]).expect("valid");
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(file.grpc.address, ["unix:///a", "tcp://b:1"]);
        assert_eq!(file.log.level.as_deref(), Some("warn"));
        assert_eq!(file.cdi.disabled, Some(true));
        let worker = &file.worker;
        assert_eq!((worker.platforms.len(), worker.max_parallelism), (2, Some(3)));
        assert_eq!(
            (worker.network, worker.gc.is_on),
            (NetworkMode::Host, Some(false))
        );
        assert_eq!(worker.binary.as_deref(), Some(std::path::Path::new("crun")));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for flag in [
            "--oci-worker-apparmor-profile=x",
            "--oci-worker-selinux",
            "--oci-worker-proxy-snapshotter-path=/x",
            "--containerd-worker=true",
            "--oci-worker=false",
            "--oci-worker-net=cni",
            "--oci-worker-labels=x",
            "--oci-worker-platform=a/b/c/d/e",
            "--oci-worker-gc-keepstorage=x",
        ] {
            let error = over(&[flag], &[]).err().unwrap_or_default();
            let name = flag.split('=').next().unwrap_or_default();
            assert!(error.contains(name), "{flag}: {error}");
        }
    }

    #[test]
    fn what_has_no_effect_is_warned_about_by_name() {
        for flag in [
            "--rootless",
            "--oci-worker-snapshotter=native",
            "--oci-cni-pool-size=3",
            "--otel-socket-path=/x",
            "--containerd-worker-addr=/x",
            "--trace",
        ] {
            let (_, warnings) = over(&[flag], &[]).expect("taken");
            let name = flag.split('=').next().unwrap_or_default();
            assert!(
                warnings.len() == 1 && warnings[0].contains(name),
                "{flag}: {warnings:?}"
            );
        }
        assert_eq!(
            over(&["--oci-worker-selinux=false"], &[]).expect("taken").1,
            Vec::<String>::new()
        );
    }
}
