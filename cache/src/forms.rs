//! The forms of layers, each made from another when something needs it, at most once.
//!
//! ```text
//! origin ─ fetch ─▶ packed blob ─┬─ index ──▶ plain tar + tree ─ materialise ─▶ directory
//!                                └─ unpack ─────────────────────────────────▶ directory + tree
//! step's upper directory ─ scan ─▶ tree
//! ```
//!
//! A fetch is one pass: download, digest, inflate, diff id, index or unpack, all as one stream. What is already being
//! made is waited for, in this process by the layer's own lock and across processes by a locked file.
use crate::{
    Cache, db,
    error::{CacheError, Result},
    layer::{self, Limits, Place, TarLayerWriter, TreeIndex},
    owner::lock_file,
    refs::{ImmutableRef, Layer, RecordInfo},
    store::Origin,
    view::{Contents, View, ViewLayer},
};
use bytes::Bytes;
use futures_util::future::try_join_all;
use oci::{Descriptor, DiffId, Digest};
use rusqlite::{OptionalExtension, params};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};
use tokio::{io::AsyncReadExt, sync::mpsc};
use tree::{Kind, Root};

/// How many bytes a download reads at once.
const FETCH_BYTES: usize = 256 << 10;
/// How many of those may wait for the thread that unpacks.
const FETCH_QUEUE: usize = 16;

/// From how many bytes of contents on a layer's digests are worth a write: below, hashing again is as quick.
const DEAR_BYTES: u64 = 1 << 20;

/// Told how far a transfer has come.
pub trait Meter: Send + Sync {
    /// `current` of `total` bytes of the blob `digest`; the first call begins it, `done` ends it.
    fn transferred(&self, digest: &Digest, current: u64, total: u64, done: bool);
    /// The blob `digest` is being unpacked, or is unpacked now.
    fn unpacked(&self, digest: &Digest, done: bool);
}

/// A meter nobody reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMeter;

impl Meter for NoMeter {
    fn transferred(&self, _: &Digest, _: u64, _: u64, _: bool) {}
    fn unpacked(&self, _: &Digest, _: bool) {}
}

/// What a fetch is to make of a packed blob beside keeping it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Blob,
    Tree,
    Dir,
}

impl ImmutableRef {
    /// All its layers, merged, without unpacking more than reading needs.
    ///
    /// # Errors
    /// Those of fetching and reading layers.
    pub async fn view(&self, meter: &Arc<dyn Meter>) -> Result<View> {
        if let Some(view) = self.inner.view.lock().clone() {
            return Ok(view);
        }
        let layers = self
            .layers()
            .iter()
            .map(|layer| self.cache().readable(layer, meter));
        let view = View::new(try_join_all(layers).await?);
        *self.inner.view.lock() = Some(view.clone());
        Ok(view)
    }

    /// The view, if every layer can be read without fetching or unpacking anything.
    pub fn ready_view(&self) -> Option<View> {
        if let Some(view) = self.inner.view.lock().clone() {
            return Some(view);
        }
        let layer = |layer: &Arc<Layer>| {
            let (tree, contents) = layer.state.lock().readable.clone()?;
            Some(ViewLayer { tree, contents })
        };
        let view = View::new(self.layers().iter().map(layer).collect::<Option<_>>()?);
        *self.inner.view.lock() = Some(view.clone());
        Some(view)
    }

    /// Keeps the digests of files that were worked out since a layer's tree was written, where that was dear.
    ///
    /// # Errors
    /// Those of writing.
    pub fn keep_digests(&self) -> Result<()> {
        for layer in self.layers() {
            let readable = layer.state.lock().readable.clone();
            let Some((tree, _)) = readable else { continue };
            if layer.id().0 >= 0 && tree.has_new_digests() && tree.content_bytes() >= DEAR_BYTES {
                self.cache().write_tree(layer.id(), &tree.encode())?;
            }
        }
        Ok(())
    }

