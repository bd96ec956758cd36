//! An image as an OCI archive or layout, or as an archive Docker loads.
//!
//! ```text
//! oci-layout   index.json   blobs/sha256/<hex> …   manifest.json (for Docker)
//! ```
//!
//! Everything in it has the same time and owner: equal images make equal archives.

use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use cache::Cache;
use oci::{Descriptor, Digest, Index, OCI_INDEX};
use serde_json::json;
use solver::progress::Sink;

use super::attrs::{Attrs, Place};
use super::image::BuiltImage;
use super::{Dest, ExportError, blocking};
use crate::meter::SinkMeter;
use crate::worker::Session;
use crate::worker::Worker;

/// The annotation with an image's full name.
const FULL_NAME: &str = "io.containerd.image.name";
/// The annotation with its tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The caller's store for results.
const CALLERS_STORE: &str = "export";
/// The file that says that a folder is an image layout.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Writes the archive, or a layout if `dest` is a directory.
pub(super) async fn give(
    worker: &Worker,
    built: BuiltImage,
    attrs: &Attrs,
    for_docker: bool,
    dest: Dest,
    sink: &Sink,
) -> Result<(), ExportError> {
    let meter = SinkMeter::shared(sink.clone());
    built.fetch_layers(&worker.cache, &meter).await?;
    let _activity = sink.begin("sending tarball", "sending");
    let (cache, attrs) = (worker.cache.clone(), attrs.clone());
    blocking(move || match dest {
        Dest::Writer(writer) => write(&cache, &built, &attrs, for_docker, &mut Tar::new(writer)),
        Dest::Dir(folder) => write(&cache, &built, &attrs, for_docker, &mut Folder { folder }),
        Dest::Aside(aside) => {
            let folder = aside.path().join("out");
            write(&cache, &built, &attrs, for_docker, &mut Folder { folder })
        }
        Dest::Caller => Err(ExportError::NoDestination),
    })
    .await
}

/// Sends the blobs into a store of the caller's, what names others after those.
pub(super) async fn give_blobs(
    worker: &Worker,
    session: &Session,
    built: &BuiltImage,
    sink: &Sink,
) -> Result<(), ExportError> {
    let meter = SinkMeter::shared(sink.clone());
    built.fetch_layers(&worker.cache, &meter).await?;
    let _activity = sink.begin("copying files", "copying");
    let is_document = |digest: &Digest| {
        let mut manifests = built.documents().map(|manifest| manifest.descriptor.digest);
        (
            *digest == built.target.digest,
            manifests.any(|manifest| manifest == *digest),
        )
    };
    let mut blobs = built.blobs();
    blobs.sort_by_key(|digest| (is_document(digest), *digest));
    blobs.dedup();
    for digest in &blobs {
        let file = worker.cache.content().open(digest)?;
        let size = file
            .metadata()
            .map_err(|source| ExportError::Write {
                action: format!("read blob {digest}"),
                source,
            })?
            .len();
        let contents = Box::new(tokio::fs::File::from_std(file));
        session
            .caller()
            .put_blob(CALLERS_STORE, digest, size, contents)
            .await?;
    }
    Ok(())
}

/// Takes the files of an archive.
trait Out {
    fn add(&mut self, path: &str, size: u64, contents: &mut dyn Read) -> io::Result<()>;
    fn finish(&mut self) -> io::Result<()>;
}

fn write(
    cache: &Cache,
    built: &BuiltImage,
    attrs: &Attrs,
    for_docker: bool,
    out: &mut dyn Out,
) -> Result<(), ExportError> {
    let failed = |path: &str| {
        let action = format!("write {path} of the image archive");
        move |source| ExportError::Write { action, source }
    };
    let mut blobs = built.blobs();
    blobs.sort();
    for digest in &blobs {
        let mut file = cache.content().open(digest)?;
        let path = blob_path(digest);
        let size = file.metadata().map_err(failed(&path))?.len();
        out.add(&path, size, &mut file).map_err(failed(&path))?;
    }
    // Compact, unlike the documents it names.
    let index = oci::go_json(&index(built, attrs), false);
    let mut documents = vec![("index.json", index)];
    if for_docker {
        documents.push(("manifest.json", docker_table(built, attrs)));
    }
    documents.push(("oci-layout", LAYOUT.to_vec()));
    for (path, bytes) in documents {
        out.add(path, bytes.len() as u64, &mut &bytes[..])
            .map_err(failed(path))?;
    }
    out.finish().map_err(failed("the end"))
}

