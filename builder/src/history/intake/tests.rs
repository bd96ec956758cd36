use super::super::{Limits, Running, Stamp, write_bundle};
use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::io::Write;

/// Names and contents of an archive's files.
type Entries = Vec<(String, Vec<u8>)>;

/// A history with one build in it, and that build as a file.
fn exported(folder: &Path) -> (History, Vec<u8>) {
    let history = History::new(folder, Limits::default());
    let running: Running = history.begin(Record::new("one")).expect("begun");
    running.log().append(&StatusResponse::default().encode_to_vec());
    running.update(|record| {
        record.trace = history.attach("application/x", b"{\"a\":1}").ok();
        record.is_pinned = true;
    });
    let record = running.finish(None).expect("filed");
    let mut file = Vec::new();
    write_bundle(&history, folder, &[record], &mut file).expect("written");
    (history, file)
}

fn entries(file: &[u8]) -> Entries {
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let entries = archive.entries().expect("a tar").map(|entry| {
        let mut entry = entry.expect("an entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("read");
        (entry.path().expect("a name").display().to_string(), bytes)
    });
    entries.filter(|(name, _)| !name.ends_with('/')).collect()
}

fn pack(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &bytes[..]).expect("added");
    }
    tar.into_inner().expect("ended")
}

/// A layout of these blobs: a record's config, and manifest and index around it.
fn layout(config: &Value, blobs: &[&[u8]]) -> Entries {
    let mut entries = Vec::new();
    let mut blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        entries.push((format!("blobs/sha256/{}", digest.hex()), bytes.to_vec()));
        digest.to_string()
    };
    for bytes in blobs {
        blob(bytes);
    }
    let config = blob(config.to_string().as_bytes());
    let manifest = json!({"config": {"mediaType": RECORD, "digest": config}});
    let manifest = blob(manifest.to_string().as_bytes());
    let index = json!({"manifests": [{"mediaType": MANIFEST, "digest": manifest}]});
    entries.push(("index.json".to_owned(), index.to_string().into_bytes()));
    entries
}

/// Imports into a history of its own; after a refusal nothing may be left of it.
fn refused(file: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let history = History::new(folder.path(), Limits::default());
    let error = import(&history, file).expect_err("it is not good");
    assert!(history.list().expect("listed").is_empty());
    let left = |part: &str| {
        let read = std::fs::read_dir(folder.path().join("history").join(part));
        read.map_or(0, Iterator::count)
    };
    assert_eq!((left("intake"), left("blobs")), (0, 0));
    error.to_string()
}

#[test]
fn what_was_exported_is_imported() {
    let (from, to) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let (old, file) = exported(from.path());
    let new = History::new(to.path(), Limits::default());
    let taken = import(&new, &file[..]).expect("taken");
    assert_eq!((taken.len(), taken[0].is_new), (1, true));
    let (was, is) = (old.find("one").expect("there"), new.find("one").expect("there"));
    assert_eq!(
        (is.created, is.completed, &is.log, &is.trace),
        (was.created, was.completed, &was.log, &was.trace)
    );
    assert!(was.is_pinned && !is.is_pinned && is.imported.is_some());
    let mut log = new.log(&is).expect("a log");
    assert!(log.next_written().expect("whole").is_some());
    let trace = new.open_blob(&is.trace.as_ref().expect("a trace").digest);
    assert!(trace.expect("readable").is_some());
    // Again: nothing changes.
    let again = import(&new, &file[..]).expect("taken");
    assert!(!again[0].is_new);
    assert_eq!(new.list().expect("listed"), [is]);
    // Not packed it is the same file.
    let mut plain = Vec::new();
    GzDecoder::new(&file[..])
        .read_to_end(&mut plain)
        .expect("unpacked");
    assert!(!import(&new, &plain[..]).expect("taken")[0].is_new);
    new.remove("one").expect("removed");
    assert_eq!(
        std::fs::read_dir(to.path().join("history/blobs"))
            .expect("there")
            .count(),
        0
    );
}

#[test]
fn several_builds_in_one_file() {
    let (from, to) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let old = History::new(from.path(), Limits::default());
    let record = |id: &str| {
        let running = old.begin(Record::new(id)).expect("begun");
        running.finish(None).expect("filed")
    };
    let records = [record("one"), record("two")];
    let mut file = Vec::new();
    write_bundle(&old, from.path(), &records, &mut file).expect("written");
    let new = History::new(to.path(), Limits::default());
    assert_eq!(import(&new, &file[..]).expect("taken").len(), 2);
    assert_eq!(new.list().expect("listed").len(), 2);
}

#[test]
fn an_imported_build_is_as_old_as_its_import() {
    let folder = tempfile::tempdir().expect("a folder");
    let none = Limits {
        max_entries: 0,
        ..Limits::default()
    };
    let history = History::new(folder.path(), none);
    let config = json!({"Ref": "old", "CreatedAt": {"seconds": 5}, "CompletedAt": {"seconds": 6}});
    import(&history, &pack(&layout(&config, &[]))[..]).expect("taken");
    assert_eq!(history.sweep(Stamp::now()).expect("swept"), 0);
}

