//! What a client on the wire shows registries: tokens that it fetches itself, or its credentials.
//!
//! ```text
//! GetTokenAuthority ─┬─ a key ─▶ VerifyTokenAuthority ─▶ authority, proven or not; then FetchToken for each token
//!                    └─ not offered, Unimplemented, Unavailable ─▶ Credentials
//! ```
//!
//! A client that gave a key is never asked for credentials. Each call has a minute: a credential helper may ask its user.
use super::RemoteCaller;
use crate::caller::{RegistryCredential, SessionError};
use crate::tokens::{self, Challenge, KEY_BYTES};
use crate::wire::filesync::auth_client::AuthClient;
use crate::wire::filesync::{
    CredentialsRequest, FetchTokenRequest, GetTokenAuthorityRequest, VerifyTokenAuthorityRequest,
};
use crate::{RegistryToken, Secret, TokenAuthority, TokenQuestion};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::{Code, Response, Status};

const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
const FETCH_TOKEN: &str = "/moby.filesync.v1.Auth/FetchToken";
const GET_AUTHORITY: &str = "/moby.filesync.v1.Auth/GetTokenAuthority";
const VERIFY_AUTHORITY: &str = "/moby.filesync.v1.Auth/VerifyTokenAuthority";

/// How long a client may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// What clients are told asks.
const CLIENT_ID: &str = "builder";

/// Clients know Docker Hub by the name of its registry.
fn registry_of(host: &str) -> String {
    match host {
        "docker.io" => "registry-1.docker.io".to_owned(),
        host => host.to_owned(),
    }
}

/// Whether an answer says that the client does not do this.
fn does_not(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::Unavailable)
}

impl RemoteCaller {
    fn auth(&self) -> AuthClient<tonic::transport::Channel> {
        AuthClient::new(self.channel.clone())
    }

