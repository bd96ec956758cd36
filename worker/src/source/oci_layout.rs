//! An OCI image layout of the client, read in place (image-spec, image-layout.md).
//!
//! ```text
//! <folder>/index.json ─ tag or digest ─▶ descriptor ─▶ <folder>/blobs/sha256/<hex>
//! ```
//!
//! A layout is a stranger's: what it holds is believed only after its digest was checked.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use cache::Origin;
use oci::{Descriptor, Digest, Document, Index, MAX_MANIFEST_BYTES, OCI_INDEX, Reference};

use super::image::ImageError;

/// The annotation that holds a manifest's tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// How an origin says that it is a folder.
const SCHEME: &str = "oci-layout:";

/// The origin of blobs in a layout.
pub(crate) fn origin(folder: &Path) -> Origin {
    Origin(format!("{SCHEME}{}", folder.display()))
}

/// The layout an origin stands for, if it is one.
pub(crate) fn folder_of(origin: &Origin) -> Option<PathBuf> {
    origin.0.strip_prefix(SCHEME).map(PathBuf::from)
}

/// Where a layout has a blob.
pub(crate) fn blob_path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

/// The manifest or index that `reference` means in a layout.
pub(crate) fn find(folder: &Path, reference: &Reference) -> Result<Descriptor, ImageError> {
    let bytes = read(&folder.join("index.json"), MAX_MANIFEST_BYTES)?;
    let invalid = |reason: String| ImageError::Layout {
        folder: folder.to_owned(),
        reason,
    };
    let index = match Document::parse(&bytes, OCI_INDEX).map_err(|error| invalid(error.to_string()))? {
        Document::Index(index) => index,
        Document::Manifest(_) => return Err(invalid("index.json is no index".to_owned())),
    };
    if let Some(digest) = reference.digest() {
        let found = index
            .manifests
            .iter()
            .find(|entry| entry.digest == digest)
            .cloned();
        // A digest may also name something the index does not list at its top.
        return found.map_or_else(|| unlisted(folder, digest), Ok);
    }
    choose(&index, reference)
        .cloned()
        .ok_or_else(|| ImageError::NotFound {
            reference: format!(
                "{} in the image layout {}",
                reference.tag().unwrap_or("latest"),
                folder.display()
            ),
        })
}

fn unlisted(folder: &Path, digest: Digest) -> Result<Descriptor, ImageError> {
    let bytes = blob(folder, &digest, MAX_MANIFEST_BYTES)?;
    let parsed = Document::parse(&bytes, "");
    let media_type = match parsed {
        Ok(Document::Manifest(manifest)) => manifest.media_type,
        Ok(Document::Index(index)) => index.media_type,
        Err(error) => {
            return Err(ImageError::Layout {
                folder: folder.to_owned(),
                reason: error.to_string(),
            });
        }
    };
    Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
}

/// By tag, else the only one there is.
fn choose<'a>(index: &'a Index, reference: &Reference) -> Option<&'a Descriptor> {
    let tag = reference.tag().unwrap_or("latest");
    let is_named = |entry: &&Descriptor| {
        entry
            .annotations
            .get(REF_NAME)
            .is_some_and(|name| name == tag || name.ends_with(&format!(":{tag}")))
    };
    let named = index.manifests.iter().find(is_named);
    match &index.manifests[..] {
        [only] if reference.tag().is_none_or(|tag| tag == "latest") => named.or(Some(only)),
        _ => named,
    }
}

/// A blob of a layout, verified.
pub(crate) fn blob(folder: &Path, digest: &Digest, limit: usize) -> Result<Vec<u8>, ImageError> {
    let path = blob_path(folder, digest);
    let bytes = read(&path, limit)?;
    let found = Digest::of(&bytes);
    if found != *digest {
        let reason = format!("{} holds {found}", path.display());
        return Err(ImageError::Layout {
            folder: folder.to_owned(),
            reason,
        });
    }
    Ok(bytes)
}

fn read(path: &Path, limit: usize) -> Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(failed)?
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() > limit {
        return Err(failed(std::io::Error::other(format!("more than {limit} bytes"))));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(entries: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(folder.path().join("blobs/sha256")).expect("a directory");
        let manifests = entries.iter().map(|(name, bytes)| {
            let mut entry = Descriptor::of(oci::OCI_MANIFEST, bytes);
            if !name.is_empty() {
                entry.annotations.insert(REF_NAME.to_owned(), (*name).to_owned());
            }
            std::fs::write(blob_path(folder.path(), &entry.digest), bytes).expect("a file");
            entry
        });
        let index = Index::new(OCI_INDEX, manifests.collect());
        std::fs::write(folder.path().join("index.json"), index.to_json()).expect("a file");
        folder
    }

    #[test]
    fn a_manifest_is_found_by_tag_by_digest_or_because_it_is_the_only_one() {
        let two = layout(&[("v1", b"one"), ("example.com/app:v2", b"two")]);
        let one = layout(&[("", b"one")]);
        let by_digest = format!("x@{}", Digest::of(b"two"));
        for (folder, text, expected) in [
            (&two, "x:v1", Some("one")),
            (&two, "x:v2", Some("two")),
            (&two, "x", None),
            (&two, by_digest.as_str(), Some("two")),
            (&one, "x", Some("one")),
            (&one, "x:latest", Some("one")),
            (&one, "x:v9", None),
        ] {
            let reference = Reference::parse_normalized(text).expect("a reference");
            let found = find(folder.path(), &reference).ok().map(|found| found.digest);
            assert_eq!(
                found,
                expected.map(|bytes| Digest::of(bytes.as_bytes())),
                "{text}"
            );
        }
    }

    #[test]
    fn a_blob_with_other_bytes_is_refused() {
        let folder = layout(&[("v1", b"one")]);
        let digest = Digest::of(b"one");
        std::fs::write(blob_path(folder.path(), &digest), b"other").expect("a file");
        assert!(matches!(
            blob(folder.path(), &digest, 100),
            Err(ImageError::Layout { .. })
        ));
    }
}
