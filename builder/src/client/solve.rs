//! A build on a daemon: ours or BuildKit's, over its API.
//!
//! ```text
//! connect ─▶ attach (session) ─┬─▶ Solve ──────────────────────────▶ answer ─▶ places finished ─▶ Outcome ─▶ files
//!                              └─▶ Status ─▶ events ─▶ screen
//! ```
//!
//! A signal drops the Solve call: the daemon then calls the build off, as far as no other build waits for its steps.
use super::attach::attach;
use super::connect::{ConnectError, Remote, chain};
use super::in_process::{machine, new_id, runtime};
use super::offer::offer;
use super::provenance::{Mode, of_daemon};
use super::signals::Signals;
use super::{Setting, files, remote_file};
use crate::build::outputs::{End, Placed, check, place, sentence};
use crate::build::{BuildError, CacheEntry, Lines, Outcome};
use crate::config::Config;
use crate::daemon::ADVICE;
use crate::progress::{Screen, wire};
use crate::request::{BuildRequest, ContextSource, DockerfileSource, Output, OutputKind};
use api::control::control_client::ControlClient;
use api::control::{CacheOptions, CacheOptionsEntry, Exporter, SolveRequest, StatusRequest};
use api::gateway::{self, llb_bridge_client::LlbBridgeClient};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci::{Descriptor, Digest, Index, OCI_INDEX, Reference};
use prost::Message;
use serde::Deserialize;
use session::SessionId;
use session::provider::{Place, Provider, Store};
use solver::Blame;
use solver::progress::EventWriter;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// The largest message taken.
const MAX_MESSAGE: usize = 16 << 20;
/// How long the last events are waited for when the build has ended.
const LAST_EVENTS: Duration = Duration::from_secs(5);
/// The name daemons know the folder of an image layout by.
const EXPORT_STORE: &str = "export";

/// Runs a build on a daemon and writes its files.
///
/// # Errors
/// [`BuildError`].
pub fn build_on(
    remote: &Remote,
    config: &Config,
    request: BuildRequest,
    setting: Setting,
) -> Result<Outcome, BuildError> {
    runtime()?.block_on(run(remote, config, request, setting))
}

impl From<ConnectError> for BuildError {
    fn from(error: ConnectError) -> BuildError {
        BuildError::Remote {
            message: error.to_string(),
            lines: Vec::new(),
            blame: Blame::Environment,
            hint: None,
        }
    }
}

