//! A network of its own for each step: a namespace that reaches the outside, and nothing left when the step is over.
//!
//! ```text
//! root:     lease ─▶ bridge builder0 (once) ─▶ address, by file lock ─▶ namespace ─▶ veth pair ─▶ routes
//!                         └▶ forwarding, masquerade (nf_tables)                └▶ eth0 inside, port isolated outside
//! others:   lease ─▶ namespace ─▶ pasta, else slirp4netns, tied to the lease ─▶ eth0 or tap0 inside
//! proxied:  closed ─▶ namespace ─▶ a listener at its loopback
//! ```
//!
//! 1. `netlink` speaks to the kernel; `link` makes interfaces, addresses and routes; `masquerade` writes the one rule.
//! 2. `address` hands out addresses across processes: a lock on a file, so that a killed builder holds none.
//! 3. `pasta` and `slirp` are the ways of ordinary users, in this order.
//! 4. `reaper` removes interfaces behind our back: the kernel takes 30 ms for one, which no step should wait for.
//!
//! Never: programs of the host for root; two steps that reach each other; the host's own loopback from a step.
//! What the kernel keeps between builds is the bridge and the rule; both are made once and shared by all builders.

mod address;
mod link;
mod masquerade;
mod netlink;
mod pasta;
mod reaper;
mod slirp;

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Mutex,
};

use rustix::thread::UnshareFlags;

use crate::{Error, Process, Spawner, sys};
use address::{Address, Subnet};
use netlink::Netlink;
use reaper::{Leaving, Reaper};

/// Name of the bridge that all steps of all builders of this machine hang on.
const BRIDGE: &str = "builder0";

/// An address that is not on this machine: TEST-NET-1, RFC 5737.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A part of setting up a network that failed.
pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Network { what, source }
}

/// Gives networks to steps. Cheap to make; the bridge is set up with the first lease.
#[derive(Debug)]
pub struct Networks {
    way: Way,
    bridge: Mutex<Option<Bridge>>,
    reaper: Mutex<Option<Reaper>>,
}

/// How a namespace gets to the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A veth pair on a bridge; needs root of the machine.
    Bridge,
    /// pasta or slirp4netns; needs no rights outside the user namespace.
    UserSpace,
}

/// The bridge, as it was found or made.
#[derive(Debug, Clone, Copy)]
struct Bridge {
    index: u32,
    subnet: Subnet,
}

/// One namespace with a way out. Everything made for it goes with it.
#[derive(Debug)]
pub struct Lease {
    namespace: OwnedFd,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    _hold: Hold,
}

/// What a lease gives back.
#[derive(Debug)]
enum Hold {
    Bridge {
        /// The outer end of the pair, with the lock on its address.
        leaving: Option<Leaving>,
        reaper: Reaper,
    },
    Pasta {
        /// Ends when it goes.
        _process: Process,
    },
    Slirp {
        /// Ends when it goes.
        _process: slirp::Process,
    },
    /// Nothing but the namespace itself.
    Closed,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Hold::Bridge { leaving, reaper } = self
            && let Some(leaving) = leaving.take()
        {
            reaper.remove(leaving);
        }
    }
}

impl Default for Networks {
    fn default() -> Self {
        Networks::new()
    }
}

impl Networks {
    /// Networks by bridge for the machine's root, by pasta or slirp4netns otherwise.
    #[must_use]
    pub fn new() -> Networks {
        let way = if is_root_of_machine() {
            Way::Bridge
        } else {
            Way::UserSpace
        };
        Networks {
            way,
            bridge: Mutex::new(None),
            reaper: Mutex::new(None),
        }
    }

    /// A namespace with loopback, one interface and a default route. What `spawner` is needed for ends with it, too.
    ///
    /// # Errors
    /// [`Error::Network`] with what this machine or user lacks; nothing is left then.
    pub fn lease(&self, spawner: &Spawner) -> Result<Lease, Error> {
        let (namespace, mut inside) = namespace()?;
        link::up(&mut inside, "lo").map_err(failed("bring loopback up"))?;
        match self.way {
            Way::Bridge => self.by_bridge(namespace, inside),
            Way::UserSpace => by_user_space(spawner, namespace, inside),
        }
    }

    /// A namespace with loopback and no way out, and a socket that listens at its 127.0.0.1, which is of use from outside
    /// of it: all a process in it reaches is who accepts there. Needs no rights outside the user namespace.
    ///
    /// # Errors
    /// [`Error::Network`] with what this machine or user lacks; nothing is left then.
    pub fn closed(&self) -> Result<(Lease, TcpListener), Error> {
        let make = || -> io::Result<(OwnedFd, TcpListener)> {
            sys::unshare(UnshareFlags::NEWNET)?;
            let namespace = File::open("/proc/thread-self/ns/net")?;
            link::up(&mut Netlink::route()?, "lo")?;
            Ok((namespace.into(), TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?))
        };
        let (namespace, listener) = aside(make, "create a network namespace with a listener in it")?;
        let lease = Lease {
            namespace,
            address: Ipv4Addr::LOCALHOST,
            gateway: Ipv4Addr::LOCALHOST,
            _hold: Hold::Closed,
        };
        Ok((lease, listener))
    }

