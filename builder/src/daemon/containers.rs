//! Containers that a frontend starts, and the processes in them, over the wire.
//!
//! ```text
//! NewContainer ─▶ create ─▶ Containers of the build ─▶ ReleaseContainer, or the end of the build
//!                              │ Init
//! ExecProcess ─▶ exec: messages ─▶ process: Started ─▶ File… ─▶ Exit ─▶ Done
//!                   └ File, Resize, Signal ─▶ Live ──▶┘
//! ```
//!
//! 1. One stream may start many processes; each is a task that ends with its process, or with the stream.
//! 2. What a process wrote before its end is sent in full; what its children write later is not waited for.
//! 3. A process that cannot be started is one that exited with [`UNKNOWN_EXIT`] and the reason.
//!
//! A client that goes takes its processes along; a build that ends takes its containers along.
use super::builds::Build;
use super::errors::Failure;
use api::gateway::exec_message::Input;
use api::gateway::{
    DoneMessage, ExecMessage, ExitMessage, FdMessage, InitMessage, NewContainerRequest, ResizeMessage,
    StartedMessage,
};
use bytes::Bytes;
use cache::ImmutableRef;
use futures_util::{Stream, StreamExt};
use llb::op::{ExecMeta, ExecOp, SecretEnv, SecurityMode};
use oci::Digest;
use parking_lot::Mutex;
use sandbox::{Size, Stdio};
use solver::OpError;
use solver::progress::{Sink, VertexInfo};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};
use worker::Worker;
use worker::container::{Container, MountOf, Process, Running, Wanted};

/// The code of a process of which nobody knows how it ended.
const UNKNOWN_EXIT: u32 = 255;
/// Containers one build may have at once.
const MAX_CONTAINERS: usize = 256;
/// Processes one stream may start.
const MAX_PROCESSES: usize = 1024;
/// Messages that wait for a slow client, or for a process that does not read.
const WAITING: usize = 16;
/// The most that is sent in one message, in bytes.
const CHUNK: usize = 32 << 10;

/// Containers of one build, by the id their client gave them.
#[derive(Default)]
pub(super) struct Containers(Mutex<HashMap<String, Arc<Container>>>);

impl Containers {
    /// A container by its id.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.0.lock().get(id).cloned()
    }

    fn find(&self, id: &str) -> Result<Arc<Container>, Status> {
        let found = self.get(id);
        found.ok_or_else(|| Status::not_found(format!("container {id:?} previously released or not created")))
    }

    fn check_free(&self, id: &str) -> Result<(), Status> {
        let held = self.0.lock();
        if held.contains_key(id) {
            return Err(Status::already_exists(format!("Container {id} already exists")));
        }
        if held.len() >= MAX_CONTAINERS {
            let limit = format!("a build may hold at most {MAX_CONTAINERS} containers");
            return Err(Status::resource_exhausted(limit));
        }
        Ok(())
    }

    /// Ends a container; returns when nothing of it is left.
    pub(super) async fn release(&self, id: &str) -> Result<(), Status> {
        let found = self.0.lock().remove(id);
        let found = found.ok_or_else(|| Status::unknown(format!("container details for {id} not found")))?;
        found.release().await;
        Ok(())
    }

    /// Ends all containers.
    pub(super) async fn release_all(&self) {
        let all: Vec<_> = self.0.lock().drain().collect();
        futures_util::future::join_all(all.iter().map(|(_, one)| one.release())).await;
    }
}

/// Prepares a container of a build.
pub(super) async fn create(
    worker: &Worker,
    build: &Build,
    wanted: NewContainerRequest,
) -> Result<(), Status> {
    let id = wanted.container_id.clone();
    build.containers.check_free(&id)?;
    let wanted = wanted_of(build, wanted).await?;
    let name = format!("container {id}");
    let vertex = VertexInfo {
        digest: Digest::of(name.as_bytes()),
        inputs: Vec::new(),
        name,
        group: None,
    };
    let sink = Sink::silent(Arc::new(vertex));
    let made = worker.container(build.session.clone(), wanted, sink).await;
    let made = made.map_err(|error| Status::unknown(error.to_string()))?;
    if let Err(taken) = build.containers.check_free(&id) {
        made.release().await;
        return Err(taken);
    }
    build.containers.0.lock().insert(id, made);
    Ok(())
}

