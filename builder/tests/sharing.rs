//! Builds of several clients at once: who gets a turn, and what becomes of a shared step when one of them goes.
mod support;

use api::control::{Exporter, SolveRequest, StatusRequest, Vertex};
use session::provider::Place;
use session::{LocalOptions, SecretSource};
use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use support::{Client, Daemon, connect, context, directory, local};

const SHELL: &str = "\"/busybox\", \"sh\", \"-c\"";

fn can_run() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/bin/busybox").exists()
}

/// A context with this Dockerfile and busybox in it.
fn with_busybox(folder: &Path, dockerfile: &str) -> PathBuf {
    std::fs::create_dir_all(folder).expect("made");
    let context = context(folder, dockerfile);
    std::fs::copy("/bin/busybox", context.join("busybox")).expect("copied");
    context
}

/// What one client asks for.
struct Asked {
    id: String,
    context: PathBuf,
    place: Place,
    secrets: BTreeMap<String, SecretSource>,
}

impl Asked {
    fn new(id: &str, context: &Path, out: &Path) -> Asked {
        Asked {
            id: id.to_owned(),
            context: context.to_owned(),
            place: directory(out),
            secrets: BTreeMap::new(),
        }
    }

    fn with_secret(mut self, source: SecretSource) -> Asked {
        self.secrets.insert("s".to_owned(), source);
        self
    }
}

/// Builds a Dockerfile by the daemon's frontend.
async fn build(client: &Client, asked: Asked) -> Result<(), tonic::Status> {
    let session = format!("session-{}", asked.id);
    let dirs = ["context", "dockerfile"].map(|name| (name.to_owned(), asked.context.clone()));
    let options = LocalOptions {
        dirs: dirs.into(),
        secrets: asked.secrets,
        ..LocalOptions::default()
    };
    let open = client
        .session_of(&session, options, BTreeMap::from([(0, asked.place)]))
        .await;
    let exporters: Vec<Exporter> = local();
    let request = SolveRequest {
        r#ref: asked.id,
        session,
        frontend: "dockerfile.v0".into(),
        exporters,
        ..SolveRequest::default()
    };
    let solved = client.control().solve(request).await;
    if solved.is_ok() {
        open.settle().await;
    }
    open.cancel();
    solved.map(drop)
}

