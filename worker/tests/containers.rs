//! Containers as frontends ask for them: several processes in one, with pipes, a terminal, signals and an end.
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use cache::layer::TarLayerWriter;
use cache::{Cache, ImmutableRef, RecordInfo};
use llb::op::{ContentCache, ExecMeta, HostIp, Mount, MountKind, NetMode, SecurityMode};
use registry::{HostsConfig, NoCredentials, Registry};
use sandbox::{Size, Stdio};
use session::{LocalCaller, LocalOptions, SessionId};
use solver::progress::{Sink, VertexInfo};
use tree::{Entry, Kind, RootPath};
use worker::container::{Container, MountOf, Process, Wanted};
use worker::{Entitlements, Options, Session, Worker};

struct Ground {
    _folder: tempfile::TempDir,
    worker: Arc<Worker>,
    session: Arc<Session>,
    root: ImmutableRef,
}

fn ground(test: &str, options: Options) -> Option<Ground> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(Path::new)
        .find(|path| path.is_file());
    let Some(busybox) = busybox.filter(|_| rustix::process::geteuid().is_root()) else {
        eprintln!("skipped: {test}: needs root and a static busybox");
        return None;
    };
    let folder = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(&folder.path().join("root"), cache::Options::default()).expect("a store");
    let mut tar = TarLayerWriter::new(cache.content().ingest().expect("a blob"));
    let bytes = std::fs::read(busybox).expect("readable");
    let passwd = b"root:x:0:0::/root:/bin/sh\napp:x:10:20::/home/app:/bin/sh\n";
    let entries: [(&str, Kind, u32, &[u8]); 5] = [
        ("bin", Kind::Dir, 0o755, b""),
        ("bin/busybox", Kind::File, 0o755, &bytes),
        ("bin/sh", Kind::File, 0o755, &bytes),
        ("etc", Kind::Dir, 0o755, b""),
        ("etc/passwd", Kind::File, 0o644, passwd),
    ];
    for (name, kind, mode, bytes) in entries {
        let mut entry = Entry::new(RootPath::clean(name).expect("a path"), kind, mode);
        entry.size = bytes.len() as u64;
        tar.add(&entry, bytes).expect("an entry");
    }
    let (ingest, made) = tar.finish().expect("a layer");
    let root = cache
        .add_tar_layer(&cache.scratch(), ingest, made, RecordInfo::new("root"))
        .expect("a ref");
    let registry = Registry::new(HostsConfig::default(), Arc::new(NoCredentials)).expect("a client");
    let caller = Arc::new(LocalCaller::new(SessionId::new("test"), LocalOptions::default()));
    let session = Session::new(caller, &cache, Entitlements::default());
    Some(Ground {
        worker: Worker::new(cache, registry, options),
        session: Arc::new(session),
        root,
        _folder: folder,
    })
}

fn bind(dest: &str) -> Mount {
    Mount {
        input: None,
        selector: String::new(),
        dest: dest.to_owned(),
        output: None,
        readonly: false,
        kind: MountKind::Bind,
        content_cache: ContentCache::Default,
    }
}

impl Ground {
    fn wanted(&self) -> Wanted {
        let scratch = MountOf {
            mount: bind("/work"),
            result: None,
        };
        let root = MountOf {
            mount: bind("/"),
            result: Some(self.root.clone()),
        };
        Wanted {
            mounts: vec![scratch, root],
            network: NetMode::None,
            extra_hosts: vec![HostIp {
                host: "db".into(),
                ip: "10.0.0.9".into(),
            }],
            hostname: "debugged".into(),
            cgroup_parent: String::new(),
            platform: None,
        }
    }

    async fn container(&self) -> Arc<Container> {
        let vertex = VertexInfo {
            digest: oci::Digest::of(b"test"),
            inputs: Vec::new(),
            name: "test".into(),
            group: None,
        };
        let sink = Sink::silent(Arc::new(vertex));
        let made = self
            .worker
            .container(self.session.clone(), self.wanted(), sink)
            .await;
        made.expect("prepared")
    }
}

fn shell(script: &str, user: &str) -> Process {
    Process {
        meta: ExecMeta {
            args: ["/bin/sh", "-c", script].map(String::from).into(),
            env: vec!["PATH=/bin".into(), "A=b".into()],
            user: user.to_owned(),
            ..ExecMeta::default()
        },
        security: SecurityMode::Sandbox,
        secret_env: Vec::new(),
    }
}

