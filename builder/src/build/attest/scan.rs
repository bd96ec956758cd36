//! A scanner's image, run to say what is in a result.
//!
//! ```text
//! scanner image ─ its entrypoint ─▶ /run/out: a bundle of statements
//!      /run/src/core/sbom      the result                       $BUILDKIT_SCAN_SOURCE
//!      /run/src/extras/sbom-…  build context, stages            $BUILDKIT_SCAN_SOURCE_EXTRAS
//! ```

use super::asked::Sbom;
use llb::Definition;
use llb::op::{ExecMeta, NetMode, SecurityMode};
use llb::state::{Constraints, ExecSpec, ImageSource, MountSource, MountSpec, State, marshal};
use oci::Platform;
use serde_json::Value;

/// The name of what is in the result itself.
pub(crate) const CORE: &str = "sbom";
const SOURCES: &str = "/run/src";
const OUT: &str = "/run/out/";

/// A scanner that can be run.
#[derive(Debug)]
pub(crate) struct Scanner {
    reference: String,
    platform: Platform,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
}

/// Why nothing can be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Its image says nothing of what to run.
    #[error("scanner {0} does not have cmd")]
    NoCommand(String),
    /// Its image cannot be had.
    #[error("scanner {reference}: {source}")]
    Image {
        /// Which image.
        reference: String,
        /// Why not.
        source: frontend::GatewayError,
    },
    /// Its image's config cannot be read.
    #[error("scanner {reference}: its config is malformed: {reason}")]
    Config {
        /// Which image.
        reference: String,
        /// Why not.
        reason: String,
    },
    /// The result cannot be mounted.
    #[error(transparent)]
    Definition(#[from] llb::Error),
}

impl Scanner {
    /// Looks the scanner's image up.
    pub(crate) async fn find(
        gateway: &dyn frontend::Gateway,
        asked: &Sbom,
        mode: Option<&str>,
    ) -> Result<Scanner, ScanError> {
        let reference = asked.scanner.to_string();
        let platform = Platform::host();
        let wanted = frontend::ImageRequest {
            reference: reference.clone(),
            platform: platform.clone(),
            mode: match mode {
                Some("pull") => frontend::ResolveMode::Pull,
                Some("local") => frontend::ResolveMode::Local,
                _ => frontend::ResolveMode::Default,
            },
            place: frontend::ImagePlace::Registry,
            log_name: format!("resolve image config for docker-image://{reference}"),
        };
        let found = gateway.resolve_image(&wanted).await;
        let found = found.map_err(|source| ScanError::Image {
            reference: reference.clone(),
            source,
        })?;
        let config: Value = serde_json::from_slice(&found.config).map_err(|error| ScanError::Config {
            reference: reference.clone(),
            reason: error.to_string(),
        })?;
        Scanner::new(found.reference, platform, &config, asked)
    }

    fn new(
        reference: String,
        platform: Platform,
        config: &Value,
        asked: &Sbom,
    ) -> Result<Scanner, ScanError> {
        let texts = |field: &str| -> Vec<String> {
            let list = config["config"][field].as_array();
            let texts = list.into_iter().flatten().filter_map(Value::as_str);
            texts.map(str::to_owned).collect()
        };
        let mut args = texts("Entrypoint");
        args.extend(texts("Cmd"));
        if args.is_empty() {
            return Err(ScanError::NoCommand(reference));
        }
        let mut env = texts("Env");
        let mut set = |name: &str, value: &str| {
            let prefix = format!("{name}=");
            env.retain(|known| !known.starts_with(&prefix));
            env.push(format!("{name}={value}"));
        };
        set("BUILDKIT_SCAN_DESTINATION", OUT);
        set("BUILDKIT_SCAN_SOURCE", &format!("{SOURCES}/core/{CORE}"));
        for (name, value) in &asked.parameters {
            set(&format!("BUILDKIT_SCAN_{name}"), value);
        }
        let cwd = config["config"]["WorkingDir"]
            .as_str()
            .filter(|cwd| !cwd.is_empty());
        Ok(Scanner {
            reference,
            platform,
            args,
            env,
            cwd: cwd.unwrap_or("/").to_owned(),
        })
    }

    /// A scan of a result, and of what else is to be looked at; its result is a bundle.
    pub(crate) fn scan(
        &self,
        name: &str,
        core: &Definition,
        extras: &[(String, Definition)],
        ignores_cache: bool,
    ) -> Result<Definition, ScanError> {
        let image = ImageSource {
            reference: self.reference.clone(),
            ..ImageSource::default()
        };
        let on = || Constraints::on(self.platform.clone());
        let readonly = |dest: String, definition: &Definition| {
            let state = State::from_definition(definition.clone())?;
            let mount = MountSpec::new(dest, MountSource::State(state));
            Ok::<_, llb::Error>(MountSpec {
                readonly: true,
                ..mount
            })
        };
        let mut mounts = vec![
            MountSpec::new("/", MountSource::State(image.state(on()))),
            MountSpec::new("/tmp", MountSource::Tmpfs { size: 0 }),
            readonly(format!("{SOURCES}/core/{CORE}"), core)?,
        ];
        for (name, definition) in extras {
            mounts.push(readonly(format!("{SOURCES}/extras/{CORE}-{name}"), definition)?);
        }
        let out = mounts.len();
        mounts.push(MountSpec::new(OUT, MountSource::State(State::scratch())));
        let mut env = self.env.clone();
        if !extras.is_empty() {
            env.push(format!("BUILDKIT_SCAN_SOURCE_EXTRAS={SOURCES}/extras"));
        }
        let spec = ExecSpec {
            meta: ExecMeta {
                args: self.args.clone(),
                env,
                cwd: self.cwd.clone(),
                ..ExecMeta::default()
            },
            network: NetMode::Sandbox,
            security: SecurityMode::Sandbox,
            mounts,
            ..ExecSpec::default()
        };
        let title = format!("[{name}] generating sbom using {}", self.reference);
        let constraints = on().named(title).ignoring_cache(ignores_cache);
        Ok(marshal(&spec.run(constraints).mount(out))?)
    }
}
