//! Where the layers of images come from that were named but not fetched, and with whose credentials.
//!
//! ```text
//! session names an image ─▶ remember ─▶ its registry client, weakly, by origin
//! layer is needed ─▶ fetch ─▶ layout here │ client with a store │ sessions that named the origin, the last first, then nobody's
//! ```
//!
//! A session's client is asked only as long as the session lasts; what it could open is then open to nobody by it.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use cache::{Origin, RemoteError, Remotes};
use oci::{Descriptor, Reference};
use parking_lot::Mutex;
use registry::{
    Authority, Credential, CredentialError, Credentials, Password, Registry, RegistryError, Token,
    TokenQuestion, WeakRegistry,
};
use session::{Caller, RegistryCredential, SessionError};
use tokio::io::AsyncRead;

use crate::source::client_store::{ClientStore, Clients};
use crate::source::oci_layout;

/// Gives layers when they are needed.
pub(crate) struct Origins {
    registry: Registry,
    /// The registry clients of the sessions that named an origin.
    sessions: Mutex<HashMap<String, Vec<WeakRegistry>>>,
    /// Clients that have layouts.
    clients: Clients,
}

impl Origins {
    /// Nobody has named anything; `registry` is the client of no session.
    pub(crate) fn new(registry: Registry) -> Self {
        Self {
            registry,
            sessions: Mutex::default(),
            clients: Clients::default(),
        }
    }

    /// Remembers that a session can fetch from there, and forgets those that are no more.
    pub(crate) fn remember(&self, origin: &Origin, registry: &Registry) {
        let mut sessions = self.sessions.lock();
        sessions.retain(|_, known| {
            known.retain(|known| known.upgrade().is_some());
            !known.is_empty()
        });
        let known = sessions.entry(origin.0.clone()).or_default();
        let new = registry.downgrade();
        known.retain(|known| !known.is_same(&new));
        known.push(new);
    }

    /// Remembers which client has the layers of a layout.
    pub(crate) fn remember_client(&self, store: &ClientStore) {
        self.clients.remember(store);
    }

    /// Whom to ask, in order.
    fn registries(&self, origin: &Origin) -> Vec<Registry> {
        let sessions = self.sessions.lock();
        let known = sessions.get(&origin.0).into_iter().flatten().rev();
        let living = known.filter_map(WeakRegistry::upgrade);
        living.chain([self.registry.clone()]).collect()
    }
}

/// Whether somebody else may be given what this one was not.
fn is_for_another(error: &RegistryError) -> bool {
    matches!(
        error,
        RegistryError::Denied { .. } | RegistryError::NotFound { .. } | RegistryError::Credentials { .. }
    ) || matches!(
        error,
        RegistryError::Status {
            status: 401 | 403,
            ..
        }
    )
}

#[async_trait]
impl Remotes for Origins {
    async fn fetch(
        &self,
        origin: &Origin,
        descriptor: &Descriptor,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, RemoteError> {
        if let Some(folder) = oci_layout::folder_of(origin) {
            let file = tokio::fs::File::open(oci_layout::blob_path(&folder, &descriptor.digest)).await?;
            return Ok(Box::new(file));
        }
        if let Some(stream) = self.clients.fetch(origin, &descriptor.digest).await? {
            return Ok(stream);
        }
        let reference = Reference::parse_normalized(&origin.0)?;
        let mut first_error = None;
        for registry in self.registries(origin) {
            match registry.fetch_blob(&reference, descriptor, None).await {
                Ok(reader) => return Ok(Box::new(reader)),
                Err(error) if is_for_another(&error) => first_error = first_error.or(Some(error)),
                Err(error) => return Err(error.into()),
            }
        }
        Err(first_error
            .expect("somebody was asked, and who gives nothing gives an error")
            .into())
    }
}

/// The credentials of the client, for the registry client.
pub(crate) struct SessionCredentials(Arc<dyn Caller>);

impl SessionCredentials {
    /// Those of this caller.
    pub(crate) fn new(caller: Arc<dyn Caller>) -> Self {
        Self(caller)
    }
}

/// Clients keep the credentials of Docker Hub under the name users know.
fn known_as(host: &str) -> &str {
    match host {
        "registry-1.docker.io" => oci::DOCKER_HUB,
        host => host,
    }
}

#[async_trait]
impl Credentials for SessionCredentials {
    async fn credentials(&self, host: &str) -> Result<Option<Credential>, CredentialError> {
        let text = |secret: &session::Secret| -> Result<Password, CredentialError> {
            let text = secret.expose_text().ok_or("the password is no text")?;
            Ok(Password::new(text))
        };
        Ok(match self.0.credentials(known_as(host)).await? {
            None => None,
            Some(RegistryCredential::Basic { username, secret }) => Some(Credential::Basic {
                username,
                secret: text(&secret)?,
            }),
            Some(RegistryCredential::IdentityToken(token)) => Some(Credential::IdentityToken(text(&token)?)),
        })
    }

    async fn authority(&self, host: &str) -> Result<Option<Authority>, CredentialError> {
        let found = self.0.token_authority(known_as(host)).await?;
        Ok(found.map(|found| Authority {
            key: found.key,
            is_proven: found.is_proven,
        }))
    }

    async fn token(&self, question: &TokenQuestion) -> Result<Token, CredentialError> {
        let question = session::TokenQuestion {
            host: known_as(&question.host).to_owned(),
            realm: question.realm.clone(),
            service: question.service.clone(),
            scopes: question.scopes.clone(),
        };
        let token = match self.0.token(&question).await {
            Ok(token) => token,
            // It is said of which registry they are.
            Err(SessionError::Credentials { reason, .. }) => return Err(reason.into()),
            Err(error) => return Err(error.into()),
        };
        let text = token.text.expose_text().ok_or("the token is no text")?;
        Ok(Token {
            text: Password::new(text),
            seconds: token.seconds,
        })
    }
}
