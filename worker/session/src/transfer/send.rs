//! Sends a directory: every entry in order, then the files the receiver asks for.
//!
//! ```text
//! entries ─▶ STAT…, STAT{} ─▶ (for each REQ) DATA…, DATA empty ─▶ FIN, answered
//!                                       └▶ or HANDED, where the receiver takes descriptors (`hand`)
//! ```
//!
//! Blocking; runs on a thread of its own. Memory: one chunk, and what the receiver has asked for.
use super::receive::Incoming;
use super::stat::stat_of;
use super::{CHUNK, packet};
use crate::hand::{Giver, HANDED, Offer};
use crate::wire::fsutil::{Packet, packet::PacketType};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read};
use tree::{Entry, Kind};

/// Why a directory could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The receiver gave up.
    #[error("{0}")]
    Peer(String),
    /// The stream ended too early.
    #[error("the receiver went away in the middle of the transfer")]
    Ended,
    /// The receiver asked for something that is no file.
    #[error("the receiver asked for entry {0}, which is no file")]
    Request(u32),
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// The contents of a file to send.
pub enum Contents {
    /// A file of this machine.
    File(File),
    /// Anything else.
    Bytes(Box<dyn Read>),
}

impl Read for Contents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Contents::File(file) => file.read(buffer),
            Contents::Bytes(bytes) => bytes.read(buffer),
        }
    }
}

/// One directory to send.
pub struct Sender<'a> {
    /// What there is, in order.
    pub entries: &'a [Entry],
    /// Opens the contents of one of them.
    pub open: &'a dyn Fn(&Entry) -> io::Result<Contents>,
    /// The receiver, if it takes descriptors.
    pub hand: Option<&'a Offer>,
    /// Told of every packet's bytes.
    pub meter: &'a dyn Fn(u64),
}

impl Sender<'_> {
    /// Sends.
    ///
    /// # Errors
    /// [`SendError`]; the receiver is told of a file that cannot be read.
    pub fn run(&self, wire: &mut dyn Incoming) -> Result<(), SendError> {
        for entry in self.entries {
            let stat = Packet {
                r#type: PacketType::PacketStat.into(),
                stat: Some(stat_of(entry)),
                ..Packet::default()
            };
            self.send(wire, stat)?;
        }
        self.send(wire, packet(PacketType::PacketStat, 0, Bytes::new()))?;
        let mut giver = Giver::new(self.hand);
        while let Some(next) = wire.next() {
            let next = next.map_err(SendError::Peer)?;
            match PacketType::try_from(next.r#type) {
                Ok(PacketType::PacketReq) => self.file(next.id, &mut giver, wire)?,
                Ok(PacketType::PacketFin) => {
                    self.send(wire, packet(PacketType::PacketFin, 0, Bytes::new()))?;
                    return Ok(());
                }
                Ok(PacketType::PacketErr) => {
                    return Err(SendError::Peer(String::from_utf8_lossy(&next.data).into_owned()));
                }
                _ => return Err(SendError::Peer("an unexpected packet from the receiver".into())),
            }
        }
        Err(SendError::Ended)
    }

    fn send(&self, wire: &mut dyn Incoming, packet: Packet) -> Result<(), SendError> {
        (self.meter)(prost::Message::encoded_len(&packet) as u64);
        if wire.send(packet) {
            return Ok(());
        }
        // Whoever takes no more has said why, or is gone; both end what can be read.
        while let Some(next) = wire.next() {
            match next {
                Err(reason) => return Err(SendError::Peer(reason)),
                Ok(said) if said.r#type == i32::from(PacketType::PacketErr) => {
                    let reason = String::from_utf8_lossy(&said.data).into_owned();
                    return Err(SendError::Peer(reason));
                }
                Ok(_) => {}
            }
        }
        Err(SendError::Ended)
    }

    fn file(&self, id: u32, giver: &mut Giver<'_>, wire: &mut dyn Incoming) -> Result<(), SendError> {
        let entry = usize::try_from(id).ok().and_then(|id| self.entries.get(id));
        let entry = entry
            .filter(|entry| entry.kind == Kind::File)
            .ok_or(SendError::Request(id))?;
        let failed = |source: io::Error| SendError::Read {
            path: entry.path.display().to_string(),
            source,
        };
        let mut reader = match (self.open)(entry) {
            Ok(reader) => reader,
            // A file that vanished meanwhile is empty, as BuildKit's clients have it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Contents::Bytes(Box::new(io::empty())),
            Err(error) => return Err(self.give_up(wire, failed(error))),
        };
        let handed = match &reader {
            Contents::File(file) => giver.give(file, entry.size),
            Contents::Bytes(_) => None,
        };
        if let Some(transfer) = handed {
            let said = Packet {
                r#type: HANDED,
                id,
                data: Bytes::from(transfer),
                ..Packet::default()
            };
            return self.send(wire, said);
        }
        let mut chunk = vec![0; CHUNK];
        loop {
            match reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => {
                    let data = Bytes::copy_from_slice(&chunk[..read]);
                    self.send(wire, packet(PacketType::PacketData, id, data))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.give_up(wire, failed(error))),
            }
        }
        self.send(wire, packet(PacketType::PacketData, id, Bytes::new()))
    }

    fn give_up(&self, wire: &mut dyn Incoming, error: SendError) -> SendError {
        let _ = wire.send(packet(PacketType::PacketErr, 0, Bytes::from(error.to_string())));
        error
    }
}
