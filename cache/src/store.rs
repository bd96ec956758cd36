//! The store as one process holds it: where refs are made, found and kept.
//!
//! ```text
//! <root>/builder.db   blobs/sha256/   ingest/   layers/<id>/{fs,tree}   active/   caches/   trash/   locks/
//! ```
//!
//! 1. `open` finds or makes the store, announces this process and clears what dead ones left.
//! 2. `add_*` make refs: by bookkeeping (a tar), by name only (a blob at its origin), in place (a context).
//! 3. `get` and `by_chain` find them again.
//! 4. `lease` keeps what a build uses; `barrier` makes what has been written durable.
use crate::{
    clock,
    content::{ContentStore, Ingest},
    db::{self, Db},
    error::{CacheError, Result},
    gc,
    keys_db::KeysDb,
    layer::{DirOptions, TarLayer, TreeIndex},
    owner::{Lease, Owner},
    refs::{ImmutableRef, Layer, LayerId, LayerState, RecordInfo, RecordKind, RefId, RefInner},
    view::{Contents, View},
};
use async_trait::async_trait;
use oci::{ChainId, Descriptor, DiffId};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};
use tokio::io::AsyncRead;
use tree::Root;

/// Trees of up to this many bytes are kept in the database, larger ones in a file of their own.
const SMALL_TREE_BYTES: usize = 32 << 10;

/// Choices for a store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How many bytes the store may have; `None` for the default: the least of 80 % of the disk and 100 GB.
    pub ceiling: Option<u64>,
    /// The default ceiling is not below this.
    pub least_ceiling: u64,
    /// How directories of layers are made on this machine.
    pub dirs: DirOptions,
}

/// A packed layer that may be known by name only.
#[derive(Clone, Copy, Debug)]
pub struct Blob<'a> {
    /// Type, digest and size.
    pub descriptor: &'a Descriptor,
    /// The digest of its plain tar.
    pub diff_id: DiffId,
    /// Where it may be had, if not here.
    pub origin: Option<&'a Origin>,
    /// When the layer was made, if that is known; else now.
    pub created: Option<SystemTime>,
}

/// Where a blob may be had that is known by its digest only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(pub String);

/// A failure of a [`Remotes`].
pub type RemoteError = Box<dyn std::error::Error + Send + Sync>;

/// How blobs arrive that are known by name only.
#[async_trait]
pub trait Remotes: Send + Sync {
    /// Begins to fetch a blob. The store checks size and digest.
    async fn fetch(
        &self,
        origin: &Origin,
        descriptor: &Descriptor,
    ) -> std::result::Result<Box<dyn AsyncRead + Send + Unpin>, RemoteError>;
}

/// A store. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) db: Arc<Db>,
    pub(crate) content: ContentStore,
    pub(crate) owner: Arc<Owner>,
    pub(crate) options: Options,
    pub(crate) remotes: OnceLock<Arc<dyn Remotes>>,
    layers: Mutex<HashMap<LayerId, Weak<Layer>>>,
    held: Mutex<HashMap<RefId, (usize, Weak<RefInner>)>>,
    next: AtomicU64,
    next_external: AtomicU64,
    pub(crate) counters: Counters,
    /// Names given, changed or taken so far, and how many of them a barrier has made durable.
    pub(crate) named: AtomicU64,
    durable: AtomicU64,
    barriers: Mutex<()>,
}

/// What was done, for tests and summaries.
#[derive(Debug, Default)]
pub struct Counters {
    /// Blobs that came from their origin.
    pub blobs_fetched: AtomicU64,
    /// Their bytes.
    pub fetched_bytes: AtomicU64,
    /// Layers made into directories.
    pub layers_unpacked: AtomicU64,
    /// Layers compressed.
    pub layers_compressed: AtomicU64,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({})", self.inner.root.display())
    }
}

