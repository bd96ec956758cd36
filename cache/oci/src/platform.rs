//! Which machine an image is for: `os/arch[/variant]`, normalised as containerd does it.
//!
//! Parsing and printing are the inverse of each other for normalised platforms. Matching is a rank, so that
//! among an index's manifests the best one wins: `arm/v7` runs `arm/v6`, never the other way round.
use serde::{Deserialize, Serialize};
use std::{cmp::Reverse, fmt, str::FromStr};

/// An operating system and a processor (image-spec, image-index.md, `platform`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// The processor by Go's name: `amd64`, `arm64`, `arm`, …
    #[serde(default)]
    pub architecture: String,
    /// The operating system: `linux`, `windows`, …
    #[serde(default)]
    pub os: String,
    /// The version of the operating system; Windows only.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features of the operating system the image needs.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// The processor's variant: `v7` of `arm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform {text:?}: {reason}")]
pub struct ParsePlatformError {
    text: String,
    reason: &'static str,
}

impl Platform {
    /// A platform without variant or version, names as they are.
    pub fn new(os: &str, architecture: &str) -> Platform {
        Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            ..Platform::default()
        }
    }

    /// Linux on the processor this program was built for.
    pub fn host() -> Platform {
        Platform::new("linux", std::env::consts::ARCH).normalize()
    }

    /// Reads `os/arch[/variant]`, `os[(version)]` or `arch`, and normalises it; a missing part is the host's.
    ///
    /// # Errors
    /// For empty parts, parts of other characters than letters, digits, `.`, `_`, `-`, or more than three parts.
    pub fn parse(text: &str) -> Result<Platform, ParsePlatformError> {
        let fail = |reason| ParsePlatformError {
            text: text.chars().take(200).collect(),
            reason,
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, version) = match parts[0].split_once('(') {
            Some((os, rest)) => (
                os,
                rest.strip_suffix(')')
                    .ok_or_else(|| fail("missing `)` after the version"))?,
            ),
            None => (parts[0], ""),
        };
        let valid = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if !valid(os) || parts[1..].iter().any(|part| !valid(part)) {
            return Err(fail(
                "a part is empty or has a character that is no letter, digit, `.`, `_` or `-`",
            ));
        }
        let host = Platform::host();
        let mut platform = match parts[..] {
            [_] if is_known_os(os) => Platform {
                os: os.to_owned(),
                ..host
            },
            [_] if is_known_arch(os) => Platform::new(&host.os, os),
            [_] => return Err(fail("neither a known operating system nor a known architecture")),
            [_, arch] => Platform::new(os, arch),
            [_, arch, variant] => Platform {
                variant: Some(variant.to_owned()),
                ..Platform::new(os, arch)
            },
            _ => return Err(fail("expected os/arch[/variant]")),
        };
        platform.os_version = Some(version.to_owned()).filter(|v| !v.is_empty());
        Ok(platform.normalize())
    }

    /// The same platform by its usual names: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`.
    #[must_use]
    pub fn normalize(mut self) -> Platform {
        self.os = match self.os.to_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = self.variant.unwrap_or_default().to_lowercase();
        let (arch, variant) = match (self.architecture.to_lowercase().as_str(), variant.as_str()) {
            ("i386" | "x86" | "i686", v) => ("386".to_owned(), v.to_owned()),
            ("x86_64" | "x86-64" | "amd64", v) => (
                "amd64".to_owned(),
                if v == "v1" { String::new() } else { v.to_owned() },
            ),
            ("aarch64" | "arm64", v) => (
                "arm64".to_owned(),
                if matches!(v, "8" | "v8") {
                    String::new()
                } else {
                    v.to_owned()
                },
            ),
            ("armhf", _) => ("arm".to_owned(), "v7".to_owned()),
            ("armel", _) => ("arm".to_owned(), "v6".to_owned()),
            ("arm", "" | "7") => ("arm".to_owned(), "v7".to_owned()),
            ("arm", v @ ("5" | "6" | "8")) => ("arm".to_owned(), format!("v{v}")),
            (arch, v) => (arch.to_owned(), v.to_owned()),
        };
        self.architecture = arch;
        self.variant = Some(variant).filter(|v| !v.is_empty());
        self.os_version = self.os_version.filter(|v| !v.is_empty());
        self
    }

    /// How well an image for `self` serves on `wanted`: `None` not at all, else the greater the better.
    pub fn rank_for(&self, wanted: &Platform) -> Option<u32> {
        let (have, want) = (self.clone().normalize(), wanted.clone().normalize());
        if have.os != want.os || (want.os_version.is_some() && have.os_version != want.os_version) {
            return None;
        }
        let tried = runnable_on(&want);
        let position = tried.iter().position(|(arch, variant)| {
            *arch == have.architecture && *variant == have.variant.as_deref().unwrap_or_default()
        })?;
        Some(1000 - position as u32)
    }

    /// Whether an image for `self` runs on `wanted` at all.
    pub fn satisfies(&self, wanted: &Platform) -> bool {
        self.rank_for(wanted).is_some()
    }

    /// The index of the best of `candidates` for `wanted`; the first among equals.
    pub fn choose<'a>(
        candidates: impl IntoIterator<Item = &'a Platform>,
        wanted: &Platform,
    ) -> Option<usize> {
        let ranked = candidates.into_iter().enumerate();
        let usable = ranked.filter_map(|(index, platform)| Some((index, platform.rank_for(wanted)?)));
        usable
            .max_by_key(|(index, rank)| (*rank, Reverse(*index)))
            .map(|(index, _)| index)
    }
}

