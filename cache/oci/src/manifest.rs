//! Manifests and indexes: read with suspicion, written as BuildKit prints them.
//!
//! ```text
//! bytes + Content-Type ─▶ Document::parse ─▶ Manifest | Index ─▶ to_json
//! ```
//!
//! What is refused, since two readers could understand it differently (image-spec GHSA-77vh, SECURITY 1.3):
//! documents with both `manifests` and `layers` or `config`, duplicate keys, a media type in the document that
//! is not the one it was served or described with, documents over [`MAX_MANIFEST_BYTES`], indexes over
//! [`MAX_INDEX_ENTRIES`], manifests over [`MAX_LAYERS`].
use crate::{Descriptor, descriptor::null_is_default, media_type};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fmt};

/// The most bytes a manifest or index may have.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// The most entries an index may have.
pub const MAX_INDEX_ENTRIES: usize = 10_000;
/// The most layers an image may have.
pub const MAX_LAYERS: usize = 500;

/// One image: its config and its layers, bottom first (image-spec, manifest.md).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always 2.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// OCI's or Docker's type of a manifest.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// What kind of artifact this is, where it is no image.
    #[serde(rename = "artifactType", default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// The layers, bottom first; Go prints none as `null`, which is read as none.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        serialize_with = "none_is_null"
    )]
    pub layers: Vec<Descriptor>,
    /// The manifest this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Anything else said of it.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// Several images under one name (image-spec, image-index.md).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// Always 2.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// OCI's or Docker's type of an index.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// What kind of artifact this is.
    #[serde(rename = "artifactType", default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The images, in order of preference.
    #[serde(default, deserialize_with = "null_is_default")]
    pub manifests: Vec<Descriptor>,
    /// The manifest this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Anything else said of it.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// What a reference may lead to.
#[expect(
    clippy::large_enum_variant,
    reason = "there are few of them, and none is moved often"
)]
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// Why a document is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Over the limit.
    #[error("manifest has {bytes} bytes, more than the {MAX_MANIFEST_BYTES} allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Over another limit.
    #[error("manifest has {count} {what}, more than the {limit} allowed")]
    TooMany {
        /// Layers or manifests.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// No JSON, or not of the right shape.
    #[error("malformed manifest: {0}")]
    Malformed(String),
    /// Can be read in two ways.
    #[error("ambiguous manifest: {0}")]
    Ambiguous(String),
    /// A kind we do not read.
    #[error("unsupported manifest media type {0:?}")]
    Unsupported(String),
}

impl Document {
    /// Reads a document that was served or described as `media_type` (empty: nothing was said).
    ///
    /// # Errors
    /// See the module's list.
    pub fn parse(bytes: &[u8], media_type: &str) -> Result<Document, DocumentError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(DocumentError::TooLarge { bytes: bytes.len() });
        }
        let malformed = |error: serde_json::Error| match error.to_string() {
            text if text.starts_with(DUPLICATE) => DocumentError::Ambiguous(text),
            text => DocumentError::Malformed(text),
        };
        serde_json::from_slice::<UniqueKeys>(bytes).map_err(malformed)?;
        let value: Value = serde_json::from_slice(bytes).map_err(malformed)?;
        let inside = value
            .get("mediaType")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        // Parameters such as `; charset=utf-8` say nothing about the kind.
        let outside = media_type.split(';').next().unwrap_or_default().trim();
        let is_generic = matches!(
            outside,
            "" | "application/json" | "text/plain" | "application/octet-stream"
        );
        if !inside.is_empty() && !is_generic && inside != outside {
            return Err(DocumentError::Ambiguous(format!(
                "it calls itself {inside:?} but was given as {outside:?}"
            )));
        }
        let has = |key: &str| value.get(key).is_some_and(|v| !v.is_null());
        let kind = match (inside.as_str(), is_generic) {
            ("", false) => outside.to_owned(),
            ("", true) if has("manifests") => media_type::OCI_INDEX.to_owned(),
            ("", true) => media_type::OCI_MANIFEST.to_owned(),
            (inside, _) => inside.to_owned(),
        };
        if has("manifests") && (has("layers") || has("config")) {
            return Err(DocumentError::Ambiguous(
                "it has both \"manifests\" and \"layers\" or \"config\"".into(),
            ));
        }
        if media_type::is_index(&kind) {
            if has("layers") || has("config") {
                return Err(DocumentError::Ambiguous(
                    "an index with \"layers\" or \"config\"".into(),
                ));
            }
            let mut index: Index = serde_json::from_value(value).map_err(malformed)?;
            limit("manifests", index.manifests.len(), MAX_INDEX_ENTRIES)?;
            index.media_type = kind;
            return Ok(Document::Index(index));
        }
        if media_type::is_manifest(&kind) {
            if has("manifests") {
                return Err(DocumentError::Ambiguous(
                    "an image manifest with \"manifests\"".into(),
                ));
            }
            let mut manifest: Manifest = serde_json::from_value(value).map_err(malformed)?;
            // What is no image (a cache, an artifact) is a list of blobs that nobody stacks.
            let is_image = media_type::is_image_config(&manifest.config.media_type);
            let most = if is_image { MAX_LAYERS } else { MAX_INDEX_ENTRIES };
            limit("layers", manifest.layers.len(), most)?;
            manifest.media_type = kind;
            return Ok(Document::Manifest(manifest));
        }
        Err(DocumentError::Unsupported(kind))
    }
}

