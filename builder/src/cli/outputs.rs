//! `--output`, `--push` and `--load`: which exporters, with which attributes, to where.
//!
//! | written | means |
//! |---|---|
//! | nothing | `type=image` into the builder's own store |
//! | `DIR` | `type=local,dest=DIR` |
//! | `-` | `type=tar,dest=-` |
//! | `type=registry` | `type=image,push=true` |
//! | `type=docker` without `dest` | the Docker daemon of this machine |
//! | `type=oci\|docker\|tar` with `dest=-`, or without it when stdout is no terminal | stdout |
use super::values::{UsageError, absolute, pairs};
use crate::request::{Destination, Output, OutputKind};
use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, UsageError>;

/// What the flags say together.
pub(super) struct OutputFlags<'a> {
    pub(super) outputs: &'a [String],
    pub(super) push: bool,
    pub(super) load: bool,
    /// Names for the image, as text.
    pub(super) names: &'a [String],
    /// Attributes made of `--annotation`.
    pub(super) annotations: &'a [(String, String)],
    pub(super) stdout_is_terminal: bool,
}

/// Every output asked for, or the default one.
pub(super) fn outputs(flags: &OutputFlags<'_>) -> Result<Vec<Output>> {
    let mut outputs = flags
        .outputs
        .iter()
        .map(|value| one(value, flags.stdout_is_terminal))
        .collect::<Result<Vec<_>>>()?;
    if flags.push {
        set_push(&mut outputs);
    }
    if flags.load
        && !outputs
            .iter()
            .any(|output| output.dest == Some(Destination::DockerDaemon))
    {
        outputs.push(output(OutputKind::Docker, Some(Destination::DockerDaemon)));
    }
    if outputs.is_empty() {
        outputs.push(output(OutputKind::Image, None));
    }
    for output in &mut outputs {
        complete(output, flags)?;
    }
    if outputs
        .iter()
        .filter(|output| output.dest == Some(Destination::Stdout))
        .count()
        > 1
    {
        return Err(UsageError::new("--output: two outputs go to stdout"));
    }
    Ok(outputs)
}

fn output(kind: OutputKind, dest: Option<Destination>) -> Output {
    Output {
        kind,
        attrs: BTreeMap::new(),
        dest,
    }
}

/// `--push` pushes the images there are, or makes one.
fn set_push(outputs: &mut Vec<Output>) {
    let mut images = outputs
        .iter_mut()
        .filter(|output| output.kind == OutputKind::Image)
        .peekable();
    if images.peek().is_none() {
        outputs.push(output(OutputKind::Image, None));
    }
    for output in outputs
        .iter_mut()
        .filter(|output| output.kind == OutputKind::Image)
    {
        output.attrs.insert("push".into(), "true".into());
    }
}

/// Adds what other flags say about an image, and checks what must be there.
fn complete(output: &mut Output, flags: &OutputFlags<'_>) -> Result<()> {
    let is_image = matches!(
        output.kind,
        OutputKind::Image | OutputKind::Oci | OutputKind::Docker
    );
    if !is_image {
        return Ok(());
    }
    if !flags.names.is_empty() {
        output
            .attrs
            .entry("name".into())
            .or_insert_with(|| flags.names.join(","));
    }
    for (key, value) in flags.annotations {
        output.attrs.insert(key.clone(), value.clone());
    }
    let pushes = output.attrs.get("push").is_some_and(|push| is_true(push));
    if pushes && output.attrs.get("name").is_none_or(String::is_empty) {
        return Err(UsageError::new(
            "pushing needs a name: add --tag registry/repository:tag",
        ));
    }
    Ok(())
}

