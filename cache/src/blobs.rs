//! The packed blobs of a ref's layers, as an export wants them.
//!
//! ```text
//! layer ─┬─ a variant of the asked kind is known ──────────▶ LayerBlob
//!        ├─ pulled, and nothing else is insisted on ───────▶ LayerBlob, as its origin has it
//!        └─ else: tar, other variant or diff ─▶ compress ─▶ blob ─▶ LayerBlob
//! ```
//!
//! Layers are packed at the same time. The diff of a step's directory goes through a pipe into the compressor, so its
//! plain tar is never stored. Variants of one layer are kept side by side.
use crate::{
    Cache,
    error::{CacheError, Result},
    forms::{Meter, blocking},
    layer::{self, Level, TarLayer},
    refs::{ImmutableRef, Layer},
    store::Origin,
    view::{Contents, View, ViewLayer},
};
use futures_util::future::try_join_all;
use oci::{ChainId, Compression, Descriptor, DiffId, Digest, DigestReader};
use rusqlite::{OptionalExtension, params};
use std::{
    io::{BufWriter, Write},
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

/// Bytes gathered before they go into the pipe.
const PIPE_BUFFER: usize = 256 << 10;

/// How the layers of an export are to be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressionChoice {
    /// With what.
    pub kind: Compression,
    /// How hard.
    pub level: Level,
    /// Pulled layers too are packed so; else they stay as their origin has them.
    pub force: bool,
}

impl Default for CompressionChoice {
    fn default() -> CompressionChoice {
        CompressionChoice {
            kind: Compression::Gzip,
            level: Level::Default,
            force: false,
        }
    }
}

/// One packed layer.
#[derive(Clone, Debug)]
pub struct LayerBlob {
    /// The layer it is of.
    pub layer: Arc<Layer>,
    /// OCI media type, digest and size.
    pub descriptor: Descriptor,
    /// The digest of its plain tar.
    pub diff_id: DiffId,
    /// When the layer was made.
    pub created: SystemTime,
    /// Where it was pulled from; the blob may be there only ([`Cache::ensure_blob`] brings it).
    pub origin: Option<Origin>,
}

/// What a layer is packed from.
enum Material {
    /// Its plain tar, which is kept.
    Tar(DiffId),
    /// Another packed variant.
    Packed(Digest, DiffId),
    /// Its entries, over what lies below.
    Tree(ViewLayer, View),
}

impl Cache {
    /// The packed layers of a ref, the lowest first; packed now where that has not been done.
    ///
    /// # Errors
    /// Those of reading layers and writing blobs.
    pub async fn layer_blobs(
        &self,
        of: &ImmutableRef,
        choice: CompressionChoice,
        meter: &Arc<dyn Meter>,
    ) -> Result<Vec<LayerBlob>> {
        let packed = (0..of.layers().len()).map(|at| self.layer_blob(of, at, choice, meter));
        let blobs = try_join_all(packed).await?;
        self.name_chains(of, &blobs)?;
        Ok(blobs)
    }

    /// The packed layers of a ref, the lowest first, if all of them are known; nothing is packed.
    ///
    /// # Errors
    /// The database's.
    pub fn known_layer_blobs(
        &self,
        of: &ImmutableRef,
        choice: CompressionChoice,
    ) -> Result<Option<Vec<LayerBlob>>> {
        let known = of.layers().iter().map(|layer| self.known_blob(layer, choice));
        known.collect()
    }

