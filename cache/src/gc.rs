//! Keeping the store within its limits, and taking out what nobody needs.
//!
//! ```text
//! tidy (at open) ─▶ leftovers of dead processes, trash
//! prune(filter, limits) ─▶ usage rows, oldest use first ─▶ remove those that may go, while over the limit
//! sweep ─▶ blobs and directories no record speaks of ─▶ trash ─▶ removed in the background
//! guard ─▶ asked before every few megabytes that are written: over the ceiling, prune; still over, fail that write
//! ```
//!
//! Nothing goes that a live process or an open lease has used (see `owner`), that this process holds, or that something
//! else stands on. Rows go first, in one transaction; then files are moved to the trash. A crash between leaves files
//! without rows, which the next sweep finds.
use crate::{
    Cache, cache_mount, clock,
    error::{CacheError, Result},
    filter::Filter,
    keys_db,
    refs::{RecordKind, RefId},
    store::Inner,
    usage::{Row, UsageRecord, What},
};
use rusqlite::{Connection, params};
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::HashSet,
    fs::{self, File},
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// The default ceiling: the least of this part of the disk, in percent, and [`DEFAULT_CEILING_BYTES`].
const DEFAULT_CEILING_PERCENT: u64 = 80;
/// See [`DEFAULT_CEILING_PERCENT`].
const DEFAULT_CEILING_BYTES: u64 = 100_000_000_000;
/// How long the measured size of the store is believed while writing.
const MEASURE_AGAIN_NANOS: i64 = 2_000_000_000;

/// What may go, and how much is to stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneOptions {
    /// Any of these must match (none: everything does). Each is a list of tests that must all hold.
    pub filters: Vec<Filter>,
    /// Internal, frontend and shared records too.
    pub all: bool,
    /// Only what was not used for so long.
    pub unused_for: Option<Duration>,
    /// Stop when the store has no more than this many bytes.
    pub max_used: Option<u64>,
    /// Always keep this many bytes of the most recently used.
    pub reserved: Option<u64>,
    /// Stop when the disk has at least this many bytes free.
    pub min_free: Option<u64>,
}

impl Cache {
    /// Removes what may go and is not needed; tells what went, in the order it went. Blocks.
    ///
    /// # Errors
    /// Those of the database and the file system; what was told as gone is gone.
    pub fn prune(&self, options: &PruneOptions) -> Result<Vec<UsageRecord>> {
        let (since, dead) = self.inner.owner.protected_since()?;
        let mut gone = Vec::new();
        let mut total = self.used_bytes()?;
        let mut kept_back: HashSet<String> = HashSet::new();
        loop {
            let rows = self.usage_rows()?;
            let mut went = false;
            for row in rows {
                if self.is_enough(options, total)? {
                    break;
                }
                if kept_back.contains(&row.record.id) || !may_go(&row, options, since) {
                    continue;
                }
                if !self.remove(&row)? {
                    kept_back.insert(row.record.id.clone());
                    continue;
                }
                total = total.saturating_sub(row.record.size);
                went = true;
                gone.push(row.record);
            }
            // What stood on something gone is free now.
            if !went {
                break;
            }
        }
        self.sweep(since, &dead)?;
        self.empty_trash();
        Ok(gone)
    }

    fn is_enough(&self, options: &PruneOptions, total: u64) -> Result<bool> {
        if options.reserved.is_some_and(|reserved| total <= reserved) {
            return Ok(true);
        }
        let limits = [
            options.max_used.map(|limit| total <= limit),
            match options.min_free {
                Some(limit) => Some(disk(&self.inner.root)?.1 >= limit),
                None => None,
            },
        ];
        let mut limits = limits.into_iter().flatten().peekable();
        Ok(limits.peek().is_some() && limits.all(|kept| kept))
    }

    /// Takes one record out; false where it turned out to be needed.
    fn remove(&self, row: &Row) -> Result<bool> {
        match &row.what {
            What::Ref(id) => self
                .inner
                .db
                .write("remove record", |tx| remove_ref(tx, *id, row.used)),
            What::CacheMount(id, slot) => self.remove_cache_mount(id, *slot),
        }
    }

