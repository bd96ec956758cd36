//! Traces of builds: kept with the record, sent to a collector, one with the client's own.
mod support;

use api::content::ReadContentRequest;
use api::content::content_client::ContentClient;
use api::control::{BuildHistoryRecord, BuildHistoryRequest, SolveRequest, UpdateBuildHistoryRequest};
use api::trace::trace_service_client::TraceServiceClient;
use api::trace::trace_service_server::{TraceService, TraceServiceServer};
use api::trace::{ExportTraceServiceRequest, ExportTraceServiceResponse, ResourceSpans, ScopeSpans, Span};
use futures_util::StreamExt;
use prost::Message;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use support::{Client, Daemon, context};
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const SOLVE: &str = "moby.buildkit.v1.Control/Solve";

/// Builds by the daemon's own frontend, as part of a client's trace if there is one.
async fn build(client: &Client, id: &str, context: &Path, trace: Option<&str>) {
    let dirs = [("context", context), ("dockerfile", context)];
    let session = client.session(&format!("{id}-session"), &dirs, None).await;
    let mut request = Request::new(SolveRequest {
        r#ref: id.into(),
        session: format!("{id}-session"),
        frontend: "dockerfile.v0".into(),
        ..SolveRequest::default()
    });
    if let Some(trace) = trace {
        let parent = format!("00-{trace}-{PARENT}-01").parse().expect("plain text");
        request.metadata_mut().insert("traceparent", parent);
    }
    client.control().solve(request).await.expect("it builds");
    session.cancel();
}

async fn record(client: &Client, id: &str) -> BuildHistoryRecord {
    let asked = BuildHistoryRequest {
        early_exit: true,
        r#ref: id.into(),
        ..BuildHistoryRequest::default()
    };
    let events = client.control().listen_build_history(asked).await;
    let mut events = events.expect("answered").into_inner();
    let event = events.next().await.expect("it is kept").expect("a record");
    event.record.expect("it has one")
}

/// The spans of a record's trace.
async fn spans(client: &Client, record: &BuildHistoryRecord) -> Vec<Value> {
    let trace = record.trace.as_ref().expect("it has a trace");
    assert_eq!(trace.media_type, "application/vnd.buildkit.otlp.json.v0");
    let asked = ReadContentRequest {
        digest: trace.digest.clone(),
        ..ReadContentRequest::default()
    };
    let mut content = ContentClient::new(client.channel.clone());
    let chunks = content.read(asked).await.expect("readable").into_inner();
    let chunks: Vec<_> = chunks.map(|chunk| chunk.expect("whole").data).collect().await;
    let bytes = chunks.concat();
    let stream = serde_json::Deserializer::from_slice(&bytes).into_iter();
    stream.collect::<Result<_, _>>().expect("objects")
}

fn named<'a>(spans: &'a [Value], name: &str) -> &'a Value {
    let found = spans.iter().find(|span| span["Name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {spans:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_build_has_a_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let context = context(folder.path(), "FROM scratch\nCOPY file /copied\n");
    build(&client, "one", &context, None).await;
    let spans = spans(&client, &record(&client, "one").await).await;
    let (solve, copy) = (named(&spans, SOLVE), named(&spans, "[1/1] COPY file /copied"));
    assert_eq!(solve["Parent"]["SpanID"], "0".repeat(16));
    assert_eq!(copy["Parent"]["SpanID"], solve["SpanContext"]["SpanID"]);
    assert_eq!(copy["SpanContext"]["TraceID"], solve["SpanContext"]["TraceID"]);
    assert_eq!(copy["Attributes"][0]["Key"], "vertex");
    assert_eq!(copy["Status"]["Code"], "Unset");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_spans_are_part_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let context = context(folder.path(), "FROM scratch\nCOPY file /copied\n");
    build(&client, "one", &context, Some(TRACE)).await;
    let of_trace = |trace: [u8; 16], name: &str| Span {
        trace_id: trace.to_vec().into(),
        span_id: vec![7; 8].into(),
        name: name.into(),
        ..Span::default()
    };
    let trace: [u8; 16] = u128::from_str_radix(TRACE, 16).expect("hex").to_be_bytes();
    let own = vec![of_trace(trace, "the client's"), of_trace([9; 16], "another's")];
    let sent = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: own,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    let mut collector = TraceServiceClient::new(client.channel.clone());
    collector.export(sent).await.expect("taken");
    let asked = UpdateBuildHistoryRequest {
        r#ref: "one".into(),
        finalize: true,
        ..UpdateBuildHistoryRequest::default()
    };
    client
        .control()
        .update_build_history(asked)
        .await
        .expect("it is whole");
    let spans = spans(&client, &record(&client, "one").await).await;
    named(&spans, "the client's");
    assert!(spans.iter().all(|span| span["Name"] != "another's"));
    let solve = named(&spans, SOLVE);
    assert_eq!(solve["SpanContext"]["TraceID"], TRACE);
    assert_eq!(solve["Parent"]["SpanID"], PARENT);
}

/// A collector that passes on what it is sent, with one header of it.
struct Sink(mpsc::UnboundedSender<(Option<String>, ExportTraceServiceRequest)>);

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let header = request
            .metadata()
            .get("x-key")
            .and_then(|value| value.to_str().ok());
        let header = header.map(str::to_owned);
        self.0
            .send((header, request.into_inner()))
            .expect("somebody listens");
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_sent_to_a_collector() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("it has one");
    let (sender, mut received) = mpsc::unbounded_channel();
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Sink(sender)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let daemon = Daemon::start_as(folder.path(), |command| {
        command
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"))
            .env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=value")
            .env("OTEL_SERVICE_NAME", "mine");
    });
    let client = daemon.client().await;
    let context = context(folder.path(), "FROM scratch\nCOPY file /copied\n");
    build(&client, "one", &context, None).await;
    let (header, sent) = received.recv().await.expect("sent");
    assert_eq!(header.as_deref(), Some("value"));
    let resource = &sent.resource_spans[0];
    let attributes = &resource.resource.as_ref().expect("named").attributes;
    assert_eq!(attributes[0].key, "service.name");
    let names: Vec<&str> = resource.scope_spans[0]
        .spans
        .iter()
        .map(|span| span.name.as_str())
        .collect();
    assert!(
        names.contains(&SOLVE) && names.contains(&"[1/1] COPY file /copied"),
        "{names:?}"
    );
}

