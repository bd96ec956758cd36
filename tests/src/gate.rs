//! A registry behind a token server: who shows no token of it is sent there.
//!
//! ```text
//! GET /token, user and password ─▶ a token, noted           /v2/… with a token ─▶ the registry
//!                                                           /v2/… without ─▶ 401, realm and scope
//! ```
//!
//! Each connection carries one request, so that bytes can be handed through as they come.
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Serves until the process ends.
#[derive(Debug)]
pub struct TokenGate {
    /// `127.0.0.1:PORT`.
    pub address: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: String,
    registry: String,
    /// `Basic …` of the one user there is.
    user: String,
    given: Mutex<Vec<String>>,
}

impl TokenGate {
    /// In front of a registry; `user` is how the one user shows himself (`Basic <base64 of name:password>`).
    ///
    /// # Panics
    /// There is no free port.
    pub fn start(registry: &str, user: &str) -> TokenGate {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its number").to_string();
        let shared = Arc::new(Shared {
            address: address.clone(),
            registry: registry.to_owned(),
            user: user.to_owned(),
            given: Mutex::default(),
        });
        let served = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = served.clone();
                // Whoever hangs up early has seen enough.
                thread::spawn(move || shared.answer(&stream).ok());
            }
        });
        TokenGate { address, shared }
    }

    /// The scopes of the tokens that were given so far.
    pub fn given(&self) -> Vec<String> {
        self.shared.given().clone()
    }
}

impl Shared {
    fn given(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, stream: &TcpStream) -> Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let target = first.split(' ').nth(1).context("a request line")?.to_owned();
        let (mut headers, mut head) = (BTreeMap::new(), first);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            let name = name.to_lowercase();
            if !["connection", "authorization"].contains(&name.as_str()) {
                head += &line;
            }
            headers.insert(name, value.to_owned());
        }
        let shown = headers.get("authorization").cloned().unwrap_or_default();
        if let Some(query) = target.strip_prefix("/token?") {
            return self.token(stream, query, &shown);
        }
        let number = shown
            .strip_prefix("Bearer token-")
            .and_then(|text| text.parse().ok());
        if number.is_none_or(|number: usize| number >= self.given().len()) {
            return self.refuse(stream, &target);
        }
        let mut registry = TcpStream::connect(&self.registry)?;
        write!(registry, "{head}Connection: close\r\n\r\n")?;
        let mut upstream = registry.try_clone()?;
        let length = headers.get("content-length").map_or(Ok(0), |text| text.parse())?;
        let is_chunked = headers.contains_key("transfer-encoding");
        let sending = thread::spawn(move || {
            let mut body: Box<dyn Read> = match is_chunked {
                true => Box::new(reader),
                false => Box::new(reader.take(length)),
            };
            std::io::copy(&mut body, &mut upstream)
        });
        std::io::copy(&mut registry, &mut &*stream)?;
        stream.shutdown(Shutdown::Both)?;
        // It has its answer; what it still sends is of no interest.
        drop(sending);
        Ok(())
    }

    fn token(&self, mut stream: &TcpStream, query: &str, shown: &str) -> Result<()> {
        if shown != self.user {
            return Ok(stream.write_all(
                b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            )?);
        }
        let scopes = query.split('&').filter_map(|part| part.strip_prefix("scope="));
        let scopes: Vec<String> = scopes
            .map(|scope| scope.replace("%3A", ":").replace("%2F", "/"))
            .collect();
        let number = {
            let mut given = self.given();
            given.push(scopes.join(" ").replace("%2C", ","));
            given.len() - 1
        };
        let body = format!("{{\"token\":\"token-{number}\",\"expires_in\":300}}");
        let length = body.len();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
        Ok(write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}")?)
    }

    fn refuse(&self, mut stream: &TcpStream, target: &str) -> Result<()> {
        let name = target.trim_start_matches("/v2/");
        let end = ["/blobs/", "/manifests/"]
            .iter()
            .filter_map(|part| name.find(part))
            .min();
        let scope = format!("repository:{}:pull", &name[..end.unwrap_or(0)]);
        let realm = format!("http://{}/token", self.address);
        let head = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n";
        let challenge = format!("Bearer realm=\"{realm}\",service=\"gate\",scope=\"{scope}\"");
        Ok(write!(stream, "{head}WWW-Authenticate: {challenge}\r\n\r\n")?)
    }
}
