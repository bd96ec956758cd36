//! Challenges, tokens and how long they last.
//!
//! ```text
//! 401, WWW-Authenticate ─▶ Challenge ─┬─ Basic ─▶ user and password
//!                                     └─ Bearer ─▶ realm, service, scopes ─▶ token, kept per host and scopes
//! ```
//!
//! A token server is asked by GET with user and password, or by POST with an identity token (OAuth2).
//! Credentials are asked for once per challenge and never kept; tokens are, until they run out.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use reqwest::Client;
use serde::Deserialize;

use crate::error::{RegistryError, chain};

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// What to show a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A user with a password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        secret: Password,
    },
    /// A token for the token server (OAuth2 refresh token).
    IdentityToken(Password),
}

/// Why no credentials could be had.
pub type CredentialError = Box<dyn std::error::Error + Send + Sync>;

/// Knows what to show which registry.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// What to show `host` (`registry-1.docker.io`, `localhost:5000`); `None` to go on without.
    ///
    /// # Errors
    /// There are credentials, and they could not be had.
    async fn credentials(&self, host: &str) -> Result<Option<Credential>, CredentialError>;
}

/// Shows nobody anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCredentials;

#[async_trait]
impl Credentials for NoCredentials {
    async fn credentials(&self, _: &str) -> Result<Option<Credential>, CredentialError> {
        Ok(None)
    }
}

/// How a registry wants to be convinced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: String,
        scopes: Vec<String>,
    },
}

impl Challenge {
    /// The first challenge in `WWW-Authenticate` headers that can be met; Bearer is preferred.
    pub(crate) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for header in headers {
            let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            } else if scheme.eq_ignore_ascii_case("bearer") {
                let mut parameters = parameters(rest);
                let scope = parameters.remove("scope").unwrap_or_default();
                return Some(Self::Bearer {
                    realm: parameters.remove("realm")?,
                    service: parameters.remove("service").unwrap_or_default(),
                    scopes: scope.split_whitespace().map(str::to_owned).collect(),
                });
            }
        }
        basic
    }
}

/// `name="value, with anything",name=token` as a map, names in lower case.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut is_escaped = false;
            let mut end = quoted.len();
            for (at, c) in quoted.char_indices() {
                match c {
                    '\\' if !is_escaped => is_escaped = true,
                    '"' if !is_escaped => {
                        end = at + 1;
                        break;
                    }
                    c => {
                        is_escaped = false;
                        value.push(c);
                    }
                }
            }
            rest = &quoted[end..];
        } else {
            let (token, after) = after.split_once(',').unwrap_or((after, ""));
            value = token.trim().to_owned();
            rest = after;
        }
        found.insert(name, value);
    }
    found
}

/// What is sent along with a request.
#[derive(Clone)]
pub(crate) enum Authorization {
    Basic { username: String, secret: Password },
    Bearer(Password),
}

impl Authorization {
    pub(crate) fn apply(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match self {
            Self::Basic { username, secret } => request.basic_auth(username, Some(secret.expose())),
            Self::Bearer(token) => request.bearer_auth(token.expose()),
        }
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

struct Kept {
    authorization: Authorization,
    until: Instant,
}

/// Tokens by host and scopes.
#[derive(Default)]
pub(crate) struct Tokens {
    kept: Mutex<HashMap<(String, Vec<String>), Kept>>,
}

/// A token that says nothing lasts this long (distribution-spec, token authentication).
const DEFAULT_SECONDS: u64 = 60;
/// A token is renewed when it has less than this left.
const MARGIN: Duration = Duration::from_secs(10);

impl Tokens {
    pub(crate) fn get(&self, host: &str, scopes: &[String]) -> Option<Authorization> {
        let kept = self.kept.lock();
        let found = kept.get(&(host.to_owned(), scopes.to_vec()))?;
        (found.until > Instant::now() + MARGIN).then(|| found.authorization.clone())
    }

    fn put(&self, host: &str, scopes: &[String], authorization: Authorization, seconds: u64) {
        let until = Instant::now() + Duration::from_secs(seconds.clamp(MARGIN.as_secs() + 1, 3600));
        self.kept
            .lock()
            .insert((host.to_owned(), scopes.to_vec()), Kept { authorization, until });
    }

    /// Meets a challenge; `None` if there is nothing to meet it with.
    pub(crate) async fn meet(
        &self,
        client: &Client,
        host: &str,
        scopes: &[String],
        challenge: Challenge,
        credential: Option<Credential>,
    ) -> Result<Option<Authorization>, RegistryError> {
        match (challenge, credential) {
            (Challenge::Basic, Some(Credential::Basic { username, secret })) => {
                let authorization = Authorization::Basic { username, secret };
                self.put(host, scopes, authorization.clone(), 3600);
                Ok(Some(authorization))
            }
            (Challenge::Basic, _) => Ok(None),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scopes: asked,
                },
                credential,
            ) => {
                let all: Vec<String> = if scopes.is_empty() { asked } else { scopes.to_vec() };
                let answer = ask(client, host, &realm, &service, &all, credential).await?;
                let token = if answer.token.is_empty() {
                    answer.access_token
                } else {
                    answer.token
                };
                if token.is_empty() {
                    return Err(RegistryError::Invalid {
                        action: "get a token".to_owned(),
                        host: realm,
                        reason: "the answer holds no token".to_owned(),
                    });
                }
                let authorization = Authorization::Bearer(Password(token));
                self.put(
                    host,
                    scopes,
                    authorization.clone(),
                    answer.expires_in.unwrap_or(DEFAULT_SECONDS),
                );
                Ok(Some(authorization))
            }
        }
    }
}