    /// The directories of its layers, the lowest first, each made where it is not there yet.
    ///
    /// # Errors
    /// Those of fetching and unpacking.
    pub async fn directories(&self, meter: &Arc<dyn Meter>) -> Result<Vec<PathBuf>> {
        // Unpacking goes bottom up; several downloads are begun at once all the same.
        let mut absent = Vec::new();
        for layer in self.layers() {
            if let Some(blob) = self.cache().absent(layer)? {
                absent.push((layer, blob));
            }
        }
        if absent.len() > 1 {
            try_join_all(
                absent
                    .iter()
                    .map(|(layer, blob)| self.cache().ensure_blob(layer, blob, meter)),
            )
            .await?;
        }
        let made = (0..self.layers().len()).map(|at| self.directory(at, meter));
        try_join_all(made).await
    }

    async fn directory(&self, at: usize, meter: &Arc<dyn Meter>) -> Result<PathBuf> {
        let (cache, layer) = (self.cache(), &self.layers()[at]);
        if layer.state.lock().has_dir {
            return Ok(cache.directory_path(layer));
        }
        let _making = layer.making.lock().await;
        let Some(_turn) = cache.turn(layer).await? else {
            return Ok(cache.directory_path(layer));
        };
        if layer.state.lock().has_dir {
            return Ok(cache.directory_path(layer));
        }
        let readable = layer.state.lock().readable.clone();
        let readable = match readable {
            Some(readable) => Some(readable),
            None => cache.load_tree(layer).await?,
        };
        // Directories an archive only implies take their attributes from below.
        let below = Box::pin(self.ancestor(at).view(meter)).await?;
        if let Some((tree, contents)) = readable {
            let (again, options) = (cache.clone(), cache.inner.options.dirs);
            let aside = blocking("unpack layer", move || {
                let aside = Aside::create(&again)?;
                let root = Root::open(&aside.path).map_err(|e| CacheError::Layer(e.into()))?;
                layer::materialise(&tree, &contents, &root, &below, options)?;
                Ok(aside)
            })
            .await?;
            return cache.settle_dir(layer, aside, None);
        }
        let (diff_id, aside, tree) = cache
            .take_apart(layer, cache.packed(layer)?, Want::Dir, Some(below), meter)
            .await?;
        cache.check_diff_id(layer, diff_id)?;
        let aside = aside.expect("a directory was asked for");
        cache.settle_dir(layer, aside, tree)
    }

    /// The same contents as a ref that is kept: a context read in place becomes a layer of its own.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub async fn persist(&self, meter: &Arc<dyn Meter>) -> Result<ImmutableRef> {
        if self.layers().iter().all(|layer| layer.external().is_none()) {
            return Ok(self.clone());
        }
        let (view, cache) = (self.view(meter).await?, self.cache().clone());
        let info = RecordInfo {
            kind: self.info().kind,
            description: self.info().description.clone(),
        };
        blocking("copy context", move || {
            let mut writer = TarLayerWriter::new(cache.content().ingest()?);
            if let Some(top) = view.root() {
                view.walk(&top, &mut |node, entry| match entry.kind {
                    Kind::File => writer.add(&entry, view.open(node)?),
                    _ => writer.add(&entry, io::empty()),
                })
                .map_err(CacheError::Layer)?;
            }
            let (ingest, made) = writer.finish()?;
            cache.add_tar_layer(&cache.scratch(), ingest, made, info)
        })
        .await
    }
}

impl Cache {
    /// A layer's entries and contents.
    pub(crate) async fn readable(&self, layer: &Arc<Layer>, meter: &Arc<dyn Meter>) -> Result<ViewLayer> {
        let as_view = |(tree, contents)| ViewLayer { tree, contents };
        if let Some(found) = layer.state.lock().readable.clone() {
            return Ok(as_view(found));
        }
        let _making = layer.making.lock().await;
        if let Some(found) = layer.state.lock().readable.clone() {
            return Ok(as_view(found));
        }
        if let Some(found) = self.load_tree(layer).await? {
            layer.state.lock().readable = Some(found.clone());
            return Ok(as_view(found));
        }
        let turn = self.turn(layer).await?;
        if let Some(found) = self.load_tree(layer).await? {
            layer.state.lock().readable = Some(found.clone());
            return Ok(as_view(found));
        }
        let (diff_id, _, tree) = self
            .take_apart(layer, self.packed(layer)?, Want::Tree, None, meter)
            .await?;
        self.check_diff_id(layer, diff_id)?;
        let tree = tree.expect("a tree was asked for");
        self.keep_tree(layer.id, &tree)?;
        drop(turn);
        let contents = Contents::TarAt(self.content().path(&diff_id.digest()));
        let found = (Arc::new(tree), Arc::new(contents));
        layer.state.lock().readable = Some(found.clone());
        Ok(as_view(found))
    }

