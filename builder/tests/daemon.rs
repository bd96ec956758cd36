//! The daemon, asked over its socket in the orders in which BuildKit's clients ask.
use api::content::ReadContentRequest;
use api::content::content_client::ContentClient;
use api::control::control_client::ControlClient;
use api::control::{
    BuildHistoryRequest, BytesMessage, Exporter, ListWorkersRequest, SolveRequest, SolveResponse,
    StatusRequest, StatusResponse,
};
use api::gateway::llb_bridge_client::LlbBridgeClient;
use api::gateway::{self, PingRequest, ReadFileRequest, Ref, ReturnRequest, result};
use futures_util::StreamExt;
use hyper_util::rt::TokioIo;
use prost::Message;
use session::provider::{Place, Provider};
use session::{LocalCaller, LocalOptions, SessionId};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

/// A daemon of its own root and socket.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    /// Starts one; returns when it says that it listens.
    fn start(root: &Path) -> Daemon {
        let socket = root.join("s.sock");
        let mut child = Command::new(env!("CARGO_BIN_EXE_builder"))
            .arg("--root")
            .arg(root.join("root"))
            .args(["serve", "--addr"])
            .arg(format!("unix://{}", socket.display()))
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is a pipe")).lines();
        let first = lines
            .by_ref()
            .find(|line| line.as_ref().is_ok_and(|line| line.contains("serving at")));
        assert!(first.is_some(), "the daemon ended before it listened");
        // Nobody must wait for us to read on.
        std::thread::spawn(move || lines.for_each(drop));
        Daemon { child, socket }
    }

    /// The end nobody can prepare for.
    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    async fn client(&self) -> Client {
        connect(self.socket.clone()).await
    }
}

