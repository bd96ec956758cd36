//! A build whose frontend is the test itself, with containers and processes in them.
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use super::{Client, Daemon, Session, context, of};
use api::control::{SolveRequest, SolveResponse};
use api::gateway::exec_message::Input;
use api::gateway::{
    self, ExecMessage, FdMessage, InitMessage, NewContainerRequest, ReturnRequest, SignalMessage, result,
};
use std::collections::BTreeMap;
use std::path::Path;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Whether steps can be run here.
pub(crate) fn can_run() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/bin/busybox").exists();
    if !can {
        eprintln!("skipped: needs root and a static busybox");
    }
    can
}

/// A build that waits for its client's frontend, and a root with a shell solved in it.
pub(crate) struct Open {
    pub(crate) client: Client,
    pub(crate) root: String,
    solve: tokio::task::JoinHandle<Result<tonic::Response<SolveResponse>, Status>>,
    stop: Session,
}

pub(crate) const ID: &str = "open";

impl Open {
    pub(crate) async fn new(daemon: &Daemon, folder: &Path) -> Open {
        let client = daemon.client().await;
        let context = context(
            folder,
            "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\n",
        );
        std::fs::copy("/bin/busybox", context.join("busybox")).expect("copied");
        let dirs: [(&str, &Path); 2] = [("context", &context), ("dockerfile", &context)];
        let stop = client.session("open-session", &dirs, None).await;
        let mut control = client.control();
        let request = SolveRequest {
            r#ref: ID.into(),
            session: "open-session".into(),
            ..SolveRequest::default()
        };
        let solve = tokio::spawn(async move { control.solve(request).await });
        let asked = gateway::SolveRequest {
            frontend: "dockerfile.v0".into(),
            ..gateway::SolveRequest::default()
        };
        let solved = client.bridge().solve(of(ID, asked)).await.expect("it is solved");
        let Some(result::Result::Ref(root)) = solved.into_inner().result.and_then(|result| result.result)
        else {
            panic!("it has one ref");
        };
        Open {
            client,
            root: root.id,
            solve,
            stop,
        }
    }

    pub(crate) fn request(&self, id: &str) -> NewContainerRequest {
        NewContainerRequest {
            container_id: id.into(),
            mounts: vec![llb::proto::Mount {
                dest: "/".into(),
                result_id: self.root.clone(),
                ..<_>::default()
            }],
            network: llb::proto::NetMode::None.into(),
            ..NewContainerRequest::default()
        }
    }

    pub(crate) async fn create(&self, request: NewContainerRequest) -> Result<(), Status> {
        self.client
            .bridge()
            .new_container(of(ID, request))
            .await
            .map(drop)
    }

    pub(crate) async fn exec(&self) -> Processes {
        let (sender, receiver) = mpsc::channel(16);
        let answers = self
            .client
            .bridge()
            .exec_process(of(ID, ReceiverStream::new(receiver)))
            .await;
        Processes {
            sender,
            answers: answers.expect("a stream").into_inner(),
            said: BTreeMap::new(),
        }
    }

    /// Gives a result; the build ends well.
    pub(crate) async fn end(self) {
        let returned = ReturnRequest {
            result: Some(gateway::Result::default()),
            error: None,
        };
        let mut bridge = self.client.bridge();
        bridge.r#return(of(ID, returned)).await.expect("taken");
        self.solve.await.expect("no panic").expect("it ends well");
        self.stop.cancel();
    }
}

/// One stream of processes.
pub(crate) struct Processes {
    sender: mpsc::Sender<ExecMessage>,
    answers: tonic::Streaming<ExecMessage>,
    /// What each has said.
    said: BTreeMap<(String, u32), String>,
}

impl Processes {
    pub(crate) async fn send(&self, id: &str, input: Input) {
        let message = ExecMessage {
            process_id: id.into(),
            input: Some(input),
        };
        self.sender.send(message).await.expect("the stream is open");
    }

    pub(crate) async fn start(&self, id: &str, container: &str, script: &str, tty: bool) {
        let init = InitMessage {
            container_id: container.into(),
            meta: Some(llb::proto::Meta {
                args: ["/bin/sh", "-c", script].map(String::from).to_vec(),
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                ..<_>::default()
            }),
            fds: vec![0, 1, 2],
            tty,
            ..InitMessage::default()
        };
        self.send(id, Input::Init(init)).await;
    }

    pub(crate) async fn write(&self, id: &str, text: &str, eof: bool) {
        let data = text.as_bytes().to_vec().into();
        self.send(id, Input::File(FdMessage { fd: 0, eof, data })).await;
    }

    pub(crate) async fn signal(&self, id: &str, name: &str) {
        self.send(id, Input::Signal(SignalMessage { name: name.into() }))
            .await;
    }

    /// Reads until a process has said something.
    pub(crate) async fn hears(&mut self, id: &str, words: &str) {
        while !self
            .said
            .get(&(id.to_owned(), 1))
            .is_some_and(|said| said.contains(words))
        {
            self.next().await.expect("no failure").expect("it goes on");
        }
    }

    /// Reads until a process is done; its code.
    pub(crate) async fn code(&mut self, id: &str) -> u32 {
        let mut code = None;
        loop {
            let message = self.next().await.expect("no failure").expect("it goes on");
            if message.process_id != id {
                continue;
            }
            match message.input {
                Some(Input::Exit(exit)) => code = Some(exit.code),
                Some(Input::Done(_)) => return code.expect("an exit goes before"),
                _ => {}
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<ExecMessage>, Status> {
        let message = self.answers.message().await?;
        if let Some(message) = &message
            && let Some(Input::File(file)) = &message.input
        {
            let said = self
                .said
                .entry((message.process_id.clone(), file.fd))
                .or_default();
            said.push_str(&String::from_utf8_lossy(&file.data));
        }
        Ok(message)
    }

    pub(crate) fn said(&self, id: &str, fd: u32) -> &str {
        self.said.get(&(id.to_owned(), fd)).map_or("", String::as_str)
    }
}