impl Cache {
    /// Opens the store at `root`, made if there is none. About a millisecond.
    ///
    /// # Errors
    /// Those of the file system and the database; [`CacheError::NewerStore`].
    pub fn open(root: &Path, options: Options) -> Result<Cache> {
        for folder in ["layers", "active", "caches", "trash"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(CacheError::io("create", &path))?;
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(root, mode).map_err(CacheError::io("set permissions of", root))?;
        let owner = Arc::new(Owner::announce(root)?);
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let (db, opened) = Db::open(&root.join("builder.db"), boot_id.trim())?;
        let db = Arc::new(db);
        let content = ContentStore::new(root, owner.name(), db.clone())?;
        let inner = Inner {
            root: root.to_owned(),
            db,
            content,
            owner,
            options,
            remotes: OnceLock::new(),
            layers: Mutex::default(),
            held: Mutex::default(),
            next: AtomicU64::new(0),
            next_external: AtomicU64::new(0),
            counters: Counters::default(),
            named: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            barriers: Mutex::default(),
        };
        let cache = Cache {
            inner: Arc::new(inner),
        };
        gc::tidy(&cache, opened.rebooted)?;
        gc::guard(&cache)?;
        Ok(cache)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Its blobs.
    pub fn content(&self) -> &ContentStore {
        &self.inner.content
    }

    /// Its cache keys.
    pub fn keys(&self) -> KeysDb {
        KeysDb::new(self.inner.db.clone())
    }

    /// What was done so far.
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// Says how lazily known blobs arrive; the first to say it wins.
    pub fn set_remotes(&self, remotes: Arc<dyn Remotes>) {
        // A second call has no effect: one process has one worker.
        let _ = self.inner.remotes.set(remotes);
    }

    /// Begins a build's hold on everything it will use.
    pub fn lease(&self) -> Lease {
        self.inner.owner.lease()
    }

    /// When the leases of this process began, the oldest first.
    pub fn leases(&self) -> Vec<std::time::SystemTime> {
        self.inner.owner.leases()
    }

    /// Makes everything written so far survive a power cut: one sync of the file system. Blocks.
    ///
    /// # Errors
    /// Those of syncing; what was written is then still there, but not yet safe.
    pub fn barrier(&self) -> Result<()> {
        // One after the other: a name is durable only when the sync that began after it has ended well.
        let _turn = self.inner.barriers.lock();
        let named = self.inner.named.load(Ordering::Acquire);
        let ended = self.inner.db.next_epoch()?;
        let folder = fs::File::open(&self.inner.root).map_err(CacheError::io("open", &self.inner.root))?;
        rustix::fs::syncfs(&folder).map_err(|e| CacheError::io("sync", &self.inner.root)(e.into()))?;
        self.inner.db.mark_durable(ended)?;
        self.inner.durable.fetch_max(named, Ordering::AcqRel);
        Ok(())
    }

    /// Whether an image was named, renamed or removed since the last barrier: what somebody was told is not yet safe.
    #[must_use]
    pub fn is_renamed(&self) -> bool {
        self.inner.named.load(Ordering::Acquire) > self.inner.durable.load(Ordering::Acquire)
    }

    /// The ref of no layers.
    pub fn scratch(&self) -> ImmutableRef {
        self.held(None, None, Vec::new(), RecordInfo::default(), 0)
    }

    /// A ref by its name; `None` where it is gone. Marks it used.
    ///
    /// # Errors
    /// The database's.
    pub fn get(&self, id: RefId) -> Result<Option<ImmutableRef>> {
        if let Some(found) = self.find_held(id) {
            return Ok(Some(found));
        }
        let now = clock::now();
        let rows = self.inner.db.write("load ref", |tx| {
            let mut rows = Vec::new();
            let mut next = Some(id.0);
            while let Some(current) = next {
                let mut query = tx.prepare_cached(
                    "SELECT r.id, r.parent, r.layer, r.kind, r.description, r.created, l.diff_id, l.has_dir, l.created
                     FROM refs r JOIN layers l ON l.id = r.layer WHERE r.id = ?1",
                )?;
                let Some(row) = query.query_row([current], RefRow::read).optional()? else {
                    return Ok(None);
                };
                next = row.parent;
                rows.push(row);
            }
            let mut update = tx.prepare_cached("UPDATE refs SET used = max(used, ?2), uses = uses + ?3 WHERE id = ?1")?;
            for (depth, row) in rows.iter().enumerate() {
                update.execute(params![row.id, now, i64::from(depth == 0)])?;
            }
            Ok(Some(rows))
        })?;
        let Some(rows) = rows else { return Ok(None) };
        let mut found = self.scratch();
        for row in rows.into_iter().rev() {
            found = self.stacked(&found, row);
        }
        Ok(Some(found))
    }

    /// The ref with these layers, if it is here.
    ///
    /// # Errors
    /// The database's.
    pub fn by_chain(&self, chain: ChainId) -> Result<Option<ImmutableRef>> {
        let id = self.inner.db.read("look for chain", |c| {
            let mut query =
                c.prepare_cached("SELECT id FROM refs WHERE chain_id = ?1 ORDER BY id DESC LIMIT 1")?;
            query
                .query_row([chain.digest().as_bytes()], |row| row.get(0))
                .optional()
        })?;
        id.map_or(Ok(None), |id| self.get(RefId(id)))
    }

    /// A layer written as a tar, on top of `parent`: bookkeeping only. `tar` holds what the writer of `layer` wrote.
    ///
    /// # Errors
    /// Those of renaming and of the database.
    pub fn add_tar_layer(
        &self,
        parent: &ImmutableRef,
        tar: Ingest,
        layer: TarLayer,
        info: RecordInfo,
    ) -> Result<ImmutableRef> {
        let placed = tar.place(layer.diff_id.digest())?;
        let tree = layer.tree.encode();
        let chain = chain_above(parent, Some(layer.diff_id));
        let small = (tree.len() <= SMALL_TREE_BYTES).then_some(&tree);
        let row = self.inner.db.write("add layer", |tx| {
            placed.record(tx)?;
            let layer_id = insert_layer(tx, Some(layer.diff_id), false, small)?;
            insert_ref(tx, parent, layer_id, chain, &info)
        })?;
        if small.is_none() {
            self.write_tree(LayerId(row.layer), &tree)?;
        }
        let made = self.stacked(parent, row);
        let path = self.inner.content.path(&layer.diff_id.digest());
        let top = made.layers().last().expect("it was just stacked");
        top.state.lock().readable = Some((Arc::new(layer.tree), Arc::new(Contents::TarAt(path))));
        Ok(made)
    }

    /// A layer known by name only, on top of `parent`; nothing is fetched. The same chain gives the same ref.
    ///
    /// # Errors
    /// The database's.
    pub fn add_blob_layer(
        &self,
        parent: &ImmutableRef,
        blob: &Descriptor,
        diff_id: DiffId,
        origin: Option<&Origin>,
        info: RecordInfo,
    ) -> Result<ImmutableRef> {
        let blob = Blob {
            descriptor: blob,
            diff_id,
            origin,
            created: None,
        };
        self.add_blob(parent, blob, info)
    }

    /// As [`Cache::add_blob_layer`], of a layer that may have been made at another time.
    ///
    /// # Errors
    /// The database's.
    pub fn add_blob(
        &self,
        parent: &ImmutableRef,
        Blob {
            descriptor: blob,
            diff_id,
            origin,
            created,
        }: Blob<'_>,
        info: RecordInfo,
    ) -> Result<ImmutableRef> {
        let chain = chain_above(parent, Some(diff_id));
        let found = match chain {
            Some(chain) => self.by_chain(chain)?,
            None => None,
        };
        let known = found
            .as_ref()
            .map(|found| found.layers().last().expect("a chain has layers").id());
        let row = self.inner.db.write("add layer", |tx| {
            let layer_id = match known {
                Some(known) => known.0,
                None => {
                    let made = insert_layer(tx, Some(diff_id), false, None)?;
                    if let Some(created) = created {
                        tx.prepare_cached("UPDATE layers SET created = ?2 WHERE id = ?1")?
                            .execute(params![made, clock::stored(created)])?;
                    }
                    made
                }
            };
            tx.prepare_cached(
                "INSERT INTO layer_blobs VALUES (?1, ?2, ?3, ?4, 'origin', ?5)
                 ON CONFLICT (layer, digest) DO UPDATE SET origin = coalesce(excluded.origin, origin)",
            )?
            .execute(params![
                layer_id,
                blob.digest.as_bytes(),
                blob.media_type,
                blob.size.cast_signed(),
                origin.map(|origin| &origin.0)
            ])?;
            if known.is_some() {
                Ok(None)
            } else {
                insert_ref(tx, parent, layer_id, chain, &info).map(Some)
            }
        })?;
        match (row, found) {
            (Some(row), _) => Ok(self.stacked(parent, row)),
            (None, Some(found)) => Ok(found),
            (None, None) => unreachable!("a known layer was found"),
        }
    }

    /// A directory of the user, read in place: `tree` says which of its entries count. Never kept. `hold` is held as long
    /// as the directory may be read.
    ///
    /// # Errors
    /// Those of opening the directory.
    pub fn add_external(
        &self,
        root: &Path,
        tree: TreeIndex,
        info: RecordInfo,
        hold: Option<Arc<dyn std::any::Any + Send + Sync>>,
    ) -> Result<ImmutableRef> {
        let mut opened = Root::open(root).map_err(|e| CacheError::Layer(e.into()))?;
        if root.starts_with(self.received_folder()) {
            opened = opened.kept();
        }
        let number = self.inner.next_external.fetch_add(1, Ordering::Relaxed);
        let id = -1 - i64::try_from(number).expect("fewer contexts than that");
        let state = LayerState {
            readable: Some((Arc::new(tree), Arc::new(Contents::Dir(opened)))),
            external: Some(root.to_owned()),
            _hold: hold,
            ..LayerState::default()
        };
        let layer = Layer {
            id: LayerId(id),
            created: clock::now(),
            state: Mutex::new(state),
            making: <_>::default(),
        };
        let created = layer.created;
        Ok(self.held(
            Some(RefId(id)),
            Some(self.scratch()),
            vec![Arc::new(layer)],
            info,
            created,
        ))
    }

    /// Where a daemon keeps what clients sent: files in it are never written again once a build reads them.
    #[must_use]
    pub fn received_folder(&self) -> PathBuf {
        self.inner.root.join("received")
    }

    /// `layers` of other refs on top of `parent`, without copying anything.
    pub(crate) fn restack(
        &self,
        parent: &ImmutableRef,
        layer: &Arc<Layer>,
        info: &RecordInfo,
    ) -> Result<ImmutableRef> {
        if layer.id.0 < 0 {
            let created = layer.created;
            let layers = parent.layers().iter().cloned().chain([layer.clone()]).collect();
            let number = self.inner.next_external.fetch_add(1, Ordering::Relaxed);
            let id = RefId(-1 - i64::try_from(number).expect("fewer contexts than that"));
            return Ok(self.held(Some(id), Some(parent.clone()), layers, info.clone(), created));
        }
        let chain = chain_above(parent, layer.diff_id());
        let row = self.inner.db.write("stack layer", |tx| {
            let parent_id = parent.id().map(|id| id.0);
            let mut query =
                tx.prepare_cached("SELECT id FROM refs WHERE parent IS ?1 AND layer = ?2 LIMIT 1")?;
            let found: Option<i64> = query
                .query_row(params![parent_id, layer.id.0], |row| row.get(0))
                .optional()?;
            match found {
                Some(id) => Ok(Err(RefId(id))),
                None => insert_ref(tx, parent, layer.id.0, chain, info).map(Ok),
            }
        })?;
        match row {
            Ok(row) => Ok(self.stacked(parent, row)),
            Err(id) => self.get(id)?.ok_or_else(|| CacheError::Missing {
                what: format!("ref {id}"),
            }),
        }
    }

    /// Files the tree of a layer.
    pub(crate) fn keep_tree(&self, layer: LayerId, tree: &TreeIndex) -> Result<()> {
        if layer.0 < 0 {
            return Ok(());
        }
        let bytes = tree.encode();
        if bytes.len() > SMALL_TREE_BYTES {
            return self.write_tree(layer, &bytes);
        }
        self.inner.db.write("keep tree", |tx| {
            tx.prepare_cached("UPDATE layers SET tree = ?2, has_tree_file = 0 WHERE id = ?1")?
                .execute(params![layer.0, bytes])?;
            Ok(())
        })
    }

    pub(crate) fn write_tree(&self, layer: LayerId, bytes: &[u8]) -> Result<()> {
        let folder = self.layer_folder(layer);
        fs::create_dir_all(&folder).map_err(CacheError::io("create", &folder))?;
        let aside = folder.join(format!("tree.{}", self.inner.owner.name()));
        let path = folder.join("tree");
        fs::write(&aside, bytes).map_err(CacheError::io("write", &aside))?;
        fs::rename(&aside, &path).map_err(CacheError::io("rename into place", &path))?;
        self.inner.db.write("keep tree", |tx| {
            let epoch = db::epoch(tx)?;
            tx.prepare_cached("UPDATE layers SET tree = NULL, has_tree_file = 1, epoch = ?2 WHERE id = ?1")?
                .execute(params![layer.0, epoch])?;
            Ok(())
        })
    }

    pub(crate) fn layer_folder(&self, layer: LayerId) -> PathBuf {
        self.inner.root.join("layers").join(layer.0.to_string())
    }

    /// A path below `folder` that nobody else uses.
    pub(crate) fn unique(&self, folder: &str) -> PathBuf {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.inner
            .root
            .join(folder)
            .join(format!("{}-{number}", self.inner.owner.name()))
    }

    /// The ref of `row` on top of `parent`, kept in memory once.
    pub(crate) fn stacked(&self, parent: &ImmutableRef, row: RefRow) -> ImmutableRef {
        if let Some(found) = self.find_held(RefId(row.id)) {
            return found;
        }
        let layer = self.layer(&row);
        let layers = parent.layers().iter().cloned().chain([layer]).collect();
        let info = RecordInfo {
            kind: RecordKind::parse(&row.kind),
            description: row.description,
        };
        self.held(
            Some(RefId(row.id)),
            Some(parent.clone()),
            layers,
            info,
            row.created,
        )
    }

    fn layer(&self, row: &RefRow) -> Arc<Layer> {
        let mut layers = self.inner.layers.lock();
        let id = LayerId(row.layer);
        if let Some(found) = layers.get(&id).and_then(Weak::upgrade) {
            return found;
        }
        let state = LayerState {
            diff_id: row.diff_id,
            has_dir: row.has_dir,
            ..LayerState::default()
        };
        let layer = Arc::new(Layer {
            id,
            created: row.layer_created,
            state: Mutex::new(state),
            making: <_>::default(),
        });
        if layers.len() > 1024 && layers.len().is_power_of_two() {
            layers.retain(|_, layer| layer.strong_count() > 0);
        }
        layers.insert(id, Arc::downgrade(&layer));
        layer
    }

    fn held(
        &self,
        id: Option<RefId>,
        parent: Option<ImmutableRef>,
        layers: Vec<Arc<Layer>>,
        info: RecordInfo,
        created: i64,
    ) -> ImmutableRef {
        let view = Mutex::new(layers.is_empty().then(|| View::new(Vec::new())));
        let inner = Arc::new(RefInner {
            cache: self.clone(),
            id,
            parent,
            layers,
            info,
            created,
            view,
            is_passing: AtomicBool::new(false),
        });
        if let Some(id) = id {
            let mut held = self.inner.held.lock();
            let slot = held.entry(id).or_insert_with(|| (0, Weak::new()));
            slot.0 += 1;
            slot.1 = Arc::downgrade(&inner);
        }
        ImmutableRef { inner }
    }

    fn find_held(&self, id: RefId) -> Option<ImmutableRef> {
        let inner = self.inner.held.lock().get(&id)?.1.upgrade()?;
        Some(ImmutableRef { inner })
    }

    /// Called when the last copy of a held ref is dropped.
    pub(crate) fn let_go(&self, id: RefId) {
        let mut held = self.inner.held.lock();
        if let Some(slot) = held.get_mut(&id) {
            slot.0 -= 1;
            if slot.0 == 0 {
                held.remove(&id);
            }
        }
    }

    /// The refs this process holds.
    pub(crate) fn held_ids(&self) -> Vec<RefId> {
        self.inner.held.lock().keys().copied().collect()
    }
}

/// A ref with its layer, as the database has them.
pub(crate) struct RefRow {
    pub(crate) id: i64,
    pub(crate) parent: Option<i64>,
    pub(crate) layer: i64,
    kind: String,
    description: String,
    created: i64,
    diff_id: Option<DiffId>,
    has_dir: bool,
    layer_created: i64,
}

impl RefRow {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<RefRow> {
        let diff_id: Option<[u8; 32]> = row.get(6)?;
        Ok(RefRow {
            id: row.get(0)?,
            parent: row.get(1)?,
            layer: row.get(2)?,
            kind: row.get(3)?,
            description: row.get(4)?,
            created: row.get(5)?,
            diff_id: diff_id.map(|bytes| DiffId::new(bytes.into())),
            has_dir: row.get(7)?,
            layer_created: row.get(8)?,
        })
    }
}

/// The chain of `parent` and one layer more, if it can be known.
pub(crate) fn chain_above(parent: &ImmutableRef, layer: Option<DiffId>) -> Option<ChainId> {
    let below = parent.chain_id();
    if below.is_none() && !parent.is_scratch() {
        return None;
    }
    Some(ChainId::push(below, layer?))
}

pub(crate) fn insert_layer(
    tx: &Connection,
    diff_id: Option<DiffId>,
    has_dir: bool,
    tree: Option<&Vec<u8>>,
) -> rusqlite::Result<i64> {
    let epoch = db::epoch(tx)?;
    let digest = diff_id.map(|id| *id.digest().as_bytes());
    tx.prepare_cached(
        "INSERT INTO layers (diff_id, has_dir, tree, created, epoch) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![digest, has_dir, tree, clock::now(), epoch])?;
    Ok(tx.last_insert_rowid())
}

pub(crate) fn insert_ref(
    tx: &Connection,
    parent: &ImmutableRef,
    layer: i64,
    chain: Option<ChainId>,
    info: &RecordInfo,
) -> rusqlite::Result<RefRow> {
    let (now, epoch) = (clock::now(), db::epoch(tx)?);
    let chain = chain.map(|chain| *chain.digest().as_bytes());
    let parent_id = parent.id().map(|id| id.0);
    tx.prepare_cached(
        "INSERT INTO refs (parent, layer, chain_id, kind, description, created, used, epoch)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7)",
    )?
    .execute(params![
        parent_id,
        layer,
        chain,
        info.kind.as_str(),
        info.description,
        now,
        epoch
    ])?;
    let id = tx.last_insert_rowid();
    tx.prepare_cached(
        "SELECT r.id, r.parent, r.layer, r.kind, r.description, r.created, l.diff_id, l.has_dir, l.created
         FROM refs r JOIN layers l ON l.id = r.layer WHERE r.id = ?1",
    )?
    .query_row([id], RefRow::read)
}
