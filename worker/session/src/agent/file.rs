//! Private keys out of files.
//!
//! | label | contents |
//! |---|---|
//! | `OPENSSH PRIVATE KEY` | what ssh-keygen writes (OpenSSH, PROTOCOL.key) |
//! | `PRIVATE KEY` | PKCS #8, RFC 5958 |
//! | `RSA PRIVATE KEY` | PKCS #1, RFC 8017 appendix A.1.2 |
//! | `EC PRIVATE KEY` | SEC 1, RFC 5915 |
//!
//! Keys under a passphrase are told from broken ones: nobody can be asked for it while a build runs.
use super::keyring::{Curve, Key, Signer};
use super::wire::Reader;
use crate::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, RsaKeyPair,
};
use std::io;

/// Why a file's key cannot be used. Shows nothing of what is in the file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("read it: {0}")]
    Read(#[source] io::Error),
    /// Longer than any key.
    #[error("it is too long for a private key")]
    TooLarge,
    /// No key at all.
    #[error("it is neither an agent's socket nor a private key in PEM")]
    NotAKey,
    /// It lies under a passphrase.
    #[error("the key is protected by a passphrase")]
    Passphrase,
    /// A kind of key that is not signed with here.
    #[error("{0} is not supported; ed25519, ecdsa (nistp256, nistp384) and rsa are")]
    Unsupported(String),
    /// It begins as a key but is none.
    #[error("the key is damaged: {0}")]
    Damaged(String),
}

/// What is inside the first block of PEM that is a private key.
struct Pem {
    label: String,
    is_encrypted: bool,
    bytes: Secret,
}

/// The key in a file.
pub(super) fn parse(file: &Secret) -> Result<Key, KeyError> {
    let pem = pem(file)?;
    if pem.is_encrypted || pem.label == "ENCRYPTED PRIVATE KEY" {
        return Err(KeyError::Passphrase);
    }
    let bytes = pem.bytes.expose();
    let (signer, comment) = match pem.label.as_str() {
        "OPENSSH PRIVATE KEY" => openssh(bytes)?,
        "PRIVATE KEY" => (pkcs8(bytes)?, String::new()),
        "RSA PRIVATE KEY" => (
            Signer::Rsa(RsaKeyPair::from_der(bytes).map_err(rejected)?),
            String::new(),
        ),
        "EC PRIVATE KEY" => (sec1(bytes)?, String::new()),
        other => return Err(KeyError::Unsupported(format!("a {other}"))),
    };
    Ok(Key {
        blob: signer.blob(),
        comment,
        signer,
    })
}

fn rejected(error: ring::error::KeyRejected) -> KeyError {
    match error.to_string().as_str() {
        "TooSmall" => KeyError::Unsupported("an rsa key of less than 2048 bits".to_owned()),
        "TooLarge" => KeyError::Unsupported("an rsa key of more than 4096 bits".to_owned()),
        other => KeyError::Damaged(other.to_owned()),
    }
}

fn damaged(what: &str) -> KeyError {
    KeyError::Damaged(what.to_owned())
}

/// RFC 7468, with the headers that openssl puts before encrypted contents.
fn pem(file: &Secret) -> Result<Pem, KeyError> {
    let text = file.expose_text().ok_or(KeyError::NotAKey)?;
    let mut lines = text.lines().map(str::trim);
    let label = lines
        .by_ref()
        .find_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
        .filter(|label| label.ends_with("PRIVATE KEY"))
        .ok_or(KeyError::NotAKey)?;
    let end = format!("-----END {label}-----");
    let (mut is_encrypted, mut is_ended, mut encoded) = (false, false, String::new());
    for line in lines {
        if line == end {
            is_ended = true;
            break;
        }
        if line.contains(':') {
            is_encrypted |= line.starts_with("Proc-Type:") && line.contains("ENCRYPTED");
            continue;
        }
        encoded.push_str(line);
    }
    let encoded = Secret::from(encoded);
    if !is_ended {
        return Err(damaged("its end is missing"));
    }
    let bytes = STANDARD.decode(encoded.expose());
    Ok(Pem {
        label: label.to_owned(),
        is_encrypted,
        bytes: Secret::new(bytes.map_err(|_| damaged("it is no base64"))?),
    })
}

/// OpenSSH's own format: public parts, then private ones, which may be encrypted.
fn openssh(bytes: &[u8]) -> Result<(Signer, String), KeyError> {
    let cut = || damaged("it ends early");
    let mut rest = Reader(
        bytes
            .strip_prefix(b"openssh-key-v1\0")
            .ok_or_else(|| damaged("its beginning is another"))?,
    );
    let cipher = rest.string().ok_or_else(cut)?;
    let (_kdf, _kdf_options) = (rest.string().ok_or_else(cut)?, rest.string().ok_or_else(cut)?);
    if cipher != b"none" {
        return Err(KeyError::Passphrase);
    }
    if rest.u32().ok_or_else(cut)? != 1 {
        return Err(KeyError::Unsupported("a file with several keys".to_owned()));
    }
    let _public = rest.string().ok_or_else(cut)?;
    let mut private = Reader(rest.string().ok_or_else(cut)?);
    if private.u32().ok_or_else(cut)? != private.u32().ok_or_else(cut)? {
        return Err(damaged("its check bytes differ"));
    }
    let kind = private.string().ok_or_else(cut)?;
    let signer = match kind {
        b"ssh-ed25519" => {
            let (public, both) = (
                private.string().ok_or_else(cut)?,
                private.string().ok_or_else(cut)?,
            );
            let seed = both.get(..32).ok_or_else(cut)?;
            Signer::Ed25519(Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(rejected)?)
        }
        b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384" => {
            let curve = if kind.ends_with(b"256") {
                Curve::P256
            } else {
                Curve::P384
            };
            let _name = private.string().ok_or_else(cut)?;
            let public = private.string().ok_or_else(cut)?;
            ecdsa(curve, private.mpint().ok_or_else(cut)?, public)?
        }
        b"ssh-rsa" => rsa(&mut private)?,
        other => {
            return Err(KeyError::Unsupported(format!(
                "a key of type {}",
                String::from_utf8_lossy(other)
            )));
        }
    };
    let comment = private.string().ok_or_else(cut)?;
    Ok((signer, String::from_utf8_lossy(comment).into_owned()))
}