/// Runs a process to its end; gives its code and what it said.
async fn ended(container: &Container, process: Process) -> (i32, String) {
    let (stdio, out, err) = Stdio::pipes().expect("pipes");
    let mut running = container.start(process, stdio).await.expect("started");
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        File::from(out).read_to_string(&mut text).expect("text");
        File::from(err).read_to_string(&mut text).expect("text");
        text
    });
    let exit = running.wait().await.expect("ended");
    (exit.status.code(), reading.await.expect("read"))
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_share_a_container() {
    let Some(ground) = ground("several_processes_share_a_container", Options::default()) else {
        return;
    };
    let container = ground.container().await;
    // The first reads from us, so that it runs until we say so.
    let (stdin, mut ours) = std::io::pipe().expect("a pipe");
    let (theirs, stdout) = std::io::pipe().expect("a pipe");
    let stdio = Stdio::Descriptors {
        stdin: stdin.into(),
        stderr: stdout.try_clone().expect("a descriptor").into(),
        stdout: stdout.into(),
    };
    let script = "echo $$ > /work/first; while read line; do echo got $line; done; exit 3";
    let mut first = container.start(shell(script, ""), stdio).await.expect("started");
    let mut theirs = std::io::BufReader::new(theirs);
    ours.write_all(b"one\n").expect("written");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut theirs, &mut line).expect("answered");
    assert_eq!(line, "got one\n");
    let looks = "busybox cat /work/first /etc/hosts; busybox hostname; busybox id -u; echo $HOME $A; exit 4";
    let (code, text) = ended(&container, shell(looks, "app")).await;
    assert_eq!(code, 4, "{text}");
    for expected in ["1\n", "10.0.0.9\tdb\n", "debugged\n10\n/home/app b\n"] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
    // A terminal, its size, and a key that interrupts.
    let size = Size {
        rows: 11,
        columns: 22,
    };
    let script = "trap 'echo caught; exit 6' INT; busybox stty size; busybox sleep 600 & wait";
    let mut third = container
        .start(shell(script, ""), Stdio::Terminal(size))
        .await
        .expect("started");
    let mut screen = File::from(third.terminal().expect("one").try_clone().expect("a descriptor"));
    let text = tokio::task::spawn_blocking(move || {
        let (mut all, mut buffer) = (Vec::new(), [0; 512]);
        while let Ok(count @ 1..) = screen.read(&mut buffer) {
            all.extend_from_slice(&buffer[..count]);
            if all.ends_with(b"11 22\r\n") {
                screen.write_all(b"\x03").expect("typed");
            }
        }
        String::from_utf8(all).expect("text")
    });
    assert_eq!(third.wait().await.expect("ended").status.code(), 6);
    let text = text.await.expect("read");
    // The terminal's echo of the key comes before or after.
    assert!(
        text.starts_with("11 22\r\n") && text.contains("caught\r\n"),
        "{text:?}"
    );
    // One is signalled, without harm to the others.
    let mut fourth = container
        .start(shell("busybox sleep 600", ""), Stdio::null().expect("null"))
        .await
        .expect("started");
    fourth.signal(9).expect("signalled");
    assert_eq!(fourth.wait().await.expect("ended").status.code(), 137);
    drop(ours);
    assert_eq!(first.wait().await.expect("ended").status.code(), 3);
    let late = container
        .start(shell("true", ""), Stdio::null().expect("null"))
        .await;
    let late = late.expect_err("the first has ended").to_string();
    assert!(late.contains("has ended"), "{late}");
    container.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn releasing_ends_what_runs() {
    let Some(ground) = ground("releasing_ends_what_runs", Options::default()) else {
        return;
    };
    let container = ground.container().await;
    let sleeping = || shell("busybox sleep 600", "");
    let null = || Stdio::null().expect("null");
    let mut first = container.start(sleeping(), null()).await.expect("started");
    let mut second = container.start(sleeping(), null()).await.expect("started");
    container.release().await;
    assert_eq!(first.wait().await.expect("ended").status.code(), 137);
    assert_eq!(second.wait().await.expect("ended").status.code(), 137);
    // What nobody holds ends, too.
    let container = ground.container().await;
    let mut first = container.start(sleeping(), null()).await.expect("started");
    drop(container);
    assert_eq!(first.wait().await.expect("ended").status.code(), 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_allowed_is_refused() {
    let Some(ground) = ground("what_was_not_allowed_is_refused", Options::default()) else {
        return;
    };
    let container = ground.container().await;
    let insecure = Process {
        security: SecurityMode::Insecure,
        ..shell("true", "")
    };
    let null = || Stdio::null().expect("null");
    let refused = container.start(insecure, null()).await.expect_err("not allowed");
    assert!(
        refused.to_string().contains("security.insecure is not allowed"),
        "{refused}"
    );
    let nobody = container.start(shell("true", "nobody-here"), null()).await;
    let nobody = nobody.expect_err("no such user").to_string();
    assert!(nobody.contains("nobody-here"), "{nobody}");
    // Neither took the place of the first.
    assert_eq!(
        ended(&container, shell("echo $$", "")).await,
        (0, "1\n".to_owned())
    );
}
