//! The way to a daemon: one HTTP/2 connection, over a socket, TCP with or without TLS, or another program's pipes.
//!
//! | address | |
//! |---|---|
//! | `unix:///run/builder/builderd.sock` | a socket of this machine |
//! | `tcp://host:port` | TCP; with TLS if certificates are given |
//! | `ssh://[user@]host[:port][/path/to/socket]` | `builder dial-stdio`, or `buildctl dial-stdio`, on that machine |
//! | `docker-container://name`, `podman-container://name` | `buildctl dial-stdio` in that container |
use hyper_util::rt::TokioIo;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// The most bytes of headers taken.
const MAX_HEADERS: u32 = 16 << 20;
/// Bytes a daemon may send ahead on one stream, and on all of them together.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The largest frame taken: fewer of them to look at.
const MAX_FRAME: u32 = 1 << 20;
/// How long a daemon may take to accept the connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon, and how to show who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it is.
    pub address: Address,
    /// Certificates of TLS; none to speak plainly.
    pub tls: Option<TlsFiles>,
}

/// Where a daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port, as `host:port`.
    Tcp(String),
    /// The stdin and stdout of a program.
    Program {
        /// The address as it was given.
        text: String,
        /// The program and its arguments.
        command: Vec<String>,
    },
}

/// Files of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who must have signed the daemon's certificate, PEM.
    pub ca: PathBuf,
    /// Our certificate and its key, PEM; daemons that build for anybody need none.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name in the daemon's certificate, if it is not the address's.
    pub server_name: Option<String>,
}

/// Why an address is none.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is none of those we know.
    #[error(
        "address {0:?}: must be unix://PATH, tcp://HOST:PORT, ssh://[USER@]HOST[:PORT][/SOCKET], docker-container://NAME or podman-container://NAME"
    )]
    Unknown(String),
    /// A known kind that is not supported.
    #[error("address {0:?}: {1}:// is not supported")]
    Unsupported(String, String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A certificate cannot be read.
    #[error("read {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody answers, or not as a daemon does.
    #[error("connect to {address}: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp://{address}"),
            Address::Program { text, .. } => f.write_str(text),
        }
    }
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        let unknown = || AddressError::Unknown(text.to_owned());
        let program = |command: Vec<String>| Address::Program {
            text: text.to_owned(),
            command,
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(unknown)?;
        // What stands on another program's command line must not be taken for an option of it.
        let is_plain = |word: &str| {
            !word.is_empty()
                && !word.starts_with('-')
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-/@:[]".contains(&byte))
        };
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Address::Unix(rest.into())),
            "tcp" if rest.contains(':') => Ok(Address::Tcp(rest.to_owned())),
            "ssh" if is_plain(rest) => ssh(rest).map(program).ok_or_else(unknown),
            "docker-container" | "podman-container" if is_plain(rest) => {
                let engine = scheme.split('-').next().unwrap_or_default();
                let words = [engine, "exec", "-i", rest, "buildctl", "dial-stdio"];
                Ok(program(words.map(str::to_owned).to_vec()))
            }
            "kube-pod" | "nerdctl-container" | "npipe" => {
                Err(AddressError::Unsupported(text.to_owned(), scheme.to_owned()))
            }
            _ => Err(unknown()),
        }
    }
}

/// `ssh` to a machine, where whichever client is there connects its pipes to the daemon.
fn ssh(rest: &str) -> Option<Vec<String>> {
    let (host, socket) = match rest.find('/') {
        Some(at) => (&rest[..at], Some(&rest[at..])),
        None => (rest, None),
    };
    let (user, host) = match host.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, host),
    };
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, Some(port.parse::<u16>().ok()?))
        }
        _ => (host, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || host.starts_with('-') || user.is_some_and(str::is_empty) {
        return None;
    }
    let mut words = vec!["ssh".to_owned(), "-T".to_owned()];
    if let Some(user) = user {
        words.extend(["-l".to_owned(), user.to_owned()]);
    }
    if let Some(port) = port {
        words.extend(["-p".to_owned(), port.to_string()]);
    }
    // Letters, digits and a few marks, so no quotes are needed.
    let addr = socket
        .map(|socket| format!("--addr unix://{socket} "))
        .unwrap_or_default();
    words.extend(["--".to_owned(), host.to_owned()]);
    words.push(format!(
        "if command -v builder >/dev/null 2>&1; then exec builder dial-stdio {addr}; \
         else exec buildctl {addr}dial-stdio; fi"
    ));
    Some(words)
}