    /// A packed variant of a layer that is here, fetched where it is only known by name.
    ///
    /// # Errors
    /// Those of fetching.
    pub async fn ensure_blob(
        &self,
        layer: &Arc<Layer>,
        blob: &Descriptor,
        meter: &Arc<dyn Meter>,
    ) -> Result<()> {
        if self.content().touch(&blob.digest)? {
            return Ok(());
        }
        let _making = layer.making.lock().await;
        let _turn = self.turn(layer).await?;
        if self.content().touch(&blob.digest)? {
            return Ok(());
        }
        let variant = self.variant(layer, Some(&blob.digest))?;
        self.take_apart(layer, variant, Want::Blob, None, meter)
            .await
            .map(drop)
    }

    /// Where the directory of a layer is, or would be.
    pub(crate) fn directory_path(&self, layer: &Layer) -> PathBuf {
        match &layer.state.lock().own_dir {
            Some(own) => own.0.clone(),
            None => self.layer_folder(layer.id).join("fs"),
        }
    }

    /// The blob a layer has to be fetched as, if nothing of it is here.
    fn absent(&self, layer: &Layer) -> Result<Option<Descriptor>> {
        {
            let state = layer.state.lock();
            if state.has_dir || state.readable.is_some() || layer.id.0 < 0 {
                return Ok(None);
            }
        }
        let is_here = self.inner.db.read("look for layer", |c| {
            c.prepare_cached(
                "SELECT has_dir OR ifnull(diff_id IN (SELECT digest FROM blobs), 0)
                   OR EXISTS (SELECT 1 FROM layer_blobs b JOIN blobs USING (digest) WHERE b.layer = layers.id)
                 FROM layers WHERE id = ?1",
            )?
            .query_row([layer.id.0], |row| row.get::<_, bool>(0))
        })?;
        if is_here {
            Ok(None)
        } else {
            Ok(Some(self.packed(layer)?.0))
        }
    }

    /// Waits for other processes that make a form of this layer; `None` where its directory is there by then.
    async fn turn(&self, layer: &Arc<Layer>) -> Result<Option<File>> {
        if layer.id.0 < 0 {
            let path = self.unique("locks");
            let file = File::create(&path).map_err(CacheError::io("create", &path))?;
            let _ = fs::remove_file(&path);
            return Ok(Some(file));
        }
        let path = self
            .inner
            .root
            .join("locks")
            .join(format!("layer-{}", layer.id.0));
        let lock = blocking("wait for another process", move || lock_file(&path)).await?;
        let has_dir = self.inner.db.read("look for layer", |c| {
            c.prepare_cached("SELECT has_dir FROM layers WHERE id = ?1")?
                .query_row([layer.id.0], |row| row.get::<_, bool>(0))
                .optional()
        })?;
        if has_dir == Some(true) {
            layer.state.lock().has_dir = true;
            return Ok(None);
        }
        Ok(Some(lock))
    }

