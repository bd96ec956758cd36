//! Frontends of a daemon: those in containers, and the containers that frontends start.
mod support;

use api::control::{Exporter, SolveRequest, SolveResponse};
use api::gateway::exec_message::Input;
use api::gateway::{
    self, FdMessage, InitMessage, NewContainerRequest, ReleaseContainerRequest, ResizeMessage,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::containers::{ID, Open, can_run};
use support::{Client, Daemon, context, directory, of, running};
use tonic::{Code, Status};

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_a_container_have_pipes_terminals_and_signals() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let open = Open::new(&daemon, folder.path()).await;
    open.create(open.request("c")).await.expect("it is made");
    let mut all = open.exec().await;
    all.start("first", "c", "cat; echo over >&2; exit 7", false).await;
    all.write("first", "hello\n", false).await;
    all.hears("first", "hello\n").await;
    // Beside it, one in a terminal.
    all.start("tty", "c", "echo up; read line; busybox stty size; exit 3", true)
        .await;
    all.hears("tty", "up").await;
    all.send("tty", Input::Resize(ResizeMessage { rows: 33, cols: 77 }))
        .await;
    all.write("tty", "go\n", false).await;
    assert_eq!(all.code("tty").await, 3);
    assert!(all.said("tty", 1).contains("33 77"), "{}", all.said("tty", 1));
    // One that is told to stop.
    let script = "trap 'exit 9' TERM; echo up; busybox sleep 1000 & wait";
    all.start("told", "c", script, false).await;
    all.hears("told", "up").await;
    all.signal("told", "TERM").await;
    assert_eq!(all.code("told").await, 9);
    // One whose program is not there.
    let mut init = InitMessage {
        container_id: "c".into(),
        fds: vec![1],
        ..InitMessage::default()
    };
    init.meta = Some(llb::proto::Meta {
        args: vec!["/nowhere".into()],
        ..<_>::default()
    });
    all.send("missing", Input::Init(init)).await;
    assert_ne!(all.code("missing").await, 0);
    // The first ends with its stdin, and all it wrote is here.
    all.write("first", "", true).await;
    assert_eq!(all.code("first").await, 7);
    assert_eq!(
        (all.said("first", 1), all.said("first", 2)),
        ("hello\n", "over\n")
    );
    let released = ReleaseContainerRequest {
        container_id: "c".into(),
    };
    let mut bridge = open.client.bridge();
    bridge
        .release_container(of(ID, released.clone()))
        .await
        .expect("released");
    let again = bridge.release_container(of(ID, released)).await;
    assert!(again.expect_err("it is gone").message().contains("not found"));
    open.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_end_with_their_stream_and_their_build() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let open = Open::new(&daemon, folder.path()).await;
    let wait = async |words: &str, wanted: usize| {
        for _ in 0..600 {
            if running(words) == wanted {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    };
    open.create(open.request("one")).await.expect("it is made");
    open.create(open.request("two")).await.expect("it is made");
    let (one, two) = (open.exec().await, open.exec().await);
    one.start("p", "one", "exec busybox sleep 7654", false).await;
    two.start("p", "two", "exec busybox sleep 7655", false).await;
    assert!(
        wait("sleep 7654", 1).await && wait("sleep 7655", 1).await,
        "they run"
    );
    drop(one);
    assert!(wait("sleep 7654", 0).await, "it ends with its stream");
    assert_eq!(running("sleep 7655"), 1, "the other does not");
    open.end().await;
    assert!(wait("sleep 7655", 0).await, "it ends with its build");
    drop(two);
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_cannot_be_are_refused_by_name() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let open = Open::new(&daemon, folder.path()).await;
    let mut requests = Vec::new();
    let mut wrong = |code, text, change: fn(&mut NewContainerRequest)| {
        let mut request = open.request("wrong");
        change(&mut request);
        requests.push((code, text, request));
    };
    let invalid = Code::InvalidArgument;
    wrong(invalid, "0 mounts at /", |request| request.mounts.clear());
    wrong(invalid, "2 mounts at /", |request| {
        request.mounts.push(request.mounts[0].clone())
    });
    wrong(Code::NotFound, "failed to find ref nothing", |request| {
        request.mounts[0].result_id = "nothing".into();
    });
    wrong(invalid, "unknown network mode 9", |request| request.network = 9);
    wrong(invalid, "unknown type 77", |request| {
        let mount = llb::proto::Mount {
            dest: "/x".into(),
            mount_type: 77,
            ..<_>::default()
        };
        request.mounts.push(mount);
    });
    wrong(Code::Unknown, "network.host", |request| {
        request.network = llb::proto::NetMode::Host.into();
    });
    for (code, text, request) in requests {
        let status = open.create(request).await.expect_err(text);
        assert_eq!(status.code(), code, "{}", status.message());
        assert!(status.message().contains(text), "{text}: {}", status.message());
    }
    open.create(open.request("twice")).await.expect("it is made");
    let status = open.create(open.request("twice")).await.expect_err("it is there");
    assert_eq!(status.code(), Code::AlreadyExists);

    let init = |container: &str, fds: Vec<u32>, args: Vec<String>| {
        Input::Init(InitMessage {
            container_id: container.into(),
            fds,
            meta: Some(llb::proto::Meta {
                args,
                ..<_>::default()
            }),
            ..InitMessage::default()
        })
    };
    let sh = || vec!["/bin/sh".to_owned()];
    let messages = [
        ("p", Code::NotFound, "\"none\"", init("none", vec![], sh())),
        ("p", invalid, "without arguments", init("twice", vec![], vec![])),
        ("p", invalid, "descriptor 5", init("twice", vec![5], sh())),
        ("", invalid, "ProcessID required", init("twice", vec![], sh())),
        (
            "p",
            Code::NotFound,
            "IO for process \"p\"",
            Input::Resize(ResizeMessage::default()),
        ),
        (
            "p",
            Code::NotFound,
            "IO for process \"p\"",
            Input::File(FdMessage::default()),
        ),
        (
            "p",
            invalid,
            "no client sends",
            Input::Done(gateway::DoneMessage {}),
        ),
    ];
    for (process, code, text, message) in messages {
        let mut stream = open.exec().await;
        stream.send(process, message).await;
        let status = stream.next().await.expect_err(text);
        assert_eq!(status.code(), code, "{}", status.message());
        assert!(status.message().contains(text), "{text}: {}", status.message());
    }
    let mut stream = open.exec().await;
    stream.start("p", "twice", "echo up; cat", false).await;
    stream.hears("p", "up").await;
    stream.signal("p", "NOSUCH").await;
    let status = loop {
        if let Err(status) = stream.next().await {
            break status;
        }
    };
    assert!(
        status.message().contains("Unknown signal NOSUCH"),
        "{}",
        status.message()
    );
    open.end().await;
}

/// The example frontend.
fn frontend_program() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_builder"))
        .parent()
        .expect("it is in a folder");
    folder.join("examples/frontend")
}

/// Copies a program with the libraries it is linked to.
fn with_libraries(program: &Path, root: &Path) {
    let said = Command::new("ldd")
        .arg(program)
        .output()
        .expect("there is an ldd");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    let unique: BTreeSet<&str> = libraries.collect();
    for library in unique {
        let place = root.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().expect("it is in a folder")).expect("made");
        std::fs::copy(library, place).expect("copied");
    }
    std::fs::copy(program, root.join("frontend")).expect("copied");
}

