//! The attributes of exporters, as BuildKit names them.

use std::collections::BTreeMap;

use cache::CompressionChoice;
use cache::layer::Level;
use oci::{Compression, Reference};

use super::{ExportError, Kind};

/// Where an annotation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Manifest,
    ManifestDescriptor,
    Index,
    IndexDescriptor,
}

/// One annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Annotation {
    pub(super) place: Place,
    /// Only for this platform.
    pub(super) platform: Option<String>,
    pub(super) key: String,
    pub(super) value: String,
}

/// What an exporter was told.
#[derive(Clone, Debug)]
pub(super) struct Attrs {
    pub(super) names: Vec<Reference>,
    /// As they were given.
    pub(super) name_text: String,
    /// OCI media types, not Docker's.
    pub(super) is_oci: bool,
    /// Whether that was said, not taken as usual.
    pub(super) types_given: bool,
    /// Manifests of statements are artifacts, not images.
    pub(super) is_artifact: bool,
    /// Statements for images only go into this one too.
    pub(super) inlines_all: bool,
    /// What the name of a file with a statement begins with.
    pub(super) attestation_prefix: String,
    pub(super) compression: CompressionChoice,
    pub(super) annotations: Vec<Annotation>,
    pub(super) push: bool,
    pub(super) push_by_digest: bool,
    /// Whether any certificate of the registry will do, and plain HTTP too.
    pub(super) is_insecure: bool,
    /// Whether the image is named in the builder's own store.
    pub(super) store: bool,
    pub(super) name_canonical: bool,
    pub(super) dangling_prefix: Option<String>,
    pub(super) epoch: Option<i64>,
    pub(super) rewrite_timestamp: Option<bool>,
    /// One folder per platform; `None` where there are several.
    pub(super) platform_split: Option<bool>,
    /// Whether files in the destination that the result lacks are removed.
    pub(super) delete: bool,
}

/// The names an attribute of each exporter may have.
const IMAGE: &[&str] = &[
    "name",
    "oci-mediatypes",
    "oci-artifact",
    "attestation-inline",
    "compression",
    "compression-level",
    "force-compression",
    "source-date-epoch",
    "rewrite-timestamp",
    "buildinfo",
    "buildinfo-attrs",
    "prefer-nondist-layers",
];
const IMAGE_ONLY: &[&str] = &[
    "push",
    "push-by-digest",
    "registry.insecure",
    "unpack",
    "store",
    "name-canonical",
    "dangling-name-prefix",
];
const FILES: &[&str] = &[
    "platform-split",
    "source-date-epoch",
    "attestation-prefix",
    "mode",
];

fn known(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Image => IMAGE.contains(&name) || IMAGE_ONLY.contains(&name) || name.starts_with("annotation"),
        Kind::Oci | Kind::Docker => IMAGE.contains(&name) || name == "tar" || name.starts_with("annotation"),
        // Clients give annotations to every output of a build; files have no manifest to carry them.
        Kind::Local | Kind::Tar if name.starts_with("annotation") => true,
        Kind::Local => FILES.contains(&name),
        Kind::Tar => FILES.contains(&name) && name != "mode",
    }
}

impl Attrs {
    pub(super) fn parse(kind: Kind, given: BTreeMap<String, String>) -> Result<Self, ExportError> {
        let mut attrs = Self {
            names: Vec::new(),
            name_text: String::new(),
            is_oci: kind != Kind::Docker,
            types_given: false,
            is_artifact: true,
            inlines_all: kind == Kind::Image,
            attestation_prefix: String::new(),
            compression: CompressionChoice::default(),
            annotations: Vec::new(),
            push: false,
            push_by_digest: false,
            is_insecure: false,
            store: true,
            name_canonical: false,
            dangling_prefix: None,
            epoch: None,
            rewrite_timestamp: None,
            platform_split: None,
            delete: false,
        };
        if kind == Kind::Docker {
            // Docker reads plain and packed layers alike; plain ones are loaded fastest and were asked for most.
            attrs.compression.kind = Compression::Gzip;
        }
        let mut is_artifact = None;
        for (name, value) in given {
            if !known(kind, &name) {
                return Err(unknown(kind, name));
            }
            if name == "oci-artifact" {
                is_artifact = Some(flag(&name, &value)?);
            } else {
                attrs.set(name, value)?;
            }
        }
        if is_artifact == Some(true) && !attrs.is_oci {
            return Err(wrong(
                "oci-artifact",
                "true",
                "it conflicts with oci-mediatypes=false",
            ));
        }
        attrs.is_artifact = is_artifact.unwrap_or(attrs.is_oci);
        if attrs.push && attrs.names.is_empty() {
            return Err(wrong("push", "true", "there is no name to push to"));
        }
        Ok(attrs)
    }

