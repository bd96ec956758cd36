//! Messages to the kernel and its answers (netlink(7)): a header, a fixed part, attributes that may nest.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink, recv, send,
    socket_with,
};

pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
pub(super) const EXCL: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;

/// A netlink socket; it stays in the network namespace it was opened in.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// One for interfaces, addresses and routes.
    pub(super) fn route() -> io::Result<Netlink> {
        Netlink::open(None) // NETLINK_ROUTE is protocol 0
    }

    /// One for nf_tables.
    pub(super) fn netfilter() -> io::Result<Netlink> {
        Netlink::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<Netlink> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    /// Sends one request and gives the first message of the answer, without its header; none for a bare acknowledgement.
    pub(super) fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        put_message(&mut bytes, kind, REQUEST | ACK | flags, sequence, body);
        self.send(&bytes)?;
        let mut first = None;
        loop {
            for (kind, found, body) in self.receive()? {
                if found != sequence {
                    continue;
                }
                match kind {
                    ERROR => return acknowledged(&body).map(|()| first),
                    DONE => return Ok(first),
                    _ => {
                        first.get_or_insert(body);
                    }
                }
            }
        }
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(&self.socket, bytes, SendFlags::empty())?;
        Ok(())
    }

    /// The messages of the next datagram: kind, sequence, body.
    pub(super) fn receive(&self) -> io::Result<Vec<(u16, u32, Vec<u8>)>> {
        let mut buffer = vec![0; 32 * 1024];
        let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        let mut messages = Vec::new();
        while rest.len() >= HEADER {
            let length = read_u32(rest, 0) as usize;
            if length < HEADER || length > rest.len() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the kernel's message is cut off",
                ));
            }
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            messages.push((kind, read_u32(rest, 8), rest[HEADER..length].to_vec()));
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(messages)
    }
}

/// Whether an acknowledgement says that all is well.
pub(super) fn acknowledged(body: &[u8]) -> io::Result<()> {
    if body.len() < 4 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer is cut off",
        ));
    }
    match i32::from_ne_bytes([body[0], body[1], body[2], body[3]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

pub(super) const IS_ACK: u16 = ERROR;

pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |four| u32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
}

pub(super) fn put_message(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, body: &[u8]) {
    let length = u32::try_from(HEADER + body.len()).expect("requests are small");
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Adds one attribute.
pub(super) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes are small");
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Adds a text attribute, with its final NUL.
pub(super) fn put_text(out: &mut Vec<u8>, kind: u16, text: &str) {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    put(out, kind, &bytes);
}

/// Adds an attribute made of attributes.
pub(super) fn put_nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(out, kind | NESTED, &inner);
}
