//! `push`, `pull`, `save`, `load`: images between the store and elsewhere.
use super::args::{ArchiveFormat, Global, LoadArgs, PullArgs, PushArgs, SaveArgs};
use super::exit::ExitStatus;
use super::images::{familiar, platform, store};
use super::values::UsageError;
use crate::client;
use crate::config::Config;
use crate::progress::{Kind, Look};
use crate::stored;
use anyhow::{Context, Result};
use std::io::{IsTerminal, Write};
use worker::archive::{self, Input};

/// Sends an image to its registry.
pub(super) fn push(global: &Global, args: &PushArgs) -> Result<ExitStatus> {
    let config = Config::load(global.root.clone())?;
    let target = args.target.as_deref().unwrap_or(&args.image);
    let target = stored::full_name(target)?;
    let shown = client::Shown {
        kind: kind(args.quiet)?,
        look: Look::of(&config.environment),
    };
    let digest = client::push(&config, &args.image, &target, shown)?;
    tell(
        args.quiet,
        &digest,
        &format!("pushed {} ({digest})", target.familiar()),
    )
}

/// Fetches an image from its registry.
pub(super) fn pull(global: &Global, args: &PullArgs) -> Result<ExitStatus> {
    let config = Config::load(global.root.clone())?;
    let name = stored::full_name(&args.image)?;
    let wanted = platform(args.platform.as_deref())?;
    let shown = client::Shown {
        kind: kind(args.quiet)?,
        look: Look::of(&config.environment),
    };
    let digest = client::pull(&config, &name, wanted.as_ref(), shown)?;
    tell(
        args.quiet,
        &digest,
        &format!("pulled {} ({digest})", name.familiar()),
    )
}

fn kind(quiet: bool) -> Result<Kind, UsageError> {
    if quiet {
        Ok(Kind::Quiet)
    } else {
        Ok(Kind::parse("auto")?)
    }
}

fn tell(quiet: bool, digest: &oci::Digest, sentence: &str) -> Result<ExitStatus> {
    let mut out = std::io::stdout();
    if quiet {
        writeln!(out, "{digest}")?
    } else {
        writeln!(out, "{sentence}")?
    }
    Ok(ExitStatus::DONE)
}

/// Writes an archive.
pub(super) fn save(global: &Global, args: &SaveArgs) -> Result<ExitStatus> {
    let cache = store(global)?;
    let images = args
        .images
        .iter()
        .map(|text| stored::find(&cache, text))
        .collect::<Result<Vec<_>, _>>()?;
    let with_docker = args.format == ArchiveFormat::Docker;
    match &args.output {
        None if std::io::stdout().is_terminal() => {
            return Err(
                UsageError::new("save: an archive would be written to the terminal")
                    .hint("add --output FILE, or redirect stdout")
                    .into(),
            );
        }
        None => archive::save(&cache, &images, with_docker, std::io::stdout().lock())?,
        Some(path) => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(std::path::Path::new("."));
            let file = tempfile::NamedTempFile::new_in(folder)
                .with_context(|| format!("write {}", path.display()))?;
            archive::save(
                &cache,
                &images,
                with_docker,
                std::io::BufWriter::new(file.as_file()),
            )?;
            std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
            file.persist(path)
                .with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(ExitStatus::DONE)
}

/// Reads an archive.
pub(super) fn load(global: &Global, args: &LoadArgs) -> Result<ExitStatus> {
    let cache = store(global)?;
    let name = args.tag.as_deref().map(stored::full_name).transpose()?;
    let input = match &args.input {
        Some(path) if path.is_dir() => Input::Folder(path),
        Some(path) => {
            let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
            Input::Stream(Box::new(std::io::BufReader::new(file)))
        }
        None if std::io::stdin().is_terminal() => {
            return Err(UsageError::new("load: nothing on stdin")
                .hint("add --input FILE, or redirect stdin")
                .into());
        }
        None => Input::Stream(Box::new(std::io::stdin())),
    };
    let mut out = std::io::stdout();
    let loaded = archive::load(&cache, input, name.as_ref())?;
    cache.barrier()?;
    for image in loaded {
        match args.quiet {
            true => writeln!(out, "{}", image.target.digest)?,
            false => writeln!(out, "loaded {} ({})", familiar(&image.name), image.target.digest)?,
        }
    }
    Ok(ExitStatus::DONE)
}
