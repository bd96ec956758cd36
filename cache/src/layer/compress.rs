//! gzip and zstd of a layer, on all cores, with the same bytes whatever the number of cores.
//!
//! ```text
//! tar ─▶ chunks of 1 MiB ─▶ libdeflate, each a gzip member, in parallel ─▶ in order ─▶ SHA-256 ─▶ blob
//! tar ─▶ zstd with workers (jobs of fixed size) ────────────────────────▶ SHA-256 ─▶ blob
//! ```
//!
//! A gzip file of several members is what RFC 1952 defines; Go's reader (containerd, BuildKit, Docker, skopeo, umoci),
//! zlib's, GNU gzip's, pigz's and Python's all read on to the last member. One member made of parts would need deflate
//! blocks that libdeflate does not hand out.
//!
//! Levels: nothing is larger than Go's `compress/gzip` at the same number. The default (6 there) is libdeflate's 4: 2.89
//! against 2.86 on real libraries, at four times the speed on one core.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    sync::mpsc::{Receiver, sync_channel},
};

use libdeflater::{CompressionLvl, Compressor};
use oci::{Compression, Digest};
use parking_lot::Mutex;

use super::{LayerError, write::HashingWriter};

/// Bytes of one gzip member. Part of the format as far as reproducibility goes: changing it changes digests.
const MEMBER_BYTES: usize = 1024 * 1024;
/// How many members per core are in work: one being compressed, one waiting for its turn to be written.
const MEMBERS_PER_CORE: usize = 2;
/// zstd's own default.
const ZSTD_DEFAULT_LEVEL: i32 = 3;

/// How hard to compress: the default, or a number in the compression's own scale (gzip 0 to 9, zstd 1 to 22).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Level {
    /// At least as small as BuildKit's default.
    #[default]
    Default,
    /// A number; what lies outside the scale counts as its nearest end.
    Number(i32),
}

/// A finished blob.
#[derive(Debug)]
pub struct Compressed<W> {
    /// What it was written to.
    pub out: W,
    /// SHA-256 of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
}

/// Compresses `tar` into `out`. Blocks the calling thread; the work is done on rayon's pool (gzip) or zstd's threads.
///
/// # Errors
/// Those of reading and writing.
pub fn compress<W: Write>(
    tar: impl Read,
    out: W,
    kind: Compression,
    level: Level,
) -> Result<Compressed<W>, LayerError> {
    let out = HashingWriter::new(out);
    let failed = LayerError::io("compress layer");
    let out = match kind {
        Compression::Uncompressed => copy(tar, out),
        Compression::Gzip => gzip(tar, out, gzip_level(level)),
        Compression::Zstd => zstd_stream(tar, out, level),
    }
    .map_err(&failed)?;
    let (out, digest, size) = out.finish().map_err(&failed)?;
    Ok(Compressed { out, digest, size })
}

fn copy<W: Write>(mut tar: impl Read, mut out: HashingWriter<W>) -> io::Result<HashingWriter<W>> {
    loop {
        let mut chunk = out.buffer(MEMBER_BYTES);
        let length = fill(&mut tar, &mut chunk)?;
        chunk.truncate(length);
        out.write_chunk(chunk)?;
        if length < MEMBER_BYTES {
            return Ok(out);
        }
    }
}

fn zstd_stream<W: Write>(
    mut tar: impl Read,
    out: HashingWriter<W>,
    level: Level,
) -> io::Result<HashingWriter<W>> {
    let level = match level {
        Level::Default => ZSTD_DEFAULT_LEVEL,
        Level::Number(number) => number.clamp(1, 22),
    };
    let mut encoder = zstd::stream::write::Encoder::new(out, level)?;
    // At least one worker: without any the stream is cut differently, and so the bytes would depend on the machine.
    let workers = std::thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .min(16);
    encoder.multithread(u32::try_from(workers).unwrap_or(1))?;
    let mut buffer = vec![0; MEMBER_BYTES];
    loop {
        let length = fill(&mut tar, &mut buffer)?;
        encoder.write_all(&buffer[..length])?;
        if length < buffer.len() {
            return encoder.finish();
        }
    }
}

/// libdeflate's level for one of gzip's.
fn gzip_level(level: Level) -> i32 {
    match level {
        Level::Default => 4,
        Level::Number(number) => match number {
            ..=0 => 0,
            1 | 2 => 1,
            3 => 2,
            4 | 5 => 3,
            6 => 4,
            7 => 5,
            8 => 6,
            9.. => 7,
        },
    }
}

