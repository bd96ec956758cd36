//! Where the bytes of a layer's files are, and reading them.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use tree::Root;

use crate::layer::{EntryRef, LayerError, Place};

/// The bytes of a layer's files.
#[derive(Debug)]
pub enum Contents {
    /// There are none: no file of the layer has a byte.
    None,
    /// In an uncompressed tar.
    Tar(File),
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
            (Place::Tar { offset }, Contents::Tar(file)) => Ok(ContentReader::Range {
                file,
                position: offset,
                left: record.size(),
            }),
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

/// The contents of one file, as a stream.
#[derive(Debug)]
pub enum ContentReader<'a> {
    /// Nothing.
    Empty,
    /// A piece of a tar.
    Range {
        /// The tar.
        file: &'a File,
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
            ContentReader::Range { file, position, left } => tree::copy::range(file, position, to, left),
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