/// Checks what is asked for, and solves what is to be mounted.
async fn wanted_of(build: &Build, wanted: NewContainerRequest) -> Result<Wanted, Status> {
    let mut results: Vec<ImmutableRef> = Vec::new();
    let mut mounts = wanted.mounts;
    for mount in &mut mounts {
        let id = std::mem::take(&mut mount.result_id);
        (mount.input, mount.output) = (-1, -1);
        if id.is_empty() {
            continue;
        }
        let result = match build.left.find(&id) {
            Some(left) => Some(left),
            None => {
                let one = build.find_ref(&id).map_err(|failure| {
                    let message = format!(
                        "failed to find ref {id} for {:?} mount: {}",
                        mount.dest, failure.0.message
                    );
                    Status::not_found(message)
                })?;
                one.evaluate(build).await?
            }
        };
        if let Some(result) = result {
            mount.input = i64::try_from(results.len()).unwrap_or(-1);
            results.push(result);
        }
    }
    let wire = llb::proto::ExecOp {
        meta: Some(llb::proto::Meta {
            args: vec!["-".to_owned()],
            extra_hosts: wanted.extra_hosts,
            hostname: wanted.hostname,
            ..<_>::default()
        }),
        mounts,
        network: wanted.network,
        ..<_>::default()
    };
    let invalid = |reason| Status::invalid_argument(format!("container {:?}: {reason}", wanted.container_id));
    let op = ExecOp::of_container(wire, results.len()).map_err(invalid)?;
    let mounts = op.mounts.into_iter().map(|mount| MountOf {
        result: mount.input.and_then(|input| results.get(input as usize).cloned()),
        mount,
    });
    Ok(Wanted {
        mounts: mounts.collect(),
        network: op.network,
        extra_hosts: op.meta.extra_hosts,
        hostname: op.meta.hostname,
        cgroup_parent: String::new(),
        platform: wanted.platform.map(super::gateway::platform_of),
    })
}

type Answer = Result<ExecMessage, Status>;

/// Runs the processes a client asks for, until it says no more and all have ended.
pub(super) fn exec<M>(build: Arc<Build>, messages: M) -> impl Stream<Item = Answer> + Send + use<M>
where
    M: Stream<Item = Answer> + Send + Unpin + 'static,
{
    let (answers, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let gone = CancellationToken::new();
        let tasks = TaskTracker::new();
        let line = Line {
            build: build.clone(),
            answers: answers.clone(),
            tasks: tasks.clone(),
            gone: gone.clone(),
        };
        let served = tokio::select! {
            biased;
            () = answers.closed() => Ok(()),
            () = build.cancel.cancelled() => Err(Failure::canceled().into()),
            served = line.take(messages) => served,
        };
        tasks.close();
        if let Err(status) = served {
            gone.cancel();
            tasks.wait().await;
            // A client that is gone hears nothing.
            let _ = answers.send(Err(status)).await;
            return;
        }
        let _stop = gone.drop_guard();
        tokio::select! {
            () = answers.closed() => {}
            () = build.cancel.cancelled() => {}
            () = tasks.wait() => {}
        }
    });
    ReceiverStream::new(receiver)
}

/// One stream of a client.
struct Line {
    build: Arc<Build>,
    answers: mpsc::Sender<Answer>,
    tasks: TaskTracker,
    gone: CancellationToken,
}

/// What goes to a process that runs.
struct Live {
    /// `None`: it has none, or its end was told.
    stdin: Option<mpsc::Sender<Bytes>>,
    orders: mpsc::Sender<Order>,
}

enum Order {
    Resize(Size),
    Signal(i32),
}

