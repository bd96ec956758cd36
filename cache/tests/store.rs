//! The store from outside: layers in all their forms, images, cache mounts, pruning.
use cache::{
    Cache, CompressionChoice, Filter, ImmutableRef, Meter, NoMeter, Options, PruneOptions, RecordInfo,
    Sharing, layer::TarLayerWriter,
};
use oci::{Compression, Digest};
use std::{fs, sync::Arc};
use tree::{Entry, Kind, RootPath};

fn meter() -> Arc<dyn Meter> {
    Arc::new(NoMeter)
}

fn open(folder: &tempfile::TempDir) -> Cache {
    Cache::open(folder.path(), Options::default()).expect("the store opens")
}

fn add(cache: &Cache, parent: &ImmutableRef, files: &[(&str, &str)]) -> ImmutableRef {
    let mut writer = TarLayerWriter::new(cache.content().ingest().expect("an ingest"));
    for (name, text) in files {
        let path = RootPath::clean(name).expect("a clean path");
        let mut entry = Entry::new(path, Kind::File, 0o644);
        entry.size = text.len() as u64;
        writer.add(&entry, text.as_bytes()).expect("written");
    }
    let (ingest, layer) = writer.finish().expect("finished");
    cache
        .add_tar_layer(parent, ingest, layer, RecordInfo::new("test"))
        .expect("added")
}

async fn text(of: &ImmutableRef, name: &str) -> Option<String> {
    let view = of.view(&meter()).await.expect("a view");
    let path = RootPath::clean(name).expect("a clean path");
    view.read_small(&path, 1000)
        .expect("read")
        .map(|bytes| String::from_utf8(bytes).expect("text"))
}

#[tokio::test]
async fn a_layer_goes_through_all_its_forms() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "skipped: directories of root's files need root, or the user namespace that the program enters"
        );
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = open(&folder);
    let base = add(&cache, &cache.scratch(), &[("a", "one"), ("b", "two")]);
    let top = add(&cache, &base, &[("b", "three")]);
    assert_eq!(text(&top, "a").await.as_deref(), Some("one"));
    assert_eq!(text(&top, "b").await.as_deref(), Some("three"));
    let directories = top.directories(&meter()).await.expect("directories");
    assert_eq!(fs::read_to_string(directories[0].join("b")).expect("read"), "two");
    assert_eq!(
        fs::read_to_string(directories[1].join("b")).expect("read"),
        "three"
    );

    // A step writes above it; its layer is packed, and read again from the blob alone.
    let step = cache.new_mutable(&top, RecordInfo::new("step")).expect("mutable");
    fs::write(step.upper().join("c"), "four").expect("written");
    let made = step.commit().expect("committed");
    assert_eq!(text(&made, "c").await.as_deref(), Some("four"));
    let blobs = cache
        .layer_blobs(&made, CompressionChoice::default(), &meter())
        .await
        .expect("packed");
    assert_eq!(blobs.len(), 3);
    let again = cache
        .layer_blobs(&made, CompressionChoice::default(), &meter())
        .await
        .expect("packed");
    assert_eq!(blobs[2].descriptor, again[2].descriptor);
    let zstd = CompressionChoice {
        kind: Compression::Zstd,
        ..CompressionChoice::default()
    };
    let zstd = cache.layer_blobs(&made, zstd, &meter()).await.expect("packed");
    assert_ne!(blobs[2].descriptor.digest, zstd[2].descriptor.digest);
    assert_eq!(blobs[2].diff_id, zstd[2].diff_id);

    let other_folder = tempfile::tempdir().expect("a temporary folder");
    let other = open(&other_folder);
    let mut pulled = other.scratch();
    for blob in &blobs {
        let file = cache.content().open(&blob.descriptor.digest).expect("open");
        other
            .content()
            .put_stream(file, Some(blob.descriptor.digest))
            .expect("put");
        pulled = other
            .add_blob_layer(
                &pulled,
                &blob.descriptor,
                blob.diff_id,
                None,
                RecordInfo::new("pulled"),
            )
            .expect("added");
    }
    assert_eq!(pulled.chain_id(), made.chain_id());
    assert_eq!(text(&pulled, "c").await.as_deref(), Some("four"));
    assert_eq!(text(&pulled, "b").await.as_deref(), Some("three"));
}

#[tokio::test]
async fn what_is_committed_in_passing_goes_with_its_last_holder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = open(&folder);
    let base = add(&cache, &cache.scratch(), &[("a", "one")]);
    let step = cache
        .new_mutable(&base, RecordInfo::new("failed"))
        .expect("mutable");
    fs::write(step.upper().join("b"), "two").expect("written");
    let left = step.commit_in_passing().expect("committed");
    let again = left.clone();
    drop(left);
    assert_eq!(text(&again, "b").await.as_deref(), Some("two"));
    let records = || cache.usage().expect("listed").len();
    let folders = || fs::read_dir(folder.path().join("layers")).map_or(0, Iterator::count);
    let with = (records(), folders());
    drop(again);
    assert_eq!((records(), folders()), (with.0 - 1, with.1 - 1));
    assert_eq!(text(&base, "a").await.as_deref(), Some("one"));
}

#[tokio::test]
async fn what_was_made_is_there_after_opening_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = open(&folder);
    let made = add(&cache, &cache.scratch(), &[("a", "one")]);
    let id = cache.result_id(&made).expect("kept");
    drop((made, cache));
    let cache = open(&folder);
    let found = cache.result(&id).expect("read").expect("still there");
    assert_eq!(text(&found, "a").await.as_deref(), Some("one"));
    assert!(
        fs::read_dir(folder.path().join("ingest"))
            .expect("listed")
            .next()
            .is_none()
    );
}