/// Booleans of exporters: a key alone means true.
pub(crate) fn is_true(text: &str) -> bool {
    matches!(text, "" | "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn one(value: &str, stdout_is_terminal: bool) -> Result<Output> {
    let wrong = |what: &str| UsageError::new(format!("--output {value}: {what}"));
    if !value.contains(',') && !value.starts_with("type=") {
        return match value {
            "" => Err(wrong("empty")),
            "-" => to_stdout(OutputKind::Tar, stdout_is_terminal, value),
            path => Ok(output(
                OutputKind::Local,
                Some(Destination::Path(absolute("--output", path)?)),
            )),
        };
    }
    let mut attrs: BTreeMap<String, String> = BTreeMap::new();
    for (key, text) in pairs("--output", value)? {
        if attrs.insert(key.clone(), text).is_some() {
            return Err(wrong(&format!("{key} is given twice")));
        }
    }
    let kind = attrs.remove("type").ok_or_else(|| wrong("type is missing"))?;
    let dest = attrs.remove("dest").filter(|dest| !dest.is_empty());
    let kind = match kind.as_str() {
        "image" => OutputKind::Image,
        "registry" => {
            attrs.entry("push".into()).or_insert_with(|| "true".into());
            OutputKind::Image
        }
        "oci" => OutputKind::Oci,
        "docker" => OutputKind::Docker,
        "local" => OutputKind::Local,
        "tar" => OutputKind::Tar,
        "cacheonly" => OutputKind::CacheOnly,
        other => {
            return Err(wrong(&format!("unknown type {other:?}"))
                .hint("known are image, registry, oci, docker, local, tar and cacheonly"));
        }
    };
    check_attrs(kind, &attrs).map_err(|what| wrong(&what))?;
    let mut output = match (kind, dest.as_deref()) {
        (OutputKind::Image | OutputKind::CacheOnly, Some(_)) => return Err(wrong("this type has no dest")),
        (OutputKind::Image | OutputKind::CacheOnly, None) => output(kind, None),
        (OutputKind::Local, None) => return Err(wrong("dest is missing")),
        (OutputKind::Local, Some("-")) => return Err(wrong("a folder cannot go to stdout; use type=tar")),
        (OutputKind::Docker, None) => output(kind, Some(Destination::DockerDaemon)),
        (_, None | Some("-")) => to_stdout(kind, stdout_is_terminal, value)?,
        (_, Some(path)) => output(kind, Some(Destination::Path(absolute("--output", path)?))),
    };
    output.attrs = attrs;
    Ok(output)
}

fn to_stdout(kind: OutputKind, stdout_is_terminal: bool, value: &str) -> Result<Output> {
    if stdout_is_terminal {
        return Err(UsageError::new(format!(
            "--output {value}: an archive would be written to the terminal"
        ))
        .hint("add dest=FILE, or redirect stdout"));
    }
    Ok(output(kind, Some(Destination::Stdout)))
}

const IMAGE_ATTRS: &[&str] = &[
    "name",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "oci-artifact",
    "source-date-epoch",
    "rewrite-timestamp",
    "prefer-nondist-layers",
    "attestation-inline",
    "buildinfo",
    "buildinfo-attrs",
    "prefer-image-digest",
    "compatibility-version",
];
const STORE_ATTRS: &[&str] = &[
    "push",
    "push-by-digest",
    "registry.insecure",
    "unpack",
    "store",
    "name-canonical",
    "dangling-name-prefix",
    "danging-name-empty-only",
];
const ARCHIVE_ATTRS: &[&str] = &["tar", "context"];
const FILES_ATTRS: &[&str] = &["platform-split", "attestation-prefix", "source-date-epoch"];

/// Refuses keys no exporter of this type knows: a misspelt one must not go unnoticed.
fn check_attrs(kind: OutputKind, attrs: &BTreeMap<String, String>) -> std::result::Result<(), String> {
    let known: Vec<&str> = match kind {
        OutputKind::Image => [IMAGE_ATTRS, STORE_ATTRS].concat(),
        OutputKind::Oci | OutputKind::Docker => [IMAGE_ATTRS, ARCHIVE_ATTRS].concat(),
        OutputKind::Local => [FILES_ATTRS, &["mode"]].concat(),
        OutputKind::Tar => FILES_ATTRS.to_vec(),
        OutputKind::CacheOnly => Vec::new(),
    };
    let is_image = matches!(kind, OutputKind::Image | OutputKind::Oci | OutputKind::Docker);
    let unknown = attrs
        .keys()
        .find(|key| !(known.contains(&key.as_str()) || is_image && key.starts_with("annotation")));
    match unknown {
        Some(key) => Err(format!(
            "unknown key {key:?} for type={}; known are {}",
            kind.name(),
            known.join(", ")
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str], push: bool, load: bool, names: &[&str], terminal: bool) -> Result<Vec<String>> {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let flags = OutputFlags {
            outputs: &owned(values),
            push,
            load,
            names: &owned(names),
            annotations: &[],
            stdout_is_terminal: terminal,
        };
        let outputs = outputs(&flags)?;
        Ok(outputs
            .into_iter()
            .map(|output| {
                let attrs: Vec<_> = output
                    .attrs
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                let dest = match output.dest {
                    None => String::new(),
                    Some(Destination::Stdout) => " > -".into(),
                    Some(Destination::DockerDaemon) => " > docker".into(),
                    Some(Destination::Path(path)) => format!(" > {}", path.display()),
                };
                format!("{} {}{dest}", output.kind.name(), attrs.join(" "))
            })
            .collect())
    }

    #[test]
    fn each_form_means_one_exporter() {
        for (values, expected) in [
            (&[][..], Some(&["image name=a:1"][..])),
            (&["/out"], Some(&["local  > /out"])),
            (&["-"], Some(&["tar  > -"])),
            (&["type=registry"], Some(&["image name=a:1 push=true"])),
            (
                &["type=image,name=b:2,push=true"],
                Some(&["image name=b:2 push=true"]),
            ),
            (&["type=docker"], Some(&["docker name=a:1 > docker"])),
            (
                &["type=oci,dest=/x.tar", "type=local,dest=/d"],
                Some(&["oci name=a:1 > /x.tar", "local  > /d"]),
            ),
            (&["type=oci"], Some(&["oci name=a:1 > -"])),
            (&["type=image,\"name=a,b\""], Some(&["image name=a,b"])),
            (&["type=local"], None),
            (&["type=local,dest=-"], None),
            (&["type=zip,dest=x"], None),
            (&["dest=x,name=y"], None),
            (&["type=oci,compresion=zstd,dest=/x"], None),
            (&["type=oci,dest=-", "type=tar,dest=-"], None),
            (&["type=tar,dest=/x,dest=/y"], None),
        ] {
            let found = parse(values, false, false, &["a:1"], false).ok();
            let expected =
                expected.map(|list| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
            assert_eq!(found, expected, "{values:?}");
        }
    }

    #[test]
    fn push_and_load_add_outputs() {
        let both = parse(&[], true, true, &["a:1"], true).expect("valid");
        assert_eq!(both, ["image name=a:1 push=true", "docker name=a:1 > docker"]);
        let image = parse(&["type=image"], true, false, &["a:1"], true).expect("valid");
        assert_eq!(image, ["image name=a:1 push=true"]);
        assert!(
            parse(&[], true, false, &[], true).is_err(),
            "no name to push under"
        );
    }

    #[test]
    fn no_archive_goes_to_a_terminal() {
        assert!(parse(&["-"], false, false, &[], true).is_err());
        assert!(parse(&["type=oci"], false, false, &[], true).is_err());
    }
}