    fn set(&mut self, name: String, value: String) -> Result<(), ExportError> {
        match name.as_str() {
            "name" => {
                for text in value.split(',').filter(|text| !text.is_empty()) {
                    let parsed = Reference::parse_normalized(text);
                    self.names.push(
                        parsed
                            .map_err(|error| wrong(&name, text, &error.to_string()))?
                            .with_default_tag(),
                    );
                }
                self.name_text = value;
            }
            "oci-mediatypes" => {
                self.is_oci = flag(&name, &value)?;
                self.types_given = true;
            }
            "attestation-inline" => self.inlines_all = flag(&name, &value)?,
            "attestation-prefix" => self.attestation_prefix = value,
            "compression" => {
                self.compression.kind = match value.as_str() {
                    "uncompressed" => Compression::Uncompressed,
                    "gzip" => Compression::Gzip,
                    "zstd" => Compression::Zstd,
                    other => return Err(wrong(&name, other, "it is uncompressed, gzip or zstd")),
                };
            }
            "compression-level" => {
                let level = value
                    .parse()
                    .map_err(|_| wrong(&name, &value, "it is a number"))?;
                self.compression.level = Level::Number(level);
            }
            "force-compression" => self.compression.force = flag(&name, &value)?,
            "push" => self.push = flag(&name, &value)?,
            "push-by-digest" => self.push_by_digest = flag(&name, &value)?,
            "store" => self.store = flag(&name, &value)?,
            "name-canonical" => self.name_canonical = flag(&name, &value)?,
            "dangling-name-prefix" => self.dangling_prefix = Some(value),
            "source-date-epoch" => {
                self.epoch = Some(
                    value
                        .parse()
                        .map_err(|_| wrong(&name, &value, "it is seconds since 1970"))?,
                );
            }
            "rewrite-timestamp" => self.rewrite_timestamp = Some(flag(&name, &value)?),
            "platform-split" => self.platform_split = Some(flag(&name, &value)?),
            "mode" => {
                self.delete = match value.as_str() {
                    "copy" => false,
                    "delete" => true,
                    other => return Err(wrong(&name, other, "it is copy or delete")),
                };
            }
            "registry.insecure" => self.is_insecure = flag(&name, &value)?,
            // `tar` was looked at when the destination was chosen. The others mean nothing here: layers are
            // made into directories when something needs them, foreign layers are always kept.
            "tar" | "unpack" | "buildinfo" | "buildinfo-attrs" | "prefer-nondist-layers" => {}
            _ => self.annotations.push(annotation(&name, value)?),
        }
        Ok(())
    }

    /// The annotations of one place, for one platform.
    pub(super) fn annotations_at(&self, place: Place, platform: Option<&str>) -> BTreeMap<String, String> {
        let fits = |annotation: &&Annotation| {
            annotation.place == place
                && annotation
                    .platform
                    .as_deref()
                    .is_none_or(|wanted| Some(wanted) == platform)
        };
        self.annotations
            .iter()
            .filter(fits)
            .map(|found| (found.key.clone(), found.value.clone()))
            .collect()
    }
}

fn wrong(name: &str, value: &str, reason: &str) -> ExportError {
    ExportError::Attribute {
        name: name.to_owned(),
        value: value.to_owned(),
        reason: reason.to_owned(),
    }
}

