//! Where the Dockerfile, `.dockerignore` and the build context come from.
//!
//! ```text
//! Options ─▶ locate: client's directory | git | http file | http archive | input ─▶ Entry
//!                └─▶ Gateway: the Dockerfile, <Dockerfile>.dockerignore, .dockerignore
//! ```
//!
//! A remote context holds the Dockerfile too, unless the client insists on its own. Ignore files count for
//! the client's directory only, never for a remote context.

use std::sync::Arc;

use llb::op::CopyAction;
use llb::state::{ActionSpec, Constraints, FileSpec, HttpSource, LocalSource, SourceMap, State, marshal};
use llb::{Definition, op};
use oci::Digest;
use tree::read_ignore_file;

use crate::error::{Error, ErrorKind};
use crate::gateway::{FileRequest, Gateway};
use crate::lower::path;
use crate::options::Options;
use crate::remote::{self, GitRef};

const IGNORE_FILE: &str = ".dockerignore";
/// The name a remote file gets that is the context.
const HTTP_FILE: &str = "context";

/// Everything that was read before the Dockerfile is parsed.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The Dockerfile.
    pub(crate) source: Arc<SourceMap>,
    /// The vertex that loaded it; warnings are shown under it.
    pub(crate) vertex: Option<Digest>,
    /// A remote context; `None` is the client's directory.
    pub(crate) remote: Option<State>,
    /// Patterns of what is not sent from the client's directory.
    pub(crate) ignore: Vec<String>,
}

/// Finds and reads the Dockerfile and the ignore file.
pub(crate) async fn load(gateway: &dyn Gateway, options: &Options) -> Result<Entry, Error> {
    let located = locate(gateway, options).await?;
    let place = match &located.dockerfile {
        Some(_) => "the build context",
        None => "the client's directory",
    };
    let state = located
        .dockerfile
        .clone()
        .unwrap_or_else(|| local_dockerfile(options, &located.filename));
    let definition = marshal(&state)?;
    let own_ignore = format!("{}{IGNORE_FILE}", located.filename);
    let mut names = vec![located.filename.clone(), own_ignore.clone()];
    names.extend(lower_case(&located.filename));
    let mut files = read(gateway, &definition, &names, "the Dockerfile")
        .await?
        .into_iter();
    let (file, own, lower) = (
        files.next().flatten(),
        files.next().flatten(),
        files.next().flatten(),
    );
    let Some(data) = file.or(lower) else {
        return Err(ErrorKind::NoDockerfile {
            filename: located.filename,
            place: place.to_owned(),
        }
        .into());
    };
    let ignore = match (&located.context, own) {
        (Some(_), _) => Vec::new(),
        (None, Some(own)) => read_ignore_file(&own),
        (None, None) => {
            let local = &options.context_name;
            let name = format!("[internal] load {IGNORE_FILE}");
            read_ignore(gateway, options, local, &format!("{local}-{IGNORE_FILE}"), name).await?
        }
    };
    let vertex = definition.to_graph()?.root.map(|root| root.digest);
    let source = SourceMap {
        filename: located.filename,
        language: "Dockerfile".to_owned(),
        data,
        definition: Some(definition),
    };
    Ok(Entry {
        source: Arc::new(source),
        vertex,
        remote: located.context,
        ignore,
    })
}

/// The build context, narrowed to the paths that are used; no paths means all of it.
pub(crate) fn main_context(options: &Options, entry: &Entry, follow_paths: Vec<String>) -> State {
    if let Some(remote) = &entry.remote {
        return remote.clone();
    }
    LocalSource {
        name: options.context_name.clone(),
        session: options.session_of(&options.context_name).to_owned(),
        follow_paths,
        exclude_patterns: entry.ignore.clone(),
        shared_key_hint: options.context_name.clone(),
        ..LocalSource::default()
    }
    .state(Constraints::default().named("[internal] load build context"))
}

