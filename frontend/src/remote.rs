//! Addresses of remote sources: which texts mean a git repository, which an HTTP file, which neither.
//!
//! | text | meaning |
//! |---|---|
//! | `https://host/x.git`, `http://host/x.git` with `#ref:subdir` or `?ref=…` | git |
//! | `git://…`, `ssh://…`, `user@host:path` | git |
//! | `github.com/owner/repo` | git as a build context only |
//! | other `http://`, `https://` | HTTP |
//! | everything else | a path or a name |

use llb::state::{GitSource, GitSsh};
use oci::Digest;

use crate::error::Error;
use crate::lower::format::quote;
use crate::lower::path;
use crate::options::go_bool;

/// A git repository and what of it is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GitRef {
    /// The address to fetch from, without query and fragment.
    pub(crate) remote: String,
    host: String,
    path: String,
    is_ssh: bool,
    pub(crate) reference: String,
    pub(crate) subdir: String,
    pub(crate) checksum: String,
    /// Whether the text may just as well be a local path.
    pub(crate) is_like_local: bool,
    pub(crate) keep_git_dir: Option<bool>,
    pub(crate) submodules: Option<bool>,
    pub(crate) mtime: String,
    pub(crate) fetch_by_commit: bool,
}

/// The address of a git repository in full, `remote#ref`, and the folder in it; `None` for what is no such address.
pub fn git_address(text: &str) -> Option<(String, String)> {
    let found = GitRef::parse(text).ok().flatten()?;
    let address = match found.reference.as_str() {
        "" => found.remote,
        reference => format!("{}#{reference}", found.remote),
    };
    Some((address, found.subdir))
}

impl GitRef {
    /// Reads an address; `None` when it means no repository.
    ///
    /// # Errors
    /// When it means one, but says something about it that makes no sense.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.starts_with("./") || text.starts_with("../") {
            return Ok(None);
        }
        let is_like_local = text.starts_with("github.com/");
        let parts = if is_like_local {
            Parts::of_url("https", text)
        } else {
            Parts::parse(text)
        };
        let Some(parts) = parts else { return Ok(None) };
        if !is_like_local
            && matches!(parts.scheme.as_str(), "http" | "https")
            && !parts.path.ends_with(".git")
        {
            return Ok(None);
        }
        let (reference, subdir) = parts.fragment.split_once(':').unwrap_or((&parts.fragment, ""));
        let mut found = Self {
            remote: parts.remote,
            host: parts.host,
            path: parts.path,
            is_ssh: parts.scheme == "ssh",
            reference: reference.to_owned(),
            subdir: path::rooted(subdir).trim_start_matches('/').to_owned(),
            is_like_local,
            ..Self::default()
        };
        found.query(&parts.query)?;
        Ok(Some(found))
    }

    fn query(&mut self, query: &[(String, String)]) -> Result<(), String> {
        let (mut tag, mut branch) = (None, None);
        for (number, (key, value)) in query.iter().enumerate() {
            if query[..number].iter().any(|(earlier, _)| earlier == key) {
                return Err(format!("query {} has multiple values", quote(key)));
            }
            let is_flag = matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !is_flag {
                return Err(format!("query {} has no value", quote(key)));
            }
            let flag = || match value.as_str() {
                "" => Ok(true),
                value => go_bool(value).ok_or_else(|| format!("invalid {key} value: {}", quote(value))),
            };
            match key.as_str() {
                "ref" => same_or_new(&mut self.reference, value, "ref")?,
                "subdir" => same_or_new(&mut self.subdir, value, "subdir")?,
                "tag" => tag = Some(qualified(value, "refs/tags/")),
                "branch" => branch = Some(qualified(value, "refs/heads/")),
                "checksum" | "commit" => self.checksum = value.clone(),
                "keep-git-dir" => self.keep_git_dir = Some(flag()?),
                "submodules" => self.submodules = Some(flag()?),
                "fetch-by-commit" => self.fetch_by_commit = flag()?,
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => self.mtime = value.clone(),
                "mtime" => {
                    let value = quote(value);
                    return Err(format!(
                        "invalid mtime value: {value} (must be \"checkout\" or \"commit\")"
                    ));
                }
                _ => return Err(format!("unexpected query {}", quote(key))),
            }
        }
        if tag.is_some() && branch.is_some() {
            return Err("branch conflicts with tag".to_owned());
        }
        match tag.or(branch) {
            Some(name) => same_or_new(&mut self.reference, &name, "ref"),
            None => Ok(()),
        }
    }

    /// The source op's options.
    pub(crate) fn source(&self) -> GitSource {
        let remote = if self.is_like_local {
            format!("https://{}", self.remote)
        } else {
            self.remote.clone()
        };
        GitSource {
            host_and_path: format!("{}{}", self.host, path::rooted(&self.path)),
            reference: self.reference.clone(),
            subdir: self.subdir.clone(),
            url: remote,
            keep_git_dir: self.keep_git_dir == Some(true),
            checksum: self.checksum.clone(),
            skip_submodules: self.submodules == Some(false),
            mtime: self.mtime.clone(),
            fetch_by_commit: self.fetch_by_commit,
            ssh: self.is_ssh.then(GitSsh::default),
        }
    }
}

/// Whether a text is a digest, with the words of the peer's library where not.
pub(crate) fn check_digest(text: &str) -> Result<(), Error> {
    let (algorithm, hex) = text.split_once(':').unwrap_or_default();
    let is_hex = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_alphanumeric());
    Digest::parse(text).map(|_| ()).map_err(|_| {
        Error::invalid(match algorithm {
            "sha256" if is_hex && hex.len() != 64 => "invalid checksum digest length",
            "sha256" | "" => "invalid checksum digest format",
            _ if !is_hex => "invalid checksum digest format",
            _ => "unsupported digest algorithm",
        })
    })
}

