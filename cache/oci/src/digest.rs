//! The names of content: digests of exact bytes, and the three kinds that must not be mixed up.
//!
//! | type | is the SHA-256 of |
//! |---|---|
//! | [`Digest`] | a blob, as pushed and pulled |
//! | [`DiffId`] | one layer's uncompressed tar (image-spec, config.md, `rootfs.diff_ids`) |
//! | [`ChainId`] | a stack of layers (image-spec, config.md, "Layer ChainID") |
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::{
    fmt,
    io::{self, Read, Write},
    str::FromStr,
};

/// The name of a blob: the SHA-256 of its exact bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest {text:?}: {reason}")]
pub struct ParseDigestError {
    text: String,
    reason: &'static str,
}

impl Digest {
    /// Reads `sha256:<64 lower-case hex digits>` (image-spec, descriptor.md, "Digests").
    ///
    /// # Errors
    /// For another algorithm, another length, or digits that are not lower-case hex.
    pub fn parse(text: &str) -> Result<Digest, ParseDigestError> {
        let fail = |reason| ParseDigestError {
            text: text.chars().take(200).collect(),
            reason,
        };
        let hex = text
            .strip_prefix("sha256:")
            .ok_or_else(|| fail("only sha256 is supported"))?;
        if hex.len() != 64 {
            return Err(fail("sha256 has 64 hex digits"));
        }
        if hex.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(fail("digits must be lower-case hex"));
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(hex, &mut bytes).map_err(|_| fail("digits must be lower-case hex"))?;
        Ok(Digest(bytes))
    }

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The 64 hex digits.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;
    fn from_str(text: &str) -> Result<Digest, ParseDigestError> {
        Digest::parse(text)
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
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// The digest of one layer's uncompressed tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(Digest);

impl DiffId {
    /// Names the layer whose uncompressed tar has this digest.
    pub fn new(digest: Digest) -> DiffId {
        DiffId(digest)
    }

    /// The digest of the uncompressed tar.
    pub fn digest(&self) -> Digest {
        self.0
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a stack of layers; grows by [`ChainId::push`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

impl ChainId {
    /// Takes a chain id as it was stored.
    pub fn new(digest: Digest) -> ChainId {
        ChainId(digest)
    }

    /// The chain id of a whole stack, bottom first; `None` for no layers.
    pub fn of(layers: &[DiffId]) -> Option<ChainId> {
        layers
            .iter()
            .fold(None, |chain, layer| Some(ChainId::push(chain, *layer)))
    }

    /// The chain id of `layer` on top of `chain`.
    pub fn push(chain: Option<ChainId>, layer: DiffId) -> ChainId {
        match chain {
            None => ChainId(layer.0),
            Some(below) => ChainId(Digest::of(format!("{} {}", below.0, layer.0).as_bytes())),
        }
    }

    /// The digest that names the chain.
    pub fn digest(&self) -> Digest {
        self.0
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Hashes and counts what is written through it.
pub struct DigestWriter<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> DigestWriter<W> {
    /// Passes everything on to `inner`.
    pub fn new(inner: W) -> DigestWriter<W> {
        DigestWriter {
            inner,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The writer beneath.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// The writer beneath, the digest and the number of bytes of everything written.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest(self.hash.finalize().into()), self.bytes)
    }
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hash.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hashes and counts what is read through it.
pub struct DigestReader<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> DigestReader<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> DigestReader<R> {
        DigestReader {
            inner,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The reader beneath, the digest and the number of bytes of everything read.
    pub fn finish(self) -> (R, Digest, u64) {
        (self.inner, Digest(self.hash.finalize().into()), self.bytes)
    }
}

impl<R: Read> Read for DigestReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn parse_accepts_exactly_the_canonical_form() {
        assert_eq!(Digest::parse(EMPTY), Ok(Digest::of(b"")));
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        for bad in [
            "",
            "sha256:",
            "sha512:00",
            &EMPTY[..70],
            &EMPTY.to_uppercase(),
            &format!("{EMPTY}0"),
            "e3b0",
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn readers_and_writers_hash_what_passes() {
        let mut writer = DigestWriter::new(Vec::new());
        writer.write_all(b"abc").expect("a vector takes all");
        let (bytes, digest, count) = writer.finish();
        assert_eq!(
            (bytes.as_slice(), digest, count),
            (&b"abc"[..], Digest::of(b"abc"), 3)
        );
        let mut reader = DigestReader::new(&b"abc"[..]);
        io::copy(&mut reader, &mut io::sink()).expect("memory reads");
        assert_eq!(reader.finish().1, Digest::of(b"abc"));
    }

    #[test]
    fn chains_follow_the_image_spec() {
        let (a, b) = (DiffId::new(Digest::of(b"a")), DiffId::new(Digest::of(b"b")));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]).map(|c| c.digest()), Some(a.digest()));
        let expected = Digest::of(format!("{} {}", a.digest(), b.digest()).as_bytes());
        assert_eq!(ChainId::of(&[a, b]).map(|c| c.digest()), Some(expected));
    }
}
