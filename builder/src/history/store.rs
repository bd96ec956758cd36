//! Records on disk: one file a build, readable by every process that uses the same root.
//!
//! ```text
//! <root>/history/running/<key>.{json,log}   locked by the process that builds
//!                records/<key>.json         how it ended
//!                blobs/<digest>             logs, traces, attestations; gone with the last record that names them
//!                pages/<key>.html           what `history open` shows; gone with the record
//!                intake/                    bundles that are being read
//! ```
//!
//! A record is written aside and renamed. A running record whose lock is free belongs to a process that was killed:
//! whoever lists next ends it as failed. Nothing here is worth a sync: history may end a moment early after a power cut.
use super::Stamp;
use super::log::{EventLog, LogReader, MEDIA_TYPE};
use super::record::{Failure, Record};
use oci::{Descriptor, Digest, DigestWriter};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::sync::broadcast;

/// A blob nobody names is left alone for this long: its record may be about to be written.
const ORPHAN_AGE: Duration = Duration::from_secs(3600);
/// Changes a slow listener may be behind before it is told that it missed some.
const WAITING_CHANGES: usize = 256;
/// Records are small; a larger file is damage.
const MAX_RECORD_BYTES: u64 = 16 << 20;
/// gRPC's codes for "unknown" and "cancelled".
const CODE_UNKNOWN: i32 = 2;
const CODE_CANCELED: i32 = 1;

/// How much is kept: a record goes when there are more than `max_entries` *and* it is older than `max_age`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Age, from the build's end.
    pub max_age: Duration,
    /// Records, pinned ones not counted.
    pub max_entries: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_age: Duration::from_secs(48 * 3600),
            max_entries: 50,
        }
    }
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// A file could not be read or written.
    #[error("{doing} {}", path.display())]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A build of that id runs already.
    #[error("a build {0} runs already")]
    Exists(String),
    /// Nothing has that id.
    #[error("no record of a build {0}")]
    Unknown(String),
    /// The beginning of an id fits several.
    #[error("several builds have ids that begin with {0}")]
    Several(String),
    /// A build that runs cannot be removed.
    #[error("build {0} still runs")]
    Running(String),
}

/// A change of the history, as listeners hear of it.
#[derive(Clone, Debug)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The record after it (before it, if it was deleted).
    pub record: Record,
}

/// What happened to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A build began.
    Started,
    /// It ended, or its record was changed.
    Complete,
    /// The record is gone.
    Deleted,
}

/// The history of one root. Cheap to clone.
#[derive(Clone, Debug)]
pub struct History {
    folder: PathBuf,
    limits: Limits,
    changes: broadcast::Sender<Change>,
}

impl History {
    /// The history beside the store in `root`; nothing is made before the first build.
    pub fn new(root: &Path, limits: Limits) -> History {
        History {
            folder: root.join("history"),
            limits,
            changes: broadcast::Sender::new(WAITING_CHANGES),
        }
    }

