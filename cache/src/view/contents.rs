//! Where the bytes of a layer's files are, and reading them.
//!
//! A build may have thousands of layers in hand: their tars are opened when read, and the last [`KEPT_OPEN`] stay open.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use tree::Root;

use crate::layer::{EntryRef, LayerError, Place};

/// The bytes of a layer's files.
#[derive(Debug)]
pub enum Contents {
    /// There are none: no file of the layer has a byte.
    None,
    /// In an uncompressed tar that is open.
    Tar(File),
    /// In an uncompressed tar at this path, opened when it is read.
    TarAt(PathBuf),
    /// In a directory, each at its own path.
    Dir(Root),
}

impl Contents {
    /// Opens the contents of a file's record (not of a hard link).
    ///
    /// # Errors
    /// Those of opening it.
    pub fn open(&self, record: EntryRef<'_>) -> Result<ContentReader<'_>, LayerError> {
        let missing = || LayerError::Io {
            action: "open contents",
            cause: io::Error::new(
                io::ErrorKind::NotFound,
                format!("the layer keeps no contents for {}", record.path().display()),
            ),
        };
        match (record.place(), self) {
            (Place::None, _) if record.size() == 0 => Ok(ContentReader::Empty),
            (Place::Tar { offset }, Contents::Tar(file)) => {
                let file = Held::Borrowed(file);
                Ok(ContentReader::Range {
                    file,
                    position: offset,
                    left: record.size(),
                })
            }
            (Place::Tar { offset }, Contents::TarAt(path)) => {
                let file = Held::Shared(open_kept(path).map_err(LayerError::io("open layer"))?);
                Ok(ContentReader::Range {
                    file,
                    position: offset,
                    left: record.size(),
                })
            }
            (Place::Dir, Contents::Dir(root)) => {
                let (file, metadata) = root.open_file(&record.path())?;
                if record.stat_id().is_some_and(|id| id != metadata.id) {
                    return Err(LayerError::ChangedSince {
                        path: record.path().display().to_string(),
                    });
                }
                Ok(ContentReader::File(file))
            }
            _ => Err(missing()),
        }
    }
}

/// How many tars stay open in the whole process.
const KEPT_OPEN: usize = 64;

/// Opens a tar, or gives one that is still open. A blob's name is its digest, so what is open is what the path names.
fn open_kept(path: &Path) -> io::Result<Arc<File>> {
    static KEPT: Mutex<VecDeque<(PathBuf, Arc<File>)>> = Mutex::new(VecDeque::new());
    if let Some((_, file)) = KEPT.lock().iter().find(|(kept, _)| kept == path) {
        return Ok(Arc::clone(file));
    }
    let file = Arc::new(File::open(path)?);
    let mut kept = KEPT.lock();
    if kept.len() >= KEPT_OPEN {
        kept.pop_back();
    }
    kept.push_front((path.to_owned(), Arc::clone(&file)));
    Ok(file)
}

/// An open tar, the reader's own or not.
#[derive(Debug)]
pub enum Held<'a> {
    /// Held by the contents.
    Borrowed(&'a File),
    /// Held together with others.
    Shared(Arc<File>),
}

impl std::ops::Deref for Held<'_> {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Held::Borrowed(file) => file,
            Held::Shared(file) => file,
        }
    }
}

/// The contents of one file, as a stream.
#[derive(Debug)]
pub enum ContentReader<'a> {
    /// Nothing.
    Empty,
    /// A piece of a tar.
    Range {
        /// The tar.
        file: Held<'a>,
        /// The next byte.
        position: u64,
        /// How many are left.
        left: u64,
    },
    /// A file of its own.
    File(File),
}

impl ContentReader<'_> {
    /// Writes all that is left to the new file `to`, by the kernel where it can.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn copy_to(self, to: &File) -> io::Result<u64> {
        match self {
            ContentReader::Empty => Ok(0),
            ContentReader::Range { file, position, left } => tree::copy::range(&file, position, to, left),
            ContentReader::File(file) => tree::copy::whole(&file, to),
        }
    }
}

impl Read for ContentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            ContentReader::Empty => Ok(0),
            ContentReader::Range { file, position, left } => {
                let want = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                if want == 0 {
                    return Ok(0);
                }
                let length = file.read_at(&mut buffer[..want], *position)?;
                *position += length as u64;
                *left -= length as u64;
                Ok(length)
            }
            ContentReader::File(file) => file.read(buffer),
        }
    }
}