impl Line {
    async fn take<M>(self, mut messages: M) -> Result<(), Status>
    where
        M: Stream<Item = Answer> + Unpin,
    {
        let mut all: HashMap<String, Live> = HashMap::new();
        while let Some(message) = messages.next().await {
            let ExecMessage {
                process_id: id,
                input,
            } = message?;
            if id.is_empty() {
                return Err(Status::invalid_argument("ProcessID required"));
            }
            let missing = || Status::not_found(format!("IO for process {id:?} not found"));
            match input {
                Some(Input::Init(init)) => {
                    if all.contains_key(&id) {
                        return Err(Status::already_exists(format!("Process {id} already exists")));
                    }
                    if all.len() >= MAX_PROCESSES {
                        let limit = format!("at most {MAX_PROCESSES} processes of one stream");
                        return Err(Status::resource_exhausted(limit));
                    }
                    let live = self.begin(&id, init)?;
                    all.insert(id, live);
                }
                Some(Input::File(file)) => all.get_mut(&id).ok_or_else(missing)?.feed(file).await?,
                Some(Input::Resize(size)) => {
                    let live = all.get(&id).ok_or_else(missing)?;
                    live.order(Order::Resize(size_of(&size))).await;
                }
                Some(Input::Signal(signal)) => {
                    let live = all.get(&id).ok_or_else(missing)?;
                    let number = number_of(&signal.name)
                        .ok_or_else(|| Status::invalid_argument(format!("Unknown signal {}", signal.name)))?;
                    live.order(Order::Signal(number)).await;
                }
                Some(Input::Started(_) | Input::Exit(_) | Input::Done(_)) | None => {
                    return Err(Status::invalid_argument(format!(
                        "a message to process {id:?} that no client sends"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Starts a process as a task of its own.
    fn begin(&self, id: &str, init: InitMessage) -> Result<Live, Status> {
        let container = self.build.containers.find(&init.container_id)?;
        let process = process_of(&init)?;
        let (feed, food) = mpsc::channel(WAITING);
        let (orders, taken) = mpsc::channel(WAITING);
        let one = One {
            id: id.to_owned(),
            answers: self.answers.clone(),
            food,
            orders: taken,
        };
        let (fds, is_terminal, gone) = (init.fds, init.tty, self.gone.clone());
        let has_stdin = fds.contains(&0);
        self.tasks.spawn(async move {
            tokio::select! {
                () = gone.cancelled() => {}
                // A client that is gone hears nothing.
                _told = one.run(&container, process, &fds, is_terminal) => {}
            }
        });
        Ok(Live {
            stdin: has_stdin.then_some(feed),
            orders,
        })
    }
}

impl Live {
    async fn feed(&mut self, file: FdMessage) -> Result<(), Status> {
        if file.fd != 0 {
            let message = format!("descriptor {} of a process is not written to", file.fd);
            return Err(Status::invalid_argument(message));
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !file.data.is_empty()) {
            // A process that has ended reads no more.
            let _ = stdin.send(file.data).await;
        }
        if file.eof {
            self.stdin = None;
        }
        Ok(())
    }

    async fn order(&self, order: Order) {
        // A process that has ended takes none.
        let _ = self.orders.send(order).await;
    }
}

/// One process, on this side.
struct One {
    id: String,
    answers: mpsc::Sender<Answer>,
    food: mpsc::Receiver<Bytes>,
    orders: mpsc::Receiver<Order>,
}

/// Our ends of a process's descriptors.
struct Ends {
    stdin: Option<AsyncFd<OwnedFd>>,
    outputs: Vec<(u32, AsyncFd<OwnedFd>)>,
}

/// The client is gone.
struct Gone;

impl One {
    async fn run(
        mut self,
        container: &Container,
        process: Process,
        fds: &[u32],
        is_terminal: bool,
    ) -> Result<(), Gone> {
        let begun = begin(container, process, fds, is_terminal).await;
        self.say(Input::Started(StartedMessage {})).await?;
        let exit = match begun {
            Ok((mut running, ends)) => self.accompany(&mut running, ends).await?,
            Err(error) => Err(error),
        };
        for fd in fds.iter().filter(|fd| **fd > 0) {
            let end = FdMessage {
                fd: *fd,
                eof: true,
                data: Bytes::new(),
            };
            self.say(Input::File(end)).await?;
        }
        self.say(Input::Exit(exit_message(exit))).await?;
        self.say(Input::Done(DoneMessage {})).await
    }

    /// Carries data and orders until the process has ended and its output is sent.
    async fn accompany(
        &mut self,
        running: &mut Running,
        ends: Ends,
    ) -> Result<Result<sandbox::Exit, OpError>, Gone> {
        let ended = CancellationToken::new();
        let (id, answers) = (self.id.clone(), self.answers.clone());
        let outputs = futures_util::future::try_join_all(
            ends.outputs
                .into_iter()
                .map(|(fd, from)| send(&id, fd, from, &answers, &ended)),
        );
        let feeding = feed(ends.stdin, &mut self.food);
        let orders = &mut self.orders;
        let waiting = async {
            loop {
                tokio::select! {
                    exit = running.wait() => {
                        ended.cancel();
                        return exit;
                    }
                    Some(order) = orders.recv() => obey(running, &order),
                }
            }
        };
        let both = async { tokio::join!(waiting, outputs) };
        tokio::pin!(both, feeding);
        let mut is_fed = false;
        let (exit, sent) = loop {
            tokio::select! {
                done = &mut both => break done,
                () = &mut feeding, if !is_fed => is_fed = true,
            }
        };
        sent?;
        Ok(exit)
    }

    async fn say(&self, input: Input) -> Result<(), Gone> {
        say(&self.answers, &self.id, input).await
    }
}

async fn say(answers: &mpsc::Sender<Answer>, id: &str, input: Input) -> Result<(), Gone> {
    let message = ExecMessage {
        process_id: id.to_owned(),
        input: Some(input),
    };
    answers.send(Ok(message)).await.map_err(|_| Gone)
}

/// Starts a process with the descriptors that were asked for; others read nothing and write nowhere.
async fn begin(
    container: &Container,
    process: Process,
    fds: &[u32],
    is_terminal: bool,
) -> Result<(Running, Ends), OpError> {
    if is_terminal {
        let running = container.start(process, Stdio::Terminal(Size::default())).await?;
        let terminal = running
            .terminal()
            .ok_or_else(|| OpError::internal("a process without its terminal"))?;
        let end = || {
            let copy = terminal.try_clone().map_err(OpError::environment)?;
            ours(copy).map_err(OpError::environment)
        };
        let ends = Ends {
            stdin: fds.contains(&0).then(end).transpose()?,
            outputs: vec![(1, end()?)],
        };
        return Ok((running, ends));
    }
    let (stdio, ends) = pipes(fds).map_err(OpError::environment)?;
    Ok((container.start(process, stdio).await?, ends))
}

fn pipes(fds: &[u32]) -> io::Result<(Stdio, Ends)> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let nothing = || std::fs::File::options().read(true).write(true).open("/dev/null");
    let mut ends = Ends {
        stdin: None,
        outputs: Vec::new(),
    };
    let stdin = if fds.contains(&0) {
        let (read, write) = pipe()?;
        ends.stdin = Some(ours(write)?);
        read
    } else {
        nothing()?.into()
    };
    let mut output = |fd| {
        if !fds.contains(&fd) {
            return Ok::<_, io::Error>(nothing()?.into());
        }
        let (read, write) = pipe()?;
        ends.outputs.push((fd, ours(read)?));
        Ok(write)
    };
    let (stdout, stderr) = (output(1)?, output(2)?);
    let stdio = Stdio::Descriptors {
        stdin,
        stdout,
        stderr,
    };
    Ok((stdio, ends))
}

/// An end that is waited for.
#[expect(
    deprecated,
    reason = "its replacement is unsafe for descriptors that may change hands; an owned one does not"
)]
fn ours(end: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&end, true)?;
    AsyncFd::new(end)
}

/// Writes what the client sends into a process; ends when either has no more interest.
async fn feed(into: Option<AsyncFd<OwnedFd>>, food: &mut mpsc::Receiver<Bytes>) {
    let Some(into) = into else {
        return;
    };
    while let Some(mut data) = food.recv().await {
        while !data.is_empty() {
            let wrote = into
                .async_io(tokio::io::Interest::WRITABLE, |fd| {
                    Ok(rustix::io::write(fd, &data)?)
                })
                .await;
            match wrote {
                Ok(count) => drop(data.split_to(count)),
                // It reads no more; what is still sent to it is dropped with the channel.
                Err(_) => return,
            }
        }
    }
}

/// Sends what a process writes, until its end, or until it has ended and nothing is left.
async fn send(
    id: &str,
    fd: u32,
    from: AsyncFd<OwnedFd>,
    answers: &mpsc::Sender<Answer>,
    ended: &CancellationToken,
) -> Result<(), Gone> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = from.async_io(tokio::io::Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)) => read,
            () = ended.cancelled() => rustix::io::read(from.get_ref(), &mut buffer).map_err(io::Error::from),
        };
        // EAGAIN: nothing left; EIO: the last process in a terminal has closed it.
        let count = read.unwrap_or(0);
        if count == 0 {
            return Ok(());
        }
        let data = Bytes::copy_from_slice(&buffer[..count]);
        say(answers, id, Input::File(FdMessage { fd, eof: false, data })).await?;
    }
}

