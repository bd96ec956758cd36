//! What an image is for: parse, print, normalise.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and a processor (image-spec, image-index.md, `platform`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`
    pub architecture: String,
    /// `linux`
    pub os: String,
    /// Version of the system, on Windows.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features the system must have, on Windows.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// `v7`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A text that is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no platform: {reason}")]
pub struct ParsePlatformError {
    text: String,
    reason: &'static str,
}

impl Platform {
    /// A platform of a system and a processor, normalised.
    pub fn new(os: &str, architecture: &str) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            ..Self::default()
        }
        .normalize()
    }

    /// Reads `os/arch[/variant]`, `os` or `arch`, and normalises it.
    ///
    /// # Errors
    /// For characters that cannot be, an empty part, or a single word that is neither system nor processor.
    pub fn parse(text: &str) -> Result<Self, ParsePlatformError> {
        let error = |reason| ParsePlatformError {
            text: text.chars().take(100).collect(),
            reason,
        };
        let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let parts: Vec<&str> = text.split('/').collect();
        if parts
            .iter()
            .any(|part| part.is_empty() || !part.chars().all(is_fine))
        {
            return Err(error("its parts must be letters, digits, '_', '-' or '.'"));
        }
        let host = Self::host();
        let platform = match parts.as_slice() {
            [word] => {
                let word = word.to_ascii_lowercase();
                if SYSTEMS.contains(&word.as_str()) || word == "macos" {
                    Self {
                        os: word,
                        architecture: host.architecture,
                        variant: host.variant,
                        ..Self::default()
                    }
                } else {
                    let found = Self {
                        os: host.os,
                        architecture: word,
                        ..Self::default()
                    }
                    .normalize();
                    if !PROCESSORS.contains(&found.architecture.as_str()) {
                        return Err(error("it is neither a known system nor a known processor"));
                    }
                    found
                }
            }
            [os, arch] => Self {
                os: (*os).into(),
                architecture: (*arch).into(),
                ..Self::default()
            },
            [os, arch, variant] => {
                let variant = Some((*variant).to_owned());
                Self {
                    os: (*os).into(),
                    architecture: (*arch).into(),
                    variant,
                    ..Self::default()
                }
            }
            _ => return Err(error("it has more than three parts")),
        };
        Ok(platform.normalize())
    }

    /// This machine's.
    pub fn host() -> Self {
        let os = if cfg!(target_os = "macos") {
            "darwin"
        } else {
            std::env::consts::OS
        };
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self {
            os: os.into(),
            architecture: architecture.into(),
            ..Self::default()
        }
        .normalize()
    }

    /// One spelling for each platform: lower case, Go's names, no variant that goes without saying.
    #[must_use]
    pub fn normalize(mut self) -> Self {
        self.os = match self.os.to_ascii_lowercase().as_str() {
            "" => Self::host_os().to_owned(),
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = self.variant.unwrap_or_default().to_ascii_lowercase();
        let (architecture, variant) =
            match (self.architecture.to_ascii_lowercase().as_str(), variant.as_str()) {
                ("i386", variant) => ("386".to_owned(), variant.to_owned()),
                ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64".to_owned(), String::new()),
                ("x86_64" | "x86-64" | "amd64", variant) => ("amd64".to_owned(), variant.to_owned()),
                ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64".to_owned(), String::new()),
                ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64".to_owned(), "v9".to_owned()),
                ("aarch64" | "arm64", variant) => ("arm64".to_owned(), variant.to_owned()),
                ("armhf", _) => ("arm".to_owned(), "v7".to_owned()),
                ("armel", _) => ("arm".to_owned(), "v6".to_owned()),
                ("arm", "" | "7") => ("arm".to_owned(), "v7".to_owned()),
                ("arm", variant @ ("5" | "6" | "8")) => ("arm".to_owned(), format!("v{variant}")),
                (architecture, variant) => (architecture.to_owned(), variant.to_owned()),
            };
        self.architecture = architecture;
        self.variant = if variant.is_empty() { None } else { Some(variant) };
        self
    }

    fn host_os() -> &'static str {
        if cfg!(target_os = "macos") {
            "darwin"
        } else {
            std::env::consts::OS
        }
    }
}

const SYSTEMS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
];
const PROCESSORS: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le",
    "riscv64", "s390x", "wasm",
];

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.os)?;
        if let Some(version) = &self.os_version {
            write!(f, "({version})")?;
        }
        write!(f, "/{}", self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Platform;

    #[test]
    fn platforms_have_one_spelling() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/amd64/v2", "linux/amd64/v2"),
        ] {
            assert_eq!(Platform::parse(text).expect(text).to_string(), expected);
        }
        for bad in ["", "linux/", "linux//v7", "a b/c", "linux/arm/v7/x", "nonsense"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
    }
}
