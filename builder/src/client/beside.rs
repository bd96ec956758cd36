//! A build whose frontend is an image: on a daemon of its own, in this process, for as long as it takes.
//!
//! ```text
//! build in this process ─ `# syntax=` names an image ─▶ serve at a socket of its own ─▶ build_on ─▶ both end
//! ```
//!
//! An image that is a frontend asks its questions over a wire, so it is given one. The daemon has the same store, grants what
//! the command line grants, is nobody else's, and takes nothing out of the store.
use super::in_process::{Setting, open, runtime};
use super::{Address, Remote, build_on};
use crate::build::{BuildError, Outcome};
use crate::config::{Config, Frontends, Gc, Tracing};
use crate::daemon::{self, Notify, Owner, Service, Stop};
use crate::history::Limits;
use crate::request::{BuildRequest, Entitlements};
use frontend::ErrorKind;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;

/// Whether a build of this process ended because its frontend is an image.
#[must_use]
pub fn wants_image(error: &BuildError) -> bool {
    matches!(error, BuildError::Frontend(error) if matches!(&*error.kind, ErrorKind::FrontendImage { .. }))
}

/// Runs a build on a daemon of its own.
///
/// # Errors
/// [`BuildError`].
pub fn build_beside(
    config: &Config,
    request: BuildRequest,
    mut setting: Setting,
) -> Result<Outcome, BuildError> {
    let machine = |doing: &str, error: &dyn std::fmt::Display| BuildError::Machine {
        doing: doing.to_owned(),
        reason: error.to_string(),
    };
    let folder = tempfile::tempdir().map_err(|error| machine("make a folder for a socket", &error))?;
    let socket = folder.path().join("builder.sock");
    let runtime = runtime()?;
    let engine = runtime.block_on(async { open(config, setting.oci_runtime.take()) })?;
    let (stop, service) = (Stop::default(), service(&socket));
    let (ready, told) = oneshot::channel();
    let stopping = stop.clone();
    let serving =
        std::thread::spawn(move || runtime.block_on(daemon::serve(engine, service, ready, stopping)));
    let built = match told.blocking_recv() {
        Ok(()) => {
            let remote = Remote {
                address: Address::Unix(socket),
                tls: None,
            };
            Some(build_on(&remote, config, request, setting))
        }
        // It says why when it is waited for.
        Err(_) => None,
    };
    stop.gently.cancel();
    stop.now.cancel();
    let served = serving
        .join()
        .map_err(|_| machine("serve a frontend", &"the daemon of this build ended unexpectedly"))?;
    match (built, served) {
        (Some(built), _) => built,
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => Err(machine(
            "serve a frontend",
            &"the daemon of this build did not begin",
        )),
    }
}

fn service(socket: &Path) -> Service {
    Service {
        addresses: vec![daemon::Address::Unix(socket.to_owned())],
        tls: None,
        allows_open_tcp: false,
        owner: Owner::default(),
        // What the build asks for is what its user allowed.
        allowed: Entitlements {
            network_host: true,
            security_insecure: true,
        },
        has_devices: true,
        // A build says for itself whether it is.
        is_proxied: false,
        history: Limits::default(),
        gc: Gc {
            is_on: Some(false),
            ..Gc::default()
        },
        frontends: Frontends::default(),
        labels: BTreeMap::new(),
        platforms: Vec::new(),
        drain: Duration::ZERO,
        debug: None,
        environment: serde_json::Map::new(),
        tracing: Tracing::default(),
        notify: Notify::default(),
    }
}
