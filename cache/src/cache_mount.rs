//! The directories of `RUN --mount=type=cache`, shared between steps, builds and processes.
//!
//! ```text
//! caches/<hash of id>-<slot>/          the directory
//! locks/cache-<hash of id>-<slot>      held while a step uses it: shared, or exclusively
//! ```
//!
//! | sharing | slot | lock |
//! |---|---|---|
//! | shared | 0 | shared |
//! | private | the first that nobody uses | exclusive |
//! | locked | 0, when nobody uses it any more | exclusive |
use crate::{
    Cache, clock, db,
    error::{CacheError, Result},
};
use oci::Digest;
use rusqlite::{OptionalExtension, params};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    time::Duration,
};

/// How often a step that waits for a locked directory looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How steps share a cache directory (`sharing=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// At the same time.
    #[default]
    Shared,
    /// Each its own while others use theirs.
    Private,
    /// One after the other.
    Locked,
}

/// A cache directory in use; given back when dropped.
#[derive(Debug)]
pub struct CacheMount {
    cache: Cache,
    path: PathBuf,
    id: String,
    slot: i64,
    is_new: bool,
    sharing: Sharing,
    lock: File,
}

impl CacheMount {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is empty because it has just been made: seed it, then call [`CacheMount::keep`].
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Files a new directory, after it was seeded; until then a crash lets it be made anew.
    ///
    /// # Errors
    /// The database's.
    pub fn keep(&mut self) -> Result<()> {
        let now = clock::now();
        self.cache.inner.db.write("keep cache mount", |tx| {
            let epoch = db::epoch(tx)?;
            tx.prepare_cached("INSERT OR REPLACE INTO cache_mounts VALUES (?1, ?2, ?3, ?3, 1, ?4)")?
                .execute(params![self.id, self.slot, now, epoch])
        })?;
        self.is_new = false;
        if self.sharing == Sharing::Shared {
            // Others may come in now.
            flock(&self.lock, FlockOperation::LockShared)
                .map_err(|e| CacheError::io("lock", &self.path)(e.into()))?;
        }
        Ok(())
    }
}

pub(crate) fn folder_name(id: &str, slot: i64) -> String {
    format!("{}-{slot}", &Digest::of(id.as_bytes()).hex()[..32])
}

impl Cache {
    /// The cache directory `id`; waits where `sharing` says so. `anew` empties it first if nobody else uses it.
    ///
    /// # Errors
    /// Those of the file system and the database. May be cancelled at any time.
    pub async fn cache_mount(&self, id: &str, sharing: Sharing, anew: bool) -> Result<CacheMount> {
        let mut slot = 0;
        loop {
            if let Some(mount) = self.try_cache_mount(id, slot, sharing, anew)? {
                return Ok(mount);
            }
            match sharing {
                Sharing::Private => slot += 1,
                Sharing::Shared | Sharing::Locked => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    fn try_cache_mount(
        &self,
        id: &str,
        slot: i64,
        sharing: Sharing,
        anew: bool,
    ) -> Result<Option<CacheMount>> {
        let name = folder_name(id, slot);
        let lock_path = self.inner.root.join("locks").join(format!("cache-{name}"));
        let open = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path);
        let lock = open.map_err(CacheError::io("open", &lock_path))?;
        // The first user makes the directory, so it must be alone until it is made.
        let is_known = self.knows_cache_mount(id, slot)?;
        let alone = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !alone {
            let shared = sharing == Sharing::Shared && is_known && !anew;
            if !shared || flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
                return Ok(None);
            }
        }
        let path = self.inner.root.join("caches").join(&name);
        let mut is_new = false;
        if alone && (anew || !self.knows_cache_mount(id, slot)? || !path.is_dir()) {
            self.inner.db.write("renew cache mount", |tx| {
                tx.execute(
                    "DELETE FROM cache_mounts WHERE id = ?1 AND slot = ?2",
                    params![id, slot],
                )
            })?;
            self.discard(&path)?;
            fs::create_dir(&path).map_err(CacheError::io("create", &path))?;
            is_new = true;
        }
        self.inner.db.write("use cache mount", |tx| {
            tx.prepare_cached(
                "UPDATE cache_mounts SET used = ?3, uses = uses + 1 WHERE id = ?1 AND slot = ?2",
            )?
            .execute(params![id, slot, clock::now()])
        })?;
        if alone && sharing == Sharing::Shared && !is_new {
            flock(&lock, FlockOperation::LockShared)
                .map_err(|e| CacheError::io("lock", &lock_path)(e.into()))?;
        }
        Ok(Some(CacheMount {
            cache: self.clone(),
            path,
            id: id.to_owned(),
            slot,
            is_new,
            sharing,
            lock,
        }))
    }

    fn knows_cache_mount(&self, id: &str, slot: i64) -> Result<bool> {
        self.inner.db.read("look for cache mount", |c| {
            c.prepare_cached("SELECT 1 FROM cache_mounts WHERE id = ?1 AND slot = ?2")?
                .query_row(params![id, slot], |_| Ok(()))
                .optional()
                .map(|found| found.is_some())
        })
    }
}