/// The patterns of a local directory's ignore file; none when it has no such file.
pub(crate) async fn read_ignore(
    gateway: &dyn Gateway,
    options: &Options,
    local: &str,
    shared_key_hint: &str,
    name: String,
) -> Result<Vec<String>, Error> {
    let state = LocalSource {
        name: local.to_owned(),
        session: options.session_of(local).to_owned(),
        follow_paths: vec![IGNORE_FILE.to_owned()],
        shared_key_hint: shared_key_hint.to_owned(),
        differ: "none".to_owned(),
        ..LocalSource::default()
    }
    .state(Constraints::default().named(name));
    let found = read(gateway, &marshal(&state)?, &[IGNORE_FILE.to_owned()], IGNORE_FILE).await?;
    Ok(found
        .into_iter()
        .flatten()
        .next()
        .map_or_else(Vec::new, |bytes| read_ignore_file(&bytes)))
}

struct Located {
    context: Option<State>,
    dockerfile: Option<State>,
    filename: String,
}

async fn locate(gateway: &dyn Gateway, options: &Options) -> Result<Located, Error> {
    let mut located = Located {
        context: None,
        dockerfile: None,
        filename: options.filename.clone(),
    };
    match options.context.as_deref() {
        Some(address) => match git_context(options, address)? {
            Some(state) => located.context = Some(state),
            None if remote::is_http(address) => {
                let (state, is_archive) = http_context(gateway, address).await?;
                if !is_archive {
                    HTTP_FILE.clone_into(&mut located.filename);
                }
                located.context = Some(state);
            }
            None => {
                return Err(Error::invalid(format!(
                    "the build context {address:?} is no git or http address"
                )));
            }
        },
        None => {
            let input = |name: &str| match options.inputs.get(name) {
                Some(input) => State::from_definition(input.definition.clone()).map(Some),
                None => Ok(None),
            };
            located.context = input(&options.context_name)?;
            located.dockerfile = input(&options.dockerfile_name)?;
        }
    }
    if options.context.is_some() {
        located.dockerfile.clone_from(&located.context);
    }
    if options.force_local_dockerfile {
        located.dockerfile = None;
    }
    if let (Some(context), Some(subdir)) = (&located.context, &options.context_subdir) {
        located.context = Some(only_folder(context, subdir));
    }
    Ok(located)
}

fn git_context(options: &Options, address: &str) -> Result<Option<State>, Error> {
    let found = GitRef::parse(address)
        .map_err(|reason| Error::invalid(format!("git context {address:?}: {reason}")))?;
    Ok(found.map(|git| {
        let mut source = git.source();
        source.keep_git_dir |= options.keep_git_dir == Some(true);
        if source.mtime.is_empty()
            && options
                .build_args
                .get("SOURCE_DATE_EPOCH")
                .is_some_and(|epoch| !epoch.is_empty())
        {
            "commit".clone_into(&mut source.mtime);
        }
        source.state(
            Constraints::default().named(format!("[internal] load git source {}", without_secrets(address))),
        )
    }))
}

/// An address without user and password: it goes into names, logs and histories.
pub(crate) fn without_secrets(address: &str) -> String {
    match address.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            match rest[..end].rfind('@') {
                Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
                None => address.to_owned(),
            }
        }
        None => address.to_owned(),
    }
}

async fn http_context(gateway: &dyn Gateway, address: &str) -> Result<(State, bool), Error> {
    let source = HttpSource {
        url: address.to_owned(),
        filename: HTTP_FILE.to_owned(),
        ..HttpSource::default()
    };
    let state = source.state(Constraints::default().named("[internal] load remote build context"));
    let request = FileRequest {
        path: HTTP_FILE.to_owned(),
        limit: Some(1024),
    };
    let what = || format!("the build context {}", without_secrets(address));
    let found = gateway
        .read_files(&marshal(&state)?, &[request])
        .await
        .map_err(|source| ErrorKind::Read { what: what(), source })?;
    let head = found.into_iter().flatten().next().unwrap_or_default();
    if !is_archive(&head) {
        return Ok((state, false));
    }
    let action = CopyAction {
        attempt_unpack: true,
        ..plain_copy(&path::rooted(HTTP_FILE))
    };
    let actions = vec![ActionSpec::Copy {
        action,
        from: state,
        owner: None,
    }];
    Ok((
        FileSpec {
            base: State::scratch(),
            actions,
        }
        .state(Constraints::default()),
        true,
    ))
}

