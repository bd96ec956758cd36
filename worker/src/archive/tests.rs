//! Archives there and back, and strangers' archives.
use super::*;
use cache::{Cache, Options};
use oci::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Reference};

fn store() -> (tempfile::TempDir, Cache) {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(folder.path(), Options::default()).expect("a store");
    (folder, cache)
}

fn image(cache: &Cache, name: &str) -> oci::Digest {
    let config = br#"{"architecture":"amd64","os":"linux"}"#;
    let layer = b"a layer";
    let put = |bytes: &[u8]| cache.content().put(bytes).expect("kept");
    let (config_digest, layer_digest) = (put(config), put(layer));
    let manifest = Manifest::new(
        OCI_MANIFEST,
        Descriptor::new(OCI_CONFIG, config_digest, config.len() as u64),
        vec![Descriptor::new(OCI_LAYER, layer_digest, layer.len() as u64)],
    );
    let bytes = manifest.to_json();
    let digest = put(&bytes);
    let target = Descriptor::new(OCI_MANIFEST, digest, bytes.len() as u64);
    cache
        .images()
        .set(name, &target, &[digest, config_digest, layer_digest])
        .expect("named");
    digest
}

fn saved(cache: &Cache, name: &str) -> Vec<u8> {
    let image = cache.images().get(name).expect("readable").expect("there");
    let mut bytes = Vec::new();
    save(cache, &[image], true, &mut bytes).expect("saved");
    bytes
}

#[test]
fn an_image_goes_there_and_back_unchanged() {
    let (_one, from) = store();
    let digest = image(&from, "docker.io/library/a:1");
    let bytes = saved(&from, "docker.io/library/a:1");
    let (_two, to) = store();
    let loaded = load(&to, Input::Stream(Box::new(&bytes[..])), None).expect("loaded");
    assert_eq!(loaded.len(), 1);
    assert_eq!(
        (loaded[0].name.as_str(), loaded[0].target.digest),
        ("docker.io/library/a:1", digest)
    );
    assert_eq!(
        saved(&to, "docker.io/library/a:1"),
        bytes,
        "equal images make equal archives"
    );
}

#[test]
fn an_old_docker_archive_gets_a_manifest() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut append = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, bytes).expect("written");
    };
    append("abc.json", br#"{"architecture":"amd64","os":"linux"}"#);
    append("one/layer.tar", b"a layer");
    append(
        "manifest.json",
        br#"[{"Config":"abc.json","RepoTags":["old:2"],"Layers":["one/layer.tar"]}]"#,
    );
    let bytes = tar.into_inner().expect("ended");
    let (_folder, cache) = store();
    let loaded = load(&cache, Input::Stream(Box::new(&bytes[..])), None).expect("loaded");
    assert_eq!(loaded[0].name, "docker.io/library/old:2");
    assert_eq!(
        cache
            .images()
            .blobs("docker.io/library/old:2")
            .expect("listed")
            .len(),
        3
    );
}

#[test]
fn a_blob_with_another_digest_is_refused() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    let path = format!("blobs/sha256/{}", "0".repeat(64));
    tar.append_data(&mut header, path, &b"lie"[..]).expect("written");
    let bytes = tar.into_inner().expect("ended");
    let (_folder, cache) = store();
    assert!(load(&cache, Input::Stream(Box::new(&bytes[..])), None).is_err());
}

#[test]
fn nonsense_is_an_error_and_no_panic() {
    let (_folder, cache) = store();
    let name = Reference::parse_normalized("a").ok();
    for bytes in [&b""[..], b"nonsense", &[0; 1024], b"\x1f\x8b\x08\0\0"] {
        assert!(
            load(&cache, Input::Stream(Box::new(bytes)), name.as_ref()).is_err(),
            "{bytes:?}"
        );
    }
}