async fn ask(
    client: &Client,
    host: &str,
    realm: &str,
    service: &str,
    scopes: &[String],
    credential: Option<Credential>,
) -> Result<TokenAnswer, RegistryError> {
    let action = || format!("get a token for {host}");
    let url = url::Url::parse(realm)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    let Some(url) = url else {
        let reason = format!("{realm:?} is no address of a token server");
        return Err(RegistryError::Invalid {
            action: action(),
            host: host.to_owned(),
            reason,
        });
    };
    let server = url.host_str().unwrap_or(host).to_owned();
    let request = match credential {
        Some(Credential::IdentityToken(token)) => {
            let scope = scopes.join(" ");
            let form = [
                ("grant_type", "refresh_token"),
                ("refresh_token", token.expose()),
                ("service", service),
                ("scope", scope.as_str()),
                ("client_id", "builder"),
            ];
            client.post(url).form(&form)
        }
        credential => {
            let mut query: Vec<(&str, &str)> = Vec::new();
            if !service.is_empty() {
                query.push(("service", service));
            }
            query.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
            let request = client.get(url).query(&query);
            match credential {
                Some(Credential::Basic { username, secret }) => request
                    .basic_auth(&username, Some(secret.expose()))
                    .query(&[("account", &username)]),
                _ => request,
            }
        }
    };
    let network = |error: reqwest::Error| RegistryError::Network {
        action: action(),
        host: server.clone(),
        is_connected: !error.is_connect(),
        reason: chain(&error.without_url()),
    };
    let answer = request.send().await.map_err(network)?;
    let status = answer.status();
    if !status.is_success() {
        let text = answer.text().await.unwrap_or_default();
        let detail = crate::request::detail(&text);
        return Err(RegistryError::Status {
            action: action(),
            host: server,
            status: status.as_u16(),
            detail,
        });
    }
    let bytes = answer.bytes().await.map_err(network)?;
    serde_json::from_slice(&bytes).map_err(|error| RegistryError::Invalid {
        action: action(),
        host: server,
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_they_come() {
        let bearer = |scopes: &[&str]| Challenge::Bearer {
            realm: "https://auth.docker.io/token".into(),
            service: "registry.docker.io".into(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        };
        let cases: [(&[&str], Option<Challenge>); 6] = [
            (
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                ],
                Some(bearer(&["repository:a/b:pull,push"])),
            ),
            (
                &[
                    "Basic realm=\"x\"",
                    r#"bearer realm="https://auth.docker.io/token", service=registry.docker.io"#,
                ],
                Some(bearer(&[])),
            ),
            (&["Basic realm=\"x\""], Some(Challenge::Basic)),
            (&["Negotiate"], None),
            (&["Bearer service=\"x\""], None),
            (
                &[r#"Bearer realm="unclosed"#],
                Some(Challenge::Bearer {
                    realm: "unclosed".into(),
                    service: String::new(),
                    scopes: vec![],
                }),
            ),
        ];
        for (headers, expected) in cases {
            assert_eq!(Challenge::parse(headers.iter().copied()), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let credential = Credential::Basic {
            username: "me".into(),
            secret: Password::new("hunter2"),
        };
        assert!(!format!("{credential:?}").contains("hunter2"));
    }
}
