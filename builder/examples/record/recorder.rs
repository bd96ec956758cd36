//! Stands between a client and a daemon and writes down what the client asks, in words.
//!
//! ```text
//! client ─▶ socket ─▶ Recorder ─▶ a line for each message, each answer ─▶ daemon
//! ```
//!
//! For writing sequences: what a program of others asks is looked at here, and then written in our own words. Messages are
//! as long as they are; a line is cut.
use api::content;
use api::content::content_client::ContentClient;
use api::content::content_server::{Content, ContentServer};
use api::control;
use api::control::control_client::ControlClient;
use api::control::control_server::{Control, ControlServer};
use api::gateway;
use api::gateway::llb_bridge_client::LlbBridgeClient;
use api::gateway::llb_bridge_server::{LlbBridge, LlbBridgeServer};
use api::trace::trace_service_client::TraceServiceClient;
use api::trace::trace_service_server::{TraceService, TraceServiceServer};
use api::trace::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::fmt::Debug;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

/// Longer lines are cut.
const MAX_LINE: usize = 6_000;
const MAX_MESSAGE: usize = 64 << 20;
/// Headers that every call has.
const COMMON: [&str; 4] = ["user-agent", "te", "content-type", "grpc-timeout"];

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[derive(Clone)]
pub(crate) struct Recorder {
    daemon: Channel,
    out: Arc<Mutex<Box<dyn Write + Send>>>,
}

impl Recorder {
    /// Records what is asked at `socket` until the process ends.
    pub(crate) async fn serve(daemon: Channel, socket: &Path, out: Box<dyn Write + Send>) {
        let recorder = Recorder {
            daemon,
            out: Arc::new(Mutex::new(out)),
        };
        let listener = UnixListener::bind(socket).expect("bound");
        let (_, health) = tonic_health::server::health_reporter();
        let served = Server::builder()
            .add_service(health)
            .add_service(ControlServer::new(recorder.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(LlbBridgeServer::new(recorder.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(ContentServer::new(recorder.clone()))
            .add_service(TraceServiceServer::new(recorder).max_decoding_message_size(MAX_MESSAGE))
            .serve_with_incoming(UnixListenerStream::new(listener));
        served.await.expect("served");
    }

    fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.daemon.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn bridge(&self) -> LlbBridgeClient<Channel> {
        LlbBridgeClient::new(self.daemon.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.daemon.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn line(&self, text: &str) {
        let end = (0..=MAX_LINE.min(text.len()))
            .rev()
            .find(|end| text.is_char_boundary(*end));
        let mut out = self.out.lock().expect("nobody panics while writing");
        writeln!(out, "{}", &text[..end.unwrap_or_default()]).expect("written");
    }

    fn asked<T: Debug>(&self, call: &str, request: &Request<T>) {
        let headers = request.metadata().iter().filter_map(|pair| match pair {
            tonic::metadata::KeyAndValueRef::Ascii(key, value) if !COMMON.contains(&key.as_str()) => {
                Some(format!("{key}: {value:?}"))
            }
            _ => None,
        });
        let headers: Vec<String> = headers.collect();
        self.line(&format!(
            "> {call} [{}] {:?}",
            headers.join(", "),
            request.get_ref()
        ));
    }

    fn answered<T: Debug>(&self, call: &str, answer: &Result<Response<T>, Status>) {
        match answer {
            Ok(answer) => self.line(&format!("< {call} {:?}", answer.get_ref())),
            Err(status) => self.line(&format!("< {call} {:?} {}", status.code(), status.message())),
        }
    }

    async fn one<Q: Debug, A: Debug, F>(
        &self,
        call: &str,
        request: Request<Q>,
        pass: impl FnOnce(Request<Q>) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.asked(call, &request);
        let answer = pass(request).await;
        self.answered(call, &answer);
        answer
    }

    /// Answers as they come; what they are is written down if it `is_told`.
    fn many<A: Debug + Send + 'static>(
        &self,
        call: &'static str,
        answer: Result<Response<Streaming<A>>, Status>,
        is_told: bool,
    ) -> Result<Response<Answers<A>>, Status> {
        let recorder = self.clone();
        let (headers, answers, _) = answer
            .inspect_err(|status| self.line(&format!("< {call} {:?} {}", status.code(), status.message())))?
            .into_parts();
        let answers = answers.inspect(move |answer| match answer {
            Ok(message) if is_told => recorder.line(&format!("<< {call} {message:?}")),
            Ok(_) => {}
            Err(status) => recorder.line(&format!("<< {call} {:?} {}", status.code(), status.message())),
        });
        let mut response = Response::new(answers.boxed());
        *response.metadata_mut() = headers;
        Ok(response)
    }

    /// A client's own messages, in a request that can be passed on.
    fn passed_on<Q: Debug + Send + 'static>(
        &self,
        call: &'static str,
        request: Request<Streaming<Q>>,
        is_told: bool,
    ) -> Request<ReceiverStream<Q>> {
        let (headers, _, mut messages) = request.into_parts();
        let (sender, receiver) = mpsc::channel(16);
        let recorder = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                if is_told {
                    recorder.line(&format!(">> {call} {message:?}"));
                }
                if sender.send(message).await.is_err() {
                    break;
                }
            }
        });
        let mut request = Request::new(ReceiverStream::new(receiver));
        *request.metadata_mut() = headers;
        request
    }
}

/// Methods that have one request and one answer.
macro_rules! unary {
    ($(#[$meta:meta])* impl $trait:ident as $client:ident { $($method:ident($call:literal, $request:ty) -> $answer:ty;)* } $($more:tt)*) => {
        #[tonic::async_trait]
        impl $trait for Recorder {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$answer>, Status> {
                let mut client = self.$client();
                self.one($call, request, |request| async move { client.$method(request).await }).await
            })*
            $($more)*
        }
    };
}

unary! {
    impl Control as control {
        disk_usage("Control/DiskUsage", control::DiskUsageRequest) -> control::DiskUsageResponse;
        solve("Control/Solve", control::SolveRequest) -> control::SolveResponse;
        list_workers("Control/ListWorkers", control::ListWorkersRequest) -> control::ListWorkersResponse;
        info("Control/Info", control::InfoRequest) -> control::InfoResponse;
        update_build_history("Control/UpdateBuildHistory", control::UpdateBuildHistoryRequest) -> control::UpdateBuildHistoryResponse;
    }

    type PruneStream = Answers<control::UsageRecord>;
    type StatusStream = Answers<control::StatusResponse>;
    type SessionStream = Answers<control::BytesMessage>;
    type ListenBuildHistoryStream = Answers<control::BuildHistoryEvent>;

    async fn prune(&self, request: Request<control::PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        self.asked("Control/Prune", &request);
        self.many("Control/Prune", self.control().prune(request).await, true)
    }

    async fn status(&self, request: Request<control::StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        self.asked("Control/Status", &request);
        self.many("Control/Status", self.control().status(request).await, false)
    }

    async fn session(&self, request: Request<Streaming<control::BytesMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        self.asked("Control/Session", &request);
        let request = self.passed_on("Control/Session", request, false);
        self.many("Control/Session", self.control().session(request).await, false)
    }

    async fn listen_build_history(&self, request: Request<control::BuildHistoryRequest>) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        self.asked("Control/ListenBuildHistory", &request);
        self.many("Control/ListenBuildHistory", self.control().listen_build_history(request).await, true)
    }
}

