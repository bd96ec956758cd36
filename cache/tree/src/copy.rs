//! Contents from one file to another, the cheapest way the file systems allow.
//!
//! ```text
//! whole file ─▶ reflink ─┐ not possible
//! range ─────────────────┴▶ copy_file_range ─┐ not possible
//!                                            └▶ read and write, 128 KiB at a time
//! ```

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};

use rustix::io::Errno;

/// How much is held in memory while bytes are copied by hand.
const BUFFER_BYTES: usize = 128 * 1024;

/// Copies all of `from` into the new, empty file `to`; gives the bytes copied.
///
/// # Errors
/// The kernel's.
pub fn whole(from: &File, to: &File) -> io::Result<u64> {
    let length = from.metadata()?.len();
    if length > 0 && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(length);
    }
    range(from, 0, to, length)
}

/// Copies `length` bytes of `from` that begin at `offset` to the current end of the new file `to`
/// (its position); gives the bytes copied, fewer only if `from` ended.
///
/// # Errors
/// The kernel's.
pub fn range(from: &File, offset: u64, to: &File, length: u64) -> io::Result<u64> {
    let mut position = offset;
    let end = offset.saturating_add(length);
    while position < end {
        let want = usize::try_from(end - position).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut position), to, None, want) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::BADF) => {
                return by_bytes(from, position, to, end).map(|position| position - offset);
            }
            Err(other) => return Err(other.into()),
        }
    }
    if position < end {
        // Some pseudo file systems answer 0 although there are bytes: look by reading.
        position = by_bytes(from, position, to, end)?;
    }
    Ok(position - offset)
}

fn by_bytes(from: &File, mut position: u64, mut to: &File, end: u64) -> io::Result<u64> {
    let mut buffer = vec![
        0_u8;
        BUFFER_BYTES
            .min(usize::try_from(end - position).unwrap_or(BUFFER_BYTES))
            .max(1)
    ];
    while position < end {
        let want = usize::try_from(end - position)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        match from.read_at(&mut buffer[..want], position) {
            Ok(0) => break,
            Ok(length) => {
                to.write_all(&buffer[..length])?;
                position += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(position)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::testing::{TempRoot, path};

    #[test]
    fn whole_files_and_ranges_arrive() {
        let temp = TempRoot::new("copy");
        let root = temp.root();
        let mut from = root.create_file(&path("from"), 0o644).expect("create");
        let contents: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
        from.write_all(&contents).expect("write");
        for (name, offset, length) in [
            ("all", 0, 300_000),
            ("part", 1000, 200_000),
            ("past", 299_990, 100),
        ] {
            let mut to = root.create_file(&path(name), 0o644).expect("create");
            let copied = range(&from, offset, &to, length).expect("copy");
            let wanted = &contents[offset as usize..contents.len().min((offset + length) as usize)];
            assert_eq!(copied, wanted.len() as u64, "{name}");
            let mut got = Vec::new();
            io::Seek::rewind(&mut to).expect("rewind");
            to.read_to_end(&mut got).expect("read");
            assert_eq!(got, wanted, "{name}");
        }
        let to = root.create_file(&path("whole"), 0o644).expect("create");
        assert_eq!(whole(&from, &to).expect("copy"), 300_000);
    }
}
