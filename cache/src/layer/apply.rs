//! A stranger's layer, from a plain tar stream to an index, with its bytes as a tar or as an overlay directory.
//!
//! ```text
//! stream ─▶ SHA-256 (DiffId) ─▶ read ─▶ path cleaned, whiteouts told apart ─▶ builder ─▶ TreeIndex
//!              └─▶ kept as it is (index_stream)      └─▶ files written at once (unpack_stream)
//! ```
//!
//! The stream is read to its last byte, so that the digest is that of all of it; whoever expects a DiffId compares.
//! Never does a path of an archive reach the kernel other than beneath a [`Root`] and without a link on the way.

use std::io::{self, Read, Write};

use oci::DiffId;
use sha2::{Digest as _, Sha256};
use tree::{Entry, Kind, Root, RootPath};

use super::{
    DirOptions, LayerError, TreeBuilder, TreeIndex,
    header::{OPAQUE_NAME, WHITEOUT_PREFIX},
    index::Place,
    materialise::settle,
    read::{RawEntry, TarReader},
};
use crate::view::View;

/// How much one layer may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries.
    pub entries: u64,
    /// Bytes of contents.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entries: 10_000_000,
            bytes: 1 << 42,
        }
    }
}

/// What became of a layer's stream.
#[derive(Debug)]
pub struct Applied {
    /// SHA-256 of the plain stream.
    pub diff_id: DiffId,
    /// Bytes of the plain stream.
    pub size: u64,
    /// Its entries.
    pub tree: TreeIndex,
}

/// Copies a plain tar `stream` to `out` as it is, and indexes it: contents lie in `out`, by offset.
///
/// # Errors
/// [`LayerError`] of every kind; `out` then holds a useless piece.
pub fn index_stream(stream: impl Read, out: impl Write, limits: Limits) -> Result<Applied, LayerError> {
    index(stream, out, Layer::new(limits, Names::OfLayer))
}

/// As [`index_stream`], for an archive that is no layer: a name beginning with `.wh.` is a name like any other.
///
/// # Errors
/// As [`index_stream`].
pub fn index_archive(stream: impl Read, out: impl Write, limits: Limits) -> Result<Applied, LayerError> {
    index(stream, out, Layer::new(limits, Names::Plain))
}

/// Whether `stream` begins as a tar with at least one entry.
#[must_use]
pub fn is_tar(stream: impl Read) -> bool {
    matches!(TarReader::new(stream).next(), Ok(Some(_)))
}

fn index(stream: impl Read, out: impl Write, mut layer: Layer) -> Result<Applied, LayerError> {
    let mut reader = TarReader::new(Tee {
        stream,
        out,
        hash: Sha256::new(),
        bytes: 0,
    });
    while let Some(raw) = reader.next()? {
        let offset = raw.offset;
        layer.take(raw, |entry, _| {
            Ok(if entry.size > 0 {
                Place::Tar { offset }
            } else {
                Place::None
            })
        })?;
    }
    finish(reader, layer.builder.finish())
}

/// Unpacks a plain tar `stream` into the empty overlay directory `root`; `lower` is what lies beneath the layer.
///
/// # Errors
/// [`LayerError`] of every kind; `root` then holds a useless piece.
pub fn unpack_stream(
    stream: impl Read,
    root: &Root,
    lower: &View,
    options: DirOptions,
    limits: Limits,
) -> Result<Applied, LayerError> {
    let mut reader = TarReader::new(Tee {
        stream,
        out: io::sink(),
        hash: Sha256::new(),
        bytes: 0,
    });
    let mut layer = Layer::new(limits, Names::OfLayer);
    while let Some(raw) = reader.next()? {
        let contents = &mut reader;
        layer.take(raw, |entry, replaces| {
            write_now(root, entry, replaces, contents)?;
            Ok(if entry.kind == Kind::File {
                Place::Dir
            } else {
                Place::None
            })
        })?;
    }
    let tree = layer.builder.finish();
    settle(&tree, root, lower, options)?;
    finish(reader, tree)
}

fn finish<R: Read, W: Write>(
    mut reader: TarReader<Tee<R, W>>,
    tree: TreeIndex,
) -> Result<Applied, LayerError> {
    reader.drain()?;
    let Tee {
        mut out, hash, bytes, ..
    } = reader.into_inner();
    out.flush().map_err(LayerError::io("write layer"))?;
    let digest: [u8; 32] = hash.finalize().into();
    Ok(Applied {
        diff_id: DiffId::new(digest.into()),
        size: bytes,
        tree,
    })
}

/// What names beginning with `.wh.` mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    /// Deletions.
    OfLayer,
    /// Themselves.
    Plain,
}

/// What an archive's entries add up to so far.
struct Layer {
    builder: TreeBuilder,
    names: Names,
    limits: Limits,
    entries: u64,
    bytes: u64,
}

impl Layer {
    fn new(limits: Limits, names: Names) -> Self {
        Layer {
            builder: TreeBuilder::new(),
            names,
            limits,
            entries: 0,
            bytes: 0,
        }
    }

