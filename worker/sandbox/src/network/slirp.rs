//! The way out of an ordinary user's step: slirp4netns, which speaks for the namespace in user space.
//!
//! It is told the namespace by a descriptor of ours, says on its stdout when it is ready, and ends when its stdin does:
//! so it ends with the lease, and with us, however we end.

use std::{
    io::{self, Read},
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    process::{Child, Command, Stdio},
};

use super::{Error, Hold, Lease, failed};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// A running slirp4netns.
#[derive(Debug)]
pub(super) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already, or now: either way it is reaped.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Connects `namespace`.
pub(super) fn lease(namespace: OwnedFd) -> Result<Lease, Error> {
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let mut command = Command::new("slirp4netns");
    command.args([
        "--configure",
        "--mtu=65520",
        "--disable-host-loopback",
        "--ready-fd=1",
        "--exit-fd=0",
    ]);
    command.args(["--netns-type=path", &path, "tap0"]);
    let started = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut process = Process(started.map_err(failed("run slirp4netns (is it installed?)"))?);
    let mut ready = [0];
    let said = process.0.stdout.take().map(|mut out| out.read(&mut ready));
    if !matches!(said, Some(Ok(1))) {
        let mut text = String::new();
        drop(process.0.kill());
        if let Some(mut errors) = process.0.stderr.take() {
            drop(errors.by_ref().take(4096).read_to_string(&mut text));
        }
        let text = text.trim().lines().collect::<Vec<_>>().join("; ");
        return Err(failed("connect the step by slirp4netns (it needs /dev/net/tun)")(
            io::Error::other(text),
        ));
    }
    Ok(Lease {
        namespace,
        address: ADDRESS,
        gateway: GATEWAY,
        _hold: Hold::Slirp { _process: process },
    })
}