fn gzip<W: Write>(mut tar: impl Read, mut out: HashingWriter<W>, level: i32) -> io::Result<HashingWriter<W>> {
    let in_pool = rayon::current_thread_index().is_some(); // there, waiting for the pool could wait for ourselves
    let limit = rayon::current_num_threads() * MEMBERS_PER_CORE;
    let mut queue: VecDeque<Receiver<io::Result<Vec<u8>>>> = VecDeque::with_capacity(limit);
    let mut first = true;
    loop {
        let mut chunk = vec![0; MEMBER_BYTES];
        let length = fill(&mut tar, &mut chunk)?;
        chunk.truncate(length);
        let last = length < MEMBER_BYTES;
        if first && last || in_pool {
            if length > 0 || first {
                out.write_chunk(member(&chunk, level)?)?;
            }
        } else if length > 0 {
            let (done, result) = sync_channel(1);
            rayon::spawn(move || drop(done.send(member(&chunk, level)))); // nobody listens once we failed
            queue.push_back(result);
        }
        first = false;
        while queue.len() >= limit || (last && !queue.is_empty()) {
            let result = queue.pop_front().expect("not empty");
            let member = result
                .recv()
                .map_err(|_| io::Error::other("a compression thread panicked"))??;
            out.write_chunk(member)?;
        }
        if last {
            return Ok(out);
        }
    }
}

/// How many idle compressors are kept: one is a megabyte of tables.
const KEPT_COMPRESSORS: usize = 8;
static COMPRESSORS: Mutex<Vec<(i32, Compressor)>> = Mutex::new(Vec::new());

/// One gzip member of `chunk`.
fn member(chunk: &[u8], level: i32) -> io::Result<Vec<u8>> {
    let kept = {
        let mut idle = COMPRESSORS.lock();
        let at = idle.iter().position(|(held, _)| *held == level);
        at.map(|at| idle.swap_remove(at).1)
    };
    let mut compressor = match kept {
        Some(compressor) => compressor,
        None => {
            let level =
                CompressionLvl::new(level).map_err(|_| io::Error::other("unknown libdeflate level"))?;
            Compressor::new(level)
        }
    };
    let mut out = vec![0; compressor.gzip_compress_bound(chunk.len())];
    let length = compressor
        .gzip_compress(chunk, &mut out)
        .map_err(|cause| io::Error::other(format!("libdeflate: {cause}")))?;
    out.truncate(length);
    let mut idle = COMPRESSORS.lock();
    if idle.len() >= KEPT_COMPRESSORS {
        idle.remove(0);
    }
    idle.push((level, compressor));
    Ok(out)
}

/// Reads until `buffer` is full or the stream ends.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::decompress;

    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.extend_from_slice(format!("line {} of something\n", state >> 24).as_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    #[test]
    fn what_is_compressed_is_read_again_and_hashed() {
        for length in [
            0,
            1,
            MEMBER_BYTES - 1,
            MEMBER_BYTES,
            MEMBER_BYTES + 1,
            5 * MEMBER_BYTES + 7,
        ] {
            let contents = sample(length);
            for kind in [Compression::Uncompressed, Compression::Gzip, Compression::Zstd] {
                let done = compress(&contents[..], Vec::new(), kind, Level::Default).expect("memory");
                assert_eq!(done.digest, Digest::of(&done.out), "{kind:?} {length}");
                assert_eq!(done.size, done.out.len() as u64);
                let mut again = Vec::new();
                decompress(&done.out[..])
                    .expect("begins")
                    .read_to_end(&mut again)
                    .expect("whole");
                assert!(again == contents, "{kind:?} {length}");
            }
        }
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_number_of_cores() {
        let contents = sample(7 * MEMBER_BYTES + 1);
        let with = |threads: usize, inside: bool| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads");
            let run = || {
                compress(&contents[..], Vec::new(), Compression::Gzip, Level::Default)
                    .expect("memory")
                    .digest
            };
            if inside { pool.install(run) } else { run() }
        };
        assert_eq!(with(1, true), with(2, false));
    }

    #[test]
    fn every_level_of_gzip_works_and_higher_is_not_larger() {
        let contents = sample(MEMBER_BYTES);
        let sizes: Vec<u64> = [1, 6, 9]
            .iter()
            .map(|&number| {
                compress(
                    &contents[..],
                    Vec::new(),
                    Compression::Gzip,
                    Level::Number(number),
                )
                .expect("memory")
                .size
            })
            .collect();
        assert!(sizes[0] >= sizes[1] && sizes[1] >= sizes[2], "{sizes:?}");
        for number in [-5, 0, 2, 3, 4, 5, 7, 8, 100] {
            compress(&b"x"[..], Vec::new(), Compression::Gzip, Level::Number(number)).expect("memory");
        }
    }
}
