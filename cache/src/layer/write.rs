//! Streams a whole layer as tar, and makes its index and DiffId on the way.
//!
//! ```text
//! add(entry, contents) ─▶ header blocks ─▶ contents ─▶ padding ─▶ out
//!          └─▶ record with offset             └─▶ SHA-256 (on a thread of its own once it is worth one)
//! finish ─▶ two zero blocks ─▶ (out, TarLayer)
//! ```
//!
//! Entries come in [`RootPath`] order, each path once. Memory is constant whatever a file's size.

use std::{
    io::{self, Read, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use oci::{DiffId, Digest};
use sha2::{Digest as _, Sha256};
use tree::{Entry, Kind, RootPath};

use super::{
    LayerError,
    builder::Assembly,
    header::{BLOCK, encode_entry, encode_whiteout, truncate},
    index::{HeaderDigest, Place, TreeIndex},
};

/// How much of a file is held in memory at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// From how many bytes on hashing gets a thread of its own: below, starting one costs more than it gains.
const THREAD_FROM_BYTES: u64 = 4 * 1024 * 1024;
/// How many chunks may wait for the hashing thread.
const QUEUED_CHUNKS: usize = 8;

/// A finished layer tar: what it is called, how long it is, what is in it.
#[derive(Debug)]
pub struct TarLayer {
    /// SHA-256 of the tar.
    pub diff_id: DiffId,
    /// Bytes of the tar.
    pub size: u64,
    /// Its entries, with the offsets of their contents in the tar.
    pub tree: TreeIndex,
}

/// Writes a layer's tar to `W`.
pub struct TarLayerWriter<W: Write> {
    out: HashingWriter<W>,
    tree: Assembly,
    last: RootPath,
}

impl<W: Write> TarLayerWriter<W> {
    /// Begins a layer.
    pub fn new(out: W) -> Self {
        let mut tree = Assembly::default();
        let root = Entry::dir(RootPath::root(), 0o755);
        tree.push(
            &root.path,
            Some(&root),
            Place::None,
            super::index::FLAG_IMPLIED,
            None,
        );
        TarLayerWriter {
            out: HashingWriter::new(out),
            tree,
            last: RootPath::root(),
        }
    }

    /// Adds an entry; of a file's `contents` exactly `entry.size` bytes are expected.
    ///
    /// # Errors
    /// [`LayerError::OutOfOrder`]; [`LayerError::Changed`] if the contents are shorter or longer; I/O.
    pub fn add(&mut self, entry: &Entry, contents: impl Read) -> Result<(), LayerError> {
        self.add_digested(entry, contents, None)
    }

    /// As [`TarLayerWriter::add`], for a file whose header digest is known already.
    ///
    /// # Errors
    /// As [`TarLayerWriter::add`].
    pub fn add_digested(
        &mut self,
        entry: &Entry,
        mut contents: impl Read,
        digest: Option<HeaderDigest>,
    ) -> Result<(), LayerError> {
        self.check_order(&entry.path)?;
        self.out
            .write_all(&encode_entry(entry))
            .map_err(LayerError::io("write layer"))?;
        let mut place = Place::None;
        if entry.kind == Kind::File && entry.size > 0 {
            place = Place::Tar {
                offset: self.out.written,
            };
            self.copy(entry, &mut contents)?;
        }
        let mut kept = entry.clone();
        kept.mtime = truncate(kept.mtime);
        kept.xattrs.retain(|name, _| name == super::header::CAPABILITY);
        self.tree.push(&entry.path, Some(&kept), place, 0, digest);
        Ok(())
    }

    /// Says that `path` is deleted from the layers below.
    ///
    /// # Errors
    /// [`LayerError::OutOfOrder`]; I/O.
    pub fn add_whiteout(&mut self, path: &RootPath) -> Result<(), LayerError> {
        self.check_order(path)?;
        self.out
            .write_all(&encode_whiteout(path))
            .map_err(LayerError::io("write layer"))?;
        self.tree.push(path, None, Place::None, 0, None);
        Ok(())
    }

    fn check_order(&mut self, path: &RootPath) -> Result<(), LayerError> {
        if *path <= self.last {
            return Err(LayerError::OutOfOrder {
                path: path.display().to_string(),
                last: self.last.display().to_string(),
            });
        }
        self.last = path.clone();
        Ok(())
    }

    fn copy(&mut self, entry: &Entry, contents: &mut impl Read) -> Result<(), LayerError> {
        let changed = |found| LayerError::Changed {
            path: entry.path.display().to_string(),
            expected: entry.size,
            found,
        };
        let mut left = entry.size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let mut chunk = self.out.buffer(want);
            let mut filled = 0;
            while filled < want {
                match contents.read(&mut chunk[filled..]) {
                    Ok(0) => return Err(changed(entry.size - left + filled as u64)),
                    Ok(length) => filled += length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(LayerError::io("read contents")(error)),
                }
            }
            self.out
                .write_chunk(chunk)
                .map_err(LayerError::io("write layer"))?;
            left -= want as u64;
        }
        if contents.read(&mut [0]).map_err(LayerError::io("read contents"))? != 0 {
            return Err(changed(entry.size + 1));
        }
        let padding = entry.size.next_multiple_of(BLOCK as u64) - entry.size;
        let zeros = [0_u8; BLOCK];
        let padding = usize::try_from(padding).expect("padding is less than a block");
        self.out
            .write_all(&zeros[..padding])
            .map_err(LayerError::io("write layer"))
    }

    /// Ends the tar and gives back the writer, with what was written.
    ///
    /// # Errors
    /// I/O.
    pub fn finish(mut self) -> Result<(W, TarLayer), LayerError> {
        self.out
            .write_all(&[0; 2 * BLOCK])
            .map_err(LayerError::io("write layer"))?;
        let (out, digest, size) = self.out.finish().map_err(LayerError::io("write layer"))?;
        Ok((
            out,
            TarLayer {
                diff_id: DiffId::new(digest),
                size,
                tree: self.tree.finish(),
            },
        ))
    }
}

/// Writes through and hashes, on another thread once there is much to hash.
pub(crate) struct HashingWriter<W: Write> {
    out: W,
    hash: Hash,
    spare: Vec<Vec<u8>>,
    /// Bytes so far.
    pub(crate) written: u64,
}

enum Hash {
    Here(Sha256),
    Thread {
        chunks: SyncSender<Vec<u8>>,
        back: Receiver<Vec<u8>>,
        thread: JoinHandle<Sha256>,
    },
}

impl<W: Write> HashingWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        HashingWriter {
            out,
            hash: Hash::Here(Sha256::new()),
            spare: Vec::new(),
            written: 0,
        }
    }

    /// A buffer of `length` bytes, from those that were hashed already if there are any.
    pub(super) fn buffer(&mut self, length: usize) -> Vec<u8> {
        if let Hash::Thread { back, .. } = &self.hash {
            self.spare.extend(back.try_iter());
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    pub(super) fn write_chunk(&mut self, chunk: Vec<u8>) -> io::Result<()> {
        self.out.write_all(&chunk)?;
        self.written += chunk.len() as u64;
        if self.written >= THREAD_FROM_BYTES {
            self.start_thread()?;
        }
        match &mut self.hash {
            Hash::Here(hash) => {
                hash.update(&chunk);
                self.spare.push(chunk);
            }
            Hash::Thread { chunks, .. } => {
                chunks
                    .send(chunk)
                    .map_err(|_| io::Error::other("the hashing thread ended early"))?;
            }
        }
        Ok(())
    }

    fn start_thread(&mut self) -> io::Result<()> {
        let Hash::Here(hash) = &mut self.hash else {
            return Ok(());
        };
        let mut hash = std::mem::take(hash);
        let (chunks, incoming) = sync_channel::<Vec<u8>>(QUEUED_CHUNKS);
        let (outgoing, back) = sync_channel::<Vec<u8>>(QUEUED_CHUNKS);
        let thread = std::thread::Builder::new()
            .name("layer-hash".into())
            .spawn(move || {
                for chunk in incoming {
                    hash.update(&chunk);
                    drop(outgoing.try_send(chunk)); // full: the buffer is simply freed
                }
                hash
            })?;
        self.hash = Hash::Thread { chunks, back, thread };
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<(W, Digest, u64)> {
        self.out.flush()?;
        let hash = match self.hash {
            Hash::Here(hash) => hash,
            Hash::Thread { chunks, thread, .. } => {
                drop(chunks);
                thread
                    .join()
                    .map_err(|_| io::Error::other("the hashing thread panicked"))?
            }
        };
        let sum: [u8; 32] = hash.finalize().into();
        Ok((self.out, Digest::from(sum), self.written))
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut chunk = self.buffer(bytes.len());
        chunk.copy_from_slice(bytes);
        self.write_chunk(chunk)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
