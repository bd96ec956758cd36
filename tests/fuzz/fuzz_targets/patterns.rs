//! A text as patterns and a path: refused, or matched in time that does not explode.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tree::{PatternSet, go_match, read_ignore_file};

fuzz_target!(|text: &str| {
    let (patterns, path) = text.split_once('\0').unwrap_or((text, "a/b/c"));
    let lines = read_ignore_file(patterns.as_bytes());
    if let Ok(set) = PatternSet::new(&lines) {
        let _ = set.matches(path);
    }
    let _ = go_match(patterns, path);
});