#[test]
fn other_files_are_refused_by_what_is_wrong_with_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = entries(&exported(folder.path()).1);
    let with = |change: &dyn Fn(&mut Entries)| {
        let mut entries = good.clone();
        change(&mut entries);
        refused(&pack(&entries))
    };
    let index = |text: &str| {
        let text = text.to_owned();
        with(&move |entries| {
            for (name, bytes) in entries {
                if name == "index.json" {
                    *bytes = text.clone().into_bytes();
                }
            }
        })
    };
    let record = |field: &str, value: Value, blobs: &[&[u8]]| {
        let mut config = json!({"Ref": "a", "CreatedAt": {"seconds": 5}, "CompletedAt": {"seconds": 6}});
        config[field] = value;
        refused(&pack(&layout(&config, blobs)))
    };
    let named = |bytes: &[u8], size: usize| json!({"media_type": MEDIA_TYPE, "digest": Digest::of(bytes).to_string(), "size": size});
    let missing = Digest::of(b"missing");
    for (found, expected) in [
        (refused(b""), "the bundle has no index.json that can be read"),
        (refused(b"hello, this is no archive"), "the bundle is no archive"),
        (
            refused(&pack(&[])),
            "the bundle has no index.json that can be read",
        ),
        (
            with(&|entries| entries[0].1.push(0)),
            "the bundle is damaged: blob",
        ),
        (
            with(&|entries| entries[0].0 = "blobs/sha256/x/y".into()),
            "which no blob is called",
        ),
        (
            with(&|entries| entries[0].0 = "blobs/sha256/short".into()),
            "which no blob is called",
        ),
        (index("{"), "the bundle has no index.json that can be read"),
        (index("{}"), "holds no record of a build"),
        (
            index(
                &json!({"manifests": [{"mediaType": MANIFEST, "digest": missing.to_string()}]}).to_string(),
            ),
            "lacks blob",
        ),
        (
            index(&json!({"manifests": [{"mediaType": INDEX, "digest": "../x"}]}).to_string()),
            "cannot be read",
        ),
        (
            record("CompletedAt", Value::Null, &[]),
            "cannot be taken: the build was not over",
        ),
        (
            record("logs", named(b"\x09\0\0\0", 4), &[b"\x09\0\0\0"]),
            "the log of build a",
        ),
        (record("logs", named(b"\0\0\0\0", 5), &[b"\0\0\0\0"]), "damaged"),
        (
            record("logs", named(b"\x02\0\0\0\xff\xff", 6), &[b"\x02\0\0\0\xff\xff"]),
            "the log of build a",
        ),
    ] {
        assert!(found.contains(expected), "{found} is not {expected}");
    }
}

#[test]
fn what_is_no_file_is_refused() {
    for kind in [
        tar::EntryType::Symlink,
        tar::EntryType::Link,
        tar::EntryType::Char,
        tar::EntryType::XHeader,
        tar::EntryType::XGlobalHeader,
        tar::EntryType::GNULongName,
        tar::EntryType::GNUSparse,
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path("blobs/x").expect("short");
        header.set_size(0);
        header.set_cksum();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append(&header, io::empty()).expect("added");
        let found = refused(&tar.into_inner().expect("ended"));
        assert!(found.contains("neither file nor folder"), "{kind:?}: {found}");
    }
}

#[test]
fn a_bomb_is_not_unpacked() {
    // What is unpacked ends at the limit, however long a blob says it is.
    let mut header = tar::Header::new_ustar();
    header
        .set_path(format!("blobs/sha256/{}", Digest::of(b"x").hex()))
        .expect("short");
    header.set_size(1 << 40);
    header.set_cksum();
    let mut file = GzEncoder::new(Vec::new(), Compression::fast());
    file.write_all(header.as_bytes()).expect("packed");
    file.write_all(&vec![0; 1 << 20]).expect("packed");
    let file = file.finish().expect("packed");
    let folder = tempfile::tempdir().expect("a folder");
    let history = History::new(folder.path(), Limits::default());
    let found = within(1 << 16, &history, &file[..]).expect_err("it is too large");
    assert_eq!(found.to_string(), "the bundle has more than 65536 bytes");
}

#[test]
fn a_damaged_file_is_refused_wherever_the_damage_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut plain = Vec::new();
    GzDecoder::new(&exported(folder.path()).1[..])
        .read_to_end(&mut plain)
        .expect("unpacked");
    // A generator of its own, so that a failure comes again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..400 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut damaged = plain.clone();
        let place = usize::try_from(state % plain.len() as u64).expect("small");
        damaged[place] ^= (state >> 32) as u8 | 1;
        if state & 1024 == 0 {
            damaged.truncate(place);
        }
        let target = tempfile::tempdir().expect("a folder");
        let history = History::new(target.path(), Limits::default());
        // Damage in what is not looked at (times, padding) is none; but no panic, and all or nothing.
        match import(&history, &damaged[..]) {
            Ok(taken) => assert_eq!(taken.len(), 1),
            Err(_) => assert!(history.list().expect("listed").is_empty()),
        }
    }
}
