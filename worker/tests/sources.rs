//! HTTP and git sources against a small server of this process.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use cache::{Cache, ImmutableRef, Meter, NoMeter};
use llb::{attr, op::SourceOp};
use registry::{HostsConfig, NoCredentials, Registry};
use session::{LocalCaller, LocalOptions, SessionId};
use solver::{OpContext, OpError, Ops, progress::VertexInfo};
use tree::RootPath;
use worker::{Entitlements, Options, Session, Worker};

/// Serves files of a directory; counts requests.
struct Server {
    at: String,
    gets: Arc<AtomicUsize>,
    heads: Arc<AtomicUsize>,
}

fn serve(folder: &Path) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = format!("http://{}", listener.local_addr().expect("bound"));
    let (gets, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (folder, counted) = (folder.to_owned(), (gets.clone(), heads.clone()));
    // Ends with the process, like every thread of a test.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (folder, counted) = (folder.clone(), counted.clone());
            std::thread::spawn(move || answer(stream, &folder, &counted.0, &counted.1));
        }
    });
    Server { at, gets, heads }
}

fn answer(mut stream: TcpStream, folder: &Path, gets: &AtomicUsize, heads: &AtomicUsize) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    for line in lines.by_ref() {
        if line.ok()?.is_empty() {
            break;
        }
    }
    let mut words = request.split(' ');
    let is_head = words.next()? == "HEAD";
    if is_head { heads } else { gets }.fetch_add(1, Ordering::SeqCst);
    let path = words
        .next()?
        .split('?')
        .next()?
        .trim_start_matches('/')
        .replace("%20", " ");
    let body = std::fs::read(folder.join(path)).ok();
    let (status, body) = body.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    let etag = oci::Digest::of(&body).hex();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"{etag}\"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
         Content-Disposition: attachment; filename=\"../evil\"\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    if !is_head {
        stream.write_all(&body).ok()?;
    }
    Some(())
}

struct Fixture {
    folder: tempfile::TempDir,
    worker: Arc<Worker>,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(&folder.path().join("root"), cache::Options::default()).expect("a store");
    let registry = Registry::new(HostsConfig::default(), Arc::new(NoCredentials)).expect("a client");
    Fixture {
        worker: Worker::new(cache, registry, Options::default()),
        folder,
    }
}

impl Fixture {
    fn context(&self) -> OpContext {
        let options = LocalOptions {
            uploads: BTreeMap::from([("one".to_owned(), Box::new(&b"uploaded"[..]) as session::Upload)]),
            ..LocalOptions::default()
        };
        let caller = Arc::new(LocalCaller::new(SessionId::new("test"), options));
        let session = Session::new(caller, &self.worker.cache, Entitlements::default());
        let info = VertexInfo {
            digest: oci::Digest::of(b"test"),
            inputs: Vec::new(),
            name: "test".into(),
            group: None,
        };
        OpContext::detached(info, vec![Arc::new(session)])
    }

    /// The key of a source, and what it brings.
    async fn get(&self, identifier: &str, attrs: &[(&str, &str)]) -> Result<(String, ImmutableRef), OpError> {
        let attrs = attrs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let source = SourceOp {
            identifier: identifier.to_owned(),
            attrs,
        };
        let vertex = vertex(source);
        let ctx = self.context();
        let op = self.worker.op(&vertex)?;
        let (map, last) = op.cache_map(&ctx, 0).await?;
        assert!(last);
        let mut made = op.exec(&ctx, Vec::new()).await?;
        Ok((map.explain, made.remove(0)))
    }
}

/// The vertex of a source, through the wire as a client would send it.
fn vertex(source: SourceOp) -> llb::Vertex {
    let state = llb::state::source(
        source.identifier,
        source.attrs,
        llb::state::Constraints::default(),
    );
    let definition = llb::state::marshal(&state).expect("marshals");
    let graph = definition.to_graph().expect("decodes");
    graph.vertices[0].as_ref().clone()
}

