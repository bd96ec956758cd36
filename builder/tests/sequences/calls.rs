//! Calls by their names: written fields become a message, an answer becomes printed messages.
use api::content::content_client::ContentClient;
use api::content::{InfoRequest as ContentInfoRequest, ReadContentRequest};
use api::control::control_client::ControlClient;
use api::control::{
    BuildHistoryRequest, CacheOptions, CacheOptionsEntry, DiskUsageRequest, Exporter, InfoRequest,
    ListWorkersRequest, PruneRequest, SolveRequest, StatusRequest, UpdateBuildHistoryRequest,
};
use api::gateway::exec_message::Input;
use api::gateway::llb_bridge_client::LlbBridgeClient;
use api::gateway::{
    self, EvaluateRequest, ExecMessage, FdMessage, InitMessage, NewContainerRequest, PingRequest,
    ReadDirRequest, ReadFileRequest, ReleaseContainerRequest, ResolveImageConfigRequest, ReturnRequest,
    StatFileRequest, result,
};
use api::trace::ExportTraceServiceRequest;
use api::trace::trace_service_client::TraceServiceClient;
use futures_util::StreamExt;
use prost::Message;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use toml::Table;
use tonic::metadata::{AsciiMetadataKey, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const MAX_MESSAGE: usize = 64 << 20;

/// What came back: messages as they are printed, or the failure.
pub(crate) type Answer = Result<Vec<String>, Status>;

/// A result of the gateway, kept for `LLBBridge/Return`: clients give back what they were given.
pub(crate) type Results = BTreeMap<String, gateway::Result>;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Typed {
    r#type: String,
    attrs: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Solve {
    r#ref: String,
    session: String,
    frontend: String,
    attrs: BTreeMap<String, String>,
    exporters: Vec<Typed>,
    cache_exports: Vec<Typed>,
    cache_imports: Vec<Typed>,
    entitlements: Vec<String>,
    internal: bool,
    policy_session: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Usage {
    filter: Vec<String>,
    age_limit_seconds: i64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Prune {
    filter: Vec<String>,
    all: bool,
    keep_seconds: i64,
    reserved_space: i64,
    max_used_space: i64,
    min_free_space: i64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct History {
    active_only: bool,
    r#ref: String,
    early_exit: bool,
    filter: Vec<String>,
    limit: i32,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Change {
    r#ref: String,
    pinned: bool,
    delete: bool,
    finalize: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct FrontendSolve {
    frontend: String,
    opts: BTreeMap<String, String>,
    evaluate: bool,
    cache_imports: Vec<Typed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Return {
    /// The call whose result is given back; nothing gives an empty one.
    result_of: Option<String>,
    error: Option<ReturnError>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReturnError {
    code: i32,
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    r#ref: String,
    path: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Container {
    id: String,
    /// The ref that is its root.
    root: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Exec {
    container: String,
    args: Vec<String>,
    cwd: String,
    tty: bool,
    stdin: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Content {
    digest: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Named {
    r#ref: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Filtered {
    filter: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Image {
    r#ref: String,
    mode: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Nothing {}

/// Makes a call; `results` are those of the build's earlier solves, and what this one adds comes back.
pub(crate) async fn call(
    channel: &Channel,
    name: &str,
    headers: &BTreeMap<String, String>,
    ask: Table,
    results: &Results,
) -> (Answer, Option<gateway::Result>) {
    if name == "LLBBridge/Solve" {
        let asked = frontend_solve(fields(name, ask));
        let answer = bridge(channel).solve(with(headers, asked)).await;
        let result = answer
            .as_ref()
            .ok()
            .and_then(|answer| answer.get_ref().result.clone());
        return (printed(answer), result);
    }
    (other(channel, name, headers, ask, results).await, None)
}

async fn other(
    channel: &Channel,
    name: &str,
    headers: &BTreeMap<String, String>,
    ask: Table,
    results: &Results,
) -> Answer {
    match name.split('/').next() {
        Some("Control") => control_call(channel, name, headers, ask).await,
        Some("LLBBridge") if name.ends_with("Container") || name.ends_with("Process") => {
            container_call(channel, name, headers, ask).await
        }
        Some("LLBBridge") => bridge_call(channel, name, headers, ask, results).await,
        _ => service_call(channel, name, headers, ask).await,
    }
}

async fn control_call(
    channel: &Channel,
    name: &str,
    headers: &BTreeMap<String, String>,
    ask: Table,
) -> Answer {
    let mut control = ControlClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    match name {
        "Control/Solve" => printed(control.solve(with(headers, solve(fields(name, ask)))).await),
        "Control/Status" => {
            let Named { r#ref } = fields(name, ask);
            all(control.status(with(headers, StatusRequest { r#ref })).await).await
        }
        "Control/ListWorkers" => {
            let Filtered { filter } = fields(name, ask);
            printed(
                control
                    .list_workers(with(headers, ListWorkersRequest { filter }))
                    .await,
            )
        }
        "Control/Info" => {
            let Nothing {} = fields(name, ask);
            printed(control.info(with(headers, InfoRequest {})).await)
        }
        "Control/DiskUsage" => {
            let asked: Usage = fields(name, ask);
            let asked = DiskUsageRequest {
                filter: asked.filter,
                age_limit: asked.age_limit_seconds * 1_000_000_000,
            };
            printed(control.disk_usage(with(headers, asked)).await)
        }
        "Control/Prune" => all(control.prune(with(headers, prune(fields(name, ask)))).await).await,
        "Control/ListenBuildHistory" => {
            let asked: History = fields(name, ask);
            let asked = BuildHistoryRequest {
                active_only: asked.active_only,
                r#ref: asked.r#ref,
                early_exit: asked.early_exit,
                filter: asked.filter,
                limit: asked.limit,
            };
            all(control.listen_build_history(with(headers, asked)).await).await
        }
        "Control/UpdateBuildHistory" => {
            let asked: Change = fields(name, ask);
            let asked = UpdateBuildHistoryRequest {
                r#ref: asked.r#ref,
                pinned: asked.pinned,
                delete: asked.delete,
                finalize: asked.finalize,
            };
            printed(control.update_build_history(with(headers, asked)).await)
        }
        other => panic!("no call is named {other}"),
    }
}

async fn bridge_call(
    channel: &Channel,
    name: &str,
    headers: &BTreeMap<String, String>,
    ask: Table,
    results: &Results,
) -> Answer {
    let mut bridge = bridge(channel);
    match name {
        "LLBBridge/Ping" => {
            let Nothing {} = fields(name, ask);
            printed(bridge.ping(with(headers, PingRequest {})).await)
        }
        "LLBBridge/Return" => {
            let asked = returned(fields(name, ask), results);
            printed(bridge.r#return(with(headers, asked)).await)
        }
        "LLBBridge/ResolveImageConfig" => {
            let Image { r#ref, mode } = fields(name, ask);
            let asked = ResolveImageConfigRequest {
                r#ref,
                resolve_mode: mode,
                ..ResolveImageConfigRequest::default()
            };
            printed(bridge.resolve_image_config(with(headers, asked)).await)
        }
        "LLBBridge/Evaluate" => {
            let Named { r#ref } = fields(name, ask);
            printed(bridge.evaluate(with(headers, EvaluateRequest { r#ref })).await)
        }
        "LLBBridge/ReadFile" => {
            let File { r#ref, path } = fields(name, ask);
            let asked = ReadFileRequest {
                r#ref,
                file_path: path,
                ..ReadFileRequest::default()
            };
            printed(bridge.read_file(with(headers, asked)).await)
        }
        "LLBBridge/ReadDir" => {
            let File { r#ref, path } = fields(name, ask);
            let asked = ReadDirRequest {
                r#ref,
                dir_path: path,
                ..ReadDirRequest::default()
            };
            printed(bridge.read_dir(with(headers, asked)).await)
        }
        "LLBBridge/StatFile" => {
            let File { r#ref, path } = fields(name, ask);
            let asked = StatFileRequest {
                r#ref,
                path,
                ..StatFileRequest::default()
            };
            printed(bridge.stat_file(with(headers, asked)).await)
        }
        other => panic!("no call is named {other}"),
    }
}

async fn container_call(
    channel: &Channel,
    name: &str,
    headers: &BTreeMap<String, String>,
    ask: Table,
) -> Answer {
    let mut bridge = bridge(channel);
    match name {
        "LLBBridge/NewContainer" => {
            let Container { id, root } = fields(name, ask);
            let root = llb::proto::Mount {
                dest: "/".into(),
                result_id: root,
                ..<_>::default()
            };
            let asked = NewContainerRequest {
                container_id: id,
                mounts: vec![root],
                ..NewContainerRequest::default()
            };
            printed(bridge.new_container(with(headers, asked)).await)
        }
        "LLBBridge/ExecProcess" => exec(&mut bridge, headers, fields(name, ask)).await,
        "LLBBridge/ReleaseContainer" => {
            let Container { id, root } = fields(name, ask);
            assert!(
                root.is_empty(),
                "a container that is released is not given a root"
            );
            let asked = ReleaseContainerRequest { container_id: id };
            printed(bridge.release_container(with(headers, asked)).await)
        }
        other => panic!("no call is named {other}"),
    }
}

async fn service_call(
    channel: &Channel,
    name: &str,
    headers: &BTreeMap<String, String>,
    ask: Table,
) -> Answer {
    let mut content = ContentClient::new(channel.clone());
    match name {
        "Content/Info" => {
            let Content { digest } = fields(name, ask);
            printed(content.info(with(headers, ContentInfoRequest { digest })).await)
        }
        "Content/Read" => {
            let Content { digest } = fields(name, ask);
            let asked = ReadContentRequest {
                digest,
                ..ReadContentRequest::default()
            };
            all(content.read(with(headers, asked)).await).await
        }
        "TraceService/Export" => {
            let Nothing {} = fields(name, ask);
            let asked = with(headers, ExportTraceServiceRequest::default());
            printed(TraceServiceClient::new(channel.clone()).export(asked).await)
        }
        "Health/Check" => {
            let Nothing {} = fields(name, ask);
            let asked = with(headers, HealthCheckRequest::default());
            printed(HealthClient::new(channel.clone()).check(asked).await)
        }
        other => panic!("no call is named {other}"),
    }
}

fn bridge(channel: &Channel) -> LlbBridgeClient<Channel> {
    LlbBridgeClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE)
}

fn fields<T: DeserializeOwned>(call: &str, ask: Table) -> T {
    let read = T::deserialize(toml::Value::Table(ask));
    read.unwrap_or_else(|error| panic!("the fields of {call}: {error}"))
}

fn with<T>(headers: &BTreeMap<String, String>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    for (key, value) in headers {
        let key: AsciiMetadataKey = key.parse().expect("a header");
        let value = MetadataValue::try_from(value.as_str()).expect("plain text");
        request.metadata_mut().append(key, value);
    }
    request
}

fn printed<T: Debug>(answer: Result<Response<T>, Status>) -> Answer {
    answer.map(|answer| vec![format!("{:?}", answer.into_inner())])
}

async fn all<T: Debug>(answer: Result<Response<Streaming<T>>, Status>) -> Answer {
    let mut messages = Vec::new();
    let mut stream = answer?.into_inner();
    while let Some(message) = stream.message().await? {
        messages.push(format!("{message:?}"));
    }
    Ok(messages)
}

fn entries(of: Vec<Typed>) -> Vec<CacheOptionsEntry> {
    let entry = |one: Typed| CacheOptionsEntry {
        r#type: one.r#type,
        attrs: one.attrs,
    };
    of.into_iter().map(entry).collect()
}

fn solve(asked: Solve) -> SolveRequest {
    let exporter = |one: Typed| Exporter {
        r#type: one.r#type,
        attrs: one.attrs,
    };
    let first = asked.exporters.first();
    SolveRequest {
        r#ref: asked.r#ref,
        // For old daemons clients say it twice.
        exporter_deprecated: first.map(|one| one.r#type.clone()).unwrap_or_default(),
        exporter_attrs_deprecated: first.map(|one| one.attrs.clone()).unwrap_or_default(),
        session: asked.session,
        frontend: asked.frontend,
        frontend_attrs: asked.attrs,
        exporters: asked.exporters.into_iter().map(exporter).collect(),
        cache: Some(CacheOptions {
            exports: entries(asked.cache_exports),
            imports: entries(asked.cache_imports),
            ..CacheOptions::default()
        }),
        entitlements: asked.entitlements,
        internal: asked.internal,
        source_policy_session: asked.policy_session,
        ..SolveRequest::default()
    }
}

fn prune(asked: Prune) -> PruneRequest {
    PruneRequest {
        filter: asked.filter,
        all: asked.all,
        keep_duration: asked.keep_seconds * 1_000_000_000,
        reserved_space: asked.reserved_space,
        max_used_space: asked.max_used_space,
        min_free_space: asked.min_free_space,
    }
}

fn frontend_solve(asked: FrontendSolve) -> gateway::SolveRequest {
    let import = |one: Typed| gateway::CacheOptionsEntry {
        r#type: one.r#type,
        attrs: one.attrs,
    };
    gateway::SolveRequest {
        frontend: asked.frontend,
        frontend_opt: asked.opts,
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: asked.evaluate,
        cache_imports: asked.cache_imports.into_iter().map(import).collect(),
        ..gateway::SolveRequest::default()
    }
}

fn returned(asked: Return, results: &Results) -> ReturnRequest {
    let result = asked.result_of.map(|call| {
        let found = results.get(&call);
        found
            .cloned()
            .unwrap_or_else(|| panic!("no call named {call} has a result"))
    });
    let error = asked.error.map(|error| api::rpc::Status {
        code: error.code,
        message: error.message,
        details: Vec::new(),
    });
    ReturnRequest {
        result: result.or_else(|| error.is_none().then(empty)),
        error,
    }
}

/// What a client gives back that only looked whether the daemon is there.
fn empty() -> gateway::Result {
    gateway::Result {
        result: Some(result::Result::Ref(gateway::Ref::default())),
        ..gateway::Result::default()
    }
}

/// A process from its first message to its last; what it said is at the end, as one more message for each descriptor.
async fn exec(
    bridge: &mut LlbBridgeClient<Channel>,
    headers: &BTreeMap<String, String>,
    asked: Exec,
) -> Answer {
    const ID: &str = "process";
    let (sender, receiver) = mpsc::channel(16);
    let init = InitMessage {
        container_id: asked.container,
        meta: Some(llb::proto::Meta {
            args: asked.args,
            cwd: asked.cwd,
            ..<_>::default()
        }),
        fds: vec![0, 1, 2],
        tty: asked.tty,
        ..InitMessage::default()
    };
    let input = FdMessage {
        fd: 0,
        eof: false,
        data: asked.stdin.into_bytes().into(),
    };
    let end = FdMessage {
        fd: 0,
        eof: true,
        ..FdMessage::default()
    };
    for input in [Input::Init(init), Input::File(input), Input::File(end)] {
        let message = ExecMessage {
            process_id: ID.into(),
            input: Some(input),
        };
        sender.send(message).await.expect("the queue has room");
    }
    let request = with(headers, ReceiverStream::new(receiver));
    let mut answers = bridge.exec_process(request).await?.into_inner();
    let (mut messages, mut said) = (Vec::new(), BTreeMap::<u32, Vec<u8>>::new());
    while let Some(message) = answers.next().await {
        match message?.input {
            Some(Input::File(file)) => said.entry(file.fd).or_default().extend_from_slice(&file.data),
            Some(Input::Done(_)) => break,
            other => messages.push(format!("{other:?}")),
        }
    }
    drop(sender);
    let said = said.into_iter();
    messages.extend(said.map(|(fd, bytes)| format!("{fd}: {}", String::from_utf8_lossy(&bytes))));
    Ok(messages)
}

/// The error of a build with its details, printed.
pub(crate) fn details(status: &Status) -> String {
    let whole = api::rpc::Status::decode(status.details()).ok();
    let kinds = whole.iter().flat_map(|status| &status.details);
    let kinds: Vec<&str> = kinds.map(|detail| detail.type_url.as_str()).collect();
    format!("{} {}", status.message(), kinds.join(" "))
}

/// All refs of a result, in the order of their platforms.
pub(crate) fn refs(result: &gateway::Result) -> Vec<String> {
    match &result.result {
        Some(result::Result::Ref(one)) => vec![one.id.clone()],
        Some(result::Result::Refs(many)) => many.refs.values().map(|one| one.id.clone()).collect(),
        Some(result::Result::RefDeprecated(one)) => vec![one.clone()],
        Some(result::Result::RefsDeprecated(many)) => many.refs.values().cloned().collect(),
        None => Vec::new(),
    }
}
