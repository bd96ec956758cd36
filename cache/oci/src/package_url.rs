//! Images as package URLs, as statements about images name them: `pkg:docker/busybox@latest?platform=linux%2Famd64`.
use crate::{Platform, Reference};
use std::fmt::Write;

impl Reference {
    /// The package URL of an image: `kind` is `docker` for one of a registry, `oci` for one of a layout.
    pub fn package_url(&self, kind: &str, platform: Option<&Platform>) -> String {
        let named = match self.digest() {
            Some(_) => self.clone(),
            None => self.clone().with_default_tag(),
        };
        let bare = named.clone().without_tag();
        let familiar = bare.familiar();
        let name = familiar.split('@').next().unwrap_or_default();
        let segments: Vec<String> = name.split('/').map(query_escaped).collect();
        let mut url = format!("pkg:{kind}/{}", segments.join("/"));
        // Writing to a String cannot fail.
        if let Some(tag) = named.tag() {
            let _ = write!(url, "@{}", path_escaped(tag));
        }
        let digest = named.digest().map(|digest| ("digest", digest.to_string()));
        let platform = platform.map(|platform| ("platform", plain(platform)));
        let mut mark = '?';
        for (key, value) in digest.into_iter().chain(platform) {
            let _ = write!(url, "{mark}{key}={}", path_escaped(&value));
            mark = '&';
        }
        url
    }
}

/// `os/arch[/variant]`, normalised.
fn plain(platform: &Platform) -> String {
    let platform = Platform {
        os_version: None,
        ..platform.clone().normalize()
    };
    platform.to_string()
}

fn query_escaped(text: &str) -> String {
    escaped(text, "")
}

fn path_escaped(text: &str) -> String {
    escaped(text, "$&+=:@")
}

/// Percent-encoded but for letters, digits, `-_.~` and `kept`.
fn escaped(text: &str, kept: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || kept.contains(c) {
            out.push(c);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_package_urls() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let amd64 = Platform::new("linux", "amd64");
        for (reference, platform, expected) in [
            ("alpine".to_owned(), None, "pkg:docker/alpine@latest".to_owned()),
            (
                "library/alpine:3.15".into(),
                None,
                "pkg:docker/alpine@3.15".into(),
            ),
            (
                format!("docker.io/library/alpine:edge@{digest}"),
                None,
                format!("pkg:docker/alpine@edge?digest={digest}"),
            ),
            ("user/test:v2".into(), None, "pkg:docker/user/test@v2".into()),
            (
                "localhost:5000/a/b".into(),
                Some(&amd64),
                "pkg:docker/localhost%3A5000/a/b@latest?platform=linux%2Famd64".into(),
            ),
            (
                format!("busybox@{digest}"),
                Some(&amd64),
                format!("pkg:docker/busybox?digest={digest}&platform=linux%2Famd64"),
            ),
        ] {
            let parsed = Reference::parse_normalized(&reference).expect("a reference");
            assert_eq!(parsed.package_url("docker", platform), expected);
        }
    }
}
