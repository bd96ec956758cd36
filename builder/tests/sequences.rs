//! What real clients ask a daemon, call by call: see `sequences/README.md`.
mod support;
#[path = "sequences/calls.rs"]
mod calls;
#[path = "sequences/format.rs"]
mod format;
#[expect(unreachable_pub, reason = "another package's as well")]
#[path = "../../tests/src/registry.rs"]
mod registry;
#[path = "sequences/replay.rs"]
mod replay;

use std::path::{Path, PathBuf};

/// Every file of `sequences/`.
#[tokio::test(flavor = "multi_thread")]
async fn every_sequence_is_answered() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sequences");
    let files = std::fs::read_dir(folder).expect("it is there").flatten();
    let mut files: Vec<PathBuf> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    files.sort();
    let only = std::env::var("SEQUENCE").unwrap_or_default();
    let mut failed = Vec::new();
    for path in &files {
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !name.contains(&only) {
            continue;
        }
        let text = std::fs::read_to_string(path).expect("readable");
        // One that fails keeps no other from being tried.
        match tokio::spawn(async move { replay::replay(&text).await }).await {
            Ok(None) => eprintln!("{name}: answered"),
            Ok(Some(why)) => eprintln!("{name}: skipped: {why}"),
            Err(_) => failed.push(name),
        }
    }
    assert!(failed.is_empty(), "not answered as they should be: {failed:?}");
}