/// `path mode mtime =contents` of everything in a ref.
async fn listed(made: &ImmutableRef) -> Vec<String> {
    let meter: Arc<dyn Meter> = Arc::new(NoMeter);
    let view = made.view(&meter).await.expect("a view");
    let mut all = Vec::new();
    let root = view.root().expect("a layer");
    view.walk::<cache::layer::LayerError>(&root, &mut |node, entry| {
        let path = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
        if path.starts_with(".git/") {
            return Ok(());
        }
        let mut text = String::new();
        if !node.is_dir() && entry.link.is_none() {
            std::io::Read::read_to_string(&mut view.open(node)?, &mut text).expect("text");
        }
        all.push(format!(
            "{path} {:o} {}.{} ={text}",
            entry.mode, entry.uid, entry.gid
        ));
        Ok(())
    })
    .expect("walks");
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_fetched_once_and_keyed_by_its_contents() {
    let fixture = fixture();
    let files = fixture.folder.path().join("files");
    std::fs::create_dir(&files).expect("mkdir");
    std::fs::write(files.join("a b.txt"), "contents").expect("write");
    let server = serve(&files);
    let url = format!("{}/a%20b.txt?token=secret", server.at);
    let name = [(attr::HTTP_FILENAME, "named")];
    let (key, made) = fixture.get(&url, &name).await.expect("fetched");
    assert_eq!(
        key,
        format!(
            r#"{{"Filename":"named","Perm":0,"UID":0,"GID":0,"Checksum":"{}","LastModTime":"Sun, 06 Nov 1994 08:49:37 GMT"}}"#,
            oci::Digest::of(b"contents")
        )
    );
    assert_eq!(listed(&made).await, ["named 600 0.0 =contents"]);
    assert_eq!(
        (
            server.gets.load(Ordering::SeqCst),
            server.heads.load(Ordering::SeqCst)
        ),
        (1, 0)
    );
    // Unchanged: one HEAD and nothing else.
    let (again, _) = fixture.get(&url, &name).await.expect("known");
    assert_eq!(again, key);
    assert_eq!(
        (
            server.gets.load(Ordering::SeqCst),
            server.heads.load(Ordering::SeqCst)
        ),
        (1, 1)
    );
    // A server's idea of a name cannot lead out of the layer.
    let owner = [
        (attr::HTTP_PERM, "0750"),
        (attr::HTTP_UID, "7"),
        (attr::HTTP_GID, "8"),
    ];
    let (_, made) = fixture.get(&url, &owner).await.expect("fetched");
    assert_eq!(listed(&made).await, ["evil 750 7.8 =contents"]);
    // With a checksum nothing is asked for the key, and other contents are refused.
    let wrong = oci::Digest::of(b"other").to_string();
    let error = fixture
        .get(&url, &[(attr::HTTP_CHECKSUM, &wrong)])
        .await
        .expect_err("another file");
    assert!(error.to_string().contains("digest mismatch"), "{error}");
    assert!(!error.to_string().contains("token=secret"), "{error}");
    let error = fixture
        .get(&format!("{}/none", server.at), &[])
        .await
        .expect_err("404");
    assert!(
        error.to_string().contains("invalid response status 404"),
        "{error}"
    );
    let (_, made) = fixture
        .get("http://buildkit-session/one", &[])
        .await
        .expect("uploaded");
    assert_eq!(listed(&made).await, ["one 600 0.0 =uploaded"]);
}

fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=T",
            "-c",
            "user.email=t@example.com",
            "-c",
            "init.defaultBranch=main",
        ])
        .args(["-c", "protocol.file.allow=always"])
        .args(args)
        .current_dir(folder)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")])
        .envs([
            ("GIT_COMMITTER_DATE", "@1000000000 +0000"),
            ("GIT_AUTHOR_DATE", "@1000000000 +0000"),
        ])
        .output()
        .expect("git runs");
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A bare repository `r.git` under the result, ready for plain HTTP, and its two commits.
fn repository(folder: &Path) -> (PathBuf, String, String) {
    let (work, served) = (folder.join("work"), folder.join("served"));
    std::fs::create_dir_all(work.join("sub/deep")).expect("mkdir");
    std::fs::create_dir_all(&served).expect("mkdir");
    git(&work, &["init", "-q"]);
    std::fs::write(work.join("a"), "1").expect("write");
    std::fs::write(work.join("sub/deep/b"), "2").expect("write");
    std::os::unix::fs::symlink("/etc", work.join("out")).expect("link");
    git(&work, &["add", "."]);
    git(&work, &["commit", "-q", "-m", "one"]);
    git(&work, &["tag", "-a", "v1", "-m", "v1"]);
    let first = git(&work, &["rev-parse", "HEAD"]);
    std::fs::write(work.join("a"), "changed").expect("write");
    git(&work, &["commit", "-q", "-am", "two"]);
    let second = git(&work, &["rev-parse", "HEAD"]);
    git(&served, &["clone", "-q", "--bare", "../work", "r.git"]);
    git(&served.join("r.git"), &["update-server-info"]);
    (served, first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_found_fetched_and_keyed() {
    let fixture = fixture();
    let (served, first, second) = repository(fixture.folder.path());
    let server = serve(&served);
    let url = format!("{}/r.git", server.at);
    let full = [(attr::GIT_FULL_URL, url.as_str())];
    let (key, made) = fixture
        .get("git://host/r.git", &full)
        .await
        .expect("the default branch");
    assert_eq!(key, second);
    assert_eq!(
        listed(&made).await,
        [
            "a 644 0.0 =changed",
            "out 777 0.0 =",
            "sub 755 0.0 =",
            "sub/deep 755 0.0 =",
            "sub/deep/b 644 0.0 =2"
        ]
    );
    let (key, made) = fixture
        .get("git://host/r.git#v1:sub/deep", &full)
        .await
        .expect("a tag");
    assert_eq!(key, format!("{first}:/sub/deep"));
    assert_eq!(listed(&made).await, ["b 644 0.0 =2"]);
    let times = [full[0], (attr::GIT_MTIME, "commit"), (attr::GIT_KEEP_DIR, "true")];
    let (key, made) = fixture
        .get(&format!("git://host/r.git#{first}"), &times)
        .await
        .expect("a commit");
    assert_eq!(key, format!("{first}.git#{first}(mtime=commit)"));
    let meter: Arc<dyn Meter> = Arc::new(NoMeter);
    let view = made.view(&meter).await.expect("a view");
    let node = view.lookup(&RootPath::clean("a").expect("clean")).expect("there");
    assert_eq!(view.entry(&node).expect("an entry").mtime.secs, 1_000_000_000);
    assert!(
        view.lookup(&RootPath::clean(".git/HEAD").expect("clean"))
            .is_some()
    );
    for (identifier, attrs, wanted) in [
        ("git://host/r.git#nope", &full[..], "does not contain ref nope"),
        ("git://host/r.git#main:out", &full[..], "invalid subdir"),
        ("git://host/r.git#main:none", &full[..], "invalid subdir"),
        (
            "git://host/r.git#--upload-pack=touch",
            &full[..],
            "cannot be used",
        ),
        (
            "git://host/r.git",
            &[full[0], (attr::GIT_CHECKSUM, "abcdef")][..],
            "expected checksum to match abcdef",
        ),
        (
            "git://host/r.git",
            &[(attr::GIT_FULL_URL, "file:///etc")][..],
            "is no git remote",
        ),
    ] {
        let error = fixture.get(identifier, attrs).await.expect_err(identifier);
        assert!(error.to_string().contains(wanted), "{identifier}: {error}");
    }
}
