//! Caches of other machines: what `--cache-from` and `--cache-to` ask for, by either door.
//!
//! ```text
//! CacheEntry (type, attributes) ─▶ Import ─ step "importing cache manifest from …" ─▶ Job::import
//!                               └─▶ Export ─ keys of the results ─ step "exporting cache to …" ─▶ answer
//! ```
//!
//! What cannot be imported is a step that failed and a miss: never a build that fails. What cannot be exported fails the
//! build, unless the entry says `ignore-error`. An attribute nobody knows is refused by name.
use super::BuildError;
use super::run::Engine;
use cache::layer::Level;
use cache::remote::Shape;
use cache::{CacheError, CompressionChoice, ImmutableRef};
use keys::CacheKey;
use oci::{Compression, Digest, Reference};
use parking_lot::Mutex;
use solver::{ExportedKey, Job, OpError, SolveError};
use std::collections::BTreeMap;
use std::sync::Arc;
use worker::Session;
use worker::remote::{CacheExport, CachePlace, Imported, Mode};

/// The key of the answer that describes an exported cache's manifest.
pub(crate) const MANIFEST: &str = "cache.manifest";

/// A cache as a client names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheEntry {
    /// `registry`, `local`, `inline`, …
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// Why an entry makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A type that is known to BuildKit and not here.
    #[error("caches of type {0:?} are not supported yet")]
    Later(String),
    /// A type nobody knows.
    #[error("unknown cache {what}: {kind:?}")]
    Unknown {
        /// `importer` or `exporter`.
        what: &'static str,
        /// The type.
        kind: String,
    },
    /// An attribute it needs.
    #[error("{kind} cache {what} requires {name}")]
    Missing {
        /// `importer` or `exporter`.
        what: &'static str,
        /// The type.
        kind: String,
        /// The attribute.
        name: &'static str,
    },
    /// An attribute nobody knows.
    #[error("unknown attribute {name:?} of the {kind} cache {what}")]
    UnknownAttribute {
        /// `importer` or `exporter`.
        what: &'static str,
        /// The type.
        kind: String,
        /// The attribute.
        name: String,
    },
    /// An attribute that makes no sense.
    #[error("attribute {name}={value:?} of the cache: {reason}")]
    Attribute {
        /// The attribute.
        name: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A cache to be imported.
#[derive(Clone, Debug)]
struct Import {
    place: CachePlace,
    digest: Option<Digest>,
}

/// A cache to be exported.
#[derive(Clone, Debug)]
pub(crate) enum Export {
    /// Inside the image.
    Inline,
    /// To a place of its own.
    Remote {
        export: CacheExport,
        /// A failure is shown and goes no further.
        ignores_errors: bool,
    },
}

const IMPORTER: &str = "importer";
const EXPORTER: &str = "exporter";
/// What BuildKit has and this program not yet.
const LATER: [&str; 3] = ["gha", "s3", "azblob"];
/// What exports to a place have in common.
const PACKING: [&str; 7] = [
    "mode",
    "ignore-error",
    "image-manifest",
    "oci-mediatypes",
    "compression",
    "compression-level",
    "force-compression",
];

impl CacheEntry {
    /// What it is called in the list of steps.
    pub(crate) fn title(&self) -> String {
        let place = self.attrs.get("ref").or_else(|| self.attrs.get("src"));
        let place = place.unwrap_or(&self.kind);
        format!("importing cache manifest from {place}")
    }

    fn text(&self, what: &'static str, name: &'static str) -> Result<&str, EntryError> {
        let found = self.attrs.get(name).map(String::as_str);
        found
            .filter(|text| !text.is_empty())
            .ok_or_else(|| EntryError::Missing {
                what,
                kind: self.kind.clone(),
                name,
            })
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, EntryError> {
        let read = |text: &String| match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(wrong(name, text, "it is true or false")),
        };
        self.attrs.get(name).map(read).transpose()
    }

    fn only(&self, what: &'static str, known: &[&[&str]]) -> Result<(), EntryError> {
        let is_known = |name: &&String| known.iter().any(|names| names.contains(&name.as_str()));
        match self.attrs.keys().find(|name| !is_known(name)) {
            None => Ok(()),
            Some(name) => Err(EntryError::UnknownAttribute {
                what,
                kind: self.kind.clone(),
                name: name.clone(),
            }),
        }
    }

    fn registry(&self, what: &'static str) -> Result<CachePlace, EntryError> {
        let is_insecure = self.flag("registry.insecure")?.unwrap_or(false);
        let name = self.text(what, "ref")?;
        let reference = Reference::parse_normalized(name);
        let reference = reference.map_err(|error| wrong("ref", name, error))?;
        Ok(CachePlace::Registry {
            reference: reference.with_default_tag(),
            is_insecure,
        })
    }

    fn unknown(&self, what: &'static str) -> EntryError {
        let kind = self.kind.clone();
        if LATER.contains(&kind.as_str()) {
            EntryError::Later(kind)
        } else {
            EntryError::Unknown { what, kind }
        }
    }

    fn import(&self) -> Result<Import, EntryError> {
        match self.kind.as_str() {
            "registry" => {
                self.only(IMPORTER, &[&["ref", "registry.insecure"]])?;
                let place = self.registry(IMPORTER)?;
                Ok(Import { place, digest: None })
            }
            "local" => {
                self.only(IMPORTER, &[&["src", "digest", "tag"]])?;
                let place = CachePlace::Store(store_name(self.text(IMPORTER, "src")?));
                // Clients look it up by the tag; whoever reads the cache asks for it.
                let read = |text: &String| Digest::parse(text).map_err(|error| wrong("digest", text, error));
                let digest = self.attrs.get("digest").map(read).transpose()?;
                Ok(Import { place, digest })
            }
            _ => Err(self.unknown(IMPORTER)),
        }
    }

    /// Whether it can be imported, as far as its words go.
    pub(crate) fn check_import(&self) -> Result<(), EntryError> {
        self.import().map(drop)
    }

    pub(crate) fn export(&self) -> Result<Export, EntryError> {
        let place = match self.kind.as_str() {
            "inline" => {
                // The mode is always min; clients pass it all the same.
                self.only(EXPORTER, &[&["mode", "ignore-error"]])?;
                return Ok(Export::Inline);
            }
            "registry" => {
                self.only(EXPORTER, &[&["ref", "registry.insecure"], &PACKING])?;
                let place = self.registry(EXPORTER)?;
                if let CachePlace::Registry { reference, .. } = &place
                    && let Some(digest) = reference.digest()
                {
                    let reason = "what is to be exported has no digest yet";
                    return Err(wrong("ref", &digest.to_string(), reason));
                }
                place
            }
            "local" => {
                self.only(EXPORTER, &[&["dest", "tag", "reset"], &PACKING])?;
                CachePlace::Store(store_name(self.text(EXPORTER, "dest")?))
            }
            _ => return Err(self.unknown(EXPORTER)),
        };
        let export = CacheExport {
            place,
            shape: self.shape()?,
            mode: match self.attrs.get("mode").map(String::as_str) {
                None | Some("min") => Mode::Min,
                Some("max") => Mode::Max,
                Some(other) => return Err(wrong("mode", other, "it is min or max")),
            },
            compression: self.compression()?,
        };
        Ok(Export::Remote {
            export,
            ignores_errors: self.flag("ignore-error")?.unwrap_or(false),
        })
    }

    fn shape(&self) -> Result<Shape, EntryError> {
        let is_oci = self.flag("oci-mediatypes")?.unwrap_or(true);
        match (self.flag("image-manifest")?.unwrap_or(is_oci), is_oci) {
            (true, true) => Ok(Shape::Image),
            (false, true) => Ok(Shape::Index),
            (false, false) => Ok(Shape::List),
            (true, false) => Err(wrong(
                "image-manifest",
                "true",
                "an image manifest of a cache has OCI media types",
            )),
        }
    }

    fn compression(&self) -> Result<CompressionChoice, EntryError> {
        let mut choice = CompressionChoice::default();
        if let Some(kind) = self.attrs.get("compression") {
            choice.kind = match kind.as_str() {
                "uncompressed" => Compression::Uncompressed,
                "gzip" => Compression::Gzip,
                "zstd" => Compression::Zstd,
                other => return Err(wrong("compression", other, "it is uncompressed, gzip or zstd")),
            };
        }
        if let Some(level) = self.attrs.get("compression-level") {
            let number = level
                .parse()
                .map_err(|_| wrong("compression-level", level, "it is a number"))?;
            choice.level = Level::Number(number);
        }
        choice.force = self.flag("force-compression")?.unwrap_or(false);
        Ok(choice)
    }
}

/// What a folder of the client is called on the wire.
pub(crate) fn store_name(folder: &str) -> String {
    format!("local:{folder}")
}

fn wrong(name: &str, value: &str, reason: impl ToString) -> EntryError {
    EntryError::Attribute {
        name: name.to_owned(),
        value: value.to_owned(),
        reason: reason.to_string(),
    }
}

/// The caches one build imported.
pub(crate) type AllImported = Mutex<Vec<Arc<Imported>>>;

/// A build failed: a layer of an imported result may be the cause, and shall not fail the next one too.
pub(crate) fn forget(imported: &AllImported) {
    imported.lock().iter().for_each(|cache| cache.forget());
}

/// Whether something of imported caches was used.
pub(crate) fn are_used(imported: &AllImported) -> bool {
    imported.lock().iter().any(|cache| cache.is_used())
}

/// Whether a vertex failed on something of the store.
pub(crate) fn is_of_store(error: &SolveError) -> bool {
    matches!(error, SolveError::Vertex { error, .. } if error.cause.find::<CacheError>().is_some())
}

/// Whether a build failed on something of the store, where some of it came from imported caches.
pub(crate) fn may_be_broken(imported: &AllImported, error: &BuildError) -> bool {
    are_used(imported)
        && match error {
            BuildError::Solve(error) => is_of_store(error),
            BuildError::Export { .. } | BuildError::CacheExport { .. } => true,
            _ => false,
        }
}

/// Imports caches for the builds of a job that begin from now on, all at once, and adds them to `all`.
pub(crate) async fn import(
    engine: &Engine,
    job: &Job<ImmutableRef>,
    session: &Session,
    entries: &[CacheEntry],
    all: &AllImported,
) {
    let imports = entries.iter().map(|entry| async move {
        let title = entry.title();
        let step = job.step(&format!("{}-{title}", job.id()), &title);
        let imported = match entry.import() {
            Ok(Import { place, digest }) => {
                let read = engine.worker.import_cache(session, &place, digest, step.sink());
                read.await.map_err(|error| text(&error))
            }
            Err(error) => Err(error.to_string()),
        };
        match imported {
            Ok(caches) => {
                for cache in caches {
                    all.lock().push(cache.clone());
                    job.import(cache);
                }
                step.finish(None);
            }
            Err(reason) => {
                tracing::warn!(%title, %reason, "a cache is not imported");
                step.finish(Some(reason));
            }
        }
    });
    futures_util::future::join_all(imports).await;
}

/// The keys of a result, for [`worker::export::PlatformResult`].
pub(crate) fn inline(
    job: &Job<ImmutableRef>,
    exports: &[Export],
    keys: &[CacheKey],
) -> Option<Arc<Vec<ExportedKey<ImmutableRef>>>> {
    let is_wanted = exports.iter().any(|export| matches!(export, Export::Inline));
    if !is_wanted {
        return None;
    }
    match job.export(keys) {
        Ok(exported) => Some(Arc::new(exported)),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the image has no cache in it"
            );
            None
        }
    }
}

