//! How a daemon ends while it builds: asked once, asked twice, killed. No clock decides anything here: what is waited for is
//! what the daemon, the kernel or a build says.
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod support;

use api::control::{BuildHistoryRequest, ListWorkersRequest, SolveRequest, SolveResponse, StatusRequest};
use api::gateway::{self, PingRequest, ReturnRequest};
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use support::{Client, Daemon, Session, context, of, running};
use tonic::{Code, Response, Status};

/// Whether steps can be run here.
fn can_run() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/bin/busybox").exists();
    if !can {
        eprintln!("skipped: needs root and a static busybox");
    }
    can
}

/// A daemon and what it tells its service manager.
struct Told {
    daemon: Daemon,
    manager: UnixDatagram,
}

impl Told {
    fn start(folder: &Path) -> Told {
        let socket = folder.join("notify.sock");
        let manager = UnixDatagram::bind(&socket).expect("bound");
        let daemon = Daemon::start_as(folder, |command| {
            command.env("NOTIFY_SOCKET", &socket);
            command.args(["--drain-timeout", "1h"]);
        });
        let told = Told { daemon, manager };
        told.expect("READY=1");
        told
    }

    /// The next thing it says begins so.
    fn expect(&self, beginning: &str) {
        let mut text = [0; 256];
        let length = self.manager.recv(&mut text).expect("told");
        let said = String::from_utf8_lossy(&text[..length]).into_owned();
        assert!(said.starts_with(beginning), "{said}");
    }
}

type Solving = tokio::task::JoinHandle<Result<Response<SolveResponse>, Status>>;

/// A build that waits for its client's frontend.
async fn open(client: &Client, id: &str, folder: &Path) -> (Session, Solving) {
    let session = format!("{id}-session");
    let dirs = [("context", folder), ("dockerfile", folder)];
    let held = client.session(&session, &dirs, None).await;
    let request = SolveRequest {
        r#ref: id.into(),
        session,
        ..SolveRequest::default()
    };
    let mut control = client.control();
    let solving = tokio::spawn(async move { control.solve(request).await });
    client
        .bridge()
        .ping(of(id, PingRequest::default()))
        .await
        .expect("the build is known");
    (held, solving)
}

fn asked() -> gateway::SolveRequest {
    gateway::SolveRequest {
        frontend: "dockerfile.v0".into(),
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: true,
        ..gateway::SolveRequest::default()
    }
}