    /// The tree and contents of a layer from what is on disk; `None` where only packed blobs are known.
    async fn load_tree(&self, layer: &Arc<Layer>) -> Result<Option<(Arc<TreeIndex>, Arc<Contents>)>> {
        let row = self.inner.db.read("load tree", |c| {
            c.prepare_cached(
                "SELECT tree, has_tree_file, has_dir, diff_id,
                   diff_id IN (SELECT digest FROM blobs) FROM layers WHERE id = ?1",
            )?
            .query_row([layer.id.0], |row| {
                Ok((
                    row.get::<_, Option<Vec<u8>>>(0)?,
                    row.get::<_, bool>(1)?,
                    row.get::<_, bool>(2)?,
                    row.get::<_, Option<[u8; 32]>>(3)?,
                    row.get::<_, Option<bool>>(4)?.unwrap_or(false),
                ))
            })
            .optional()
        })?;
        let Some((small, has_file, has_dir, diff_id, has_tar)) = row else {
            return Err(CacheError::Missing {
                what: format!("layer {}", layer.id.0),
            });
        };
        layer.state.lock().has_dir |= has_dir;
        if !has_dir && !has_tar {
            return Ok(None);
        }
        let (cache, again) = (self.clone(), layer.clone());
        blocking("read tree", move || {
            let bytes = match (small, has_file) {
                (Some(bytes), _) => Some(bytes),
                (None, true) => {
                    let path = cache.layer_folder(again.id).join("tree");
                    Some(fs::read(&path).map_err(CacheError::io("read", &path))?)
                }
                (None, false) => None,
            };
            let tree = bytes.map(|bytes| TreeIndex::decode(&bytes)).transpose()?;
            // A tar may have come later than the directory, whose tree says where contents lie: then the directory is
            // read, or, where it is gone, the tar is looked through.
            let is_of_dir = |tree: &TreeIndex| tree.iter().any(|record| record.place() == Place::Dir);
            let lies_in_dir = tree.as_ref().is_some_and(is_of_dir);
            if let (true, Some(diff_id)) = (has_tar && !(lies_in_dir && has_dir), diff_id) {
                let digest = Digest::from(diff_id);
                let tree = match tree.filter(|_| !lies_in_dir) {
                    Some(tree) => tree,
                    // A tar without its tree: one fetched plain.
                    None => {
                        layer::index_stream(cache.content().open(&digest)?, io::sink(), Limits::default())?
                            .tree
                    }
                };
                return Ok(Some((
                    Arc::new(tree),
                    Arc::new(Contents::TarAt(cache.content().path(&digest))),
                )));
            }
            let root = Root::open(&cache.directory_path(&again)).map_err(|e| CacheError::Layer(e.into()))?;
            let tree = match tree {
                Some(tree) => layer::placed_in_dir(&tree),
                None => {
                    let tree = layer::scan_upper(&root, cache.inner.options.dirs)?;
                    cache.keep_tree(again.id, &tree)?;
                    tree
                }
            };
            Ok(Some((Arc::new(tree), Arc::new(Contents::Dir(root)))))
        })
        .await
    }

