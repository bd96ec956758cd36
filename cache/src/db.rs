//! The metadata database: tables, version, epochs.
//!
//! | table | a row is |
//! |---|---|
//! | `meta` | one value: version, boot id, epochs |
//! | `blobs` | a file under `blobs/sha256` |
//! | `layers` | a change set: its diff id once known, its tree, whether its directory exists |
//! | `layer_blobs` | a packed variant of a layer, here or still at its origin |
//! | `refs` | a stack of layers: a parent and the layer on top |
//! | `key_links`, `key_records` | the cache keys (see `keys_db`) |
//! | `images`, `image_blobs` | the builder's own image store |
//! | `cache_mounts` | the directories of `RUN --mount=type=cache` |
//!
//! SQLite in WAL mode with `synchronous=NORMAL`: several processes, microseconds per commit, no fsync per step.
//! Rows carry the *epoch* they were written in. A barrier syncs the file system and then marks the epoch durable;
//! after a power cut (another boot id) rows of later epochs are dropped when the store is opened, because the
//! files they speak of may be damaged. A killed process loses nothing: the page cache survives it.
use crate::error::{CacheError, Result};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::{path::Path, time::Duration};

const VERSION: i64 = 1;
/// How long a process waits for another one's write; a transaction of ours takes less than a millisecond.
const BUSY: Duration = Duration::from_secs(30);

const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs (
  digest BLOB PRIMARY KEY, size INTEGER NOT NULL, used INTEGER NOT NULL, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE layers (
  id INTEGER PRIMARY KEY AUTOINCREMENT, diff_id BLOB, has_dir INTEGER NOT NULL DEFAULT 0, tree BLOB,
  has_tree_file INTEGER NOT NULL DEFAULT 0, dir_bytes INTEGER, created INTEGER NOT NULL, epoch INTEGER NOT NULL);
CREATE INDEX layers_diff ON layers (diff_id);
CREATE TABLE layer_blobs (
  layer INTEGER NOT NULL REFERENCES layers (id) ON DELETE CASCADE, digest BLOB NOT NULL, media_type TEXT NOT NULL,
  size INTEGER NOT NULL, level TEXT NOT NULL, origin TEXT, PRIMARY KEY (layer, digest)) WITHOUT ROWID;
CREATE INDEX layer_blobs_digest ON layer_blobs (digest);
CREATE TABLE refs (
  id INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER REFERENCES refs (id), layer INTEGER NOT NULL REFERENCES layers (id),
  chain_id BLOB, kind TEXT NOT NULL, description TEXT NOT NULL, created INTEGER NOT NULL, used INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 1, epoch INTEGER NOT NULL);
CREATE INDEX refs_parent ON refs (parent, layer);
CREATE INDEX refs_layer ON refs (layer);
CREATE INDEX refs_chain ON refs (chain_id);
CREATE TABLE key_links (
  src BLOB NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL, digest BLOB NOT NULL, selector BLOB NOT NULL,
  dst BLOB NOT NULL, PRIMARY KEY (src, digest, input, output, selector, dst)) WITHOUT ROWID;
CREATE INDEX key_links_dst ON key_links (dst);
CREATE TABLE key_records (
  key BLOB NOT NULL, result TEXT NOT NULL, created INTEGER NOT NULL, seq INTEGER NOT NULL, epoch INTEGER NOT NULL,
  PRIMARY KEY (key, result)) WITHOUT ROWID;
CREATE INDEX key_records_result ON key_records (result);
CREATE TABLE images (name TEXT PRIMARY KEY, descriptor TEXT NOT NULL, created INTEGER NOT NULL, epoch INTEGER NOT NULL)
  WITHOUT ROWID;
CREATE TABLE image_blobs (name TEXT NOT NULL REFERENCES images (name) ON DELETE CASCADE, digest BLOB NOT NULL,
  PRIMARY KEY (name, digest)) WITHOUT ROWID;
CREATE INDEX image_blobs_digest ON image_blobs (digest);
CREATE TABLE cache_mounts (
  id TEXT NOT NULL, slot INTEGER NOT NULL, created INTEGER NOT NULL, used INTEGER NOT NULL, uses INTEGER NOT NULL DEFAULT 1,
  epoch INTEGER NOT NULL, PRIMARY KEY (id, slot)) WITHOUT ROWID;
CREATE TABLE explain (slot TEXT PRIMARY KEY, record BLOB NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
";

/// The database of one store, as one process holds it.
#[derive(Debug)]
pub(crate) struct Db {
    connection: Mutex<Connection>,
}

/// What opening found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The machine was started anew since the store was last open, and rows without a barrier were dropped.
    pub rebooted: bool,
}

impl Db {
    /// Opens the database at `path`, made if there is none; `boot_id` names this run of the machine.
    ///
    /// # Errors
    /// [`CacheError::NewerStore`], or the database's own.
    pub(crate) fn open(path: &Path, boot_id: &str) -> Result<(Db, Opened)> {
        let fail = CacheError::db;
        let mut connection = Connection::open(path).map_err(fail("open"))?;
        connection.busy_timeout(BUSY).map_err(fail("open"))?;
        connection.set_prepared_statement_cache_capacity(64);
        // Closing costs no sync: the log stays, and is taken in when it has grown or a barrier is due.
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(fail("open"))?;
        connection
            .execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;")
            .map_err(fail("open"))?;
        let version: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(fail("read version"))?;
        if version > VERSION {
            return Err(CacheError::NewerStore {
                path: path.to_owned(),
                found: version,
                known: VERSION,
            });
        }
        if version < VERSION {
            create(&mut connection, boot_id).map_err(fail("create"))?;
        }
        let rebooted = settle_epochs(&mut connection, boot_id).map_err(fail("settle epochs"))?;
        Ok((
            Db {
                connection: Mutex::new(connection),
            },
            Opened { rebooted },
        ))
    }

    /// Runs `work` in one transaction: all of it happens, or none.
    ///
    /// # Errors
    /// The database's, with `action`.
    pub(crate) fn write<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut connection = self.connection.lock();
        let run = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run(&mut connection).map_err(CacheError::db(action))
    }

    /// Reads with `work`.
    ///
    /// # Errors
    /// The database's, with `action`.
    pub(crate) fn read<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let connection: MutexGuard<'_, Connection> = self.connection.lock();
        work(&connection).map_err(CacheError::db(action))
    }

    /// Begins a new epoch and tells the one that ended. What was written before belongs to that one or an
    /// earlier one.
    ///
    /// # Errors
    /// The database's.
    pub(crate) fn next_epoch(&self) -> Result<i64> {
        self.write("begin epoch", |tx| {
            let ended = epoch(tx)?;
            set_meta(tx, "epoch", &(ended + 1).to_string())?;
            Ok(ended)
        })
    }

    /// Marks an epoch, and all before it, durable. The caller has synced the file system since it ended.
    ///
    /// # Errors
    /// The database's.
    pub(crate) fn mark_durable(&self, ended: i64) -> Result<()> {
        self.write("mark epoch durable", |tx| {
            let durable: i64 = meta(tx, "durable")?.and_then(|v| v.parse().ok()).unwrap_or(0);
            set_meta(tx, "durable", &durable.max(ended).to_string())
        })
    }
}

