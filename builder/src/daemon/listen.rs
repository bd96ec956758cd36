//! Where a daemon listens.
//!
//! | address | |
//! |---|---|
//! | `unix:///run/builder/builderd.sock` | a socket; its mode is 0660, its group as asked for |
//! | `tcp://host:port` | with mutual TLS; without TLS only on loopback, or when `--insecure-tcp` says so |
//! | `fd://` | sockets handed over by systemd (`LISTEN_FDS`) |
use rustix::net::{RecvFlags, recv};
use session::hand::{self, Hands};
use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Connections that were accepted and wait to be served.
const NEW_CONNECTIONS: usize = 16;
/// How long nothing is accepted after that failed.
const BREATH: Duration = Duration::from_millis(20);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port, as `host:port`.
    Tcp(String),
    /// Sockets of systemd.
    Inherited,
}

/// Files of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The daemon's certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Who must have signed the clients' certificates, PEM; without, every client is taken.
    pub client_ca: Option<PathBuf>,
}

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is none.
    #[error("address {0:?}: must be unix://PATH, tcp://HOST:PORT or fd://")]
    Unknown(String),
    /// Everybody could build here.
    #[error(
        "tcp://{0} without TLS would let everybody who reaches it run commands on this machine; use --tlscert, --tlskey and --tlscacert, listen on loopback, or say --insecure-tcp"
    )]
    Open(String),
    /// Another daemon listens there.
    #[error("another daemon listens at {}", .0.display())]
    Taken(PathBuf),
    /// The system refused.
    #[error("listen at {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// systemd handed nothing over.
    #[error("fd://: no sockets were handed over (LISTEN_FDS is not for this process)")]
    NothingInherited,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp://{address}"),
            Address::Inherited => f.write_str("fd://"),
        }
    }
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// [`AddressError::Unknown`].
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        let unknown = || AddressError::Unknown(text.to_owned());
        match text.split_once("://").ok_or_else(unknown)? {
            ("unix", path) if path.starts_with('/') => Ok(Address::Unix(path.into())),
            ("tcp", address) if address.contains(':') => Ok(Address::Tcp(address.to_owned())),
            ("fd", _) => Ok(Address::Inherited),
            _ => Err(unknown()),
        }
    }
}

/// Whose a unix socket is, beside the user that serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its user, by number.
    pub user: Option<u32>,
    /// Its group, by number.
    pub group: Option<u32>,
}

/// A socket that listens.
pub(super) enum Listener {
    Unix(UnixListener, Option<Unlink>),
    Tcp(TcpListener),
}

/// Removes a socket's file when the daemon ends.
pub(super) struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes the sockets of an address.
pub(super) fn listen(
    address: &Address,
    owner: Owner,
    has_tls: bool,
    allows_open: bool,
) -> Result<Vec<Listener>, AddressError> {
    let failed = |source: io::Error| AddressError::Listen {
        address: address.to_string(),
        source,
    };
    match address {
        Address::Unix(path) => unix(path, owner, &failed).map(|one| vec![one]),
        Address::Tcp(text) => {
            let found: Vec<SocketAddr> = text.to_socket_addrs().map_err(failed)?.collect();
            if !has_tls && !allows_open && !found.iter().all(|address| address.ip().is_loopback()) {
                return Err(AddressError::Open(text.clone()));
            }
            let listener = std::net::TcpListener::bind(&found[..]).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            Ok(vec![Listener::Tcp(
                TcpListener::from_std(listener).map_err(failed)?,
            )])
        }
        Address::Inherited => inherited(&failed),
    }
}

fn unix(
    path: &Path,
    owner: Owner,
    failed: &dyn Fn(io::Error) -> AddressError,
) -> Result<Listener, AddressError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    // A socket nobody answers on is what a killed daemon left.
    if fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(AddressError::Taken(path.to_owned()));
        }
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    if owner != Owner::default() {
        std::os::unix::fs::chown(path, owner.user, owner.group).map_err(failed)?;
    }
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    Ok(Listener::Unix(listener, Some(Unlink(path.to_owned()))))
}

