//! Caches a client asks to import. None can be imported yet; each is shown as a step that failed, and the build goes on
//! without it: a cache that is not there is a miss, and never silent.
use super::builds::Build;
use std::collections::BTreeMap;

/// What each of these steps says.
const WHY: &str = "importing a cache is not supported yet; the build goes on without it";

/// One cache to import: its type and attributes.
pub(super) type Import = (String, BTreeMap<String, String>);

/// The imports a frontend is told of (`cache-imports`, `cache-from`).
pub(super) fn of_attributes(attributes: &BTreeMap<String, String>) -> Vec<Import> {
    let listed = attributes.get("cache-imports").map_or_else(Vec::new, |text| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let entries = value.as_array().cloned().unwrap_or_default();
        let entry = |entry: serde_json::Value| {
            let attrs = entry["Attrs"].as_object().cloned().unwrap_or_default();
            let text = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let attrs = attrs.into_iter().map(|(key, value)| (key, text(value))).collect();
            (text(entry["Type"].clone()), attrs)
        };
        entries.into_iter().map(entry).collect()
    });
    let old = attributes.get("cache-from").map_or("", String::as_str);
    let old = old.split(',').filter(|name| !name.is_empty());
    let named = old.map(|name| {
        (
            "registry".to_owned(),
            BTreeMap::from([("ref".to_owned(), name.to_owned())]),
        )
    });
    listed.into_iter().chain(named).collect()
}

/// Shows that these were not imported.
pub(super) fn missed(build: &Build, imports: &[Import]) {
    for (kind, attrs) in imports {
        let place = attrs.get("ref").or_else(|| attrs.get("src")).unwrap_or(kind);
        let name = format!("importing cache manifest from {place}");
        build
            .job
            .step(&format!("{}-{name}", build.id), name)
            .finish(Some(WHY.to_owned()));
    }
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
        let kinds: Vec<&str> = found.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, ["registry", "local", "registry", "registry"]);
        assert_eq!(found[1].1["src"], "/c");
        assert_eq!(found[3].1["ref"], "c.example/y");
        let nonsense = BTreeMap::from([("cache-imports".to_owned(), "{".to_owned())]);
        assert!(of_attributes(&nonsense).is_empty());
    }
}
