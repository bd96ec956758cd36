//! The builder's own image store: names for manifests and indexes whose blobs are all here.
//!
//! gc keeps every blob an image names; the directories of its layers may go and are made again from the blobs.
use crate::{
    Cache, clock, db,
    error::{CacheError, Result},
};
use oci::{Descriptor, Digest};
use rusqlite::{OptionalExtension, params};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

/// A named image.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The full name, with its tag.
    pub name: String,
    /// Its manifest or index.
    pub target: Descriptor,
    /// When it got this name.
    pub created: SystemTime,
}

/// The images of a store.
#[derive(Clone, Debug)]
pub struct Images {
    cache: Cache,
}

impl Cache {
    /// The images.
    pub fn images(&self) -> Images {
        Images { cache: self.clone() }
    }
}

impl Images {
    /// Names an image, whatever had the name before. `blobs` are all it consists of, the target too.
    ///
    /// # Errors
    /// [`CacheError::Missing`] if one of the blobs is not here; the database's.
    pub fn set(&self, name: &str, target: &Descriptor, blobs: &[Digest]) -> Result<()> {
        for digest in blobs {
            if !self.cache.content().touch(digest)? {
                return Err(CacheError::Missing {
                    what: format!("blob {digest} of image {name}"),
                });
            }
        }
        let text = serde_json::to_string(target).expect("a descriptor has string keys");
        let is_news = self.get(name)?.is_none_or(|known| known.target != *target);
        self.cache.inner.db.write("name image", |tx| {
            let epoch = db::epoch(tx)?;
            tx.prepare_cached("DELETE FROM images WHERE name = ?1")?
                .execute([name])?;
            tx.prepare_cached("INSERT INTO images VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![name, text, clock::now(), epoch])?;
            let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO image_blobs VALUES (?1, ?2)")?;
            for digest in blobs {
                insert.execute(params![name, digest.as_bytes()])?;
            }
            Ok(())
        })?;
        if is_news {
            // After the record is written: a barrier that began before does not hold it.
            self.cache.inner.named.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The image of that full name.
    ///
    /// # Errors
    /// The database's.
    pub fn get(&self, name: &str) -> Result<Option<Image>> {
        self.cache.inner.db.read("look for image", |c| {
            c.prepare_cached("SELECT name, descriptor, created FROM images WHERE name = ?1")?
                .query_row([name], read)
                .optional()
        })
    }

    /// All images by name.
    ///
    /// # Errors
    /// The database's.
    pub fn list(&self) -> Result<Vec<Image>> {
        self.cache.inner.db.read("list images", |c| {
            c.prepare_cached("SELECT name, descriptor, created FROM images ORDER BY name")?
                .query_map([], read)?
                .collect()
        })
    }

    /// The blobs an image consists of.
    ///
    /// # Errors
    /// The database's.
    pub fn blobs(&self, name: &str) -> Result<Vec<Digest>> {
        self.cache.inner.db.read("list blobs of image", |c| {
            c.prepare_cached("SELECT digest FROM image_blobs WHERE name = ?1")?
                .query_map([name], |row| row.get::<_, [u8; 32]>(0).map(Digest::from))?
                .collect()
        })
    }

    /// Takes a name away; false where there was none. The blobs go with the next gc, unless something else needs them.
    ///
    /// # Errors
    /// The database's.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let is_gone = self.cache.inner.db.write("remove image", |tx| {
            Ok(tx.execute("DELETE FROM images WHERE name = ?1", [name])? > 0)
        })?;
        self.cache.inner.named.fetch_add(1, Ordering::AcqRel);
        Ok(is_gone)
    }
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Image> {
    let text: String = row.get(1)?;
    let target = serde_json::from_str(&text).map_err(|cause| {
        rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(cause))
    })?;
    Ok(Image {
        name: row.get(0)?,
        target,
        created: clock::time(row.get(2)?),
    })
}