    /// An answer in time; the refusal of a client is the inner result.
    async fn ask_in_time<T>(
        &self,
        host: &str,
        question: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Result<T, Status>, SessionError> {
        match self.ask(tokio::time::timeout(PATIENCE, question)).await? {
            Ok(answer) => Ok(answer.map(Response::into_inner)),
            Err(_) => Err(SessionError::Credentials {
                host: host.to_owned(),
                reason: format!("the client did not answer within {} s", PATIENCE.as_secs()),
            }),
        }
    }

    /// What a refusal means; that the client is gone is not its refusal.
    fn denied(&self, host: &str, status: &Status) -> SessionError {
        if self.ended.is_cancelled() {
            return SessionError::Ended {
                session: self.id.clone(),
            };
        }
        SessionError::Credentials {
            host: host.to_owned(),
            reason: status.message().to_owned(),
        }
    }

    pub(super) async fn ask_credentials(
        &self,
        host: &str,
    ) -> Result<Option<RegistryCredential>, SessionError> {
        if !self.offers(CREDENTIALS) {
            return Ok(None);
        }
        let host = registry_of(host);
        let mut client = self.auth();
        let asked = client.credentials(CredentialsRequest { host: host.clone() });
        let answer = match self.ask_in_time(&host, asked).await? {
            Ok(answer) => answer,
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            Err(status) => return Err(self.denied(&host, &status)),
        };
        Ok(match (answer.username.is_empty(), answer.secret.is_empty()) {
            (_, true) => None,
            (true, false) => Some(RegistryCredential::IdentityToken(Secret::from(answer.secret))),
            (false, false) => Some(RegistryCredential::Basic {
                username: answer.username,
                secret: Secret::from(answer.secret),
            }),
        })
    }

    pub(super) async fn ask_token_authority(
        &self,
        host: &str,
    ) -> Result<Option<TokenAuthority>, SessionError> {
        if !self.offers(GET_AUTHORITY) || !self.offers(FETCH_TOKEN) {
            return Ok(None);
        }
        let (host, salt) = (registry_of(host), tokens::salt()?);
        let mut client = self.auth();
        let asked = client.get_token_authority(GetTokenAuthorityRequest {
            host: host.clone(),
            salt: salt.to_vec().into(),
        });
        let answer = match self.ask_in_time(&host, asked).await? {
            Ok(answer) => answer,
            Err(status) if does_not(&status) && !self.ended.is_cancelled() => return Ok(None),
            Err(status) => return Err(self.denied(&host, &status)),
        };
        let key: [u8; KEY_BYTES] = answer.public_key.as_ref().try_into().map_err(|_| {
            let bytes = answer.public_key.len();
            SessionError::Credentials {
                host: host.clone(),
                reason: format!("the client gave a key of {bytes} bytes, not {KEY_BYTES}"),
            }
        })?;
        let is_proven = !tokens::is_of_nobody(salt, &key) && self.has_proven(&host, salt, &key).await?;
        Ok(Some(TokenAuthority { key, is_proven }))
    }

    /// Whether the client has the other half of the key it gave. One that does not say is not refused: its tokens are
    /// kept to its own session.
    async fn has_proven(&self, host: &str, salt: &[u8], key: &[u8; KEY_BYTES]) -> Result<bool, SessionError> {
        if !self.offers(VERIFY_AUTHORITY) {
            return Ok(false);
        }
        let challenge = Challenge::new()?;
        let mut client = self.auth();
        let asked = client.verify_token_authority(VerifyTokenAuthorityRequest {
            host: host.to_owned(),
            salt: salt.to_vec().into(),
            payload: challenge.payload().into(),
        });
        match self.ask_in_time(host, asked).await? {
            Ok(answer) => Ok(challenge.is_answered(key, &answer.signed)),
            Err(_) if self.ended.is_cancelled() => Err(SessionError::Ended {
                session: self.id.clone(),
            }),
            Err(status) => {
                tracing::debug!(
                    host,
                    error = status.message(),
                    "the client does not show who it is"
                );
                Ok(false)
            }
        }
    }

    pub(super) async fn ask_token(&self, question: &TokenQuestion) -> Result<RegistryToken, SessionError> {
        let host = registry_of(&question.host);
        let mut client = self.auth();
        let asked = client.fetch_token(FetchTokenRequest {
            client_id: CLIENT_ID.to_owned(),
            host: host.clone(),
            realm: question.realm.clone(),
            service: question.service.clone(),
            scopes: question.scopes.clone(),
        });
        let answer = match self.ask_in_time(&host, asked).await? {
            Ok(answer) => answer,
            Err(status) => return Err(self.denied(&host, &status)),
        };
        if answer.token.is_empty() {
            return Err(SessionError::Credentials {
                host,
                reason: "the client gave an empty token".into(),
            });
        }
        Ok(RegistryToken {
            text: Secret::from(answer.token),
            seconds: seconds_left(answer.expires_in, answer.issued_at),
        })
    }
}

/// How long a token is still good. When it was issued is believed only where that makes sense by this machine's clock.
fn seconds_left(expires_in: i64, issued_at: i64) -> Option<u64> {
    let seconds = u64::try_from(expires_in).ok().filter(|seconds| *seconds > 0)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let age = match u64::try_from(issued_at) {
        Ok(issued) if issued > 0 => now.saturating_sub(issued),
        _ => 0,
    };
    Some(if age < seconds { seconds - age } else { seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_as_old_as_it_says_where_that_can_be() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let now = i64::try_from(now.as_secs()).expect("before the end of time");
        assert_eq!(seconds_left(0, 0), None);
        assert_eq!(seconds_left(-5, now), None);
        assert_eq!(seconds_left(300, 0), Some(300));
        assert_eq!(seconds_left(300, i64::MAX), Some(300), "from the future");
        assert_eq!(seconds_left(300, 1), Some(300), "of another clock");
        let left = seconds_left(300, now - 100).expect("some");
        assert!((199..=200).contains(&left), "{left}");
    }
}
