//! What a step speaks to: an HTTP proxy, and behind CONNECT the very host it wanted.
//!
//! ```text
//! connection ─▶ request with a whole address ──────────────────────────────▶ pass ─▶ answer
//!          └─▶ CONNECT host:port ─▶ 200 ─▶ TLS as that host ─▶ request ─▶ pass ─┘
//! ```
//!
//! A request goes: policy (403) ─▶ reachable (502) ─▶ outside (502) ─▶ answer. Headers that are between two neighbours
//! are not passed on; nor are upgrades, so what comes is what was noted.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body as _, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use crate::worker::chain;

use super::{
    Capture, RequestPolicy, Shared,
    authority::host_of,
    capture::masked,
    forward::{Egress, Noting, Passing},
};

/// How long a step may take over the head of a request, or over TLS.
const HEAD: Duration = Duration::from_secs(30);
/// Connections of one step at a time; further ones wait.
const MAX_CONNECTIONS: usize = 256;
/// Headers that are for the next neighbour only.
const NEIGHBOUR: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    // Answers are to come as they are, so that their digest is that of the file.
    "accept-encoding",
];

type Body = UnsyncBoxBody<Bytes, reqwest::Error>;

/// What serves one step.
pub(super) struct Served {
    pub(super) shared: Arc<Shared>,
    pub(super) client: reqwest::Client,
    pub(super) egress: Egress,
    pub(super) policy: Option<Arc<dyn RequestPolicy>>,
    pub(super) capture: Arc<Capture>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// Serves connections until the listener fails.
pub(super) async fn accept(listener: TcpListener, served: Arc<Served>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let task = connection(stream, served.clone(), None);
                served.spawn(async move {
                    task.await;
                    drop(place);
                });
            }
            // What the step did to its own end; a lack of descriptors passes.
            Err(error) => {
                tracing::debug!(%error, "accept a connection of a step");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

impl Served {
    /// Runs a task that ends with the proxy.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }
}

/// Serves one connection; `host` is whom it plays.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    served: Arc<Served>,
    host: Option<http::uri::Authority>,
) {
    let service = service_fn(move |request| {
        let (served, host) = (served.clone(), host.clone());
        async move { Ok::<_, Infallible>(answer(request, served, host).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = serving.await {
        tracing::debug!(%error, "a connection of a step");
    }
}

async fn answer(
    request: Request<Incoming>,
    served: Arc<Served>,
    host: Option<http::uri::Authority>,
) -> Response<Body> {
    if request.method() == Method::CONNECT && host.is_none() {
        return connect(request, &served);
    }
    match address(&request, host.as_ref()) {
        Some(address) => pass(request, address, &served).await,
        None => said(StatusCode::BAD_REQUEST, "a request without a host"),
    }
}

/// Begins to play a host.
fn connect(request: Request<Incoming>, served: &Arc<Served>) -> Response<Body> {
    let Some(host) = request.uri().authority().cloned() else {
        return said(StatusCode::BAD_REQUEST, "CONNECT without a host");
    };
    let config = match served.shared.authority.host(host_of(&host)) {
        Ok(config) => config,
        Err(error) => return said(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let inner = served.clone();
    served.spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else {
            return;
        };
        let accepting = TlsAcceptor::from(config).accept(TokioIo::new(upgraded));
        match tokio::time::timeout(HEAD, accepting).await {
            Ok(Ok(stream)) => connection(stream, inner, Some(host)).await,
            Ok(Err(error)) => tracing::debug!(%error, "TLS of a step"),
            Err(_) => tracing::debug!("TLS of a step took too long"),
        }
    });
    said(StatusCode::OK, "")
}

/// Where a request is to go.
fn address(request: &Request<Incoming>, host: Option<&http::uri::Authority>) -> Option<Url> {
    let uri = request.uri();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let whole = match (host, uri.scheme_str(), uri.authority()) {
        (Some(host), ..) => format!("https://{host}{path}"),
        (None, Some(scheme @ ("http" | "https")), Some(authority)) => format!("{scheme}://{authority}{path}"),
        (None, Some(_), _) => return None,
        (None, None, _) => {
            let host = request.headers().get(header::HOST)?.to_str().ok()?;
            format!("http://{host}{path}")
        }
    };
    Url::parse(&whole).ok().filter(Url::has_host)
}

/// Passes a request on, if it may be.
async fn pass(request: Request<Incoming>, address: Url, served: &Served) -> Response<Body> {
    let (head, body) = request.into_parts();
    let address = match judged(&head.method, address, served).await {
        Ok(address) => address,
        Err(why) => {
            tracing::debug!(%why, "a request of a step is not allowed");
            return said(StatusCode::FORBIDDEN, "Forbidden\n");
        }
    };
    let method = head.method.as_str();
    let failed = |why: String| {
        let status = StatusCode::BAD_GATEWAY;
        served.capture.request(method, &address, status.as_u16(), None);
        served.capture.incomplete(method, &address, "upstream_error");
        said(status, &format!("{why}\n"))
    };
    if let Err(why) = served.egress.check(&address) {
        return failed(why);
    }
    let mut headers = passed_on(&head.headers);
    // It follows from the address, which a policy may have changed.
    headers.remove(header::HOST);
    let mut outgoing = served
        .client
        .request(head.method.clone(), address.clone())
        .headers(headers);
    if !body.is_end_stream() {
        let frames = BodyStream::new(body).try_filter_map(async |frame| Ok(frame.into_data().ok()));
        outgoing = outgoing.body(reqwest::Body::wrap_stream(frames));
    }
    let response = match outgoing.send().await {
        Ok(response) => response,
        Err(error) => return failed(chain(&error.without_url())),
    };
    let status = response.status();
    let location = response.headers().get(header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok());
    served
        .capture
        .request(method, &address, status.as_u16(), location);
    let headers = passed_on(response.headers());
    let length = response.content_length();
    let noting = Noting {
        capture: served.capture.clone(),
        is_partial: head.headers.contains_key(header::RANGE),
        method: head.method.clone(),
        address: address.clone(),
        status: status.as_u16(),
    };
    let passing = Passing::new(response.bytes_stream(), length, noting);
    let mut answer =
        Response::new(StreamBody::new(passing.map(|bytes| bytes.map(Frame::data))).boxed_unsync());
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}

/// The address a request may ask.
async fn judged(method: &Method, address: Url, served: &Served) -> Result<Url, String> {
    let Some(policy) = &served.policy else {
        return Ok(address);
    };
    let shown = masked(address.as_str());
    let Some(other) = policy.judge(&shown).await? else {
        return Ok(address);
    };
    if method != Method::GET {
        return Err(format!(
            "{shown}: only a GET can be sent elsewhere, not a {method}"
        ));
    }
    let other: Url = other
        .parse()
        .map_err(|error| format!("{shown}: sent to what is no address: {error}"))?;
    match other.scheme() {
        "http" | "https" if other.has_host() => Ok(other),
        _ => Err(format!("{shown}: sent to an address that is not of HTTP")),
    }
}

/// The headers that are not only for the next neighbour, those that `Connection` names left out, too.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let is_passed = |name: &HeaderName| !NEIGHBOUR.contains(&name.as_str()) && !named.contains(name);
    let kept = headers.iter().filter(|(name, _)| is_passed(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// An answer of our own.
fn said(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_between_neighbours_stay_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("x-theirs", "2"),
            ("te", "trailers"),
            ("accept-encoding", "gzip"),
            ("proxy-authorization", "Basic x"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, value.parse().expect("a value"));
        }
        let kept = passed_on(&headers);
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "x-theirs"]);
    }
}
