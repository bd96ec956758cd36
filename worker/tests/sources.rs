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
use worker::{Algorithm, Entitlements, Options, Session, Worker};

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
            oci_layouts: BTreeMap::from([("lay".to_owned(), self.folder.path().join("layout"))]),
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

#[tokio::test]
async fn checksums_of_other_kinds_are_checked() {
    let fixture = fixture();
    let files = fixture.folder.path().join("files");
    std::fs::create_dir(&files).expect("made");
    std::fs::write(files.join("a"), "contents").expect("written");
    let server = serve(&files);
    let url = format!("{}/a", server.at);
    for algorithm in [Algorithm::Sha384, Algorithm::Sha512] {
        let right = algorithm.sum(&b"contents"[..], b"").expect("read").to_string();
        let attrs = [(attr::HTTP_CHECKSUM, right.as_str()), (attr::HTTP_FILENAME, "a")];
        let (key, made) = fixture.get(&url, &attrs).await.expect("fetched");
        assert!(key.contains(&right), "{key}");
        assert_eq!(listed(&made).await, ["a 600 0.0 =contents"]);
        let wrong = algorithm.sum(&b"other"[..], b"").expect("read").to_string();
        let attrs = [(attr::HTTP_CHECKSUM, wrong.as_str())];
        let error = fixture.get(&url, &attrs).await.expect_err("another file");
        assert!(error.to_string().contains("digest mismatch"), "{error}");
        assert!(error.to_string().contains(&right), "{error}");
    }
}

/// Puts what a registry answers where [`serve`] finds it; its digest.
fn put(folder: &Path, kind: &str, contents: &[u8]) -> oci::Digest {
    let digest = oci::Digest::of(contents);
    let place = folder.join("v2/app").join(kind);
    std::fs::create_dir_all(&place).expect("made");
    std::fs::write(place.join(digest.to_string()), contents).expect("written");
    digest
}