fn only_folder(context: &State, folder: &str) -> State {
    let action = CopyAction {
        dir_copy_contents: true,
        ..plain_copy(&path::rooted(folder))
    };
    let actions = vec![ActionSpec::Copy {
        action,
        from: context.clone(),
        owner: None,
    }];
    FileSpec {
        base: State::scratch(),
        actions,
    }
    .state(Constraints::default())
}

fn plain_copy(src: &str) -> CopyAction {
    CopyAction {
        src: src.to_owned(),
        dest: "/".to_owned(),
        mode: -1,
        timestamp: -1,
        ..op::CopyAction::default()
    }
}

fn local_dockerfile(options: &Options, filename: &str) -> State {
    let mut follow_paths = vec![filename.to_owned(), format!("{filename}{IGNORE_FILE}")];
    follow_paths.extend(lower_case(filename));
    LocalSource {
        name: options.dockerfile_name.clone(),
        session: options.session_of(&options.dockerfile_name).to_owned(),
        follow_paths,
        shared_key_hint: options.dockerfile_name.clone(),
        differ: "none".to_owned(),
        ..LocalSource::default()
    }
    .state(Constraints::default().named(format!("[internal] load build definition from {filename}")))
}

/// `dockerfile` beside `Dockerfile`, for those who write it so.
fn lower_case(filename: &str) -> Option<String> {
    let folder = filename.strip_suffix("Dockerfile")?;
    (folder.is_empty() || folder.ends_with('/')).then(|| path::clean(&format!("{folder}dockerfile")))
}

async fn read(
    gateway: &dyn Gateway,
    definition: &Definition,
    names: &[String],
    what: &str,
) -> Result<Vec<Option<Vec<u8>>>, Error> {
    let requests: Vec<FileRequest> = names.iter().map(FileRequest::whole).collect();
    let files = gateway
        .read_files(definition, &requests)
        .await
        .map_err(|source| ErrorKind::Read {
            what: what.to_owned(),
            source,
        })?;
    Ok(files)
}

/// Whether a file begins like a tar archive, plain or compressed.
fn is_archive(head: &[u8]) -> bool {
    let magic: [&[u8]; 3] = [b"BZh", &[0x1f, 0x8b, 0x08], &[0xfd, b'7', b'z', b'X', b'Z', 0]];
    magic.iter().any(|magic| head.starts_with(magic)) || head.get(..512).is_some_and(is_tar_header)
}

/// Whether a block's checksum is right (the field itself counts as blanks).
fn is_tar_header(block: &[u8]) -> bool {
    let field = String::from_utf8_lossy(&block[148..156]);
    let stated = u32::from_str_radix(field.trim_matches(['\0', ' ']), 8);
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u32::from(*byte)
            }
        })
        .sum();
    stated == Ok(sum) && sum > 256
}

#[cfg(test)]
mod tests {
    use super::{is_archive, lower_case, without_secrets};
    use tree::read_ignore_file;

    #[test]
    fn ignore_files() {
        let text = b"\xef\xbb\xbf# comment\n #not one\n*.key\r\n/docs/\n  a/../b  \n! /keep\n\n/\n";
        assert_eq!(
            read_ignore_file(text),
            ["#not one", "*.key", "docs", "b", "!keep", "/"]
        );
    }

    #[test]
    fn archives_are_known_by_content() {
        let mut header = vec![0u8; 512];
        header[..3].copy_from_slice(b"a/b");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        assert!(is_archive(&header) && is_archive(&[0x1f, 0x8b, 8, 0]));
        assert!(!is_archive(b"FROM x") && !is_archive(&[0; 512]));
    }

    #[test]
    fn names() {
        for (name, expected) in [
            ("Dockerfile", Some("dockerfile")),
            ("a/Dockerfile", Some("a/dockerfile")),
            ("myDockerfile", None),
        ] {
            assert_eq!(lower_case(name).as_deref(), expected);
        }
        assert_eq!(without_secrets("https://u:p@h/x@y"), "https://h/x@y");
    }
}