fn obey(running: &Running, order: &Order) {
    let done = match order {
        Order::Signal(number) => running.signal(*number),
        Order::Resize(size) => running
            .terminal()
            .map_or(Ok(()), |terminal| terminal.resize(*size)),
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a process of a frontend did not take an order");
    }
}

fn process_of(init: &InitMessage) -> Result<Process, Status> {
    let invalid = |reason: String| Status::invalid_argument(format!("process: {reason}"));
    let meta = init.meta.clone().unwrap_or_default();
    let security = match llb::proto::SecurityMode::try_from(init.security) {
        Ok(llb::proto::SecurityMode::Sandbox) => SecurityMode::Sandbox,
        Ok(llb::proto::SecurityMode::Insecure) => SecurityMode::Insecure,
        Err(_) => return Err(invalid(format!("unknown security mode {}", init.security))),
    };
    if let Some(fd) = init.fds.iter().find(|fd| **fd > 2) {
        return Err(invalid(format!("descriptor {fd} is none of 0, 1 and 2")));
    }
    let secret_env = init.secretenv.iter().map(|secret| SecretEnv {
        id: secret.id.clone(),
        name: secret.name.clone(),
        optional: secret.optional,
    });
    Ok(Process {
        meta: ExecMeta::of_process(meta).map_err(invalid)?,
        security,
        secret_env: secret_env.collect(),
    })
}

