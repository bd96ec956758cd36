//! A directory of which only the list is wanted, and the contents of a few files (`local.metadatatransfer`).
//!
//! ```text
//! STAT ─▶ written to the list ─┬─ matches an exception ─▶ made, after the directories it lies in
//!                              └─ else ─▶ a directory waits, anything else is left out
//! end ─▶ the list becomes `.fsutil-metadata` of the directory
//! ```
//!
//! The list is each Stat as it came, after its length (32 bits, little endian). It is as BuildKit's, so that what reads it
//! can read both.
use super::ReceiveError;
use crate::wire::fsutil::Stat;
use prost::Message;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use tree::{Entry, Kind, PatternSet};

/// The list's name in the directory.
pub(super) const LIST: &str = ".fsutil-metadata";
/// What is compared at once.
const PIECE: usize = 64 << 10;

/// The list as it grows.
pub(super) struct Listed<'a> {
    exceptions: &'a PatternSet,
    path: PathBuf,
    file: BufWriter<File>,
    /// Directories around the last entry that were not made yet.
    waiting: Vec<(Stat, Entry)>,
}

impl<'a> Listed<'a> {
    /// Begins a list beside the directory that is to be.
    pub(super) fn begin(exceptions: &'a PatternSet, tree: &Path) -> Result<Listed<'a>, ReceiveError> {
        let path = tree.with_file_name("list");
        let failed = |source| file_error("make", &path, source);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let file = BufWriter::new(File::create(&path).map_err(failed)?);
        Ok(Listed {
            exceptions,
            path,
            file,
            waiting: Vec::new(),
        })
    }

    /// Notes an entry; gives what is to be made because of it, in order.
    pub(super) fn note(&mut self, stat: Stat, entry: Entry) -> Result<Vec<(Stat, Entry)>, ReceiveError> {
        if stat.path == LIST {
            // The place is taken: it is neither listed nor wanted.
            return Ok(Vec::new());
        }
        let bytes = stat.encode_to_vec();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        self.file
            .write_all(&length)
            .and_then(|()| self.file.write_all(&bytes))
            .map_err(|source| file_error("write", &self.path, source))?;
        while self
            .waiting
            .last()
            .is_some_and(|(_, folder)| !entry.path.starts_with(&folder.path))
        {
            self.waiting.pop();
        }
        if self.exceptions.matches(&stat.path) {
            let mut made = std::mem::take(&mut self.waiting);
            made.push((stat, entry));
            return Ok(made);
        }
        if entry.kind == Kind::Dir {
            self.waiting.push((stat, entry));
        }
        Ok(Vec::new())
    }

    /// Ends the list; whether that of the older copy, if there is one, says the same.
    pub(super) fn is_as_before(&mut self, older: Option<&Path>) -> Result<bool, ReceiveError> {
        self.file
            .flush()
            .map_err(|source| file_error("write", &self.path, source))?;
        let Some(older) = older else {
            return Ok(false);
        };
        same(&self.path, &older.join(LIST)).map_err(|source| file_error("compare", &self.path, source))
    }

    /// Moves the list into the directory.
    pub(super) fn place(&self, tree: &Path) -> Result<(), ReceiveError> {
        let failed = |source| file_error("write", &self.path, source);
        fs::set_permissions(&self.path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .map_err(failed)?;
        fs::rename(&self.path, tree.join(LIST)).map_err(failed)
    }
}

fn file_error(doing: &'static str, path: &Path, source: io::Error) -> ReceiveError {
    ReceiveError::File {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// Whether two files have the same bytes.
fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = match (File::open(one)?, File::open(other)) {
        (one, Ok(other)) => (one, other),
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        (_, Err(error)) => return Err(error),
    };
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (
        BufReader::with_capacity(PIECE, one),
        BufReader::with_capacity(PIECE, other),
    );
    let (mut here, mut there) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let read = one.read(&mut here)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut there[..read])?;
        if here[..read] != there[..read] {
            return Ok(false);
        }
    }
}
