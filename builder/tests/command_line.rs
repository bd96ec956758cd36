//! The program's own words: help, versions, refusals. Also what makes `cargo test` build the program for the crate `tests`.
mod support;

use std::process::{Command, Output};
use support::Daemon;

fn builder(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_builder"))
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_names_every_flag_people_know_from_buildx() {
    let output = builder(&["build", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for flag in [
        "--tag",
        "--file",
        "--target",
        "--build-arg",
        "--build-context",
        "--secret",
        "--ssh",
        "--no-cache",
        "--no-cache-filter",
        "--pull",
        "--platform",
        "--label",
        "--annotation",
        "--add-host",
        "--network",
        "--shm-size",
        "--ulimit",
        "--cgroup-parent",
        "--progress",
        "--quiet",
        "--output",
        "--push",
        "--load",
        "--iidfile",
        "--metadata-file",
        "--explain",
        "--call",
        "--check",
        "--oci-runtime",
    ] {
        assert!(help.contains(flag), "{flag} is not in --help:\n{help}");
    }
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    for flag in [
        "--cache-to=type=gha",
        "--cache-from=type=s3,bucket=x",
        "--policy=x",
    ] {
        let output = builder(&["build", flag, "."]);
        assert_ne!(output.status.code(), Some(0), "{flag} was accepted");
        let name = flag.split('=').next().unwrap_or(flag);
        assert!(
            text(&output.stderr).contains(name),
            "{flag}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_daemon_that_is_not_there_is_named() {
    for args in [
        &[
            "build",
            "--addr=unix:///nonexistent/b.sock",
            "https://example.com/c.git",
        ][..],
        &["du", "--addr=unix:///nonexistent/b.sock"],
        &["prune", "--force", "--addr=unix:///nonexistent/b.sock"],
    ] {
        let output = builder(args);
        assert_eq!(
            output.status.code(),
            Some(3),
            "{args:?}: {}",
            text(&output.stderr)
        );
        let error = text(&output.stderr);
        assert!(error.contains("connect to unix:///nonexistent/b.sock"), "{error}");
    }
    let output = builder(&["build", "--addr=nowhere", "."]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let output = builder(&["build", "--addr=unix:///nonexistent/b.sock", "--explain", "."]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("--explain"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn commands_that_do_not_exist_are_refused_with_a_suggestion() {
    let output = builder(&["imags"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("images"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_dockerfile_is_fetched_from_its_address() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it has one");
    // Serves one text at every path but one, until the test ends.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let is_missing = text(&request[..read]).contains("/missing");
            let body = "FROM scratch\nCOPY file /from-address\n";
            let answer = match is_missing {
                true => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
                false => format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                ),
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let context = folder.path().join("context");
    std::fs::create_dir(&context).expect("made");
    std::fs::write(context.join("file"), "content").expect("written");
    let daemon = Daemon::start(folder.path());
    let socket = format!("unix://{}", daemon.socket.display());
    for door in [None, Some(socket.as_str())] {
        fetched_and_built(folder.path(), &format!("http://{address}"), door);
    }
}

fn fetched_and_built(folder: &std::path::Path, address: &str, door: Option<&str>) {
    let context = folder.join("context");
    let out = folder.join(if door.is_some() { "out-daemon" } else { "out" });
    let build = |path: &str| {
        let root = folder.join("own");
        let file = format!("{address}/{path}");
        let (root, context, out) = (
            root.display().to_string(),
            context.display().to_string(),
            out.display().to_string(),
        );
        let mut args = vec!["--root", &root, "build", "-f", &file, "-o", &out];
        args.extend(door.iter().flat_map(|door| ["--addr", door]));
        args.push(&context);
        builder(&args)
    };
    let built = build("some/Dockerfile");
    assert_eq!(built.status.code(), Some(0), "{}", text(&built.stderr));
    assert_eq!(
        std::fs::read(out.join("from-address")).expect("built"),
        b"content"
    );
    let missing = build("missing");
    assert_ne!(missing.status.code(), Some(0));
    let said = text(&missing.stderr);
    assert!(said.contains("/missing") && said.contains("404"), "{said}");
}

#[test]
fn builds_are_kept_in_the_history() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root").display().to_string();
    let context = folder.path().join("shop");
    std::fs::create_dir(&context).expect("made");
    std::fs::write(context.join("file"), "content").expect("written");
    let context = context.display().to_string();
    let run = |args: &[&str]| builder(&[&["--root", &root], args].concat());
    let said = |args: &[&str]| {
        let output = run(args);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{args:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    };
    let build = |dockerfile: &str| {
        std::fs::write(format!("{context}/Dockerfile"), dockerfile).expect("written");
        run(&["build", "-q", &context]).status.code()
    };
    assert_eq!(build("FROM scratch\nCOPY file /good\n"), Some(0));
    assert_ne!(build("FROM scratch\nCOPY nowhere /bad\n"), Some(0));
    let listed = said(&["history", "ls"]);
    let rows: Vec<&str> = listed.lines().skip(1).collect();
    assert_eq!(rows.len(), 2, "{listed}");
    assert!(rows[0].contains("shop") && rows[0].contains("Error"), "{listed}");
    assert!(rows[1].contains("Completed"), "{listed}");
    assert_eq!(
        said(&["history", "ls", "--filter", "status=completed"])
            .lines()
            .count(),
        2
    );
    assert!(said(&["history", "logs", "^1"]).contains("COPY file /good"));
    assert!(said(&["history", "timing", "^1"]).contains("critical path"));
    assert!(said(&["history", "timing", "--html", "-", "^1"]).contains("COPY file /good"));
    let record: serde_json::Value = serde_json::from_str(&said(&["history", "inspect"])).expect("JSON");
    assert!(
        record["error"]["message"]
            .as_str()
            .is_some_and(|why| why.contains("nowhere")),
        "{record}"
    );
    assert_eq!(said(&["history", "rm", "--all"]).lines().count(), 2);
    assert_eq!(said(&["history", "ls"]).lines().count(), 1);
    assert_ne!(run(&["history", "logs"]).status.code(), Some(0));
}

#[test]
fn pin_lists_what_is_not_pinned_and_leaves_the_rest_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let digest = format!("sha256:{}", "0".repeat(64));
    let file = folder.path().join("Dockerfile");
    let path = folder.path().display().to_string();
    let dockerfile = format!(
        "ARG V=1\nFROM scratch AS a\nFROM a\nFROM x:$V\nFROM ctx\nFROM y:1@{digest}\nFROM --platform=linux/arm64 \\\n y:2\n"
    );
    std::fs::write(&file, &dockerfile).expect("written");
    let output = builder(&["pin", "--check", "--build-context", "ctx=/", &path]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("{}:8: y:2 is not pinned\n", file.display());
    assert_eq!(text(&output.stdout), expected);
    // Nothing is left to ask a registry for.
    std::fs::write(&file, dockerfile.replace("y:2", &format!("y@{digest}"))).expect("written");
    for flag in ["--check", "--dry-run", "--build-context=none"] {
        let output = builder(&["pin", flag, "--build-context=ctx", &path]);
        assert_eq!(output.status.code(), Some(0), "{flag}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "{flag}");
    }
    std::fs::write(&file, "FROM a\nNONSENSE\n").expect("written");
    let output = builder(&["pin", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("Dockerfile:2: "),
        "{}",
        text(&output.stderr)
    );
}
