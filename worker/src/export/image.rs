//! Results to manifests in the content store.
//!
//! ```text
//! ref ─ layer_blobs ─▶ packed layers ─(rewrite times)─▶ config ─▶ manifest ─▶ index
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use cache::layer::rewrite_timestamps;
use cache::{Cache, LayerBlob, Meter};
use futures_util::future::try_join_all;
use oci::{
    Compression, DOCKER_CONFIG, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, DiffId, Digest, ImageConfig, Index,
    Manifest, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST,
};
use solver::progress::Sink;

use super::attest::{self, are_wanted};
use super::attrs::{Attrs, Place};
use super::{Done, ExportError, Image, PlatformResult, Source, blocking, config};
use crate::meter::SinkMeter;
use crate::worker::Worker;

/// One layer as the image has it.
#[derive(Clone, Debug)]
pub(super) struct BuiltLayer {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: DiffId,
    /// The layer of the store, if it is that unchanged; it may have to be fetched before it is read.
    pub(super) stored: Option<LayerBlob>,
}

/// One manifest.
#[derive(Clone, Debug)]
pub(super) struct BuiltManifest {
    pub(super) platform: String,
    pub(super) descriptor: Descriptor,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<BuiltLayer>,
}

/// A whole image, its documents in the content store.
#[derive(Clone, Debug)]
pub(super) struct BuiltImage {
    /// The index, or the only manifest.
    pub(super) target: Descriptor,
    pub(super) manifests: Vec<BuiltManifest>,
    /// Manifests of statements about those.
    pub(super) attestations: Vec<BuiltManifest>,
    pub(super) is_index: bool,
}

/// The annotation of a layer whose times were rewritten: to which epoch.
const REWRITTEN: &str = "buildkit/rewritten-timestamp";
/// When an image was made, in the answer and in the table of contents of an archive.
const CREATED: &str = "org.opencontainers.image.created";

/// Packs layers and writes config, manifest and index.
pub(super) async fn build(
    worker: &Worker,
    source: &Source,
    attrs: &Attrs,
    sink: &Sink,
) -> Result<BuiltImage, ExportError> {
    let meter = SinkMeter::shared(sink.clone());
    let manifests = {
        let _activity = sink.begin("exporting layers", "exporting");
        try_join_all(
            source
                .platforms
                .iter()
                .map(|platform| one(worker, platform, attrs, (&meter, sink))),
        )
        .await?
    };
    for built in &manifests {
        drop(sink.begin(
            format!("exporting manifest {}", built.descriptor.digest),
            "exporting",
        ));
        drop(sink.begin(format!("exporting config {}", built.config.digest), "exporting"));
    }
    let has_statements = are_wanted(&source.platforms, attrs);
    let is_index = source.is_index || manifests.len() > 1 || has_statements;
    let attestations = match is_index {
        true => attestations(worker, source, &manifests, attrs, sink).await?,
        false => Vec::new(),
    };
    let target = match &manifests[..] {
        [only] if !is_index => Descriptor {
            platform: source.platforms.first().map(|platform| platform.platform.clone()),
            ..only.descriptor.clone()
        },
        all => index(&worker.cache, source, all, &attestations, attrs, sink)?,
    };
    Ok(BuiltImage {
        target,
        manifests,
        attestations,
        is_index,
    })
}

/// The manifests of what is stated about each image.
async fn attestations(
    worker: &Worker,
    source: &Source,
    manifests: &[BuiltManifest],
    attrs: &Attrs,
    sink: &Sink,
) -> Result<Vec<BuiltManifest>, ExportError> {
    let about = source.platforms.iter().zip(manifests);
    let mut all = Vec::new();
    for (platform, built) in about.filter(|(platform, _)| !platform.attestations.is_empty()) {
        if !attrs.is_oci {
            return Err(ExportError::NoAttestations);
        }
        all.push(attest::manifest(&worker.cache, platform, built, attrs, sink).await?);
    }
    Ok(all)
}

fn index(
    cache: &Cache,
    source: &Source,
    manifests: &[BuiltManifest],
    attestations: &[BuiltManifest],
    attrs: &Attrs,
    sink: &Sink,
) -> Result<Descriptor, ExportError> {
    let entries = manifests.iter().zip(&source.platforms).map(|(built, platform)| {
        let mut entry = built.descriptor.clone();
        entry.platform = Some(platform.platform.clone());
        entry.annotations = attrs.annotations_at(Place::ManifestDescriptor, Some(&built.platform));
        entry
    });
    let media_type = if attrs.is_oci { OCI_INDEX } else { DOCKER_LIST };
    let statements = attestations.iter().map(|built| built.descriptor.clone());
    let mut index = Index::new(media_type, entries.chain(statements).collect());
    index.annotations = attrs.annotations_at(Place::Index, None);
    let bytes = index.to_json();
    cache.content().put(&bytes)?;
    let descriptor = Descriptor::of(media_type, &bytes);
    drop(sink.begin(
        format!("exporting manifest list {}", descriptor.digest),
        "exporting",
    ));
    Ok(descriptor)
}

