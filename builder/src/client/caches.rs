//! Folders that hold caches: what is in them before a build, and what names it after.
//!
//! ```text
//! prepare: index.json ─ tag ─▶ digest of the manifest ─▶ the request   (blobs go through the session, by digest)
//! finish:  the answer's cache.manifest ─▶ index.json, under its tag
//! ```
//!
//! A folder that is not there, or has no such tag, is passed over with a note: the first build of a CI job finds none.
use super::in_process::machine;
use crate::build::caches::{MANIFEST, store_name};
use crate::build::{BuildError, CacheEntry};
use crate::request::BuildRequest;
use oci::{Descriptor, Digest, Document, Index, MAX_MANIFEST_BYTES, OCI_INDEX};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The annotation that holds a manifest's tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Looks up the tags of folders that are imported; what there is to say of those that are passed over.
pub(super) fn prepare(request: &mut BuildRequest) -> Vec<String> {
    let mut notes = Vec::new();
    request.cache_from.retain_mut(|entry| match find(entry) {
        Ok(()) => true,
        Err(reason) => {
            notes.push(reason);
            false
        }
    });
    notes
}

/// Adds the digest to an entry that imports a folder.
fn find(entry: &mut CacheEntry) -> Result<(), String> {
    let (true, Some(folder)) = (entry.kind == "local", entry.attrs.get("src").cloned()) else {
        return Ok(());
    };
    let passed = |reason: String| format!("the cache in {folder} is not imported: {reason}");
    let folder_path = Path::new(&folder);
    if !entry.attrs.contains_key("digest") {
        let tag = entry.attrs.get("tag").map_or("latest", String::as_str);
        let index = read_index(folder_path).map_err(|error| passed(error.to_string()))?;
        let manifests = index
            .unwrap_or_else(|| Index::new(OCI_INDEX, Vec::new()))
            .manifests;
        let found = manifests.into_iter().find(|entry| is_tagged(entry, tag));
        let found = found.ok_or_else(|| passed(format!("there is nothing with the tag {tag}")))?;
        entry.attrs.insert("digest".into(), found.digest.to_string());
    }
    let text = &entry.attrs["digest"];
    match Digest::parse(text) {
        Ok(digest) if !folder_path.join("blobs/sha256").join(digest.hex()).is_file() => {
            Err(passed(format!("there is no blob {digest}")))
        }
        // A digest that is none is refused with the rest of the request.
        _ => Ok(()),
    }
}

fn is_tagged(entry: &Descriptor, tag: &str) -> bool {
    let has = |name: &str| entry.annotations.get(name).is_some_and(|found| found == tag);
    has(REF_NAME) || has("io.containerd.image.name")
}

/// The index of a folder; `None` where there is none.
fn read_index(folder: &Path) -> io::Result<Option<Index>> {
    let mut bytes = Vec::new();
    let file = match File::open(folder.join("index.json")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    file.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    match Document::parse(&bytes, OCI_INDEX).map_err(io::Error::other)? {
        Document::Index(index) => Ok(Some(index)),
        Document::Manifest(_) => Err(io::Error::other("index.json is no index")),
    }
}

/// The folders of a request, by the names of the stores they are to a build.
pub(super) fn stores(request: &BuildRequest) -> BTreeMap<String, PathBuf> {
    let entries = request.cache_from.iter().chain(&request.cache_to);
    let folder = |entry: &CacheEntry| {
        let name = entry.attrs.get("src").or_else(|| entry.attrs.get("dest"));
        let name = name.filter(|_| entry.kind == "local")?;
        Some((store_name(name), PathBuf::from(name)))
    };
    entries.filter_map(folder).collect()
}

/// Names what was written into folders.
pub(super) fn finish(request: &BuildRequest, response: &BTreeMap<String, String>) -> Result<(), BuildError> {
    let folders = request.cache_to.iter().filter(|entry| entry.kind == "local");
    let Some(manifest) = response.get(MANIFEST) else {
        return Ok(());
    };
    for entry in folders {
        let Some(folder) = entry.attrs.get("dest").map(Path::new) else {
            continue;
        };
        let tag = entry.attrs.get("tag").map_or("latest", String::as_str);
        let doing = format!("name the cache in {}", folder.display());
        let manifest: Descriptor = serde_json::from_str(manifest).map_err(|error| machine(&doing, error))?;
        // With several exports the answer tells the last one's manifest only.
        if folder.join("blobs/sha256").join(manifest.digest.hex()).is_file() {
            name(folder, tag, manifest).map_err(|error| machine(&doing, error))?;
        }
    }
    Ok(())
}

/// Writes `manifest` under a tag of the folder's index.
fn name(folder: &Path, tag: &str, mut manifest: Descriptor) -> io::Result<()> {
    let lock = File::create(folder.join("index.json.lock"))?;
    lock.lock()?;
    let mut index = read_index(folder)?.unwrap_or_else(|| Index::new(OCI_INDEX, Vec::new()));
    index.manifests.retain(|entry| !is_tagged(entry, tag));
    manifest.annotations.insert(REF_NAME.into(), tag.into());
    index.manifests.push(manifest);
    fs::write(folder.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
    let aside = tempfile::NamedTempFile::new_in(folder)?;
    fs::write(aside.path(), oci::go_json(&index, false))?;
    fs::set_permissions(aside.path(), PermissionsExt::from_mode(0o644))?;
    aside
        .persist(folder.join("index.json"))
        .map_err(|error| error.error)?;
    fs::remove_file(folder.join("index.json.lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(folder: &Path, tag: Option<&str>) -> CacheEntry {
        let mut attrs = BTreeMap::from([("src".to_owned(), folder.display().to_string())]);
        attrs.extend(tag.map(|tag| ("tag".to_owned(), tag.to_owned())));
        CacheEntry {
            kind: "local".into(),
            attrs,
        }
    }

    #[test]
    fn what_was_named_is_found_by_its_tag() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let blobs = folder.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("a folder");
        let described = |bytes: &[u8]| {
            fs::write(blobs.join(Digest::of(bytes).hex()), bytes).expect("written");
            Descriptor::of(oci::OCI_MANIFEST, bytes)
        };
        let (first, second, other) = (described(b"1"), described(b"2"), described(b"3"));
        let mut missing = entry(folder.path(), None);
        assert!(
            find(&mut missing)
                .expect_err("nothing")
                .contains("the tag latest")
        );
        name(folder.path(), "latest", first).expect("named");
        name(folder.path(), "other", other.clone()).expect("named");
        name(folder.path(), "latest", second.clone()).expect("named");
        for (tag, expected) in [
            (None, &second),
            (Some("latest"), &second),
            (Some("other"), &other),
        ] {
            let mut found = entry(folder.path(), tag);
            find(&mut found).expect("there");
            assert_eq!(found.attrs["digest"], expected.digest.to_string());
        }
        let index = read_index(folder.path()).expect("read").expect("there");
        assert_eq!(index.manifests.len(), 2);
        fs::remove_file(blobs.join(second.digest.hex())).expect("removed");
        let mut gone = entry(folder.path(), None);
        assert!(find(&mut gone).expect_err("gone").contains("there is no blob"));
    }
}