/// The current epoch; written into each new row.
pub(crate) fn epoch(connection: &Connection) -> rusqlite::Result<i64> {
    Ok(meta(connection, "epoch")?
        .and_then(|value| value.parse().ok())
        .unwrap_or(1))
}

fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

fn set_meta(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute([key, value])?;
    Ok(())
}

/// Makes the tables; another process may have been quicker.
fn create(connection: &mut Connection, boot_id: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == 0 {
        transaction.execute_batch(SCHEMA)?;
        for (key, value) in [("boot_id", boot_id), ("epoch", "1"), ("durable", "0")] {
            set_meta(&transaction, key, value)?;
        }
        transaction.execute_batch(&format!("PRAGMA user_version = {VERSION}"))?;
    }
    transaction.commit()
}

/// Drops what a power cut may have damaged; says whether there was a new start of the machine.
fn settle_epochs(connection: &mut Connection, boot_id: &str) -> rusqlite::Result<bool> {
    if meta(connection, "boot_id")?.as_deref() == Some(boot_id) {
        return Ok(false);
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if meta(&transaction, "boot_id")?.as_deref() == Some(boot_id) {
        return Ok(false);
    }
    let durable: i64 = meta(&transaction, "durable")?
        .and_then(|v| v.parse().ok())
        .unwrap_or(0);
    transaction.execute("DELETE FROM images WHERE epoch > ?1", [durable])?;
    transaction.execute("DELETE FROM blobs WHERE epoch > ?1", [durable])?;
    transaction.execute("DELETE FROM cache_mounts WHERE epoch > ?1", [durable])?;
    // A directory or tree of an older layer may have been made in a later epoch; its row says the latest.
    loop {
        let gone = transaction.execute(
            "DELETE FROM refs WHERE (epoch > ?1 OR layer IN (SELECT id FROM layers WHERE epoch > ?1)
               OR parent NOT IN (SELECT id FROM refs))
             AND id NOT IN (SELECT parent FROM refs WHERE parent IS NOT NULL)",
            [durable],
        )?;
        if gone == 0 {
            break;
        }
    }
    transaction.execute("DELETE FROM layers WHERE id NOT IN (SELECT layer FROM refs)", [])?;
    transaction.execute(
        "DELETE FROM key_records WHERE epoch > ?1
           OR (result <> 'scratch' AND CAST(substr(result, 5) AS INTEGER) NOT IN (SELECT id FROM refs))",
        params![durable],
    )?;
    set_meta(&transaction, "boot_id", boot_id)?;
    transaction.commit()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(db: &Db, byte: u8) {
        db.write("test", |tx| {
            let epoch = epoch(tx)?;
            tx.execute(
                "INSERT INTO blobs VALUES (?1, 1, 1, ?2)",
                params![[byte; 32], epoch],
            )
        })
        .expect("written");
    }

    fn count(db: &Db) -> i64 {
        db.read("test", |c| {
            c.query_row("SELECT count(*) FROM blobs", [], |row| row.get(0))
        })
        .expect("read")
    }

    #[test]
    fn a_power_cut_drops_what_no_barrier_covers() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("builder.db");
        let (db, _) = Db::open(&path, "boot-1").expect("new");
        blob(&db, 1);
        let ended = db.next_epoch().expect("epoch");
        blob(&db, 2);
        db.mark_durable(ended).expect("marked");
        drop(db);
        // A killed process loses nothing.
        let (db, opened) = Db::open(&path, "boot-1").expect("again");
        assert_eq!((count(&db), opened.rebooted), (2, false));
        drop(db);
        let (db, opened) = Db::open(&path, "boot-2").expect("after a power cut");
        assert_eq!((count(&db), opened.rebooted), (1, true));
    }

    #[test]
    fn a_newer_store_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("builder.db");
        drop(Db::open(&path, "b").expect("new"));
        let raw = Connection::open(&path).expect("open");
        raw.execute_batch("PRAGMA user_version = 999").expect("set");
        assert!(matches!(
            Db::open(&path, "b"),
            Err(CacheError::NewerStore { found: 999, .. })
        ));
    }
}