    /// Takes out a ref that nobody holds any more and no build was ever told of. What cannot be taken out now is left to gc.
    pub(crate) fn forget(&self, id: RefId) {
        let gone = self.inner.db.write("forget a passing record", |tx| {
            let row = rusqlite::OptionalExtension::optional(
                tx.prepare_cached("SELECT layer, used FROM refs WHERE id = ?1")?
                    .query_row([id.0], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))),
            )?;
            let Some((layer, used)) = row else { return Ok(None) };
            if !remove_ref(tx, id.0, used)? {
                return Ok(None);
            }
            let is_kept = tx
                .prepare_cached("SELECT 1 FROM layers WHERE id = ?1")?
                .exists([layer])?;
            Ok((!is_kept).then_some(layer))
        });
        let discarded = gone.and_then(|layer| match layer {
            Some(layer) => self.discard(&self.inner.root.join("layers").join(layer.to_string())),
            None => Ok(()),
        });
        if let Err(error) = discarded {
            tracing::warn!(%error, "what a failed step left waits for the next cleaning");
        }
    }

    fn remove_cache_mount(&self, id: &str, slot: i64) -> Result<bool> {
        let name = cache_mount::folder_name(id, slot);
        let path = self.inner.root.join("locks").join(format!("cache-{name}"));
        let lock = File::create(&path).map_err(CacheError::io("open", &path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(false);
        }
        self.inner.db.write("remove cache mount", |tx| {
            tx.execute(
                "DELETE FROM cache_mounts WHERE id = ?1 AND slot = ?2",
                params![id, slot],
            )
        })?;
        self.discard(&self.inner.root.join("caches").join(name))?;
        Ok(true)
    }

    pub(crate) fn is_cache_mount_used(&self, name: &str) -> bool {
        let path = self.inner.root.join("locks").join(format!("cache-{name}"));
        File::open(path).is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// Removes blobs and directories that no record speaks of, and what dead processes left.
    fn sweep(&self, since: i64, dead: &[String]) -> Result<()> {
        let doomed: Vec<[u8; 32]> = self.inner.db.write("sweep blobs", |tx| {
            let doomed = tx
                .prepare_cached(
                    "SELECT digest FROM blobs WHERE used < ?1
                       AND digest NOT IN (SELECT digest FROM image_blobs) AND digest NOT IN (SELECT digest FROM layer_blobs)
                       AND digest NOT IN (SELECT diff_id FROM layers WHERE diff_id IS NOT NULL)",
                )?
                .query_map([since], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<[u8; 32]>>>()?;
            let mut delete = tx.prepare_cached("DELETE FROM blobs WHERE digest = ?1")?;
            for digest in &doomed {
                delete.execute([digest])?;
            }
            Ok(doomed)
        })?;
        for digest in doomed {
            self.discard(&self.content().path(&digest.into()))?;
        }
        let known: HashSet<String> = self.inner.db.read("list layers", |c| {
            c.prepare_cached("SELECT id FROM layers")?
                .query_map([], |row| row.get::<_, i64>(0).map(|id| id.to_string()))?
                .collect()
        })?;
        for path in children(&self.inner.root.join("layers")) {
            let is_known = path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| known.contains(name));
            if !is_known && is_older(&path, since) {
                self.discard(&path)?;
            }
        }
        for path in children(&self.inner.root.join("blobs/sha256")) {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let is_known = match oci::Digest::parse(&format!("sha256:{name}")) {
                Ok(digest) => self.content().size(&digest)?.is_some(),
                Err(_) => false,
            };
            if !is_known && is_older(&path, since) {
                self.discard(&path)?;
            }
        }
        bury(self, dead)
    }

    /// Removes what lies in the trash; what cannot be removed now waits for the next time.
    pub(crate) fn empty_trash(&self) {
        for path in children(&self.inner.root.join("trash")) {
            // Two processes may empty the same trash: what the other removed first is gone all the same.
            let _ = if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
        }
    }

    /// Bytes of all blobs, directories and cache mounts.
    ///
    /// # Errors
    /// The database's.
    pub fn used_bytes(&self) -> Result<u64> {
        let rows: u64 = self.usage_rows()?.iter().map(|row| row.record.size).sum();
        Ok(rows + self.image_bytes()?)
    }
}

fn may_go(row: &Row, options: &PruneOptions, since: i64) -> bool {
    let record = &row.record;
    let is_special = matches!(record.kind, RecordKind::Internal | RecordKind::Frontend) || record.shared;
    let is_wanted = options.filters.is_empty() || options.filters.iter().any(|filter| filter.matches(record));
    let is_old = options.unused_for.is_none_or(|age| {
        SystemTime::now()
            .duration_since(record.last_used)
            .is_ok_and(|unused| unused >= age)
    });
    !record.in_use && row.used < since && (options.all || !is_special) && is_wanted && is_old
}

/// Removes a ref if nothing has used it since it was looked at, with its layer if that was the last ref of it.
fn remove_ref(tx: &Connection, id: i64, used: i64) -> rusqlite::Result<bool> {
    let layer: Option<i64> = {
        let mut query = tx.prepare_cached(
            "SELECT layer FROM refs WHERE id = ?1 AND used = ?2 AND NOT EXISTS (SELECT 1 FROM refs WHERE parent = ?1)",
        )?;
        rusqlite::OptionalExtension::optional(query.query_row([id, used], |row| row.get(0)))?
    };
    let Some(layer) = layer else { return Ok(false) };
    keys_db::release(tx, &format!("ref:{id}"))?;
    tx.prepare_cached("DELETE FROM refs WHERE id = ?1")?
        .execute([id])?;
    tx.prepare_cached(
        "DELETE FROM layers WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM refs WHERE layer = ?1)",
    )?
    .execute([layer])?;
    Ok(true)
}

fn children(folder: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

fn is_older(path: &Path, since: i64) -> bool {
    let changed = fs::symlink_metadata(path).and_then(|meta| meta.modified());
    changed.is_ok_and(|changed| clock::stored(changed) < since)
}

/// Removes what dead processes left aside, then their names.
fn bury(cache: &Cache, dead: &[String]) -> Result<()> {
    for name in dead {
        let mark = format!("{name}-");
        for folder in ["ingest", "active"] {
            for path in children(&cache.inner.root.join(folder)) {
                if path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(|name| name.starts_with(&mark))
                {
                    cache.discard(&path)?;
                }
            }
        }
        cache.inner.owner.bury(name);
    }
    Ok(())
}

/// At open: removes leftovers. After a power cut also what no record speaks of any more.
pub(crate) fn tidy(cache: &Cache, rebooted: bool) -> Result<()> {
    let (since, dead) = cache.inner.owner.protected_since()?;
    if rebooted {
        cache.sweep(since, &dead)?;
    } else {
        bury(cache, &dead)?;
    }
    let trash = cache.inner.root.join("trash");
    if !children(&trash).is_empty() {
        let cache = cache.clone();
        // Nothing waits for this thread; what it does not get to, the next process finds.
        std::thread::spawn(move || cache.empty_trash());
    }
    Ok(())
}

/// Total and free bytes of the disk below `path`.
pub(crate) fn disk(path: &Path) -> Result<(u64, u64)> {
    let stat =
        rustix::fs::statvfs(path).map_err(|e| CacheError::io("measure the disk of", path)(e.into()))?;
    Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// Makes writers ask for room from now on.
pub(crate) fn guard(cache: &Cache) -> Result<()> {
    let total = cache.disk_bytes()?;
    let default = (total / 100 * DEFAULT_CEILING_PERCENT).min(DEFAULT_CEILING_BYTES);
    let options = &cache.inner.options;
    let ceiling = options
        .ceiling
        .unwrap_or_else(|| default.max(options.least_ceiling));
    let inner: Weak<Inner> = Arc::downgrade(&cache.inner);
    let (used, measured) = (AtomicU64::new(0), AtomicI64::new(0));
    cache.content().set_room(Arc::new(move |path, needed| {
        let Some(inner) = inner.upgrade() else {
            return Ok(());
        };
        let cache = Cache { inner };
        let now = clock::now();
        if now - measured.load(Ordering::Relaxed) > MEASURE_AGAIN_NANOS {
            used.store(cache.quick_bytes()?, Ordering::Relaxed);
            measured.store(now, Ordering::Relaxed);
        }
        let wanted = cache.content().pending() + needed;
        if used.load(Ordering::Relaxed) + wanted <= ceiling {
            return Ok(());
        }
        cache.prune(&PruneOptions {
            max_used: Some(ceiling.saturating_sub(wanted)),
            ..PruneOptions::default()
        })?;
        let now_used = cache.quick_bytes()?;
        used.store(now_used, Ordering::Relaxed);
        if now_used + wanted <= ceiling {
            return Ok(());
        }
        let now_used = now_used + cache.content().pending();
        Err(CacheError::Full {
            path: path.to_owned(),
            needed,
            used: now_used,
            ceiling,
        })
    }));
    Ok(())
}

impl Cache {
    /// The size of the disk the store is on.
    ///
    /// # Errors
    /// It cannot be measured.
    pub fn disk_bytes(&self) -> Result<u64> {
        disk(&self.inner.root).map(|(total, _)| total)
    }

    /// Bytes of blobs and measured directories, by one query.
    fn quick_bytes(&self) -> Result<u64> {
        self.inner.db.read("measure store", |c| {
            c.query_row(
                "SELECT (SELECT ifnull(sum(size), 0) FROM blobs) + (SELECT ifnull(sum(dir_bytes), 0) FROM layers)",
                [],
                |row| row.get::<_, i64>(0),
            )
            .map(i64::cast_unsigned)
        })
    }
}