/// One entry per name, or one without a name.
fn index(built: &BuiltImage, attrs: &Attrs) -> Index {
    let mut target = built.target.clone();
    target
        .annotations
        .extend(attrs.annotations_at(Place::IndexDescriptor, None));
    if !built.is_index {
        let platform = built.manifests.first().map(|manifest| manifest.platform.as_str());
        target
            .annotations
            .extend(attrs.annotations_at(Place::ManifestDescriptor, platform));
    }
    let named = attrs.names.iter().map(|name| {
        let mut entry = target.clone();
        entry.annotations.insert(FULL_NAME.to_owned(), name.to_string());
        entry
            .annotations
            .insert(REF_NAME.to_owned(), name.tag().unwrap_or("latest").to_owned());
        entry
    });
    let mut entries: Vec<Descriptor> = named.collect();
    if entries.is_empty() {
        entries.push(target);
    }
    Index::new(OCI_INDEX, entries)
}

/// Docker's own table of contents: single images only, so of several platforms the first.
fn docker_table(built: &BuiltImage, attrs: &Attrs) -> Vec<u8> {
    let names: Vec<_> = attrs.names.iter().map(oci::Reference::familiar).collect();
    let table = built.manifests.iter().take(1).map(|manifest| {
        let layers: Vec<_> = manifest
            .layers
            .iter()
            .map(|layer| blob_path(&layer.descriptor.digest))
            .collect();
        json!({"Config": blob_path(&manifest.config.digest), "RepoTags": names, "Layers": layers})
    });
    serde_json::Value::Array(table.collect()).to_string().into_bytes()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

struct Tar {
    tar: tar::Builder<BufWriter<Box<dyn Write + Send>>>,
    has_folders: bool,
}

impl Tar {
    fn new(writer: Box<dyn Write + Send>) -> Self {
        Self {
            tar: tar::Builder::new(BufWriter::with_capacity(256 << 10, writer)),
            has_folders: false,
        }
    }

    fn header(size: u64, mode: u32, kind: tar::EntryType) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header
    }
}

impl Out for Tar {
    fn add(&mut self, path: &str, size: u64, contents: &mut dyn Read) -> io::Result<()> {
        if !std::mem::replace(&mut self.has_folders, true) {
            for folder in ["blobs/", "blobs/sha256/"] {
                let mut header = Self::header(0, 0o755, tar::EntryType::Directory);
                self.tar.append_data(&mut header, folder, io::empty())?;
            }
        }
        let mut header = Self::header(size, 0o644, tar::EntryType::Regular);
        self.tar.append_data(&mut header, path, contents)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.tar.finish()?;
        self.tar.get_mut().flush()
    }
}

/// A layout on disk; what is there of other images stays.
struct Folder {
    folder: PathBuf,
}

impl Folder {
    /// Written aside and renamed, so that nobody reads half a file.
    fn put(&self, path: &Path, contents: &mut dyn Read) -> io::Result<()> {
        let parent = path.parent().expect("a path in a folder has a parent");
        fs::create_dir_all(parent)?;
        let mut aside = tempfile::NamedTempFile::new_in(parent)?;
        io::copy(contents, &mut aside)?;
        fs::set_permissions(aside.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        aside.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

impl Out for Folder {
    fn add(&mut self, path: &str, _: u64, contents: &mut dyn Read) -> io::Result<()> {
        self.put(&self.folder.join(path), contents)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}
