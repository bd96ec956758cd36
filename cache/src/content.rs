//! Blobs by digest: written aside, hashed on the way, renamed. Nothing that is there is ever edited.
//!
//! ```text
//! ingest/<owner>-<n>  ─ commit ─▶  blobs/sha256/<hex>  + row in `blobs`
//! ```
//!
//! The directory is an OCI image layout's blob folder. A crash leaves files in `ingest/` at worst; they are removed
//! when their owner is found dead. No fsync here: see `db` on epochs.
use crate::{
    db::{self, Db},
    error::{CacheError, Result},
};
use oci::{Digest, DigestWriter};
use rusqlite::{OptionalExtension, params};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Says whether `needed` bytes more may be written; makes room where it can.
pub(crate) type Room = Arc<dyn Fn(&Path, u64) -> Result<()> + Send + Sync>;

/// How many bytes are written between two questions for room.
const ROOM_STEP: u64 = 8 << 20;

/// The blobs of a store. Cheap to clone.
#[derive(Clone)]
pub struct ContentStore {
    inner: Arc<Inner>,
}

struct Inner {
    blobs: PathBuf,
    ingest: PathBuf,
    owner: String,
    next: AtomicU64,
    /// Bytes that blobs not yet finished have asked room for.
    pending: AtomicU64,
    db: Arc<Db>,
    room: parking_lot::RwLock<Option<Room>>,
}

impl std::fmt::Debug for ContentStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ContentStore({})", self.inner.blobs.display())
    }
}

impl ContentStore {
    pub(crate) fn new(root: &Path, owner: &str, db: Arc<Db>) -> Result<ContentStore> {
        let blobs = root.join("blobs/sha256");
        let ingest = root.join("ingest");
        for folder in [&blobs, &ingest] {
            fs::create_dir_all(folder).map_err(CacheError::io("create", folder))?;
        }
        let room = parking_lot::RwLock::new(None);
        let inner = Inner {
            blobs,
            ingest,
            owner: owner.to_owned(),
            next: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            db,
            room,
        };
        Ok(ContentStore {
            inner: Arc::new(inner),
        })
    }

    pub(crate) fn set_room(&self, room: Room) {
        *self.inner.room.write() = Some(room);
    }

    /// Bytes that blobs being written have asked room for.
    pub(crate) fn pending(&self) -> u64 {
        self.inner.pending.load(Ordering::Relaxed)
    }

    /// Asks for room for `needed` bytes more of `path`.
    pub(crate) fn ask(&self, path: &Path, needed: u64) -> Result<()> {
        let room = self.inner.room.read().clone();
        room.map_or(Ok(()), |room| room(path, needed))
    }

    /// Counts bytes as being written.
    pub(crate) fn count(&self, bytes: u64) {
        self.inner.pending.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes back what [`ContentStore::count`] counted.
    pub(crate) fn uncount(&self, bytes: u64) {
        self.inner.pending.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Where a blob lies, or would.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.inner.blobs.join(digest.hex())
    }

    /// Whether a blob is here, whole.
    ///
    /// # Errors
    /// The database's.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        self.inner.db.read("look for blob", |c| {
            let mut query = c.prepare_cached("SELECT size FROM blobs WHERE digest = ?1")?;
            query
                .query_row([digest.as_bytes()], |row| row.get::<_, i64>(0))
                .map(i64::cast_unsigned)
                .optional()
        })
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// [`CacheError::Missing`] where it is not here.
    pub fn open(&self, digest: &Digest) -> Result<File> {
        match File::open(self.path(digest)) {
            Ok(file) => Ok(file),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(CacheError::Missing {
                what: format!("blob {digest}"),
            }),
            Err(cause) => Err(CacheError::io("open blob", self.path(digest))(cause)),
        }
    }

    /// The whole of a small blob.
    ///
    /// # Errors
    /// As [`ContentStore::open`]; [`CacheError::Missing`] for one of more than `limit` bytes.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.open(digest)?;
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(CacheError::io("read blob", self.path(digest)))?;
        if bytes.len() as u64 > limit {
            return Err(CacheError::Missing {
                what: format!("blob {digest} of at most {limit} bytes"),
            });
        }
        Ok(bytes)
    }

    /// Begins a blob.
    ///
    /// # Errors
    /// Those of making a file.
    pub fn ingest(&self) -> Result<Ingest> {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let path = self.inner.ingest.join(format!("{}-{number}", self.inner.owner));
        let file = File::create_new(&path).map_err(CacheError::io("create", &path))?;
        Ok(Ingest {
            store: self.clone(),
            file: Some(file),
            path,
            bytes: 0,
            asked: 0,
        })
    }

    /// Files bytes that are in memory.
    ///
    /// # Errors
    /// Those of writing.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.touch(&digest)? {
            return Ok(digest);
        }
        let mut ingest = self.ingest()?;
        ingest.write_all(bytes).map_err(|cause| ingest.failed(cause))?;
        ingest.commit(digest)?;
        Ok(digest)
    }

    /// Files what `from` gives, if it is what `expected` names (where given).
    ///
    /// # Errors
    /// [`CacheError::DigestMismatch`], or those of reading and writing; nothing is kept then.
    pub fn put_stream(&self, mut from: impl Read, expected: Option<Digest>) -> Result<(Digest, u64)> {
        let mut writer = DigestWriter::new(self.ingest()?);
        if let Err(cause) = io::copy(&mut from, &mut writer) {
            return Err(writer.get_mut().failed(cause));
        }
        let (ingest, found, bytes) = writer.finish();
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(CacheError::DigestMismatch {
                what: "blob".to_owned(),
                expected,
                found,
            });
        }
        ingest.commit(found)?;
        Ok((found, bytes))
    }

    /// Notes that a blob is in use, so that gc keeps it for the running builds; false where it is not here.
    ///
    /// # Errors
    /// The database's.
    pub fn touch(&self, digest: &Digest) -> Result<bool> {
        let now = crate::clock::now();
        self.inner.db.write("use blob", |tx| {
            let mut update = tx.prepare_cached("UPDATE blobs SET used = max(used, ?2) WHERE digest = ?1")?;
            Ok(update.execute(params![digest.as_bytes(), now])? > 0)
        })
    }
}