    /// Fetches a packed blob where needed, and makes of it what is wanted.
    async fn take_apart(
        &self,
        layer: &Arc<Layer>,
        (blob, origin): (Descriptor, Option<Origin>),
        want: Want,
        below: Option<View>,
        meter: &Arc<dyn Meter>,
    ) -> Result<(DiffId, Option<Aside>, Option<TreeIndex>)> {
        let expected = layer.diff_id();
        if self.content().touch(&blob.digest)? {
            let file = self.content().open(&blob.digest)?;
            let (cache, meter) = (self.clone(), meter.clone());
            return blocking("unpack layer", move || {
                meter.unpacked(&blob.digest, false);
                let made = cache.make(file, want, below)?;
                meter.unpacked(&blob.digest, true);
                Ok(made)
            })
            .await;
        }
        let lacking = || CacheError::Missing {
            what: format!("blob {} and a place to fetch it from", blob.digest),
        };
        let origin = origin.ok_or_else(lacking)?;
        let remotes = self.inner.remotes.get().ok_or_else(lacking)?;
        let failed = |source| CacheError::Fetch {
            digest: blob.digest,
            origin: origin.0.clone(),
            source,
        };
        let mut stream = remotes.fetch(&origin, &blob).await.map_err(failed)?;
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(FETCH_QUEUE);
        let (cache, expected_blob) = (self.clone(), blob.clone());
        let work = tokio::task::spawn_blocking(move || {
            let mut reader = Kept {
                from: receiver,
                chunk: Bytes::new(),
                into: oci::DigestWriter::new(cache.content().ingest()?),
                limit: expected_blob.size,
            };
            let made = match want {
                Want::Blob => (expected.unwrap_or(DiffId::new(expected_blob.digest)), None, None),
                Want::Tree | Want::Dir => cache.make(&mut reader, want, below)?,
            };
            // What follows the archive's end belongs to the blob all the same.
            io::copy(&mut reader, &mut io::sink()).map_err(|cause| reader.into.get_mut().failed(cause))?;
            let (ingest, found, bytes) = reader.into.finish();
            if found != expected_blob.digest || bytes != expected_blob.size {
                let what = format!("blob of {bytes} bytes, announced with {}", expected_blob.size);
                return Err(CacheError::DigestMismatch {
                    what,
                    expected: expected_blob.digest,
                    found,
                });
            }
            ingest.commit(found)?;
            Ok(made)
        });
        let mut current = 0;
        meter.transferred(&blob.digest, 0, blob.size, false);
        let mut buffer = bytes::BytesMut::with_capacity(FETCH_BYTES);
        let fetched = loop {
            buffer.reserve(FETCH_BYTES);
            match stream.read_buf(&mut buffer).await {
                Ok(0) => break Ok(()),
                Ok(count) => {
                    current += count as u64;
                    meter.transferred(&blob.digest, current, blob.size, false);
                    if sender.send(Ok(buffer.split().freeze())).await.is_err() {
                        break Ok(());
                    }
                }
                Err(cause) => {
                    // The reader may have failed already; then its own error is told below.
                    let _ = sender
                        .send(Err(io::Error::new(cause.kind(), "the transfer broke off")))
                        .await;
                    break Err(failed(Box::new(cause)));
                }
            }
        };
        drop(sender);
        let made = work
            .await
            .map_err(|_| CacheError::Canceled { what: "unpack layer" })?;
        fetched?;
        let made = made?;
        meter.transferred(&blob.digest, current, blob.size, true);
        self.inner.counters.blobs_fetched.fetch_add(1, Ordering::Relaxed);
        self.inner
            .counters
            .fetched_bytes
            .fetch_add(current, Ordering::Relaxed);
        Ok(made)
    }

    /// Reads a packed layer into a tree (with its plain tar) or a directory.
    fn make(
        &self,
        packed: impl Read + Send,
        want: Want,
        below: Option<View>,
    ) -> Result<(DiffId, Option<Aside>, Option<TreeIndex>)> {
        let plain = layer::decompress(packed)?;
        let limits = Limits::default();
        if want == Want::Dir {
            let aside = Aside::create(self)?;
            let root = Root::open(&aside.path).map_err(|e| CacheError::Layer(e.into()))?;
            let below = below.unwrap_or_default();
            let applied = layer::unpack_stream(plain, &root, &below, self.inner.options.dirs, limits)?;
            return Ok((applied.diff_id, Some(aside), Some(applied.tree)));
        }
        let mut ingest = self.content().ingest()?;
        let applied = layer::index_stream(plain, &mut ingest, limits)?;
        ingest.commit(applied.diff_id.digest())?;
        Ok((applied.diff_id, None, Some(applied.tree)))
    }

    fn check_diff_id(&self, layer: &Layer, found: DiffId) -> Result<()> {
        match layer.diff_id() {
            Some(expected) if expected != found => Err(CacheError::DigestMismatch {
                what: "the unpacked layer is not the one its image config names".to_owned(),
                expected: expected.digest(),
                found: found.digest(),
            }),
            _ => Ok(()),
        }
    }

