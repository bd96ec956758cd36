//! The files of a result, in a directory or a tar.
//!
//! ```text
//! view ─ walk ─▶ directory (owner: whoever runs the build)
//!             └▶ tar (owners kept)
//! ```
//!
//! Files of several platforms go into one folder each, named `linux_amd64`. What is stated about them goes beside them,
//! with every file as a subject.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use cache::layer::TarLayerWriter;
use cache::view::View;
use cache::{Meter, NoMeter};
use oci::{Digest, DigestWriter, go_json};
use solver::progress::Sink;
use tree::{Entry, Kind, Root, RootPath, Timestamp};

use super::attest::statement;
use super::attrs::Attrs;
use super::{Dest, ExportError, PlatformResult, Source, blocking};
use crate::meter::SinkMeter;
use crate::worker::Worker;

/// One platform's files and the folder they go into; empty for none.
struct Part {
    folder: RootPath,
    view: View,
    epoch: Option<i64>,
    /// Names and contents of the files with statements.
    statements: Vec<(String, Vec<u8>)>,
}

pub(super) async fn give(
    worker: &Worker,
    source: &Source,
    attrs: &Attrs,
    dest: Dest,
    sink: &Sink,
) -> Result<(), ExportError> {
    let meter = SinkMeter::shared(sink.clone());
    let is_split = attrs
        .platform_split
        .unwrap_or(source.is_index || source.platforms.len() > 1);
    let mut parts = Vec::new();
    for platform in &source.platforms {
        let folder = if is_split {
            platform.id.replace('/', "_")
        } else {
            String::new()
        };
        let folder = RootPath::clean(&folder).map_err(|error| ExportError::Config {
            platform: platform.id.clone(),
            reason: error.to_string(),
        })?;
        let view = match &platform.result {
            Some(result) => result.view(&meter).await?,
            None => {
                worker
                    .cache
                    .scratch()
                    .view(&(Arc::new(NoMeter) as Arc<dyn Meter>))
                    .await?
            }
        };
        let suffix = (source.is_index && !is_split).then(|| platform.id.replace('/', "_"));
        parts.push(Part {
            statements: statements(platform, &view, attrs, suffix.as_deref()).await?,
            folder,
            view,
            epoch: attrs.epoch.or(platform.epoch),
        });
    }
    parts.sort_by(|a, b| a.folder.as_bytes().cmp(b.folder.as_bytes()));
    let _activity = sink.begin(
        if matches!(dest, Dest::Dir(_) | Dest::Aside(_)) {
            "copying files"
        } else {
            "sending tarball"
        },
        "copying",
    );
    let delete = attrs.delete;
    blocking(move || match dest {
        Dest::Dir(folder) => to_dir(&parts, &folder, delete),
        // Held here: a build that is called off does not end this thread.
        Dest::Aside(aside) => to_dir(&parts, &aside.path().join("out"), delete),
        Dest::Writer(writer) => to_tar(&parts, writer),
        Dest::Caller => Err(ExportError::NoDestination),
    })
    .await
}

fn to_tar(parts: &[Part], writer: Box<dyn Write + Send>) -> Result<(), ExportError> {
    let mut tar = TarLayerWriter::new(BufWriter::with_capacity(256 << 10, writer));
    for part in parts {
        if !part.folder.is_root() {
            let mut folder = Entry::dir(part.folder.clone(), 0o755);
            folder.mtime = Timestamp::from_secs(part.epoch.unwrap_or(0));
            tar.add(&folder, io::empty())?;
        }
        each(part, &mut |entry, contents| Ok(tar.add(entry, contents)?))?;
        each_statement(part, &mut |entry, contents| Ok(tar.add(entry, contents)?))?;
    }
    let (mut out, _) = tar.finish()?;
    out.flush().map_err(|source| ExportError::Write {
        action: "write the tar".to_owned(),
        source,
    })
}

/// Calls `give` with every entry of a part at its path in the destination.
fn each(
    part: &Part,
    give: &mut dyn FnMut(&Entry, &mut dyn Read) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let Some(top) = part.view.root() else {
        return Ok(());
    };
    let prefixed = |path: &RootPath| {
        part.folder
            .join_path(path)
            .map_err(|cause| ExportError::Tree(cause.into()))
    };
    part.view.walk(&top, &mut |node, mut entry| {
        entry.path = prefixed(&entry.path)?;
        if entry.kind == Kind::HardLink
            && let Some(target) = entry.link.take()
        {
            let target = RootPath::clean(target).map_err(|cause| ExportError::Tree(cause.into()))?;
            entry.link = Some(prefixed(&target)?.as_bytes().to_vec());
        }
        if let Some(epoch) = part.epoch {
            entry.mtime = entry.mtime.min(Timestamp::from_secs(epoch));
        }
        match entry.kind {
            Kind::File => give(&entry, &mut part.view.open(node)?),
            _ => give(&entry, &mut io::empty()),
        }
    })
}