/// What runs on `platform`, best first.
fn runnable_on(platform: &Platform) -> Vec<(String, String)> {
    let pair = |arch: &str, variant: &str| (arch.to_owned(), variant.to_owned());
    let level = |variant: &str| variant.strip_prefix('v').and_then(|n| n.parse::<u32>().ok());
    let variant = platform.variant.as_deref().unwrap_or_default();
    match (platform.architecture.as_str(), level(variant)) {
        ("amd64", top) => {
            let mut tried: Vec<_> = (2..=top.unwrap_or(1))
                .rev()
                .map(|v| pair("amd64", &format!("v{v}")))
                .collect();
            tried.extend([pair("amd64", ""), pair("386", "")]);
            tried
        }
        ("arm64", top) => {
            let mut tried: Vec<_> = top.map(|v| pair("arm64", &format!("v{v}"))).into_iter().collect();
            tried.push(pair("arm64", ""));
            tried.extend((5..=8).rev().map(|v| pair("arm", &format!("v{v}"))));
            tried
        }
        ("arm", Some(top)) => (5..=top.min(16))
            .rev()
            .map(|v| pair("arm", &format!("v{v}")))
            .collect(),
        (arch, _) => vec![pair(arch, variant)],
    }
}

fn is_known_os(text: &str) -> bool {
    const KNOWN: [&str; 9] = [
        "linux", "windows", "darwin", "macos", "freebsd", "netbsd", "openbsd", "solaris", "wasip1",
    ];
    KNOWN.contains(&text.to_lowercase().as_str())
}

fn is_known_arch(text: &str) -> bool {
    const KNOWN: [&str; 22] = [
        "386", "i386", "i686", "x86", "amd64", "x86_64", "x86-64", "arm", "armhf", "armel", "arm64",
        "aarch64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64", "s390x",
        "wasm",
    ];
    KNOWN.contains(&text.to_lowercase().as_str())
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        if let Some(version) = &self.os_version {
            write!(f, "({version})")?;
        }
        write!(f, "/{}", self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;
    fn from_str(text: &str) -> Result<Platform, ParsePlatformError> {
        Platform::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_normalises() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/i386", "linux/386"),
            ("arm64", "linux/arm64"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ] {
            assert_eq!(
                Platform::parse(text).map(|p| p.to_string()),
                Ok(expected.to_owned()),
                "{text}"
            );
        }
        for bad in [
            "",
            "/",
            "linux/",
            "linux/a/b/c",
            "linux/am d64",
            "nonsense",
            "windows(1/amd64",
            "*",
        ] {
            assert!(Platform::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_best_manifest_wins() {
        let index: Vec<Platform> = [
            "linux/arm/v6",
            "linux/386",
            "linux/arm/v7",
            "linux/amd64",
            "linux/arm64",
        ]
        .iter()
        .map(|text| Platform::parse(text).expect("valid"))
        .collect();
        for (wanted, expected) in [
            ("linux/amd64", Some(3)),
            ("linux/amd64/v3", Some(3)),
            ("linux/arm/v7", Some(2)),
            ("linux/arm/v6", Some(0)),
            ("linux/arm/v5", None),
            ("linux/arm64", Some(4)),
            ("linux/386", Some(1)),
            ("linux/s390x", None),
            ("windows/amd64", None),
        ] {
            let wanted = Platform::parse(wanted).expect("valid");
            assert_eq!(Platform::choose(&index, &wanted), expected, "{wanted}");
        }
    }
}
