//! Checksums of other kinds than the one the store names things by.
//!
//! ```text
//! `sha256:…`, `sha384:…`, `sha512:…` ─▶ Checksum ◀─ Algorithm::sum(contents, suffix)
//! ```

use std::fmt;
use std::io::{self, Read};

use oci::Digest;
use sha2::{Sha256, Sha384, Sha512};

/// How contents are summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// A checksum with its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    algorithm: Algorithm,
    hex: String,
}

/// Text that is no checksum.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid checksum {found:?}: sha256, sha384 or sha512, a colon and lower case hex are wanted")]
pub struct InvalidChecksum {
    found: String,
}

impl Algorithm {
    const ALL: [Algorithm; 3] = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512];

    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha384 => "sha384",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha384 => 96,
            Algorithm::Sha512 => 128,
        }
    }

    /// The checksum of all of `contents` with `suffix` behind it.
    ///
    /// # Errors
    /// Those of reading.
    pub fn sum(self, contents: impl Read, suffix: &[u8]) -> io::Result<Checksum> {
        let hex = match self {
            Algorithm::Sha256 => hashed::<Sha256>(contents, suffix)?,
            Algorithm::Sha384 => hashed::<Sha384>(contents, suffix)?,
            Algorithm::Sha512 => hashed::<Sha512>(contents, suffix)?,
        };
        Ok(Checksum { algorithm: self, hex })
    }
}

fn hashed<H: sha2::Digest>(mut contents: impl Read, suffix: &[u8]) -> io::Result<String> {
    let mut hasher = H::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match contents.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..count]);
    }
    hasher.update(suffix);
    let mut hex = String::new();
    for byte in hasher.finalize().iter() {
        hex.push_str(&format!("{byte:02x}"));
    }
    Ok(hex)
}

impl Checksum {
    /// Reads one.
    ///
    /// # Errors
    /// Another algorithm, or no hex of its length.
    pub fn parse(text: &str) -> Result<Checksum, InvalidChecksum> {
        let parsed = text.split_once(':').and_then(|(name, hex)| {
            let algorithm = Algorithm::ALL.into_iter().find(|known| known.name() == name)?;
            let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            (is_hex && hex.len() == algorithm.hex_length()).then(|| Checksum {
                algorithm,
                hex: hex.to_owned(),
            })
        });
        parsed.ok_or_else(|| InvalidChecksum {
            found: text.to_owned(),
        })
    }

    /// How it was made.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The name of a blob with these contents, where the store names it so.
    pub(crate) fn digest(&self) -> Option<Digest> {
        Digest::parse(&self.to_string()).ok()
    }
}

impl From<Digest> for Checksum {
    fn from(digest: Digest) -> Checksum {
        Checksum {
            algorithm: Algorithm::Sha256,
            hex: digest.hex(),
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_are_read_and_made() {
        for algorithm in Algorithm::ALL {
            let made = algorithm.sum(&b"ab"[..], b"c").expect("read");
            assert_eq!(made, algorithm.sum(&b"abc"[..], b"").expect("read"));
            assert_eq!(Checksum::parse(&made.to_string()), Ok(made));
        }
        let made = Algorithm::Sha384.sum(&b"abc"[..], b"").expect("read");
        assert!(
            made.to_string()
                .starts_with("sha384:cb00753f45a35e8bb5a03d699ac65007")
        );
        let made = Algorithm::Sha256.sum(&b"abc"[..], b"").expect("read");
        assert_eq!(made, Checksum::from(Digest::of(b"abc")));
        for wrong in [
            "",
            "sha256",
            "sha256:",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "sha512:00",
            "sha256:ZZ",
        ] {
            assert!(Checksum::parse(wrong).is_err(), "{wrong}");
        }
    }
}