    /// The packed layer at position `at` of a ref.
    ///
    /// # Errors
    /// As [`Cache::layer_blobs`].
    pub async fn layer_blob(
        &self,
        of: &ImmutableRef,
        at: usize,
        choice: CompressionChoice,
        meter: &Arc<dyn Meter>,
    ) -> Result<LayerBlob> {
        let layer = &of.layers()[at];
        if let Some(found) = self.known_blob(layer, choice)? {
            return Ok(found);
        }
        let _packing = layer.making.lock().await;
        if let Some(found) = self.known_blob(layer, choice)? {
            return Ok(found);
        }
        drop(_packing);
        let from = self.material(of, at, meter).await?;
        let _packing = layer.making.lock().await;
        if let Some(found) = self.known_blob(layer, choice)? {
            return Ok(found);
        }
        let (cache, again) = (self.clone(), layer.clone());
        let (digest, size, diff_id) =
            blocking("pack layer", move || cache.pack(&again, from, choice)).await?;
        layer.state.lock().diff_id = Some(diff_id);
        let descriptor = Descriptor::new(media_type(choice.kind), digest, size);
        let level = level_name(choice.level);
        self.inner.db.write("keep packed layer", |tx| {
            let diff = diff_id.digest();
            tx.prepare_cached("UPDATE layers SET diff_id = ?2 WHERE id = ?1")?
                .execute(params![layer.id.0, diff.as_bytes()])?;
            tx.prepare_cached("INSERT OR REPLACE INTO layer_blobs VALUES (?1, ?2, ?3, ?4, ?5, NULL)")?
                .execute(params![
                    layer.id.0,
                    digest.as_bytes(),
                    descriptor.media_type,
                    size.cast_signed(),
                    level
                ])
        })?;
        self.inner
            .counters
            .layers_compressed
            .fetch_add(1, Ordering::Relaxed);
        Ok(LayerBlob {
            layer: layer.clone(),
            descriptor,
            diff_id,
            created: layer.created(),
            origin: None,
        })
    }

    /// A packed variant that serves, if one is known.
    fn known_blob(&self, layer: &Arc<Layer>, choice: CompressionChoice) -> Result<Option<LayerBlob>> {
        let Some(diff_id) = layer.diff_id() else {
            return Ok(None);
        };
        let (wanted, level) = (media_type(choice.kind), level_name(choice.level));
        let found = self.inner.db.read("look for packed layer", |c| {
            c.prepare_cached(
                "SELECT digest, media_type, size, origin FROM layer_blobs b
                 WHERE layer = ?1 AND ((level = 'origin' AND NOT ?4) OR (media_type = ?2 AND level IN (?3, 'origin')))
                   AND (origin IS NOT NULL OR digest IN (SELECT digest FROM blobs))
                 ORDER BY level = 'origin' DESC, digest IN (SELECT digest FROM blobs) DESC, digest LIMIT 1",
            )?
            .query_row(params![layer.id.0, wanted, level, choice.force], |row| {
                let digest: [u8; 32] = row.get(0)?;
                let size = row.get::<_, i64>(2)?.cast_unsigned();
                let blob = Descriptor::new(row.get::<_, String>(1)?, digest.into(), size);
                Ok((blob, row.get::<_, Option<String>>(3)?.map(Origin)))
            })
            .optional()
        })?;
        let Some((descriptor, origin)) = found else {
            return Ok(None);
        };
        self.content().touch(&descriptor.digest)?;
        Ok(Some(LayerBlob {
            layer: layer.clone(),
            descriptor,
            diff_id,
            created: layer.created(),
            origin,
        }))
    }