    /// Hears of every change this process makes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Begins the record of a build.
    ///
    /// # Errors
    /// [`HistoryError::Exists`], or a file cannot be made.
    pub fn begin(&self, record: Record) -> Result<Running, HistoryError> {
        for part in ["running", "records", "blobs"] {
            let path = self.folder.join(part);
            fs::create_dir_all(&path).map_err(|source| file("make", &path, source))?;
        }
        let (place, log_place) = self.running(&record.id);
        let lock = match File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&place)
        {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(HistoryError::Exists(record.id));
            }
            Err(source) => return Err(file("make", &place, source)),
        };
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| HistoryError::Exists(record.id.clone()))?;
        // Written in place, as the lock is on this very file; a reader that finds it unfinished passes over it.
        let written = serde_json::to_vec(&record)
            .map_err(io::Error::from)
            .and_then(|text| (&lock).write_all(&text));
        written.map_err(|source| file("write", &place, source))?;
        let log = EventLog::create(&log_place).map_err(|source| file("make", &log_place, source))?;
        self.tell(ChangeKind::Started, &record);
        Ok(Running {
            history: self.clone(),
            log: Arc::new(log),
            record: Mutex::new(Some(record)),
            _lock: lock,
        })
    }

    /// All records, the newest first; those of killed builds are ended on the way.
    ///
    /// # Errors
    /// A folder cannot be read; a damaged record is passed over with a warning.
    pub fn list(&self) -> Result<Vec<Record>, HistoryError> {
        let mut records = Vec::new();
        for path in self.files("running")? {
            if path.extension().is_some_and(|ending| ending == "json") {
                records.extend(self.running_record(&path));
            }
        }
        for path in self.files("records")? {
            records.extend(read_record(&path));
        }
        records.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        records.dedup_by(|a, b| a.id == b.id);
        Ok(records)
    }

    /// The record of an id, or of the only one that begins so; an empty text means the newest that is over.
    ///
    /// # Errors
    /// [`HistoryError::Unknown`], [`HistoryError::Several`].
    pub fn find(&self, id: &str) -> Result<Record, HistoryError> {
        let records = self.list()?;
        if id.is_empty() {
            let newest = records.into_iter().find(|record| record.completed.is_some());
            return newest.ok_or_else(|| HistoryError::Unknown("at all".into()));
        }
        if let Some(offset) = id.strip_prefix('^') {
            let back: usize = offset.parse().map_err(|_| HistoryError::Unknown(id.into()))?;
            return records
                .into_iter()
                .nth(back)
                .ok_or_else(|| HistoryError::Unknown(id.into()));
        }
        let mut found: Vec<Record> = records
            .into_iter()
            .filter(|record| record.id.starts_with(id))
            .collect();
        if let Some(exact) = found.iter().position(|record| record.id == id) {
            return Ok(found.swap_remove(exact));
        }
        match (found.pop(), found.is_empty()) {
            (Some(only), true) => Ok(only),
            (Some(_), false) => Err(HistoryError::Several(id.into())),
            (None, _) => Err(HistoryError::Unknown(id.into())),
        }
    }

    /// Removes a record and what only it needs.
    ///
    /// # Errors
    /// [`HistoryError::Unknown`], [`HistoryError::Running`].
    pub fn remove(&self, id: &str) -> Result<(), HistoryError> {
        let record = self.exactly(id)?;
        if record.completed.is_none() {
            return Err(HistoryError::Running(id.into()));
        }
        let path = self.record(id);
        fs::remove_file(&path).map_err(|source| file("remove", &path, source))?;
        let _ = fs::remove_file(self.page_path(id));
        let kept = self.attachments()?;
        for gone in record.attachments().filter(|blob| !kept.contains(&blob.digest)) {
            let _ = fs::remove_file(self.blob(&gone.digest));
        }
        self.tell(ChangeKind::Deleted, &record);
        Ok(())
    }

    /// Changes the record of a build that is over.
    ///
    /// # Errors
    /// [`HistoryError::Unknown`], [`HistoryError::Running`], or it cannot be written.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut Record)) -> Result<Record, HistoryError> {
        let mut record = self.exactly(id)?;
        if record.completed.is_none() {
            return Err(HistoryError::Running(id.into()));
        }
        change(&mut record);
        record.generation += 1;
        self.write(&record)?;
        self.tell(ChangeKind::Complete, &record);
        Ok(record)
    }

    /// Removes what the limits do not keep, and blobs no record names; answers how many records went.
    ///
    /// # Errors
    /// A file cannot be read or removed.
    pub fn sweep(&self, now: Stamp) -> Result<usize, HistoryError> {
        let mut removed = 0;
        for id in self.over_limits(now)? {
            self.remove(&id)?;
            removed += 1;
        }
        let mut blobs = self.files("blobs")?;
        blobs.retain(|path| !is_young(path, now));
        if !blobs.is_empty() {
            let kept = self.attachments()?;
            for path in blobs {
                let digest = path
                    .file_name()
                    .and_then(|name| Digest::parse(&format!("sha256:{}", name.to_string_lossy())).ok());
                if !digest.is_some_and(|digest| kept.contains(&digest)) {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        // Of bundles whose readers were killed.
        for path in self.files("intake")? {
            if !is_young(&path, now) {
                let _ = fs::remove_dir_all(&path);
            }
        }
        Ok(removed)
    }

    /// The records that go. None is read while all are young, and of what is read only a line is held: there may be many.
    fn over_limits(&self, now: Stamp) -> Result<Vec<String>, HistoryError> {
        let places = self.files("records")?;
        let max_age = self.limits.max_age;
        if places.len() <= self.limits.max_entries || places.iter().all(|path| is_younger(path, now, max_age))
        {
            return Ok(Vec::new());
        }
        let mut ended: Vec<_> = places
            .iter()
            .filter_map(|path| {
                let record = read_record(path).filter(|record| !record.is_pinned)?;
                let since = record.imported.or(record.completed)?;
                Some((record.imported.max(record.completed), since, record.id))
            })
            .collect();
        ended.sort_by_key(|(place, ..)| std::cmp::Reverse(*place));
        let old = ended.into_iter().skip(self.limits.max_entries);
        let old = old.filter(|(_, since, _)| now.since(*since) > max_age);
        Ok(old.map(|(.., id)| id).collect())
    }

    /// As [`History::sweep`], but only where there are so many records that it may be worth looking at them.
    ///
    /// # Errors
    /// Those of [`History::sweep`].
    pub fn sweep_if_many(&self, now: Stamp) -> Result<usize, HistoryError> {
        match self.files("records")?.len() > self.limits.max_entries * 2 {
            true => self.sweep(now),
            false => Ok(0),
        }
    }

    /// Keeps bytes that a record will name.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn attach(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, HistoryError> {
        let digest = Digest::of(bytes);
        let path = self.blob(&digest);
        let folder = self.folder.join("blobs");
        fs::create_dir_all(&folder).map_err(|source| file("make", &folder, source))?;
        if !touch(&path) {
            write_aside(&path, bytes)?;
        }
        Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
    }

    /// A folder for the blobs of a bundle that is being read; it goes with the value, else at a later sweep.
    pub(super) fn intake(&self) -> Result<TempDir, HistoryError> {
        let folder = self.folder.join("intake");
        let made = fs::create_dir_all(&folder).and_then(|()| TempDir::new_in(&folder));
        made.map_err(|source| file("make a folder in", &folder, source))
    }

    /// Takes in a record from elsewhere, and its blobs, which lie on the same disk; answers what is kept of that id, and
    /// whether it is new.
    pub(super) fn take(
        &self,
        mut record: Record,
        blobs: &BTreeMap<Digest, PathBuf>,
    ) -> Result<(Record, bool), HistoryError> {
        match self.exactly(&record.id) {
            Ok(known) => return Ok((known, false)),
            Err(HistoryError::Unknown(_)) => {}
            Err(error) => return Err(error),
        }
        for part in ["records", "blobs"] {
            let path = self.folder.join(part);
            fs::create_dir_all(&path).map_err(|source| file("make", &path, source))?;
        }
        for (digest, from) in blobs {
            let to = self.blob(digest);
            if !touch(&to) {
                // Not moved: two records of one bundle may name one blob.
                fs::hard_link(from, &to).map_err(|source| file("keep", &to, source))?;
            }
        }
        record.imported = Some(Stamp::now());
        record.is_pinned = false;
        self.write(&record)?;
        self.tell(ChangeKind::Complete, &record);
        Ok((record, true))
    }

    /// Where a page about a build is kept, as long as its record.
    pub fn page(&self, record: &Record, html: &str) -> Result<PathBuf, HistoryError> {
        let folder = self.folder.join("pages");
        fs::create_dir_all(&folder).map_err(|source| file("make", &folder, source))?;
        let path = self.page_path(&record.id);
        write_aside(&path, html.as_bytes())?;
        Ok(path)
    }

    /// Opens a blob that a record names; `None` if no record does.
    ///
    /// # Errors
    /// It is named but cannot be opened.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>, HistoryError> {
        let path = self.blob(digest);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(file("open", &path, source)),
        }
    }

    /// What a build showed, to be read frame by frame; that of a running one as far as it has come.
    ///
    /// # Errors
    /// The log is gone or cannot be opened.
    pub fn log(&self, record: &Record) -> Result<LogReader, HistoryError> {
        let path = match &record.log {
            Some(log) => self.blob(&log.digest),
            None => self.running(&record.id).1,
        };
        File::open(&path)
            .and_then(LogReader::of_file)
            .map_err(|source| file("open the log", &path, source))
    }

    /// The record of exactly this id; no other is read.
    ///
    /// # Errors
    /// [`HistoryError::Unknown`].
    pub fn exactly(&self, id: &str) -> Result<Record, HistoryError> {
        let record = read_record(&self.record(id)).or_else(|| self.running_record(&self.running(id).0));
        record.ok_or_else(|| HistoryError::Unknown(id.into()))
    }

    /// The record of a build that runs; one whose process is gone is ended.
    fn running_record(&self, path: &Path) -> Option<Record> {
        let lock = File::open(path).ok()?;
        let record = read_record(path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Some(record);
        }
        // The lock was free: its process has ended, by finishing this very moment or by being killed.
        if !path.exists() {
            return read_record(&self.record(&record.id));
        }
        let failure = Failure {
            code: CODE_UNKNOWN,
            message: "the process that ran this build ended without a word".into(),
        };
        let log_place = self.running(&record.id).1;
        let end = fs::metadata(&log_place)
            .and_then(|data| data.modified())
            .unwrap_or_else(|_| SystemTime::now());
        self.end(record, Some(failure), end.into()).ok()
    }

    /// Files what is known of a build that is over.
    fn end(&self, mut record: Record, error: Option<Failure>, end: Stamp) -> Result<Record, HistoryError> {
        let (place, log_place) = self.running(&record.id);
        record.log = self.keep_log(&log_place)?;
        record.completed = Some(end.max(record.created));
        record.error = error.or(record.error);
        self.write(&record)?;
        let _ = fs::remove_file(&place);
        self.tell(ChangeKind::Complete, &record);
        Ok(record)
    }

    fn keep_log(&self, from: &Path) -> Result<Option<Descriptor>, HistoryError> {
        let hashed = File::open(from).and_then(|mut file| {
            let mut hash = DigestWriter::new(io::sink());
            io::copy(&mut file, &mut hash)?;
            Ok(hash.finish())
        });
        let (_, digest, size) = match hashed {
            Ok(hashed) => hashed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file("read", from, source)),
        };
        let to = self.blob(&digest);
        fs::rename(from, &to).map_err(|source| file("keep the log", &to, source))?;
        Ok(Some(Descriptor::new(MEDIA_TYPE, digest, size)))
    }

    fn write(&self, record: &Record) -> Result<(), HistoryError> {
        let path = self.record(&record.id);
        let text = serde_json::to_vec_pretty(record).map_err(|error| file("write", &path, error.into()))?;
        write_aside(&path, &text)
    }

    fn attachments(&self) -> Result<BTreeSet<Digest>, HistoryError> {
        let running = self.files("running")?;
        let running = running
            .iter()
            .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
            .filter_map(|path| self.running_record(path));
        let mut kept = BTreeSet::new();
        // One after the other: there may be many.
        for record in running.chain(self.files("records")?.iter().filter_map(|path| read_record(path))) {
            kept.extend(record.attachments().map(|blob| blob.digest));
        }
        Ok(kept)
    }

    fn files(&self, part: &str) -> Result<Vec<PathBuf>, HistoryError> {
        let folder = self.folder.join(part);
        match fs::read_dir(&folder) {
            Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(file("list", &folder, source)),
        }
    }

    fn running(&self, id: &str) -> (PathBuf, PathBuf) {
        let (folder, key) = (self.folder.join("running"), key(id));
        (
            folder.join(format!("{key}.json")),
            folder.join(format!("{key}.log")),
        )
    }

    fn record(&self, id: &str) -> PathBuf {
        self.folder.join("records").join(format!("{}.json", key(id)))
    }

    fn page_path(&self, id: &str) -> PathBuf {
        self.folder.join("pages").join(format!("{}.html", key(id)))
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.hex())
    }

    fn tell(&self, kind: ChangeKind, record: &Record) {
        // Nobody listening is no error.
        let _ = self.changes.send(Change {
            kind,
            record: record.clone(),
        });
    }
}