#[tokio::test]
async fn blobs_become_files_and_are_keyed_by_their_digest() {
    let fixture = fixture();
    let files = fixture.folder.path().join("files");
    let digest = put(&files, "blobs", b"a blob");
    let manifest = put(&files, "manifests", br#"{"schemaVersion":2,"manifests":[]}"#);
    let server = serve(&files);
    let host = server.at.trim_start_matches("http://");
    let named = format!("docker-image+blob://{host}/app@{digest}");
    let attrs = [
        (attr::HTTP_FILENAME, "../x/got"),
        (attr::HTTP_PERM, "0640"),
        (attr::HTTP_UID, "7"),
        (attr::HTTP_GID, "8"),
    ];
    let (key, made) = fixture.get(&named, &attrs).await.expect("fetched");
    assert_eq!(listed(&made).await, ["got 640 7.8 =a blob"]);
    let expected = format!(r#"{{"Digest":"{digest}","Filename":"got","Perm":416,"UID":7,"GID":8}}"#);
    assert_eq!(key, expected);
    let asked = server.gets.load(Ordering::SeqCst);
    let (_, made) = fixture.get(&named, &[]).await.expect("kept");
    assert_eq!(listed(&made).await, [format!("{} 600 0.0 =a blob", digest.hex())]);
    assert_eq!(
        server.gets.load(Ordering::SeqCst),
        asked,
        "what is here is not fetched"
    );
    // A manifest is one too.
    let named = format!("docker-image+blob://{host}/app@{manifest}");
    fixture.get(&named, &[]).await.expect("fetched");
    // Of a layout of the client.
    let digest = oci::Digest::of(b"of a layout");
    let blobs = fixture.folder.path().join("layout/blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("made");
    std::fs::write(blobs.join(digest.hex()), "of a layout").expect("written");
    let named = format!("oci-layout+blob://any/name@{digest}");
    let attrs = [(attr::OCI_LAYOUT_STORE, "lay"), (attr::HTTP_FILENAME, "f")];
    let (_, made) = fixture.get(&named, &attrs).await.expect("read");
    assert_eq!(listed(&made).await, ["f 600 0.0 =of a layout"]);
    let none = oci::Digest::of(b"none");
    let wrong = [
        (format!("docker-image+blob://{host}/app:tag"), "names no digest"),
        (format!("docker-image+blob://{host}/app@{none}"), "not found"),
        (format!("oci-layout+blob://any/name@{none}"), "requires store id"),
    ];
    for (named, text) in wrong {
        let error = fixture.get(&named, &[]).await.expect_err("it is none");
        assert!(error.to_string().contains(text), "{named}: {error}");
    }
}

#[tokio::test]
async fn attestations_of_an_image_are_found_with_their_signature() {
    let fixture = fixture();
    let files = fixture.folder.path().join("files");
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let about = |digest: &oci::Digest, size: usize, kind: &str| serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": size});
    let made = |kind: &str, layers: serde_json::Value| {
        let config = put(&files, "blobs", b"{}");
        let value = serde_json::json!({
            "schemaVersion": 2, "mediaType": manifest, "artifactType": kind,
            "config": about(&config, 2, "application/vnd.oci.empty.v1+json"), "layers": layers,
        });
        let bytes = value.to_string().into_bytes();
        (put(&files, "manifests", &bytes), bytes.len())
    };
    let statement = |text: &[u8], predicate: &str| {
        let digest = put(&files, "blobs", text);
        let mut layer = about(&digest, text.len(), "application/vnd.in-toto+json");
        layer["annotations"] = serde_json::json!({"in-toto.io/predicate-type": predicate});
        (digest, layer)
    };
    let (image, image_size) = made("image", serde_json::json!([]));
    let (wanted, one) = statement(b"how it was made", "how");
    let (_, other) = statement(b"what is in it", "what");
    let (attestation, attestation_size) = made("attestation", serde_json::json!([one, other]));
    let signed = put(&files, "blobs", b"signed");
    let (signature, signature_size) = made("signature", serde_json::json!([about(&signed, 6, bundle)]));
    let entry = |digest: &oci::Digest, size: usize, platform: serde_json::Value| {
        let mut entry = about(digest, size, manifest);
        entry["platform"] = platform;
        entry
    };
    let amd64 = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let nobody = serde_json::json!({"os": "unknown", "architecture": "unknown"});
    let mut attests = entry(&attestation, attestation_size, nobody);
    attests["annotations"] = serde_json::json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": image.to_string(),
    });
    let index = |manifests: serde_json::Value| {
        let kind = "application/vnd.oci.image.index.v1+json";
        serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).to_string()
    };
    let root = put(
        &files,
        "manifests",
        index(serde_json::json!([entry(&image, image_size, amd64), attests])).as_bytes(),
    );
    // A registry without a list of referrers keeps it under a tag.
    let mut refers = about(&signature, signature_size, manifest);
    refers["artifactType"] = bundle.into();
    let list = index(serde_json::json!([refers]));
    std::fs::write(
        files.join(format!("v2/app/manifests/sha256-{}", attestation.hex())),
        list,
    )
    .expect("written");
    let server = serve(&files);
    let host = server.at.trim_start_matches("http://");
    let reference = oci::Reference::parse_normalized(&format!("{host}/app@{root}")).expect("a reference");
    let ctx = fixture.context();
    let session = Session::of(&ctx).expect("it has one");
    let ask = async |platform: &str| {
        let platform = oci::Platform::new("linux", platform);
        let (mode, wanted) = (worker::ResolveMode::Default, ["how".to_owned()]);
        let worker = &fixture.worker;
        worker
            .attestation_chain(&session, &reference, &platform, mode, &wanted, &ctx.progress)
            .await
    };
    let chain = ask("amd64").await.expect("found").expect("it is an index");
    assert_eq!((chain.root, chain.image), (root, image));
    assert_eq!(
        (chain.attestation, chain.signatures),
        (Some(attestation), vec![signature])
    );
    let told: Vec<_> = chain.blobs.keys().copied().collect();
    let mut expected = vec![root, attestation, signature, signed, wanted];
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert_eq!(chain.blobs[&signed].1, b"signed");
    let error = ask("riscv64").await.expect_err("there is none");
    assert!(error.to_string().contains("riscv64"), "{error}");
}
