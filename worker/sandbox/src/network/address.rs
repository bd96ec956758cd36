//! Addresses for steps, each held by one lease of one builder at a time.
//!
//! ```text
//! /run/builder/network/<third>.<fourth>   locked while the address is in use
//! /run/builder/network/bridge             locked while the bridge is set up
//! ```
//!
//! A lock goes with its process, however that ends. The subnet is the first of a few that no route of this machine
//! touches; once the bridge has one, that stays.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::Ipv4Addr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

/// The first halves of the subnets that are tried, in this order.
const CANDIDATES: [[u8; 2]; 4] = [[10, 89], [10, 213], [172, 29], [192, 168]];
/// How many addresses are tried before giving up.
const TRIES: u32 = 20_000;

/// A /16 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subnet([u8; 2]);

impl Subnet {
    /// The length of its prefix.
    pub(super) const PREFIX: u8 = 16;

    /// The subnet that the bridge has, or the first that nothing uses.
    pub(super) fn choose(bridge: &str) -> io::Result<Subnet> {
        choose(&fs::read_to_string("/proc/net/route")?, bridge).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::AddrInUse,
                "every private network tried is in use here",
            )
        })
    }

    /// The bridge's own address.
    pub(super) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[0], self.0[1], 0, 1)
    }

    /// The bytes that all its addresses begin with.
    pub(super) fn first_half(self) -> [u8; 2] {
        self.0
    }
}

/// Picks by the kernel's list of routes.
fn choose(routes: &str, bridge: &str) -> Option<Subnet> {
    // Interface, destination, gateway, …, mask: numbers as hexadecimal words in the machine's order.
    let routes: Vec<(&str, u32, u32)> = routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let word = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok().map(u32::from_be);
            Some((*fields.first()?, word(1)?, word(7)?))
        })
        .filter(|(_, _, mask)| *mask != 0)
        .collect();
    let of = |candidate: [u8; 2]| u32::from_be_bytes([candidate[0], candidate[1], 0, 0]);
    let own = CANDIDATES.into_iter().find(|candidate| {
        routes
            .iter()
            .any(|(interface, to, _)| *interface == bridge && *to == of(*candidate))
    });
    let free = || {
        CANDIDATES.into_iter().find(|candidate| {
            !routes.iter().any(|(interface, to, mask)| {
                let mask = mask & 0xffff_0000;
                *interface != bridge && to & mask == of(*candidate) & mask
            })
        })
    };
    own.or_else(free).map(Subnet)
}

/// An address and the lock that holds it.
pub(super) struct Address {
    pub(super) address: Ipv4Addr,
    pub(super) lock: File,
}

fn folder() -> io::Result<PathBuf> {
    let folder = PathBuf::from("/run/builder/network");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Held while the bridge is set up.
pub(super) fn set_up_lock() -> io::Result<File> {
    let lock = File::create(folder()?.join("bridge"))?;
    lock.lock()?;
    Ok(lock)
}

/// Takes an address that nobody holds.
pub(super) fn take(subnet: Subnet) -> io::Result<Address> {
    let folder = folder()?;
    let [first, second] = subnet.first_half();
    // Begin where other builders probably do not, and not with an address whose interface may still be going.
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(251) % 60_000 + TAKEN.fetch_add(1, Ordering::Relaxed) % 5_000;
    for number in 0..TRIES {
        let number = 2 + (begin + number) % 65_000;
        let [_, _, third, fourth] = number.to_be_bytes();
        let lock = File::create(folder.join(format!("{third}.{fourth}")))?;
        match lock.try_lock() {
            Ok(()) => {
                return Ok(Address {
                    address: Ipv4Addr::new(first, second, third, fourth),
                    lock,
                });
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("{TRIES} addresses are in use"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_chosen_that_no_route_touches() {
        let head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
        let route = |interface: &str, to: [u8; 4], mask: [u8; 4]| {
            let (to, mask) = (u32::from_be_bytes(to).to_be(), u32::from_be_bytes(mask).to_be());
            format!("{interface} {to:08X} 00000000 0001 0 0 0 {mask:08X} 0 0 0\n")
        };
        let default = route("eth0", [0; 4], [0; 4]);
        for (routes, wanted) in [
            (default.clone(), Some([10, 89])),
            (
                default.clone() + &route("podman", [10, 89, 3, 0], [255, 255, 255, 0]),
                Some([10, 213]),
            ),
            (
                default.clone() + &route("vpn", [10, 0, 0, 0], [255, 0, 0, 0]),
                Some([172, 29]),
            ),
            (
                route("builder0", [10, 213, 0, 0], [255, 255, 0, 0]),
                Some([10, 213]),
            ),
            (
                route("all", [0; 4], [128, 0, 0, 0]) + &route("rest", [128, 0, 0, 0], [128, 0, 0, 0]),
                None,
            ),
        ] {
            assert_eq!(
                choose(&format!("{head}{routes}"), "builder0"),
                wanted.map(Subnet),
                "{routes}"
            );
        }
    }
}