/// Builds with `dockerfile.v0` and these attributes.
async fn build(
    client: &Client,
    id: &str,
    context: &Path,
    attributes: &[(&str, &str)],
    exporter: Exporter,
    place: Option<session::provider::Place>,
) -> Result<SolveResponse, Status> {
    let session = format!("session-{id}");
    let dirs = [("context", context), ("dockerfile", context)];
    let stop = client.session(&session, &dirs, place).await;
    let texts = attributes
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let request = SolveRequest {
        r#ref: id.into(),
        session,
        frontend: "dockerfile.v0".into(),
        frontend_attrs: texts.collect(),
        exporters: vec![exporter],
        ..SolveRequest::default()
    };
    let answer = client.control().solve(request).await;
    stop.settle().await;
    stop.cancel();
    answer.map(tonic::Response::into_inner)
}

fn exporter(kind: &str, attributes: &[(&str, &str)]) -> Exporter {
    let texts = attributes
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Exporter {
        r#type: kind.into(),
        attrs: texts.collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syntax_line_runs_the_image_it_names() {
    if !can_run() {
        return;
    }
    assert!(
        frontend_program().exists(),
        "cargo build -p builder --example frontend makes the frontend of this test"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let image = folder.path().join("image");
    std::fs::create_dir_all(image.join("root")).expect("made");
    with_libraries(&frontend_program(), &image.join("root"));
    std::fs::write(
        image.join("Dockerfile"),
        "FROM scratch\nCOPY root /\nENTRYPOINT [\"/frontend\"]\nLABEL moby.buildkit.frontend.network.none=true\n",
    )
    .expect("written");
    let stored = exporter("image", &[("name", "localhost:1/our/frontend:1")]);
    build(&client, "image", &image, &[], stored, None)
        .await
        .expect("the frontend's image is built");

    let text = "# syntax=localhost:1/our/frontend:1\nFROM scratch\nCOPY file /copied\n";
    let context = context(folder.path(), text);
    let out = folder.path().join("out");
    let place = || Some(directory(&out));
    let answer = build(&client, "uses", &context, &[], exporter("local", &[]), place())
        .await
        .expect("the frontend answers");
    assert_eq!(std::fs::read(out.join("copied")).expect("sent"), b"content\n");
    let said = |key: &str| answer.exporter_response.get(key).map(String::as_str);
    assert_eq!(said("frontend.source"), Some("localhost:1/our/frontend:1"));
    assert_eq!(said("frontend.read"), Some("content\n"));

    let wrong = [
        (
            "fail",
            Code::InvalidArgument,
            "nothing here is to this frontend's taste",
        ),
        (
            "exit",
            Code::Unknown,
            "exit code: 3: this frontend has had enough",
        ),
        ("silent", Code::Unknown, "ended without a result"),
    ];
    for (mode, code, text) in wrong {
        let attributes = [("build-arg:mode", mode)];
        let answer = build(
            &client,
            mode,
            &context,
            &attributes,
            exporter("local", &[]),
            place(),
        )
        .await;
        let status = answer.expect_err(mode);
        assert_eq!(status.code(), code, "{mode}: {}", status.message());
        assert!(status.message().contains(text), "{mode}: {}", status.message());
    }
    // Subrequests go to the frontend the file names; this one passes them on to the one that is built in.
    let attributes = [("requestid", "frontend.nosuch")];
    let answer = build(
        &client,
        "sub",
        &context,
        &attributes,
        exporter("local", &[]),
        place(),
    )
    .await;
    let status = answer.expect_err("nobody has it");
    assert!(
        status.message().contains("our/frontend:1"),
        "{}",
        status.message()
    );
    assert!(
        status.message().contains("unsupported request"),
        "{}",
        status.message()
    );
    let attributes = [("frontend.caps", "moby.buildkit.frontend.subrequests")];
    let answer = build(
        &client,
        "caps",
        &context,
        &attributes,
        exporter("local", &[]),
        place(),
    )
    .await;
    let status = answer.expect_err("it does not say that it can");
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("moby.buildkit.frontend.subrequests"));
}

#[test]
fn a_syntax_line_runs_the_image_it_names_without_a_daemon_too() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    std::fs::create_dir_all(image.join("root")).expect("made");
    with_libraries(&frontend_program(), &image.join("root"));
    std::fs::write(
        image.join("Dockerfile"),
        "FROM scratch\nCOPY root /\nENTRYPOINT [\"/frontend\"]\nLABEL moby.buildkit.frontend.network.none=true\n",
    )
    .expect("written");
    let builder = |arguments: &[&str], context: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_builder"));
        command.arg("--root").arg(folder.path().join("root"));
        let ran = command.args(arguments).arg(context).output().expect("it runs");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        (ran.status.success(), said)
    };
    let (is_fine, said) = builder(&["build", "-t", "localhost:1/our/frontend:1"], &image);
    assert!(is_fine, "{said}");
    let text = "# syntax=localhost:1/our/frontend:1\nFROM scratch\nCOPY file /copied\n";
    let context = context(folder.path(), text);
    let out = folder.path().join("out");
    let output = format!("type=local,dest={}", out.display());
    let (is_fine, said) = builder(&["build", "-o", &output], &context);
    assert!(is_fine, "{said}");
    assert_eq!(std::fs::read(out.join("copied")).expect("written"), b"content\n");
    let (is_fine, said) = builder(&["build", "--build-arg", "mode=fail", "-o", &output], &context);
    assert!(
        !is_fine && said.contains("nothing here is to this frontend's taste"),
        "{said}"
    );
    // What was tried at first is no build.
    let listed = Command::new(env!("CARGO_BIN_EXE_builder"))
        .arg("--root")
        .arg(folder.path().join("root"))
        .args(["history", "ls"])
        .output()
        .expect("it runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(listed.lines().count(), 1 + 3, "{listed}");
}

/// Serves one file with a time, whatever is asked for; gives the address.
fn one_file() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = format!("http://{}/some/file.txt", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(&stream));
            while lines
                .next()
                .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
            {}
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\
                          Last-Modified: Sun, 13 Sep 2020 12:26:40 GMT\r\n\r\nhi";
            // Whoever hangs up early has seen enough.
            let _gone = std::io::Write::write_all(&mut &stream, answer.as_bytes());
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_of_a_file_is_told_and_of_other_sources_refused_by_name() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let open = Open::new(&daemon, folder.path()).await;
    let ask = async |identifier: &str| {
        let request = gateway::ResolveSourceMetaRequest {
            source: Some(llb::proto::SourceOp {
                identifier: identifier.into(),
                ..<_>::default()
            }),
            ..<_>::default()
        };
        open.client.bridge().resolve_source_meta(of(ID, request)).await
    };
    let found = ask(&one_file()).await.expect("it is found").into_inner();
    let http = found.http.expect("of a file");
    assert_eq!(http.filename, "file.txt");
    assert_eq!(http.checksum, oci::Digest::of(b"hi").to_string());
    assert_eq!(http.last_modified.map(|time| time.seconds), Some(1_600_000_000));
    let refused = ask("local://context").await.expect_err("it has no metadata");
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("local source"), "{refused}");
    let failed = ask("http://127.0.0.1:1/x").await.expect_err("nobody is there");
    assert!(failed.message().contains("http://127.0.0.1:1/x"), "{failed}");
    open.end().await;
}
