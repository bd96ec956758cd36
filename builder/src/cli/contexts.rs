//! Where the files and the Dockerfile come from: the positional argument, `--file`, `--build-context`.
//!
//! | context | Dockerfile |
//! |---|---|
//! | folder | `--file` relative to the working directory, else `Dockerfile` (or `dockerfile`) in the folder |
//! | `-`, a tar | in the archive |
//! | `-`, anything else | what came on stdin; there are no files |
//! | git or http(s) address | inside the fetched tree |
//!
//! With `--file -` the Dockerfile comes on stdin, and the context from elsewhere.
use super::values::UsageError;
use crate::request::{ContextSource, DockerfileSource, NamedContext};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, UsageError>;

/// The most a Dockerfile on stdin may hold, in bytes.
const MAX_DOCKERFILE_BYTES: u64 = 16 * 1024 * 1024;
/// Enough of a stream to tell an archive: the magic of tar stands at 257.
const PEEK_BYTES: u64 = 512;

/// What the arguments mean, and the stream of an archive on stdin, from its first byte.
pub(super) struct Found {
    pub(super) context: ContextSource,
    pub(super) dockerfile: DockerfileSource,
    pub(super) stdin: Option<Box<dyn Read + Send>>,
}

/// Looks at the arguments, and at stdin if they say `-`.
pub(super) fn find(context: &str, file: Option<&str>, stdin: impl Read + Send + 'static) -> Result<Found> {
    if context == "-" {
        return from_stdin(file, stdin);
    }
    let on_stdin = match file {
        Some("-") => Some(read_dockerfile(stdin)?),
        _ => None,
    };
    if is_remote(context) {
        let dockerfile = match on_stdin {
            Some(text) => DockerfileSource::Text(text),
            None => match file {
                Some(address) if is_http(address) => DockerfileSource::Address(address.to_owned()),
                name => DockerfileSource::InContext(name.unwrap_or("Dockerfile").to_owned()),
            },
        };
        return Ok(Found {
            context: ContextSource::Remote(context.to_owned()),
            dockerfile,
            stdin: None,
        });
    }
    let folder = directory("context", context)?;
    let dockerfile = match (on_stdin, file) {
        (Some(text), _) => DockerfileSource::Text(text),
        (None, Some(address)) if is_http(address) => DockerfileSource::Address(address.to_owned()),
        (None, file) => dockerfile_of(&folder, file)?,
    };
    Ok(Found {
        context: ContextSource::Directory(folder),
        dockerfile,
        stdin: None,
    })
}

fn from_stdin(file: Option<&str>, mut stdin: impl Read + Send + 'static) -> Result<Found> {
    if file == Some("-") {
        return Err(UsageError::new(
            "context and --file are both -: only one can come on stdin",
        ));
    }
    let mut head = Vec::new();
    let read = stdin.by_ref().take(PEEK_BYTES).read_to_end(&mut head);
    read.map_err(|error| UsageError::new(format!("read stdin: {error}")))?;
    if head.is_empty() {
        return Err(UsageError::new(
            "stdin is empty: it should hold a Dockerfile or a tar archive",
        ));
    }
    if is_archive(&head) {
        let name = file.unwrap_or("Dockerfile").to_owned();
        return Ok(Found {
            context: ContextSource::StdinTar,
            dockerfile: DockerfileSource::InContext(name),
            stdin: Some(Box::new(Cursor::new(head).chain(stdin))),
        });
    }
    if let Some(file) = file {
        return Err(UsageError::new(format!(
            "--file {file}: stdin holds no archive, so it is taken as the Dockerfile"
        ))
        .hint("leave out --file, or send a tar archive"));
    }
    let text = read_dockerfile(Cursor::new(head).chain(stdin))?;
    Ok(Found {
        context: ContextSource::Empty,
        dockerfile: DockerfileSource::Text(text),
        stdin: None,
    })
}

