//! A client's end against a daemon's end, in memory: what one offers the other gets, and nothing else.
use bytes::Bytes;
use session::provider::{Place, Provider, Store};
use session::{
    Attachment, Caller, LocalCaller, LocalDir, LocalOptions, LocalRequest, Received, RemoteCaller, Secret,
    SecretSource, SessionError, SessionId,
};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

/// Both ends of one session.
struct Ends {
    caller: RemoteCaller,
    provider: Arc<Provider>,
    ended: CancellationToken,
    _received: tempfile::TempDir,
}

async fn ends(
    options: LocalOptions,
    places: BTreeMap<usize, Place>,
    stores: BTreeMap<String, Store>,
) -> Ends {
    let local = Arc::new(LocalCaller::new(SessionId::new("s"), options));
    let provider = Arc::new(Provider::new(local, places, stores));
    let (to_client, at_client) = mpsc::channel::<Bytes>(16);
    let (to_daemon, at_daemon) = mpsc::channel::<Bytes>(16);
    let ended = CancellationToken::new();
    let (serving, stop) = (provider.clone(), ended.clone());
    tokio::spawn(async move {
        let inbound = ReceiverStream::new(at_client).map(Ok);
        serving.serve(inbound, to_daemon, stop).await
    });
    let inbound = ReceiverStream::new(at_daemon).map(Ok);
    let channel = session::tunnel::channel(inbound, to_client)
        .await
        .expect("greeted");
    let folder = tempfile::tempdir().expect("a folder");
    let received = Arc::new(Received::open(folder.path()).expect("opened"));
    let attachment = Attachment {
        id: "s".into(),
        shared_key: "key".into(),
        methods: provider.methods().into_iter().map(str::to_owned).collect(),
        hand: None,
    };
    Ends {
        caller: RemoteCaller::new(attachment, channel, received, ended.clone()),
        provider,
        ended,
        _received: folder,
    }
}

async fn context(dir: &Path) -> Ends {
    let options = LocalOptions {
        dirs: BTreeMap::from([("context".to_owned(), dir.to_owned())]),
        ..LocalOptions::default()
    };
    ends(options, BTreeMap::new(), BTreeMap::new()).await
}

/// Receives, and counts the bytes of all packets.
async fn receive(ends: &Ends, request: &LocalRequest) -> (LocalDir, u64) {
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = bytes.clone();
    let meter = Arc::new(move |count: u64| {
        counted.fetch_add(count, Ordering::Relaxed);
    });
    let dir = ends.caller.local_dir(request, meter).await.expect("received");
    (dir.expect("offered"), bytes.load(Ordering::Relaxed))
}

fn asked(name: &str) -> LocalRequest {
    LocalRequest {
        name: name.into(),
        ..LocalRequest::default()
    }
}