fn unknown(kind: Kind, name: String) -> ExportError {
    let all = IMAGE
        .iter()
        .chain(IMAGE_ONLY)
        .chain(FILES)
        .chain(&["tar"])
        .filter(|other| known(kind, other));
    let same = |other: &str| {
        name.chars().filter(|c| other.contains(*c)).count() * 10 / name.len().max(other.len()).max(1)
    };
    let nearest = all
        .max_by_key(|other| same(other))
        .filter(|other| same(other) >= 7);
    let hint = nearest.map_or_else(String::new, |nearest| format!(" (did you mean {nearest}?)"));
    ExportError::UnknownAttribute { name, hint }
}

/// A flag; empty means true.
fn flag(name: &str, value: &str) -> Result<bool, ExportError> {
    match value.to_ascii_lowercase().as_str() {
        "" | "true" | "1" | "t" => Ok(true),
        "false" | "0" | "f" => Ok(false),
        _ => Err(wrong(name, value, "it is true or false")),
    }
}

/// `annotation[-index|-manifest|-index-descriptor|-manifest-descriptor][[platform]].KEY`
fn annotation(name: &str, value: String) -> Result<Annotation, ExportError> {
    let reason = "it is annotation[-index|-manifest|-index-descriptor|-manifest-descriptor][[platform]].KEY";
    let rest = name
        .strip_prefix("annotation")
        .ok_or_else(|| wrong(name, &value, reason))?;
    let end = rest.find(['[', '.']).unwrap_or(rest.len());
    let place = match &rest[..end] {
        "" | "-manifest" => Place::Manifest,
        "-manifest-descriptor" => Place::ManifestDescriptor,
        "-index" => Place::Index,
        "-index-descriptor" => Place::IndexDescriptor,
        _ => return Err(wrong(name, &value, reason)),
    };
    let (platform, rest) = match rest[end..].strip_prefix('[') {
        Some(rest) => {
            let (platform, rest) = rest.split_once(']').ok_or_else(|| wrong(name, &value, reason))?;
            (Some(platform.to_owned()), rest)
        }
        None => (None, &rest[end..]),
    };
    match rest.strip_prefix('.') {
        Some(key) if !key.is_empty() => Ok(Annotation {
            place,
            platform,
            key: key.to_owned(),
            value,
        }),
        _ => Err(wrong(name, &value, reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: Kind, given: &[(&str, &str)]) -> Result<Attrs, String> {
        let given = given
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Attrs::parse(kind, given).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        for (kind, name, expected) in [
            (
                Kind::Image,
                "compresion",
                "unknown attribute \"compresion\" of the output (did you mean compression?)",
            ),
            (Kind::Local, "push", "unknown attribute \"push\" of the output"),
            (Kind::Oci, "push", "unknown attribute \"push\" of the output"),
            (
                Kind::Image,
                "push",
                "attribute push=\"true\" of the output: there is no name to push to",
            ),
        ] {
            assert_eq!(parse(kind, &[(name, "true")]).expect_err("refused"), expected);
        }
        assert!(parse(Kind::Local, &[("annotation.a", "b")]).is_ok());
        assert!(parse(Kind::Image, &[("compression", "lzma")]).is_err());
        assert!(parse(Kind::Image, &[("push", "maybe")]).is_err());
    }

    #[test]
    fn annotations_go_where_they_say() {
        let attrs = parse(
            Kind::Image,
            &[
                ("annotation.a", "1"),
                ("annotation-index.b", "2"),
                ("annotation-manifest-descriptor[linux/arm64].c.d", "3"),
            ],
        )
        .expect("fine");
        let at = |place, platform| {
            attrs
                .annotations_at(place, platform)
                .into_iter()
                .collect::<Vec<_>>()
        };
        let pair = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        assert_eq!(at(Place::Manifest, Some("linux/amd64")), pair("a", "1"));
        assert_eq!(at(Place::Index, None), pair("b", "2"));
        assert_eq!(
            at(Place::ManifestDescriptor, Some("linux/arm64")),
            pair("c.d", "3")
        );
        assert_eq!(at(Place::ManifestDescriptor, Some("linux/amd64")), []);
        for wrong in [
            "annotation",
            "annotation-foo.k",
            "annotation[linux/amd64.k",
            "annotation.",
        ] {
            assert!(parse(Kind::Image, &[(wrong, "1")]).is_err(), "{wrong}");
        }
    }
}
