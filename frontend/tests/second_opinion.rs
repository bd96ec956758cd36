//! Two parsers by others, on our own Dockerfiles: where they read a file at all, they see the instructions we see.
//!
//! They are opinions, not the truth: what they cannot read, or read otherwise, is listed with the reason.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Keywords in order, as a person reads them: every line that begins an instruction.
fn ours(text: &str) -> Vec<String> {
    let escape = if text.to_lowercase().starts_with("# escape=`") {
        '`'
    } else {
        '\\'
    };
    let mut keywords = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if !is_inside {
            keywords.push(line.split_whitespace().next().unwrap_or_default().to_uppercase());
        }
        is_inside = line.ends_with(escape);
    }
    keywords
}

#[test]
fn others_see_the_same_instructions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dockerfiles");
    let (mut read, mut refused) = (
        BTreeMap::from([("dockerfile-parser", 0), ("parse-dockerfile", 0)]),
        Vec::new(),
    );
    for entry in fs::read_dir(&folder).expect("the fixtures").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(text) = fs::read_to_string(entry.path().join("Dockerfile")) else {
            continue;
        };
        // Bodies of heredocs are no instructions; telling them apart is what is to be tested elsewhere.
        if text.contains("<<") {
            continue;
        }
        let expected = ours(&text).len();
        match dockerfile_parser::Dockerfile::parse(&text) {
            Ok(parsed) => {
                *read.entry("dockerfile-parser").or_default() += 1;
                assert_eq!(parsed.instructions.len(), expected, "{name}: dockerfile-parser");
            }
            Err(_) => refused.push(format!("dockerfile-parser {name}")),
        }
        match parse_dockerfile::parse(&text) {
            Ok(parsed) => {
                *read.entry("parse-dockerfile").or_default() += 1;
                assert_eq!(parsed.instructions.len(), expected, "{name}: parse-dockerfile");
            }
            Err(_) => refused.push(format!("parse-dockerfile {name}")),
        }
    }
    // Both read most of them; a change of ours that they suddenly cannot follow is worth a look.
    assert!(
        read.values().all(|count| *count >= 60),
        "{read:?}; refused: {refused:?}"
    );
}
