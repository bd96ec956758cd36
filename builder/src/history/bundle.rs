//! Records as a `.dockerbuild` file, as `docker buildx history export` writes it and Docker Desktop reads it.
//!
//! ```text
//! Record ─▶ config (the record as Go writes it) ─┐
//! trace (secrets blanked), log, statements, results ─▶ layers ─▶ manifest ─▶ (index of several) ─▶ tar, gzip
//! ```
//!
//! What a record names but nobody has any more is left out. Nothing of the file tells which machine wrote it but what the
//! builds themselves showed.
use super::go_record;
use super::record::Record;
use super::store::{History, HistoryError};
use flate2::Compression;
use flate2::write::GzEncoder;
use oci::{Descriptor, Digest};
use regex::Regex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

pub(super) const RECORD: &str = "application/vnd.buildkit.historyrecord.v0";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Says of a result what it is; its own type would make readers look for its children.
const RESULT_TYPE: &str = "vnd.export-build.descriptor.mediatype";
const REFERENCE: &str = "vnd.buildkit.history.reference";
/// More than any log or trace of a sane build.
const MAX_BLOB_BYTES: u64 = 1 << 30;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A blob cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The file cannot be written.
    #[error("write the bundle")]
    Write(#[from] io::Error),
    /// A blob is too large to be one.
    #[error("{0} is too large")]
    TooLarge(Digest),
}

/// Writes records; `store` is the folder of the builder's store, whose blobs are results.
///
/// # Errors
/// [`BundleError`].
pub fn write(history: &History, store: &Path, records: &[Record], to: impl Write) -> Result<(), BundleError> {
    let mut bundle = Bundle {
        history,
        store: store.join("blobs/sha256"),
        blobs: BTreeMap::new(),
    };
    let mut manifests = records
        .iter()
        .map(|record| Ok((record, bundle.record(record)?)))
        .collect::<Result<Vec<_>, BundleError>>()?;
    let top = match &mut manifests[..] {
        [(_, one)] => one.clone(),
        several => {
            let manifests = several.iter_mut().map(|(record, manifest)| {
                manifest["annotations"] = json!({ REFERENCE: record.id });
                manifest.clone()
            });
            let manifests: Vec<Value> = manifests.collect();
            bundle.json(
                INDEX,
                &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}),
            )
        }
    };
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]});
    bundle.pack(&index, to)
}

struct Bundle<'a> {
    history: &'a History,
    store: PathBuf,
    blobs: BTreeMap<Digest, Vec<u8>>,
}