    /// Where those of these packed layers come from that are known and not here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn absent_origins(&self, layers: &[Digest]) -> Result<Vec<Origin>> {
        self.inner.db.read("look for origins of layers", |c| {
            let mut query = c.prepare_cached(
                "SELECT DISTINCT origin FROM layer_blobs
                 WHERE digest = ?1 AND origin IS NOT NULL AND digest NOT IN (SELECT digest FROM blobs)",
            )?;
            let mut found: Vec<Origin> = Vec::new();
            for layer in layers {
                for origin in query.query_map(params![layer.as_bytes()], |row| row.get(0))? {
                    let origin = Origin(origin?);
                    if !found.contains(&origin) {
                        found.push(origin);
                    }
                }
            }
            Ok(found)
        })
    }

    /// What the layer at position `at` of a ref is packed from: bytes that have its diff id already, if there are any.
    async fn material(&self, of: &ImmutableRef, at: usize, meter: &Arc<dyn Meter>) -> Result<Material> {
        let layer = &of.layers()[at];
        if let Some(diff_id) = layer.diff_id() {
            if self.content().size(&diff_id.digest())?.is_some() {
                return Ok(Material::Tar(diff_id));
            }
            if let Ok((packed, _)) = self.packed(layer) {
                // A tar made anew from a pulled layer's directory would have another order, and so another diff id.
                self.ensure_blob(layer, &packed, meter).await?;
                return Ok(Material::Packed(packed.digest, diff_id));
            }
        }
        let below = of.ancestor(at).view(meter).await?;
        Ok(Material::Tree(self.readable(layer, meter).await?, below))
    }

    /// Packs a layer; blocks.
    fn pack(
        &self,
        layer: &Layer,
        from: Material,
        choice: CompressionChoice,
    ) -> Result<(Digest, u64, DiffId)> {
        let ingest = self.content().ingest()?;
        let (readable, below) = match from {
            Material::Tar(diff_id) => {
                let tar = self.content().open(&diff_id.digest())?;
                let packed = layer::compress(tar, ingest, choice.kind, choice.level)?;
                packed.out.commit(packed.digest)?;
                return Ok((packed.digest, packed.size, diff_id));
            }
            Material::Packed(digest, diff_id) => {
                let mut plain = DigestReader::new(layer::decompress(self.content().open(&digest)?)?);
                let packed = layer::compress(&mut plain, ingest, choice.kind, choice.level)?;
                let (_, found, _) = plain.finish();
                if found != diff_id.digest() {
                    return Err(CacheError::DigestMismatch {
                        what: format!("the plain tar of blob {digest} is not the one its image config names"),
                        expected: diff_id.digest(),
                        found,
                    });
                }
                packed.out.commit(packed.digest)?;
                return Ok((packed.digest, packed.size, diff_id));
            }
            Material::Tree(readable, below) => (readable, below),
        };
        let (reader, writer) = std::io::pipe().map_err(CacheError::io("make a pipe in", &self.inner.root))?;
        std::thread::scope(|scope| {
            let diffing = scope.spawn(|| -> Result<TarLayer> {
                let out = BufWriter::with_capacity(PIPE_BUFFER, writer);
                let (mut out, made) = self.plain(layer, &readable, &below, out)?;
                out.flush()
                    .map_err(CacheError::io("write to a pipe in", &self.inner.root))?;
                Ok(made)
            });
            let packed = layer::compress(reader, ingest, choice.kind, choice.level);
            let made = diffing.join().map_err(|_| CacheError::Canceled {
                what: "diff of a layer",
            })??;
            let packed = packed?;
            packed.out.commit(packed.digest)?;
            Ok((packed.digest, packed.size, made.diff_id))
        })
    }

    /// Writes the plain tar of a layer that is a directory.
    fn plain<W: Write>(
        &self,
        layer: &Layer,
        readable: &ViewLayer,
        below: &View,
        out: W,
    ) -> Result<(W, TarLayer)> {
        match readable.contents.as_ref() {
            Contents::Dir(_) | Contents::None => {
                Ok(layer::diff_dir(&readable.tree, &readable.contents, below, out)?)
            }
            Contents::Tar(_) | Contents::TarAt(_) => Err(CacheError::Missing {
                what: format!("the tar of layer {}", layer.id.0),
            }),
        }
    }

    /// Notes the chain ids that have become known, so that an image made of these layers finds them unpacked.
    fn name_chains(&self, of: &ImmutableRef, blobs: &[LayerBlob]) -> Result<()> {
        let mut chain = None;
        let mut named = Vec::with_capacity(blobs.len());
        for (at, blob) in blobs.iter().enumerate() {
            let next = ChainId::push(chain, blob.diff_id);
            chain = Some(next);
            if let Some(id) = of.ancestor(at + 1).id() {
                named.push((id, next));
            }
        }
        self.inner.db.write("name chains", |tx| {
            let mut update =
                tx.prepare_cached("UPDATE refs SET chain_id = ?2 WHERE id = ?1 AND chain_id IS NULL")?;
            for (id, chain) in &named {
                update.execute(params![id.0, chain.digest().as_bytes()])?;
            }
            Ok(())
        })
    }
}

fn media_type(kind: Compression) -> &'static str {
    match kind {
        Compression::Uncompressed => oci::OCI_LAYER,
        Compression::Gzip => oci::OCI_LAYER_GZIP,
        Compression::Zstd => oci::OCI_LAYER_ZSTD,
    }
}

fn level_name(level: Level) -> String {
    match level {
        Level::Default => "default".to_owned(),
        Level::Number(number) => number.to_string(),
    }
}