/// A blob being written; gone when dropped before its commit.
pub struct Ingest {
    store: ContentStore,
    file: Option<File>,
    path: PathBuf,
    bytes: u64,
    asked: u64,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ingest({}, {} bytes)", self.path.display(), self.bytes)
    }
}

impl Ingest {
    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the blob its name. The caller has hashed the bytes while writing them and vouches for `digest`.
    ///
    /// # Errors
    /// Those of renaming and of the database.
    pub fn commit(self, digest: Digest) -> Result<()> {
        let db = self.store.inner.db.clone();
        let placed = self.place(digest)?;
        db.write("file blob", |tx| placed.record(tx))
    }

    /// Gives the blob its name; it counts once [`Placed::record`] is part of a transaction that is committed.
    pub(crate) fn place(mut self, digest: Digest) -> Result<Placed> {
        self.file = None;
        let path = self.store.path(&digest);
        fs::rename(&self.path, &path).map_err(CacheError::io("rename into place", &path))?;
        Ok(Placed {
            digest,
            bytes: self.bytes,
        })
    }

    /// Says what a failed write means: what was written, and how far it came.
    pub(crate) fn failed(&self, cause: io::Error) -> CacheError {
        match cause.get_ref().is_some_and(|inner| inner.is::<CacheError>()) {
            true => match cause
                .into_inner()
                .expect("looked at above")
                .downcast::<CacheError>()
            {
                Ok(error) => *error,
                Err(other) => CacheError::io("write", &self.path)(io::Error::other(other)),
            },
            false => CacheError::io("write", &self.path)(cause),
        }
    }
}

/// A blob that has its name, but no row yet.
pub(crate) struct Placed {
    digest: Digest,
    bytes: u64,
}

impl Placed {
    /// Writes its row.
    pub(crate) fn record(&self, tx: &rusqlite::Connection) -> rusqlite::Result<()> {
        let epoch = db::epoch(tx)?;
        tx.prepare_cached(
            "INSERT INTO blobs VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (digest) DO UPDATE SET used = excluded.used, epoch = excluded.epoch",
        )?
        .execute(params![
            self.digest.as_bytes(),
            self.bytes.cast_signed(),
            crate::clock::now(),
            epoch
        ])?;
        Ok(())
    }
}

impl Write for Ingest {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes + data.len() as u64 > self.asked {
            let step = ROOM_STEP.max(data.len() as u64);
            self.store.ask(&self.path, step).map_err(io::Error::other)?;
            self.asked += step;
            self.store.count(step);
        }
        let file = self.file.as_mut().expect("written to only before the commit");
        let written = file.write(data)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.store.uncount(self.asked);
        if self.file.take().is_some() {
            // Nothing to tell anyone: what stays behind is removed when this owner is found dead.
            let _ = fs::remove_file(&self.path);
        }
    }
}
