//! Reads a `.dockerbuild` file: what `history export` or `docker buildx history export` wrote becomes records again.
//!
//! ```text
//! (gzip) tar ─▶ unpack: blobs, each hashed ─▶ walk: index ─▶ manifests ─▶ records ─▶ check ─▶ history
//! ```
//!
//! The file is a stranger's. It may hold files and folders of an image layout, no links and no extensions of tar; every
//! blob must be what its name says; sizes, counts and depth are bounded, and so is memory (blobs go to disk). Nothing is
//! kept unless all of it is good. A record's log must be one; what it names but does not bring along is forgotten. It is
//! never pinned, and its age counts from now, whatever the file says.
use super::bundle::{INDEX, MANIFEST, RECORD};
use super::go_record;
use super::log::{LogReader, MAX_LOG_BYTES, MEDIA_TYPE};
use super::record::Record;
use super::store::{History, HistoryError};
use api::control::StatusResponse;
use flate2::read::GzDecoder;
use oci::{Descriptor, Digest, DigestWriter};
use prost::Message;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// All a file may hold, unpacked.
const MAX_BYTES: u64 = 1 << 30;
/// Blobs and folders.
const MAX_ENTRIES: usize = 20_000;
/// Records of one file.
const MAX_RECORDS: usize = 1_000;
/// A record, a manifest, an index. What is kept of a record is a little longer, and must be readable again.
const MAX_JSON_BYTES: u64 = 4 << 20;
/// A trace is read as a whole when it is shown.
const MAX_TRACE_BYTES: u64 = 64 << 20;

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The file cannot be read, or what is in it not be written.
    #[error("read the bundle")]
    Read(#[from] io::Error),
    /// It is no archive, or one with something else in it.
    #[error("the bundle {0}")]
    Shape(String),
    /// A blob is not what its name says.
    #[error("the bundle is damaged: blob {0} has other content")]
    Damaged(Digest),
    /// A limit.
    #[error("the bundle has more than {0}")]
    TooMuch(String),
    /// A record is none.
    #[error("a record of the bundle cannot be taken: {0}")]
    Record(String),
    /// The history cannot be written.
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// A record of a file.
#[derive(Debug)]
pub struct Taken {
    /// The record.
    pub record: Record,
    /// Whether it was not there before; one that was stays as it is.
    pub is_new: bool,
}

/// Takes the records of a file into the history, in the file's order.
///
/// # Errors
/// [`IntakeError`]; nothing is kept then, but for records before one that cannot be written.
pub fn import(history: &History, from: impl Read) -> Result<Vec<Taken>, IntakeError> {
    within(MAX_BYTES, history, from)
}

fn within(most: u64, history: &History, from: impl Read) -> Result<Vec<Taken>, IntakeError> {
    let folder = history.intake()?;
    let bundle = Unpacked::read(folder, from, most)?;
    let records = bundle.records()?;
    let taken = records.into_iter().map(|record| {
        let blobs = record
            .attachments()
            .map(|of| (of.digest, bundle.blob(&of.digest)));
        let blobs: BTreeMap<Digest, PathBuf> = blobs.filter(|(_, path)| path.exists()).collect();
        let (record, is_new) = history.take(record, &blobs)?;
        Ok(Taken { record, is_new })
    });
    taken.collect()
}

/// A bundle's files; they go with it.
struct Unpacked {
    folder: TempDir,
    blobs: BTreeMap<Digest, u64>,
    index: Vec<u8>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Node>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    #[serde(default)]
    media_type: String,
    digest: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Node,
}

impl Unpacked {
    fn read(folder: TempDir, from: impl Read, most: u64) -> Result<Unpacked, IntakeError> {
        let mut from = BufReader::new(from);
        let is_packed = from.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let plain: Box<dyn Read + '_> = match is_packed {
            true => Box::new(GzDecoder::new(from)),
            false => Box::new(from),
        };
        let mut bounded = plain.take(most);
        let unpacked = Unpacked::unpack(folder, &mut bounded);
        match (bounded.limit(), unpacked) {
            // The archive ended for us where the limit is; what came of that is no matter.
            (0, _) => Err(IntakeError::TooMuch(format!("{most} bytes"))),
            (_, Err(IntakeError::Read(error))) if is_of_content(&error) => Err(no_archive()),
            (_, unpacked) => unpacked,
        }
    }

    fn unpack(folder: TempDir, from: impl Read) -> Result<Unpacked, IntakeError> {
        let mut bundle = Unpacked {
            folder,
            blobs: BTreeMap::new(),
            index: Vec::new(),
        };
        let mut archive = tar::Archive::new(from);
        // Raw: extensions of tar, which may be as long as they like, are entries then, and refused.
        let entries = archive.entries().map_err(|_| no_archive())?.raw(true);
        for (count, entry) in entries.enumerate() {
            let mut entry = entry.map_err(|_| no_archive())?;
            if count >= MAX_ENTRIES {
                return Err(IntakeError::TooMuch(format!("{MAX_ENTRIES} files")));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            match entry.header().entry_type() {
                tar::EntryType::Directory => {}
                tar::EntryType::Regular => bundle.file(&name, &mut entry)?,
                _ => {
                    return Err(IntakeError::Shape(format!(
                        "holds {name:?}, which is neither file nor folder"
                    )));
                }
            }
        }
        Ok(bundle)
    }

    fn file(&mut self, name: &str, from: &mut impl Read) -> Result<(), IntakeError> {
        if name == "index.json" {
            self.index.clear();
            from.take(MAX_JSON_BYTES).read_to_end(&mut self.index)?;
            return Ok(());
        }
        // What else a layout may hold says nothing.
        let Some(hex) = name.strip_prefix("blobs/sha256/") else {
            return Ok(());
        };
        let digest = Digest::parse(&format!("sha256:{hex}"))
            .map_err(|_| IntakeError::Shape(format!("holds {name:?}, which no blob is called")))?;
        let mut hashed = DigestWriter::new(File::create(self.blob(&digest))?);
        io::copy(from, &mut hashed)?;
        let (_, found, size) = hashed.finish();
        if found != digest {
            return Err(IntakeError::Damaged(digest));
        }
        self.blobs.insert(digest, size);
        Ok(())
    }

    /// Where a blob lies; its name is a digest, so it lies in our folder.
    fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.path().join(digest.hex())
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, digest: &str) -> Result<T, IntakeError> {
        let text = self.text(digest)?;
        serde_json::from_slice(&text)
            .map_err(|error| IntakeError::Shape(format!("cannot be read: blob {digest}: {error}")))
    }

    fn text(&self, digest: &str) -> Result<Vec<u8>, IntakeError> {
        let parsed = Digest::parse(digest)
            .map_err(|error| IntakeError::Shape(format!("cannot be read: {digest:?}: {error}")))?;
        let Some(size) = self.blobs.get(&parsed) else {
            return Err(IntakeError::Shape(format!("lacks blob {parsed}")));
        };
        if *size > MAX_JSON_BYTES {
            return Err(IntakeError::TooMuch(format!(
                "{MAX_JSON_BYTES} bytes in blob {parsed}"
            )));
        }
        Ok(std::fs::read(self.blob(&parsed))?)
    }

    /// All records, checked.
    fn records(&self) -> Result<Vec<Record>, IntakeError> {
        let index: Index = serde_json::from_slice(&self.index)
            .map_err(|error| IntakeError::Shape(format!("has no index.json that can be read: {error}")))?;
        let mut manifests = Vec::new();
        for node in index.manifests {
            match node.media_type.as_str() {
                // An index within an index is as deep as it gets.
                INDEX => manifests.extend(self.json::<Index>(&node.digest)?.manifests),
                _ => manifests.push(node),
            }
            if manifests.len() > MAX_RECORDS {
                return Err(IntakeError::TooMuch(format!("{MAX_RECORDS} records")));
            }
        }
        let mut records = Vec::new();
        for node in manifests.iter().filter(|node| node.media_type == MANIFEST) {
            let manifest: Manifest = self.json(&node.digest)?;
            if manifest.config.media_type == RECORD {
                records.push(self.record(&manifest.config.digest)?);
            }
        }
        if records.is_empty() {
            return Err(IntakeError::Shape("holds no record of a build".into()));
        }
        let mut ids = BTreeSet::new();
        if let Some(twice) = records.iter().find(|record| !ids.insert(&record.id)) {
            return Err(IntakeError::Record(format!(
                "there are two of build {}",
                twice.id
            )));
        }
        Ok(records)
    }

    fn record(&self, digest: &str) -> Result<Record, IntakeError> {
        let mut record = go_record::read(&self.text(digest)?).map_err(IntakeError::Record)?;
        let id = record.id.clone();
        record.log = self.brought(record.log.take(), MAX_LOG_BYTES)?;
        record.trace = self.brought(record.trace.take(), MAX_TRACE_BYTES)?;
        record.external_error = self.brought(record.external_error.take(), MAX_JSON_BYTES)?;
        for statements in record.statements.values_mut() {
            let mut kept = Vec::new();
            for one in statements.drain(..) {
                kept.extend(self.brought(Some(one), MAX_TRACE_BYTES)?);
            }
            *statements = kept;
        }
        record.statements.retain(|_, statements| !statements.is_empty());
        for made in record
            .results
            .values()
            .filter_map(|made| made.descriptor.as_ref())
        {
            // Which result it was is worth knowing without the result.
            self.brought(Some(made.clone()), MAX_BYTES)?;
        }
        if let Some(log) = &record.log {
            check_log(log, &self.blob(&log.digest))
                .map_err(|error| IntakeError::Record(format!("the log of build {id}: {error}")))?;
        }
        Ok(record)
    }

    /// What a record names, if it is among the blobs; it must be as long as the record says.
    fn brought(&self, named: Option<Descriptor>, most: u64) -> Result<Option<Descriptor>, IntakeError> {
        let Some((named, size)) = named
            .and_then(|named| Some((self.blobs.get(&named.digest)?, named)))
            .map(|(size, named)| (named, *size))
        else {
            return Ok(None);
        };
        match (size == named.size, size <= most) {
            (false, _) => Err(IntakeError::Damaged(named.digest)),
            (true, false) => Err(IntakeError::TooMuch(format!(
                "{most} bytes in blob {}",
                named.digest
            ))),
            (true, true) => Ok(Some(named)),
        }
    }
}

/// Whether it is the file's fault, not the disk's.
fn is_of_content(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

fn no_archive() -> IntakeError {
    IntakeError::Shape("is no archive, or one that is damaged or cut off".into())
}

/// Every frame must be there in full, and be one.
fn check_log(named: &Descriptor, path: &Path) -> Result<(), String> {
    if named.media_type != MEDIA_TYPE {
        return Err(format!("unknown type {:?}", named.media_type));
    }
    let reader = File::open(path).and_then(LogReader::of_file);
    let mut reader = reader.map_err(|error| error.to_string())?;
    while let Some(frame) = reader.next_written().map_err(|error| error.to_string())? {
        StatusResponse::decode(&frame[..]).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
