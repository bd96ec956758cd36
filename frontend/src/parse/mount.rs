//! `--mount=type=…,…` of RUN.

use llb::op::CacheSharing;

use crate::error::Error;
use crate::options::{csv, go_bool};
use crate::parse::ast::{Mount, MountKind};
use crate::parse::quantity;
use crate::suggest;

const KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// The `from` of a mount, which must be known before anything is expanded.
pub(super) fn from(value: &str) -> Result<String, Error> {
    if value.is_empty() {
        return Err(Error::invalid("failed to parse csv mounts: EOF"));
    }
    let mut found = String::new();
    for field in fields(value)? {
        let Some((key, value)) = field.split_once('=') else {
            continue;
        };
        if key.eq_ignore_ascii_case("from") {
            if value.find('$').is_some_and(|at| at + 1 != value.len()) {
                let error =
                    Error::invalid("'from' doesn't support variable expansion, define alias stage instead");
                return Err(error.hinting(Some(
                    "give the image a name: FROM $IMAGE AS name, then from=name".to_owned(),
                )));
            }
            value.clone_into(&mut found);
        }
    }
    Ok(found)
}

fn fields(value: &str) -> Result<Vec<String>, Error> {
    csv(value).map_err(|error| Error::invalid(format!("failed to parse csv mounts: {error}")))
}

/// Reads a mount; `expand` expands its values.
pub(crate) fn parse(
    value: &str,
    mut expand: impl FnMut(&str) -> Result<String, Error>,
) -> Result<Mount, Error> {
    let mut mount = Mount::default();
    let mut readonly = None;
    for field in fields(value)? {
        let Some((key, value)) = field.split_once('=') else {
            match field.to_lowercase().as_str() {
                "readonly" | "ro" => readonly = Some(true),
                "readwrite" | "rw" => readonly = Some(false),
                "required" if is_from_client(mount.kind) => mount.is_required = true,
                "required" => return Err(misplaced("required", mount.kind)),
                _ => {
                    return Err(Error::invalid(format!(
                        "invalid field '{field}' must be a key=value pair"
                    )));
                }
            }
            continue;
        };
        let key = key.to_lowercase();
        let value = expand(value)?;
        match key.as_str() {
            "readonly" | "ro" => readonly = Some(boolean(&key, &value)?),
            "readwrite" | "rw" => readonly = Some(!boolean(&key, &value)?),
            _ => set(&mut mount, &key, value, &field)?,
        }
    }
    mount.is_readonly = readonly.unwrap_or(!matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs));
    check(&mount)?;
    Ok(mount)
}

fn set(mount: &mut Mount, key: &str, value: String, field: &str) -> Result<(), Error> {
    match key {
        "type" => mount.kind = kind(&value)?,
        "from" => mount.from = value,
        "source" | "src" => mount.source = value,
        "target" | "dst" | "destination" => mount.target = value,
        "id" => mount.id = value,
        "env" => mount.env = Some(value),
        "required" if is_from_client(mount.kind) => mount.is_required = boolean(key, &value)?,
        "size" if mount.kind == MountKind::Tmpfs => {
            mount.size = quantity::bytes(&value)
                .ok_or_else(|| Error::invalid(format!("invalid value for size: {value}")))?;
        }
        "required" | "size" => return Err(misplaced(key, mount.kind)),
        "sharing" => mount.sharing = Some(sharing(&value)?),
        "mode" => mount.mode = Some(number(key, &value, 8)?),
        "uid" => mount.uid = Some(number(key, &value, 10)?),
        "gid" => mount.gid = Some(number(key, &value, 10)?),
        _ => {
            let error = Error::invalid(format!("unexpected key '{key}' in '{field}'"));
            return Err(error.suggesting(suggest::nearest(key, KEYS.iter().copied())));
        }
    }
    Ok(())
}

fn check(mount: &Mount) -> Result<(), Error> {
    if matches!(mount.kind, MountKind::Bind | MountKind::Tmpfs) {
        for (key, value) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
            if value.is_some() {
                return Err(misplaced(key, mount.kind));
            }
        }
    }
    if mount.sharing.is_some() && mount.kind != MountKind::Cache {
        return Err(misplaced("sharing", mount.kind));
    }
    if mount.kind == MountKind::Secret {
        let problem = if !mount.from.is_empty() {
            "secret mount should not have a from"
        } else if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
            "invalid secret mount. one of source, target required"
        } else if !mount.source.is_empty() && !mount.id.is_empty() {
            "both source and id can't be set"
        } else {
            return Ok(());
        };
        return Err(Error::invalid(problem));
    }
    Ok(())
}

fn is_from_client(kind: MountKind) -> bool {
    matches!(kind, MountKind::Secret | MountKind::Ssh)
}

fn kind(value: &str) -> Result<MountKind, Error> {
    Ok(match value.to_lowercase().as_str() {
        "bind" => MountKind::Bind,
        "cache" => MountKind::Cache,
        "tmpfs" => MountKind::Tmpfs,
        "secret" => MountKind::Secret,
        "ssh" => MountKind::Ssh,
        _ => {
            let error = Error::invalid(format!("unsupported mount type {value:?}"));
            return Err(error.suggesting(suggest::nearest(
                value,
                ["bind", "cache", "tmpfs", "secret", "ssh"],
            )));
        }
    })
}

fn sharing(value: &str) -> Result<CacheSharing, Error> {
    Ok(match value.to_lowercase().as_str() {
        "shared" => CacheSharing::Shared,
        "private" => CacheSharing::Private,
        "locked" => CacheSharing::Locked,
        _ => {
            let error = Error::invalid(format!("unsupported sharing value {value:?}"));
            return Err(error.suggesting(suggest::nearest(value, ["shared", "private", "locked"])));
        }
    })
}

fn name(kind: MountKind) -> &'static str {
    match kind {
        MountKind::Bind => "bind",
        MountKind::Cache => "cache",
        MountKind::Tmpfs => "tmpfs",
        MountKind::Secret => "secret",
        MountKind::Ssh => "ssh",
    }
}

fn misplaced(key: &str, kind: MountKind) -> Error {
    Error::invalid(match key {
        "mode" | "uid" | "gid" => format!("{key} not allowed for {:?} type mounts", name(kind)),
        "sharing" if kind == MountKind::Secret => "secret mount should not define sharing".to_owned(),
        "sharing" => format!("invalid cache sharing set for {} mount", name(kind)),
        key => format!("unexpected key '{key}' for mount type '{}'", name(kind)),
    })
}

fn boolean(key: &str, value: &str) -> Result<bool, Error> {
    go_bool(value).ok_or_else(|| Error::invalid(format!("invalid value for {key}: {value}")))
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, Error> {
    u32::from_str_radix(value, radix).map_err(|_| Error::invalid(format!("invalid value {value} for {key}")))
}
