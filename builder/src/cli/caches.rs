//! `--cache-from` and `--cache-to`: `type=TYPE,key=value,…`, or names of images alone.
//!
//! | written | means |
//! |---|---|
//! | `user/app:cache` | `type=registry,ref=user/app:cache` |
//! | `a,b` | both |
//! | `type=local,src=DIR` | a folder that `--cache-to type=local,dest=DIR` wrote |
//! | `type=inline` | (to) inside the image |
//!
//! What a type can have is known where caches are made; a daemon may know other types.
use super::values::{UsageError, absolute, fields, pairs};
use crate::build::{CacheEntry, EntryError};
use std::collections::BTreeMap;

/// The flags.
pub(super) const FROM: &str = "--cache-from";
pub(super) const TO: &str = "--cache-to";

/// The entries of all values of a flag.
pub(super) fn entries(flag: &str, values: &[String]) -> Result<Vec<CacheEntry>, UsageError> {
    let mut entries = Vec::new();
    for value in values {
        let names = fields(flag, value)?;
        if names.iter().all(|name| !name.contains('=')) {
            let named = names.into_iter().map(|name| CacheEntry {
                kind: "registry".into(),
                attrs: BTreeMap::from([("ref".into(), name)]),
            });
            entries.extend(named);
        } else {
            entries.push(entry(flag, value)?);
        }
    }
    let mut numbered = entries.iter().enumerate();
    if let Some((_, twice)) = numbered.find(|(at, entry)| entries[..*at].contains(entry)) {
        return Err(UsageError::new(format!(
            "{flag}: a cache of type {} is named twice",
            twice.kind
        )));
    }
    Ok(entries)
}

/// Refuses what this program cannot do; a daemon is asked instead, it may know more.
pub(super) fn check(from: &[String], to: &[String]) -> Result<(), UsageError> {
    let wrong = |flag: &str, error: EntryError| UsageError::new(format!("{flag}: {error}"));
    for entry in entries(FROM, from)? {
        entry.check_import().map_err(|error| wrong(FROM, error))?;
    }
    for entry in entries(TO, to)? {
        entry.export().map_err(|error| wrong(TO, error))?;
    }
    Ok(())
}

fn entry(flag: &str, value: &str) -> Result<CacheEntry, UsageError> {
    let mut attrs: BTreeMap<String, String> = pairs(flag, value)?.into_iter().collect();
    let kind = attrs.remove("type").filter(|kind| !kind.is_empty());
    let kind = kind.ok_or_else(|| {
        UsageError::new(format!("{flag} {value}: it has no type"))
            .hint("say type=registry, type=local or, to --cache-to, type=inline")
    })?;
    if attrs.contains_key("reset") {
        let what = "reset: a folder is not emptied; remove it before the build";
        return Err(UsageError::new(format!("{flag} {value}: {what}")));
    }
    if kind == "local" {
        for name in ["src", "dest"] {
            if let Some(path) = attrs.get_mut(name).filter(|path| !path.is_empty()) {
                *path = absolute(flag, path)?.to_string_lossy().into_owned();
            }
        }
    }
    Ok(CacheEntry { kind, attrs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Vec<CacheEntry>, String> {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        entries("--cache-from", &values).map_err(|error| error.to_string())
    }

    #[test]
    fn every_spelling_is_read() {
        let found = read(&[
            "user/app:cache,other",
            "type=registry,ref=a.example/b,\"x=1,2\"",
            "type=local,src=relative",
        ])
        .expect("fine");
        let kinds: Vec<&str> = found.iter().map(|entry| entry.kind.as_str()).collect();
        assert_eq!(kinds, ["registry", "registry", "registry", "local"]);
        assert_eq!(found[1].attrs["ref"], "other");
        assert_eq!(found[2].attrs["x"], "1,2");
        assert!(found[3].attrs["src"].starts_with('/'), "{:?}", found[3]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(read(&["ref=a"]).expect_err("no type").contains("it has no type"));
        assert!(
            read(&["type=local,src"])
                .expect_err("no value")
                .contains("key=value")
        );
        assert!(read(&["a", "a"]).expect_err("twice").contains("named twice"));
    }
}
