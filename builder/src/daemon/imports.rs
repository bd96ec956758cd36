//! Caches a client asks to import: told with the build, with each question of a frontend, or in a frontend's attributes.
//!
//! Each is imported once per build, by whoever names it first; the others wait for that. One that is not to be had is
//! shown as a step that failed, and the build goes on without it. So it does when a layer turns out broken that was
//! imported: what came from caches is forgotten, and what it stood for is built.
use super::builds::Build;
use crate::build::{CacheEntry, Engine, caches};
use cache::ImmutableRef;
use solver::Job;
use solver::progress::Warning;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::OnceCell;

/// The caches of one build that were named so far.
#[derive(Default)]
pub(super) struct Imports {
    named: parking_lot::Mutex<HashMap<String, Arc<OnceCell<()>>>>,
    imported: caches::AllImported,
}

impl Imports {
    /// As [`caches::forget`].
    pub(super) fn forget(&self) {
        caches::forget(&self.imported);
    }

    /// Whether something of them was used, so that what is broken may have come with them.
    pub(super) fn are_used(&self) -> bool {
        caches::are_used(&self.imported)
    }

    /// Lets this build go on without what was imported, which turned out to be broken, and says so.
    ///
    /// Differs: to BuildKit this is the end of the build. A cache shall never be worse than none.
    pub(super) fn distrust(&self, job: &Job<ImmutableRef>, error: &dyn std::fmt::Display) {
        self.forget();
        job.distrust_imports();
        let short = format!("what was imported could not be used, all is built without it: {error}");
        tracing::warn!(build = job.id(), %error, "an imported cache is broken");
        let title = "[internal] doing without the imported caches";
        let step = job.step(&format!("{}-distrust", job.id()), title);
        step.sink().warn(Warning {
            level: 1,
            short,
            ..Warning::default()
        });
        step.finish(None);
    }
}

/// The most caches of one build.
const MAX_IMPORTS: usize = 1000;

/// The imports a frontend is told of (`cache-imports`, `cache-from`).
pub(super) fn of_attributes(attributes: &BTreeMap<String, String>) -> Vec<CacheEntry> {
    let listed = attributes.get("cache-imports").map_or_else(Vec::new, |text| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let entries = value.as_array().cloned().unwrap_or_default();
        let entry = |entry: serde_json::Value| {
            let attrs = entry["Attrs"].as_object().cloned().unwrap_or_default();
            let text = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let attrs = attrs.into_iter().map(|(key, value)| (key, text(value))).collect();
            CacheEntry {
                kind: text(entry["Type"].clone()),
                attrs,
            }
        };
        entries.into_iter().map(entry).collect()
    });
    let old = attributes.get("cache-from").map_or("", String::as_str);
    let old = old.split(',').filter(|name| !name.is_empty());
    let named = old.map(of_name);
    listed.into_iter().chain(named).collect()
}

/// A cache of a registry by its name.
pub(super) fn of_name(name: &str) -> CacheEntry {
    CacheEntry {
        kind: "registry".to_owned(),
        attrs: BTreeMap::from([("ref".to_owned(), name.to_owned())]),
    }
}

/// Imports what was not imported yet, and waits for what others import.
pub(super) async fn import(engine: &Engine, build: &Build, entries: &[CacheEntry]) {
    let once = |entry: &CacheEntry| {
        let mut known = build.imports.named.lock();
        let is_new = known.len() < MAX_IMPORTS;
        let name = format!("{entry:?}");
        if is_new {
            Some(known.entry(name).or_default().clone())
        } else {
            known.get(&name).cloned()
        }
    };
    let imports = entries.iter().filter_map(|entry| Some((once(entry)?, entry)));
    let imports = imports.map(|(once, entry)| async move {
        let (entry, all) = (std::slice::from_ref(entry), &build.imports.imported);
        let import = || caches::import(engine, &build.job, &build.session, entry, all);
        once.get_or_init(import).await;
    });
    futures_util::future::join_all(imports).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_of_both_spellings_are_found() {
        let attributes = BTreeMap::from([
            (
                "cache-imports".to_owned(),
                r#"[{"Type":"registry","Attrs":{"ref":"a.example/cache"}},{"Type":"local","Attrs":{"src":"/c"}}]"#.to_owned(),
            ),
            ("cache-from".to_owned(), "b.example/x,c.example/y".to_owned()),
        ]);
        let found = of_attributes(&attributes);
        let kinds: Vec<&str> = found.iter().map(|entry| entry.kind.as_str()).collect();
        assert_eq!(kinds, ["registry", "local", "registry", "registry"]);
        assert_eq!(found[1].attrs["src"], "/c");
        assert_eq!(found[3].attrs["ref"], "c.example/y");
        let nonsense = BTreeMap::from([("cache-imports".to_owned(), "{".to_owned())]);
        assert!(of_attributes(&nonsense).is_empty());
    }
}
