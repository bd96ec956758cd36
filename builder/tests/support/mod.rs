//! A daemon of its own and clients of it, for tests.
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod containers;

use api::control::control_client::ControlClient;
use api::control::{BytesMessage, Exporter, SolveRequest, SolveResponse, StatusRequest, StatusResponse};
use api::gateway::llb_bridge_client::LlbBridgeClient;
use api::gateway::{self, PingRequest, ReturnRequest};
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
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// A daemon of its own root and socket.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Daemon {
    /// Starts one; returns when it says that it listens.
    pub(crate) fn start(root: &Path) -> Daemon {
        Daemon::start_as(root, |_| {})
    }

    /// Starts one, after `change` has seen its command.
    pub(crate) fn start_as(root: &Path, change: impl FnOnce(&mut Command)) -> Daemon {
        let socket = root.join("s.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_builder"));
        command
            .arg("--root")
            .arg(root.join("root"))
            .args(["serve", "--addr"])
            .arg(format!("unix://{}", socket.display()))
            .stderr(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is a pipe")).lines();
        let first = lines
            .by_ref()
            .find(|line| line.as_ref().is_ok_and(|line| line.contains("serving at")));
        assert!(first.is_some(), "the daemon ended before it listened");
        // Nobody must wait for us to read on.
        std::thread::spawn(move || lines.for_each(drop));
        Daemon { child, socket }
    }

    /// Asks it to end, in order; answers whether it did well.
    pub(crate) fn end(&mut self) -> bool {
        self.terminate();
        self.wait()
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    }

    /// Waits for its end; answers whether it ended well.
    pub(crate) fn wait(&mut self) -> bool {
        self.child.wait().expect("it ends").success()
    }

    /// The end nobody can prepare for.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    pub(crate) async fn client(&self) -> Client {
        connect(self.socket.clone()).await
    }
}

/// A client with a connection of its own.
pub(crate) async fn connect(socket: PathBuf) -> Client {
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

/// An open session of a client.
pub(crate) struct Session {
    stop: CancellationToken,
    provider: Arc<Provider>,
}

impl Session {
    /// Waits until every output lies where it belongs: a daemon has sent it, but this end may still be moving it.
    pub(crate) async fn settle(&self) {
        self.provider.settle().await.expect("outputs are put in place");
    }

    /// Ends it.
    pub(crate) fn cancel(&self) {
        self.stop.cancel();
    }
}

pub(crate) struct Client {
    pub(crate) channel: Channel,
}

/// What a build showed and answered.
pub(crate) struct Built {
    pub(crate) answer: Result<SolveResponse, Status>,
    pub(crate) shown: Vec<StatusResponse>,
}

impl Built {
    /// Names of vertices, each with whether the cache served it.
    pub(crate) fn vertices(&self) -> BTreeMap<String, bool> {
        let all = self.shown.iter().flat_map(|part| &part.vertexes);
        all.map(|vertex| (vertex.name.clone(), vertex.cached)).collect()
    }
}

impl Client {
    pub(crate) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
    }

    pub(crate) fn bridge(&self) -> LlbBridgeClient<Channel> {
        LlbBridgeClient::new(self.channel.clone())
    }

    /// Opens a session that offers directories and takes output 0 into a place; it ends with the token.
    pub(crate) async fn session(&self, id: &str, dirs: &[(&str, &Path)], place: Option<Place>) -> Session {
        let options = LocalOptions {
            dirs: dirs
                .iter()
                .map(|(name, path)| ((*name).to_owned(), (*path).to_owned()))
                .collect(),
            ..LocalOptions::default()
        };
        let places = place.into_iter().map(|place| (0, place)).collect();
        self.session_of(id, options, places).await
    }

    /// Opens a session that offers all of it, and takes outputs into places by their numbers.
    pub(crate) async fn session_of(
        &self,
        id: &str,
        options: LocalOptions,
        places: BTreeMap<usize, Place>,
    ) -> Session {
        let caller = Arc::new(LocalCaller::new(SessionId::new(id), options));
        let provider = Arc::new(Provider::new(caller, places, BTreeMap::new()));
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
        let (ended, serving) = (stop.clone(), provider.clone());
        tokio::spawn(async move {
            let inbound =
                incoming.map(|message| message.map(|message| message.data).map_err(std::io::Error::other));
            let _ = serving.serve(inbound, to_daemon, ended).await;
        });
        Session { stop, provider }
    }

    /// Everything a build shows, to its end.
    pub(crate) fn watch(&self, id: &str) -> tokio::task::JoinHandle<Vec<StatusResponse>> {
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
    pub(crate) async fn build(
        &self,
        id: &str,
        context: &Path,
        exporters: Vec<Exporter>,
        place: Option<Place>,
    ) -> Built {
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
        stop.settle().await;
        stop.cancel();
        Built { answer, shown }
    }
}

/// A call of the gateway for a build.
pub(crate) fn of<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let id = MetadataValue::try_from(id).expect("plain text");
    request.metadata_mut().insert("buildkit-controlapi-buildid", id);
    request
}

pub(crate) fn context(folder: &Path, dockerfile: &str) -> PathBuf {
    let context = folder.join("context");
    std::fs::create_dir_all(&context).expect("made");
    std::fs::write(context.join("Dockerfile"), dockerfile).expect("written");
    std::fs::write(context.join("file"), "content\n").expect("written");
    context
}

pub(crate) fn directory(path: &Path) -> Place {
    Place::Dir {
        path: path.to_owned(),
        empties: false,
    }
}

pub(crate) fn local() -> Vec<Exporter> {
    vec![Exporter {
        r#type: "local".into(),
        attrs: BTreeMap::new(),
    }]
}

/// Processes whose command line ends so.
pub(crate) fn running(words: &str) -> usize {
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