async fn run(
    remote: &Remote,
    config: &Config,
    mut request: BuildRequest,
    setting: Setting,
) -> Result<Outcome, BuildError> {
    let signals = Signals::listen().map_err(|error| machine("listen for signals", error))?;
    check(&request)?;
    let notes = super::caches::prepare(&mut request);
    let id = new_id().map_err(|error| machine("make an id", error))?;
    let session = new_id().map_err(|error| machine("make an id", error))?;
    let channel = tokio::select! {
        biased;
        signal = signals.received() => return Err(BuildError::Cancelled { signal }),
        channel = remote.connect() => channel?,
    };
    if let DockerfileSource::Address(address) = &request.dockerfile {
        let text = tokio::select! {
            biased;
            signal = signals.received() => return Err(BuildError::Cancelled { signal }),
            text = remote_file::fetch(&channel, address) => text?,
        };
        request.dockerfile = DockerfileSource::Text(text);
    }
    let offer = offer(config, SessionId::new(&session), &request, setting.stdin)?;
    let mut places = Places::open(&request)?;
    let provider = Arc::new(Provider::new(
        offer.caller.clone(),
        std::mem::take(&mut places.wire),
        std::mem::take(&mut places.stores),
    ));
    let answering = channel.clone();
    let bridge = LlbBridgeClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    let control = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let attached = attach(
        &control,
        provider.clone(),
        &session,
        &shared_key(&request),
        remote.socket(),
    )
    .await
    .map_err(failure)?;
    let (writer, reader) = EventWriter::new();
    let screen = Screen::start(reader, setting.kind, setting.look)
        .map_err(|error| machine("start the progress display", error))?;
    let mut status = tokio::spawn(follow(control.clone(), id.clone(), writer));
    let asked = wire_request(&request, &id, &session);
    let solving = async {
        match &request.question {
            Some(question) => ask(&bridge, control.clone(), asked, question).await,
            None => {
                let answer = control.clone().solve(asked).await?;
                Ok(answer.into_inner().exporter_response.into_iter().collect())
            }
        }
    };
    let solved = tokio::select! {
        biased;
        signal = signals.received() => Err(BuildError::Cancelled { signal }),
        answer = solving => answer.map_err(failure),
    };
    if tokio::time::timeout(LAST_EVENTS, &mut status).await.is_err() {
        status.abort();
    }
    let summary = screen.finish().await;
    let settled = match &solved {
        Ok(_) => provider.settle().await,
        Err(_) => Ok(()),
    };
    attached.close().await;
    let wanted = Mode::of(&config.environment);
    let wants_provenance = request.metadata_file.is_some() && request.question.is_none();
    let mut stated = serde_json::Map::new();
    if wants_provenance && solved.is_ok() && wanted != Mode::Disabled {
        match of_daemon(&answering, &id, wanted).await {
            Ok(found) => stated = found,
            // A daemon without history is one.
            Err(status) if status.code() == Code::Unimplemented => {}
            Err(status) => return Err(machine("read the provenance of the build", status.message())),
        }
    }
    let mut outcome = Outcome {
        response: solved?,
        summary,
        notes,
        ..Outcome::default()
    };
    settled.map_err(|reason| machine("write the output", reason))?;
    places.finish(&outcome.response).await?;
    super::caches::finish(&request, &outcome.response)?;
    outcome.given = request
        .outputs
        .iter()
        .filter(|output| output.kind != OutputKind::CacheOnly)
        .map(sentence)
        .collect();
    files::write(&request, &id, &outcome, stated)?;
    Ok(outcome)
}

/// Asks the frontend a question instead of building, as a frontend that runs in the client asks another.
async fn ask(
    bridge: &LlbBridgeClient<Channel>,
    mut control: ControlClient<Channel>,
    mut asked: SolveRequest,
    question: &str,
) -> Result<BTreeMap<String, String>, Status> {
    const CAPS: &str = "moby.buildkit.frontend.subrequests+forward";
    let mut attributes = std::mem::take(&mut asked.frontend_attrs);
    attributes.insert("requestid".to_owned(), question.to_owned());
    attributes.insert("frontend.caps".to_owned(), CAPS.to_owned());
    let forwarded = gateway::SolveRequest {
        frontend: std::mem::take(&mut asked.frontend),
        frontend_opt: attributes,
        allow_result_return: true,
        allow_result_array_ref: true,
        ..gateway::SolveRequest::default()
    };
    let build = asked.r#ref.clone();
    let own = async {
        let mut bridge = bridge.clone();
        let answer = bridge.solve(of_build(&build, forwarded)?).await;
        let (result, error) = match &answer {
            Ok(_) => (Some(gateway::Result::default()), None),
            Err(status) => (None, Some(told(status))),
        };
        let returned = gateway::ReturnRequest { result, error };
        bridge.r#return(of_build(&build, returned)?).await?;
        answer
    };
    let (answer, ended) = tokio::join!(own, control.solve(asked));
    let answer = answer?.into_inner().result.unwrap_or_default();
    ended?;
    let all = answer.metadata.into_iter();
    Ok(all
        .map(|(key, value)| (key, String::from_utf8_lossy(&value).into_owned()))
        .collect())
}

/// A call for a build.
pub(super) fn of_build<T>(build: &str, message: T) -> Result<Request<T>, Status> {
    let id = build
        .parse()
        .map_err(|_| Status::internal("a build's id is no header"))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("buildkit-controlapi-buildid", id);
    Ok(request)
}