#[tokio::test]
async fn prune_takes_what_nobody_uses_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = open(&folder);
    let base = add(&cache, &cache.scratch(), &[("a", "one")]);
    let top = add(&cache, &base, &[("b", "two")]);
    drop(top);
    let gone = cache.prune(&PruneOptions::default()).expect("pruned");
    assert_eq!(gone.len(), 1, "{gone:?}");
    assert_eq!(text(&base, "a").await.as_deref(), Some("one"));
    let lease = cache.lease();
    let leased = add(&cache, &base, &[("b", "three")]);
    let id = cache.result_id(&leased).expect("kept");
    drop(leased);
    assert!(cache.prune(&PruneOptions::default()).expect("pruned").is_empty());
    drop(lease);
    assert!(cache.result(&id).expect("read").is_some());
    drop(base);
    let kept = Filter::parse("type==exec.cachemount").expect("a filter");
    let only = PruneOptions {
        filters: vec![kept],
        ..PruneOptions::default()
    };
    assert!(cache.prune(&only).expect("pruned").is_empty());
    assert_eq!(cache.prune(&PruneOptions::default()).expect("pruned").len(), 2);
    assert_eq!(cache.used_bytes().expect("measured"), 0);
    assert!(
        fs::read_dir(folder.path().join("blobs/sha256"))
            .expect("listed")
            .next()
            .is_none()
    );
    assert!(cache.result(&id).expect("read").is_none());
    assert!(Filter::parse("nonsense==1").is_err());
}

#[tokio::test]
async fn images_keep_their_blobs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = open(&folder);
    let digest = cache.content().put(b"{}").expect("put");
    let target = oci::Descriptor::of(oci::OCI_MANIFEST, b"{}");
    cache
        .images()
        .set("docker.io/library/x:latest", &target, &[digest])
        .expect("named");
    assert!(
        cache
            .images()
            .set("y", &target, &[Digest::of(b"absent")])
            .is_err()
    );
    cache
        .prune(&PruneOptions {
            all: true,
            ..PruneOptions::default()
        })
        .expect("pruned");
    assert_eq!(cache.content().read(&digest, 10).expect("kept"), b"{}");
    assert!(
        cache
            .images()
            .remove("docker.io/library/x:latest")
            .expect("removed")
    );
    cache
        .prune(&PruneOptions {
            all: true,
            ..PruneOptions::default()
        })
        .expect("pruned");
    assert!(cache.content().open(&digest).is_err());
}

#[tokio::test]
async fn cache_mounts_are_shared_as_they_say() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = open(&folder);
    let mut first = cache
        .cache_mount("id", Sharing::Shared, false)
        .await
        .expect("made");
    assert!(first.is_new());
    first.keep().expect("kept");
    fs::write(first.path().join("f"), "x").expect("written");
    let second = cache
        .cache_mount("id", Sharing::Shared, false)
        .await
        .expect("shared");
    assert_eq!((first.path(), second.is_new()), (second.path(), false));
    let private = cache
        .cache_mount("id", Sharing::Private, false)
        .await
        .expect("another");
    assert_ne!(first.path(), private.path());
    let path = first.path().to_owned();
    let locked = cache.cache_mount("id", Sharing::Locked, false);
    tokio::pin!(locked);
    assert!(futures_util::poll!(&mut locked).is_pending());
    assert!(
        cache.prune(&PruneOptions::default()).expect("pruned").is_empty(),
        "a used cache mount was pruned"
    );
    drop((first, second));
    let locked = locked.await.expect("free now");
    assert_eq!(fs::read_to_string(locked.path().join("f")).expect("read"), "x");
    assert_eq!(locked.path(), path);
}

#[tokio::test]
async fn a_store_over_its_ceiling_makes_room_or_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options {
        ceiling: Some(12 << 20),
        ..Options::default()
    };
    let cache = Cache::open(folder.path(), options).expect("the store opens");
    let big = "x".repeat(6 << 20);
    drop(add(&cache, &cache.scratch(), &[("a", &big)]));
    let error = cache
        .content()
        .put_stream(std::io::repeat(0).take_bytes(30 << 20), None)
        .expect_err("too much");
    let message = error.to_string();
    assert!(
        message.contains("the store is full") && message.contains("ingest"),
        "{message}"
    );
    assert_eq!(
        cache.used_bytes().expect("measured"),
        0,
        "room was made before giving up"
    );
    cache.content().put(b"small").expect("there is room again");
}

trait TakeBytes {
    fn take_bytes(self, bytes: u64) -> std::io::Take<Self>
    where
        Self: Sized;
}

impl<R: std::io::Read> TakeBytes for R {
    fn take_bytes(self, bytes: u64) -> std::io::Take<R> {
        std::io::Read::take(self, bytes)
    }
}

#[test]
fn a_new_name_waits_for_a_barrier_a_known_one_does_not() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(root.path(), Options::default()).expect("a new store");
    let blob = cache.content().put(b"manifest").expect("written");
    let target = oci::Descriptor::of("text/plain", b"manifest");
    let images = cache.images();
    let name = |name: &str, target: &oci::Descriptor| {
        images.set(name, target, &[blob]).expect("named");
        let is_news = cache.is_renamed();
        cache.barrier().expect("synced");
        assert!(!cache.is_renamed());
        is_news
    };
    assert!(name("a", &target));
    assert!(!name("a", &target), "nothing changed");
    assert!(name("b", &target));
    let other = oci::Descriptor {
        media_type: "text/html".into(),
        ..target.clone()
    };
    assert!(name("a", &other), "the name means something else");
    cache.images().remove("b").expect("removed");
    assert!(cache.is_renamed());
}
