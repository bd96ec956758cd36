//! Against Debian's `docker-registry` on loopback, and against a server that misbehaves on purpose.
//! Where that program is missing its test says so and ends.
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use oci::{Descriptor, Digest, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Reference};
use registry::{BlobSource, HostsConfig, NoCredentials, Pushed, Registry, RegistryError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

struct Bytes(Vec<u8>);

#[async_trait]
impl BlobSource for Bytes {
    async fn open(&self) -> std::io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Ok(Box::new(std::io::Cursor::new(self.0.clone())))
    }
}

struct Server {
    process: Child,
    address: String,
    _state: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn start() -> Option<Server> {
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
    let state = tempfile::tempdir().expect("a directory");
    let config = state.path().join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
        state.path().join("data").display()
    );
    std::fs::File::create(&config)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .expect("a config");
    let process = Command::new("/usr/bin/docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the registry starts");
    let server = Server {
        process,
        address,
        _state: state,
    };
    while std::net::TcpStream::connect(&server.address).is_err() {
        std::thread::yield_now();
    }
    Some(server)
}

fn client() -> Registry {
    Registry::new(HostsConfig::default(), Arc::new(NoCredentials)).expect("a client")
}

fn reference(address: &str, rest: &str) -> Reference {
    Reference::parse_normalized(&format!("{address}/{rest}")).expect("a reference")
}

#[tokio::test]
async fn what_is_pushed_comes_back() {
    let Some(server) = start() else { return };
    let registry = client();
    let name = reference(&server.address, "team/app:v1");
    // Large enough to come in ranges, and not a multiple of them.
    let layer: Vec<u8> = (0..(17 << 20) + 4321_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let config =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
    let (layer_descriptor, config_descriptor) = (
        Descriptor::of(OCI_LAYER, &layer),
        Descriptor::of(OCI_CONFIG, &config),
    );
    let missing = registry.resolve(&name).await.expect_err("nothing is there yet");
    assert!(missing.is_not_found(), "{missing}");
    assert_eq!(missing.to_string(), format!("{name}: not found"));

    let (layer_source, config_source) = (Bytes(layer.clone()), Bytes(config.clone()));
    for (descriptor, source) in [
        (&layer_descriptor, &layer_source),
        (&config_descriptor, &config_source),
    ] {
        let pushed = registry
            .push_blob(&name, descriptor, source, &[], None)
            .await
            .expect("a push");
        assert_eq!(pushed, Pushed::Uploaded);
    }
    let again = client()
        .push_blob(&name, &layer_descriptor, &layer_source, &[], None)
        .await
        .expect("a push");
    assert_eq!(again, Pushed::Existed);
    let other = reference(&server.address, "team/other:v1");
    let mounted = registry
        .push_blob(
            &other,
            &layer_descriptor,
            &layer_source,
            std::slice::from_ref(&name),
            None,
        )
        .await;
    assert_eq!(mounted.expect("a push"), Pushed::Mounted);

    let manifest = Manifest::new(
        OCI_MANIFEST,
        config_descriptor.clone(),
        vec![layer_descriptor.clone()],
    )
    .to_json();
    let digest = registry
        .push_manifest(&name, OCI_MANIFEST, &manifest, false)
        .await
        .expect("a push");
    let sent = registry.counters().pushed_bytes();
    assert_eq!(
        sent,
        (layer.len() + config.len()) as u64,
        "each blob is sent once"
    );

    let registry = client();
    for found in [name.clone(), name.clone().with_digest(digest)] {
        let resolved = registry.resolve(&found).await.expect("it is there");
        assert_eq!(
            (resolved.descriptor.digest, &resolved.bytes[..]),
            (digest, &manifest[..])
        );
        assert_eq!(resolved.descriptor.media_type, OCI_MANIFEST);
    }
    let last = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let progress: registry::Progress = Arc::new({
        let last = last.clone();
        move |bytes| last.store(bytes, std::sync::atomic::Ordering::Relaxed)
    });
    let mut reader = registry
        .fetch_blob(&name, &layer_descriptor, Some(progress))
        .await
        .expect("it is there");
    let mut fetched = Vec::new();
    reader.read_to_end(&mut fetched).await.expect("it comes whole");
    assert!(fetched == layer, "the bytes are the same");
    assert_eq!(
        last.load(std::sync::atomic::Ordering::Relaxed),
        layer.len() as u64
    );
    assert!(
        registry.counters().requests() >= 6,
        "a large blob comes in ranges"
    );

    let unknown = Descriptor::of(OCI_LAYER, b"never pushed");
    let error = registry
        .fetch_blob(&name, &unknown, None)
        .await
        .err()
        .expect("it is not there");
    assert!(error.is_not_found(), "{error}");
}

/// Answers each connection with the next of some canned answers, and says which requests came.
async fn canned(answers: Vec<Vec<u8>>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    let server = tokio::spawn(async move {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut part = [0; 1024];
                match stream.read(&mut part).await.expect("a request") {
                    0 => break,
                    count => request.extend_from_slice(&part[..count]),
                }
            }
            requests.push(String::from_utf8_lossy(&request).into_owned());
            stream.write_all(&answer).await.expect("the client listens");
        }
        requests
    });
    (address, server)
}