fn listing(dir: &Path) -> Vec<String> {
    let root = tree::Root::open(dir).expect("opened");
    let options = tree::WalkOptions { xattrs: false };
    let found = tree::walk(&root, &tree::Everything, options).expect("listed");
    let line = |entry: tree::Entry| {
        let content = match entry.kind {
            tree::Kind::File => std::fs::read_to_string(dir.join(entry.path.as_path())).unwrap_or_default(),
            _ => String::new(),
        };
        let link = String::from_utf8_lossy(&entry.link.unwrap_or_default()).into_owned();
        let (mode, time) = (entry.mode, entry.mtime);
        format!(
            "{} {:?} {mode:o} {time:?} {link} {content}",
            entry.path.as_path().display(),
            entry.kind
        )
    };
    found.into_iter().map(|found| line(found.entry)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_arrives_as_it_is_and_then_only_what_changed() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |path: &str| dir.path().join(path);
    std::fs::create_dir_all(at("a/b")).expect("made");
    std::fs::write(at("a/b/big"), "x".repeat(3_000_000)).expect("written");
    std::fs::write(at("a.txt"), "first").expect("written");
    std::fs::write(at("empty"), "").expect("written");
    std::fs::hard_link(at("a.txt"), at("z-link")).expect("linked");
    symlink("../a.txt", at("a/up")).expect("linked");
    let ends = context(dir.path()).await;
    let (first, bytes) = receive(&ends, &asked("context")).await;
    assert_eq!(listing(&first.path), listing(dir.path()));
    assert!(bytes > 3_000_000);
    let (again, bytes) = receive(&ends, &asked("context")).await;
    assert_eq!(again.path, first.path, "nothing changed, so the copy is the same");
    assert!(bytes < 1000, "{bytes}");
    std::fs::write(at("a.txt"), "second!").expect("written");
    std::fs::remove_file(at("empty")).expect("removed");
    let (changed, bytes) = receive(&ends, &asked("context")).await;
    assert_eq!(listing(&changed.path), listing(dir.path()));
    assert!(bytes < 1000, "{bytes}");
    assert!(
        listing(&first.path)[0].ends_with(' ') && first.path.join("empty").exists(),
        "a build keeps what it had"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_wanted_leaves_the_client() {
    let dir = tempfile::tempdir().expect("a folder");
    for path in ["src/a.rs", "src/ä b.rs", "target/out", "secret.key", "docs/x.md"] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("inside")).expect("made");
        std::fs::write(path, "text").expect("written");
    }
    symlink("docs/x.md", dir.path().join("link")).expect("linked");
    let ends = context(dir.path()).await;
    let names = |dir: LocalDir| -> Vec<String> {
        let names = listing(&dir.path);
        names
            .iter()
            .filter_map(|line| {
                line.split(" Dir ")
                    .next()?
                    .split(" File ")
                    .next()?
                    .split(" Symlink ")
                    .next()
            })
            .map(str::to_owned)
            .collect()
    };
    let request = LocalRequest {
        exclude_patterns: vec!["target".into(), "*.key".into()],
        ..asked("context")
    };
    let all = names(receive(&ends, &request).await.0);
    assert_eq!(
        all,
        ["docs", "docs/x.md", "link", "src", "src/a.rs", "src/ä b.rs"]
    );
    let request = LocalRequest {
        include_patterns: vec!["src/ä b.rs".into()],
        ..asked("context")
    };
    assert_eq!(names(receive(&ends, &request).await.0), ["src", "src/ä b.rs"]);
    let request = LocalRequest {
        follow_paths: vec!["link".into()],
        ..asked("context")
    };
    assert_eq!(
        names(receive(&ends, &request).await.0),
        ["docs", "docs/x.md", "link"]
    );
    let refused = ends.caller.local_dir(&asked("home"), Arc::new(|_| {})).await;
    let text = refused.expect_err("not offered").to_string();
    assert!(text.contains("no access allowed to dir \"home\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_uploads_and_agents_are_answered_once_named() {
    let socket_dir = tempfile::tempdir().expect("a folder");
    let socket = socket_dir.path().join("agent");
    let listener = tokio::net::UnixListener::bind(&socket).expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut question = Vec::new();
            let _ = stream.read_to_end(&mut question).await;
            question.reverse();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &question).await;
        }
    });
    let upload: session::Upload = Box::new(std::io::Cursor::new(vec![7u8; 2_000_000]));
    let mut options = LocalOptions {
        secrets: BTreeMap::from([
            (
                "token".to_owned(),
                SecretSource::Value(Secret::from("hunter2".to_owned())),
            ),
            (
                "gone".to_owned(),
                SecretSource::File("/nonexistent/secret".into()),
            ),
        ]),
        uploads: BTreeMap::from([("stdin".to_owned(), upload)]),
        ..LocalOptions::default()
    };
    options.ssh.insert(
        "default".into(),
        session::SshSource::Socket {
            path: socket,
            raw: true,
        },
    );
    let ends = ends(options, BTreeMap::new(), BTreeMap::new()).await;
    let caller = &ends.caller;
    let token = caller.secret("token").await.expect("answered").expect("offered");
    assert_eq!(token.expose(), b"hunter2");
    assert_eq!(caller.secret("other").await.expect("answered"), None);
    let error = caller.secret("gone").await.expect_err("unreadable").to_string();
    assert!(error.contains("/nonexistent/secret"), "{error}");
    assert_eq!(caller.credentials("example.com").await.expect("answered"), None);
    let mut bytes = Vec::new();
    let mut stream = caller.upload("stdin").await.expect("offered");
    stream.read_to_end(&mut bytes).await.expect("read");
    assert_eq!(bytes, vec![7u8; 2_000_000]);
    let taken = match caller.upload("stdin").await {
        Ok(mut stream) => stream.read_to_end(&mut bytes).await.is_err(),
        Err(_) => true,
    };
    assert!(taken, "an upload is given once");
    assert!(caller.ssh_agent("other").await.expect("answered").is_none());
    let agent = caller.ssh_agent("").await.expect("answered").expect("forwarded");
    let mut stream = agent.connect().await.expect("connected");
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"sign")
        .await
        .expect("asked");
    tokio::io::AsyncWriteExt::shutdown(&mut stream)
        .await
        .expect("ended");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    assert_eq!(answer, "ngis");
    ends.ended.cancel();
    let error = caller.secret("token").await.expect_err("the client is gone");
    assert!(matches!(error, SessionError::Ended { .. }), "{error}");
}

