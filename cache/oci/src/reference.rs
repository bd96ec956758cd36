//! The name of an image as people write it, with docker.io's rules.
//!
//! ```text
//! busybox            ─▶ docker.io/library/busybox
//! me/app:1           ─▶ docker.io/me/app:1
//! localhost:5000/a@… ─▶ localhost:5000/a@sha256:…
//! ```
//! Grammar: distribution's reference package. The first component is a host if it holds `.` or `:`, is
//! `localhost`, or has an upper-case letter. No tag is implied by parsing; [`Reference::with_default_tag`]
//! adds `latest`.
use crate::Digest;
use std::{fmt, str::FromStr};

/// The default registry.
pub const DOCKER_HUB: &str = "docker.io";
const MAX_NAME_BYTES: usize = 255;

/// `domain/path[:tag][@digest]`, always with its domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference {text:?}: {reason}")]
pub struct ParseReferenceError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// Reads a name as people write it.
    ///
    /// # Errors
    /// Says which part is malformed: upper case in a repository, a bad tag, a digest that is none.
    pub fn parse_normalized(text: &str) -> Result<Reference, ParseReferenceError> {
        let fail = |reason| ParseReferenceError {
            text: text.chars().take(300).collect(),
            reason,
        };
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(fail("64 hex digits name no repository"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (
                name,
                Some(Digest::parse(digest).map_err(|_| fail("what follows `@` is no sha256 digest"))?),
            ),
            None => (text, None),
        };
        let after_slash = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[after_slash..].find(':') {
            // `host:5000` alone has no repository: the part behind the colon is a tag then, as for Docker.
            Some(colon) => (
                &name[..after_slash + colon],
                Some(&name[after_slash + colon + 1..]),
            ),
            None => (name, None),
        };
        if name.is_empty() {
            return Err(fail("the repository name is empty"));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(domain) {
            return Err(fail("malformed host name"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(fail("repository name must be lowercase"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(fail("malformed repository name"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(fail("malformed tag"));
        }
        let path = if domain == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if domain.len() + 1 + path.len() > MAX_NAME_BYTES {
            return Err(fail("repository name must not be more than 255 characters"));
        }
        Ok(Reference {
            domain: domain.to_owned(),
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The registry's host, with its port.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if one was named.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was named.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `domain/path`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same with `:latest`, where neither tag nor digest is named.
    #[must_use]
    pub fn with_default_tag(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// The same repository at this digest; a tag is kept.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Reference {
        self.digest = Some(digest);
        self
    }

    /// The same repository and digest without a tag.
    #[must_use]
    pub fn without_tag(mut self) -> Reference {
        self.tag = None;
        self
    }

    /// The short form people know: `busybox:1` for `docker.io/library/busybox:1`.
    pub fn familiar(&self) -> String {
        let name = match self.domain.as_str() {
            DOCKER_HUB => self
                .path
                .strip_prefix("library/")
                .filter(|p| !p.contains('/'))
                .unwrap_or(&self.path)
                .to_owned(),
            _ => self.name(),
        };
        self.with_suffix(name)
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;
    fn from_str(text: &str) -> Result<Reference, ParseReferenceError> {
        Reference::parse_normalized(text)
    }
}

fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (
                if first == "index.docker.io" {
                    DOCKER_HUB
                } else {
                    first
                },
                rest,
            )
        }
        _ => (DOCKER_HUB, name),
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            let is_address =
                !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            return is_address && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port));
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        !bytes.is_empty()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes[0] != b'-'
            && bytes[bytes.len() - 1] != b'-'
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// Lower-case words joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if bytes.is_empty() || !alnum(bytes[0]) || !alnum(bytes[bytes.len() - 1]) {
        return false;
    }
    bytes.split(|b| alnum(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    (1..=128).contains(&bytes.len())
        && word(bytes[0])
        && bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_and_shortened() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, full, familiar) in [
            ("busybox", "docker.io/library/busybox", "busybox"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("me/app", "docker.io/me/app", "me/app"),
            ("index.docker.io/library/x", "docker.io/library/x", "x"),
            ("localhost/x", "localhost/x", "localhost/x"),
            (
                "localhost:5000/a/b:c",
                "localhost:5000/a/b:c",
                "localhost:5000/a/b:c",
            ),
            (
                "localhost:5000",
                "docker.io/library/localhost:5000",
                "localhost:5000",
            ),
            ("ghcr.io/o/r:T-1.x", "ghcr.io/o/r:T-1.x", "ghcr.io/o/r:T-1.x"),
            ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
            ("a__b/c--d.e", "docker.io/a__b/c--d.e", "a__b/c--d.e"),
        ] {
            let reference = Reference::parse_normalized(text).expect(text);
            assert_eq!(
                (reference.to_string().as_str(), reference.familiar().as_str()),
                (full, familiar),
                "{text}"
            );
            assert_eq!(Reference::parse_normalized(full), Ok(reference), "{full}");
        }
        let pinned = Reference::parse_normalized(&format!("busybox:1@{digest}")).expect("valid");
        assert_eq!(
            (pinned.tag(), pinned.digest()),
            (Some("1"), Digest::parse(digest).ok())
        );
        assert_eq!(pinned.clone().with_default_tag(), pinned);
        assert_eq!(
            Reference::parse_normalized("x")
                .expect("valid")
                .with_default_tag()
                .tag(),
            Some("latest")
        );
    }

    #[test]
    fn malformed_names_are_refused() {
        for bad in [
            "",
            ":tag",
            "App",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a@",
            "-a/b.",
            "a..b",
            "a___b",
            "a_.b",
            "ho_st.io:x/y",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "a b",
            "a:b c",
            "é",
        ] {
            assert!(Reference::parse_normalized(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(Reference::parse_normalized(&"a".repeat(300)).is_err());
    }
}
