//! The cache keys on disk.
//!
//! | row | is |
//! |---|---|
//! | `key_links` | from, how (op digest, input, output, selector or empty), to |
//! | `key_records` | key, result, time, order of filing |
//!
//! The trait and what it promises are in the crate `keys`, whose suite runs below.
use crate::{
    clock,
    db::{self, Db},
};
use keys::{Batch, KeyId, KeyStore, Link, Record, ResultId, StoreError};
use oci::Digest;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

/// The keys of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KeysDb {
    db: Arc<Db>,
}

impl KeysDb {
    pub(crate) fn new(db: Arc<Db>) -> KeysDb {
        KeysDb { db }
    }
}

fn failed(action: &'static str) -> impl FnOnce(crate::CacheError) -> StoreError {
    move |cause| StoreError::new(action, cause)
}

fn selector(link: &Link) -> Vec<u8> {
    link.selector
        .map(|digest| digest.as_bytes().to_vec())
        .unwrap_or_default()
}

fn key(bytes: [u8; 32]) -> KeyId {
    KeyId::from_digest(Digest::from(bytes))
}

impl KeyStore for KeysDb {
    fn exists(&self, of: &KeyId) -> Result<bool, StoreError> {
        let found = self.db.read("look for key", |c| {
            c.prepare_cached(
                "SELECT 1 WHERE EXISTS (SELECT 1 FROM key_records WHERE key = ?1)
                   OR EXISTS (SELECT 1 FROM key_links WHERE src = ?1) OR EXISTS (SELECT 1 FROM key_links WHERE dst = ?1)",
            )?
            .query_row([of.digest().as_bytes()], |_| Ok(()))
            .optional()
        });
        Ok(found.map_err(failed("look for key"))?.is_some())
    }

    fn query(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, StoreError> {
        let found = self.db.read("follow link", |c| {
            c.prepare_cached(
                "SELECT dst FROM key_links WHERE src = ?1 AND digest = ?2 AND input = ?3 AND output = ?4 AND selector = ?5
                 ORDER BY dst",
            )?
            .query_map(
                params![
                    from.digest().as_bytes(),
                    link.digest.as_bytes(),
                    link.input,
                    link.output,
                    selector(link)
                ],
                |row| row.get(0).map(key),
            )?
            .collect()
        });
        found.map_err(failed("follow link"))
    }

    fn results(&self, of: &KeyId) -> Result<Vec<Record>, StoreError> {
        let found = self.db.read("read records", |c| {
            c.prepare_cached(
                "SELECT result, created FROM key_records WHERE key = ?1 ORDER BY created DESC, seq DESC",
            )?
            .query_map([of.digest().as_bytes()], |row| {
                let result = ResultId::new(row.get::<_, String>(0)?);
                Ok(Record {
                    result,
                    created: clock::time(row.get(1)?),
                })
            })?
            .collect()
        });
        found.map_err(failed("read records"))
    }

    fn links_to(&self, to: &KeyId) -> Result<Vec<(KeyId, Link)>, StoreError> {
        let found = self.db.read("read links", |c| links_to(c, to));
        let mut found = found.map_err(failed("read links"))?;
        found.sort();
        Ok(found)
    }

    fn save(&self, batch: &Batch) -> Result<(), StoreError> {
        let saved = self.db.write("file keys", |tx| {
            let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO key_links VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
            for (from, link, to) in &batch.links {
                insert.execute(params![
                    from.digest().as_bytes(),
                    link.input,
                    link.output,
                    link.digest.as_bytes(),
                    selector(link),
                    to.digest().as_bytes()
                ])?;
            }
            let epoch = db::epoch(tx)?;
            let mut insert = tx.prepare_cached(
                "INSERT INTO key_records VALUES (?1, ?2, ?3, (SELECT ifnull(max(seq), 0) + 1 FROM key_records WHERE key = ?1), ?4)
                 ON CONFLICT (key, result) DO UPDATE SET created = excluded.created, seq = excluded.seq",
            )?;
            for (of, record) in &batch.records {
                let created = clock::stored(record.created);
                insert.execute(params![of.digest().as_bytes(), record.result.as_str(), created, epoch])?;
            }
            Ok(())
        });
        saved.map_err(failed("file keys"))
    }

    fn release(&self, result: &ResultId) -> Result<(), StoreError> {
        let released = self.db.write("release result", |tx| release(tx, result.as_str()));
        released.map_err(failed("release result"))
    }
}

fn links_to(connection: &Connection, to: &KeyId) -> rusqlite::Result<Vec<(KeyId, Link)>> {
    connection
        .prepare_cached("SELECT src, digest, input, output, selector FROM key_links WHERE dst = ?1")?
        .query_map([to.digest().as_bytes()], |row| {
            let selector: Vec<u8> = row.get(4)?;
            let selector = <[u8; 32]>::try_from(selector.as_slice()).ok().map(Digest::from);
            let digest = Digest::from(row.get::<_, [u8; 32]>(1)?);
            Ok((
                key(row.get(0)?),
                Link {
                    input: row.get(2)?,
                    output: row.get(3)?,
                    digest,
                    selector,
                },
            ))
        })?
        .collect()
}

/// Forgets a result and every key that is left with nothing to lead to.
pub(crate) fn release(tx: &Connection, result: &str) -> rusqlite::Result<()> {
    let mut doubtful: Vec<[u8; 32]> = tx
        .prepare_cached("SELECT key FROM key_records WHERE result = ?1")?
        .query_map([result], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    tx.prepare_cached("DELETE FROM key_records WHERE result = ?1")?
        .execute([result])?;
    while let Some(current) = doubtful.pop() {
        let is_needed = tx
            .prepare_cached(
                "SELECT 1 WHERE EXISTS (SELECT 1 FROM key_records WHERE key = ?1) OR EXISTS (SELECT 1 FROM key_links WHERE src = ?1)",
            )?
            .exists([current])?;
        if is_needed {
            continue;
        }
        doubtful.extend(
            links_to(tx, &key(current))?
                .into_iter()
                .map(|(from, _)| *from.digest().as_bytes()),
        );
        tx.prepare_cached("DELETE FROM key_links WHERE dst = ?1")?
            .execute([current])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn does_what_every_key_store_does() {
        keys::testsuite::run(|| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let (db, _) = Db::open(&folder.path().join("builder.db"), "boot").expect("new");
            KeysDb::new(Arc::new(db))
        });
    }
}
