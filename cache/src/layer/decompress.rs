//! Whatever a layer or archive is packed with, as a plain stream.
//!
//! ```text
//! first bytes ─▶ sniff ─▶ gzip (all members) | zstd (window ≤ 128 MiB) | bzip2 | xz (memory ≤ 256 MiB) | plain
//! ```
//!
//! The stream fails with [`LayerError::Limit`] when it unpacks to more than 1100 times what went in:
//! gzip cannot reach that, so only bombs of the other kinds do.

use std::io::{self, BufRead, BufReader, Read};

use super::LayerError;

/// The largest zstd window accepted, as a power of two: 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;
/// The most memory an xz stream may ask for.
const XZ_MEMORY_BYTES: u64 = 256 * 1024 * 1024;
/// The largest ratio of unpacked to packed bytes; deflate's own limit is 1032.
const MAX_RATIO: u64 = 1100;
/// Below this many unpacked bytes the ratio is not looked at.
const RATIO_FROM_BYTES: u64 = 256 * 1024 * 1024;
/// How much is read at once from what is packed.
const BUFFER_BYTES: usize = 128 * 1024;

/// What a stream's first bytes say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    /// No packing that is known.
    Plain,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

/// Says how a stream that begins with `head` (six bytes are enough) is packed.
#[must_use]
pub fn sniff(head: &[u8]) -> Sniffed {
    match head {
        [0x1f, 0x8b, 8, ..] => Sniffed::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Sniffed::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Sniffed::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Sniffed::Xz,
        _ => Sniffed::Plain,
    }
}

/// A stream unpacked as its first bytes say.
pub struct Decompressor<'a> {
    stream: Box<dyn Read + Send + 'a>,
    sniffed: Sniffed,
}

impl Decompressor<'_> {
    /// How the stream was packed.
    #[must_use]
    pub fn sniffed(&self) -> Sniffed {
        self.sniffed
    }
}

impl Read for Decompressor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

/// Unpacks `packed` by what its first bytes say.
///
/// # Errors
/// Those of reading its beginning.
pub fn decompress<'a>(packed: impl Read + Send + 'a) -> Result<Decompressor<'a>, LayerError> {
    let counted = Counted {
        inner: packed,
        bytes: Counter::default(),
    };
    let count = counted.bytes.clone();
    let mut packed = BufReader::with_capacity(BUFFER_BYTES, counted);
    let mut head = packed.fill_buf().map_err(LayerError::io("read layer"))?.to_vec();
    head.truncate(6);
    if head.len() < 6 && !head.is_empty() {
        // A stream may hand out its first bytes one by one.
        let mut more = vec![0; 6 - head.len()];
        let mut got = 0;
        packed.consume(head.len());
        while got < more.len() {
            match packed
                .read(&mut more[got..])
                .map_err(LayerError::io("read layer"))?
            {
                0 => break,
                length => got += length,
            }
        }
        head.extend_from_slice(&more[..got]);
        let again = BufReader::with_capacity(BUFFER_BYTES, io::Cursor::new(head.clone()).chain(packed));
        return unpack(sniff(&head), again, count);
    }
    unpack(sniff(&head), packed, count)
}

fn unpack<'a>(
    sniffed: Sniffed,
    packed: impl BufRead + Send + 'a,
    count: Counter,
) -> Result<Decompressor<'a>, LayerError> {
    let failed = LayerError::io("unpack layer");
    let stream: Box<dyn Read + Send + 'a> = match sniffed {
        Sniffed::Plain => {
            return Ok(Decompressor {
                stream: Box::new(packed),
                sniffed,
            });
        }
        Sniffed::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Sniffed::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(&failed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(&failed)?;
            Box::new(decoder)
        }
        Sniffed::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
        Sniffed::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, liblzma::stream::CONCATENATED)
                    .map_err(|cause| failed(cause.into()))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(packed, stream))
        }
    };
    Ok(Decompressor {
        stream: Box::new(Bounded {
            inner: stream,
            packed: count,
            unpacked: 0,
        }),
        sniffed,
    })
}

/// A count of bytes shared between the two ends of a decoder.
#[derive(Clone, Default)]
struct Counter(std::sync::Arc<std::sync::atomic::AtomicU64>);

struct Counted<R> {
    inner: R,
    bytes: Counter,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.bytes
            .0
            .fetch_add(length as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(length)
    }
}

struct Bounded<R> {
    inner: R,
    packed: Counter,
    unpacked: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.unpacked += length as u64;
        let packed = self.packed.0.load(std::sync::atomic::Ordering::Relaxed);
        if self.unpacked > RATIO_FROM_BYTES && self.unpacked > packed.saturating_mul(MAX_RATIO) {
            return Err(LayerError::Limit {
                what: "unpacked bytes per packed byte",
                limit: MAX_RATIO,
            }
            .into());
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed(kind: Sniffed, bytes: &[u8]) -> Vec<u8> {
        match kind {
            Sniffed::Plain => bytes.to_vec(),
            Sniffed::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).expect("memory");
                encoder.finish().expect("memory")
            }
            Sniffed::Zstd => zstd::encode_all(bytes, 1).expect("memory"),
            Sniffed::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                encoder.write_all(bytes).expect("memory");
                encoder.finish().expect("memory")
            }
            Sniffed::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(bytes).expect("memory");
                encoder.finish().expect("memory")
            }
        }
    }

    /// Hands out one byte at a time.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let want = buffer.len().min(1);
            self.0.read(&mut buffer[..want])
        }
    }

    #[test]
    fn every_packing_is_known_by_its_first_bytes() {
        let contents = b"the same bytes again and again, the same bytes again and again".repeat(100);
        for kind in [
            Sniffed::Plain,
            Sniffed::Gzip,
            Sniffed::Zstd,
            Sniffed::Bzip2,
            Sniffed::Xz,
        ] {
            let mut twice = packed(kind, &contents);
            twice.extend(packed(kind, b"second part"));
            for drip in [false, true] {
                let source: Box<dyn Read + Send> = if drip {
                    Box::new(Drip(&twice))
                } else {
                    Box::new(io::Cursor::new(&twice))
                };
                let mut stream = decompress(source).expect("begins");
                assert_eq!(stream.sniffed(), kind);
                let mut got = Vec::new();
                stream.read_to_end(&mut got).expect("whole");
                assert_eq!(got.len(), contents.len() + 11, "{kind:?}: all members count");
            }
        }
        assert_eq!(decompress(&b""[..]).expect("empty").sniffed(), Sniffed::Plain);
    }

    #[test]
    fn a_bomb_is_cut_off() {
        let bomb = zstd::encode_all(io::repeat(0).take(300 << 20), 1).expect("memory");
        let mut stream = decompress(io::Cursor::new(bomb)).expect("begins");
        let error = io::copy(&mut stream, &mut io::sink()).expect_err("a bomb");
        assert!(
            error.to_string().contains("unpacked bytes per packed byte"),
            "{error}"
        );
    }

    #[test]
    fn a_window_beyond_the_limit_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("memory");
        encoder.long_distance_matching(true).expect("known");
        encoder.window_log(30).expect("known");
        encoder.write_all(b"x").expect("memory");
        let packed = encoder.finish().expect("memory");
        let mut stream = decompress(io::Cursor::new(packed)).expect("begins");
        assert!(io::copy(&mut stream, &mut io::sink()).is_err());
    }
}
