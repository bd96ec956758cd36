//! `pin`: the digests of base images, written into a Dockerfile where their names stand.
//!
//! ```text
//! Dockerfile ─▶ frontend::pin::bases ─▶ digests from the registries ─▶ replace ─▶ written aside, renamed
//!                     └─▶ --check: those without a digest, and exit code 1
//! ```
//!
//! Nothing else of the file changes. Bases named by variables, stages, named contexts and `scratch` are left alone.
use super::args::{Global, PinArgs};
use super::exit::ExitStatus;
use crate::client;
use crate::config::Config;
use anyhow::{Context, Result, anyhow};
use frontend::pin::{Base, BaseKind, bases, replace};
use oci::{Digest, Reference};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A base to be pinned.
struct Wanted {
    place: Range<usize>,
    line: usize,
    /// The name as written, without digest.
    name: String,
    reference: Reference,
}

/// Pins, or says what is not pinned.
pub(super) fn run(global: &Global, args: &PinArgs) -> Result<ExitStatus> {
    let path = match &args.file {
        Some(file) => file.clone(),
        None => args.path.join("Dockerfile"),
    };
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let contexts: Vec<String> = args
        .build_contexts
        .iter()
        .map(|given| given.split('=').next().unwrap_or_default().to_owned())
        .collect();
    let found = bases(&bytes, &contexts).map_err(|error| {
        let line = error.ranges.first().map_or(0, |range| range.start.line);
        anyhow!(
            "{}: {error}",
            at(&path, usize::try_from(line).unwrap_or_default())
        )
    })?;
    if args.check {
        return check(&path, &found);
    }
    let wanted: Vec<Wanted> = found
        .iter()
        .filter_map(|base| wanted(base, args.update))
        .collect();
    for base in found.iter().filter(|base| is_unpinnable(base)) {
        super::note(&format!("{}: left alone: {}", at(&path, base.line), reason(base)));
    }
    let names: Vec<Reference> = wanted.iter().map(|wanted| wanted.reference.clone()).collect();
    let digests = match names.is_empty() {
        true => Vec::new(),
        false => client::digests(&Config::load(global.root.clone())?, &names)?,
    };
    change(&path, &bytes, &wanted, &digests, args.dry_run)
}

/// Writes the digests, or shows what would be written.
fn change(
    path: &Path,
    bytes: &[u8],
    wanted: &[Wanted],
    digests: &[Digest],
    is_dry: bool,
) -> Result<ExitStatus> {
    let mut out = std::io::stdout().lock();
    let mut texts = Vec::new();
    for (wanted, digest) in wanted.iter().zip(digests) {
        let text = format!("{}@{digest}", wanted.name);
        let before = String::from_utf8_lossy(&bytes[wanted.place.clone()]);
        if before == text {
            continue;
        }
        let at = at(path, wanted.line);
        match is_dry {
            true => writeln!(out, "{at}\n- {before}\n+ {text}")?,
            false => writeln!(out, "{at}: {text}")?,
        }
        texts.push((wanted.place.clone(), text));
    }
    if !texts.is_empty() && !is_dry {
        write(path, &replace(bytes, &texts))?;
    }
    Ok(ExitStatus::DONE)
}

/// Lists what is not pinned; what variables say is left alone here too.
fn check(path: &Path, found: &[Base]) -> Result<ExitStatus> {
    let mut out = std::io::stdout().lock();
    let mut status = ExitStatus::DONE;
    for base in found {
        let is_bare = matches!(&base.what, BaseKind::Image { reference, .. } if reference.digest().is_none());
        if is_bare || base.what == BaseKind::Scattered {
            writeln!(out, "{}: {}", at(path, base.line), reason(base))?;
            status = ExitStatus::USER;
        }
    }
    Ok(status)
}

/// What is to be asked for; with a digest and no tag there is nothing newer to ask for.
fn wanted(base: &Base, is_update: bool) -> Option<Wanted> {
    let BaseKind::Image { reference, place } = &base.what else {
        return None;
    };
    let name = base.written.split('@').next().unwrap_or_default();
    if reference.digest().is_some() && !(is_update && reference.tag().is_some()) {
        return None;
    }
    Some(Wanted {
        place: place.clone(),
        line: base.line,
        name: name.to_owned(),
        reference: Reference::parse_normalized(name).ok()?,
    })
}

/// Whether a base is an image whose name cannot be replaced.
fn is_unpinnable(base: &Base) -> bool {
    match base.what {
        // What variables add to may hold the digest itself.
        BaseKind::Variable => !base.written.contains("@sha256:"),
        BaseKind::Scattered => true,
        BaseKind::Image { .. } | BaseKind::NoImage => false,
    }
}

fn reason(base: &Base) -> String {
    match base.what {
        BaseKind::Variable => format!("{} depends on variables", base.written),
        BaseKind::Scattered => format!("{} is not written in one piece", base.written),
        BaseKind::Image { .. } | BaseKind::NoImage => format!("{} is not pinned", base.written),
    }
}

fn at(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

/// Written aside with the rights of the old file, then renamed over it; a link keeps being one.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let doing = || format!("write {}", path.display());
    let path: PathBuf = path.canonicalize().with_context(doing)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(doing)?;
    file.write_all(bytes).with_context(doing)?;
    let rights = std::fs::metadata(&path).with_context(doing)?.permissions();
    file.as_file().set_permissions(rights).with_context(doing)?;
    file.as_file().sync_all().with_context(doing)?;
    file.persist(&path).with_context(doing)?;
    Ok(())
}