/// The sockets of a systemd socket unit, in its order.
fn inherited(failed: &dyn Fn(io::Error) -> AddressError) -> Result<Vec<Listener>, AddressError> {
    let mut handed = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for number in 0..handed.len() {
        if let Ok(Some(listener)) = handed.take_unix_listener(number) {
            listener.set_nonblocking(true).map_err(failed)?;
            listeners.push(Listener::Unix(
                UnixListener::from_std(listener).map_err(failed)?,
                None,
            ));
        } else if let Some(listener) = handed.take_tcp_listener(number).map_err(failed)? {
            listener.set_nonblocking(true).map_err(failed)?;
            listeners.push(Listener::Tcp(TcpListener::from_std(listener).map_err(failed)?));
        }
    }
    if listeners.is_empty() {
        return Err(AddressError::NothingInherited);
    }
    Ok(listeners)
}

/// Connections of a unix socket that speak HTTP/2. Those that hand files over, which say so with their first bytes, go to
/// `hands` instead.
pub(super) fn connections(
    listener: UnixListener,
    hands: Arc<Hands>,
    ended: CancellationToken,
) -> ReceiverStream<io::Result<UnixStream>> {
    let (speaking, connections) = mpsc::channel(NEW_CONNECTIONS);
    tokio::spawn(async move {
        let mut sorting = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = ended.cancelled() => return,
                Some(_) = sorting.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let (speaking, hands) = (speaking.clone(), hands.clone());
            match accepted {
                Ok((stream, _)) => drop(sorting.spawn(sort(stream, speaking, hands))),
                Err(error) => {
                    if speaking.send(Err(error)).await.is_err() {
                        return;
                    }
                    // No descriptor is left, perhaps: they come back when others have gone.
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    });
    ReceiverStream::new(connections)
}

/// Waits for the first bytes of a connection, and hands it on.
async fn sort(stream: UnixStream, speaking: mpsc::Sender<io::Result<UnixStream>>, hands: Arc<Hands>) {
    let mut first = [0];
    let peeked = stream
        .async_io(Interest::READABLE, || {
            Ok(recv(&stream, &mut first[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?.0)
        })
        .await;
    match peeked {
        Ok(1) if first[0] == hand::MAGIC[0] => {
            let user = stream.peer_cred().map(|peer| peer.uid());
            let taken = tokio::task::spawn_blocking(move || hands.join(stream.into_std()?, user?)).await;
            if let Ok(Err(error)) = taken {
                tracing::warn!(%error, "a connection to hand files over was refused");
            }
        }
        // Nobody takes it when the daemon ends.
        Ok(1) => drop(speaking.send(Ok(stream)).await),
        // It was closed without a word.
        Ok(_) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("unix:///run/a.sock", Some(Address::Unix("/run/a.sock".into()))),
            (
                "tcp://127.0.0.1:1234",
                Some(Address::Tcp("127.0.0.1:1234".into())),
            ),
            ("fd://", Some(Address::Inherited)),
            ("/run/a.sock", None),
            ("unix://relative", None),
            ("tcp://noport", None),
            ("http://x:1", None),
        ] {
            assert_eq!(Address::parse(text).ok(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn an_open_port_must_be_asked_for() {
        let everywhere = Address::Tcp("0.0.0.0:0".into());
        assert!(matches!(
            listen(&everywhere, Owner::default(), false, false),
            Err(AddressError::Open(_))
        ));
        assert!(listen(&everywhere, Owner::default(), false, true).is_ok());
        assert!(
            listen(
                &Address::Tcp("127.0.0.1:0".into()),
                Owner::default(),
                false,
                false
            )
            .is_ok()
        );
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_a_live_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run/a.sock");
        let address = Address::Unix(path.clone());
        let first = listen(&address, Owner::default(), false, false).expect("nobody is there");
        assert_eq!(
            fs::metadata(&path).expect("made").permissions().mode() & 0o777,
            0o660
        );
        assert!(matches!(
            listen(&address, Owner::default(), false, false),
            Err(AddressError::Taken(_))
        ));
        drop(first);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        assert!(listen(&address, Owner::default(), false, false).is_ok());
    }
}
