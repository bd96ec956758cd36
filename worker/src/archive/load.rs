//! Images out of an archive or the folder of an OCI layout.
use super::{ArchiveError, FULL_NAME, REF_NAME};
use cache::Cache;
use oci::{
    Descriptor, Digest, Document, Index, MAX_INDEX_ENTRIES, MAX_MANIFEST_BYTES, Manifest, OCI_CONFIG,
    OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST, Reference,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How deep indexes may lie in each other.
const MAX_DEPTH: usize = 8;
/// The most entries an archive may have.
const MAX_ENTRIES: usize = 100_000;

/// An image that was named.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// Its full name.
    pub name: String,
    /// Its manifest or index.
    pub target: Descriptor,
}

/// Reads an archive (plain or packed), or a layout's folder; `name` is for an image that has none.
///
/// # Errors
/// [`ArchiveError`]; blobs that were read before stay until gc takes them.
pub fn load(cache: &Cache, from: Input<'_>, name: Option<&Reference>) -> Result<Vec<Loaded>, ArchiveError> {
    let found = match from {
        Input::Stream(stream) => Found::stream(cache, stream)?,
        Input::Folder(folder) => Found::folder(cache, folder)?,
    };
    let targets = match (&found.index, &found.table) {
        (Some(index), _) => layout(index, found.table.as_deref())?,
        (None, Some(table)) => docker(cache, &found, table)?,
        (None, None) => {
            return Err(ArchiveError::Malformed(
                "it has neither index.json nor manifest.json".into(),
            ));
        }
    };
    keep(cache, targets, name)
}

/// Where an archive comes from.
pub enum Input<'a> {
    /// A tar, packed or not.
    Stream(Box<dyn Read + Send + 'a>),
    /// The root of an OCI layout.
    Folder(&'a Path),
}

/// What an archive holds; every other file is in the store by now.
#[derive(Default)]
struct Found {
    index: Option<Vec<u8>>,
    table: Option<Vec<u8>>,
    /// Digests of files by their path.
    files: BTreeMap<String, (Digest, u64)>,
    /// Links among files, by path.
    links: BTreeMap<String, String>,
}

impl Found {
    fn stream(cache: &Cache, stream: Box<dyn Read + Send + '_>) -> Result<Found, ArchiveError> {
        let plain =
            cache::layer::decompress(stream).map_err(|error| ArchiveError::Malformed(error.to_string()))?;
        let mut archive = tar::Archive::new(plain);
        let mut found = Found::default();
        let entries = archive.entries().map_err(ArchiveError::io("read the archive"))?;
        for (count, entry) in entries.enumerate() {
            if count >= MAX_ENTRIES {
                return Err(ArchiveError::Malformed(format!(
                    "more than {MAX_ENTRIES} entries"
                )));
            }
            let mut entry = entry.map_err(ArchiveError::io("read the archive"))?;
            let path = clean(&entry.path_bytes());
            if let Some(link) = entry.link_name_bytes() {
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                let target = if entry.header().entry_type().is_hard_link() {
                    clean(&link)
                } else {
                    resolve(folder, &link)
                };
                found.links.insert(path, target);
            } else if entry.header().entry_type().is_file() {
                found.file(cache, path, &mut entry)?;
            }
        }
        Ok(found)
    }

    fn folder(cache: &Cache, folder: &Path) -> Result<Found, ArchiveError> {
        let mut found = Found::default();
        let index = folder.join("index.json");
        let mut file = File::open(&index).map_err(ArchiveError::io(format!("open {}", index.display())))?;
        found.file(cache, "index.json".into(), &mut file)?;
        let blobs = folder.join("blobs/sha256");
        let entries =
            std::fs::read_dir(&blobs).map_err(ArchiveError::io(format!("list {}", blobs.display())))?;
        for entry in entries {
            let entry = entry.map_err(ArchiveError::io(format!("list {}", blobs.display())))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let mut file = File::open(entry.path())
                .map_err(ArchiveError::io(format!("open {}", entry.path().display())))?;
            found.file(cache, format!("blobs/sha256/{name}"), &mut file)?;
        }
        Ok(found)
    }

    /// Keeps the tables of contents here and everything else in the store.
    fn file(&mut self, cache: &Cache, path: String, from: &mut impl Read) -> Result<(), ArchiveError> {
        match path.as_str() {
            "index.json" => self.index = Some(small(&path, from)?),
            "manifest.json" => self.table = Some(small(&path, from)?),
            _ => {
                let expected = path
                    .strip_prefix("blobs/sha256/")
                    .map(|hex| Digest::parse(&format!("sha256:{hex}")));
                let expected = expected
                    .transpose()
                    .map_err(|_| ArchiveError::Malformed(format!("{path:?} is no blob")))?;
                let kept = cache.content().put_stream(from, expected)?;
                self.files.insert(path, kept);
            }
        }
        Ok(())
    }

    /// A file of an old Docker archive, through its links.
    fn look_up(&self, path: &str) -> Result<(Digest, u64), ArchiveError> {
        let mut path = clean(path.as_bytes());
        for _ in 0..MAX_DEPTH {
            if let Some(found) = self.files.get(&path) {
                return Ok(*found);
            }
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => break,
            }
        }
        Err(ArchiveError::Malformed(format!(
            "{path:?} is named but not there"
        )))
    }
}

/// A path as a name to look up: no `.`, no empty parts.
fn clean(path: &[u8]) -> String {
    resolve("", path)
}

fn resolve(folder: &str, path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn small(what: &str, from: &mut impl Read) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    from.take(MAX_MANIFEST_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(ArchiveError::io(format!("read {what} of the archive")))?;
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(ArchiveError::Malformed(format!(
            "{what} has more than {MAX_MANIFEST_BYTES} bytes"
        )));
    }
    Ok(bytes)
}