    /// Moves a finished directory into place.
    fn settle_dir(&self, layer: &Arc<Layer>, aside: Aside, tree: Option<TreeIndex>) -> Result<PathBuf> {
        if layer.id.0 < 0 {
            // Beside the layers that are kept: nothing of a context outlives its process.
            let mut state = layer.state.lock();
            let path = aside.keep();
            state.own_dir = Some(crate::refs::OwnDir(path.clone()));
            state.has_dir = true;
            return Ok(path);
        }
        let path = self.directory_path(layer);
        {
            let folder = self.layer_folder(layer.id);
            fs::create_dir_all(&folder).map_err(CacheError::io("create", &folder))?;
            if path.exists() {
                self.discard(&path)?;
            }
            fs::rename(&aside.path, &path).map_err(CacheError::io("rename into place", &path))?;
            aside.keep();
            self.inner.db.write("keep directory", |tx| {
                let epoch = db::epoch(tx)?;
                tx.prepare_cached("UPDATE layers SET has_dir = 1, epoch = ?2 WHERE id = ?1")?
                    .execute(params![layer.id.0, epoch])
            })?;
            if let Some(tree) = tree {
                let tree = layer::placed_in_dir(&tree);
                self.keep_tree(layer.id, &tree)?;
                let root = Root::open(&path).map_err(|e| CacheError::Layer(e.into()))?;
                let mut state = layer.state.lock();
                if state.readable.is_none() {
                    state.readable = Some((Arc::new(tree), Arc::new(Contents::Dir(root))));
                }
            }
            layer.state.lock().has_dir = true;
        }
        self.inner
            .counters
            .layers_unpacked
            .fetch_add(1, Ordering::Relaxed);
        Ok(path)
    }

    /// The packed variant to read a layer from: one that is here rather than one to be fetched.
    pub(crate) fn packed(&self, layer: &Layer) -> Result<(Descriptor, Option<Origin>)> {
        self.variant(layer, None)
    }

    /// The packed variant of that digest, or the handiest.
    fn variant(&self, layer: &Layer, digest: Option<&Digest>) -> Result<(Descriptor, Option<Origin>)> {
        let found = self.inner.db.read("look for packed layer", |c| {
            c.prepare_cached(
                "SELECT digest, media_type, size, origin FROM layer_blobs
                 WHERE layer = ?1 AND (?2 IS NULL OR digest = ?2)
                 ORDER BY digest IN (SELECT digest FROM blobs) DESC, origin IS NULL, digest LIMIT 1",
            )?
            .query_row(params![layer.id.0, digest.map(Digest::as_bytes)], |row| {
                let digest: [u8; 32] = row.get(0)?;
                let size = row.get::<_, i64>(2)?.cast_unsigned();
                let blob = Descriptor::new(row.get::<_, String>(1)?, digest.into(), size);
                Ok((blob, row.get::<_, Option<String>>(3)?.map(Origin)))
            })
            .optional()
        })?;
        found.ok_or_else(|| CacheError::Missing {
            what: match digest {
                Some(digest) => format!("blob {digest} of layer {}", layer.id.0),
                None => format!("every form of layer {}", layer.id.0),
            },
        })
    }

    /// Puts a file or folder out of sight; it is removed in the background.
    pub(crate) fn discard(&self, path: &std::path::Path) -> Result<()> {
        let trash = self.unique("trash");
        match fs::rename(path, &trash) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(CacheError::io("move to the trash", path)(cause))
            }
            _ => Ok(()),
        }
    }
}

/// A directory beside the layers; thrown away unless it becomes one.
#[derive(Debug)]
pub struct Aside {
    cache: Cache,
    path: PathBuf,
    is_kept: bool,
}

impl Cache {
    /// An empty directory in the store for as long as it is held.
    ///
    /// # Errors
    /// Those of making it.
    pub fn work_dir(&self) -> Result<Aside> {
        Aside::create(self)
    }
}

impl Aside {
    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    fn create(cache: &Cache) -> Result<Aside> {
        let path = cache.unique("active");
        fs::create_dir(&path).map_err(CacheError::io("create", &path))?;
        Ok(Aside {
            cache: cache.clone(),
            path,
            is_kept: false,
        })
    }

    fn keep(mut self) -> PathBuf {
        self.is_kept = true;
        self.path.clone()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be moved now is removed when this process is found dead.
            let _ = self.cache.discard(&self.path);
        }
    }
}

/// The arriving bytes of a blob: what is read is kept and hashed too.
struct Kept<W: Write> {
    from: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
    into: oci::DigestWriter<W>,
    limit: u64,
}

impl<W: Write> Read for Kept<W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.from.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.chunk = chunk?,
            }
            if self.into.bytes() + self.chunk.len() as u64 > self.limit {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the blob is longer than announced",
                ));
            }
            self.into.write_all(&self.chunk)?;
        }
        let count = self.chunk.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| CacheError::Canceled { what })?
}