/// Why a cache was not exported.
#[derive(Debug, thiserror::Error)]
#[error("export the cache to {place}: {reason}")]
pub(crate) struct ExportError {
    place: String,
    reason: String,
    pub(crate) blame: solver::Blame,
    /// Whether something of the store could not be read.
    pub(crate) is_of_store: bool,
}

/// Exports what is known of the results' keys to every place; what is to be answered.
pub(crate) async fn export(
    engine: &Engine,
    job: &Job<ImmutableRef>,
    session: &Session,
    keys: &[CacheKey],
    exports: &[Export],
) -> Result<BTreeMap<String, String>, ExportError> {
    let mut response = BTreeMap::new();
    // One after the other: they pack the same layers.
    for (number, export) in exports.iter().enumerate() {
        let Export::Remote {
            export,
            ignores_errors,
        } = export
        else {
            continue;
        };
        let (title, place) = match &export.place {
            CachePlace::Registry { reference, .. } => ("exporting cache to registry", reference.to_string()),
            CachePlace::Store(name) => ("exporting cache to client directory", name.clone()),
        };
        let step = job.step(&format!("{}-cache-{number}", job.id()), title);
        let given = one(engine, session, job.export(keys), export, step.sink()).await;
        step.finish(given.as_ref().err().map(text));
        match given {
            Ok(Some(manifest)) => {
                let text = serde_json::to_string(&manifest).unwrap_or_default();
                response.insert(MANIFEST.to_owned(), text);
            }
            Ok(None) => {}
            Err(error) if *ignores_errors => {
                tracing::warn!(%place, error = text(&error), "the cache is not exported");
            }
            Err(error) => {
                return Err(ExportError {
                    place,
                    reason: text(&error),
                    blame: error.blame(),
                    is_of_store: error.find::<CacheError>().is_some(),
                });
            }
        }
    }
    Ok(response)
}

