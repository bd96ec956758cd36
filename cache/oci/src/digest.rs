//! Names of things by what they hold: SHA-256, kept as bytes, printed only at the rim.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::Digest as _;

/// The name of a blob: the SHA-256 of its exact bytes, as pushed and pulled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A text that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no digest: it must be sha256: and 64 lower-case hexadecimal digits")]
pub struct ParseDigestError(String);

impl Digest {
    /// Reads `sha256:<hex>`.
    ///
    /// # Errors
    /// For any other text.
    pub fn parse(text: &str) -> Result<Self, ParseDigestError> {
        let error = || ParseDigestError(text.chars().take(100).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(error)?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != 64 || !hex.bytes().all(is_hex) {
            return Err(error());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(hex, &mut bytes).map_err(|_| error())?;
        Ok(Self(bytes))
    }

    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 64 digits, without `sha256:`.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

/// The digest of one layer's uncompressed tar (image-spec, config.md, `rootfs.diff_ids`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiffId(Digest);

impl DiffId {
    /// Takes a digest for what it is.
    pub fn new(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest.
    pub fn digest(self) -> Digest {
        self.0
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The identity of a stack of layers (image-spec, config.md, "Layer ChainID").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChainId(Digest);

impl ChainId {
    /// Takes a digest for what it is.
    pub fn new(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest.
    pub fn digest(self) -> Digest {
        self.0
    }

    /// The stack with one more layer on top.
    #[must_use]
    pub fn push(below: Option<Self>, layer: DiffId) -> Self {
        match below {
            None => Self(layer.0),
            Some(below) => Self(Digest::of(format!("{} {}", below.0, layer.0).as_bytes())),
        }
    }

    /// The stack of these layers, bottom first; `None` for none.
    pub fn of(layers: &[DiffId]) -> Option<Self> {
        layers
            .iter()
            .fold(None, |below, layer| Some(Self::push(below, *layer)))
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{ChainId, DiffId, Digest};

    #[test]
    fn only_whole_lower_case_sha256_is_a_digest() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b""), Digest::parse(empty).expect("a digest"));
        assert_eq!(Digest::of(b"").to_string(), empty);
        for bad in [
            "",
            "sha256:",
            &empty[..70],
            &empty.to_uppercase(),
            "sha512:00",
            &format!("{empty}0"),
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn chains_grow_by_layers() {
        let (a, b) = (DiffId::new(Digest::of(b"a")), DiffId::new(Digest::of(b"b")));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]).map(ChainId::digest), Some(a.digest()));
        let both = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of(&[a, b]).map(ChainId::digest), Some(both));
    }
}