type Target = (Option<String>, Descriptor);

/// The images of an OCI layout, with names from it or from Docker's table beside it.
fn layout(index: &[u8], table: Option<&[u8]>) -> Result<Vec<Target>, ArchiveError> {
    let index: Index = match Document::parse(index, OCI_INDEX) {
        Ok(Document::Index(index)) => index,
        Ok(Document::Manifest(_)) => return Err(ArchiveError::Malformed("index.json is no index".into())),
        Err(source) => {
            return Err(ArchiveError::Document {
                what: "index.json".into(),
                source,
            });
        }
    };
    let table: Vec<TableEntry> = table
        .and_then(|bytes| serde_json::from_slice(bytes).ok())
        .unwrap_or_default();
    let mut targets = Vec::new();
    for mut descriptor in index.manifests {
        let full = descriptor.annotations.remove(FULL_NAME);
        let short = descriptor
            .annotations
            .remove(REF_NAME)
            .filter(|name| name.contains(['/', ':']));
        let name = full.or(short);
        match (&name, table.as_slice()) {
            (None, [only]) if !only.repo_tags().is_empty() => {
                targets.extend(
                    only.repo_tags()
                        .iter()
                        .map(|tag| (Some(tag.clone()), descriptor.clone())),
                );
            }
            _ => targets.push((name, descriptor)),
        }
    }
    Ok(targets)
}

/// An entry of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TableEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl TableEntry {
    fn repo_tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

/// The images of an old Docker archive; each gets a manifest that names its files.
fn docker(cache: &Cache, found: &Found, table: &[u8]) -> Result<Vec<Target>, ArchiveError> {
    let table: Vec<TableEntry> = serde_json::from_slice(table)
        .map_err(|error| ArchiveError::Malformed(format!("manifest.json: {error}")))?;
    let mut targets = Vec::new();
    for entry in table {
        let (config, size) = found.look_up(&entry.config)?;
        let mut layers = Vec::new();
        for layer in &entry.layers {
            let (digest, size) = found.look_up(layer)?;
            layers.push(Descriptor::new(layer_type(cache, &digest)?, digest, size));
        }
        let manifest = Manifest::new(OCI_MANIFEST, Descriptor::new(OCI_CONFIG, config, size), layers);
        let bytes = manifest.to_json();
        let digest = cache.content().put(&bytes)?;
        let target = Descriptor::new(OCI_MANIFEST, digest, bytes.len() as u64);
        match entry.repo_tags() {
            [] => targets.push((None, target)),
            tags => targets.extend(tags.iter().map(|tag| (Some(tag.clone()), target.clone()))),
        }
    }
    Ok(targets)
}

/// Docker's table does not say how a layer is packed; its first bytes do.
fn layer_type(cache: &Cache, digest: &Digest) -> Result<&'static str, ArchiveError> {
    let mut file = cache.content().open(digest)?;
    let mut magic = [0; 4];
    let mut filled = 0;
    while filled < magic.len() {
        match file
            .read(&mut magic[filled..])
            .map_err(ArchiveError::io(format!("read layer {digest}")))?
        {
            0 => break,
            bytes => filled += bytes,
        }
    }
    file.seek(SeekFrom::Start(0))
        .map_err(ArchiveError::io(format!("read layer {digest}")))?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => OCI_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] => OCI_LAYER_ZSTD,
        _ => OCI_LAYER,
    })
}

/// Names every image, holding exactly the blobs that are there.
fn keep(cache: &Cache, targets: Vec<Target>, name: Option<&Reference>) -> Result<Vec<Loaded>, ArchiveError> {
    if targets.is_empty() {
        return Err(ArchiveError::Malformed("its index is empty".into()));
    }
    let mut loaded = Vec::new();
    for (found, target) in targets {
        let full = found.and_then(|text| Reference::parse_normalized(&text).ok());
        let full = full.or_else(|| name.cloned()).map(Reference::with_default_tag);
        let full = full
            .ok_or(ArchiveError::Nameless {
                digest: target.digest,
            })?
            .to_string();
        let mut blobs = BTreeSet::new();
        collect(cache, &target, &mut blobs, 0)?;
        cache
            .images()
            .set(&full, &target, &blobs.into_iter().collect::<Vec<_>>())?;
        loaded.push(Loaded { name: full, target });
    }
    Ok(loaded)
}

/// All blobs an image consists of; an index may name platforms the archive does not have.
fn collect(
    cache: &Cache,
    target: &Descriptor,
    blobs: &mut BTreeSet<Digest>,
    depth: usize,
) -> Result<(), ArchiveError> {
    if depth > MAX_DEPTH || blobs.len() > MAX_INDEX_ENTRIES {
        return Err(ArchiveError::Malformed(
            "indexes lie too deep in each other".into(),
        ));
    }
    if !blobs.insert(target.digest) {
        return Ok(());
    }
    let bytes = cache.content().read(&target.digest, MAX_MANIFEST_BYTES as u64)?;
    let document = Document::parse(&bytes, &target.media_type).map_err(|source| ArchiveError::Document {
        what: format!("manifest {}", target.digest),
        source,
    })?;
    match document {
        Document::Manifest(manifest) => {
            blobs.insert(manifest.config.digest);
            blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
        }
        Document::Index(index) => {
            for manifest in &index.manifests {
                if cache.content().size(&manifest.digest)?.is_some() {
                    collect(cache, manifest, blobs, depth + 1)?;
                }
            }
        }
    }
    Ok(())
}