fn algorithm(curve: Curve) -> (&'static EcdsaSigningAlgorithm, usize) {
    match curve {
        Curve::P256 => (&ECDSA_P256_SHA256_FIXED_SIGNING, 32),
        Curve::P384 => (&ECDSA_P384_SHA384_FIXED_SIGNING, 48),
    }
}

fn ecdsa(curve: Curve, scalar: &[u8], public: &[u8]) -> Result<Signer, KeyError> {
    let (algorithm, length) = algorithm(curve);
    let missing = length
        .checked_sub(scalar.len())
        .ok_or_else(|| damaged("its number is too long for its curve"))?;
    let mut padded = vec![0; missing];
    padded.extend_from_slice(scalar);
    let padded = Secret::new(padded);
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, padded.expose(), public, &random);
    Ok(Signer::Ecdsa(curve, pair.map_err(rejected)?))
}

/// n, e, d, iqmp, p, q; what else the signer wants follows from them.
fn rsa(private: &mut Reader<'_>) -> Result<Signer, KeyError> {
    let mut next = || {
        private
            .mpint()
            .filter(|number| !number.is_empty())
            .ok_or_else(|| damaged("it ends early"))
    };
    let (n, e, d, inverse, p, q) = (next()?, next()?, next()?, next()?, next()?, next()?);
    let (exponent_p, exponent_q) = (Secret::new(remainder(d, p)?), Secret::new(remainder(d, q)?));
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n, e },
        d,
        p,
        q,
        dP: exponent_p.expose(),
        dQ: exponent_q.expose(),
        qInv: inverse,
    };
    Ok(Signer::Rsa(
        RsaKeyPair::from_components(&components).map_err(rejected)?,
    ))
}

/// `number` modulo `prime` minus one, without zeros before it. The signer checks the outcome, as it does all parts.
fn remainder(number: &[u8], prime: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut modulus = prime.to_vec();
    match modulus.last_mut() {
        Some(last) if *last & 1 == 1 && prime != [1] => *last -= 1,
        _ => return Err(damaged("what should be a prime is none")),
    }
    // One byte more than the modulus, for what is carried out on doubling.
    modulus.insert(0, 0);
    let mut rest = vec![0_u8; modulus.len()];
    for bit in number
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1))
    {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        if rest >= modulus {
            let mut borrow = false;
            for (byte, subtracted) in rest.iter_mut().zip(&modulus).rev() {
                let (once, first) = byte.overflowing_sub(*subtracted);
                let (twice, second) = once.overflowing_sub(u8::from(borrow));
                (*byte, borrow) = (twice, first || second);
            }
        }
    }
    let zeros = rest.iter().take_while(|byte| **byte == 0).count();
    Ok(rest.split_off(zeros))
}

fn pkcs8(bytes: &[u8]) -> Result<Signer, KeyError> {
    let random = SystemRandom::new();
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes) {
        return Ok(Signer::Ed25519(pair));
    }
    for curve in [Curve::P256, Curve::P384] {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(algorithm(curve).0, bytes, &random) {
            return Ok(Signer::Ecdsa(curve, pair));
        }
    }
    match RsaKeyPair::from_pkcs8(bytes) {
        Ok(pair) => Ok(Signer::Rsa(pair)),
        Err(error) if error.to_string() == "WrongAlgorithm" => {
            Err(KeyError::Unsupported("this kind of key".to_owned()))
        }
        Err(error) => Err(rejected(error)),
    }
}

/// SEQUENCE { 1, OCTET STRING private, [0] curve, [1] BIT STRING public }.
fn sec1(bytes: &[u8]) -> Result<Signer, KeyError> {
    const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
    let cut = || damaged("it is not of the form that an elliptic curve's key has");
    let mut rest = element(&mut Reader(bytes), 0x30).map(Reader).ok_or_else(cut)?;
    let _version = element(&mut rest, 0x02).ok_or_else(cut)?;
    let scalar = element(&mut rest, 0x04).ok_or_else(cut)?;
    let curve = match element(&mut rest, 0xa0).ok_or_else(cut)? {
        P256 => Curve::P256,
        P384 => Curve::P384,
        _ => return Err(KeyError::Unsupported("a key on another curve".to_owned())),
    };
    let mut public = element(&mut rest, 0xa1).map(Reader).ok_or_else(cut)?;
    // The first byte tells how many bits of the last are unused: none.
    let public = element(&mut public, 0x03).and_then(|bits| bits.strip_prefix(&[0]));
    ecdsa(curve, scalar, public.ok_or_else(cut)?)
}

/// The contents of the next element of DER, if it is of this kind.
fn element<'a>(rest: &mut Reader<'a>, kind: u8) -> Option<&'a [u8]> {
    if rest.bytes(1)? != [kind] {
        return None;
    }
    let length = match rest.bytes(1)? {
        [short @ ..=0x7f] => usize::from(*short),
        [0x81] => usize::from(*rest.bytes(1)?.first()?),
        [0x82] => usize::from(u16::from_be_bytes(rest.bytes(2)?.try_into().ok()?)),
        _ => return None,
    };
    rest.bytes(length)
}
