//! Where spans go, by the variables OpenTelemetry has for all programs.
//!
//! | variable (`…_TRACES_…` wins where both exist) | |
//! |---|---|
//! | `OTEL_EXPORTER_OTLP[_TRACES]_ENDPOINT` | the collector; without one spans only go into the history |
//! | `OTEL_EXPORTER_OTLP[_TRACES]_PROTOCOL` | `grpc` (as in BuildKit the default) or `http/protobuf` |
//! | `OTEL_EXPORTER_OTLP[_TRACES]_{HEADERS,TIMEOUT,CERTIFICATE,CLIENT_CERTIFICATE,CLIENT_KEY}` | headers of each request, milliseconds, files |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | what the program is called |
//! | `TRACEPARENT` | the span that a build without a daemon is part of |
//! | `OTEL_SDK_DISABLED=true`, `OTEL_TRACES_EXPORTER=none`, `OTEL_TRACES_SAMPLER=always_off` | nothing is sent |
//!
//! What else may be asked for is warned about by name: `http/json`, compression, other exporters and samplers.
use super::Environment;
use std::path::PathBuf;
use std::time::Duration;

/// How spans are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// gRPC.
    Grpc,
    /// Protobuf in HTTP requests.
    Http,
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// The collector's address; for HTTP with its path.
    pub endpoint: String,
    /// How it is spoken to.
    pub protocol: OtlpProtocol,
    /// Headers of each request.
    pub headers: Vec<(String, String)>,
    /// How long a request may take.
    pub timeout: Duration,
    /// An authority to believe, PEM.
    pub certificate: Option<PathBuf>,
    /// What to show: certificate and key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What the environment says of traces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracing {
    /// Where spans go, if anywhere.
    pub otlp: Option<Otlp>,
    /// The span that this program is part of (`TRACEPARENT`).
    pub parent: Option<String>,
    /// What the program says of itself.
    pub resource: Vec<(String, String)>,
    /// What is to be warned about.
    pub warnings: Vec<String>,
}