/// A client with a connection of its own.
async fn connect(socket: PathBuf) -> Client {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await;
    Client {
        channel: channel.expect("the daemon listens"),
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

struct Client {
    channel: Channel,
}

/// What a build showed and answered.
struct Built {
    answer: Result<SolveResponse, Status>,
    shown: Vec<StatusResponse>,
}

impl Built {
    /// Names of vertices, each with whether the cache served it.
    fn vertices(&self) -> BTreeMap<String, bool> {
        let all = self.shown.iter().flat_map(|part| &part.vertexes);
        all.map(|vertex| (vertex.name.clone(), vertex.cached)).collect()
    }
}

impl Client {
    fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
    }

    fn bridge(&self) -> LlbBridgeClient<Channel> {
        LlbBridgeClient::new(self.channel.clone())
    }

    /// Opens a session that offers directories and takes output 0 into a place; it ends with the token.
    async fn session(&self, id: &str, dirs: &[(&str, &Path)], place: Option<Place>) -> CancellationToken {
        let options = LocalOptions {
            dirs: dirs
                .iter()
                .map(|(name, path)| ((*name).to_owned(), (*path).to_owned()))
                .collect(),
            ..LocalOptions::default()
        };
        let caller = Arc::new(LocalCaller::new(SessionId::new(id), options));
        let provider = Provider::new(
            caller,
            place.into_iter().map(|place| (0, place)).collect(),
            BTreeMap::new(),
        );
        let (to_daemon, outgoing) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(outgoing).map(|data| BytesMessage { data }));
        let text = |text: &str| MetadataValue::try_from(text).expect("plain text");
        request
            .metadata_mut()
            .insert("x-docker-expose-session-uuid", text(id));
        request
            .metadata_mut()
            .insert("x-docker-expose-session-sharedkey", text("key"));
        for method in provider.methods() {
            request
                .metadata_mut()
                .append("x-docker-expose-session-grpc-method", text(method));
        }
        let incoming = self
            .control()
            .session(request)
            .await
            .expect("a session")
            .into_inner();
        let stop = CancellationToken::new();
        let ended = stop.clone();
        tokio::spawn(async move {
            let inbound =
                incoming.map(|message| message.map(|message| message.data).map_err(std::io::Error::other));
            let _ = provider.serve(inbound, to_daemon, ended).await;
        });
        stop
    }

    /// Everything a build shows, to its end.
    fn watch(&self, id: &str) -> tokio::task::JoinHandle<Vec<StatusResponse>> {
        let (mut control, id) = (self.control(), id.to_owned());
        tokio::spawn(async move {
            let stream = control
                .status(StatusRequest { r#ref: id })
                .await
                .expect("the build is known");
            assert!(stream.metadata().contains_key("buildkit-current-timestamp"));
            stream
                .into_inner()
                .map(|part| part.expect("the stream ends well"))
                .collect()
                .await
        })
    }

    /// A build in the order in which buildctl asks: the frontend is asked for through the gateway.
    async fn build(&self, id: &str, context: &Path, exporters: Vec<Exporter>, place: Option<Place>) -> Built {
        let session = format!("session{id}");
        let stop = self
            .session(&session, &[("context", context), ("dockerfile", context)], place)
            .await;
        let mut control = self.control();
        let request = SolveRequest {
            r#ref: id.into(),
            session: session.clone(),
            exporters,
            ..SolveRequest::default()
        };
        let solve = tokio::spawn(async move { control.solve(request).await });
        let shown = self.watch(id);
        let mut bridge = self.bridge();
        let pong = bridge
            .ping(of(id, PingRequest::default()))
            .await
            .expect("the build is known")
            .into_inner();
        assert!(
            pong.frontend_api_caps
                .iter()
                .any(|cap| cap.id == "proto.refarray" && cap.enabled)
        );
        assert!(!pong.llb_caps.is_empty() && pong.workers.len() == 1);
        let asked = gateway::SolveRequest {
            frontend: "dockerfile.v0".into(),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..gateway::SolveRequest::default()
        };
        let returned = match bridge.solve(of(id, asked)).await {
            Ok(answer) => ReturnRequest {
                result: answer.into_inner().result,
                error: None,
            },
            Err(status) => ReturnRequest {
                result: None,
                error: Some(api::rpc::Status::decode(status.details()).expect("details")),
            },
        };
        bridge.r#return(of(id, returned)).await.expect("taken");
        let answer = solve.await.expect("no panic").map(tonic::Response::into_inner);
        let shown = shown.await.expect("no panic");
        stop.cancel();
        Built { answer, shown }
    }
}

/// A call of the gateway for a build.
fn of<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let id = MetadataValue::try_from(id).expect("plain text");
    request.metadata_mut().insert("buildkit-controlapi-buildid", id);
    request
}

fn context(folder: &Path, dockerfile: &str) -> PathBuf {
    let context = folder.join("context");
    std::fs::create_dir_all(&context).expect("made");
    std::fs::write(context.join("Dockerfile"), dockerfile).expect("written");
    std::fs::write(context.join("file"), "content\n").expect("written");
    context
}

fn directory(path: &Path) -> Place {
    Place::Dir {
        path: path.to_owned(),
        empties: false,
    }
}

fn local() -> Vec<Exporter> {
    vec![Exporter {
        r#type: "local".into(),
        attrs: BTreeMap::new(),
    }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_as_buildctl_asks_for_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let workers = client
        .control()
        .list_workers(ListWorkersRequest::default())
        .await
        .expect("answered")
        .into_inner();
    assert_eq!(workers.record.len(), 1);
    let context = context(folder.path(), "FROM scratch\nCOPY file /copied\n");
    let out = folder.path().join("out");
    let built = client
        .build("first", &context, local(), Some(directory(&out)))
        .await;
    built.answer.as_ref().expect("it builds");
    assert_eq!(std::fs::read(out.join("copied")).expect("sent"), b"content\n");
    assert_eq!(built.vertices().get("[1/1] COPY file /copied"), Some(&false));
    // A second client finds everything done.
    let again = daemon
        .client()
        .await
        .build(
            "second",
            &context,
            local(),
            Some(directory(&folder.path().join("two"))),
        )
        .await;
    again.answer.as_ref().expect("it builds");
    assert_eq!(again.vertices().get("[1/1] COPY file /copied"), Some(&true));

    // The history has both, and the log can be read as content.
    let asked = BuildHistoryRequest {
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let events = client
        .control()
        .listen_build_history(asked)
        .await
        .expect("answered")
        .into_inner();
    let records: Vec<_> = events
        .map(|event| event.expect("a record").record.expect("it has one"))
        .collect()
        .await;
    assert_eq!(records.len(), 2);
    let first = records
        .iter()
        .find(|record| record.r#ref == "first")
        .expect("kept");
    assert!(first.completed_at.is_some() && first.error.is_none() && first.num_completed_steps > 0);
    let log = first.logs.as_ref().expect("it has a log");
    let asked = ReadContentRequest {
        digest: log.digest.clone(),
        ..ReadContentRequest::default()
    };
    let mut content = ContentClient::new(client.channel.clone());
    let chunks = content.read(asked).await.expect("readable").into_inner();
    let size: usize = chunks
        .map(|chunk| chunk.expect("whole").data.len())
        .fold(0, |sum, one| async move { sum + one })
        .await;
    assert_eq!(i64::try_from(size).expect("small"), log.size);
    // What a stored build showed is shown again.
    let replayed = client.watch("first").await.expect("no panic");
    assert_eq!(replayed.len(), built.shown.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_of_buildx_leaves_no_record() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let stop = client.session("probe-session", &[], None).await;
    let mut control = client.control();
    let request = SolveRequest {
        r#ref: "probe".into(),
        session: "probe-session".into(),
        internal: true,
        ..SolveRequest::default()
    };
    let solve = tokio::spawn(async move { control.solve(request).await });
    let shown = client.watch("probe");
    client
        .bridge()
        .ping(of("probe", PingRequest::default()))
        .await
        .expect("known");
    let empty = gateway::Result {
        result: Some(result::Result::Ref(Ref::default())),
        ..gateway::Result::default()
    };
    let returned = ReturnRequest {
        result: Some(empty),
        error: None,
    };
    client
        .bridge()
        .r#return(of("probe", returned))
        .await
        .expect("taken");
    let answer = solve.await.expect("no panic").expect("it ends well").into_inner();
    assert!(answer.exporter_response.is_empty());
    assert!(shown.await.expect("no panic").is_empty());
    stop.cancel();
    let asked = BuildHistoryRequest {
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let events = client
        .control()
        .listen_build_history(asked)
        .await
        .expect("answered")
        .into_inner();
    assert_eq!(events.count().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_carry_the_lines_of_the_dockerfile() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let context = context(folder.path(), "FROM scratch\nCOPY nowhere /x\n");
    let built = client
        .build(
            "fails",
            &context,
            local(),
            Some(directory(&folder.path().join("out"))),
        )
        .await;
    let status = built.answer.expect_err("there is no such file");
    assert!(
        status.message().contains("\"/nowhere\": not found"),
        "{}",
        status.message()
    );
    let inner = api::rpc::Status::decode(status.details()).expect("an rpc status");
    let source = inner
        .details
        .iter()
        .find(|detail| detail.type_url.ends_with("errdefs.Source+json"))
        .expect("lines");
    let source: serde_json::Value = serde_json::from_slice(&source.value).expect("JSON");
    assert_eq!(source["info"]["filename"], "Dockerfile");
    assert_eq!(source["ranges"][0]["start"]["line"], 2);
    assert!(
        inner
            .details
            .iter()
            .any(|detail| detail.type_url.ends_with("errdefs.Vertex+json"))
    );
}

/// Requests a daemon must refuse, with the code and words of the answer.
fn refused() -> Vec<(SolveRequest, Code, &'static str)> {
    let exporter = |kind: &str| Exporter {
        r#type: kind.into(),
        attrs: BTreeMap::new(),
    };
    let garbage = llb::proto::Definition {
        def: vec![vec![0xff; 40]],
        ..llb::proto::Definition::default()
    };
    let base = |id: &str| SolveRequest {
        r#ref: id.into(),
        ..SolveRequest::default()
    };
    let cache = api::control::CacheOptions {
        exports: vec![api::control::CacheOptionsEntry {
            r#type: "gha".into(),
            attrs: BTreeMap::new(),
        }],
        ..api::control::CacheOptions::default()
    };
    vec![
        (base(""), Code::InvalidArgument, "no ref"),
        (
            SolveRequest {
                exporters: vec![exporter("foo")],
                ..base("a")
            },
            Code::Unknown,
            "exporter \"foo\" could not be found",
        ),
        (
            SolveRequest {
                frontend: "nofe".into(),
                ..base("b")
            },
            Code::Unknown,
            "invalid frontend: nofe",
        ),
        (
            SolveRequest {
                definition: Some(garbage),
                ..base("c")
            },
            Code::Unknown,
            "failed to load LLB",
        ),
        (
            SolveRequest {
                entitlements: vec!["network.host".into()],
                ..base("d")
            },
            Code::Unknown,
            "network.host is not allowed",
        ),
        (
            SolveRequest {
                entitlements: vec!["root".into()],
                ..base("e")
            },
            Code::Unknown,
            "root",
        ),
        (
            SolveRequest {
                compatibility_version: 99,
                ..base("f")
            },
            Code::Unknown,
            "compatibility-version 99",
        ),
        (
            SolveRequest {
                cache: Some(cache),
                ..base("g")
            },
            Code::Unimplemented,
            "gha",
        ),
        (
            SolveRequest {
                source_policy_session: "x".into(),
                ..base("h")
            },
            Code::Unimplemented,
            "policy",
        ),
        (
            SolveRequest {
                proxy_network: true,
                ..base("i")
            },
            Code::Unimplemented,
            "proxy",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_or_not_there_yet_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    for (request, code, text) in refused() {
        let id = request.r#ref.clone();
        let status = client.control().solve(request).await.expect_err(&id);
        assert_eq!(status.code(), code, "{id}: {}", status.message());
        assert!(status.message().contains(text), "{id}: {}", status.message());
    }
    let nobody = client
        .bridge()
        .read_file(of("nobody", ReadFileRequest::default()))
        .await
        .expect_err("no such build");
    assert_eq!(nobody.code(), Code::NotFound);
    assert!(nobody.message().contains("no such job nobody"));
    client
        .control()
        .list_workers(ListWorkersRequest::default())
        .await
        .expect("it still serves");
}

/// Processes whose command line ends so.
fn running(words: &str) -> usize {
    let all = std::fs::read_dir("/proc").expect("there is a /proc").flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| {
            String::from_utf8_lossy(line)
                .replace('\0', " ")
                .trim_end()
                .ends_with(words)
        })
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_stops_its_build() {
    if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let context = context(
        folder.path(),
        "FROM scratch\nCOPY busybox /busybox\nRUN [\"/busybox\", \"sleep\", \"4321\"]\n",
    );
    std::fs::copy("/bin/busybox", context.join("busybox")).expect("copied");
    let place = directory(&folder.path().join("out"));
    // A process of its own would be the same: nothing of it goes on.
    let vanishing = tokio::runtime::Runtime::new().expect("a runtime");
    let channel = daemon.socket.clone();
    vanishing.spawn(async move {
        let client = connect(channel).await;
        client.build("vanishes", &context, local(), Some(place)).await
    });
    let wait = async |wanted: usize| {
        for _ in 0..600 {
            if running("/busybox sleep 4321") == wanted {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    };
    assert!(wait(1).await, "the step runs");
    vanishing.shutdown_background();
    assert!(wait(0).await, "the step ends with its client");
    let client = daemon.client().await;
    client
        .control()
        .list_workers(ListWorkersRequest::default())
        .await
        .expect("it still serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_keeps_what_was_finished() {
    let folder = tempfile::tempdir().expect("a folder");
    let context = context(folder.path(), "FROM scratch\nCOPY file /copied\n");
    let daemon = Daemon::start(folder.path());
    let place = || Some(directory(&folder.path().join("out")));
    daemon
        .client()
        .await
        .build("before", &context, local(), place())
        .await
        .answer
        .expect("it builds");
    daemon.kill();
    let daemon = Daemon::start(folder.path());
    let built = daemon
        .client()
        .await
        .build("after", &context, local(), place())
        .await;
    built.answer.as_ref().expect("it builds");
    assert_eq!(
        built.vertices().get("[1/1] COPY file /copied"),
        Some(&true),
        "finished work is not done again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_builds_of_many_clients_run_each_step_once() {
    if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    // Whoever runs the step gives another result; so equal results are one run.
    let step = "RUN [\"/busybox\", \"sh\", \"-c\", \"cat /proc/sys/kernel/random/uuid > /result\"]";
    let dockerfile = format!("FROM scratch\nCOPY busybox /busybox\nENV PATH=/\n{step}\n");
    let context = context(folder.path(), &dockerfile);
    std::fs::copy("/bin/busybox", context.join("busybox")).expect("copied");
    let builds = (0..8).map(|number| {
        let (daemon, context, folder) = (&daemon, &context, folder.path());
        async move {
            let place = directory(&folder.join(format!("out{number}")));
            let client = daemon.client().await;
            client
                .build(&format!("equal{number}"), context, local(), Some(place))
                .await
        }
    });
    for built in futures_util::future::join_all(builds).await {
        built.answer.expect("it builds");
    }
    let results: std::collections::BTreeSet<_> = (0..8)
        .map(|number| {
            std::fs::read_to_string(folder.path().join(format!("out{number}/result"))).expect("sent")
        })
        .collect();
    assert_eq!(results.len(), 1, "{results:?}");
}