unary! {
    impl LlbBridge as bridge {
        resolve_image_config("LLBBridge/ResolveImageConfig", gateway::ResolveImageConfigRequest) -> gateway::ResolveImageConfigResponse;
        resolve_source_meta("LLBBridge/ResolveSourceMeta", gateway::ResolveSourceMetaRequest) -> gateway::ResolveSourceMetaResponse;
        solve("LLBBridge/Solve", gateway::SolveRequest) -> gateway::SolveResponse;
        read_file("LLBBridge/ReadFile", gateway::ReadFileRequest) -> gateway::ReadFileResponse;
        read_dir("LLBBridge/ReadDir", gateway::ReadDirRequest) -> gateway::ReadDirResponse;
        stat_file("LLBBridge/StatFile", gateway::StatFileRequest) -> gateway::StatFileResponse;
        evaluate("LLBBridge/Evaluate", gateway::EvaluateRequest) -> gateway::EvaluateResponse;
        ping("LLBBridge/Ping", gateway::PingRequest) -> gateway::PongResponse;
        r#return("LLBBridge/Return", gateway::ReturnRequest) -> gateway::ReturnResponse;
        inputs("LLBBridge/Inputs", gateway::InputsRequest) -> gateway::InputsResponse;
        new_container("LLBBridge/NewContainer", gateway::NewContainerRequest) -> gateway::NewContainerResponse;
        release_container("LLBBridge/ReleaseContainer", gateway::ReleaseContainerRequest) -> gateway::ReleaseContainerResponse;
        read_file_container("LLBBridge/ReadFileContainer", gateway::ReadFileRequest) -> gateway::ReadFileResponse;
        read_dir_container("LLBBridge/ReadDirContainer", gateway::ReadDirRequest) -> gateway::ReadDirResponse;
        stat_file_container("LLBBridge/StatFileContainer", gateway::StatFileRequest) -> gateway::StatFileResponse;
        warn("LLBBridge/Warn", gateway::WarnRequest) -> gateway::WarnResponse;
    }

    type ExecProcessStream = Answers<gateway::ExecMessage>;

    async fn exec_process(&self, request: Request<Streaming<gateway::ExecMessage>>) -> Result<Response<Self::ExecProcessStream>, Status> {
        self.asked("LLBBridge/ExecProcess", &request);
        let request = self.passed_on("LLBBridge/ExecProcess", request, true);
        self.many("LLBBridge/ExecProcess", self.bridge().exec_process(request).await, true)
    }
}

#[tonic::async_trait]
impl TraceService for Recorder {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.line("> TraceService/Export");
        TraceServiceClient::new(self.daemon.clone()).export(request).await
    }
}

unary! {
    impl Content as content {
        info("Content/Info", content::InfoRequest) -> content::InfoResponse;
        update("Content/Update", content::UpdateRequest) -> content::UpdateResponse;
        delete("Content/Delete", content::DeleteContentRequest) -> ();
        status("Content/Status", content::StatusRequest) -> content::StatusResponse;
        list_statuses("Content/ListStatuses", content::ListStatusesRequest) -> content::ListStatusesResponse;
        abort("Content/Abort", content::AbortRequest) -> ();
    }

    type ListStream = Answers<content::ListContentResponse>;
    type ReadStream = Answers<content::ReadContentResponse>;
    type WriteStream = Answers<content::WriteContentResponse>;

    async fn list(&self, request: Request<content::ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        self.asked("Content/List", &request);
        self.many("Content/List", self.content().list(request).await, false)
    }

    async fn read(&self, request: Request<content::ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        self.asked("Content/Read", &request);
        self.many("Content/Read", self.content().read(request).await, false)
    }

    async fn write(&self, request: Request<Streaming<content::WriteContentRequest>>) -> Result<Response<Self::WriteStream>, Status> {
        self.asked("Content/Write", &request);
        let request = self.passed_on("Content/Write", request, false);
        self.many("Content/Write", self.content().write(request).await, false)
    }
}