/// The outcome of the only build in the history: error code and message, if it failed.
async fn failure(client: &Client, id: &str) -> Option<(i32, String)> {
    let asked = BuildHistoryRequest {
        r#ref: id.into(),
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let events = client
        .control()
        .listen_build_history(asked)
        .await
        .expect("answered");
    let event = events
        .into_inner()
        .next()
        .await
        .expect("it is kept")
        .expect("an event");
    let error = event.record.expect("a record").error;
    error.map(|error| (error.code, error.message))
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_once_it_lets_builds_end_and_takes_no_new_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut told = Told::start(folder.path());
    let client = told.daemon.client().await;
    let context = context(folder.path(), "FROM scratch\nCOPY file /copied\n");
    let (session, solving) = open(&client, "open", &context).await;
    told.daemon.terminate();
    told.expect("STOPPING=1");
    let refused = client
        .control()
        .solve(SolveRequest {
            r#ref: "late".into(),
            frontend: "dockerfile.v0".into(),
            ..SolveRequest::default()
        })
        .await
        .expect_err("it takes no new builds");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    // The one that was there goes on, as long as it takes.
    let solved = client
        .bridge()
        .solve(of("open", asked()))
        .await
        .expect("it builds");
    let returned = ReturnRequest {
        result: solved.into_inner().result,
        error: None,
    };
    client
        .bridge()
        .r#return(of("open", returned))
        .await
        .expect("taken");
    solving.await.expect("no panic").expect("it ends well");
    session.cancel();
    drop(client);
    assert!(told.daemon.wait(), "the daemon ends well");
    let again = Daemon::start(folder.path());
    assert_eq!(failure(&again.client().await, "open").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_twice_it_calls_builds_off() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut told = Told::start(folder.path());
    let client = told.daemon.client().await;
    let text = "FROM scratch\nCOPY busybox /busybox\nRUN [\"/busybox\", \"sleep\", \"8765\"]\n";
    let context = context(folder.path(), text);
    std::fs::copy("/bin/busybox", context.join("busybox")).expect("copied");
    let (session, solving) = open(&client, "open", &context).await;
    let mut bridge = client.bridge();
    let step = tokio::spawn(async move { bridge.solve(of("open", asked())).await });
    let mut shown = client
        .control()
        .status(StatusRequest { r#ref: "open".into() })
        .await
        .expect("the build is known")
        .into_inner();
    loop {
        let part = shown.next().await.expect("it goes on").expect("a part");
        let is_running = part
            .vertexes
            .iter()
            .any(|vertex| vertex.name.contains("sleep") && vertex.started.is_some());
        if is_running {
            break;
        }
    }
    told.daemon.terminate();
    told.expect("STOPPING=1");
    assert!(
        !solving.is_finished() && !step.is_finished(),
        "asked once it waits"
    );
    told.daemon.terminate();
    let ended = solving.await.expect("no panic").expect_err("it is called off");
    assert!(
        matches!(ended.code(), Code::Cancelled | Code::Unavailable),
        "{ended:?}"
    );
    step.await.expect("no panic").expect_err("its step as well");
    session.cancel();
    drop((client, shown));
    told.daemon.wait();
    assert_eq!(running("/busybox sleep 8765"), 0);
    let again = Daemon::start(folder.path());
    let (code, message) = failure(&again.client().await, "open").await.expect("it failed");
    assert!(message.contains("context canceled"), "{code} {message}");
}

/// A build with several steps; its own for each `word`.
fn several(folder: &Path, word: &str) -> PathBuf {
    let steps = (1..=5).map(|step| format!("RUN [\"/busybox\", \"touch\", \"/{word}-{step}\"]\n"));
    let text = format!(
        "FROM scratch\nCOPY busybox /busybox\n{}",
        steps.collect::<String>()
    );
    let context = context(folder, &text);
    std::fs::copy("/bin/busybox", context.join("busybox")).expect("copied");
    context
}

/// Follows a build until its `last` message, or its end; answers the steps it was told are finished.
async fn finished(client: &Client, id: &str, last: usize) -> BTreeSet<String> {
    let asked = StatusRequest { r#ref: id.into() };
    let shown = client
        .control()
        .status(asked)
        .await
        .expect("the build is known")
        .into_inner();
    let parts: Vec<_> = shown
        .take(last)
        .filter_map(|part| std::future::ready(part.ok()))
        .collect()
        .await;
    let vertices = parts.iter().flat_map(|part| &part.vertexes);
    let ended = vertices.filter(|vertex| vertex.completed.is_some() && vertex.error.is_empty());
    let steps = ended.map(|vertex| vertex.name.clone());
    steps
        .filter(|name| name.contains("RUN") || name.contains("COPY"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_has_all_finished_work_and_serves_at_once() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut daemon = Daemon::start(folder.path());
    let mut killed_in_the_middle = 0;
    for last in [1, 3, 4, 6, 7, 9, 12, usize::MAX] {
        let (first, second) = (format!("first-{last}"), format!("second-{last}"));
        let mut builds = Vec::new();
        let client = daemon.client().await;
        for id in [&first, &second] {
            let place = folder.path().join(id);
            let context = several(&place, id);
            let (session, solving) = open(&client, id, &context).await;
            let (mut bridge, build) = (client.bridge(), id.clone());
            let step = tokio::spawn(async move {
                let solved = bridge.solve(of(&build, asked())).await?;
                let returned = ReturnRequest {
                    result: solved.into_inner().result,
                    error: None,
                };
                bridge.r#return(of(&build, returned)).await
            });
            builds.push((session, solving, step));
        }
        let done = finished(&client, &first, last).await;
        daemon.kill();
        for (session, solving, step) in builds {
            killed_in_the_middle += usize::from(solving.await.expect("no panic").is_err());
            let _ = step.await.expect("no panic");
            session.cancel();
        }
        daemon = Daemon::start(folder.path());
        let client = daemon.client().await;
        let workers = client.control().list_workers(ListWorkersRequest::default()).await;
        assert_eq!(workers.expect("it serves").into_inner().record.len(), 1);
        for id in [&first, &second] {
            let context = folder.path().join(id).join("context");
            let built = client
                .build(&format!("{id}-again"), &context, Vec::new(), None)
                .await;
            built.answer.as_ref().expect("it builds");
            let cached: BTreeSet<String> = built
                .vertices()
                .into_iter()
                .filter_map(|(name, is_cached)| is_cached.then_some(name))
                .collect();
            if *id == first {
                let lost: Vec<_> = done.difference(&cached).collect();
                assert!(
                    lost.is_empty(),
                    "finished before it was killed, and done again: {lost:?}"
                );
            }
        }
    }
    assert!(killed_in_the_middle > 4, "no build was in the middle of anything");
    assert_eq!(running("/busybox touch"), 0);
}
