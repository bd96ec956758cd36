//! Copies files whose descriptors a client gave instead of their bytes.
//!
//! ```text
//! HANDED{file, transfer} ─▶ the transfer's line ─▶ descriptor ─▶ copied inside the kernel, piece by piece ─▶ done
//! ```
use super::ReceiveError;
use crate::hand::{Key, Line};
use rustix::fs::copy_file_range;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// What is copied between two looks at whether anybody still wants it.
const PIECE: usize = 8 << 20;
/// What is copied at once where the kernel cannot do it alone.
const BUFFER: usize = 256 << 10;

/// What one transfer has of the client's descriptors.
pub(super) struct Handed {
    key: Option<Arc<Key>>,
    line: Option<Line>,
}

/// Who is asked before, and told after each piece: whether to go on.
pub(super) type Tick<'a> = &'a mut dyn FnMut(u64) -> Result<(), ReceiveError>;

impl Handed {
    pub(super) fn new(key: Option<Arc<Key>>) -> Handed {
        Handed { key, line: None }
    }

    /// Takes the next descriptor and copies all that can be read of it.
    pub(super) fn copy(&mut self, transfer: &[u8], to: &File, tick: Tick<'_>) -> Result<(), ReceiveError> {
        let unknown = ReceiveError::Protocol("a file handed over on a line nobody made");
        let line = match &mut self.line {
            Some(line) => line,
            none => {
                let key = self.key.as_ref().ok_or(unknown)?;
                let made = key.line(transfer);
                none.insert(made.ok_or(ReceiveError::Protocol("a file handed over on an unknown line"))?)
            }
        };
        let from = line.take()?;
        pour(&from, to, tick)?;
        line.done();
        Ok(())
    }
}

/// Copies from the first byte to the end, as it is when it is reached. The offset is ours: that of the descriptor is the
/// client's too.
fn pour(from: &File, mut to: &File, tick: Tick<'_>) -> Result<(), ReceiveError> {
    let failed = |source| ReceiveError::Handed { source };
    let mut at = 0;
    loop {
        match copy_file_range(from, Some(&mut at), to, None, PIECE) {
            Ok(0) => break,
            Ok(copied) => tick(copied as u64)?,
            Err(Errno::INTR) => {}
            // Two file systems, or one that cannot.
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => break,
            Err(error) => return Err(failed(error.into())),
        }
    }
    // What is left: nothing, or all of it where the kernel did not copy; some file systems say 0 before the end.
    if from.metadata().map_err(failed)?.len() <= at {
        return Ok(());
    }
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read_at(&mut buffer, at) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                to.write_all(&buffer[..read]).map_err(failed)?;
                at += read as u64;
                tick(read as u64)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}