fn exit_message(exit: Result<sandbox::Exit, OpError>) -> ExitMessage {
    let error = |message: String| {
        Some(api::rpc::Status {
            code: Code::Unknown.into(),
            message,
            details: Vec::new(),
        })
    };
    match exit {
        Ok(exit) => {
            let code = u32::try_from(exit.status.code()).unwrap_or(UNKNOWN_EXIT);
            let reason = match exit.is_out_of_memory {
                true => format!("exit code: {code}: out of memory"),
                false => format!("exit code: {code}"),
            };
            ExitMessage {
                code,
                error: if code == 0 { None } else { error(reason) },
            }
        }
        Err(reason) => ExitMessage {
            code: UNKNOWN_EXIT,
            error: error(reason.to_string()),
        },
    }
}

fn size_of(size: &ResizeMessage) -> Size {
    let clamp = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    Size {
        rows: clamp(size.rows),
        columns: clamp(size.cols),
    }
}

/// The number of a signal by its name without `SIG`, as clients send it.
fn number_of(name: &str) -> Option<i32> {
    use rustix::process::Signal;
    let signal = match name {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "ILL" => Signal::ILL,
        "TRAP" => Signal::TRAP,
        "ABRT" | "IOT" => Signal::ABORT,
        "BUS" => Signal::BUS,
        "FPE" => Signal::FPE,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        "SEGV" => Signal::SEGV,
        "USR2" => Signal::USR2,
        "PIPE" => Signal::PIPE,
        "ALRM" => Signal::ALARM,
        "TERM" => Signal::TERM,
        "CHLD" | "CLD" => Signal::CHILD,
        "CONT" => Signal::CONT,
        "STOP" => Signal::STOP,
        "TSTP" => Signal::TSTP,
        "TTIN" => Signal::TTIN,
        "TTOU" => Signal::TTOU,
        "URG" => Signal::URG,
        "XCPU" => Signal::XCPU,
        "XFSZ" => Signal::XFSZ,
        "VTALRM" => Signal::VTALARM,
        "PROF" => Signal::PROF,
        "WINCH" => Signal::WINCH,
        "IO" | "POLL" => Signal::IO,
        "PWR" => Signal::POWER,
        "SYS" => Signal::SYS,
        _ => return None,
    };
    Some(signal.as_raw())
}
