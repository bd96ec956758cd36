//! The same layer with no time later than a given one (`rewrite-timestamp`).
//!
//! ```text
//! plain tar ─▶ read ─▶ times clamped ─▶ canonical headers ─▶ tar with another DiffId
//! ```
//!
//! Order, deletions and contents stay as they are.

use std::io::{self, Read, Write};

use oci::DiffId;

use super::{
    LayerError,
    header::{BLOCK, CAPABILITY, Fields, encode, typeflag},
    read::TarReader,
    write::HashingWriter,
};

/// Copies a plain `tar` to `out` with every time later than `epoch_secs` set to it. Gives the writer, DiffId and size.
///
/// # Errors
/// [`LayerError`] for what is no tar; I/O.
pub fn rewrite_timestamps<W: Write>(
    tar: impl Read,
    out: W,
    epoch_secs: i64,
) -> Result<(W, DiffId, u64), LayerError> {
    let failed = LayerError::io("write layer");
    let mut reader = TarReader::new(tar);
    let mut out = HashingWriter::new(out);
    while let Some(raw) = reader.next()? {
        let header = encode(&Fields {
            path: &raw.path,
            link: &raw.link,
            typeflag: typeflag(raw.kind),
            mode: raw.mode,
            uid: raw.uid.into(),
            gid: raw.gid.into(),
            size: raw.size,
            mtime_secs: raw.mtime.secs.min(epoch_secs),
            rdev: raw.rdev,
            capability: raw.xattrs.get(CAPABILITY).map(Vec::as_slice),
        });
        out.write_all(&header).map_err(&failed)?;
        let copied = io::copy(&mut reader, &mut out).map_err(&failed)?;
        let padding =
            usize::try_from(copied.next_multiple_of(BLOCK as u64) - copied).expect("less than a block");
        out.write_all(&[0; BLOCK][..padding]).map_err(&failed)?;
    }
    out.write_all(&[0; 2 * BLOCK]).map_err(&failed)?;
    let (out, digest, size) = out.finish().map_err(&failed)?;
    Ok((out, DiffId::new(digest), size))
}
