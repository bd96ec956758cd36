//! Files of a client on this machine, handed over as descriptors instead of being sent as bytes.
//!
//! ```text
//! client                                              daemon
//! Session call, x-builder-hand: 1                 ─▶
//!                                                 ◀─  x-builder-hand: <token>, if the call came by a unix socket
//! (for a directory, once a large file is wanted)
//! connect to the same socket; the greeting        ─▶  peeked at: no HTTP/2, so it is for `Hands`
//!                                                 ◀─  one byte: known
//! descriptor, with one byte                       ─▶
//! DiffCopy: HANDED{file, transfer}                ─▶  takes the descriptor, copies what it reads
//!                                                 ◀─  one byte: done with it
//! ```
//!
//! The greeting is 64 bytes: `bldrhand`, the version (8 bytes), the token (32 hexadecimal digits), the transfer (16 hexadecimal
//! digits; chosen by the client, one per DiffCopy call).
//!
//! 1. `give` is the client's end: it opens the files itself, for reading, so the daemon gets no more than the client may read.
//! 2. `take` is the daemon's: it believes nothing, neither who connects nor what a descriptor is.
//!
//! Whatever is missing (another version, a daemon of BuildKit's, a socket that is forwarded, a file on a file system that is
//! not known to be plain) leads to the bytes being sent instead. A file that changes meanwhile is what was read of it, as if
//! it had been sent; it is read, never mapped. Both ends close their connection when the directory's transfer ends, however
//! it ends; so nobody waits for a peer that is gone.
mod give;
mod take;

pub use give::{Giver, Offer};
pub use take::{Hands, Key, Line, TakeError};

use rustix::fs::fstatfs;
use std::os::fd::AsFd;

/// The header by which a client asks and a daemon answers.
pub const HEADER: &str = "x-builder-hand";
/// What a client says in it.
pub const VERSION: &str = "1";

/// The first bytes of a greeting; those of HTTP/2 are `PRI * HT`.
pub const MAGIC: &[u8; 8] = b"bldrhand";
const VERSION_FIELD: &[u8; 8] = b"00000001";
const TOKEN_BYTES: usize = 32;
const TRANSFER_BYTES: usize = 16;
const GREETING_BYTES: usize = 8 + 8 + TOKEN_BYTES + TRANSFER_BYTES;

/// The packet that says that a file's descriptor is there; unknown to BuildKit, which is never sent one.
pub(crate) const HANDED: i32 = 1001;
/// From this size on a descriptor costs less than the bytes.
pub(crate) const LEAST_BYTES: u64 = 64 << 10;
/// Descriptors on their way at the same time: they count against the client's limit of open files.
const MOST_AHEAD: usize = 32;
/// How long the other end may take for what it does at once.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// File systems whose files are bytes and nothing else. Reading a file of another (of proc, for one) may depend on who
/// reads, and the daemon is not the client.
const PLAIN: [i64; 8] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683E, // btrfs
    0x0102_1994, // tmpfs
    0x794C_7630, // overlay
    0xF2F5_2010, // f2fs
    0x2FC1_2FC1, // zfs
    0xCA45_1A4E, // bcachefs
];

/// Whether a file lies on one of those.
fn is_plain(file: impl AsFd) -> bool {
    // The field's width differs between machines.
    #[expect(clippy::unnecessary_cast, reason = "it is an i32 elsewhere")]
    fstatfs(file).is_ok_and(|found| PLAIN.contains(&(found.f_type as i64)))
}
