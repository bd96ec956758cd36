//! The network of steps whose build asked for a proxy: HTTP and HTTPS only, every request seen, judged and noted.
//!
//! ```text
//!                namespace of the step                 this process
//! a program ─ HTTP_PROXY, our CA ─▶ 127.0.0.1:port ─▶ serve ─▶ forward ─▶ the outside
//!                                                       │ └ policy: 403     │
//!                                                       └────── capture ◀───┘ ─▶ log of the step, provenance
//! ```
//!
//! 1. `authority` signs a certificate for each host, by a key that this process makes and never writes anywhere.
//! 2. `serve` speaks to the step: plain requests, and CONNECT, behind which it plays the host.
//! 3. `forward` asks the outside; a step without the network of the host reaches no loopback of it.
//! 4. `capture` notes what was asked and what came, `trust` lets the image's programs believe the CA meanwhile.
//!
//! The step's namespace has loopback and nothing else, so what does not speak to the proxy speaks to nobody.
//! Differs: BuildKit's proxy listens at the other end of a pair of interfaces and calls out from a bridge; ours listens
//! inside the namespace and calls out from here, minding addresses, so it is the same without root.

mod authority;
mod capture;
mod forward;
mod serve;
mod trust;

pub use capture::{Capture, Captures, Incomplete, Material, masked};
pub(crate) use trust::Trusted;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use authority::Authority;
use forward::Egress;

/// What the proxy does not stand in the way of.
const NO_PROXY: &str = "127.0.0.1,localhost,::1";

/// Judges requests of steps as a build's sources are judged.
#[async_trait]
pub trait RequestPolicy: Send + Sync {
    /// The address to ask instead of this one, or `None` for the very one. User info is masked in it.
    ///
    /// # Errors
    /// It may not be asked, and why.
    async fn judge(&self, address: &str) -> Result<Option<String>, String>;
}

/// How the steps of a build reach the outside by a proxy, and what they asked for.
#[derive(Clone, Default)]
pub struct ProxyMode {
    /// Who decides about requests; `None`: all are allowed.
    pub policy: Option<Arc<dyn RequestPolicy>>,
    /// What was seen, by step.
    pub captures: Captures,
}

impl ProxyMode {
    /// The variant of jobs whose steps are kept to a proxy ([`solver::Job::of_variant`]).
    pub const VARIANT: &'static str = "proxy";

    /// With who decides about requests; nothing was seen yet.
    #[must_use]
    pub fn new(policy: Option<Arc<dyn RequestPolicy>>) -> ProxyMode {
        ProxyMode {
            policy,
            captures: Captures::default(),
        }
    }
}

impl std::fmt::Debug for ProxyMode {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ProxyMode")
            .field("policy", &self.policy.is_some())
            .finish_non_exhaustive()
    }
}

/// Starts proxies; what they share is made with the first.
#[derive(Default)]
pub(crate) struct Proxies {
    shared: Mutex<Option<Arc<Shared>>>,
}

/// What all proxies of a process share.
struct Shared {
    authority: Authority,
    outside: reqwest::Client,
    host: reqwest::Client,
}

/// The proxy of one step. Dropped, it closes everything at once.
pub(crate) struct Proxy {
    address: SocketAddr,
    certificate: String,
    capture: Arc<Capture>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Proxies {
    /// A proxy that listens at `listener`, which is inside the step's namespace.
    ///
    /// # Errors
    /// No certificates can be made, or the listener is none.
    pub(crate) fn start(
        &self,
        listener: TcpListener,
        is_host: bool,
        policy: Option<Arc<dyn RequestPolicy>>,
    ) -> io::Result<Proxy> {
        let shared = self.shared()?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let capture = Arc::new(Capture::default());
        let proxy = Proxy {
            address,
            certificate: shared.authority.certificate().to_owned(),
            capture: capture.clone(),
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        let served = Arc::new(serve::Served {
            client: if is_host {
                shared.host.clone()
            } else {
                shared.outside.clone()
            },
            egress: if is_host { Egress::Host } else { Egress::Outside },
            shared,
            policy,
            capture,
            stop: stop.clone(),
            tasks: tasks.clone(),
        });
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = serve::accept(listener, served) => {}
            }
        });
        Ok(proxy)
    }

    fn shared(&self) -> io::Result<Arc<Shared>> {
        let mut held = self.shared.lock();
        if let Some(shared) = held.as_ref() {
            return Ok(shared.clone());
        }
        let shared = Arc::new(Shared {
            authority: Authority::new().map_err(io::Error::other)?,
            outside: Egress::Outside.client().map_err(io::Error::other)?,
            host: Egress::Host.client().map_err(io::Error::other)?,
        });
        *held = Some(shared.clone());
        Ok(shared)
    }
}

impl Proxy {
    /// Puts the variables that lead to it into an environment, in the place of any other proxy's.
    pub(crate) fn announce(&self, env: &mut Vec<String>) {
        let here = format!("http://{}", self.address);
        let variables = [
            ("HTTP_PROXY", here.as_str()),
            ("HTTPS_PROXY", &here),
            ("http_proxy", &here),
            ("https_proxy", &here),
            ("NO_PROXY", NO_PROXY),
            ("no_proxy", NO_PROXY),
        ];
        let name = |variable: &String| variable.split_once('=').map(|(name, _)| name.to_owned());
        env.retain(|variable| {
            !variables
                .iter()
                .any(|(ours, _)| name(variable).as_deref() == Some(*ours))
        });
        env.extend(variables.map(|(name, value)| format!("{name}={value}")));
    }

    /// The certificate the step must believe, as PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Ends it, after its requests have been noted.
    pub(crate) async fn finish(self) -> Arc<Capture> {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.capture.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests;
