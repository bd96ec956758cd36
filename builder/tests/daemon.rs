//! The daemon, asked over its socket in the orders in which BuildKit's clients ask.
mod support;

use api::content::ReadContentRequest;
use api::content::content_client::ContentClient;
use api::control::{BuildHistoryRequest, Exporter, ListWorkersRequest, SolveRequest};
use api::gateway::{self, PingRequest, ReadFileRequest, Ref, ReturnRequest, result};
use futures_util::StreamExt;
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use support::{Daemon, connect, context, directory, local, of, running};
use tonic::Code;

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
    let builds = (0..32).map(|number| {
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
    let results: std::collections::BTreeSet<_> = (0..32)
        .map(|number| {
            std::fs::read_to_string(folder.path().join(format!("out{number}/result"))).expect("sent")
        })
        .collect();
    assert_eq!(results.len(), 1, "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_nobody_can_ask_denies() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let context = context(folder.path(), "FROM scratch\nCOPY file /copied\n");
    let dirs = [("context", context.as_path()), ("dockerfile", context.as_path())];
    let stop = client.session("decider", &dirs, None).await;
    let request = SolveRequest {
        r#ref: "policed".into(),
        session: "decider".into(),
        frontend: "dockerfile.v0".into(),
        source_policy_session: "decider".into(),
        ..SolveRequest::default()
    };
    // This client offers no policy service: a policy that cannot be asked must not be dropped in silence.
    let status = client.control().solve(request).await.expect_err("denied");
    assert!(
        status.message().contains("not allowed by policy"),
        "{}",
        status.message()
    );
    stop.cancel();
}

/// A Go client garbles what arrives while it closes its session, so a build is not refused before greetings are exchanged.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_comes_after_the_greeting_of_the_session() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    // A session that never answers: the refusal comes, but not at once.
    let (_to_daemon, outgoing) = tokio::sync::mpsc::channel(1);
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut session = tonic::Request::new(outgoing);
    let id = "silent".parse().expect("plain text");
    session.metadata_mut().insert("x-docker-expose-session-uuid", id);
    let _messages = client.control().session(session).await.expect("a session");
    let refused = |session: &str| SolveRequest {
        r#ref: format!("of-{session}"),
        session: session.into(),
        entitlements: vec!["network.host".into()],
        ..SolveRequest::default()
    };
    let begun = std::time::Instant::now();
    let answer = client.control().solve(refused("silent")).await;
    assert_eq!(
        answer.expect_err("not allowed").message(),
        "network.host is not allowed"
    );
    assert!(begun.elapsed() > Duration::from_millis(300));
    // One that does is asked before.
    let session = client.session("speaking", &[], None).await;
    let answer = client.control().solve(refused("speaking")).await;
    assert_eq!(
        answer.expect_err("not allowed").message(),
        "network.host is not allowed"
    );
    session.cancel();
}