fn limit(what: &'static str, count: usize, limit: usize) -> Result<(), DocumentError> {
    if count > limit {
        Err(DocumentError::TooMany { what, count, limit })
    } else {
        Ok(())
    }
}

impl Manifest {
    /// A manifest of `media_type` over `config` and `layers`.
    pub fn new(media_type: &str, config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: media_type.to_owned(),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The bytes BuildKit would write: two-space indent, Go's escapes.
    pub fn to_json(&self) -> Vec<u8> {
        go_json(self, true)
    }
}

impl Index {
    /// An index of `media_type` over `manifests`.
    pub fn new(media_type: &str, manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: media_type.to_owned(),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The bytes BuildKit would write: two-space indent, Go's escapes.
    pub fn to_json(&self) -> Vec<u8> {
        go_json(self, true)
    }
}

/// An empty list as Go prints one that was never made.
pub(crate) fn none_is_null<T: Serialize, S: serde::Serializer>(
    list: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match list {
        [] => serializer.serialize_none(),
        list => serializer.collect_seq(list),
    }
}

/// JSON as Go's encoder writes it: `<`, `>`, `&`, U+2028 and U+2029 escaped; indented by two spaces or compact.
pub fn go_json<T: Serialize>(value: &T, indent: bool) -> Vec<u8> {
    let text = if indent {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    let text = text.expect("our types have string keys and no failing serializer");
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out.into_bytes()
}

const DUPLICATE: &str = "duplicate key";

/// Accepts any JSON in which no object has a key twice.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<UniqueKeys, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = UniqueKeys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }
            fn visit_bool<E>(self, _: bool) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }
            fn visit_i64<E>(self, _: i64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }
            fn visit_u64<E>(self, _: u64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }
            fn visit_f64<E>(self, _: f64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }
            fn visit_str<E>(self, _: &str) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }
            fn visit_unit<E>(self) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<UniqueKeys, A::Error> {
                while seq.next_element::<UniqueKeys>()?.is_some() {}
                Ok(UniqueKeys)
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
                let mut seen = std::collections::HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    map.next_value::<UniqueKeys>()?;
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(format!("{DUPLICATE} {key:?}")));
                    }
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str, media_type: &str) -> Result<Document, DocumentError> {
        Document::parse(text.replace('@', D).as_bytes(), media_type)
    }

    #[test]
    fn documents_are_told_apart() {
        let manifest =
            r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"@","size":2},"layers":null}"#;
        let index = r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"@","size":2}]}"#;
        assert!(
            matches!(parse(manifest, media_type::OCI_MANIFEST), Ok(Document::Manifest(m)) if m.layers.is_empty())
        );
        assert!(matches!(parse(manifest, ""), Ok(Document::Manifest(_))));
        assert!(matches!(
            parse(manifest, "application/json; charset=utf-8"),
            Ok(Document::Manifest(_))
        ));
        assert!(matches!(
            parse(index, media_type::DOCKER_LIST),
            Ok(Document::Index(_))
        ));
        assert!(matches!(parse(index, ""), Ok(Document::Index(_))));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let both = r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        let twice = r#"{"schemaVersion":2,"layers":[],"layers":[]}"#;
        let nested = r#"{"schemaVersion":2,"manifests":[{"digest":"@","digest":"@","size":1}]}"#;
        let other =
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        for (text, media_type) in [
            (both, ""),
            (twice, ""),
            (nested, ""),
            (other, media_type::OCI_MANIFEST),
            (r#"{"schemaVersion":2,"layers":[]}"#, media_type::OCI_INDEX),
            (r#"{"schemaVersion":2,"manifests":[]}"#, media_type::OCI_MANIFEST),
        ] {
            let answer = parse(text, media_type);
            assert!(
                matches!(answer, Err(DocumentError::Ambiguous(_))),
                "{text} as {media_type:?}: {answer:?}"
            );
        }
        assert!(matches!(parse("{", ""), Err(DocumentError::Malformed(_))));
        assert!(matches!(
            parse("{}", "image/png"),
            Err(DocumentError::Unsupported(_))
        ));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(parse(&deep, ""), Err(DocumentError::Malformed(_))));
        let big = " ".repeat(MAX_MANIFEST_BYTES + 1);
        assert!(matches!(parse(&big, ""), Err(DocumentError::TooLarge { .. })));
    }

    #[test]
    fn written_as_go_writes_it() {
        let mut config = Descriptor::of(media_type::OCI_CONFIG, b"{}");
        config.annotations.insert("a".into(), "<&>".into());
        let manifest = Manifest::new(media_type::OCI_MANIFEST, config, Vec::new());
        let text = String::from_utf8(manifest.to_json()).expect("JSON is text");
        assert!(
            text.starts_with("{\n  \"schemaVersion\": 2,\n  \"mediaType\": "),
            "{text}"
        );
        assert!(text.contains("\"a\": \"\\u003c\\u0026\\u003e\""), "{text}");
        assert_eq!(
            Document::parse(text.as_bytes(), ""),
            Ok(Document::Manifest(manifest))
        );
    }
}
