//! The proxy from a step's side: what passes, what does not, and what is noted.

use super::*;
use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A server at loopback that answers what `answer` makes of each request's head, and counts.
async fn server(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a listener");
    let address = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicUsize::new(0));
    let (counted, answer) = (count.clone(), Arc::new(answer));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (counted, answer) = (counted.clone(), answer.clone());
            tokio::spawn(async move {
                let head = head(&mut stream).await;
                counted.fetch_add(1, Ordering::SeqCst);
                stream.write_all(answer(&head).as_bytes()).await.expect("written");
            });
        }
    });
    (address, count)
}

async fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => bytes.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(bytes).expect("text")
}

fn start(is_host: bool, policy: Option<Arc<dyn RequestPolicy>>) -> Proxy {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    Proxies::default()
        .start(listener, is_host, policy)
        .expect("a proxy")
}

/// Asks the proxy, and reads to the end.
async fn ask(proxy: &Proxy, request: &str) -> String {
    let mut stream = TcpStream::connect(proxy.address).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("read");
    text
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";

#[tokio::test]
async fn a_request_passes_and_is_noted() {
    let (server, count) = server(|head| {
        assert!(head.starts_with("GET /file?x=1 HTTP/1.1\r\n"), "{head}");
        let head = head.to_lowercase();
        assert!(!head.contains("proxy-") && head.contains("x-mine: 1"), "{head}");
        OK.to_owned()
    })
    .await;
    let proxy = start(true, None);
    let request = format!(
        "GET http://{server}/file?x=1 HTTP/1.1\r\nhost: elsewhere\r\nproxy-authorization: Basic x\r\nx-mine: 1\r\nconnection: close\r\n\r\n"
    );
    let text = ask(&proxy, &request).await;
    assert!(
        text.starts_with("HTTP/1.1 200 OK") && text.ends_with("hello"),
        "{text}"
    );
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let capture = proxy.finish().await;
    let material = Material {
        address: format!("http://{server}/file?x=1"),
        digest: oci::Digest::of(b"hello"),
    };
    assert_eq!(capture.materials(), [material]);
    assert_eq!(capture.unknown(), []);
    let log = format!("proxy network requests:\n- GET http://{server}/file?x=1 -> 200\n");
    assert_eq!(capture.log(), log);
}

#[tokio::test]
async fn a_step_without_the_network_of_the_host_does_not_reach_its_loopback() {
    let (server, count) = server(|_| OK.to_owned()).await;
    let proxy = start(false, None);
    for host in [server.to_string(), format!("localhost:{}", server.port())] {
        let request = format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let text = ask(&proxy, &request).await;
        assert!(
            text.starts_with("HTTP/1.1 502") && text.contains("loopback"),
            "{text}"
        );
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
    let unknown = proxy.finish().await.unknown();
    let reasons: Vec<_> = unknown.iter().map(|entry| entry.reason).collect();
    assert_eq!(reasons, ["upstream_error", "upstream_error"]);
}

struct Table(Vec<(&'static str, Result<Option<String>, String>)>);

#[async_trait]
impl RequestPolicy for Table {
    async fn judge(&self, address: &str) -> Result<Option<String>, String> {
        let found = self.0.iter().find(|(part, _)| address.contains(part));
        found.map_or(Ok(None), |(_, answer)| answer.clone())
    }
}

#[tokio::test]
async fn policies_decide_about_requests() {
    let (server, count) = server(|head| {
        assert!(
            head.starts_with("GET /other ") || head.starts_with("POST /fine "),
            "{head}"
        );
        OK.to_owned()
    })
    .await;
    let policy = Arc::new(Table(vec![
        ("/secret", Err("no".into())),
        ("/old", Ok(Some(format!("http://{server}/other")))),
        ("/odd", Ok(Some("docker-image://x".into()))),
    ]));
    let proxy = start(true, Some(policy));
    for (request, expected) in [
        ("GET http://h.invalid/secret", "403"),
        ("GET http://h.invalid/old", "200"),
        ("POST http://h.invalid/old", "403"),
        ("GET http://h.invalid/odd", "403"),
        (&format!("POST http://{server}/fine"), "200"),
    ] {
        let text = ask(
            &proxy,
            &format!("{request} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"),
        )
        .await;
        assert!(
            text.starts_with(&format!("HTTP/1.1 {expected}")),
            "{request}: {text}"
        );
    }
    assert_eq!(count.load(Ordering::SeqCst), 2);
    let capture = proxy.finish().await;
    let found: Vec<_> = capture
        .materials()
        .into_iter()
        .map(|material| material.address)
        .collect();
    assert_eq!(found, [format!("http://{server}/other")]);
}

#[tokio::test]
async fn behind_connect_is_the_host_by_our_certificate() {
    let proxy = start(true, None);
    let client = reqwest::Client::builder()
        .proxy(reqwest::Proxy::all(format!("http://{}", proxy.address)).expect("a proxy"))
        .tls_certs_only([reqwest::Certificate::from_pem(proxy.certificate().as_bytes()).expect("PEM")])
        .build()
        .expect("a client");
    // Nobody listens there: that the proxy says so inside of TLS shows that the certificate was believed.
    let response = client
        .get("https://127.0.0.1:1/x")
        .send()
        .await
        .expect("an answer");
    assert_eq!(response.status(), 502);
    let log = proxy.finish().await.log();
    assert_eq!(
        log,
        "proxy network requests:\n- GET https://127.0.0.1:1/x -> 502\n"
    );
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let proxy = start(true, None);
    for (request, expected) in [
        ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 400"),
        (
            "GET ftp://h/ HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 400",
        ),
        ("\u{1}\u{2}\r\n\r\n", "HTTP/1.1 400"),
        (
            &format!("GET http://h/{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20)),
            "HTTP/1.1 4",
        ),
    ] {
        let text = ask_roughly(&proxy, request).await;
        assert!(text.starts_with(expected), "{:.40}: {text}", request);
    }
    assert_eq!(proxy.finish().await.log(), "");
}

/// As [`ask`], when the proxy may hang up before all is said.
async fn ask_roughly(proxy: &Proxy, request: &str) -> String {
    let mut stream = TcpStream::connect(proxy.address).await.expect("connected");
    let (mut reading, mut writing) = stream.split();
    let mut bytes = Vec::new();
    let _ = tokio::join!(
        writing.write_all(request.as_bytes()),
        reading.read_to_end(&mut bytes)
    );
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn its_variables_take_the_place_of_others() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let _inside = runtime.enter();
    let proxy = start(true, None);
    let mut env = ["A=1", "HTTP_PROXY=http://old", "no_proxy=x", "FTP_PROXY=y"]
        .map(str::to_owned)
        .to_vec();
    proxy.announce(&mut env);
    let here = format!("http://{}", proxy.address);
    let count = |name: &str| env.iter().filter(|variable| variable.starts_with(name)).count();
    assert_eq!(
        (count("HTTP_PROXY="), count("no_proxy="), count("FTP_PROXY=")),
        (1, 1, 1)
    );
    assert!(env.contains(&format!("https_proxy={here}")));
}
