//! Tells systemd how the daemon is (`Type=notify`): a datagram to the socket that `NOTIFY_SOCKET` names.
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Who is to be told; nobody where there is no service manager.
#[derive(Clone, Debug, Default)]
pub struct Notify(Option<SocketAddr>);

impl Notify {
    /// By the value of `NOTIFY_SOCKET`: a path, or a name that begins with `@`.
    ///
    /// # Errors
    /// The value is neither.
    pub fn of(socket: Option<&OsStr>) -> io::Result<Notify> {
        let Some(socket) = socket.filter(|socket| !socket.is_empty()) else {
            return Ok(Notify(None));
        };
        let address = match socket.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(socket)?,
        };
        Ok(Notify(Some(address)))
    }

    /// Builds are taken from now on.
    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    /// No build is taken any more; so many still run.
    pub(super) fn stopping(&self, builds: usize) {
        self.tell(&format!(
            "STOPPING=1\nSTATUS=waiting for the end of {builds} builds"
        ));
    }

    fn tell(&self, what: &str) {
        let Some(address) = &self.0 else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(what.as_bytes(), address));
        if let Err(error) = sent {
            tracing::warn!(%error, "the service manager could not be told {what:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        let notify = Notify::of(Some(path.as_os_str())).expect("a path");
        let mut said = [0; 64];
        notify.ready();
        let length = socket.recv(&mut said).expect("told");
        assert_eq!(&said[..length], b"READY=1");
        notify.stopping(2);
        let length = socket.recv(&mut said).expect("told");
        assert!(said[..length].starts_with(b"STOPPING=1\n"));
    }

    #[test]
    fn nobody_need_be_there() {
        for socket in [
            None,
            Some(OsStr::new("")),
            Some(OsStr::new("/nonexistent")),
            Some(OsStr::new("@x")),
        ] {
            Notify::of(socket).expect("usable").ready();
        }
    }
}
