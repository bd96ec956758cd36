//! Named images as one archive that OCI tools and Docker read alike.
use super::{ArchiveError, FULL_NAME, REF_NAME};
use cache::{Cache, Image};
use oci::{
    Descriptor, Digest, Document, Index, MAX_MANIFEST_BYTES, Manifest, OCI_INDEX, Platform, Reference,
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

/// Writes images with all their blobs; `with_docker` adds Docker's own table of contents.
///
/// # Errors
/// The store lacks a blob, or the archive cannot be written.
pub fn save(cache: &Cache, images: &[Image], with_docker: bool, out: impl Write) -> Result<(), ArchiveError> {
    let mut tar = tar::Builder::new(out);
    let mut blobs = BTreeSet::new();
    let mut docker: BTreeMap<Digest, (Manifest, Vec<String>)> = BTreeMap::new();
    let mut targets = Vec::new();
    for image in images {
        blobs.extend(cache.images().blobs(&image.name)?);
        targets.push(named(image));
        if let Some((digest, manifest)) = for_docker(cache, image)? {
            let familiar =
                Reference::parse_normalized(&image.name).map_or(image.name.clone(), |name| name.familiar());
            docker
                .entry(digest)
                .or_insert_with(|| (manifest, Vec::new()))
                .1
                .push(familiar);
        }
    }
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", &Index::new(OCI_INDEX, targets).to_json())?;
    if with_docker {
        let table: Vec<_> = docker
            .values()
            .map(|(manifest, names)| table_entry(manifest, names))
            .collect();
        append(
            &mut tar,
            "manifest.json",
            serde_json::Value::Array(table).to_string().as_bytes(),
        )?;
    }
    for digest in blobs {
        let mut file = cache.content().open(&digest)?;
        let size = file
            .metadata()
            .map_err(ArchiveError::io(format!("measure blob {digest}")))?
            .len();
        let mut header = header(size);
        tar.append_data(&mut header, path(&digest), &mut file)
            .map_err(ArchiveError::io(format!("write blob {digest} to the archive")))?;
    }
    let mut out = tar.into_inner().map_err(ArchiveError::io("end the archive"))?;
    out.flush().map_err(ArchiveError::io("end the archive"))
}

/// The image's descriptor with its names.
fn named(image: &Image) -> Descriptor {
    let mut descriptor = image.target.clone();
    descriptor
        .annotations
        .insert(FULL_NAME.into(), image.name.clone());
    let tag = Reference::parse_normalized(&image.name)
        .ok()
        .and_then(|name| name.tag().map(str::to_owned));
    if let Some(tag) = tag {
        descriptor.annotations.insert(REF_NAME.into(), tag);
    }
    descriptor
}

/// Docker's table knows single images only: this machine's of several.
fn for_docker(cache: &Cache, image: &Image) -> Result<Option<(Digest, Manifest)>, ArchiveError> {
    let mut target = image.target.clone();
    loop {
        let bytes = cache.content().read(&target.digest, MAX_MANIFEST_BYTES as u64)?;
        let document =
            Document::parse(&bytes, &target.media_type).map_err(|source| ArchiveError::Document {
                what: format!("manifest {}", target.digest),
                source,
            })?;
        match document {
            Document::Manifest(manifest) => return Ok(Some((target.digest, manifest))),
            Document::Index(index) => {
                let host = Platform::host();
                let best = index
                    .manifests
                    .into_iter()
                    .filter_map(|found| Some((found.platform.as_ref()?.rank_for(&host)?, found)))
                    .min_by_key(|(rank, _)| *rank);
                match best {
                    // An index in an index is followed once per level; each is a blob of its own, so this ends.
                    Some((_, found)) if found.digest != target.digest => target = found,
                    _ => return Ok(None),
                }
            }
        }
    }
}

fn table_entry(manifest: &Manifest, names: &[String]) -> serde_json::Value {
    let layers: Vec<String> = manifest.layers.iter().map(|layer| path(&layer.digest)).collect();
    json!({"Config": path(&manifest.config.digest), "RepoTags": names, "Layers": layers})
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
    let mut header = header(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
        .map_err(ArchiveError::io(format!("write {path} to the archive")))
}

/// The same for everything, so that equal images make equal archives.
fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}