fn plain(address: &str) -> Registry {
    let config = registry::HostConfig {
        plain_http: true,
        ..registry::HostConfig::default()
    };
    let hosts = [(address.to_owned(), config)].into();
    Registry::new(
        HostsConfig {
            hosts,
            ..HostsConfig::default()
        },
        Arc::new(NoCredentials),
    )
    .expect("a client")
}

fn answer(status: &str, headers: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn a_broken_transfer_is_taken_up_where_it_broke() {
    let body: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
    let (address, server) = canned(vec![
        answer("200 OK", "", body.len(), &body[..40_000]),
        answer("206 Partial Content", "", body.len() - 40_000, &body[40_000..]),
    ])
    .await;
    let descriptor = Descriptor::of(OCI_LAYER, &body);
    let reader = plain(&address)
        .fetch_blob(&reference(&address, "a/b"), &descriptor, None)
        .await
        .expect("an answer");
    let fetched = reader.read_all(1 << 20).await.expect("the whole");
    assert!(fetched[..] == body[..]);
    let requests = server.await.expect("the server ends");
    assert!(
        requests[1].to_lowercase().contains("range: bytes=40000-"),
        "{}",
        requests[1]
    );
}

#[tokio::test]
async fn other_bytes_than_asked_for_are_refused() {
    type Case = (&'static str, &'static [u8], fn(&RegistryError) -> bool);
    let cases: [Case; 2] = [
        ("other bytes", b"evil", |error| {
            matches!(error, RegistryError::WrongDigest { .. })
        }),
        ("more bytes", b"good and more", |error| {
            matches!(error, RegistryError::Invalid { .. })
        }),
    ];
    for (what, body, is_expected) in cases {
        let (address, _server) = canned(vec![answer("200 OK", "", body.len(), body)]).await;
        let descriptor = Descriptor::of(OCI_LAYER, b"good");
        let reader = plain(&address)
            .fetch_blob(&reference(&address, "a/b"), &descriptor, None)
            .await
            .expect("an answer");
        let error = reader.read_all(1 << 20).await.expect_err(what);
        assert!(is_expected(&error), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_manifest_that_is_not_what_its_digest_says_is_refused() {
    let manifest = Manifest::new(OCI_MANIFEST, Descriptor::of(OCI_CONFIG, b"{}"), vec![]).to_json();
    let headers = format!(
        "content-type: {OCI_MANIFEST}\r\ndocker-content-digest: {}\r\n",
        Digest::of(b"other")
    );
    let (address, _server) = canned(vec![answer("200 OK", &headers, manifest.len(), &manifest)]).await;
    let error = plain(&address)
        .resolve(&reference(&address, "a/b:t"))
        .await
        .expect_err("the digest is another");
    assert!(matches!(error, RegistryError::WrongDigest { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_tells_what_the_registry_says() {
    let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    let (address, _server) = canned(vec![answer(
        "401 Unauthorized",
        "www-authenticate: Basic realm=\"x\"\r\n",
        body.len(),
        body,
    )])
    .await;
    let name = reference(&address, "a/b:t");
    let error = plain(&address)
        .resolve(&name)
        .await
        .expect_err("nobody is shown anything");
    let expected = format!(
        "{name}: pull access denied, repository does not exist or may require authorization: UNAUTHORIZED: authentication required"
    );
    assert_eq!(error.to_string(), expected);
}

struct Known(registry::Credential);

#[async_trait]
impl registry::Credentials for Known {
    async fn credentials(&self, _: &str) -> Result<Option<registry::Credential>, registry::CredentialError> {
        Ok(Some(self.0.clone()))
    }
}

/// A canned answer whose text is only known once the server's address is.
async fn token_server(more: Vec<Vec<u8>>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let challenge =
        format!("www-authenticate: Bearer realm=\"http://{address}/token\",service=\"s\",scope=\"x\"\r\n");
    let token = br#"{"token":"opensesame","expires_in":300}"#;
    let mut answers = vec![
        answer("401 Unauthorized", &challenge, 0, b""),
        answer("200 OK", "", token.len(), token),
    ];
    answers.extend(more);
    let listener = tokio::net::TcpListener::bind(&address)
        .await
        .expect("the port is still free");
    let server = tokio::spawn(serve(listener, answers));
    (address, server)
}

async fn serve(listener: tokio::net::TcpListener, answers: Vec<Vec<u8>>) -> Vec<String> {
    let mut requests = Vec::new();
    for answer in answers {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = Vec::new();
        let mut part = [0; 4096];
        let count = stream.read(&mut part).await.expect("a request");
        request.extend_from_slice(&part[..count]);
        requests.push(String::from_utf8_lossy(&request).into_owned());
        stream.write_all(&answer).await.expect("the client listens");
    }
    requests
}

#[tokio::test]
async fn a_challenge_is_met_with_a_token_that_is_used_again_and_goes_nowhere_else() {
    let body = b"some layer".to_vec();
    let (elsewhere, other) = canned(vec![answer("200 OK", "", body.len(), &body)]).await;
    let manifest = Manifest::new(OCI_MANIFEST, Descriptor::of(OCI_CONFIG, b"{}"), vec![]).to_json();
    let typed = format!("content-type: {OCI_MANIFEST}\r\n");
    let redirect = format!("location: http://{elsewhere}/somewhere\r\n");
    let more = vec![
        answer("200 OK", &typed, manifest.len(), &manifest),
        answer("307 Temporary Redirect", &redirect, 0, b""),
    ];
    let (address, server) = token_server(more).await;
    let config = registry::HostConfig {
        plain_http: true,
        ..registry::HostConfig::default()
    };
    let hosts = [(address.clone(), config)].into();
    let secret = registry::Password::new("hunter2");
    let credential = registry::Credential::Basic {
        username: "me".into(),
        secret,
    };
    let registry = Registry::new(
        HostsConfig {
            hosts,
            ..HostsConfig::default()
        },
        Arc::new(Known(credential)),
    )
    .expect("a client");
    let name = reference(&address, "a/b:t");
    registry.resolve(&name).await.expect("the token opens it");
    let reader = registry
        .fetch_blob(&name, &Descriptor::of(OCI_LAYER, &body), None)
        .await
        .expect("it is elsewhere");
    assert_eq!(&reader.read_all(100).await.expect("it comes")[..], &body[..]);

    let requests: Vec<_> = server
        .await
        .expect("the server ends")
        .iter()
        .map(|text| text.to_lowercase())
        .collect();
    assert!(
        !requests[0].contains("authorization:"),
        "nothing is shown before it is asked for"
    );
    assert!(
        requests[1].contains("get /token?service=s&scope=repository%3aa%2fb%3apull"),
        "{}",
        requests[1]
    );
    assert!(
        requests[1].contains("authorization: basic "),
        "the token server is shown the credentials"
    );
    assert!(
        requests[2].contains("authorization: bearer opensesame"),
        "{}",
        requests[2]
    );
    assert!(
        requests[3].contains("authorization: bearer opensesame"),
        "the token is used again"
    );
    let redirected = other.await.expect("the server ends")[0].to_lowercase();
    assert!(
        !redirected.contains("authorization:"),
        "another host is shown nothing: {redirected}"
    );
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let manifest = Manifest::new(OCI_MANIFEST, Descriptor::of(OCI_CONFIG, b"{}"), vec![]).to_json();
    let typed = format!("content-type: {OCI_MANIFEST}\r\n");
    let (address, server) = token_server(vec![answer("200 OK", &typed, manifest.len(), &manifest)]).await;
    let config = registry::HostConfig {
        plain_http: true,
        ..registry::HostConfig::default()
    };
    let hosts = [(address.clone(), config)].into();
    let credential = registry::Credential::IdentityToken(registry::Password::new("refresh"));
    let registry = Registry::new(
        HostsConfig {
            hosts,
            ..HostsConfig::default()
        },
        Arc::new(Known(credential)),
    )
    .expect("a client");
    registry
        .resolve(&reference(&address, "a/b:t"))
        .await
        .expect("the token opens it");
    let requests = server.await.expect("the server ends");
    assert!(requests[1].starts_with("POST /token"), "{}", requests[1]);
}

/// Fetches tokens itself, one after the other, and would rather not be asked for credentials.
struct Fetches {
    key: [u8; 32],
    is_proven: bool,
    fetched: Arc<std::sync::atomic::AtomicUsize>,
}

#[async_trait]
impl registry::Credentials for Fetches {
    async fn credentials(&self, _: &str) -> Result<Option<registry::Credential>, registry::CredentialError> {
        Err("the credentials are not to be shown".into())
    }

    async fn authority(&self, _: &str) -> Result<Option<registry::Authority>, registry::CredentialError> {
        let (key, is_proven) = (self.key, self.is_proven);
        Ok(Some(registry::Authority { key, is_proven }))
    }

    async fn token(
        &self,
        question: &registry::TokenQuestion,
    ) -> Result<registry::Token, registry::CredentialError> {
        assert_eq!(question.scopes, ["repository:a/b:pull"]);
        assert_eq!(
            (question.realm.as_str(), question.service.as_str()),
            ("http://t/", "s")
        );
        let number = self.fetched.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        Ok(registry::Token {
            text: registry::Password::new(format!("token-{number}")),
            seconds: Some(300),
        })
    }
}

#[tokio::test]
async fn a_token_the_client_fetched_serves_the_same_client_later_and_no_other() {
    let manifest = Manifest::new(OCI_MANIFEST, Descriptor::of(OCI_CONFIG, b"{}"), vec![]).to_json();
    let typed = format!("content-type: {OCI_MANIFEST}\r\n");
    let refused = || {
        let challenge = "www-authenticate: Bearer realm=\"http://t/\",service=\"s\",scope=\"x\"\r\n";
        answer("401 Unauthorized", challenge, 0, b"")
    };
    let opened = || answer("200 OK", &typed, manifest.len(), &manifest);
    let (address, server) = canned(vec![
        refused(),
        opened(), // the first client
        refused(),
        opened(), // the same client's second build
        refused(),
        opened(), // one who only says that it is the same
        refused(),
        refused(),
        opened(), // the same client again: the registry knows its token no more
    ])
    .await;
    let none = plain(&address);
    let fetched = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let build = |is_proven| {
        none.with_credentials(Arc::new(Fetches {
            key: [1; 32],
            is_proven,
            fetched: fetched.clone(),
        }))
    };
    let name = reference(&address, "a/b:t");
    for is_proven in [true, true, false, true] {
        build(is_proven).resolve(&name).await.expect("the token opens it");
    }
    let shown: Vec<_> = server
        .await
        .expect("the server ends")
        .iter()
        .map(|request| {
            let request = request.to_lowercase();
            let token = request.split_once("authorization: bearer ");
            token.map_or(String::new(), |(_, rest)| {
                rest.lines().next().unwrap_or_default().to_owned()
            })
        })
        .collect();
    let expected = [
        "", "token-1", "", "token-1", "", "token-2", "", "token-1", "token-3",
    ];
    assert_eq!(shown, expected);
}
