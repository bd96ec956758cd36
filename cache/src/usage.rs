//! What takes how many bytes, and when it was last used: `du`.
//!
//! A record is a ref, with the bytes of its own topmost layer in all forms; or the directory of a cache mount. Bytes
//! are those of the disk: a layer that several refs share counts once, with the first.
use crate::{Cache, cache_mount, clock, error::Result, refs::RecordKind};
use rusqlite::Connection;
use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::MetadataExt,
    path::Path,
    time::SystemTime,
};

/// One line of `du`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    /// Its name.
    pub id: String,
    /// The records beneath.
    pub parents: Vec<String>,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last used.
    pub last_used: SystemTime,
    /// How often.
    pub usage_count: u64,
    /// Bytes on disk.
    pub size: u64,
    /// An image names its content too.
    pub shared: bool,
    /// A build uses it now, or another record stands on it.
    pub in_use: bool,
    /// It may still change.
    pub mutable: bool,
    /// What it is.
    pub kind: RecordKind,
    /// For people.
    pub description: String,
}

/// One line as gc needs it.
pub(crate) struct Row {
    pub(crate) record: UsageRecord,
    pub(crate) what: What,
    pub(crate) used: i64,
}

/// What a line stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Ref(i64),
    CacheMount(String, i64),
}

impl Cache {
    /// Every record, with the oldest use first.
    ///
    /// # Errors
    /// The database's.
    pub fn usage(&self) -> Result<Vec<UsageRecord>> {
        Ok(self.usage_rows()?.into_iter().map(|row| row.record).collect())
    }

    /// Bytes of the blobs that only images need.
    ///
    /// # Errors
    /// The database's.
    pub fn image_bytes(&self) -> Result<u64> {
        self.inner.db.read("measure images", |c| {
            c.query_row(
                "SELECT ifnull(sum(size), 0) FROM blobs WHERE digest IN (SELECT digest FROM image_blobs)
                   AND digest NOT IN (SELECT digest FROM layer_blobs)
                   AND digest NOT IN (SELECT diff_id FROM layers WHERE diff_id IS NOT NULL)",
                [],
                |row| row.get::<_, i64>(0),
            )
            .map(i64::cast_unsigned)
        })
    }

    pub(crate) fn usage_rows(&self) -> Result<Vec<Row>> {
        self.measure_directories()?;
        let mut rows = self.inner.db.read("list records", ref_rows)?;
        let held: HashSet<i64> = self.held_ids().into_iter().map(|id| id.0).collect();
        let parents: HashSet<String> = rows
            .iter()
            .flat_map(|row| row.record.parents.iter().cloned())
            .collect();
        for row in &mut rows {
            let is_held = matches!(row.what, What::Ref(id) if held.contains(&id));
            row.record.in_use = is_held || parents.contains(&row.record.id);
        }
        rows.extend(self.cache_mount_rows()?);
        rows.sort_by_key(|row| row.used);
        Ok(rows)
    }

    fn cache_mount_rows(&self) -> Result<Vec<Row>> {
        let found: Vec<(String, i64, i64, i64, i64)> = self.inner.db.read("list cache mounts", |c| {
            c.prepare_cached("SELECT id, slot, created, used, uses FROM cache_mounts")?
                .query_map([], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
                })?
                .collect()
        })?;
        let rows = found.into_iter().map(|(id, slot, created, used, uses)| {
            let name = cache_mount::folder_name(&id, slot);
            let record = UsageRecord {
                id: format!("cache-{name}"),
                parents: Vec::new(),
                created: clock::time(created),
                last_used: clock::time(used),
                usage_count: uses.cast_unsigned(),
                size: disk_bytes(&self.inner.root.join("caches").join(&name)),
                shared: false,
                in_use: self.is_cache_mount_used(&name),
                mutable: true,
                kind: RecordKind::ExecCacheMount,
                description: format!("cached mount {id}"),
            };
            Row {
                record,
                what: What::CacheMount(id, slot),
                used,
            }
        });
        Ok(rows.collect())
    }

    /// Fills in the sizes of directories that were not measured yet.
    fn measure_directories(&self) -> Result<()> {
        let unknown: Vec<i64> = self.inner.db.read("list directories", |c| {
            c.prepare_cached("SELECT id FROM layers WHERE has_dir AND dir_bytes IS NULL")?
                .query_map([], |row| row.get(0))?
                .collect()
        })?;
        for id in unknown {
            let bytes = disk_bytes(&self.inner.root.join("layers").join(id.to_string()));
            self.inner.db.write("measure directory", |tx| {
                tx.execute(
                    "UPDATE layers SET dir_bytes = ?2 WHERE id = ?1",
                    [id, bytes.cast_signed()],
                )
            })?;
        }
        Ok(())
    }
}

fn ref_rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let mut sizes: HashMap<i64, (i64, bool)> = connection
        .prepare_cached(
            "SELECT l.id, ifnull(l.dir_bytes, 0) + ifnull((SELECT size FROM blobs WHERE digest = l.diff_id), 0)
               + ifnull((SELECT sum(b.size) FROM layer_blobs lb JOIN blobs b USING (digest)
                         WHERE lb.layer = l.id AND lb.digest IS NOT l.diff_id), 0),
               EXISTS (SELECT 1 FROM layer_blobs lb JOIN image_blobs i USING (digest) WHERE lb.layer = l.id)
             FROM layers l",
        )?
        .query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?
        .collect::<rusqlite::Result<_>>()?;
    connection
        .prepare_cached(
            "SELECT id, parent, layer, kind, description, created, used, uses FROM refs ORDER BY id",
        )?
        .query_map([], |row| {
            let layer: i64 = row.get(2)?;
            let (size, shared) = sizes.get(&layer).copied().unwrap_or_default();
            if let Some(counted) = sizes.get_mut(&layer) {
                counted.0 = 0;
            }
            let (id, used): (i64, i64) = (row.get(0)?, row.get(6)?);
            let record = UsageRecord {
                id: id.to_string(),
                parents: row
                    .get::<_, Option<i64>>(1)?
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                created: clock::time(row.get(5)?),
                last_used: clock::time(used),
                usage_count: row.get::<_, i64>(7)?.cast_unsigned(),
                size: size.cast_unsigned(),
                shared,
                in_use: false,
                mutable: false,
                kind: RecordKind::parse(&row.get::<_, String>(3)?),
                description: row.get(4)?,
            };
            Ok(Row {
                record,
                what: What::Ref(id),
                used,
            })
        })?
        .collect()
}

/// Bytes a folder takes on disk, as `du` counts them; what vanishes meanwhile counts nothing.
pub(crate) fn disk_bytes(folder: &Path) -> u64 {
    let (mut bytes, mut seen) = (0, HashSet::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.nlink() < 2 || meta.is_dir() || seen.insert((meta.dev(), meta.ino())) {
                bytes += meta.blocks() * 512;
            }
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}