fn read_dockerfile(stdin: impl Read) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    stdin
        .take(MAX_DOCKERFILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|error| UsageError::new(format!("read the Dockerfile from stdin: {error}")))?;
    match text.len() as u64 {
        0 => Err(UsageError::new("the Dockerfile on stdin is empty")),
        bytes if bytes > MAX_DOCKERFILE_BYTES => Err(UsageError::new(format!(
            "the Dockerfile on stdin has more than {MAX_DOCKERFILE_BYTES} bytes"
        ))),
        _ => Ok(text),
    }
}

/// True for the first bytes of a tar archive, plain or compressed.
fn is_archive(head: &[u8]) -> bool {
    const MAGICS: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    MAGICS.iter().any(|magic| head.starts_with(magic))
        || head.get(257..262) == Some(b"ustar")
        || is_old_tar(head)
}

/// A tar from before `ustar` has no magic, but a checksum of its header.
fn is_old_tar(head: &[u8]) -> bool {
    let Some(header) = head.get(..512) else {
        return false;
    };
    let field = std::str::from_utf8(&header[148..156]).unwrap_or_default();
    let Ok(expected) = u32::from_str_radix(field.trim_matches(['\0', ' ']), 8) else {
        return false;
    };
    let sum = |part: &[u8]| part.iter().copied().map(u32::from).sum::<u32>();
    expected != 0 && expected == sum(&header[..148]) + 8 * u32::from(b' ') + sum(&header[156..])
}

fn dockerfile_of(folder: &Path, file: Option<&str>) -> Result<DockerfileSource> {
    let path = match file {
        Some(file) => super::values::absolute("--file", file)?,
        None => {
            let usual = folder.join("Dockerfile");
            let other = folder.join("dockerfile");
            if !usual.exists() && other.exists() {
                other
            } else {
                usual
            }
        }
    };
    match std::fs::metadata(&path) {
        Ok(found) if found.is_dir() => Err(UsageError::new(format!(
            "{} is a folder, not a Dockerfile",
            path.display()
        ))),
        Ok(_) => {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            match (path.parent(), name) {
                (Some(directory), Some(name)) => Ok(DockerfileSource::File {
                    directory: directory.to_owned(),
                    name,
                }),
                _ => Err(UsageError::new(format!("{} is no file", path.display()))),
            }
        }
        Err(error) => {
            let hint = nearby(folder).map(|name| format!("there is a {name}; use --file {name}"));
            let reason = match error.kind() {
                std::io::ErrorKind::NotFound => "no such file".to_owned(),
                _ => error.to_string(),
            };
            let error = UsageError::new(format!("read the Dockerfile {}: {reason}", path.display()));
            Err(match hint {
                Some(hint) if file.is_none() => error.hint(hint),
                _ => error,
            })
        }
    }
}

/// A file of the folder that could be the Dockerfile that is missing.
fn nearby(folder: &Path) -> Option<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.to_ascii_lowercase().contains("dockerfile") || name == "Containerfile")
        .filter(|name| !name.ends_with(".dockerignore"))
        .collect();
    names.sort();
    names.into_iter().next()
}

/// `--build-context name=source`.
pub(super) fn named(value: &str) -> Result<(String, NamedContext)> {
    let wrong = |what: &str| UsageError::new(format!("--build-context {value}: {what}"));
    let (name, source) = value
        .split_once('=')
        .ok_or_else(|| wrong("not of the form name=source"))?;
    if source.is_empty() {
        return Err(wrong("the source is empty"));
    }
    let name = context_name(name).ok_or_else(|| wrong("the name is neither a stage nor an image"))?;
    if let Some(rest) = source.strip_prefix("oci-layout://") {
        return Ok((name, oci_layout(rest).map_err(|what| wrong(&what))?));
    }
    if let Some(kind) = ["target:", "input:"]
        .into_iter()
        .find(|kind| source.starts_with(kind))
    {
        return Err(wrong(&format!("{kind} belongs to buildx bake")));
    }
    if source.starts_with("docker-image://") || is_remote(source) {
        return Ok((name, NamedContext::Remote(source.to_owned())));
    }
    let folder = directory("--build-context", source)?;
    Ok((name, NamedContext::Directory(folder)))
}