/// Calls `give` with every file of statements.
fn each_statement(
    part: &Part,
    give: &mut dyn FnMut(&Entry, &mut dyn Read) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    for (name, bytes) in &part.statements {
        let invalid = |cause: tree::PathError| ExportError::Tree(cause.into());
        let path = RootPath::clean(name).map_err(invalid)?;
        let path = part.folder.join_path(&path).map_err(invalid)?;
        let mut entry = Entry::new(path, Kind::File, 0o600);
        entry.size = bytes.len() as u64;
        entry.mtime = part.epoch.map_or_else(Timestamp::now, Timestamp::from_secs);
        give(&entry, &mut &bytes[..])?;
    }
    Ok(())
}

/// The statements about one platform's files, as files.
async fn statements(
    platform: &PlatformResult,
    view: &View,
    attrs: &Attrs,
    suffix: Option<&str>,
) -> Result<Vec<(String, Vec<u8>)>, ExportError> {
    let wanted = platform.attestations.iter().filter(|one| !one.is_inline_only);
    let mut files = BTreeMap::new();
    let mut subjects = None;
    for attestation in wanted {
        let subjects = match &subjects {
            Some(subjects) => subjects,
            None => {
                let view = view.clone();
                subjects.insert(blocking(move || digests(&view)).await?)
            }
        };
        let base = attestation.file.rsplit('/').next().unwrap_or_default();
        let mut name = format!("{}{base}", attrs.attestation_prefix);
        if let Some(suffix) = suffix {
            let dot = name.rfind('.').unwrap_or(name.len());
            name.insert_str(dot, &format!(".{suffix}"));
        }
        let bytes = go_json(&statement(attestation, subjects, &[])?, true);
        if files.insert(name.clone(), bytes).is_some() {
            return Err(ExportError::SameFile(name));
        }
    }
    Ok(files.into_iter().collect())
}

/// Every file with its digest.
fn digests(view: &View) -> Result<Vec<(String, Digest)>, ExportError> {
    let Some(top) = view.root() else {
        return Ok(Vec::new());
    };
    let mut found: BTreeMap<String, Digest> = BTreeMap::new();
    let mut links = Vec::new();
    view.walk(&top, &mut |node, entry| {
        let path = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
        match entry.kind {
            Kind::File => {
                let mut hash = DigestWriter::new(io::sink());
                io::copy(&mut view.open(node)?, &mut hash).map_err(|source| ExportError::Write {
                    action: format!("read {path}"),
                    source,
                })?;
                found.insert(path, hash.finish().1);
            }
            Kind::HardLink => {
                let target = entry.link.as_deref().map(String::from_utf8_lossy);
                let target = target.unwrap_or_default();
                links.push((path, target.trim_start_matches('/').to_owned()));
            }
            Kind::Dir | Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo => {}
        }
        Ok::<_, ExportError>(())
    })?;
    for (path, target) in links {
        found.extend(found.get(&target).map(|digest| (path, *digest)));
    }
    Ok(found.into_iter().collect())
}

fn to_dir(parts: &[Part], folder: &Path, delete: bool) -> Result<(), ExportError> {
    std::fs::create_dir_all(folder).map_err(|source| ExportError::Write {
        action: format!("create {}", folder.display()),
        source,
    })?;
    let root = Root::open(folder)?;
    if delete {
        root.remove_all(&RootPath::root())?;
    }
    for part in parts {
        if !part.folder.is_root() {
            root.create_dir_all(&part.folder, 0o755)?;
        }
        let mut dirs = Vec::new();
        each(part, &mut |entry, contents| {
            place(&root, entry, contents)?;
            if entry.kind == Kind::Dir {
                dirs.push((entry.path.clone(), entry.mode, entry.mtime));
            }
            Ok(())
        })?;
        each_statement(part, &mut |entry, contents| place(&root, entry, contents))?;
        // Modes and times of directories last: making what is in them would change the times, and a
        // directory may not be writable.
        for (path, mode, mtime) in dirs.into_iter().rev() {
            root.set_mode(&path, mode)?;
            root.set_mtime(&path, mtime)?;
        }
    }
    Ok(())
}

fn place(root: &Root, entry: &Entry, contents: &mut dyn Read) -> Result<(), ExportError> {
    let path = &entry.path;
    let there = root.try_metadata(path)?;
    match (there, entry.kind) {
        (Some(there), Kind::Dir) if there.is_dir() => return Ok(()),
        (Some(_), _) => root.remove_all(path)?,
        (None, _) => {}
    }
    let link = entry.link.as_deref().unwrap_or_default();
    match entry.kind {
        Kind::Dir => return Ok(root.create_dir(path, 0o700)?),
        Kind::File => {
            let mut file = root.create_file(path, entry.mode)?;
            io::copy(contents, &mut file).map_err(|source| ExportError::Write {
                action: format!("write {}", path.display()),
                source,
            })?;
            root.set_mode(path, entry.mode)?;
        }
        Kind::Symlink => root.symlink(link, path)?,
        Kind::HardLink => {
            let existing = RootPath::clean(link).map_err(|cause| ExportError::Tree(cause.into()))?;
            return Ok(root.hard_link(&existing, path)?);
        }
        Kind::Char | Kind::Block | Kind::Fifo => root.mknod(path, entry.kind, entry.mode, entry.rdev)?,
    }
    Ok(root.set_mtime(path, entry.mtime)?)
}