async fn one(
    worker: &Worker,
    platform: &PlatformResult,
    attrs: &Attrs,
    (meter, sink): (&Arc<dyn Meter>, &Sink),
) -> Result<BuiltManifest, ExportError> {
    let cache = &worker.cache;
    let invalid = |reason: String| ExportError::Config {
        platform: platform.id.clone(),
        reason,
    };
    let mut config = ImageConfig::parse(&platform.config).map_err(|error| invalid(error.to_string()))?;
    let stored = match &platform.result {
        Some(result) => cache.layer_blobs(result, attrs.compression, meter).await?,
        None => Vec::new(),
    };
    let epoch = attrs.epoch.or(platform.epoch);
    // Differs: BuildKit rewrites times only when told to. A build with SOURCE_DATE_EPOCH is meant to be
    // repeatable, so that is the default here; `rewrite-timestamp=false` gives BuildKit's layers.
    let layers = match epoch {
        Some(epoch) if attrs.rewrite_timestamp.unwrap_or(true) => {
            let base = base_layers(platform, &stored).map_err(invalid)?;
            let layers = stored.iter().enumerate().map(|(at, layer)| async move {
                if at < base {
                    Ok(unchanged(layer, attrs))
                } else {
                    rewrite(cache, layer, epoch, attrs, meter).await
                }
            });
            try_join_all(layers).await?
        }
        _ => stored.iter().map(|layer| unchanged(layer, attrs)).collect(),
    };
    let diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
    let base = match &platform.base_config {
        Some(base) => {
            ImageConfig::parse(base)
                .map_err(|error| invalid(error.to_string()))?
                .history
        }
        None => Vec::new(),
    };
    let made = config::Made::of_layers(platform.result.as_ref(), &stored);
    config::complete(&mut config, &made, diff_ids, epoch, &base);
    if let Some(keys) = &platform.inline_cache {
        // A layer whose times were rewritten stands for the one it was made of.
        let layers: Vec<_> = layers
            .iter()
            .zip(&stored)
            .map(|(layer, stored)| (layer.descriptor.digest, stored.diff_id))
            .collect();
        crate::remote::write_inline(cache, keys, sink, &layers, &mut config).await;
    }
    let config_bytes = config.to_json();
    cache.content().put(&config_bytes)?;
    let (manifest_type, config_type) = if attrs.is_oci {
        (OCI_MANIFEST, OCI_CONFIG)
    } else {
        (DOCKER_MANIFEST, DOCKER_CONFIG)
    };
    let config = Descriptor::of(config_type, &config_bytes);
    let entries = layers.iter().map(|layer| layer.descriptor.clone()).collect();
    let mut manifest = Manifest::new(manifest_type, config.clone(), entries);
    manifest.annotations = attrs.annotations_at(Place::Manifest, Some(&platform.id));
    let bytes = manifest.to_json();
    cache.content().put(&bytes)?;
    let descriptor = Descriptor::of(manifest_type, &bytes);
    Ok(BuiltManifest {
        platform: platform.id.clone(),
        descriptor,
        config,
        layers,
    })
}

fn unchanged(layer: &LayerBlob, attrs: &Attrs) -> BuiltLayer {
    let mut descriptor = layer.descriptor.clone();
    if let Some(compression) = Compression::of_layer(&descriptor.media_type) {
        descriptor.media_type = compression.layer_media_type(attrs.is_oci).to_owned();
    }
    BuiltLayer {
        descriptor,
        diff_id: layer.diff_id,
        stored: Some(layer.clone()),
    }
}

/// How many of the lowest layers are those of the base image.
fn base_layers(platform: &PlatformResult, layers: &[LayerBlob]) -> Result<usize, String> {
    let Some(bytes) = &platform.base_config else {
        return Ok(0);
    };
    let base = ImageConfig::parse(bytes).map_err(|error| error.to_string())?;
    let same = layers
        .iter()
        .zip(&base.rootfs.diff_ids)
        .take_while(|(layer, base)| layer.diff_id == **base);
    Ok(same.count())
}