    /// Takes one entry in. `place` is called for what is to exist (not for deletions), with whether something of the same
    /// layer is there already; it sees files before anything else knows them.
    fn take(
        &mut self,
        raw: RawEntry,
        place: impl FnOnce(&Entry, bool) -> Result<Place, LayerError>,
    ) -> Result<(), LayerError> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(raw.size);
        if self.entries > self.limits.entries {
            return Err(LayerError::Limit {
                what: "entries",
                limit: self.limits.entries,
            });
        }
        if self.bytes > self.limits.bytes {
            return Err(LayerError::Limit {
                what: "bytes of contents",
                limit: self.limits.bytes,
            });
        }
        let at = raw.at;
        let bad_path = |cause| LayerError::BadPath { at, cause };
        let cleaned = RootPath::clean(&raw.path).map_err(bad_path)?;
        let path = self
            .builder
            .resolve_parent(&cleaned)
            .ok_or_else(|| LayerError::TooManyLinks {
                path: cleaned.display().to_string(),
            })?;
        if path.is_root() && raw.kind != Kind::Dir {
            return Err(LayerError::BadTar {
                at,
                what: "the root of a layer can only be a directory".to_owned(),
            });
        }
        if let Some(name) = path.file_name()
            && self.names == Names::OfLayer
            && name.starts_with(WHITEOUT_PREFIX)
        {
            let dir = path.parent().unwrap_or_default();
            let name = name.to_vec();
            return self.take_whiteout(at, &dir, &name);
        }
        let mut entry = Entry::new(path, raw.kind, raw.mode);
        (entry.uid, entry.gid, entry.mtime, entry.size) = (raw.uid, raw.gid, raw.mtime, raw.size);
        (entry.rdev, entry.xattrs) = (raw.rdev, raw.xattrs);
        entry.xattrs.retain(|name, _| !is_overlay_xattr(name));
        match raw.kind {
            Kind::HardLink => {
                let target = RootPath::clean(&raw.link).map_err(bad_path)?;
                let target = self.builder.resolve_parent(&target).unwrap_or(target);
                entry.link = Some(target.as_bytes().to_vec());
                place(&entry, self.builder.entry(&entry.path).is_some())?;
                let path = entry.path.clone();
                if !self.builder.add_hard_link(entry, &target) {
                    return Err(LayerError::DanglingHardLink {
                        path: path.display().to_string(),
                        target: target.display().to_string(),
                    });
                }
                return Ok(());
            }
            Kind::Symlink => {
                if raw.link.len() > tree::MAX_PATH_BYTES || raw.link.is_empty() {
                    return Err(LayerError::BadTar {
                        at,
                        what: "a symbolic link's target is empty or too long".into(),
                    });
                }
                entry.link = Some(raw.link);
            }
            Kind::File | Kind::Dir | Kind::Char | Kind::Block | Kind::Fifo => {}
        }
        let there = self
            .builder
            .entry(&entry.path)
            .is_some_and(|old| !(old.is_dir() && entry.is_dir()));
        let place = place(&entry, there)?;
        self.builder.add(entry, place);
        Ok(())
    }

    fn take_whiteout(&mut self, at: u64, dir: &RootPath, name: &[u8]) -> Result<(), LayerError> {
        if name == OPAQUE_NAME {
            self.builder.set_opaque(dir);
            return Ok(());
        }
        let deleted = &name[WHITEOUT_PREFIX.len()..];
        if deleted.starts_with(WHITEOUT_PREFIX) {
            return Ok(()); // aufs' own bookkeeping, as in images of ten years ago
        }
        let path = dir
            .child(deleted)
            .map_err(|cause| LayerError::BadPath { at, cause })?;
        self.builder.add_whiteout(&path);
        Ok(())
    }
}

/// What overlayfs keeps for itself: from an archive it would let a stranger redirect lower directories.
fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Writes a file or a hard link to a file at once, since its contents pass by only once. Everything else waits.
fn write_now(root: &Root, entry: &Entry, replaces: bool, contents: &mut impl Read) -> Result<(), LayerError> {
    if replaces {
        root.remove_all(&entry.path)?;
    }
    match entry.kind {
        Kind::File => {
            let mut file = match root.create_file(&entry.path, 0o600) {
                Ok(file) => file,
                Err(_) => {
                    make_way(root, &entry.path)?;
                    root.create_file(&entry.path, 0o600)?
                }
            };
            let copied = io::copy(contents, &mut file).map_err(LayerError::io("unpack layer"))?;
            if copied != entry.size {
                return Err(LayerError::Changed {
                    path: entry.path.display().to_string(),
                    expected: entry.size,
                    found: copied,
                });
            }
        }
        Kind::HardLink => {
            let target =
                RootPath::clean(entry.link.as_deref().unwrap_or_default()).map_err(tree::Error::from)?;
            let is_file = root
                .try_metadata(&target)?
                .is_some_and(|metadata| metadata.kind() == Some(Kind::File));
            if is_file && target != entry.path && root.hard_link(&target, &entry.path).is_err() {
                make_way(root, &entry.path)?;
                root.hard_link(&target, &entry.path)?;
            }
        }
        Kind::Dir | Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo => {}
    }
    Ok(())
}

/// Makes the directories above `path`, removing what the same layer had there that is none, and `path` itself.
fn make_way(root: &Root, path: &RootPath) -> Result<(), LayerError> {
    for dir in path.ancestors() {
        match root.try_metadata(&dir)? {
            Some(metadata) if metadata.is_dir() => {}
            Some(_) => {
                root.remove_file(&dir)?;
                root.create_dir(&dir, 0o700)?;
            }
            None => root.create_dir(&dir, 0o700)?,
        }
    }
    Ok(root.remove_all(path)?)
}

/// Hashes and copies what is read.
struct Tee<R, W> {
    stream: R,
    out: W,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.hash.update(&buffer[..length]);
        self.out.write_all(&buffer[..length])?;
        self.bytes += length as u64;
        Ok(length)
    }
}