/// A build that runs. Dropped without [`Running::finish`] it is filed as cancelled.
#[derive(Debug)]
pub struct Running {
    history: History,
    log: Arc<EventLog>,
    record: Mutex<Option<Record>>,
    _lock: File,
}

impl Running {
    /// Where its events go.
    pub fn log(&self) -> &Arc<EventLog> {
        &self.log
    }

    /// Adds to the record while the build runs.
    pub fn update(&self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.record.lock().as_mut() {
            change(record);
        }
    }

    /// Files the record.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self, error: Option<Failure>) -> Result<Record, HistoryError> {
        self.log.close();
        let record = self.record.lock().take().expect("a build ends once");
        self.history.end(record, error, Stamp::now())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.log.close();
        if let Some(record) = self.record.lock().take() {
            let failure = Failure {
                code: CODE_CANCELED,
                message: "context canceled".into(),
            };
            if let Err(error) = self.history.end(record, Some(failure), Stamp::now()) {
                tracing::warn!(%error, "the record of a cancelled build is not kept");
            }
        }
    }
}

/// The file name of an id: ids come from strangers.
fn key(id: &str) -> String {
    let is_plain = (1..=64).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    match is_plain {
        true => id.to_owned(),
        false => format!("x-{}", Digest::of(id.as_bytes()).hex()),
    }
}

