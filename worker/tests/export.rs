//! Images out of the worker and back in: archives read by skopeo, a real registry, a layout as a base.
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use cache::layer::TarLayerWriter;
use cache::{Cache, ImmutableRef, NoMeter, RecordInfo};
use oci::{Platform, Reference};
use registry::{HostsConfig, NoCredentials, Registry};
use session::{LocalCaller, LocalOptions, SessionId};
use solver::progress::{Sink, VertexInfo};
use tree::{Entry, Kind, RootPath};
use worker::export::{Dest, Done, Kind as Exporter, PlatformResult, Request, Source, export};
use worker::{Entitlements, ImagePlace, Options, ResolveMode, Session, Worker};

struct Fixture {
    folder: tempfile::TempDir,
    worker: Arc<Worker>,
}

fn session(fixture: &Fixture, layout: Option<&Path>) -> Session {
    let oci_layouts = layout
        .map(|path| ("base".to_owned(), path.to_owned()))
        .into_iter()
        .collect();
    let options = LocalOptions {
        oci_layouts,
        ..LocalOptions::default()
    };
    let caller = Arc::new(LocalCaller::new(SessionId::new("test"), options));
    Session::new(caller, &fixture.worker.cache, Entitlements::default())
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

fn sink() -> Sink {
    let digest = oci::Digest::of(b"test");
    Sink::silent(Arc::new(VertexInfo {
        digest,
        inputs: Vec::new(),
        name: "test".into(),
        group: None,
    }))
}

/// A layer with one file above `parent`.
fn layer(cache: &Cache, parent: &ImmutableRef, name: &str, text: &str, mtime: i64) -> ImmutableRef {
    let mut tar = TarLayerWriter::new(cache.content().ingest().expect("a blob"));
    let mut entry = Entry::new(RootPath::clean(name).expect("a path"), Kind::File, 0o644);
    entry.size = text.len() as u64;
    entry.mtime = tree::Timestamp::from_secs(mtime);
    tar.add(&entry, text.as_bytes()).expect("an entry");
    let (ingest, made) = tar.finish().expect("a layer");
    cache
        .add_tar_layer(parent, ingest, made, RecordInfo::new(name))
        .expect("a ref")
}

fn source(result: ImmutableRef, epoch: Option<i64>) -> Source {
    let platform = Platform::parse("linux/amd64").expect("a platform");
    let config = br#"{"architecture":"amd64","os":"linux","config":{"Cmd":["/a"]},"history":[{"created_by":"COPY a"},{"created_by":"CMD","empty_layer":true},{"created_by":"COPY b"}]}"#;
    let platforms = vec![PlatformResult {
        id: "linux/amd64".into(),
        platform,
        result: Some(result),
        config: config.to_vec(),
        base_config: None,
        epoch,
        attestations: Vec::new(),
        inline_cache: None,
    }];
    Source {
        platforms,
        is_index: false,
    }
}

async fn give(
    fixture: &Fixture,
    kind: Exporter,
    attrs: &[(&str, &str)],
    dest: Option<Dest>,
    source: &Source,
) -> Done {
    let attrs: BTreeMap<_, _> = attrs
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    let request = Request { kind, attrs, dest };
    export(&fixture.worker, &session(fixture, None), request, source, &sink())
        .await
        .expect("an export")
}

fn two_layers(cache: &Cache) -> ImmutableRef {
    let below = layer(cache, &cache.scratch(), "a", "one", 1_700_000_000);
    layer(cache, &below, "b", "two", 1_800_000_000)
}

fn file(path: &Path) -> Option<Dest> {
    Some(Dest::Writer(Box::new(
        std::fs::File::create(path).expect("a file"),
    )))
}

#[tokio::test]
async fn archives_are_read_by_others_and_equal_when_repeated() {
    let fixture = fixture();
    let source = source(two_layers(&fixture.worker.cache), Some(1_750_000_000));
    let mut digests = Vec::new();
    for (kind, scheme) in [
        (Exporter::Oci, "oci-archive"),
        (Exporter::Docker, "docker-archive"),
    ] {
        for compression in ["gzip", "zstd", "uncompressed"] {
            // Docker's old archives know no zstd.
            if (scheme, compression) == ("docker-archive", "zstd") {
                continue;
            }
            let path = fixture.folder.path().join(format!("{scheme}-{compression}.tar"));
            let attrs = [("name", "example.com/app:v1"), ("compression", compression)];
            let done = give(&fixture, kind, &attrs, file(&path), &source).await;
            let again = fixture.folder.path().join("again.tar");
            give(&fixture, kind, &attrs, file(&again), &source).await;
            let (first, second) = (
                std::fs::read(&path).expect("it"),
                std::fs::read(&again).expect("it"),
            );
            assert!(first == second, "{scheme} {compression}: twice the same");
            assert_eq!(done.images[0].layers.len(), 2);
            digests.push(done.response["containerimage.digest"].clone());
            if !Path::new("/usr/bin/skopeo").exists() {
                eprintln!("skipped: skopeo is not installed");
                continue;
            }
            let shown = Command::new("/usr/bin/skopeo")
                .args(["inspect", "--config", &format!("{scheme}:{}", path.display())])
                .output()
                .expect("skopeo runs");
            assert!(
                shown.status.success(),
                "{scheme} {compression}: {}",
                String::from_utf8_lossy(&shown.stderr)
            );
            let config: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
            assert_eq!(config["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(2));
            assert_eq!(
                config["created"], "2025-06-15T15:06:40Z",
                "no later than the epoch"
            );
            assert_eq!(config["history"].as_array().map(Vec::len), Some(3));
        }
    }
    digests.sort();
    digests.dedup();
    assert_eq!(
        digests.len(),
        5,
        "every compression and media type is another image"
    );
}

#[tokio::test]
async fn files_go_into_a_directory_and_a_tar() {
    let fixture = fixture();
    let source = source(two_layers(&fixture.worker.cache), None);
    let out = fixture.folder.path().join("out");
    give(
        &fixture,
        Exporter::Local,
        &[],
        Some(Dest::Dir(out.clone())),
        &source,
    )
    .await;
    // Again over what is there.
    give(
        &fixture,
        Exporter::Local,
        &[],
        Some(Dest::Dir(out.clone())),
        &source,
    )
    .await;
    assert_eq!(std::fs::read(out.join("a")).expect("it"), b"one");
    assert_eq!(std::fs::read(out.join("b")).expect("it"), b"two");
    let path = fixture.folder.path().join("out.tar");
    give(&fixture, Exporter::Tar, &[], file(&path), &source).await;
    let mut tar = tar::Archive::new(std::fs::File::open(&path).expect("it"));
    let names: Vec<_> = tar
        .entries()
        .expect("a tar")
        .map(|entry| {
            entry
                .expect("an entry")
                .path()
                .expect("a path")
                .display()
                .to_string()
        })
        .collect();
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test]
async fn a_layout_is_a_base_without_being_copied() {
    let fixture = fixture();
    let layout = fixture.folder.path().join("layout");
    let built = source(two_layers(&fixture.worker.cache), None);
    give(
        &fixture,
        Exporter::Oci,
        &[("name", "base:v1")],
        Some(Dest::Dir(layout.clone())),
        &built,
    )
    .await;

    let fresh = self::fixture();
    let session = session(&fresh, Some(&layout));
    let reference = Reference::parse_normalized("base:v1").expect("a reference");
    let platform = Platform::parse("linux/amd64").expect("a platform");
    let place = ImagePlace::OciLayout { store: "base".into() };
    let found = fresh
        .worker
        .resolve_image(
            &session,
            &reference,
            &platform,
            ResolveMode::Default,
            place,
            &sink(),
        )
        .await
        .expect("it is there");
    assert!(found.config.starts_with(b"{"));
    let arm = Platform::parse("linux/s390x").expect("a platform");
    let place = ImagePlace::OciLayout {
        store: "other".into(),
    };
    let error = fresh
        .worker
        .resolve_image(&session, &reference, &arm, ResolveMode::Default, place, &sink())
        .await;
    let error = error.expect_err("no such layout").to_string();
    assert!(error.contains("the client's layout \"other\""), "{error}");
}

struct Server(Child, String);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn server(folder: &Path) -> Option<Server> {
    if !Path::new("/usr/bin/docker-registry").exists() {
        eprintln!("skipped: docker-registry is not installed");
        return None;
    }
    let port = TcpListener::bind("127.0.0.1:0")
        .expect("a free port")
        .local_addr()
        .expect("its number")
        .port();
    let address = format!("127.0.0.1:{port}");
    let config = folder.join("registry.yml");
    let data = folder.join("registry");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
        data.display()
    );
    std::fs::write(&config, text).expect("a config");
    let process = Command::new("/usr/bin/docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the registry starts");
    let server = Server(process, address);
    while std::net::TcpStream::connect(&server.1).is_err() {
        std::thread::yield_now();
    }
    Some(server)
}

#[tokio::test]
async fn a_pushed_image_is_a_lazy_base_elsewhere() {
    let fixture = fixture();
    let Some(server) = server(fixture.folder.path()) else {
        return;
    };
    let name = format!("{}/team/app:v1", server.1);
    let source = source(two_layers(&fixture.worker.cache), None);
    let attrs = [
        ("name", name.as_str()),
        ("push", "true"),
        ("annotation.org.example", "yes"),
    ];
    let done = give(&fixture, Exporter::Image, &attrs, None, &source).await;
    assert_eq!(done.response["image.name"], name);
    assert!(
        fixture
            .worker
            .cache
            .images()
            .get(&name)
            .expect("the store")
            .is_some(),
        "it has its name here too"
    );

    let fresh = self::fixture();
    let reference = Reference::parse_normalized(&name).expect("a reference");
    let platform = Platform::parse("linux/amd64").expect("a platform");
    let session = session(&fresh, None);
    let (pulled, config) = fresh
        .worker
        .image_ref(&session, &reference, &platform, &sink())
        .await
        .expect("it can be pulled");
    assert_eq!(config.rootfs.diff_ids.len(), 2);
    let fetched = || {
        fresh
            .worker
            .cache
            .counters()
            .blobs_fetched
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    assert_eq!(fetched(), 0, "no layer is fetched before it is read");
    let meter: Arc<dyn cache::Meter> = Arc::new(NoMeter);
    let view = pulled.view(&meter).await.expect("layers come");
    let path = RootPath::clean("b").expect("a path");
    assert_eq!(view.read_small(&path, 10).expect("a file"), Some(b"two".to_vec()));
    assert_eq!(fetched(), 2);

    let requests = fresh.worker.registry_counters().requests();
    let place = ImagePlace::Registry;
    let found = fresh
        .worker
        .resolve_image(
            &session,
            &reference,
            &platform,
            ResolveMode::Default,
            place,
            &sink(),
        )
        .await
        .expect("it is there");
    assert_eq!(done.response["containerimage.digest"], found.digest.to_string());
    assert_eq!(
        fresh.worker.registry_counters().requests() - requests,
        1,
        "only the tag is asked for again"
    );

    // The same layers again, into another repository of that registry: nothing is sent.
    let other = format!("{}/team/other:v1", server.1);
    let config = oci::ImageConfig::parse(&found.config).expect("a config");
    let again = Source {
        platforms: vec![PlatformResult {
            id: "linux/amd64".into(),
            platform: config.platform(),
            result: Some(pulled),
            config: found.config,
            base_config: None,
            epoch: None,
            attestations: Vec::new(),
            inline_cache: None,
        }],
        is_index: false,
    };
    let sent = fresh.worker.registry_counters().pushed_bytes();
    give(
        &fresh,
        Exporter::Image,
        &[("name", &other), ("push", "true"), ("store", "false")],
        None,
        &again,
    )
    .await;
    let sent = fresh.worker.registry_counters().pushed_bytes() - sent;
    assert!(
        sent < 2000,
        "{sent} bytes were sent, the layers should have been mounted"
    );
}
