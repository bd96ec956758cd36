//! Challenges, tokens and how long they last.
//!
//! ```text
//! 401, WWW-Authenticate ─▶ Challenge ─┬─ Basic ─▶ user and password
//!                                     └─ Bearer ─▶ realm, service, scopes ─▶ token, kept per host and scopes
//! ```
//!
//! Whoever has the credentials may want to keep them to himself and fetch the tokens (`token.rs` asks a token server):
//! then he names an authority, the public half of a key of his, and is never asked for the credentials.
//! Credentials are asked for once per challenge and never kept; tokens are (`shelf.rs`), until they run out.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one who must have it.
    pub fn expose(&self) -> &str {
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
pub struct Token {
    /// What is shown to the registry.
    pub text: Password,
    /// Seconds for which it is good from now on, if that was said.
    pub seconds: Option<u64>,
}

/// By whose word tokens are had, where that is somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The public half of his key (Ed25519).
    pub key: [u8; 32],
    /// Whether he has shown that he has the other half, and so may have what others with the same key were given.
    pub is_proven: bool,
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

    /// Who fetches tokens for `host`; `None` where the credentials are to be asked for instead.
    ///
    /// # Errors
    /// There is somebody, who could not be asked.
    async fn authority(&self, _host: &str) -> Result<Option<Authority>, CredentialError> {
        Ok(None)
    }

    /// A token, from the authority.
    ///
    /// # Errors
    /// None could be had.
    async fn token(&self, question: &TokenQuestion) -> Result<Token, CredentialError> {
        Err(format!("nobody fetches tokens for {}", question.host).into())
    }
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
#[derive(Clone, PartialEq, Eq)]
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