/// A failure as it is passed on.
pub(super) fn told(status: &Status) -> api::rpc::Status {
    let whole = api::rpc::Status::decode(status.details()).ok();
    whole.unwrap_or_else(|| api::rpc::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// Shows a build's events until they end.
async fn follow(mut control: ControlClient<Channel>, id: String, writer: EventWriter) {
    let stream = match control.status(StatusRequest { r#ref: id }).await {
        Ok(stream) => stream,
        Err(status) => {
            tracing::debug!(%status, "no progress");
            return;
        }
    };
    let mut stream = stream.into_inner();
    while let Ok(Some(message)) = stream.message().await {
        for event in wire::decode(message) {
            writer.write(event);
        }
    }
}

fn wire_request(request: &BuildRequest, id: &str, session: &str) -> SolveRequest {
    let exporters: Vec<Exporter> = request
        .outputs
        .iter()
        .filter(|output| output.kind != OutputKind::CacheOnly)
        .map(|output| Exporter {
            r#type: output.kind.name().to_owned(),
            attrs: output.attrs.clone().into_iter().collect(),
        })
        .collect();
    let mut entitlements = Vec::new();
    if request.entitlements.network_host {
        entitlements.push("network.host".to_owned());
    }
    if request.entitlements.security_insecure {
        entitlements.push("security.insecure".to_owned());
    }
    entitlements.extend(request.devices.iter().map(|name| match name.as_str() {
        "" => "device".to_owned(),
        name => format!("device={name}"),
    }));
    let mut frontend_attrs = request.attributes();
    if !request.cache_from.is_empty() {
        // The frontend names caches to import for what it asks the daemon to solve.
        let imports = request.cache_from.iter();
        let imports = imports.map(|entry| serde_json::json!({"Type": entry.kind, "Attrs": entry.attrs}));
        let imports: serde_json::Value = imports.collect();
        frontend_attrs.insert("cache-imports".to_owned(), imports.to_string());
    }
    // Older daemons read the first output from here.
    let first = exporters.first().cloned().unwrap_or_default();
    SolveRequest {
        r#ref: id.to_owned(),
        session: session.to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs: frontend_attrs.into_iter().collect(),
        cache: Some(CacheOptions {
            exports: request.cache_to.iter().map(wire_cache).collect(),
            imports: request.cache_from.iter().map(wire_cache).collect(),
            ..CacheOptions::default()
        }),
        entitlements,
        proxy_network: request.is_proxied,
        source_policy: request.source_policy.clone(),
        exporter_deprecated: first.r#type,
        exporter_attrs_deprecated: first.attrs,
        exporters,
        ..SolveRequest::default()
    }
}

fn wire_cache(entry: &CacheEntry) -> CacheOptionsEntry {
    CacheOptionsEntry {
        r#type: entry.kind.clone(),
        attrs: entry.attrs.clone().into_iter().collect(),
    }
}

/// What a daemon tells this context's copies apart by, from those of other folders and machines.
fn shared_key(request: &BuildRequest) -> String {
    let ContextSource::Directory(path) = &request.context else {
        return String::new();
    };
    let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic()))
        .unwrap_or_default();
    let whole = [machine.as_slice(), path.as_os_str().as_encoded_bytes()].concat();
    format!("{name}:{}", &Digest::of(&whole).hex()[..16])
}

/// The places of all outputs on this machine.
#[derive(Default)]
struct Places {
    wire: BTreeMap<usize, Place>,
    stores: BTreeMap<String, Store>,
    ends: Vec<End>,
    layouts: Vec<(PathBuf, Vec<String>)>,
}

impl Places {
    fn open(request: &BuildRequest) -> Result<Places, BuildError> {
        let mut places = Places::default();
        let outputs = request
            .outputs
            .iter()
            .filter(|output| output.kind != OutputKind::CacheOnly);
        for (number, output) in outputs.enumerate() {
            let (placed, end) = place(output, request.docker_socket.as_deref())?;
            match placed {
                Placed::Nowhere => {}
                Placed::Writer(writer) => {
                    places.wire.insert(number, Place::File(writer));
                }
                Placed::Folder(path) => {
                    let empties = output.attrs.get("mode").is_some_and(|mode| mode == "delete");
                    places.wire.insert(number, Place::Dir { path, empties });
                }
                Placed::Layout(path) => places.layout(output, path)?,
            }
            places.ends.push(end);
        }
        for (name, context) in &request.named_contexts {
            if let crate::request::NamedContext::OciLayout { path, .. } = context {
                let store = Store {
                    folder: path.clone(),
                    is_writable: false,
                };
                let name = crate::request::layout_store(name);
                places.stores.insert(format!("oci:{name}"), store);
            }
        }
        for (name, folder) in super::caches::stores(request) {
            std::fs::create_dir_all(&folder)
                .map_err(|error| machine(&format!("create {}", folder.display()), error))?;
            let is_written = |entry: &CacheEntry| {
                entry
                    .attrs
                    .get("dest")
                    .is_some_and(|dest| Path::new(dest) == folder)
            };
            let is_writable = request.cache_to.iter().any(is_written);
            places.stores.insert(name, Store { folder, is_writable });
        }
        Ok(places)
    }

    fn layout(&mut self, output: &Output, path: PathBuf) -> Result<(), BuildError> {
        let store = Store {
            folder: path.clone(),
            is_writable: true,
        };
        if self.stores.insert(EXPORT_STORE.to_owned(), store).is_some() {
            return Err(BuildError::Export {
                output: output.kind.name().into(),
                reason: "a daemon can write one image layout (tar=false) of a build, not two".into(),
                blame: Blame::User,
            });
        }
        let names = output.attrs.get("name").map(String::as_str).unwrap_or_default();
        let names = names.split(',').filter(|name| !name.is_empty());
        self.layouts.push((path, names.map(str::to_owned).collect()));
        Ok(())
    }

    async fn finish(self, response: &BTreeMap<String, String>) -> Result<(), BuildError> {
        for (path, names) in &self.layouts {
            write_index(path, names, response)
                .map_err(|error| machine(&format!("write the image layout {}", path.display()), error))?;
        }
        let ends = self.ends;
        tokio::task::spawn_blocking(move || ends.into_iter().try_for_each(End::finish))
            .await
            .map_err(|error| machine("finish the output", error))?
            .map_err(|error| machine("finish the output", error))
    }
}

/// Blobs come from the daemon; what names them is ours to write (image-spec, image-layout.md).
fn write_index(
    folder: &Path,
    names: &[String],
    response: &BTreeMap<String, String>,
) -> Result<(), std::io::Error> {
    let text = response
        .get("containerimage.descriptor")
        .map(String::as_str)
        .unwrap_or_default();
    let descriptor: Descriptor = STANDARD
        .decode(text)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or_else(|| std::io::Error::other("the daemon did not say what it wrote"))?;
    let mut entries = Vec::new();
    for name in names {
        let reference = Reference::parse_normalized(name)
            .map_err(std::io::Error::other)?
            .with_default_tag();
        let mut entry = descriptor.clone();
        entry
            .annotations
            .insert("io.containerd.image.name".into(), reference.to_string());
        let tag = reference.tag().unwrap_or("latest").to_owned();
        entry
            .annotations
            .insert("org.opencontainers.image.ref.name".into(), tag);
        entries.push(entry);
    }
    if entries.is_empty() {
        entries.push(descriptor);
    }
    std::fs::write(folder.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
    let aside = tempfile::NamedTempFile::new_in(folder)?;
    std::fs::write(aside.path(), Index::new(OCI_INDEX, entries).to_json())?;
    std::fs::set_permissions(aside.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    aside
        .persist(folder.join("index.json"))
        .map(drop)
        .map_err(|error| error.error)
}

/// A daemon's words, with the lines of the Dockerfile its details name.
pub(super) fn failure(status: Status) -> BuildError {
    // What has a cause did not come from a daemon: the way to it broke.
    if std::error::Error::source(&status).is_some() {
        return BuildError::Remote {
            message: format!("the connection to the daemon broke: {}", chain(&status)),
            lines: Vec::new(),
            blame: Blame::Environment,
            hint: None,
        };
    }
    let blame = match status.code() {
        Code::Internal | Code::DataLoss => Blame::Internal,
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Unauthenticated => {
            Blame::Environment
        }
        _ => Blame::User,
    };
    let message = match status.message() {
        "" => format!("the daemon answered {:?}", status.code()),
        text => text.to_owned(),
    };
    let advice = advice(status.details());
    let hint = advice.as_ref().and_then(|advice| advice.hint.clone());
    // The hint has a line of its own here.
    let in_message = hint.as_ref().map(|hint| format!(" ({hint})"));
    let message = match in_message.and_then(|hint| message.strip_suffix(&hint)) {
        Some(message) => message.to_owned(),
        None => message,
    };
    let blame = match advice.as_ref().map(|advice| advice.blame.as_str()) {
        Some("user") => Blame::User,
        Some("environment") => Blame::Environment,
        Some("internal") => Blame::Internal,
        _ => blame,
    };
    BuildError::Remote {
        message,
        lines: lines(status.details()),
        blame,
        hint,
    }
}

/// What a daemon of ours says beside the message.
#[derive(Deserialize)]
struct Advice {
    blame: String,
    hint: Option<String>,
}

fn advice(details: &[u8]) -> Option<Advice> {
    let status = api::rpc::Status::decode(details).ok()?;
    let found = status.details.iter().find(|detail| detail.type_url == ADVICE)?;
    serde_json::from_slice(&found.value).ok()
}

#[derive(Deserialize)]
struct Source {
    info: Info,
    #[serde(default)]
    ranges: Vec<LineRange>,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    filename: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct LineRange {
    #[serde(default)]
    start: Position,
    #[serde(default)]
    end: Position,
}

#[derive(Default, Deserialize)]
struct Position {
    #[serde(default)]
    line: usize,
}

/// The lines in an error's details; what cannot be read is left out.
fn lines(details: &[u8]) -> Vec<Lines> {
    let Ok(status) = api::rpc::Status::decode(details) else {
        return Vec::new();
    };
    let sources = status
        .details
        .iter()
        .filter(|detail| detail.type_url.ends_with("errdefs.Source+json"));
    let mut found: Vec<Lines> = Vec::new();
    for source in sources.filter_map(|detail| serde_json::from_slice::<Source>(&detail.value).ok()) {
        let lines = Lines {
            filename: source.info.filename,
            data: STANDARD.decode(source.info.data).unwrap_or_default(),
            ranges: source
                .ranges
                .iter()
                .map(|range| range.start.line..=range.end.line.max(range.start.line))
                .collect(),
        };
        if !lines.ranges.is_empty() && !found.contains(&lines) {
            found.push(lines);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemons_error_names_the_lines() {
        let source = serde_json::json!({
            "info": {"filename": "Dockerfile", "data": STANDARD.encode("FROM a\nRUN x\n"), "language": "Dockerfile"},
            "ranges": [{"start": {"line": 2}, "end": {"line": 2}}],
        });
        let detail = |kind: &str, value: Vec<u8>| prost_types::Any {
            type_url: format!("github.com/moby/buildkit/{kind}"),
            value,
        };
        let details = api::rpc::Status {
            code: 2,
            message: "x".into(),
            details: vec![
                detail("stack.Stack+json", b"{}".to_vec()),
                detail("errdefs.Source+json", source.to_string().into_bytes()),
                detail("errdefs.Source+json", b"no json".to_vec()),
            ],
        };
        let status = Status::with_details(Code::Unknown, "it failed", details.encode_to_vec().into());
        let error = failure(status);
        assert_eq!(error.to_string(), "it failed");
        assert_eq!(error.blame(), Blame::User);
        let lines = error.lines();
        assert_eq!((lines.len(), lines[0].ranges.clone()), (1, vec![2..=2]));
        assert_eq!(lines[0].data, b"FROM a\nRUN x\n");
    }
}