/// Returns when a vertex of a build has begun whose name has these words.
async fn has_begun(daemon: &Daemon, id: &str, words: &str) {
    let client = daemon.client().await;
    let asked = StatusRequest { r#ref: id.to_owned() };
    let mut stream = client.control().status(asked).await.expect("known").into_inner();
    while let Some(part) = stream.message().await.expect("the stream lasts") {
        let is_meant = |vertex: &Vertex| vertex.name.contains(words) && vertex.started.is_some();
        if part.vertexes.iter().any(is_meant) {
            return;
        }
    }
    panic!("build {id} ended without a step {words:?}");
}

/// A client that can be made to vanish, with all its calls, as if its process were killed.
struct Vanishing(tokio::runtime::Runtime);

impl Vanishing {
    fn build(daemon: &Daemon, asked: Asked) -> Vanishing {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let socket = daemon.socket.clone();
        runtime.spawn(async move { build(&connect(socket).await, asked).await });
        Vanishing(runtime)
    }

    fn vanish(self) {
        self.0.shutdown_background();
    }
}

fn time(stamp: Option<&prost_types::Timestamp>) -> Option<SystemTime> {
    SystemTime::try_from(*stamp?).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_of_many_steps_does_not_starve_one_of_few() {
    if !can_run() {
        return;
    }
    const MANY: usize = 40;
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start_as(folder.path(), |command| {
        command.arg("--oci-max-parallelism=1");
    });
    let mut many = "FROM scratch AS base\nCOPY busybox /busybox\n".to_owned();
    for number in 0..MANY {
        many += &format!("FROM base AS s{number}\nRUN [{SHELL}, \"echo {number} > /made\"]\n");
    }
    many += "FROM scratch\n";
    for number in 0..MANY {
        many += &format!("COPY --from=s{number} /made /made{number}\n");
    }
    let few = format!(
        "FROM scratch\nCOPY busybox /busybox\nRUN [{SHELL}, \"echo few > /1\"]\nRUN [{SHELL}, \"cat /1 > /2\"]\n\
         RUN [{SHELL}, \"cat /2 > /3\"]\n"
    );
    let at = |name: &str| folder.path().join(name);
    let (many, few) = (with_busybox(&at("many"), &many), with_busybox(&at("few"), &few));
    let (first, second) = (daemon.client().await, daemon.client().await);
    let asked = Asked::new("many", &many, &at("out-many"));
    let watched = tokio::spawn(async move {
        let shown = first.watch("many");
        build(&first, asked).await.expect("it builds");
        shown.await.expect("no panic")
    });
    has_begun(&daemon, "many", "echo 1").await;
    let shown = second.watch("few");
    build(&second, Asked::new("few", &few, &at("out-few")))
        .await
        .expect("it builds");
    let times = |shown: &[api::control::StatusResponse]| -> BTreeMap<String, (SystemTime, SystemTime)> {
        let vertices = shown.iter().flat_map(|part| &part.vertexes);
        let runs = vertices.filter(|vertex| vertex.name.contains("RUN"));
        let both = runs.filter_map(|vertex| {
            let both = (time(vertex.started.as_ref())?, time(vertex.completed.as_ref())?);
            Some((vertex.name.clone(), both))
        });
        both.collect()
    };
    let of_few = times(&shown.await.expect("no panic"));
    let of_many = times(&watched.await.expect("no panic"));
    assert_eq!((of_few.len(), of_many.len()), (3, MANY));
    let from = of_few.values().map(|(started, _)| *started).min().expect("three");
    let to = of_few
        .values()
        .map(|(_, completed)| *completed)
        .max()
        .expect("three");
    let between = of_many
        .values()
        .filter(|(_, done)| (from..to).contains(done))
        .count();
    // By turns: one of the many for each of the few, and one that ran when they came.
    assert!(
        between <= 8,
        "{between} of {MANY} steps ran while the 3 waited: {of_few:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_does_not_stop_what_another_waits_for() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let step = "--mount=type=cache,target=/c";
    let dockerfile = format!(
        "FROM scratch\nCOPY busybox /busybox\nRUN {step} [{SHELL}, \"echo ran >> /c/n; /busybox sleep 1; /busybox cat /c/n > /n\"]\n"
    );
    let context = with_busybox(folder.path(), &dockerfile);
    let at = |name: &str| folder.path().join(name);
    let first = Vanishing::build(&daemon, Asked::new("first", &context, &at("out1")));
    has_begun(&daemon, "first", "RUN").await;
    let client = daemon.client().await;
    let asked = Asked::new("second", &context, &at("out2"));
    let second = tokio::spawn(async move { build(&client, asked).await });
    has_begun(&daemon, "second", "RUN").await;
    first.vanish();
    second.await.expect("no panic").expect("it builds");
    let ran = std::fs::read_to_string(at("out2/n")).expect("sent");
    assert_eq!(ran, "ran\n", "the step that ran went on, and was not begun again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_asks_the_next_client_for_what_the_first_did_not_live_to_give() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let at = |name: &str| folder.path().join(name);
    let dockerfile = format!(
        "FROM scratch\nCOPY busybox /busybox\nRUN --mount=type=secret,id=s,required [{SHELL}, \"/busybox cat /run/secrets/s > /s\"]\n"
    );
    let context = with_busybox(folder.path(), &dockerfile);
    // Whoever reads it waits for ever.
    let pipe = at("pipe");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .expect("made");
    let asked = Asked::new("first", &context, &at("out1")).with_secret(SecretSource::File(pipe.clone()));
    let first = Vanishing::build(&daemon, asked);
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits();
    let nonblocking = i32::try_from(nonblocking).expect("a flag");
    let mut options = std::fs::OpenOptions::new();
    let writer = loop {
        // Opened as soon as the first client reads.
        match options.write(true).custom_flags(nonblocking).open(&pipe) {
            Ok(writer) => break writer,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let client = daemon.client().await;
    let given = SecretSource::Value(session::Secret::from("given\n".to_owned()));
    let asked = Asked::new("second", &context, &at("out2")).with_secret(given);
    let second = tokio::spawn(async move { build(&client, asked).await });
    has_begun(&daemon, "second", "RUN").await;
    first.vanish();
    second.await.expect("no panic").expect("it builds");
    assert_eq!(std::fs::read(at("out2/s")).expect("sent"), b"given\n");
    drop(writer);
}
