//! Sends spans to a collector, apart from the builds: a queue, and a task that empties it.
//!
//! What does not fit into the queue, or is not taken at the second attempt, is dropped; that is said in the log. Nothing
//! waits for a collector but the daemon's end, and that not for long.
use crate::config::{Otlp, OtlpProtocol};
use api::trace::trace_service_client::TraceServiceClient;
use api::trace::{ExportTraceServiceRequest, ResourceSpans};
use prost::Message;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// Batches that wait.
const QUEUE: usize = 256;
/// Before the second attempt.
const PAUSE: Duration = Duration::from_secs(1);
/// What is left is sent within this time, at the daemon's end.
const LAST: Duration = Duration::from_secs(5);
/// Where systems keep the authorities they believe.
const AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    /// A file of certificates cannot be read.
    #[error("read {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// The address or a header is none.
    #[error("send traces to {endpoint}: {reason}")]
    Setup { endpoint: String, reason: String },
    /// The collector did not take them.
    #[error("send traces: {0}")]
    Refused(String),
}

enum Work {
    Spans(Vec<ResourceSpans>),
    Flush(oneshot::Sender<()>),
}

/// A collector.
pub(crate) struct Exporter(mpsc::Sender<Work>);

impl Exporter {
    /// Gets ready to send; nobody is asked yet.
    pub(crate) fn start(otlp: &Otlp) -> Result<Exporter, ExportError> {
        let mut line = Line::new(otlp)?;
        let (queue, mut work) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            while let Some(next) = work.recv().await {
                match next {
                    Work::Spans(spans) => line.deliver(spans).await,
                    Work::Flush(done) => {
                        // Whoever asked may have gone.
                        let _ = done.send(());
                    }
                }
            }
        });
        Ok(Exporter(queue))
    }

    /// Sends spans, soon.
    pub(crate) fn send(&self, spans: Vec<ResourceSpans>) {
        if self.0.try_send(Work::Spans(spans)).is_err() {
            tracing::warn!("the collector of traces is too slow: spans were dropped");
        }
    }

    /// Returns when what was sent so far is delivered.
    pub(crate) async fn flush(&self) {
        let (done, told) = oneshot::channel();
        let flushed = async {
            if self.0.send(Work::Flush(done)).await.is_ok() {
                let _ = told.await;
            }
        };
        if tokio::time::timeout(LAST, flushed).await.is_err() {
            tracing::warn!("the last traces were not sent in time");
        }
    }
}

/// How the collector is spoken to.
enum Line {
    Grpc {
        client: TraceServiceClient<Channel>,
        headers: Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>,
    },
    Http {
        client: reqwest::Client,
        endpoint: String,
        headers: http::HeaderMap,
    },
}

impl Line {
    fn new(otlp: &Otlp) -> Result<Line, ExportError> {
        let wrong = |error: &dyn std::fmt::Display| ExportError::Setup {
            endpoint: otlp.endpoint.clone(),
            reason: error.to_string(),
        };
        match otlp.protocol {
            OtlpProtocol::Grpc => {
                let mut endpoint = Endpoint::from_shared(otlp.endpoint.clone())
                    .map_err(|error| wrong(&error))?
                    .timeout(otlp.timeout);
                if otlp.endpoint.starts_with("https://") {
                    endpoint = endpoint.tls_config(tls(otlp)?).map_err(|error| wrong(&error))?;
                }
                let headers = otlp.headers.iter().map(|(key, value)| {
                    let key = key.to_ascii_lowercase().parse().map_err(|error| wrong(&error))?;
                    Ok((key, value.parse().map_err(|error| wrong(&error))?))
                });
                Ok(Line::Grpc {
                    client: TraceServiceClient::new(endpoint.connect_lazy()),
                    headers: headers.collect::<Result<_, ExportError>>()?,
                })
            }
            OtlpProtocol::Http => {
                let mut client = reqwest::Client::builder().timeout(otlp.timeout);
                if let Some(path) = &otlp.certificate {
                    let authority = reqwest::Certificate::from_pem(&read(path)?);
                    client = client.add_root_certificate(authority.map_err(|error| wrong(&error))?);
                }
                if let Some((certificate, key)) = &otlp.identity {
                    let mut pem = read(key)?;
                    pem.push(b'\n');
                    pem.extend(read(certificate)?);
                    let identity = reqwest::Identity::from_pem(&pem);
                    client = client.identity(identity.map_err(|error| wrong(&error))?);
                }
                let mut headers = http::HeaderMap::new();
                for (key, value) in &otlp.headers {
                    let key: http::HeaderName = key.parse().map_err(|error| wrong(&error))?;
                    headers.insert(key, value.parse().map_err(|error| wrong(&error))?);
                }
                Ok(Line::Http {
                    client: client.build().map_err(|error| wrong(&error))?,
                    endpoint: otlp.endpoint.clone(),
                    headers,
                })
            }
        }
    }

    async fn deliver(&mut self, resource_spans: Vec<ResourceSpans>) {
        let request = ExportTraceServiceRequest { resource_spans };
        if self.send(request.clone()).await.is_err() {
            tokio::time::sleep(PAUSE).await;
            if let Err(error) = self.send(request).await {
                tracing::warn!(%error, "spans were dropped");
            }
        }
    }

    async fn send(&mut self, spans: ExportTraceServiceRequest) -> Result<(), ExportError> {
        let refused = |error: &dyn std::fmt::Display| ExportError::Refused(error.to_string());
        match self {
            Line::Grpc { client, headers } => {
                let mut request = tonic::Request::new(spans);
                for (key, value) in headers {
                    request.metadata_mut().insert(key.clone(), value.clone());
                }
                client.export(request).await.map_err(|error| refused(&error))?;
            }
            Line::Http {
                client,
                endpoint,
                headers,
            } => {
                let request = client
                    .post(endpoint.as_str())
                    .headers(headers.clone())
                    .header(http::header::CONTENT_TYPE, "application/x-protobuf")
                    .body(spans.encode_to_vec());
                let answer = request.send().await.map_err(|error| refused(&error))?;
                answer.error_for_status().map_err(|error| refused(&error))?;
            }
        }
        Ok(())
    }
}

fn tls(otlp: &Otlp) -> Result<ClientTlsConfig, ExportError> {
    let mut tls = ClientTlsConfig::new();
    let of_system = || AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists());
    if let Some(path) = otlp.certificate.clone().or_else(of_system) {
        tls = tls.ca_certificate(Certificate::from_pem(read(&path)?));
    }
    if let Some((certificate, key)) = &otlp.identity {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(tls)
}

fn read(path: &Path) -> Result<Vec<u8>, ExportError> {
    std::fs::read(path).map_err(|source| ExportError::File {
        path: path.to_owned(),
        source,
    })
}