    /// An address by which steps reach this machine (`host-gateway`): the bridge's own, which is set up for this if need
    /// be; without root that of the interface by which this machine reaches others.
    ///
    /// # Errors
    /// [`Error::Network`]: no bridge can be had, or this machine has no address that others reach.
    pub fn host_address(&self) -> Result<Ipv4Addr, Error> {
        if self.way == Way::Bridge {
            let mut host = Netlink::route().map_err(failed("open a route socket"))?;
            return Ok(self.bridge(&mut host)?.subnet.gateway());
        }
        // Connecting a datagram socket sends nothing, but picks the address that a packet would have.
        let picked = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
            socket.connect((OUTSIDE, 9))?;
            socket.local_addr()
        });
        match picked.map_err(failed("find this machine's own address"))?.ip() {
            IpAddr::V4(address) if !address.is_loopback() => Ok(address),
            other => Err(failed("find this machine's own address")(io::Error::other(
                format!("it would be {other}"),
            ))),
        }
    }

    /// Waits until what earlier leases left is removed.
    pub fn settle(&self) {
        let reaper = self
            .reaper
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        if let Some(reaper) = reaper {
            reaper.settle();
        }
    }

    fn reaper(&self) -> Result<Reaper, Error> {
        let mut held = self
            .reaper
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(reaper) = held.as_ref() {
            return Ok(reaper.clone());
        }
        let reaper = Reaper::start().map_err(failed("start a thread"))?;
        *held = Some(reaper.clone());
        Ok(reaper)
    }

    fn by_bridge(&self, namespace: OwnedFd, mut inside: Netlink) -> Result<Lease, Error> {
        let mut host = Netlink::route().map_err(failed("open a route socket"))?;
        let bridge = self.bridge(&mut host)?;
        let reaper = self.reaper()?;
        let Address { address, lock } = address::take(bridge.subnet).map_err(failed("take an address"))?;
        let [.., high, low] = address.octets();
        let outer = format!("bld{high:02x}{low:02x}");
        // Left by a builder that was killed: the address is ours, so is the name.
        drop(link::delete(&mut host, &outer));
        link::create_pair(&mut host, &outer, bridge.index, "eth0", namespace.as_fd())
            .map_err(failed("create a pair of interfaces"))?;
        let hold = Hold::Bridge {
            leaving: Some(Leaving {
                outer: outer.clone(),
                _address: lock,
            }),
            reaper,
        };
        link::isolate(&mut host, &outer).map_err(failed("keep steps apart on the bridge"))?;
        link::up(&mut host, &outer).map_err(failed("bring the outer interface up"))?;
        let gateway = bridge.subnet.gateway();
        link::add_address(&mut inside, "eth0", address, Subnet::PREFIX)
            .map_err(failed("give the step its address"))?;
        link::up(&mut inside, "eth0").map_err(failed("bring the step's interface up"))?;
        link::add_default_route(&mut inside, gateway).map_err(failed("give the step its route"))?;
        Ok(Lease {
            namespace,
            address,
            gateway,
            _hold: hold,
        })
    }

    /// The bridge, made now if it is not there.
    fn bridge(&self, host: &mut Netlink) -> Result<Bridge, Error> {
        let mut held = self
            .bridge
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bridge) = *held
            && link::index(host, BRIDGE).ok() == Some(bridge.index)
        {
            return Ok(bridge);
        }
        let _lock = address::set_up_lock().map_err(failed("lock the bridge"))?;
        let subnet = Subnet::choose(BRIDGE).map_err(failed("find addresses that nobody uses"))?;
        let index = link::bridge(host, BRIDGE).map_err(failed("create a bridge"))?;
        link::add_address(host, BRIDGE, subnet.gateway(), Subnet::PREFIX)
            .map_err(failed("give the bridge its address"))?;
        link::up(host, BRIDGE).map_err(failed("bring the bridge up"))?;
        forward().map_err(failed("allow forwarding (/proc/sys/net/ipv4/ip_forward)"))?;
        masquerade::install(subnet).map_err(failed("masquerade addresses of steps (nf_tables)"))?;
        let bridge = Bridge { index, subnet };
        *held = Some(bridge);
        Ok(bridge)
    }
}

impl Lease {
    /// The step's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where the step's default route leads.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }
}

impl AsFd for Lease {
    /// The namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// By pasta, or by slirp4netns where that cannot be had; if neither can, both say why.
fn by_user_space(spawner: &Spawner, namespace: OwnedFd, inside: Netlink) -> Result<Lease, Error> {
    let copy = namespace.try_clone().map_err(failed("copy a descriptor"))?;
    let first = match pasta::lease(spawner, copy, inside) {
        Ok(lease) => return Ok(lease),
        Err(error) => error,
    };
    slirp::lease(namespace).map_err(|second| {
        let source = |error: &Error| std::error::Error::source(error).map(ToString::to_string);
        let one = format!("{first}: {}", source(&first).unwrap_or_default());
        let two = format!("{second}: {}", source(&second).unwrap_or_default());
        failed("connect the step without root")(io::Error::other(format!("{one}; {two}")))
    })
}

/// A new namespace, and a route socket that works in it from wherever it is used.
fn namespace() -> Result<(OwnedFd, Netlink), Error> {
    let make = || -> io::Result<(OwnedFd, Netlink)> {
        sys::unshare(UnshareFlags::NEWNET)?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        Ok((namespace.into(), Netlink::route()?))
    };
    aside(make, "create a network namespace")
}

/// Does `make` in a thread of its own: it stays in the new namespace and ends there.
fn aside<T: Send + 'static>(
    make: impl FnOnce() -> io::Result<T> + Send + 'static,
    what: &'static str,
) -> Result<T, Error> {
    let made = std::thread::Builder::new().name("network".into()).spawn(make);
    let made = made.map_err(failed("start a thread"))?.join();
    made.map_err(|_| failed(what)(io::Error::other("the thread panicked")))?
        .map_err(failed(what))
}

/// Whether this process is root and not only in a user namespace.
fn is_root_of_machine() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"];
    whole && rustix::process::geteuid().is_root()
}

fn forward() -> io::Result<()> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    if std::fs::read_to_string(path)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(path, "1")
}

#[cfg(test)]
mod tests;