/// A writer whose bytes can be looked at.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_arrive_in_their_places() {
    let (kept, target, result) = (
        Kept::default(),
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    std::fs::create_dir_all(result.path().join("bin")).expect("made");
    std::fs::write(result.path().join("bin/app"), "program").expect("written");
    symlink("bin/app", result.path().join("app")).expect("linked");
    std::fs::create_dir_all(target.path().join("bin")).expect("made");
    std::fs::write(target.path().join("bin/other"), "stays").expect("written");
    let places = BTreeMap::from([
        (0, Place::File(Box::new(kept.clone()))),
        (
            2,
            Place::Dir {
                path: target.path().to_owned(),
                empties: false,
            },
        ),
    ]);
    let ends = ends(LocalOptions::default(), places, BTreeMap::new()).await;
    let mut send = ends.caller.send_file(0).await.expect("begun").expect("a client");
    let data = vec![42u8; 5_000_000];
    let expected = data.clone();
    let written = tokio::task::spawn_blocking(move || {
        send.writer
            .write_all(&data)
            .and_then(|()| send.writer.flush())
            .map(|()| send.done)
    });
    let done = written.await.expect("no panic").expect("written");
    done.await.expect("no panic").expect("taken");
    assert!(*kept.0.lock().expect("not poisoned") == expected);
    let sent = ends.caller.send_dir(2, result.path(), Arc::new(|_| {})).await;
    assert!(sent.expect("sent"));
    ends.provider.settle().await.expect("in place");
    assert_eq!(
        std::fs::read_to_string(target.path().join("app")).expect("there"),
        "program"
    );
    assert_eq!(
        std::fs::read_to_string(target.path().join("bin/other")).expect("there"),
        "stays"
    );
    assert_eq!(
        std::fs::read_dir(target.path()).expect("there").count(),
        2,
        "nothing else is left"
    );
    let error = ends.caller.send_dir(7, result.path(), Arc::new(|_| {})).await;
    assert!(
        error
            .expect_err("no such output")
            .to_string()
            .contains("no output 7")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirrored_directory_holds_nothing_but_the_result() {
    let (target, result) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    std::fs::create_dir_all(target.path().join("old/deep")).expect("made");
    std::fs::write(result.path().join("new"), "text").expect("written");
    let place = Place::Dir {
        path: target.path().to_owned(),
        empties: true,
    };
    let ends = ends(
        LocalOptions::default(),
        BTreeMap::from([(0, place)]),
        BTreeMap::new(),
    )
    .await;
    let sent = ends.caller.send_dir(0, result.path(), Arc::new(|_| {})).await;
    assert!(sent.expect("sent"));
    ends.provider.settle().await.expect("in place");
    let left: Vec<_> = listing(target.path());
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(
        std::fs::read_to_string(target.path().join("new")).expect("there"),
        "text"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_read_and_written_by_digest() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = |is_writable| Store {
        folder: folder.path().to_owned(),
        is_writable,
    };
    let stores = BTreeMap::from([
        ("export".to_owned(), store(true)),
        ("oci:base".to_owned(), store(false)),
    ]);
    let ends = ends(LocalOptions::default(), BTreeMap::new(), stores).await;
    let caller = &ends.caller;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    let digest = oci::Digest::of(&bytes);
    assert!(
        caller
            .blob("oci:base", &digest)
            .await
            .expect("answered")
            .is_none()
    );
    let upload = |bytes: &[u8]| -> session::Upload { Box::new(std::io::Cursor::new(bytes.to_vec())) };
    for _ in 0..2 {
        let written = caller
            .put_blob("export", &digest, bytes.len() as u64, upload(&bytes))
            .await;
        written.expect("written, and the second time there already");
    }
    let mut read = Vec::new();
    let mut stream = caller
        .blob("oci:base", &digest)
        .await
        .expect("answered")
        .expect("there");
    stream.read_to_end(&mut read).await.expect("read");
    assert!(read == bytes);
    for (store, contents, size) in [
        ("oci:base", &b"x"[..], 1),
        ("other", b"x", 1),
        ("export", b"cut", 9),
    ] {
        let error = caller
            .put_blob(store, &oci::Digest::of(b"y"), size, upload(contents))
            .await;
        assert!(error.is_err(), "{store}");
    }
    let error = caller
        .put_blob("export", &oci::Digest::of(b"said"), 4, upload(b"sent"))
        .await;
    let text = error.expect_err("other bytes than were said").to_string();
    assert!(text.contains(&oci::Digest::of(b"sent").to_string()), "{text}");
    let empty = oci::Digest::of(b"");
    caller
        .put_blob("export", &empty, 0, upload(b""))
        .await
        .expect("written");
    let mut stream = caller
        .blob("export", &empty)
        .await
        .expect("answered")
        .expect("there");
    assert_eq!(stream.read_to_end(&mut read).await.expect("read"), 0);
    assert_eq!(
        std::fs::read_dir(folder.path().join("blobs/sha256"))
            .expect("there")
            .count(),
        2
    );
}

/// The names in a list of entries, each a Stat after its length.
fn names(list: &[u8]) -> Vec<String> {
    let (mut names, mut left) = (Vec::new(), list);
    while let Some((length, rest)) = left.split_first_chunk::<4>() {
        let (stat, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        let stat: session::wire::fsutil::Stat = prost::Message::decode(stat).expect("a stat");
        names.push(stat.path);
        left = rest;
    }
    names
}

#[tokio::test]
async fn a_list_comes_with_the_files_that_are_excepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
        std::fs::write(path, text).expect("written");
    };
    for name in [
        "data",
        "dir/one1",
        "dir/two",
        "dir/sub/bar1",
        "dir/sub2/bar3",
        "foo",
    ] {
        write(name, name);
    }
    let options = || LocalOptions {
        dirs: BTreeMap::from([("context".to_owned(), folder.path().to_owned())]),
        ..LocalOptions::default()
    };
    let request = LocalRequest {
        listed: Some(vec!["dir/**/*1".into(), "foo".into()]),
        ..asked("context")
    };
    let all = [
        "data",
        "dir",
        "dir/one1",
        "dir/sub",
        "dir/sub/bar1",
        "dir/sub2",
        "dir/sub2/bar3",
        "dir/two",
        "foo",
    ];
    let there = |dir: &Path| -> Vec<String> {
        let root = tree::Root::open(dir).expect("opened");
        let found = tree::walk(&root, &tree::Everything, tree::WalkOptions { xattrs: false });
        let path = |found: tree::Found| String::from_utf8_lossy(found.entry.path.as_bytes()).into_owned();
        found.expect("listed").into_iter().map(path).collect()
    };
    let made = [
        ".fsutil-metadata",
        "dir",
        "dir/one1",
        "dir/sub",
        "dir/sub/bar1",
        "foo",
    ];
    // In this very process.
    let local = LocalCaller::new(SessionId::new("s"), options());
    let listed = local
        .local_dir(&request, Arc::new(|_| {}))
        .await
        .expect("listed")
        .expect("offered");
    assert!(listed.is_filtered);
    assert_eq!(there(&listed.path), made);
    let own = std::fs::read(listed.path.join(".fsutil-metadata")).expect("there");
    assert_eq!(names(&own), all);
    // Over the wire, where the copy is kept as long as the list says the same.
    let ends = ends(options(), BTreeMap::new(), BTreeMap::new()).await;
    let (first, _) = receive(&ends, &request).await;
    assert_eq!(there(&first.path), made);
    let list = std::fs::read(first.path.join(".fsutil-metadata")).expect("there");
    assert_eq!(list, own);
    let (again, _) = receive(&ends, &request).await;
    assert_eq!(again.path, first.path, "nothing has changed");
    write("data", "what is not wanted has changed");
    let (third, _) = receive(&ends, &request).await;
    assert_ne!(third.path, first.path, "the list has changed");
    assert_eq!(there(&third.path), made);
    // Everything is asked for as before: the two copies have nothing to do with each other.
    let (whole, _) = receive(&ends, &asked("context")).await;
    assert_eq!(there(&whole.path), all);
}

/// Fetches tokens as a client with this seed.
struct Fetches {
    seed: Option<&'static str>,
    asked: std::sync::Mutex<Vec<session::TokenQuestion>>,
}

#[async_trait::async_trait]
impl session::TokenSource for Fetches {
    async fn seed(&self, host: &str) -> Result<Option<session::Secret>, String> {
        match host {
            "broken.example" => Err("the helper is not there".into()),
            _ => Ok(self.seed.map(|seed| session::Secret::from(seed.to_owned()))),
        }
    }

    async fn fetch(&self, question: &session::TokenQuestion) -> Result<session::RegistryToken, String> {
        if question.scopes.is_empty() {
            return Err("the token server answered 401".into());
        }
        self.asked.lock().expect("not poisoned").push(question.clone());
        Ok(session::RegistryToken {
            text: session::Secret::from("t".to_owned()),
            seconds: Some(300),
        })
    }
}

async fn fetching(seed: Option<&'static str>) -> (Ends, Arc<Fetches>) {
    let source = Arc::new(Fetches {
        seed,
        asked: std::sync::Mutex::default(),
    });
    let options = LocalOptions {
        tokens: Some(source.clone()),
        ..LocalOptions::default()
    };
    (ends(options, BTreeMap::new(), BTreeMap::new()).await, source)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_fetches_its_tokens_and_shows_who_it_is() {
    let (first, source) = fetching(Some("seed")).await;
    let known = first.caller.token_authority("docker.io").await.expect("answered");
    let known = known.expect("it fetches tokens");
    assert!(known.is_proven);
    let question = session::TokenQuestion {
        host: "docker.io".into(),
        realm: "https://auth.example/token".into(),
        service: "s".into(),
        scopes: vec!["repository:a/b:pull".into()],
    };
    let token = first.caller.token(&question).await.expect("a token");
    assert_eq!((token.text.expose(), token.seconds), (&b"t"[..], Some(300)));
    let expected = session::TokenQuestion {
        host: "registry-1.docker.io".into(),
        ..question.clone()
    };
    assert_eq!(*source.asked.lock().expect("not poisoned"), [expected]);

    let of = async |ends: &Ends| {
        let authority = ends.caller.token_authority("docker.io").await.expect("answered");
        authority.expect("it fetches tokens")
    };
    assert_eq!(of(&fetching(Some("seed")).await.0).await, known, "the same user");
    assert_ne!(of(&fetching(Some("other")).await.0).await.key, known.key);
    let nobody = of(&fetching(None).await.0).await;
    assert!(!nobody.is_proven, "everybody can make that key");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_of_a_token_it_cannot_have_is_told() {
    let (ends, _source) = fetching(Some("seed")).await;
    let question = session::TokenQuestion {
        host: "r.example".into(),
        realm: "https://auth.example/token".into(),
        service: String::new(),
        scopes: Vec::new(),
    };
    let error = ends.caller.token(&question).await.expect_err("there is none");
    assert_eq!(
        error.to_string(),
        "get credentials for r.example: the token server answered 401"
    );
    let error = ends.caller.token_authority("broken.example").await;
    let error = error.expect_err("the seed is not to be had").to_string();
    assert!(error.contains("the helper is not there"), "{error}");

    // A client that fetches none does not offer to.
    let plain = ends_of_nothing().await;
    assert!(
        plain
            .caller
            .token_authority("r.example")
            .await
            .expect("answered")
            .is_none()
    );
    assert!(!plain.caller.offers("/moby.filesync.v1.Auth/FetchToken"));
}

async fn ends_of_nothing() -> Ends {
    ends(LocalOptions::default(), BTreeMap::new(), BTreeMap::new()).await
}
