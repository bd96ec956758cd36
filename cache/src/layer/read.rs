//! A stranger's tar, one entry at a time. Reads headers, believes nothing.
//!
//! ```text
//! 512-byte header ─▶ checksum ─▶ extended headers (PAX, GNU long names) ─▶ RawEntry ─▶ contents through Read
//! ```
//!
//! What counts is what Go's reader and GNU tar agree on: a PAX size beats the header's; links, directories and devices
//! have no contents whatever their size field says; global PAX records have no effect; a block of zeros ends the archive.
//! The `tar` crate is used for the layout of a header only; it opens and creates nothing.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use tree::{Kind, Timestamp};

use super::{
    LayerError,
    header::BLOCK,
    pax::{self, Overrides},
};

/// The largest owner or group id taken from an archive (SECURITY: above it lies overflow into root).
const MAX_ID: u64 = (1 << 31) - 2;

/// One entry as an archive has it; the path is not cleaned yet.
#[derive(Debug)]
pub(super) struct RawEntry {
    /// Where its header lies in the stream.
    pub(super) at: u64,
    /// Where its contents lie in the stream.
    pub(super) offset: u64,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) rdev: (u32, u32),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads a tar from `R`. Between two entries it reads, as [`Read`], the contents of the last.
pub(super) struct TarReader<R: Read> {
    inner: R,
    position: u64,
    /// Bytes of the current entry's contents that were not read yet, and the padding behind them.
    left: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub(super) fn new(inner: R) -> Self {
        TarReader {
            inner,
            position: 0,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry; none at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<RawEntry>, LayerError> {
        self.skip_rest()?;
        let mut overrides = Overrides::default();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            let at = self.position;
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let header = tar::Header::from_byte_slice(&block);
            let size = numeric(&block[124..136]).ok_or_else(|| bad(at, "its size is no number"))?;
            let size = u64::try_from(size).map_err(|_| bad(at, "its size is negative"))?;
            match block[156] {
                b'x' => {
                    let body = self.extension(at, size)?;
                    overrides = pax::parse(&body).map_err(|what| bad(at, &what))?;
                }
                b'g' => {
                    let body = self.extension(at, size)?;
                    pax::parse(&body).map_err(|what| bad(at, &what))?;
                }
                b'L' => long_path = Some(until_nul(self.extension(at, size)?)),
                b'K' => long_link = Some(until_nul(self.extension(at, size)?)),
                _ => {
                    let mut entry = self.entry(at, header, &block, size, &mut overrides)?;
                    if let Some(path) = long_path {
                        entry.path = path;
                    }
                    if let Some(link) = long_link {
                        entry.link = link;
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn entry(
        &mut self,
        at: u64,
        header: &tar::Header,
        block: &[u8; BLOCK],
        size: u64,
        overrides: &mut Overrides,
    ) -> Result<RawEntry, LayerError> {
        let path = overrides
            .path
            .take()
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = overrides
            .link
            .take()
            .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let unsupported = |what| LayerError::Unsupported {
            path: String::from_utf8_lossy(&path).into_owned(),
            what,
        };
        if overrides.is_sparse() {
            return Err(unsupported(
                "is a sparse file of GNU tar; make the archive without --sparse",
            ));
        }
        let kind = match block[156] {
            0 if path.ends_with(b"/") => Kind::Dir,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            b'S' => {
                return Err(unsupported(
                    "is a sparse file of GNU tar; make the archive without --sparse",
                ));
            }
            _ => return Err(unsupported("has a type that is not known")),
        };
        let size = if kind == Kind::File {
            overrides.size.unwrap_or(size)
        } else {
            0
        };
        let id = |from: Option<u64>, field: &[u8], what| -> Result<u32, LayerError> {
            let found = match from {
                Some(found) => found,
                None => {
                    u64::try_from(numeric(field).ok_or_else(|| bad(at, what))?).map_err(|_| bad(at, what))?
                }
            };
            if found > MAX_ID {
                Err(bad(at, what))
            } else {
                u32::try_from(found).map_err(|_| bad(at, what))
            }
        };
        let mtime = match overrides.mtime {
            Some(mtime) => mtime,
            None => Timestamp::from_secs(
                numeric(&block[136..148]).ok_or_else(|| bad(at, "its time is no number"))?,
            ),
        };
        let mode = numeric(&block[100..108]).ok_or_else(|| bad(at, "its mode is no number"))?;
        let is_device = matches!(kind, Kind::Char | Kind::Block);
        let device = |field: &[u8]| -> Result<u32, LayerError> {
            let number = if is_device { numeric(field) } else { Some(0) };
            let number = number.ok_or_else(|| bad(at, "its device number is none"))?;
            u32::try_from(number).map_err(|_| bad(at, "its device number is out of range"))
        };
        self.left = size;
        self.padding = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| bad(at, "its size is too large"))?
            - size;
        Ok(RawEntry {
            at,
            offset: self.position,
            kind,
            mode: u32::try_from(mode & 0o7777).unwrap_or(0),
            uid: id(overrides.uid, &block[108..116], "its owner id is out of range")?,
            gid: id(overrides.gid, &block[116..124], "its group id is out of range")?,
            size,
            mtime,
            rdev: (device(&block[329..337])?, device(&block[337..345])?),
            xattrs: std::mem::take(&mut overrides.xattrs),
            path,
            link: if matches!(kind, Kind::HardLink | Kind::Symlink) {
                link
            } else {
                Vec::new()
            },
        })
    }

    /// The next header block, checked; none at the end (zeros, or no bytes at all).
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let at = self.position;
        let mut block = [0_u8; BLOCK];
        let filled = self.fill(&mut block)?;
        if filled == 0 {
            return Ok(None);
        }
        if filled < BLOCK {
            return Err(bad(at, "the archive ends in the middle of a header"));
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let stored = numeric(&block[148..156]).ok_or_else(|| bad(at, "its checksum is no number"))?;
        let at_sum = |index: usize| (148..156).contains(&index);
        let bytes = || {
            block
                .iter()
                .enumerate()
                .map(|(index, &byte)| if at_sum(index) { b' ' } else { byte })
        };
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if stored != unsigned && stored != signed {
            return Err(bad(at, "its checksum is wrong"));
        }
        Ok(Some(block))
    }

    /// The body of an extended header.
    fn extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > pax::MAX_BYTES {
            return Err(LayerError::Limit {
                what: "bytes in one extended header",
                limit: pax::MAX_BYTES,
            });
        }
        let padded = usize::try_from(size.next_multiple_of(BLOCK as u64)).expect("limited above");
        let mut body = vec![0_u8; padded];
        if self.fill(&mut body)? < padded {
            return Err(bad(at, "the archive ends in the middle of an extended header"));
        }
        body.truncate(usize::try_from(size).expect("limited above"));
        Ok(body)
    }

    fn skip_rest(&mut self) -> Result<(), LayerError> {
        let rest = self.left + self.padding;
        let at = self.position;
        let skipped = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())
            .map_err(LayerError::io("read tar"))?;
        self.position += skipped;
        if skipped < rest {
            return Err(bad(at, "the archive ends in the middle of a file"));
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::io("read tar")(error)),
            }
        }
        self.position += filled as u64;
        Ok(filled)
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }

    /// Reads what follows the archive, so that hashes see the whole stream.
    pub(super) fn drain(&mut self) -> Result<(), LayerError> {
        io::copy(&mut self.inner, &mut io::sink()).map_err(LayerError::io("read tar"))?;
        Ok(())
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let length = self.inner.read(&mut buffer[..want])?;
        if length == 0 {
            return Err(bad(self.position, "the archive ends in the middle of a file").into());
        }
        self.position += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

fn bad(at: u64, what: &str) -> LayerError {
    LayerError::BadTar {
        at,
        what: what.to_owned(),
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// A number of a header: octal text, or base 256 when the first bit is set. Empty is 0.
fn numeric(field: &[u8]) -> Option<i64> {
    if let Some(&first) = field.first()
        && first & 0x80 != 0
    {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (index, &byte) in field.iter().enumerate() {
            let byte = if index == 0 && !negative {
                byte & 0x7f
            } else {
                byte
            };
            if !(i64::MIN >> 8..=i64::MAX >> 8).contains(&value) {
                return None;
            }
            value = value << 8 | i64::from(byte);
        }
        return Some(value);
    }
    let text = field.trim_ascii_start();
    let end = text
        .iter()
        .position(|&byte| byte == 0 || byte == b' ')
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if !rest.iter().all(|&byte| byte == 0 || byte == b' ') {
        return None;
    }
    let mut digits = digits;
    while let [0, rest @ ..] = digits {
        digits = rest;
    }
    if digits.is_empty() {
        return Some(0);
    }
    if !digits.iter().all(|digit| (b'0'..=b'7').contains(digit)) {
        return None;
    }
    i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_all_spellings() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"00x0644\0", None),
            (b"-000644\0", None),
            (b"+000644\0", None),
            (b"0000999\0", None),
        ] {
            assert_eq!(numeric(field), value, "{field:?}");
        }
    }
}