/// A collector that speaks OTLP in HTTP: passes on each request's first line, its headers and what it holds.
fn http_collector() -> (
    String,
    std::sync::mpsc::Receiver<(String, ExportTraceServiceRequest)>,
) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("it has one");
    let (sender, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse().ok())?
            });
            let mut body = vec![0; length.unwrap_or_default()];
            reader.read_exact(&mut body).expect("a whole request");
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            (&stream).write_all(answer.as_bytes()).expect("answered");
            let sent = ExportTraceServiceRequest::decode(&body[..]).expect("protobuf");
            if sender.send((head, sent)).is_err() {
                break;
            }
        }
    });
    (format!("http://{address}"), received)
}

/// Names of the spans, and what the program calls itself.
fn names(sent: &ExportTraceServiceRequest) -> (Vec<String>, Vec<String>) {
    let all = &sent.resource_spans;
    let spans = all
        .iter()
        .flat_map(|one| &one.scope_spans)
        .flat_map(|scope| &scope.spans);
    let keys = all
        .iter()
        .filter_map(|one| one.resource.as_ref())
        .flat_map(|one| &one.attributes);
    (
        spans.map(|span| span.name.clone()).collect(),
        keys.map(|pair| pair.key.clone()).collect(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_sent_by_http_through_both_doors() {
    let folder = tempfile::tempdir().expect("a folder");
    let (address, received) = http_collector();
    let context = context(folder.path(), "FROM scratch\nCOPY file /copied\n");
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", address.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=value"),
    ];
    let daemon = Daemon::start_as(folder.path(), |command| {
        command.envs(variables);
    });
    build(&daemon.client().await, "one", &context, None).await;
    let (head, of_daemon) = received.recv().expect("sent");
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    let head = head.to_ascii_lowercase();
    assert!(
        head.contains("content-type: application/x-protobuf\r\n"),
        "{head}"
    );
    assert!(head.contains("x-key: value\r\n"), "{head}");
    let (spans, keys) = names(&of_daemon);
    assert!(spans.iter().any(|name| name == SOLVE), "{spans:?}");
    assert!(keys.iter().any(|key| key == "service.name"), "{keys:?}");

    let output = std::process::Command::new(env!("CARGO_BIN_EXE_builder"))
        .arg("--root")
        .arg(folder.path().join("own"))
        .args(["build", "--progress=plain"])
        .arg(&context)
        .envs(variables)
        .env("TRACEPARENT", format!("00-{TRACE}-{PARENT}-01"))
        .output()
        .expect("it starts");
    assert!(output.status.success());
    let (_, own) = received.recv().expect("sent before the program ended");
    let (spans, _) = names(&own);
    assert!(
        spans.iter().any(|name| name == "[1/1] COPY file /copied"),
        "{spans:?}"
    );
    let first = &own.resource_spans[0].scope_spans[0].spans[0];
    let trace: [u8; 16] = u128::from_str_radix(TRACE, 16).expect("hex").to_be_bytes();
    let parent: [u8; 8] = u64::from_str_radix(PARENT, 16).expect("hex").to_be_bytes();
    assert_eq!(
        (&first.trace_id[..], &first.parent_span_id[..]),
        (&trace[..], &parent[..])
    );
}