/// The same layer with no time later than `epoch`.
async fn rewrite(
    cache: &Cache,
    layer: &LayerBlob,
    epoch: i64,
    attrs: &Attrs,
    meter: &Arc<dyn Meter>,
) -> Result<BuiltLayer, ExportError> {
    cache.ensure_blob(&layer.layer, &layer.descriptor, meter).await?;
    let (cache, packed, choice, is_oci) = (
        cache.clone(),
        layer.descriptor.digest,
        attrs.compression,
        attrs.is_oci,
    );
    blocking(move || {
        let tar = cache::layer::decompress(cache.content().open(&packed)?)?;
        let write = |source| ExportError::Write {
            action: "rewrite times of a layer".to_owned(),
            source,
        };
        let (reader, writer) = std::io::pipe().map_err(write)?;
        let ingest = cache.content().ingest()?;
        let (rewritten, packed) = std::thread::scope(|scope| {
            let rewriting =
                scope.spawn(move || rewrite_timestamps(tar, writer, epoch).map(|(_, diff_id, _)| diff_id));
            let packed = cache::layer::compress(reader, ingest, choice.kind, choice.level);
            (rewriting.join(), packed)
        });
        let diff_id = rewritten.map_err(|_| ExportError::Thread)??;
        let packed = packed?;
        packed.out.commit(packed.digest)?;
        let mut descriptor =
            Descriptor::new(choice.kind.layer_media_type(is_oci), packed.digest, packed.size);
        descriptor
            .annotations
            .insert(REWRITTEN.to_owned(), epoch.to_string());
        Ok(BuiltLayer {
            descriptor,
            diff_id,
            stored: None,
        })
    })
    .await
}

impl BuiltImage {
    /// All manifests, those of statements last.
    pub(super) fn documents(&self) -> impl Iterator<Item = &BuiltManifest> {
        self.manifests.iter().chain(&self.attestations)
    }

    /// The digests of all it consists of.
    pub(super) fn blobs(&self) -> Vec<Digest> {
        let parts = self.documents().flat_map(|built| {
            let layers = built.layers.iter().map(|layer| layer.descriptor.digest);
            layers.chain([built.descriptor.digest, built.config.digest])
        });
        let all: BTreeSet<_> = parts.chain([self.target.digest]).collect();
        all.into_iter().collect()
    }

    /// Brings the layers that are only known by name.
    pub(super) async fn fetch_layers(
        &self,
        cache: &Cache,
        meter: &Arc<dyn Meter>,
    ) -> Result<(), ExportError> {
        let stored = self
            .manifests
            .iter()
            .flat_map(|built| &built.layers)
            .filter_map(|layer| layer.stored.as_ref());
        try_join_all(stored.map(|layer| cache.ensure_blob(&layer.layer, &layer.descriptor, meter))).await?;
        Ok(())
    }

    /// Says when the image was made, as archives do.
    pub(super) fn stamp(&mut self, source: &Source, attrs: &Attrs) {
        let platforms = source.platforms.iter();
        let epoch = attrs
            .epoch
            .or_else(|| platforms.filter_map(|platform| platform.epoch).next());
        let time = epoch.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        let time = time.unwrap_or_else(jiff::Timestamp::now);
        let text = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        self.target.annotations.entry(CREATED.to_owned()).or_insert(text);
    }

    /// What to answer.
    pub(super) fn done(&self, attrs: &Attrs) -> Done {
        use base64::Engine as _;
        let mut done = Done::default();
        let mut set = |key: &str, value: String| done.response.insert(key.to_owned(), value);
        set("containerimage.digest", self.target.digest.to_string());
        if let ([only], false) = (&self.manifests[..], self.is_index) {
            set("containerimage.config.digest", only.config.digest.to_string());
        }
        let descriptor = oci::go_json(&self.target, false);
        set(
            "containerimage.descriptor",
            base64::engine::general_purpose::STANDARD.encode(descriptor),
        );
        if !attrs.names.is_empty() {
            let names: Vec<_> = attrs.names.iter().map(ToString::to_string).collect();
            set("image.name", names.join(","));
        }
        done.images = self.manifests.iter().map(summary).collect();
        done
    }

    /// Names it in the builder's own store.
    pub(super) async fn name(&self, worker: &Worker, attrs: &Attrs, sink: &Sink) -> Result<(), ExportError> {
        let meter = SinkMeter::shared(sink.clone());
        let mut names: Vec<String> = attrs.names.iter().map(ToString::to_string).collect();
        if attrs.name_canonical {
            let canonical = attrs
                .names
                .iter()
                .map(|name| format!("{}@{}", name.name(), self.target.digest));
            names.extend(canonical.collect::<Vec<_>>());
        }
        if let (true, Some(prefix)) = (names.is_empty(), &attrs.dangling_prefix) {
            names.push(format!("{prefix}@{}", self.target.digest));
        }
        if names.is_empty() {
            return Ok(());
        }
        // A named image is whole: it must be there when its registry is not.
        self.fetch_layers(&worker.cache, &meter).await?;
        let blobs = self.blobs();
        for name in names {
            let _activity = sink.begin(format!("naming to {name}"), "naming");
            worker.cache.images().set(&name, &self.target, &blobs)?;
        }
        Ok(())
    }
}

fn summary(built: &BuiltManifest) -> Image {
    let layers: u64 = built.layers.iter().map(|layer| layer.descriptor.size).sum();
    Image {
        platform: built.platform.clone(),
        digest: built.descriptor.digest,
        size: layers + built.config.size,
        layers: built
            .layers
            .iter()
            .map(|layer| layer.descriptor.clone())
            .collect(),
    }
}