impl Bundle<'_> {
    /// Adds a record; answers the descriptor of its manifest.
    fn record(&mut self, record: &Record) -> Result<Value, BundleError> {
        let mut layers = Vec::new();
        let mut trace = None;
        if let Some(kept) = &record.trace
            && let Some(bytes) = self.read(&kept.digest)?
        {
            let one = self.blob(&kept.media_type, blanked(&bytes));
            trace = Some(one.clone());
            layers.push(one);
        }
        let config = self.json(RECORD, &go_record::write(record, trace.as_ref()));
        layers.extend(self.kept(record.log.as_ref())?);
        for statement in record.statements.values().flatten() {
            layers.extend(self.kept(Some(statement))?);
        }
        for result in record.results.values() {
            if let Some(mut layer) = self.kept(result.descriptor.as_ref())? {
                layer["annotations"] = json!({ RESULT_TYPE: layer["mediaType"] });
                layer["mediaType"] = json!("application/json");
                layers.push(layer);
            }
        }
        layers.extend(self.kept(record.external_error.as_ref())?);
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        Ok(self.json(MANIFEST, &manifest))
    }

    /// Adds what a record names, if it is still there.
    fn kept(&mut self, named: Option<&Descriptor>) -> Result<Option<Value>, BundleError> {
        let Some(named) = named else { return Ok(None) };
        let bytes = self.read(&named.digest)?;
        Ok(bytes.map(|bytes| self.blob(&named.media_type, bytes)))
    }

    /// Of the history, else of the store.
    fn read(&self, digest: &Digest) -> Result<Option<Vec<u8>>, BundleError> {
        let found = match self.history.open_blob(digest)? {
            Some(file) => Some(file),
            None => std::fs::File::open(self.store.join(digest.hex())).ok(),
        };
        let Some(file) = found else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(MAX_BLOB_BYTES + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > MAX_BLOB_BYTES {
            true => Err(BundleError::TooLarge(*digest)),
            false => Ok(Some(bytes)),
        }
    }

    fn json(&mut self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, format!("{value:#}").into_bytes())
    }

    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        self.blobs.insert(digest, bytes);
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
    }

    fn pack(&self, index: &Value, to: impl Write) -> Result<(), BundleError> {
        let mut tar = tar::Builder::new(GzEncoder::new(to, Compression::default()));
        for folder in ["blobs/", "blobs/sha256/"] {
            tar.append_data(
                &mut header(tar::EntryType::Directory, 0o755, 0),
                folder,
                io::empty(),
            )?;
        }
        let mut file = |name: &str, mode, bytes: &[u8]| {
            let mut header = header(tar::EntryType::Regular, mode, bytes.len() as u64);
            tar.append_data(&mut header, name, bytes)
        };
        for (digest, bytes) in &self.blobs {
            file(&format!("blobs/sha256/{}", digest.hex()), 0o444, bytes)?;
        }
        file("index.json", 0o644, index.to_string().as_bytes())?;
        file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        tar.into_inner()?.finish()?.flush()?;
        Ok(())
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

/// A trace with what looks like a credential blanked, as clients put their command lines into it.
fn blanked(trace: &[u8]) -> Vec<u8> {
    const SECRETS: [(&str, &str); 3] = [
        (
            "(?i)(ghtoken|token|access_key_id|secret_access_key|session_token)=[^ ,\"\\\\]+",
            "${1}=xxxxx",
        ),
        ("gh[us]_[A-Za-z0-9]{36}", "xxxxx"),
        ("github_pat_[A-Za-z0-9_]{82}", "xxxxx"),
    ];
    let text = String::from_utf8_lossy(trace).into_owned();
    let patterns = SECRETS
        .iter()
        .filter_map(|(pattern, with)| Some((Regex::new(pattern).ok()?, with)));
    patterns
        .fold(text, |text, (pattern, with)| {
            pattern.replace_all(&text, *with).into_owned()
        })
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Limits;
    use flate2::read::GzDecoder;

    #[test]
    fn a_record_becomes_a_layout() {
        let folder = tempfile::tempdir().expect("a folder");
        let history = History::new(folder.path(), Limits::default());
        let running = history.begin(Record::new("one")).expect("begun");
        running.update(|record| {
            record.attributes = [("filename".to_owned(), "Dockerfile".to_owned())].into();
            record.trace = history.attach("application/x", br#"{"a":"token=abc"}"#).ok();
        });
        let record = running.finish(None).expect("filed");
        let mut file = Vec::new();
        write(&history, folder.path(), &[record], &mut file).expect("written");
        let mut names = BTreeMap::new();
        let mut archive = tar::Archive::new(GzDecoder::new(&file[..]));
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("read");
            let path = entry.path().expect("a name").display().to_string();
            names.insert(path, bytes);
        }
        let index: Value = serde_json::from_slice(&names["index.json"]).expect("JSON");
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("a digest").replace(':', "/");
            names[&format!("blobs/{digest}")].clone()
        };
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).expect("JSON");
        assert_eq!(manifest["config"]["mediaType"], RECORD);
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).expect("JSON");
        assert_eq!(
            (&config["Ref"], &config["FrontendAttrs"]["filename"]),
            (&json!("one"), &json!("Dockerfile"))
        );
        assert_eq!(config["trace"]["digest"], manifest["layers"][0]["digest"]);
        assert_eq!(blob(&manifest["layers"][0]), br#"{"a":"token=xxxxx"}"#);
        assert!(config.get("error").is_none() && config["CreatedAt"]["seconds"].is_u64());
    }
}
