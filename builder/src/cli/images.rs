//! `images`, `rmi`, `tag`, `inspect`, `history`: the builder's own image store.
use super::args::{Global, HistoryArgs, ImagesArgs, InspectArgs, InspectPart, RmiArgs, TagArgs};
use super::exit::ExitStatus;
use super::table::{Table, ago};
use super::values::UsageError;
use crate::config::Config;
use crate::progress::plain_line;
use crate::stored;
use crate::units::show_bytes;
use anyhow::{Context, Result, bail};
use cache::{Cache, Image};
use oci::{Digest, Platform, Reference};
use serde_json::{Value, json};
use std::io::Write;
use std::time::SystemTime;

/// How many digits of a digest are shown.
const SHORT_DIGITS: usize = 12;

pub(super) fn store(global: &Global) -> Result<Cache> {
    let config = Config::load(global.root.clone())?;
    Ok(crate::client::open_store(&config)?)
}

pub(super) fn platform(text: Option<&str>) -> Result<Option<Platform>, UsageError> {
    let list = text
        .map(|text| super::build::platforms(&[text.to_owned()], None))
        .transpose()?;
    Ok(list.and_then(|list| list.into_iter().next()))
}

/// Lists.
pub(super) fn list(global: &Global, args: &ImagesArgs) -> Result<ExitStatus> {
    let cache = store(global)?;
    let mut out = std::io::stdout().lock();
    let mut table = Table::new(&["IMAGE", "DIGEST", "PLATFORM", "CREATED", "SIZE"]);
    for image in cache.images().list()? {
        let familiar = familiar(&image.name);
        if args
            .name
            .as_ref()
            .is_some_and(|part| !familiar.contains(part.as_str()))
        {
            continue;
        }
        if args.quiet {
            writeln!(out, "{}", image.target.digest)?;
            continue;
        }
        let manifests = stored::manifests(&cache, &image)?;
        let platforms: Vec<String> = manifests
            .iter()
            .map(|m| m.config.platform().to_string())
            .collect();
        let size: u64 = manifests.iter().map(stored::StoredManifest::size).sum();
        if args.json {
            let line = json!({"name": image.name, "digest": image.target.digest.to_string(),
                "platforms": platforms, "size": size, "created": time(image.created)});
            writeln!(out, "{line}")?;
            continue;
        }
        table.row(vec![
            familiar,
            short(&image.target.digest, args.no_trunc),
            platforms.join(", "),
            ago(image.created, SystemTime::now()),
            show_bytes(size),
        ]);
    }
    if !args.quiet && !args.json {
        out.write_all(table.text().as_bytes())?;
    }
    Ok(ExitStatus::DONE)
}

