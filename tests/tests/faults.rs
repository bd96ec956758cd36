//! What holds when things go wrong: killed at any moment, cancelled, two at once on one root.
use std::{
    fs,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};
use tests::{Image, Leftovers, Program, User, fixtures};

/// A build of several steps, some with processes, that ends with an image that can be compared.
const DOCKERFILE: &str = "FROM busybox AS a
WORKDIR /w
COPY f .
RUN for i in 1 2 3 4 5 6 7 8; do echo $i > n$i; done
RUN --mount=type=cache,target=/c cat f n* > all && cp all /c/
FROM busybox
COPY --from=a /w/all /all
RUN sha256sum /all > /sum && usleep 30000
RUN rm /all
";

fn place() -> (tempfile::TempDir, Vec<String>) {
    let place = tempfile::Builder::new()
        .prefix("builder-fault-")
        .tempdir()
        .expect("a temporary folder");
    fs::create_dir(place.path().join("context")).expect("made");
    fs::write(place.path().join("context/Dockerfile"), DOCKERFILE).expect("written");
    fs::write(place.path().join("context/f"), "x".repeat(100_000)).expect("written");
    let base = fixtures().join("bases/busybox");
    let args = [
        "build".to_owned(),
        "--progress=plain".to_owned(),
        format!("--build-context=busybox=oci-layout://{}", base.display()),
        "--build-arg=SOURCE_DATE_EPOCH=1700000000".to_owned(),
        "-o".to_owned(),
        format!(
            "type=oci,dest={},rewrite-timestamp=true",
            place.path().join("image.tar").display()
        ),
        place.path().join("context").display().to_string(),
    ];
    (place, args.to_vec())
}

fn digest_of(program: &Program, folder: &Path, args: &[String]) -> String {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    program.must(folder, &args).expect("the build succeeds");
    Image::open(&folder.join("image.tar")).expect("an image").digest
}

/// Waits until nothing of a killed builder is left, or says what is.
fn settled(root: &Path, before: &Leftovers) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let mut left = Leftovers::look(root).since(before);
        // Files aside are removed when the next build finds their owner dead.
        left.retain(|what| !what.starts_with("temporary file"));
        if left.is_empty() || begun.elapsed() > Duration::from_secs(10) {
            return left;
        }
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_build_killed_at_any_moment_changes_nothing_for_the_next() {
    let (clean, args) = place();
    let clean_root = clean.path().join("root");
    let expected = digest_of(&Program::new(&clean_root, User::Same), clean.path(), &args);
    let (place, args) = place();
    let root = place.path().join("root");
    let program = Program::new(&root, User::Same);
    let before = Leftovers::look(&root);
    for round in 0..24u64 {
        let given: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = program
            .command(&given)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        // Moments from before the store is open to after the last step.
        sleep(Duration::from_millis(round * 7));
        child.kill().expect("killed");
        child.wait().expect("collected");
        let left = settled(&root, &before);
        assert!(
            left.is_empty(),
            "killed after {} ms, the build left behind {left:?}",
            round * 7
        );
        if round % 6 == 5 {
            assert_eq!(
                digest_of(&program, place.path(), &args),
                expected,
                "after kill {round}"
            );
            let clean = Leftovers::look(&root).since(&before);
            assert!(
                clean.is_empty(),
                "the build after kill {round} left behind {clean:?}"
            );
            program
                .must(place.path(), &["prune", "-f", "--all"])
                .expect("prune works");
        }
    }
}

#[test]
fn a_cancelled_build_leaves_nothing_and_says_so() {
    let (place, mut args) = place();
    let root = place.path().join("root");
    fs::write(
        place.path().join("context/Dockerfile"),
        "FROM busybox\nRUN sleep 300 & sleep 301\n",
    )
    .expect("written");
    let program = Program::new(&root, User::Same);
    let before = Leftovers::look(&root);
    args.retain(|arg| arg != "-o" && !arg.starts_with("type=oci"));
    let given: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = program.command(&given);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().expect("the program starts");
    let pid = rustix::process::Pid::from_child(&child);
    let begun = Instant::now();
    while !is_running("sleep\u{0}301") {
        assert!(begun.elapsed() < Duration::from_secs(30), "the step never began");
        sleep(Duration::from_millis(10));
    }
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signalled");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        output.status.code(),
        Some(130),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let left = Leftovers::look(&root).since(&before);
    assert!(left.is_empty(), "the cancelled build left behind {left:?}");
    assert!(
        !is_running("sleep\u{0}300") && !is_running("sleep\u{0}301"),
        "a process of the step lives on"
    );
}

fn is_running(command: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    processes
        .map(|process| fs::read(process.path().join("cmdline")).unwrap_or_default())
        .any(|line| String::from_utf8_lossy(&line).contains(command))
}

#[test]
fn two_builds_at_once_on_one_root_both_succeed() {
    let (place, args) = place();
    let root = place.path().join("root");
    let program = Program::new(&root, User::Same);
    let args: Vec<String> = args
        .into_iter()
        .filter(|arg| arg != "-o" && !arg.starts_with("type=oci"))
        .collect();
    std::thread::scope(|scope| {
        let builds: Vec<_> = (0..4)
            .map(|number| {
                let (program, args) = (program.clone(), args.clone());
                let folder = place.path();
                scope.spawn(move || {
                    let name = format!("--tag=at-once:{number}");
                    let mut given: Vec<&str> = args.iter().map(String::as_str).collect();
                    given.insert(1, &name);
                    program.must(folder, &given).map(|_| ())
                })
            })
            .collect();
        for build in builds {
            build.join().expect("no panic").expect("each build succeeds");
        }
    });
    let listed = program.must(place.path(), &["images"]).expect("images lists");
    assert_eq!(listed.stdout.matches("at-once").count(), 4, "{}", listed.stdout);
}

#[test]
fn a_store_of_a_newer_version_is_refused_by_name() {
    let (place, args) = place();
    let root = place.path().join("root");
    let program = Program::new(&root, User::Same);
    digest_of(&program, place.path(), &args);
    let database = root.join("builder.db");
    let mut bytes = fs::read(&database).expect("the database");
    // user_version, big-endian, at byte 60 of an SQLite file.
    bytes[60..64].copy_from_slice(&999u32.to_be_bytes());
    for side in ["builder.db-wal", "builder.db-shm"] {
        let _ = fs::remove_file(root.join(side));
    }
    fs::write(&database, bytes).expect("written");
    let given: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = program.run(place.path(), &given, &[], b"").expect("it runs");
    assert_ne!(output.code, 0);
    assert!(output.stderr.contains("version 999"), "{}", output.stderr);
}
