//! Interfaces, addresses and routes (rtnetlink(7)).

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::netlink::{CREATE, EXCL, Netlink, put, put_nested, put_text, read_u32};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_UNSPEC: u8 = 0;

/// The fixed part of messages about interfaces.
fn link_header(family: u8, index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut out = vec![family, 0, 0, 0];
    for word in [index, flags, change] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    out
}

/// The number of the interface called `name`.
pub(super) fn index(netlink: &mut Netlink, name: &str) -> io::Result<u32> {
    let mut body = link_header(AF_UNSPEC, 0, 0, 0);
    put_text(&mut body, IFLA_IFNAME, name);
    let answer = netlink.ask(GETLINK, 0, &body)?;
    let answer =
        answer.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no interface {name}")))?;
    Ok(read_u32(&answer, 4))
}

/// Brings an interface up.
pub(super) fn up(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let index = index(netlink, name)?;
    netlink
        .ask(NEWLINK, 0, &link_header(AF_UNSPEC, index, IFF_UP, IFF_UP))
        .map(drop)
}

/// Removes an interface.
pub(super) fn delete(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let index = index(netlink, name)?;
    netlink
        .ask(DELLINK, 0, &link_header(AF_UNSPEC, index, 0, 0))
        .map(drop)
}

/// Makes a bridge, unless it is there; gives its number.
pub(super) fn bridge(netlink: &mut Netlink, name: &str) -> io::Result<u32> {
    let mut body = link_header(AF_UNSPEC, 0, 0, 0);
    put_text(&mut body, IFLA_IFNAME, name);
    put_nested(&mut body, IFLA_LINKINFO, |info| {
        put_text(info, IFLA_INFO_KIND, "bridge")
    });
    unless_there(netlink.ask(NEWLINK, CREATE | EXCL, &body))?;
    index(netlink, name)
}

/// Makes a pair: `outer` here as a port of the bridge `master`, `inner` in another namespace.
pub(super) fn create_pair(
    netlink: &mut Netlink,
    outer: &str,
    master: u32,
    inner: &str,
    namespace: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut body = link_header(AF_UNSPEC, 0, 0, 0);
    put_text(&mut body, IFLA_IFNAME, outer);
    put(&mut body, IFLA_MASTER, &master.to_ne_bytes());
    put_nested(&mut body, IFLA_LINKINFO, |info| {
        put_text(info, IFLA_INFO_KIND, "veth");
        put_nested(info, IFLA_INFO_DATA, |data| {
            let mut peer = link_header(AF_UNSPEC, 0, 0, 0);
            put_text(&mut peer, IFLA_IFNAME, inner);
            put(&mut peer, IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
            put(data, VETH_INFO_PEER, &peer);
        });
    });
    netlink.ask(NEWLINK, CREATE | EXCL, &body).map(drop)
}

/// Lets a port of a bridge speak to the bridge only, not to other isolated ports.
pub(super) fn isolate(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let index = index(netlink, name)?;
    let mut body = link_header(AF_BRIDGE, index, 0, 0);
    put_nested(&mut body, IFLA_PROTINFO, |port| {
        put(port, IFLA_BRPORT_ISOLATED, &[1])
    });
    netlink.ask(SETLINK, 0, &body).map(drop)
}

/// Gives an interface an address, unless it has it.
pub(super) fn add_address(
    netlink: &mut Netlink,
    name: &str,
    address: Ipv4Addr,
    prefix: u8,
) -> io::Result<()> {
    let index = index(netlink, name)?;
    let mut body = vec![AF_INET, prefix, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    put(&mut body, IFA_LOCAL, &address.octets());
    put(&mut body, IFA_ADDRESS, &address.octets());
    unless_there(netlink.ask(NEWADDR, CREATE | EXCL, &body))
}

/// Sends everything without a route of its own to `gateway`.
pub(super) fn add_default_route(netlink: &mut Netlink, gateway: Ipv4Addr) -> io::Result<()> {
    const TABLE_MAIN: u8 = 254;
    const PROTOCOL_STATIC: u8 = 4;
    const SCOPE_UNIVERSE: u8 = 0;
    const TYPE_UNICAST: u8 = 1;
    let mut body = vec![
        AF_INET,
        0,
        0,
        0,
        TABLE_MAIN,
        PROTOCOL_STATIC,
        SCOPE_UNIVERSE,
        TYPE_UNICAST,
        0,
        0,
        0,
        0,
    ];
    put(&mut body, RTA_GATEWAY, &gateway.octets());
    netlink.ask(NEWROUTE, CREATE | EXCL, &body).map(drop)
}

fn unless_there(asked: io::Result<Option<Vec<u8>>>) -> io::Result<()> {
    match asked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}
