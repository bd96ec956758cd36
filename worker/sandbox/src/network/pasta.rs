//! The way out of an ordinary user's step: pasta, which passes connections on through the machine's own sockets.
//!
//! ```text
//! spawner ─▶ pasta (stdin: the namespace) ─▶ eth0 appears inside ─▶ address, up, route, by us
//! ```
//!
//! The spawner starts it, so that it ends with the lease, and with us, however we end. It gets the namespace as a
//! descriptor. No port of either side is passed on, and the machine's loopback cannot be reached.

use std::{
    fs::File,
    io::{self, Read},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{Error, Hold, Lease, Netlink, failed, link};
use crate::rootless::find_program;
use crate::spec::Stubs;
use crate::{Process, Spawner, Stdio, Tool};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const PREFIX: u8 = 24;
const INTERFACE: &str = "eth0";
/// How long its interface may take to appear, and how often that is looked for.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

/// Connects `namespace`, in which `inside` speaks to the kernel.
pub(super) fn lease(spawner: &Spawner, namespace: OwnedFd, mut inside: Netlink) -> Result<Lease, Error> {
    let program = find_program("pasta")
        .ok_or_else(|| failed("run pasta (is passt installed?)")(io::ErrorKind::NotFound.into()))?;
    let (address, gateway) = (ADDRESS.to_string(), GATEWAY.to_string());
    let fixed = [
        "--foreground",
        "--quiet",
        "--ipv4-only",
        "--netns-only",
        "--no-map-gw",
        "--ns-ifname",
        INTERFACE,
        "--netmask",
        "24",
        "--tcp-ports",
        "none",
        "--udp-ports",
        "none",
        "--tcp-ns",
        "none",
        "--udp-ns",
        "none",
        "--address",
        &address,
        "--gateway",
        &gateway,
        // It is told the namespace last, by the name its stdin has for itself.
        "--netns",
        "/proc/self/fd/0",
    ];
    let tool = Tool {
        args: std::iter::once(program.to_string_lossy().into_owned())
            .chain(fixed.map(str::to_owned))
            .collect(),
        env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        cwd: "/".into(),
        mounts: Vec::new(),
        targets: Vec::new(),
        directories: Vec::new(),
        stubs: Stubs::Keep,
        confined: None,
    };
    let (said, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| failed("make a pipe")(error.into()))?;
    let stdio = Stdio::Descriptors {
        stdin: namespace.try_clone().map_err(failed("copy a descriptor"))?,
        stdout: stderr.try_clone().map_err(failed("copy a descriptor"))?,
        stderr,
    };
    let process = spawner.tool(&tool, stdio, None)?;
    wait_for_interface(&process, &mut inside, said)?;
    link::add_address(&mut inside, INTERFACE, ADDRESS, PREFIX)
        .map_err(failed("give the step its address"))?;
    link::up(&mut inside, INTERFACE).map_err(failed("bring the step's interface up"))?;
    link::add_default_route(&mut inside, GATEWAY).map_err(failed("give the step its route"))?;
    Ok(Lease {
        namespace,
        address: ADDRESS,
        gateway: GATEWAY,
        _hold: Hold::Pasta { _process: process },
    })
}

/// Until the interface is there, or pasta has ended and said why.
fn wait_for_interface(process: &Process, inside: &mut Netlink, said: OwnedFd) -> Result<(), Error> {
    let what = "connect the step by pasta (it needs /dev/net/tun)";
    let until = Instant::now() + PATIENCE;
    loop {
        if link::index(inside, INTERFACE).is_ok() {
            return Ok(());
        }
        let mut ended = [PollFd::from_borrowed_fd(process.ended(), PollFlags::IN)];
        let ready = rustix::event::poll(&mut ended, Some(&LOOK_EVERY));
        if ready.is_ok_and(|count| count > 0) {
            let mut text = String::new();
            // Its end of the pipe is closed: this does not wait.
            drop(File::from(said).take(4096).read_to_string(&mut text));
            let text = text.trim().lines().collect::<Vec<_>>().join("; ");
            return Err(failed(what)(io::Error::other(text)));
        }
        if Instant::now() > until {
            return Err(failed(what)(io::ErrorKind::TimedOut.into()));
        }
    }
}
