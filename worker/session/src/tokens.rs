//! Tokens for registries that the client fetches itself, so that its credentials stay with it.
//!
//! ```text
//! daemon                                                     client
//! salt of this process ─▶ GetTokenAuthority ─▶ key made of salt and a seed of the client's ─▶ its public half
//! 32 bytes by chance ──▶ VerifyTokenAuthority ─▶ signed with the other half ─▶ proven: may have what the same key was given
//! realm, scopes ───────▶ FetchToken ─▶ TokenSource: asks the token server with the user's credentials ─▶ token
//! ```
//!
//! The key is the same for a client with the same seed as long as the daemon runs, and of no use to another daemon. A client
//! without credentials has a key that everybody can make: it proves nothing, and is not taken for a proof.
use crate::Secret;
use crate::caller::SessionError;
use async_trait::async_trait;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use std::sync::OnceLock;

/// Bytes of a salt, of a proof's payload and of a public key.
pub(crate) const KEY_BYTES: usize = 32;
/// Bytes of a signature; what was signed follows it.
const SIGNATURE_BYTES: usize = 64;
/// The longest payload a client signs, in bytes.
const MOST_PAYLOAD: usize = 4 << 10;

/// What a token is to be good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenQuestion {
    /// The registry that wants it.
    pub host: String,
    /// The address of the token server.
    pub realm: String,
    /// What the registry calls itself there; may be empty.
    pub service: String,
    /// What is to be allowed: `repository:<name>:pull,push`.
    pub scopes: Vec<String>,
}

/// A token of a token server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryToken {
    /// What is shown to the registry.
    pub text: Secret,
    /// Seconds for which it is good from now on, if that was said.
    pub seconds: Option<u64>,
}

/// By whose word tokens are had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenAuthority {
    /// The public half of the client's key for a registry.
    pub key: [u8; KEY_BYTES],
    /// Whether the client has shown that it has the other half.
    pub is_proven: bool,
}

/// Fetches tokens where the credentials are.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// What this user's key for `host` is made of, the same each time; `None` where there are no credentials for it.
    ///
    /// # Errors
    /// A sentence: the credentials or the seed could not be had.
    async fn seed(&self, host: &str) -> Result<Option<Secret>, String>;

    /// A token.
    ///
    /// # Errors
    /// A sentence: the token server gives none.
    async fn fetch(&self, question: &TokenQuestion) -> Result<RegistryToken, String>;
}

/// A key of a client for one registry and one daemon.
pub(crate) struct Signer(Ed25519KeyPair);

impl Signer {
    /// Made of the daemon's salt and the client's seed; without a seed everybody makes the same.
    pub(crate) fn new(salt: &[u8], seed: Option<&Secret>) -> Signer {
        let key = hmac::Key::new(hmac::HMAC_SHA256, salt);
        let made = hmac::sign(&key, seed.map(Secret::expose).unwrap_or_default());
        let pair = Ed25519KeyPair::from_seed_unchecked(made.as_ref());
        Signer(pair.expect("SHA-256 gives the 32 bytes that make a key"))
    }

    /// The public half.
    pub(crate) fn key(&self) -> Vec<u8> {
        self.0.public_key().as_ref().to_vec()
    }

    /// The payload behind its signature; `None` where it is longer than any daemon's.
    pub(crate) fn sign(&self, payload: &[u8]) -> Option<Vec<u8>> {
        (payload.len() <= MOST_PAYLOAD).then(|| {
            let mut signed = self.0.sign(payload).as_ref().to_vec();
            signed.extend_from_slice(payload);
            signed
        })
    }
}

/// A question only the holder of a key can answer.
pub(crate) struct Challenge {
    payload: [u8; KEY_BYTES],
}

impl Challenge {
    /// One that was never asked before.
    pub(crate) fn new() -> Result<Challenge, SessionError> {
        Ok(Challenge {
            payload: by_chance()?,
        })
    }

    /// What is to be signed.
    pub(crate) fn payload(&self) -> Vec<u8> {
        self.payload.to_vec()
    }

    /// Whether `signed` was made by the holder of the key, for this very question.
    pub(crate) fn is_answered(&self, key: &[u8; KEY_BYTES], signed: &[u8]) -> bool {
        let Some((signature, payload)) = signed.split_at_checked(SIGNATURE_BYTES) else {
            return false;
        };
        payload == self.payload
            && UnparsedPublicKey::new(&ED25519, key)
                .verify(payload, signature)
                .is_ok()
    }
}

/// Whether everybody can make this key.
pub(crate) fn is_of_nobody(salt: &[u8], key: &[u8; KEY_BYTES]) -> bool {
    Signer::new(salt, None).key() == key
}

/// The salt of this process: keys of clients are of no use after it.
pub(crate) fn salt() -> Result<&'static [u8; KEY_BYTES], SessionError> {
    static SALT: OnceLock<[u8; KEY_BYTES]> = OnceLock::new();
    if let Some(salt) = SALT.get() {
        return Ok(salt);
    }
    let made = by_chance()?;
    Ok(SALT.get_or_init(|| made))
}

fn by_chance() -> Result<[u8; KEY_BYTES], SessionError> {
    let mut bytes = [0; KEY_BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| SessionError::Machine {
        doing: "get random bytes".into(),
        source: std::io::Error::other("the system gave none"),
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(signer: &Signer) -> [u8; KEY_BYTES] {
        signer.key().try_into().expect("a key of 32 bytes")
    }

    #[test]
    fn a_challenge_is_answered_by_the_holder_of_the_key_only() {
        let seed = Secret::from("of this client".to_owned());
        let signer = Signer::new(b"salt", Some(&seed));
        let (key, challenge) = (key_of(&signer), Challenge::new().expect("random bytes"));
        let signed = signer.sign(&challenge.payload()).expect("short enough");
        assert!(challenge.is_answered(&key, &signed));

        let other = Signer::new(b"another salt", Some(&seed));
        let by_other = other.sign(&challenge.payload()).expect("short enough");
        assert!(!challenge.is_answered(&key, &by_other));
        let another = Challenge::new().expect("random bytes");
        assert!(!another.is_answered(&key, &signed), "an answer to something else");
        for broken in [&signed[..10], &signed[1..], &[]] {
            assert!(!challenge.is_answered(&key, broken));
        }
    }

    #[test]
    fn a_client_without_credentials_proves_nothing() {
        let nobody = Signer::new(b"salt", None);
        assert!(is_of_nobody(b"salt", &key_of(&nobody)));
        let seed = Secret::from("of this client".to_owned());
        assert!(!is_of_nobody(
            b"salt",
            &key_of(&Signer::new(b"salt", Some(&seed)))
        ));
    }

    #[test]
    fn a_key_stays_the_same_and_signs_nothing_long() {
        let signer = Signer::new(&[7; 32], Some(&Secret::new(vec![1; 16])));
        let again = Signer::new(&[7; 32], Some(&Secret::new(vec![1; 16])));
        assert_eq!(signer.key(), again.key());
        assert!(signer.sign(&[0; MOST_PAYLOAD + 1]).is_none());
    }
}