impl Remote {
    /// Its socket, if it is one of this machine.
    pub(super) fn socket(&self) -> Option<&Path> {
        match &self.address {
            Address::Unix(path) => Some(path),
            Address::Tcp(_) | Address::Program { .. } => None,
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        let refused = |reason: String| ConnectError::Refused {
            address: self.address.to_string(),
            reason,
        };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let authority = match &self.address {
            Address::Tcp(address) => address.as_str(),
            Address::Unix(_) | Address::Program { .. } => "localhost",
        };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{authority}"))
            .map_err(|error| refused(chain(&error)))?
            .max_frame_size(MAX_FRAME)
            // Errors come in headers, and with them the whole Dockerfile.
            .http2_max_header_list_size(MAX_HEADERS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .tcp_nodelay(true)
            .connect_timeout(PATIENCE);
        if let Some(tls) = &self.tls {
            endpoint = endpoint
                .tls_config(config(tls)?)
                .map_err(|error| refused(chain(&error)))?;
        }
        let connected = match &self.address {
            Address::Tcp(_) => endpoint.connect().await,
            Address::Unix(path) => {
                let path = path.clone();
                let connector = tower::service_fn(move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                endpoint.connect_with_connector(connector).await
            }
            Address::Program { command, .. } => {
                let command = command.clone();
                let connector =
                    tower::service_fn(move |_| std::future::ready(Pipes::start(&command).map(TokioIo::new)));
                endpoint.connect_with_connector(connector).await
            }
        };
        connected.map_err(|error| refused(chain(&error)))
    }
}

fn config(files: &TlsFiles) -> Result<ClientTlsConfig, ConnectError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| ConnectError::File {
            path: path.clone(),
            source,
        })
    };
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&files.ca)?));
    if let Some((certificate, key)) = &files.identity {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    if let Some(name) = &files.server_name {
        config = config.domain_name(name);
    }
    Ok(config)
}

/// An error with its causes; transport errors say nothing by themselves.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    // A status shows its code and details too; the message is what says something.
    let first = match error.downcast_ref::<tonic::Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let mut said: Vec<String> = vec![first];
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !said.iter().any(|earlier| earlier.contains(&text)) {
            said.push(text);
        }
        cause = next.source();
    }
    if said.len() > 1 && said[0] == "transport error" {
        said.remove(0);
    }
    said.join(": ")
}

/// A program's stdout and stdin as one connection; the program ends with it.
struct Pipes {
    stdout: ChildStdout,
    stdin: ChildStdin,
    _child: Child,
}

impl Pipes {
    fn start(command: &[String]) -> io::Result<Pipes> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("run {program}: {error}")))?;
        let pipes = (child.stdout.take(), child.stdin.take());
        let (Some(stdout), Some(stdin)) = pipes else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        Ok(Pipes {
            stdout,
            stdin,
            _child: child,
        })
    }
}

impl AsyncRead for Pipes {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(context, buffer)
    }
}

impl AsyncWrite for Pipes {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_daemons() {
        let known = |text: &str| {
            Address::parse(text).map(|address| match address {
                Address::Program { command, .. } => command.join(" "),
                other => other.to_string(),
            })
        };
        for (text, expected) in [
            ("unix:///run/a.sock", "unix:///run/a.sock"),
            ("tcp://ci:1234", "tcp://ci:1234"),
            ("docker-container://bk", "docker exec -i bk buildctl dial-stdio"),
            ("podman-container://bk", "podman exec -i bk buildctl dial-stdio"),
        ] {
            assert_eq!(known(text).expect(text), expected);
        }
        let ssh = known("ssh://me@ci:2222/run/b.sock").expect("an address");
        assert!(ssh.starts_with("ssh -T -l me -p 2222 -- ci if "), "{ssh}");
        assert!(
            ssh.contains("builder dial-stdio --addr unix:///run/b.sock ;"),
            "{ssh}"
        );
        for text in [
            "",
            "/run/a.sock",
            "unix://a",
            "tcp://ci",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://me@-x",
            "ssh://ci:port",
            "ssh://a;reboot",
            "docker-container://-x",
            "docker-container://a b",
            "kube-pod://x",
            "http://ci:1",
        ] {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_the_address() {
        let remote = Remote {
            address: Address::parse("unix:///nonexistent/b.sock").expect("an address"),
            tls: None,
        };
        let error = remote.connect().await.expect_err("nobody").to_string();
        assert!(
            error.starts_with("connect to unix:///nonexistent/b.sock: "),
            "{error}"
        );
        assert!(error.contains("No such file"), "{error}");
    }
}
