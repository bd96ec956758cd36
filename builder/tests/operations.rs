//! What those who run a daemon see of it: its configuration, metrics, introspection, log, and the service manager's socket.
mod support;

use api::control::SolveRequest;
use api::gateway::{self, ReturnRequest};
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use support::{Daemon, context, directory, local, of};

/// The answer to GET: status and body.
fn get(socket: &Path, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).expect("it listens");
    let asked = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(asked.as_bytes()).expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.expect("a status"), body.to_owned())
}

/// The value of one line of a page of metrics.
fn value(page: &str, name: &str) -> Option<f64> {
    page.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_introspection() {
    let folder = tempfile::tempdir().expect("a folder");
    let debug = folder.path().join("debug.sock");
    let address = format!("unix://{}", debug.display());
    let daemon = Daemon::start_as(folder.path(), |command| {
        command.args(["--debugaddr", &address]);
    });
    let context = context(folder.path(), "FROM scratch\nCOPY file /copied\n");
    for id in ["one", "two"] {
        let out = folder.path().join(id);
        let client = daemon.client().await;
        let built = client.build(id, &context, local(), Some(directory(&out))).await;
        built.answer.expect("it builds");
    }
    let (status, page) = get(&debug, "/metrics");
    assert_eq!(status, 200);
    for (name, expected) in [
        ("builder_builds_total{outcome=\"done\"}", 2.0),
        ("builder_builds_total{outcome=\"failed\"}", 0.0),
        ("builder_builds_running", 0.0),
        ("builder_build_seconds_count", 2.0),
        ("builder_steps_queued", 0.0),
        (
            "builder_rpc_total{method=\"/moby.buildkit.v1.Control/Solve\",code=\"Ok\"}",
            2.0,
        ),
    ] {
        assert_eq!(value(&page, name), Some(expected), "{name} in {page}");
    }
    for name in [
        "builder_steps_total{outcome=\"run\"}",
        "builder_steps_total{outcome=\"cached\"}",
        "builder_session_received_bytes_total",
        "builder_session_sent_bytes_total",
        "builder_store_bytes",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(
            value(&page, name).is_some_and(|value| value > 0.0),
            "{name} in {page}"
        );
    }
    assert_eq!(get(&debug, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(&debug, "/debug/builds"), (200, "[]\n".to_owned()));
    let (status, solver) = get(&debug, "/debug/solver");
    assert!(status == 200 && solver.contains("\"vertices\": 0"), "{solver}");
    for page in ["/debug/sessions", "/debug/contexts", "/debug/leases"] {
        assert_eq!(get(&debug, page).0, 200, "{page}");
    }
    let (status, why) = get(&debug, "/debug/pprof/heap");
    assert!(status == 501 && why.contains("/debug/pprof/heap"), "{why}");
    assert_eq!(get(&debug, "/nothing").0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let notify = folder.path().join("notify.sock");
    let manager = UnixDatagram::bind(&notify).expect("bound");
    let mut daemon = Daemon::start_as(folder.path(), |command| {
        command.env("NOTIFY_SOCKET", &notify);
    });
    let said = || {
        let mut text = [0; 256];
        let length = manager.recv(&mut text).expect("told");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    assert_eq!(said(), "READY=1");
    assert!(daemon.end());
    assert!(said().starts_with("STOPPING=1\n"));
}

/// Runs `serve` with this configuration file where it cannot begin; answers what it says.
fn refused(text: &str, flags: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("buildkitd.toml");
    std::fs::write(&file, text).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_builder"))
        .arg("--root")
        .arg(folder.path().join("root"))
        .args(["serve", "--addr", "unix:///proc/nowhere/s.sock", "--config"])
        .arg(&file)
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_configuration_that_cannot_be_obeyed_is_refused_by_name_and_line() {
    let said = refused("root = \"/x\"\n\n[worker.oci]\n  selinux = true\n", &[]);
    assert!(said.contains("line 4, column 13: worker.oci.selinux: "), "{said}");
}

#[test]
fn warnings_are_logged_as_objects() {
    let said = refused("typo = 1\n", &["--log-format=json"]);
    let first = said.lines().next().unwrap_or_default();
    let line: serde_json::Value = serde_json::from_str(first).expect("an object");
    assert_eq!(line["level"], "WARN");
    let message = line["message"].as_str().unwrap_or_default();
    assert!(
        message.ends_with("line 1, column 1: typo: no such key; it has no effect"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_build_is_shown_and_a_daemon_that_ends_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let debug = folder.path().join("debug.sock");
    let address = format!("unix://{}", debug.display());
    let notify = folder.path().join("notify.sock");
    let manager = UnixDatagram::bind(&notify).expect("bound");
    let mut daemon = Daemon::start_as(folder.path(), |command| {
        command.args(["--debugaddr", &address, "--drain-timeout", "1h"]);
        command.env("NOTIFY_SOCKET", &notify);
    });
    let told = || {
        let length = manager.recv(&mut [0; 256]).expect("told");
        assert!(length > 0);
    };
    told();
    let client = daemon.client().await;
    let context = context(folder.path(), "FROM scratch\nCOPY file /copied\n");
    let dirs: [(&str, &Path); 2] = [("context", &context), ("dockerfile", &context)];
    let session = client.session("shown-session", &dirs, None).await;
    let request = SolveRequest {
        r#ref: "shown".into(),
        session: "shown-session".into(),
        frontend_attrs: [("build-arg:TOKEN".to_owned(), "hidden".to_owned())].into(),
        ..SolveRequest::default()
    };
    let mut control = client.control();
    let solving = tokio::spawn(async move { control.solve(request).await });
    let asked = gateway::SolveRequest {
        frontend: "dockerfile.v0".into(),
        evaluate: true,
        ..gateway::SolveRequest::default()
    };
    let solved = client
        .bridge()
        .solve(of("shown", asked))
        .await
        .expect("it builds");
    let (status, page) = get(&debug, "/debug/builds");
    let builds: serde_json::Value = serde_json::from_str(&page).expect("JSON");
    assert_eq!(
        (status, builds.as_array().map(Vec::len)),
        (200, Some(1)),
        "{page}"
    );
    assert!(
        page.contains("\"shown\"") && page.contains("COPY file /copied"),
        "{page}"
    );
    assert!(!page.contains("hidden"), "{page}");
    assert!(get(&debug, "/debug/sessions").1.contains("shown-session"));
    assert!(get(&debug, "/metrics").1.contains("builder_builds_running 1\n"));
    daemon.terminate();
    told();
    assert_eq!(get(&debug, "/healthz"), (503, "shutting down\n".to_owned()));
    let returned = ReturnRequest {
        result: solved.into_inner().result,
        error: None,
    };
    client
        .bridge()
        .r#return(of("shown", returned))
        .await
        .expect("taken");
    solving.await.expect("no panic").expect("it ends well");
    session.cancel();
    drop(client);
    assert!(daemon.wait());
}

#[test]
fn a_daemon_is_asked_how_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let asked = |address: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_builder"))
            .args(["doctor", "--json", "--addr", address])
            .output()
            .expect("the program starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let findings = said
            .lines()
            .map(|line| serde_json::from_str(line).expect("an object"));
        (
            output.status.success(),
            findings.collect::<Vec<serde_json::Value>>(),
        )
    };
    let (is_well, findings) = asked(&format!("unix://{}", daemon.socket.display()));
    assert!(is_well, "{findings:?}");
    for subject in ["daemon", "store", "history"] {
        assert!(
            findings.iter().any(|finding| finding["subject"] == subject),
            "{subject} in {findings:?}"
        );
    }
    assert!(
        findings.iter().all(|finding| finding["state"] != "broken"),
        "{findings:?}"
    );
    let (is_well, findings) = asked(&format!("unix://{}/none.sock", folder.path().display()));
    assert!(!is_well && findings[0]["state"] == "broken", "{findings:?}");
}