/// Removes names; what nothing names any more goes with the next gc.
pub(super) fn remove(global: &Global, args: &RmiArgs) -> Result<ExitStatus> {
    let cache = store(global)?;
    let (mut is_missing, mut removed) = (false, Vec::new());
    for text in &args.images {
        match stored::find(&cache, text) {
            Ok(image) => {
                cache.images().remove(&image.name)?;
                removed.push(familiar(&image.name));
            }
            Err(stored::StoredError::Unknown { name }) => {
                is_missing |= !args.force;
                if !args.force {
                    super::note(&format!("error: no image {} in the store", familiar(&name)));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    if cache.is_renamed() {
        cache.barrier()?;
    }
    for name in removed {
        writeln!(std::io::stdout(), "removed {name}")?;
    }
    Ok(if is_missing {
        ExitStatus::USER
    } else {
        ExitStatus::DONE
    })
}

/// Gives a further name.
pub(super) fn tag(global: &Global, args: &TagArgs) -> Result<ExitStatus> {
    let cache = store(global)?;
    let image = stored::find(&cache, &args.source)?;
    let name = stored::full_name(&args.target)?;
    if name.digest().is_some() {
        bail!("{}: a name to give has no digest", args.target);
    }
    let blobs = cache.images().blobs(&image.name)?;
    cache.images().set(&name.to_string(), &image.target, &blobs)?;
    cache.barrier()?;
    Ok(ExitStatus::DONE)
}

/// Shows manifest and configuration.
pub(super) fn inspect(global: &Global, args: &InspectArgs) -> Result<ExitStatus> {
    let cache = store(global)?;
    let image = stored::find(&cache, &args.image)?;
    let wanted = platform(args.platform.as_deref())?;
    let mut out = std::io::stdout().lock();
    match args.part {
        InspectPart::Manifest if wanted.is_none() => out.write_all(&whole(&cache, &image.target.digest)?)?,
        InspectPart::Manifest => {
            let found = stored::for_platform(&cache, &image, wanted.as_ref())?;
            out.write_all(&whole(&cache, &found.descriptor.digest)?)?;
        }
        InspectPart::Config => {
            out.write_all(&stored::for_platform(&cache, &image, wanted.as_ref())?.config_bytes)?;
        }
        InspectPart::All => {
            serde_json::to_writer_pretty(&mut out, &everything(&cache, &image, wanted.as_ref())?)?;
            writeln!(out)?;
        }
    }
    Ok(ExitStatus::DONE)
}

fn whole(cache: &Cache, digest: &Digest) -> Result<Vec<u8>> {
    cache
        .content()
        .read(digest, oci::MAX_MANIFEST_BYTES as u64)
        .with_context(|| format!("read manifest {digest}"))
}

fn everything(cache: &Cache, image: &Image, wanted: Option<&Platform>) -> Result<Value> {
    let chosen = match wanted {
        Some(_) => vec![stored::for_platform(cache, image, wanted)?],
        None => stored::manifests(cache, image)?,
    };
    let mut images = Vec::new();
    for found in chosen {
        images.push(json!({
            "platform": found.config.platform().to_string(),
            "descriptor": found.descriptor,
            "size": found.size(),
            "manifest": found.manifest,
            "config": serde_json::from_slice::<Value>(&found.config_bytes)?,
        }));
    }
    Ok(json!({
        "name": image.name,
        "digest": image.target.digest.to_string(),
        "mediaType": image.target.media_type,
        "created": time(image.created),
        "images": images,
    }))
}

/// Shows the instructions, the last first.
pub(super) fn history(global: &Global, args: &HistoryArgs) -> Result<ExitStatus> {
    let cache = store(global)?;
    let name = args.image.as_deref().unwrap_or_default();
    let image = stored::find(&cache, name)?;
    let found = stored::for_platform(&cache, &image, platform(args.platform.as_deref())?.as_ref())?;
    let mut sizes = found.manifest.layers.iter().map(|layer| layer.size);
    let mut table = Table::new(&["CREATED", "SIZE", "CREATED BY"]);
    let mut rows = Vec::new();
    for step in &found.config.history {
        const SHORT_WIDTH: usize = 72;
        let size = if step.empty_layer {
            0
        } else {
            sizes.next().unwrap_or(0)
        };
        let text = plain_line(step.created_by.replace('\n', " ").as_bytes(), false);
        let text = if args.no_trunc {
            text
        } else {
            crate::progress::clip(&text, SHORT_WIDTH).to_owned()
        };
        rows.push(vec![
            step.created.clone().unwrap_or_else(|| "-".into()),
            show_bytes(size),
            text,
        ]);
    }
    rows.into_iter().rev().for_each(|row| table.row(row));
    std::io::stdout().write_all(table.text().as_bytes())?;
    Ok(ExitStatus::DONE)
}

pub(super) fn familiar(name: &str) -> String {
    Reference::parse_normalized(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

fn short(digest: &Digest, whole: bool) -> String {
    if whole {
        digest.to_string()
    } else {
        digest.hex()[..SHORT_DIGITS].to_owned()
    }
}

fn time(time: SystemTime) -> Option<String> {
    jiff::Timestamp::try_from(time).ok().map(|time| time.to_string())
}
