//! Gets a token from a token server.
//!
//! | shown | asked by |
//! |---|---|
//! | nothing | GET |
//! | user and password | GET; where the server has no such method or refuses it, POST (OAuth2, `password`) |
//! | identity token | POST (OAuth2, `refresh_token`) |
//!
//! Nothing is kept here (`shelf.rs` does that).

use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;

use crate::Registry;
use crate::auth::{Credential, Password, Token, TokenQuestion};
use crate::error::{RegistryError, chain};

/// What token servers are told we are.
const CLIENT_ID: &str = "builder";
/// The largest answer that is read, in bytes.
const MOST_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Registry {
    /// Fetches a token with the credentials of this client, for somebody who is not to see those.
    ///
    /// # Errors
    /// The credentials cannot be had, or the token server gives none.
    pub async fn token(&self, question: &TokenQuestion) -> Result<Token, RegistryError> {
        let client = self.inner.hosts.client_of(&question.host)?;
        let credential = self.credential(&question.host).await?;
        fetch(&client, question, credential).await
    }

    /// What is shown to `host`.
    pub(crate) async fn credential(&self, host: &str) -> Result<Option<Credential>, RegistryError> {
        let credential = self.inner.credentials.credentials(host).await;
        credential.map_err(|source| RegistryError::Credentials {
            host: host.to_owned(),
            source,
        })
    }
}

/// Asks the token server.
pub(crate) async fn fetch(
    client: &Client,
    question: &TokenQuestion,
    credential: Option<Credential>,
) -> Result<Token, RegistryError> {
    let url = url::Url::parse(&question.realm)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    let Some(url) = url else {
        let reason = format!("{:?} is no address of a token server", question.realm);
        return Err(invalid(question, &question.host, reason));
    };
    let server = url.host_str().unwrap_or(&question.host).to_owned();
    let answer = match &credential {
        None => send(question, &server, by_get(client, url, question)).await,
        Some(Credential::IdentityToken(token)) => {
            let shown = [("grant_type", "refresh_token"), ("refresh_token", token.expose())];
            send(question, &server, by_post(client, url, question, &shown)).await
        }
        Some(Credential::Basic { username, secret }) => {
            let get = by_get(client, url.clone(), question)
                .query(&[("account", username)])
                .basic_auth(username, Some(secret.expose()));
            match send(question, &server, get).await {
                Err(RegistryError::Status { status, .. }) if knows_no_get(status) => {
                    let shown = [
                        ("grant_type", "password"),
                        ("username", username),
                        ("password", secret.expose()),
                    ];
                    send(question, &server, by_post(client, url, question, &shown)).await
                }
                answer => answer,
            }
        }
    }?;
    let text = match answer.token.is_empty() {
        true => answer.access_token,
        false => answer.token,
    };
    if text.is_empty() {
        let reason = "the answer holds no token".to_owned();
        return Err(invalid(question, &server, reason));
    }
    Ok(Token {
        text: Password::new(text),
        seconds: answer.expires_in,
    })
}

/// Whether the server may know only OAuth2: it answers so.
fn knows_no_get(status: u16) -> bool {
    [
        StatusCode::NOT_FOUND,
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::UNAUTHORIZED,
    ]
    .iter()
    .any(|known| known.as_u16() == status)
}

fn by_get(client: &Client, url: url::Url, question: &TokenQuestion) -> RequestBuilder {
    let mut query: Vec<(&str, &str)> = Vec::new();
    if !question.service.is_empty() {
        query.push(("service", &question.service));
    }
    query.extend(question.scopes.iter().map(|scope| ("scope", scope.as_str())));
    client.get(url).query(&query)
}

fn by_post(
    client: &Client,
    url: url::Url,
    question: &TokenQuestion,
    shown: &[(&str, &str)],
) -> RequestBuilder {
    let scope = question.scopes.join(" ");
    let mut form = shown.to_vec();
    form.extend([
        ("service", question.service.as_str()),
        ("scope", scope.as_str()),
        ("client_id", CLIENT_ID),
    ]);
    client.post(url).form(&form)
}

async fn send(
    question: &TokenQuestion,
    server: &str,
    request: RequestBuilder,
) -> Result<Answer, RegistryError> {
    let network = |error: reqwest::Error| RegistryError::Network {
        action: action(question),
        host: server.to_owned(),
        is_connected: !error.is_connect(),
        reason: chain(&error.without_url()),
    };
    let mut answer = request.send().await.map_err(network)?;
    let status = answer.status();
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(network)? {
        if bytes.len() + part.len() > MOST_BYTES {
            let reason = format!("the answer has more than {MOST_BYTES} bytes");
            return Err(invalid(question, server, reason));
        }
        bytes.extend_from_slice(&part);
    }
    if !status.is_success() {
        return Err(RegistryError::Status {
            action: action(question),
            host: server.to_owned(),
            status: status.as_u16(),
            detail: crate::request::detail(&String::from_utf8_lossy(&bytes)),
        });
    }
    serde_json::from_slice(&bytes).map_err(|error| invalid(question, server, error.to_string()))
}

fn action(question: &TokenQuestion) -> String {
    format!("get a token for {}", question.host)
}

fn invalid(question: &TokenQuestion, host: &str, reason: String) -> RegistryError {
    RegistryError::Invalid {
        action: action(question),
        host: host.to_owned(),
        reason,
    }
}