/// A context's name as the frontend will look for it: like an image in short form, without `:latest`.
fn context_name(name: &str) -> Option<String> {
    let reference = oci::Reference::parse_normalized(name).ok()?;
    let familiar = reference.familiar();
    Some(familiar.strip_suffix(":latest").unwrap_or(&familiar).to_owned())
}

/// `path[:tag][@digest]`.
fn oci_layout(rest: &str) -> std::result::Result<NamedContext, String> {
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => (
            rest,
            Some(oci::Digest::parse(digest).map_err(|error| format!("{digest:?}: {error}"))?),
        ),
        None => (rest, None),
    };
    let after_slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match rest[after_slash..].split_once(':') {
        Some((name, tag)) => (&rest[..after_slash + name.len()], Some(tag.to_owned())),
        None => (rest, None),
    };
    let path = directory("--build-context", path).map_err(|error| error.message)?;
    let digest = match digest {
        Some(digest) => digest,
        None => digest_of_tag(&path, tag.as_deref())?,
    };
    Ok(NamedContext::OciLayout { path, tag, digest })
}

/// What a tag of a layout means now; without one `latest`, or the only image there is.
fn digest_of_tag(layout: &Path, tag: Option<&str>) -> std::result::Result<oci::Digest, String> {
    const REF_NAME: &str = "org.opencontainers.image.ref.name";
    let file = layout.join("index.json");
    let bytes =
        std::fs::read(&file).map_err(|error| format!("{} is no OCI layout: {error}", layout.display()))?;
    let index = match oci::Document::parse(&bytes, oci::OCI_INDEX) {
        Ok(oci::Document::Index(index)) => index,
        Ok(oci::Document::Manifest(_)) => return Err(format!("{} is no index", file.display())),
        Err(error) => return Err(format!("{}: {error}", file.display())),
    };
    let name = |found: &oci::Descriptor| found.annotations.get(REF_NAME).cloned();
    let wanted = tag.unwrap_or("latest");
    let is_wanted = |found: &&oci::Descriptor| {
        name(found)
            .is_some_and(|name| name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted))
    };
    match (
        index.manifests.iter().find(is_wanted),
        index.manifests.as_slice(),
        tag,
    ) {
        (Some(found), _, _) | (None, [found], None) => Ok(found.digest),
        _ => {
            let names: Vec<String> = index.manifests.iter().filter_map(name).collect();
            Err(format!(
                "the layout has no image {wanted:?}; it has {}",
                names.join(", ")
            ))
        }
    }
}

fn directory(flag: &str, path: &str) -> Result<PathBuf> {
    let absolute = super::values::absolute(flag, path)?;
    match std::fs::metadata(&absolute) {
        Ok(found) if found.is_dir() => Ok(absolute),
        Ok(_) => Err(UsageError::new(format!("{flag} {path}: not a folder"))),
        Err(error) => Err(UsageError::new(format!("{flag} {path}: {error}"))),
    }
}

fn is_http(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// True for git and http(s) addresses.
fn is_remote(text: &str) -> bool {
    const SCHEMES: [&str; 5] = ["http://", "https://", "git://", "ssh://", "github.com/"];
    SCHEMES.iter().any(|scheme| text.starts_with(scheme)) || is_scp_like(text)
}

/// `user@host:path`, as git takes it for ssh.
fn is_scp_like(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else {
        return false;
    };
    let Some((host, path)) = rest.split_once(':') else {
        return false;
    };
    let is_word = |text: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    is_word(user) && is_word(host) && !path.is_empty() && !Path::new(text).exists()
}

#[cfg(test)]
mod tests;
