//! The way out: which addresses a step may reach, and one request passed on.
//!
//! ```text
//! request ─▶ address literal or name ─▶ reachable? ─▶ sent, not followed, not unpacked ─▶ answer, hashed as it passes
//! ```
//!
//! Names are resolved here, so a name of a loopback address is refused as that address is: 127.0.0.1 in a step is the
//! step, and never this machine.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use oci::{Digest, DigestWriter};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::Capture;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(30);

/// Where a proxy may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Egress {
    /// Everywhere but to this machine's loopback.
    Outside,
    /// Everywhere this machine goes (`network=host`).
    Host,
}

/// An address a step may not reach.
#[derive(Debug, thiserror::Error)]
#[error("{0} is this machine's loopback, which steps without its network do not reach")]
struct Loopback(String);

impl Egress {
    /// A client that goes there, follows nothing and changes nothing.
    pub(super) fn client(self) -> Result<reqwest::Client, reqwest::Error> {
        // Whoever was first has set it; they are all the same.
        drop(rustls::crypto::ring::default_provider().install_default());
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .dns_resolver(Arc::new(Resolver(self)))
            .build()
    }

    fn allows(self, address: IpAddr) -> bool {
        self == Egress::Host || !is_loopback(address)
    }

    /// Refuses addresses that are written as numbers; names are looked at when they are resolved.
    pub(super) fn check(self, address: &Url) -> Result<(), String> {
        let ip = match address.host() {
            Some(Host::Ipv4(ip)) => IpAddr::V4(ip),
            Some(Host::Ipv6(ip)) => IpAddr::V6(ip),
            Some(Host::Domain(_)) => return Ok(()),
            None => return Err(format!("{address} has no host")),
        };
        match self.allows(ip) {
            true => Ok(()),
            false => Err(Loopback(ip.to_string()).to_string()),
        }
    }
}

/// Whether an address leads back to this machine: loopback, in whatever clothes, and the unspecified address.
fn is_loopback(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => {
            let embedded = ip.to_ipv4();
            ip.is_loopback() || ip.is_unspecified() || embedded.is_some_and(|ip| ip.is_loopback())
        }
    }
}

struct Resolver(Egress);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let egress = self.0;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let kept: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| egress.allows(address.ip()))
                .collect();
            if kept.is_empty() {
                return Err(Loopback(name.as_str().to_owned()).into());
            }
            Ok(Box::new(kept.into_iter()) as Addrs)
        })
    }
}

/// What is noted of an answer when it has passed.
pub(super) struct Noting {
    pub(super) capture: Arc<Capture>,
    pub(super) method: http::Method,
    pub(super) address: Url,
    pub(super) status: u16,
    /// Only a part was asked for.
    pub(super) is_partial: bool,
}

impl Noting {
    /// Notes the answer: `digest` of what came if all of it did.
    fn end(&self, digest: Option<Digest>) {
        let method = self.method.as_str();
        let reason = if self.method != http::Method::GET {
            "method_not_materializable"
        } else if self.is_partial || self.status == http::StatusCode::PARTIAL_CONTENT.as_u16() {
            "partial_response"
        } else if digest.is_none() {
            "body_read_failed"
        } else if self.status >= 400 {
            "unsuccessful_response"
        } else {
            if let (Some(digest), 200..300) = (digest, self.status) {
                self.capture.material(&self.address, digest);
            }
            return;
        };
        self.capture.incomplete(method, &self.address, reason);
    }
}

/// The body of an answer on its way to the step.
pub(super) struct Passing<S> {
    from: S,
    hasher: Option<DigestWriter<io::Sink>>,
    /// Bytes there are to come, if that was said.
    expected: Option<u64>,
    noting: Option<Noting>,
}

impl<S> Passing<S> {
    pub(super) fn new(from: S, expected: Option<u64>, noting: Noting) -> Passing<S> {
        Passing {
            from,
            hasher: Some(DigestWriter::new(io::sink())),
            expected,
            noting: Some(noting),
        }
    }

    fn end(&mut self, is_whole: bool) {
        let hashed = self.hasher.take().map(DigestWriter::finish);
        let digest = hashed
            .and_then(|(_, digest, bytes)| (is_whole || Some(bytes) == self.expected).then_some(digest));
        if let Some(noting) = self.noting.take() {
            noting.end(digest);
        }
    }
}

impl<S: Stream<Item = reqwest::Result<Bytes>> + Unpin> Stream for Passing<S> {
    type Item = reqwest::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(Pin::new(&mut self.from).poll_next(context));
        match &next {
            Some(Ok(bytes)) => {
                if let Some(hasher) = &mut self.hasher {
                    // Into a sink: it cannot fail.
                    let _ = hasher.write_all(bytes);
                }
            }
            Some(Err(_)) => self.end(false),
            None => self.end(true),
        }
        Poll::Ready(next)
    }
}

impl<S> Drop for Passing<S> {
    fn drop(&mut self) {
        // Nobody reads the rest, if there is one: an answer of a known length is not asked for more.
        self.end(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_not_the_outside() {
        for (text, is_outside) in [
            ("http://127.0.0.1/", false),
            ("http://127.9.9.9:80/", false),
            ("http://0.0.0.0/", false),
            ("http://0/", false),
            ("http://0x7f000001/", false),
            ("http://2130706433/", false),
            ("http://[::1]/", false),
            ("http://[::]/", false),
            ("http://[::ffff:127.0.0.1]/", false),
            ("http://[::127.0.0.1]/", false),
            ("http://10.0.0.1/", true),
            ("http://[2001:db8::1]/", true),
            ("http://example.com/", true),
        ] {
            let address: Url = text.parse().expect("an address");
            assert_eq!(Egress::Outside.check(&address).is_ok(), is_outside, "{text}");
            assert!(Egress::Host.check(&address).is_ok(), "{text}");
        }
    }

    #[tokio::test]
    async fn names_of_this_machine_are_not_the_outside_either() {
        let name = || "localhost".parse::<Name>().expect("a name");
        assert!(Resolver(Egress::Outside).resolve(name()).await.is_err());
        assert!(Resolver(Egress::Host).resolve(name()).await.is_ok());
    }

    #[test]
    fn only_a_whole_successful_get_is_a_material() {
        let digest = Digest::of(b"x");
        for (method, status, is_partial, digest, materials, reason) in [
            ("GET", 200, false, Some(digest), 1, None),
            ("GET", 302, false, Some(digest), 0, None),
            ("GET", 304, false, Some(digest), 0, None),
            ("GET", 200, true, Some(digest), 0, Some("partial_response")),
            ("GET", 206, false, Some(digest), 0, Some("partial_response")),
            ("GET", 200, false, None, 0, Some("body_read_failed")),
            ("GET", 404, false, Some(digest), 0, Some("unsuccessful_response")),
            (
                "POST",
                200,
                false,
                Some(digest),
                0,
                Some("method_not_materializable"),
            ),
        ] {
            let capture = Arc::new(Capture::default());
            let noting = Noting {
                capture: capture.clone(),
                method: method.parse().expect("a method"),
                address: "http://h/".parse().expect("an address"),
                status,
                is_partial,
            };
            noting.end(digest);
            assert_eq!(capture.materials().len(), materials, "{method} {status}");
            let unknown = capture.unknown();
            assert_eq!(
                unknown.first().map(|entry| entry.reason),
                reason,
                "{method} {status}"
            );
        }
    }
}