fn read_record(path: &Path) -> Option<Record> {
    let size = fs::metadata(path).ok()?.len();
    let text = (size <= MAX_RECORD_BYTES)
        .then(|| fs::read(path).ok())
        .flatten()?;
    match serde_json::from_slice(&text) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a record of the history cannot be read");
            None
        }
    }
}

/// Whether somebody may be about to name it.
fn is_young(path: &Path, now: Stamp) -> bool {
    is_younger(path, now, ORPHAN_AGE)
}

/// Whether a file was changed less than so long ago.
fn is_younger(path: &Path, now: Stamp, age: Duration) -> bool {
    let changed = fs::metadata(path).and_then(|data| data.modified());
    changed.is_ok_and(|time| now.since(time.into()) < age)
}

/// Makes a file young, if it is there.
fn touch(path: &Path) -> bool {
    let times = fs::FileTimes::new().set_modified(SystemTime::now());
    File::open(path).and_then(|file| file.set_times(times)).is_ok()
}

fn write_aside(path: &Path, bytes: &[u8]) -> Result<(), HistoryError> {
    let folder = path.parent().expect("a file of the history lies in a folder");
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut aside| {
        aside.write_all(bytes)?;
        aside.persist(path).map_err(|error| error.error)?;
        Ok(())
    });
    written.map_err(|source| file("write", path, source))
}

fn file(doing: &'static str, path: &Path, source: io::Error) -> HistoryError {
    HistoryError::File {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