/// Whether the text is an address of a file, not of a repository.
pub(crate) fn is_http(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && !is_git(text)
}

/// Whether the text is an address of a repository.
pub(crate) fn is_git(text: &str) -> bool {
    matches!(GitRef::parse(text), Ok(Some(_)))
}

/// The name a file has that is fetched from this address.
pub(crate) fn http_filename(url: &str) -> String {
    let parts = Parts::parse(url);
    match parts.as_ref().map_or("", |parts| path::base(&parts.path)) {
        "" | "." | "/" => "__unnamed__".to_owned(),
        name => name.to_owned(),
    }
}

fn same_or_new(known: &mut String, value: &str, what: &str) -> Result<(), String> {
    if !known.is_empty() && known != value {
        return Err(format!("{what} conflicts: {} vs {}", quote(known), quote(value)));
    }
    value.clone_into(known);
    Ok(())
}

fn qualified(name: &str, prefix: &str) -> String {
    if name.starts_with(prefix) {
        name.to_owned()
    } else {
        format!("{prefix}{name}")
    }
}

/// An address taken apart.
struct Parts {
    scheme: String,
    host: String,
    /// Decoded.
    path: String,
    query: Vec<(String, String)>,
    fragment: String,
    /// Without query and fragment.
    remote: String,
}

impl Parts {
    fn parse(text: &str) -> Option<Self> {
        match text.split_once("://") {
            Some((scheme, rest))
                if !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) =>
            {
                let scheme = scheme.to_ascii_lowercase();
                if !matches!(scheme.as_str(), "http" | "https" | "ssh" | "git") {
                    return None;
                }
                let mut parts = Self::of_url(&scheme, rest)?;
                parts.remote = format!("{scheme}://{}", parts.remote);
                Some(parts)
            }
            _ => Self::of_scp(text),
        }
    }

    /// `host/path?query#fragment`; the remote is left without scheme.
    fn of_url(scheme: &str, rest: &str) -> Option<Self> {
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (remote, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, _) = remote.split_once('/').unwrap_or((remote, ""));
        let encoded = &remote[authority.len()..];
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let is_fine = |c: char| !c.is_control() && c != ' ';
        if !authority.chars().all(is_fine) || remote.chars().any(char::is_control) {
            return None;
        }
        Some(Self {
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            path: decode(encoded, false)?,
            query: pairs(query)?,
            fragment: decode(fragment, false)?,
            remote: remote.to_owned(),
        })
    }

    /// `user@host:path?query#fragment`.
    fn of_scp(text: &str) -> Option<Self> {
        let (user, rest) = text.split_once('@')?;
        let (host, rest) = rest.split_once(':')?;
        let is_user = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
        if user.is_empty() || host.is_empty() || !user.bytes().all(is_user) || !host.bytes().all(is_host) {
            return None;
        }
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        Some(Self {
            scheme: "ssh".to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
            query: pairs(query)?,
            fragment: fragment.to_owned(),
            remote: format!("{user}@{host}:{path}"),
        })
    }
}

fn pairs(query: &str) -> Option<Vec<(String, String)>> {
    let one = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decode(key, true)?, decode(value, true)?))
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(one)
        .collect()
}

/// Percent-decodes; `None` for what is malformed.
fn decode(text: &str, plus_is_blank: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
            }
            b'+' if plus_is_blank => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::{GitRef, http_filename, is_git, is_http};

    #[test]
    fn addresses_of_repositories() {
        let git = |text: &str| {
            GitRef::parse(text)
                .expect(text)
                .map(|git| (git.source().host_and_path, git.reference, git.subdir))
        };
        let found = |id: &str, reference: &str, subdir: &str| {
            Some((id.to_owned(), reference.to_owned(), subdir.to_owned()))
        };
        for (text, expected) in [
            ("https://github.com/o/r.git", found("github.com/o/r.git", "", "")),
            ("https://user:pw@h/r.git#v1:a/../b", found("h/r.git", "v1", "b")),
            (
                "https://h/r.git?branch=x&subdir=d",
                found("h/r.git", "refs/heads/x", "d"),
            ),
            ("git@h.test:o/r#main", found("h.test/o/r", "main", "")),
            ("github.com/o/r", found("github.com/o/r", "", "")),
            ("git://h/r", found("h/r", "", "")),
            ("https://h/r.tar", None),
            ("ftp://h/r.git", None),
            ("./x.git", None),
            ("a/b", None),
        ] {
            assert_eq!(git(text), expected, "{text}");
        }
        for (text, expected) in [
            ("https://h/r.git?x=y", "unexpected query \"x\""),
            ("https://h/r.git?tag=a&branch=b", "branch conflicts with tag"),
            ("https://h/r.git?ref=", "no value"),
            ("https://h/r.git?ref=a#b", "ref conflicts"),
            ("https://h/r.git?mtime=now", "invalid mtime value"),
        ] {
            let error = GitRef::parse(text).expect_err(text);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn addresses_of_files() {
        assert!(is_http("https://h/x") && !is_http("https://h/x.git") && is_git("https://h/x.git"));
        for (url, expected) in [
            ("https://h/a%20b?q", "a b"),
            ("https://h/", "__unnamed__"),
            ("https://h", "__unnamed__"),
        ] {
            assert_eq!(http_filename(url), expected);
        }
    }
}