async fn one(
    engine: &Engine,
    session: &Session,
    keys: Result<Vec<ExportedKey<ImmutableRef>>, keys::StoreError>,
    export: &CacheExport,
    sink: &solver::progress::Sink,
) -> Result<Option<oci::Descriptor>, OpError> {
    let collected = {
        let _activity = sink.begin("preparing build cache for export", "preparing");
        let exported = keys.map_err(OpError::environment)?;
        let worker = &engine.worker;
        worker
            .collect_cache(exported, export.mode, export.compression, sink)
            .await?
    };
    engine
        .worker
        .export_cache(session, &collected, export, sink)
        .await
}

/// An error with its causes.
fn text(error: &OpError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error.cause());
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: &str, attrs: &[(&str, &str)]) -> CacheEntry {
        let attrs = attrs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        CacheEntry {
            kind: kind.to_owned(),
            attrs: attrs.collect(),
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (kind, attrs, expected) in [
            ("gha", &[][..], "caches of type \"gha\" are not supported yet"),
            ("s3", &[], "caches of type \"s3\" are not supported yet"),
            ("azblob", &[], "caches of type \"azblob\" are not supported yet"),
            ("floppy", &[], "unknown cache exporter: \"floppy\""),
            ("registry", &[], "registry cache exporter requires ref"),
            ("local", &[], "local cache exporter requires dest"),
            (
                "registry",
                &[("ref", "a/b"), ("modus", "max")],
                "unknown attribute \"modus\" of the registry cache exporter",
            ),
            (
                "registry",
                &[("ref", "a/b"), ("mode", "most")],
                "attribute mode=\"most\" of the cache: it is min or max",
            ),
            (
                "local",
                &[
                    ("dest", "/c"),
                    ("image-manifest", "true"),
                    ("oci-mediatypes", "false"),
                ],
                "attribute image-manifest=\"true\" of the cache: an image manifest of a cache has OCI media types",
            ),
        ] {
            let error = entry(kind, attrs).export().expect_err(kind);
            assert_eq!(error.to_string(), expected);
        }
        let import = |kind, attrs| {
            entry(kind, attrs)
                .check_import()
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            import("local", &[]),
            Err("local cache importer requires src".to_owned())
        );
        assert!(import("local", &[("src", "/c"), ("digest", "sha256:a")]).is_err());
        assert_eq!(
            import("inline", &[]),
            Err("unknown cache importer: \"inline\"".to_owned())
        );
        assert!(import("registry", &[("ref", "not a name")]).is_err());
        assert_eq!(import("registry", &[("ref", "a/b")]), Ok(()));
    }

    #[test]
    fn attributes_say_how_it_is_written() {
        let export = |attrs: &[(&str, &str)]| match entry("local", attrs).export() {
            Ok(Export::Remote { export, .. }) => export,
            other => panic!("{other:?}"),
        };
        let plain = export(&[("dest", "/c")]);
        assert_eq!((plain.shape, plain.mode), (Shape::Image, Mode::Min));
        assert_eq!(plain.place, CachePlace::Store("local:/c".to_owned()));
        let list = export(&[("dest", "/c"), ("oci-mediatypes", "false"), ("mode", "max")]);
        assert_eq!((list.shape, list.mode), (Shape::List, Mode::Max));
        let index = export(&[
            ("dest", "/c"),
            ("image-manifest", "false"),
            ("compression", "zstd"),
            ("force-compression", "true"),
        ]);
        assert_eq!(index.shape, Shape::Index);
        assert_eq!(index.compression.kind, Compression::Zstd);
        assert!(index.compression.force);
    }
}
