//! A directory that a step may write: an overlay's upper directory above a ref.
//!
//! ```text
//! new_mutable ─▶ active/<owner>-<n>/{fs,work} ─ the step runs ─▶ commit ─▶ layers/<id>/fs + rows
//!                                                            ├─▶ commit_in_passing: the same, until the ref is let go
//!                                                            └─▶ dropped: to the trash
//! ```
//!
//! Commit is a rename; the tree and the diff id of the layer are made when something asks for them.
use crate::{
    Cache,
    error::{CacheError, Result},
    layer,
    refs::{ImmutableRef, RecordInfo},
    store::{insert_layer, insert_ref},
    usage::disk_bytes,
    view::{Contents, View, ViewLayer},
};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};
use tree::Root;

/// A writable directory above a ref; thrown away when dropped before its commit.
#[derive(Debug)]
pub struct MutableRef {
    cache: Cache,
    parent: ImmutableRef,
    folder: PathBuf,
    info: RecordInfo,
    is_open: bool,
}

impl Cache {
    /// Makes a writable directory above `parent`.
    ///
    /// # Errors
    /// Those of making directories.
    pub fn new_mutable(&self, parent: &ImmutableRef, info: RecordInfo) -> Result<MutableRef> {
        let folder = self.unique("active");
        for path in [&folder, &folder.join("fs"), &folder.join("work")] {
            fs::create_dir(path).map_err(CacheError::io("create", path))?;
        }
        let upper = folder.join("fs");
        fs::set_permissions(&upper, Permissions::from_mode(0o755))
            .map_err(CacheError::io("set permissions of", &upper))?;
        Ok(MutableRef {
            cache: self.clone(),
            parent: parent.clone(),
            folder,
            info,
            is_open: true,
        })
    }
}

impl MutableRef {
    /// What is written goes here: overlayfs's `upperdir`.
    pub fn upper(&self) -> PathBuf {
        self.folder.join("fs")
    }

    /// A directory on the same file system for overlayfs's `workdir`.
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// The ref beneath.
    pub fn parent(&self) -> &ImmutableRef {
        &self.parent
    }

    /// What is written so far above `below`, the files of its parent. Blocks; the whole directory is looked through.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn view(&self, below: &View) -> Result<View> {
        let root = Root::open(&self.upper()).map_err(|e| CacheError::Layer(e.into()))?;
        let tree = layer::scan_upper(&root, self.cache.inner.options.dirs)?;
        Ok(below.with_layer(ViewLayer {
            tree: Arc::new(tree),
            contents: Arc::new(Contents::Dir(root)),
        }))
    }

    /// Seals the directory as the topmost layer. Nothing may have it mounted for writing any more.
    ///
    /// # Errors
    /// Those of renaming and of the database; nothing is kept then.
    pub fn commit(self) -> Result<ImmutableRef> {
        let parent = self.parent.clone();
        self.file_above(&parent)
    }

    /// Commits, with a record above that of `recorded`.
    fn file_above(mut self, recorded: &ImmutableRef) -> Result<ImmutableRef> {
        let (cache, upper) = (self.cache.clone(), self.upper());
        // Counted against the ceiling from now on.
        let bytes = disk_bytes(&self.folder);
        let mut renamed = Ok(());
        let row = cache.inner.db.write("commit layer", |tx| {
            let layer = insert_layer(tx, None, true, None)?;
            tx.prepare_cached("UPDATE layers SET dir_bytes = ?2 WHERE id = ?1")?
                .execute([layer, bytes.cast_signed()])?;
            renamed = self.seal(&upper, layer);
            if renamed.is_err() {
                return Err(rusqlite::Error::InvalidQuery);
            }
            insert_ref(tx, recorded, layer, None, &self.info)
        });
        renamed?;
        let made = cache.stacked(&self.parent, row?);
        self.is_open = false;
        cache.discard(&self.folder)?;
        Ok(made)
    }

    /// Like [`MutableRef::commit`], for what is only to be looked at: its record and its directory go with the last copy of
    /// the ref.
    ///
    /// # Errors
    /// As there.
    pub fn commit_in_passing(self) -> Result<ImmutableRef> {
        // A context read in place has no record to stand above; nobody will ask this one for its parent.
        let is_in_place = self
            .parent
            .layers()
            .iter()
            .any(|layer| layer.external().is_some());
        let recorded = match is_in_place {
            true => self.cache.scratch(),
            false => self.parent.clone(),
        };
        let made = self.file_above(&recorded)?;
        made.inner.is_passing.store(true, Ordering::Relaxed);
        Ok(made)
    }

    fn seal(&self, upper: &Path, layer: i64) -> Result<()> {
        let folder = self.cache.inner.root.join("layers").join(layer.to_string());
        if folder.exists() {
            // A process that died between this rename and its commit left it.
            self.cache.discard(&folder)?;
        }
        fs::create_dir(&folder).map_err(CacheError::io("create", &folder))?;
        fs::rename(upper, folder.join("fs")).map_err(CacheError::io("rename into place", &folder))
    }
}

impl Drop for MutableRef {
    fn drop(&mut self) {
        if self.is_open {
            // What cannot be moved now is removed when this process is found dead.
            let _ = self.cache.discard(&self.folder);
        }
    }
}

impl Cache {
    /// The layers of all `inputs` on top of each other, the first at the bottom; nothing is copied.
    ///
    /// # Errors
    /// The database's.
    pub fn merge(&self, inputs: &[ImmutableRef], info: &RecordInfo) -> Result<ImmutableRef> {
        let mut merged: Option<ImmutableRef> = None;
        for input in inputs {
            merged = Some(match merged {
                None => input.clone(),
                Some(below) => {
                    let mut top = below;
                    for layer in input.layers() {
                        top = self.restack(&top, layer, info)?;
                    }
                    top
                }
            });
        }
        Ok(merged.unwrap_or_else(|| self.scratch()))
    }

    /// What `upper` has above `lower`, as layers on scratch, if `lower` is the bottom of `upper`; else `None`.
    ///
    /// # Errors
    /// The database's.
    pub fn suffix(
        &self,
        lower: &ImmutableRef,
        upper: &ImmutableRef,
        info: &RecordInfo,
    ) -> Result<Option<ImmutableRef>> {
        let below = lower.layers();
        let is_bottom = below.len() <= upper.layers().len()
            && below.iter().zip(upper.layers()).all(|(a, b)| a.id() == b.id());
        if !is_bottom {
            return Ok(None);
        }
        let mut top = self.scratch();
        for layer in &upper.layers()[below.len()..] {
            top = self.restack(&top, layer, info)?;
        }
        Ok(Some(top))
    }
}
