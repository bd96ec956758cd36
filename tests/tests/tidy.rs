//! What a machine can check of how the code is kept: sizes, module docs, unsafe code, directions, unfinished work.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The most lines a file may have, its tests left out.
const MAX_LINES: usize = 800;

/// Which of our crates each crate may use; `ARCHITECTURE.md` has the same table.
const DIRECTIONS: [(&str, &str, &[&str]); 13] = [
    ("oci", "cache/oci", &[]),
    ("tree", "cache/tree", &[]),
    ("keys", "cache/keys", &["oci"]),
    ("registry", "cache/registry", &["oci"]),
    ("cache", "cache", &["oci", "tree", "keys", "registry"]),
    ("llb", "solver/llb", &["oci"]),
    ("solver", "solver", &["oci", "keys", "llb"]),
    ("frontend", "frontend", &["oci", "tree", "llb"]),
    ("session", "worker/session", &["oci", "tree"]),
    ("sandbox", "worker/sandbox", &[]),
    (
        "worker",
        "worker",
        &[
            "oci", "tree", "registry", "keys", "cache", "llb", "solver", "session", "sandbox",
        ],
    ),
    ("api", "builder/api", &["llb", "session"]),
    (
        "builder",
        "builder",
        &[
            "api", "frontend", "solver", "llb", "cache", "oci", "tree", "keys", "registry", "worker",
            "session", "sandbox",
        ],
    ),
];

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the project")
        .to_owned()
}

/// Every Rust file of the project, with its text.
fn sources() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = ["builder", "cache", "frontend", "solver", "worker", "tests"]
        .iter()
        .map(|room| project().join(room))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).expect("source is text");
                found.insert(
                    path.strip_prefix(project()).expect("it lies there").to_owned(),
                    text,
                );
            }
        }
    }
    assert!(found.len() > 100, "only {} files were found", found.len());
    found
}

fn is_generated(path: &Path) -> bool {
    path.ends_with("generated.rs")
        || path
            .parent()
            .is_some_and(|folder| folder.ends_with("src/generated"))
}

#[test]
fn files_are_short_enough_to_be_read() {
    for (path, text) in sources() {
        let is_exempt = is_generated(&path) || path.components().any(|part| part.as_os_str() == "tests");
        let lines = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default()
            .lines()
            .count();
        assert!(
            is_exempt || lines <= MAX_LINES,
            "{} has {lines} lines",
            path.display()
        );
    }
}

#[test]
fn every_file_says_what_it_is() {
    for (path, text) in sources() {
        let is_exempt = is_generated(&path) || path.ends_with("tests.rs") || path.starts_with("tests/fuzz");
        let first = text
            .lines()
            .find(|line| !line.starts_with("#!") && !line.is_empty())
            .unwrap_or_default();
        assert!(
            is_exempt || first.starts_with("//!"),
            "{} begins with {first:?}",
            path.display()
        );
    }
}

#[test]
fn unsafe_code_is_in_one_file() {
    for (path, text) in sources() {
        if path == Path::new("worker/sandbox/src/sys.rs") || path == Path::new("tests/tests/tidy.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| code.contains(word));
            assert!(!is_unsafe, "{}:{}: {line}", path.display(), number + 1);
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    for (path, text) in sources() {
        if path == Path::new("tests/tests/tidy.rs") {
            continue;
        }
        for word in ["todo!(", "unimplemented!(", "TODO", "FIXME", "dbg!("] {
            assert!(!text.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn arrows_between_crates_point_one_way() {
    let names: Vec<&str> = DIRECTIONS.iter().map(|(name, _, _)| *name).collect();
    for (name, folder, allowed) in DIRECTIONS {
        let path = project().join(folder).join("Cargo.toml");
        let text = fs::read_to_string(&path).expect("a manifest");
        let manifest: toml::Table = text.parse().expect("TOML");
        let used = manifest["dependencies"].as_table().cloned().unwrap_or_default();
        for other in used.keys().filter(|other| names.contains(&other.as_str())) {
            assert!(allowed.contains(&other.as_str()), "{name} may not use {other}");
        }
    }
}

/// Whether a folder is one that `pattern` of the page means: itself, or all of its beginning.
fn is_meant(pattern: &str, folder: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => folder.starts_with(beginning),
        None => folder == pattern,
    }
}

#[test]
fn the_page_of_scenarios_is_whole() {
    let page = fs::read_to_string(project().join("fixtures/COVERAGE.md")).expect("the page");
    let scenarios = project().join("fixtures/scenarios");
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("a folder of the project");
        entries.flatten().map(|entry| entry.path()).collect()
    };
    let folders: Vec<String> = below(&scenarios)
        .iter()
        .flat_map(|area| below(area))
        .map(|folder| {
            let name = folder.strip_prefix(&scenarios).expect("below it");
            name.to_string_lossy().into_owned()
        })
        .collect();
    let rows: Vec<(&str, Vec<&str>)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.rsplit_once(" | "))
        .filter(|(what, _)| *what != "What")
        .map(|(what, names)| {
            (
                what,
                names.split(", ").map(|name| name.trim_matches('`')).collect(),
            )
        })
        .collect();
    assert!(rows.len() > 60, "the page has its rows: {}", rows.len());
    for (what, names) in &rows {
        for name in names {
            assert!(
                folders.iter().any(|folder| is_meant(name, folder)),
                "the row {what:?} names {name:?}, which no scenario is"
            );
        }
    }
    for folder in &folders {
        let is_named = rows
            .iter()
            .flat_map(|(_, names)| names)
            .any(|name| is_meant(name, folder));
        assert!(is_named, "fixtures/COVERAGE.md does not name {folder}");
    }
    assert!(folders.len() >= 250, "there are {} scenarios", folders.len());
}
