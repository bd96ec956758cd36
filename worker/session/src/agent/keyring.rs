//! Keys that can be listed and signed with, and no more.
//!
//! | key | signatures |
//! |---|---|
//! | ed25519 | `ssh-ed25519` |
//! | ecdsa on P-256 and P-384 | `ecdsa-sha2-nistp256`, `ecdsa-sha2-nistp384` |
//! | rsa, 2048 bits and more | `rsa-sha2-256`, `rsa-sha2-512`; not SHA-1, which servers refuse since OpenSSH 8.8 |
use super::file::{self, KeyError};
use super::wire::{self, Reader, put_mpint, put_string};
use crate::Secret;
use ring::rand::SystemRandom;
use ring::signature::{
    EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair,
};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A key file is no longer; buildx has the same limit.
const MAX_FILE_BYTES: u64 = 100 * 1024;

/// Private keys, as read from files.
#[derive(Default)]
pub struct Keyring {
    keys: Vec<Key>,
}

/// One key.
pub(super) struct Key {
    /// The public key as ssh has it.
    pub(super) blob: Vec<u8>,
    /// What its owner wrote on it.
    pub(super) comment: String,
    /// What signs.
    pub(super) signer: Signer,
}

/// What signs.
pub(super) enum Signer {
    Ed25519(Ed25519KeyPair),
    Ecdsa(Curve, EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// A curve of ECDSA keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
}

impl Curve {
    /// As ssh calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Curve::P256 => "nistp256",
            Curve::P384 => "nistp384",
        }
    }
}

impl Keyring {
    /// Reads one more key.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with the file; its contents are never part of that.
    pub fn add(&mut self, path: &Path) -> Result<(), KeyError> {
        let file = File::open(path).map_err(KeyError::Read)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(KeyError::Read)?;
        let bytes = Secret::new(bytes);
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(KeyError::TooLarge);
        }
        self.keys.push(file::parse(&bytes)?);
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The answer to a request.
    pub(super) fn answer(&self, request: &[u8]) -> Vec<u8> {
        let mut rest = Reader(request);
        let answer = match rest.bytes(1) {
            Some([wire::REQUEST_IDENTITIES]) => Some(self.list()),
            Some([wire::SIGN_REQUEST]) => self.sign(rest),
            _ => None,
        };
        answer.unwrap_or_else(|| vec![wire::FAILURE])
    }

    fn list(&self) -> Vec<u8> {
        let count = u32::try_from(self.keys.len()).expect("keys come from a command line");
        let mut answer = vec![wire::IDENTITIES_ANSWER];
        answer.extend_from_slice(&count.to_be_bytes());
        for key in &self.keys {
            put_string(&mut answer, &key.blob);
            put_string(&mut answer, key.comment.as_bytes());
        }
        answer
    }

    fn sign(&self, mut request: Reader<'_>) -> Option<Vec<u8>> {
        let (blob, data, flags) = (request.string()?, request.string()?, request.u32()?);
        let key = self.keys.iter().find(|key| key.blob == blob)?;
        let (name, signature) = key.signer.sign(data, flags)?;
        let mut inner = Vec::new();
        put_string(&mut inner, name.as_bytes());
        put_string(&mut inner, &signature);
        let mut answer = vec![wire::SIGN_RESPONSE];
        put_string(&mut answer, &inner);
        Some(answer)
    }
}

impl Signer {
    /// The public key as ssh has it.
    pub(super) fn blob(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        match self {
            Signer::Ed25519(pair) => {
                put_string(&mut blob, b"ssh-ed25519");
                put_string(&mut blob, pair.public_key().as_ref());
            }
            Signer::Ecdsa(curve, pair) => {
                put_string(&mut blob, format!("ecdsa-sha2-{}", curve.name()).as_bytes());
                put_string(&mut blob, curve.name().as_bytes());
                put_string(&mut blob, pair.public_key().as_ref());
            }
            Signer::Rsa(pair) => {
                let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
                put_string(&mut blob, b"ssh-rsa");
                put_mpint(&mut blob, &public.e);
                put_mpint(&mut blob, &public.n);
            }
        }
        blob
    }

    /// The algorithm's name and the signature, encoded as it wants it; `None` where it cannot be done.
    fn sign(&self, data: &[u8], flags: u32) -> Option<(String, Vec<u8>)> {
        let random = SystemRandom::new();
        Some(match self {
            Signer::Ed25519(pair) => ("ssh-ed25519".to_owned(), pair.sign(data).as_ref().to_vec()),
            Signer::Ecdsa(curve, pair) => {
                let fixed = pair.sign(&random, data).ok()?;
                let (r, s) = fixed.as_ref().split_at(fixed.as_ref().len() / 2);
                let mut both = Vec::new();
                put_mpint(&mut both, r);
                put_mpint(&mut both, s);
                (format!("ecdsa-sha2-{}", curve.name()), both)
            }
            Signer::Rsa(pair) => {
                let (name, padding) = if flags & wire::RSA_SHA2_512 != 0 {
                    ("rsa-sha2-512", &RSA_PKCS1_SHA512)
                } else if flags & wire::RSA_SHA2_256 != 0 {
                    ("rsa-sha2-256", &RSA_PKCS1_SHA256)
                } else {
                    return None;
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, data, &mut signature).ok()?;
                (name.to_owned(), signature)
            }
        })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.keys.len())
    }
}

impl PartialEq for Keyring {
    fn eq(&self, other: &Self) -> bool {
        let blobs = |ring: &Keyring| ring.keys.iter().map(|key| key.blob.clone()).collect::<Vec<_>>();
        blobs(self) == blobs(other)
    }
}

impl Eq for Keyring {}
