//! Fetches tokens for registries on behalf of a daemon, which so never sees the user's passwords.
//!
//! ```text
//! <docker config>/.token_seed   {"<host>": {"Seed": "<16 bytes, base64>"}}, as other clients of the protocol keep it
//! ```
//!
//! A seed makes this user's key for a registry (`session::tokens`): by it a daemon knows that two builds are the same
//! user's, and lets the second have the tokens of the first. Where the file cannot be written a seed lasts as long as
//! this process.
use super::store::{UserCredentials, registry};
use crate::build::BuildError;
use crate::config::Config;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use registry::{Credential, Credentials, Registry};
use ring::hmac;
use serde::{Deserialize, Serialize};
use session::{RegistryToken, Secret, TokenQuestion, TokenSource};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a new seed.
const SEED_BYTES: usize = 16;

/// Who fetches tokens; `None` where the environment says that daemons are to be shown credentials instead.
pub(super) fn source(config: &Config) -> Result<Option<Arc<dyn TokenSource>>, BuildError> {
    let disabled = config.environment.text("BUILDKIT_NO_CLIENT_TOKEN");
    if disabled.is_some_and(|text| matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")) {
        return Ok(None);
    }
    Ok(Some(Arc::new(Tokens {
        registry: registry(config)?,
        credentials: UserCredentials::of(config),
        seeds: Arc::new(Seeds::new(config.environment.token_seeds())),
    })))
}

struct Tokens {
    registry: Registry,
    credentials: UserCredentials,
    seeds: Arc<Seeds>,
}

#[async_trait::async_trait]
impl TokenSource for Tokens {
    async fn seed(&self, host: &str) -> Result<Option<Secret>, String> {
        let known = self.credentials.credentials(host).await;
        let Some(known) = known.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let (seeds, host) = (self.seeds.clone(), host.to_owned());
        let seed = tokio::task::spawn_blocking(move || seeds.of(&host)).await;
        let seed = seed.map_err(|error| error.to_string())?;
        let seed = seed.map_err(|error| format!("the seed of this user's keys for registries: {error}"))?;
        Ok(Some(of_user(&seed, &known)))
    }

    async fn fetch(&self, question: &TokenQuestion) -> Result<RegistryToken, String> {
        let question = registry::TokenQuestion {
            host: question.host.clone(),
            realm: question.realm.clone(),
            service: question.service.clone(),
            scopes: question.scopes.clone(),
        };
        let token = self.registry.token(&question).await;
        let token = token.map_err(|error| error.to_string())?;
        Ok(RegistryToken {
            text: Secret::from(token.text.expose().to_owned()),
            seconds: token.seconds,
        })
    }
}

/// Another user of the same registry is another, though the folder is the same. Nobody without the seed can find out about
/// a password by what is made of it.
fn of_user(seed: &Secret, known: &Credential) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, seed.expose());
    let mut context = hmac::Context::with_key(&key);
    match known {
        Credential::Basic { username, secret } => {
            context.update(username.as_bytes());
            context.update(&[0]);
            context.update(secret.expose().as_bytes());
        }
        Credential::IdentityToken(token) => context.update(token.expose().as_bytes()),
    }
    Secret::new(context.sign().as_ref().to_vec())
}

#[derive(Clone, Serialize, Deserialize)]
struct Seed {
    #[serde(rename = "Seed")]
    text: String,
}

/// The seeds of this user, by registry.
struct Seeds {
    path: Option<PathBuf>,
    /// Those of this process.
    known: parking_lot::Mutex<BTreeMap<String, Seed>>,
}

impl Seeds {
    fn new(path: Option<PathBuf>) -> Seeds {
        Seeds {
            path,
            known: parking_lot::Mutex::default(),
        }
    }

    /// The seed for a registry, made when first asked for. Blocks.
    fn of(&self, host: &str) -> io::Result<Secret> {
        let mut known = self.known.lock();
        let seed = match known.get(host) {
            Some(seed) => seed.clone(),
            None => match &self.path {
                Some(path) => kept(path, host)?,
                None => new_seed()?,
            },
        };
        let bytes = STANDARD.decode(&seed.text).map_err(io::Error::other)?;
        known.insert(host.to_owned(), seed);
        Ok(Secret::new(bytes))
    }
}

fn new_seed() -> io::Result<Seed> {
    let mut bytes = [0; SEED_BYTES];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut bytes)
        .map_err(|_| io::Error::other("the system gave no random bytes"))?;
    Ok(Seed {
        text: STANDARD.encode(bytes),
    })
}

/// Whether a file is where nothing can be written: a seed need not be kept then.
fn cannot_be(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::NotADirectory
            // A file where the folder would be.
            | io::ErrorKind::AlreadyExists
    )
}

/// The seed in the file, put there if it is not. Others may do the same at the same time.
fn kept(path: &Path, host: &str) -> io::Result<Seed> {
    match locked(path) {
        Ok(_lock) => {
            let mut seeds = read(path)?;
            if let Some(seed) = seeds.get(host) {
                return Ok(seed.clone());
            }
            let seed = new_seed()?;
            seeds.insert(host.to_owned(), seed.clone());
            write(path, &seeds)?;
            Ok(seed)
        }
        Err(error) if cannot_be(&error) => match read(path)?.remove(host) {
            Some(seed) => Ok(seed),
            None => new_seed(),
        },
        Err(error) => Err(error),
    }
}

/// Held while the file is read and written.
fn locked(path: &Path) -> io::Result<std::fs::File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = std::fs::OpenOptions::new();
    let lock = options
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.with_extension("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(lock)
}

/// All seeds of the file; one that was written half way holds none.
fn read(path: &Path) -> io::Result<BTreeMap<String, Seed>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound || cannot_be(&error) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, seeds: &BTreeMap<String, Seed>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // Readable by the user alone, as temporary files are.
    let file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&file, seeds)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_seed_is_kept_for_the_user_alone_and_stays_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("docker/.token_seed");
        let of = |host: &str| Seeds::new(Some(path.clone())).of(host).expect("a seed");
        let first = of("r.example");
        assert_eq!(first.len(), SEED_BYTES);
        assert_ne!(first, of("other.example"));
        assert_eq!(first, of("r.example"), "by another process");
        let mode = std::fs::metadata(&path)
            .expect("it was written")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn another_user_has_another_key() {
        let seed = Secret::new(vec![1; SEED_BYTES]);
        let user = |name: &str, password: &str| Credential::Basic {
            username: name.into(),
            secret: registry::Password::new(password),
        };
        let first = of_user(&seed, &user("me", "secret"));
        assert_eq!(first, of_user(&seed, &user("me", "secret")));
        for other in [user("you", "secret"), user("me", "other"), user("mes", "ecret")] {
            assert_ne!(first, of_user(&seed, &other));
        }
    }

    #[test]
    fn a_broken_file_is_replaced_and_a_place_that_is_none_is_done_without() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(".token_seed");
        std::fs::write(&path, "{half").expect("written");
        let seed = Seeds::new(Some(path.clone())).of("r.example").expect("a new one");
        assert_eq!(Seeds::new(Some(path)).of("r.example").expect("kept"), seed);

        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        let seeds = Seeds::new(Some(file.join(".token_seed")));
        let seed = seeds.of("r.example").expect("for this process");
        assert_eq!(seeds.of("r.example").expect("the same"), seed);
    }
}
