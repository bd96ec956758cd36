//! A directory over the wire, only what changed: fsutil's exchange of packets.
//!
//! ```text
//! sender                                   receiver
//! STAT… (every entry, in order), STAT{}  ─▶ compared with the copy of last time
//! DATA{id}…, DATA{id} empty              ◀─ REQ{id} for files that differ
//! FIN                                    ◀─ FIN when everything is written
//! ```
//!
//! 1. `stat` turns a Stat into an entry and back, checked.
//! 2. `receive` writes what comes into a new directory, taking unchanged files from an older copy; `handed` copies files
//!    whose descriptors a client of this machine gave; `listed` keeps the list where that is all that is wanted.
//! 3. `send` offers a directory.
//! 4. `wire` lies between a gRPC stream and the thread that receives or sends.
//! 5. `merge` moves what was received into a directory that has files already.
mod stat;
mod handed;
mod listed;
mod receive;
mod send;
mod wire;
mod merge;

pub use merge::{MergeError, merge};
pub use receive::{Incoming, Limits, Outcome, Previous, ReceiveError, Receiver};
pub use send::{Contents, SendError, Sender};
pub use stat::{StatError, entry_of, stat_of};
pub use wire::Wire;

use crate::wire::fsutil::{Packet, packet::PacketType};

/// The most data one packet carries. BuildKit's ends send 32 KiB and take as much as a message may hold.
pub(crate) const CHUNK: usize = 256 << 10;

pub(crate) fn packet(kind: PacketType, id: u32, data: bytes::Bytes) -> Packet {
    Packet {
        r#type: kind.into(),
        stat: None,
        id,
        data,
    }
}
