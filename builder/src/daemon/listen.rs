//! Where a daemon listens.
//!
//! | address | |
//! |---|---|
//! | `unix:///run/builder/builderd.sock` | a socket; its mode is 0660, its group as asked for |
//! | `tcp://host:port` | with mutual TLS; without TLS only on loopback, or when `--insecure-tcp` says so |
//! | `fd://` | sockets handed over by systemd (`LISTEN_FDS`) |
use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener};

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