impl Tracing {
    /// Reads the variables.
    pub fn of(environment: &Environment) -> Tracing {
        let mut tracing = Tracing::default();
        let set = |name: &str| environment.text(name).filter(|text| !text.is_empty());
        let either = |name: &str| {
            let own = set(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
            own.or_else(|| set(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        tracing.parent = set("TRACEPARENT").map(str::to_owned);
        tracing.resource = resource(set("OTEL_SERVICE_NAME"), set("OTEL_RESOURCE_ATTRIBUTES"));
        let mut is_on = set("OTEL_SDK_DISABLED").is_none_or(|text| !text.eq_ignore_ascii_case("true"));
        match set("OTEL_TRACES_EXPORTER") {
            None | Some("otlp") => {}
            Some("none") => is_on = false,
            Some(other) => {
                is_on = false;
                tracing.warn("OTEL_TRACES_EXPORTER", other, "known are otlp and none");
            }
        }
        match set("OTEL_TRACES_SAMPLER") {
            None | Some("always_on" | "parentbased_always_on") => {}
            Some("always_off" | "parentbased_always_off") => is_on = false,
            Some(other) => tracing.warn("OTEL_TRACES_SAMPLER", other, "every build is sent"),
        }
        if let Some(other) = either("COMPRESSION").filter(|text| *text != "none") {
            tracing.warn(
                "OTEL_EXPORTER_OTLP_COMPRESSION",
                other,
                "spans are sent as they are",
            );
        }
        let (Some(endpoint), true) = (either("ENDPOINT"), is_on) else {
            return tracing;
        };
        let protocol = match either("PROTOCOL") {
            None | Some("grpc") => OtlpProtocol::Grpc,
            Some("http/protobuf") => OtlpProtocol::Http,
            Some(other) => {
                tracing.warn(
                    "OTEL_EXPORTER_OTLP_PROTOCOL",
                    other,
                    "known are grpc and http/protobuf; nothing is sent",
                );
                return tracing;
            }
        };
        let has_own = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some();
        let milliseconds = either("TIMEOUT")
            .and_then(|text| text.parse().ok())
            .unwrap_or(10_000);
        let key = either("CLIENT_KEY").map(PathBuf::from);
        tracing.otlp = Some(Otlp {
            endpoint: address(endpoint, protocol, has_own),
            protocol,
            headers: pairs(either("HEADERS").unwrap_or_default()),
            timeout: Duration::from_millis(milliseconds),
            certificate: either("CERTIFICATE").map(PathBuf::from),
            identity: either("CLIENT_CERTIFICATE").map(PathBuf::from).zip(key),
        });
        tracing
    }

    fn warn(&mut self, name: &str, value: &str, why: &str) {
        self.warnings
            .push(format!("{name}={value} is not followed: {why}"));
    }
}

/// A general address gets the path of traces; one of traces alone is taken as it is.
fn address(text: &str, protocol: OtlpProtocol, is_of_traces: bool) -> String {
    let text = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    match (protocol, is_of_traces) {
        (OtlpProtocol::Grpc, _) | (OtlpProtocol::Http, true) => text,
        (OtlpProtocol::Http, false) => format!("{}/v1/traces", text.trim_end_matches('/')),
    }
}

fn resource(name: Option<&str>, attributes: Option<&str>) -> Vec<(String, String)> {
    let mut resource = pairs(attributes.unwrap_or_default());
    let named = name.map(str::to_owned);
    let named = named.or_else(|| {
        let found = resource.iter().find(|(key, _)| key == "service.name");
        found.map(|(_, value)| value.clone())
    });
    resource.retain(|(key, _)| key != "service.name");
    let name = named.unwrap_or_else(|| "builder".to_owned());
    resource.insert(0, ("service.name".to_owned(), name));
    resource.push(("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()));
    resource
}

/// `key=value,key=value`, with `%` escapes in values.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (key.trim().to_owned(), unescaped(value.trim())))
        .filter(|(key, _)| !key.is_empty())
        .collect()
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|_| *first == b'%');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Tracing {
        Tracing::of(&Environment::of(pairs))
    }

    #[test]
    fn where_spans_go() {
        const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const OWN: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
        for (variables, expected) in [
            (&[][..], None),
            (&[(ENDPOINT, "")][..], None),
            (&[(ENDPOINT, "http://c:4317")][..], Some("http://c:4317")),
            (&[(ENDPOINT, "c:4317")][..], Some("http://c:4317")),
            (
                &[(ENDPOINT, "http://c:4318/"), (PROTOCOL, "http/protobuf")][..],
                Some("http://c:4318/v1/traces"),
            ),
            (
                &[
                    (OWN, "http://c/x"),
                    (ENDPOINT, "http://d"),
                    (PROTOCOL, "http/protobuf"),
                ][..],
                Some("http://c/x"),
            ),
            (&[(ENDPOINT, "http://c"), (PROTOCOL, "http/json")][..], None),
            (&[(ENDPOINT, "http://c"), ("OTEL_SDK_DISABLED", "true")][..], None),
            (
                &[(ENDPOINT, "http://c"), ("OTEL_TRACES_EXPORTER", "none")][..],
                None,
            ),
            (
                &[(ENDPOINT, "http://c"), ("OTEL_TRACES_SAMPLER", "always_off")][..],
                None,
            ),
        ] {
            let found = of(variables).otlp.map(|otlp| otlp.endpoint);
            assert_eq!(found.as_deref(), expected, "{variables:?}");
        }
    }

    #[test]
    fn what_is_not_followed_is_named() {
        let warnings = of(&[
            ("OTEL_TRACES_EXPORTER", "jaeger"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ]);
        assert_eq!(warnings.warnings.len(), 3);
        assert!(warnings.warnings[0].starts_with("OTEL_TRACES_EXPORTER=jaeger"));
    }

    #[test]
    fn headers_and_names() {
        let tracing = of(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "a=b%20c, authorization=Basic%3D,bad",
            ),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=x,zone=1%"),
        ]);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let headers = tracing.otlp.map(|otlp| otlp.headers);
        assert_eq!(
            headers,
            Some(vec![pair("a", "b c"), pair("authorization", "Basic=")])
        );
        assert_eq!(
            tracing.resource[..2],
            [pair("service.name", "x"), pair("zone", "1%")]
        );
        let named = of(&[
            ("OTEL_SERVICE_NAME", "y"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=x"),
        ]);
        assert_eq!(named.resource[0], pair("service.name", "y"));
    }
}
