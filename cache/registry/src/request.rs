//! One request: who is asked, with which token, how often; and what the answer means.
//!
//! ```text
//! request ─▶ send ─ 401 ─▶ challenge ─▶ token ─▶ send again (once)
//!              ├─ 408, 429, 5xx, broken connection ─▶ wait ─▶ send again (up to 4 times)
//!              └─ anything else ─▶ answer
//! ```

use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;

use crate::Registry;
use crate::auth::{Authority, Authorization, Challenge, Credential, TokenQuestion};
use crate::error::{RegistryError, chain};
use crate::hosts::Endpoint;

/// How often a request is sent that fails by no fault of its own.
const ATTEMPTS: u32 = 4;
/// How often one is sent that reaches nobody.
const ABSENT_ATTEMPTS: u32 = 2;
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// What is asked.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) repository: &'a str,
    /// Below the repository: `manifests/latest`.
    pub(crate) path: String,
    /// `repository:<name>:pull`
    pub(crate) scopes: Vec<String>,
    /// For messages: `fetch sha256:…`
    pub(crate) action: String,
}

/// How a challenge was met.
enum Met {
    /// There is nothing to meet it with.
    Not,
    /// With something that was there.
    Kept(Authorization),
    /// With something got just now.
    Fresh(Authorization),
}

/// The scope of reading a repository.
pub(crate) fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// The scope of writing a repository.
pub(crate) fn push_scope(repository: &str) -> String {
    format!("repository:{repository}:pull,push")
}

impl Registry {
    /// Sends a request without a body, and gives the answer whatever its status.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        prepare: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let mut endpoint = endpoint.clone();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let sent = self.send_authorized(&mut endpoint, ask, &prepare).await;
            let wait = match &sent {
                Ok(answer) if is_worth_repeating(answer.status()) => retry_after(answer),
                Ok(_) => return sent,
                Err(error) if error.is_temporary() => None,
                Err(_) => return sent,
            };
            // A machine that is not there will hardly be there a second later.
            let is_absent = matches!(
                sent,
                Err(RegistryError::Network {
                    is_connected: false,
                    ..
                })
            );
            if attempt == if is_absent { ABSENT_ATTEMPTS } else { ATTEMPTS } {
                return sent;
            }
            let backoff = Duration::from_millis(250) * 2u32.pow(attempt - 1);
            tokio::time::sleep(wait.unwrap_or(backoff).min(LONGEST_WAIT)).await;
        }
    }

    async fn send_authorized(
        &self,
        endpoint: &mut Endpoint,
        ask: &Ask<'_>,
        prepare: &impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let known = self.inner.tokens.get(&endpoint.host, &ask.scopes);
        let answer = self.send_once(endpoint, ask, prepare, known.as_ref()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let (answer, kept) = match self.authorize(endpoint, &ask.scopes, &answer, known).await? {
            Met::Not => return Ok(answer),
            Met::Fresh(token) => return self.send_once(endpoint, ask, prepare, Some(&token)).await,
            Met::Kept(token) => {
                let answer = self.send_once(endpoint, ask, prepare, Some(&token)).await?;
                (answer, Some(token))
            }
        };
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        // What was kept is good no more.
        match self.authorize(endpoint, &ask.scopes, &answer, kept).await? {
            Met::Not => Ok(answer),
            Met::Fresh(token) | Met::Kept(token) => {
                self.send_once(endpoint, ask, prepare, Some(&token)).await
            }
        }
    }

    /// Meets the challenge in an answer to a request that showed `used`.
    async fn authorize(
        &self,
        endpoint: &Endpoint,
        scopes: &[String],
        answer: &Response,
        used: Option<Authorization>,
    ) -> Result<Met, RegistryError> {
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        let headers: Vec<_> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        let Some(challenge) = Challenge::parse(headers.into_iter()) else {
            return Ok(Met::Not);
        };
        let (host, tokens) = (&endpoint.host, &self.inner.tokens);
        let authority = match &challenge {
            Challenge::Basic => None,
            Challenge::Bearer { .. } => self.authority(host).await?,
        };
        // Whoever wants the same waits, and takes what the first one got.
        let turn = tokens.turn(host, scopes);
        let _turn = turn.lock().await;
        if let Some(kept) = tokens
            .get(host, scopes)
            .filter(|kept| Some(kept) != used.as_ref())
        {
            return Ok(Met::Kept(kept));
        }
        let (authorization, seconds) = match challenge {
            Challenge::Basic => match self.credential(host).await? {
                Some(Credential::Basic { username, secret }) => {
                    (Authorization::Basic { username, secret }, Some(u64::MAX))
                }
                Some(Credential::IdentityToken(_)) | None => return Ok(Met::Not),
            },
            Challenge::Bearer {
                realm,
                service,
                scopes: asked,
            } => {
                let question = TokenQuestion {
                    host: host.clone(),
                    realm,
                    service,
                    scopes: if scopes.is_empty() { asked } else { scopes.to_vec() },
                };
                let token = match authority {
                    Some(_) => self.inner.credentials.token(&question).await.map_err(|source| {
                        let host = host.clone();
                        RegistryError::Credentials { host, source }
                    })?,
                    None => {
                        let credential = self.credential(host).await?;
                        self.inner.counters.requests.fetch_add(1, Ordering::Relaxed);
                        crate::token::fetch(&endpoint.client, &question, credential).await?
                    }
                };
                (Authorization::Bearer(token.text), token.seconds)
            }
        };
        tokens.put(host, scopes, authorization.clone(), seconds);
        Ok(Met::Fresh(authorization))
    }

    /// Who fetches tokens for a host; asked once.
    async fn authority(&self, host: &str) -> Result<Option<Authority>, RegistryError> {
        let found = self.inner.tokens.authority(host);
        let ask = || self.inner.credentials.authority(host);
        let known = found.get_or_try_init(ask).await;
        known.copied().map_err(|source| RegistryError::Credentials {
            host: host.to_owned(),
            source,
        })
    }

    async fn send_once(
        &self,
        endpoint: &mut Endpoint,
        ask: &Ask<'_>,
        prepare: &impl Fn(RequestBuilder) -> RequestBuilder,
        authorization: Option<&Authorization>,
    ) -> Result<Response, RegistryError> {
        let request = |plain: bool| {
            let url = endpoint.url(ask.repository, &ask.path, plain);
            let request = prepare(endpoint.client.request(ask.method.clone(), url));
            authorization
                .into_iter()
                .fold(request, |request, authorization| authorization.apply(request))
        };
        self.inner.counters.requests.fetch_add(1, Ordering::Relaxed);
        let first = request(endpoint.is_plain).send().await;
        let answer = match first {
            Err(error) if endpoint.may_fall_back && error.is_connect() => {
                self.inner.counters.requests.fetch_add(1, Ordering::Relaxed);
                let answer = request(true).send().await;
                if answer.is_ok() {
                    self.inner.hosts.remember(&endpoint.host, true);
                    endpoint.is_plain = true;
                    endpoint.may_fall_back = false;
                }
                answer
            }
            Ok(answer) => {
                if endpoint.may_fall_back {
                    self.inner.hosts.remember(&endpoint.host, endpoint.is_plain);
                    endpoint.may_fall_back = false;
                }
                Ok(answer)
            }
            Err(error) => Err(error),
        };
        answer.map_err(|error| network(&ask.action, &endpoint.host, error))
    }
}

pub(crate) fn network(action: &str, host: &str, error: reqwest::Error) -> RegistryError {
    RegistryError::Network {
        action: action.to_owned(),
        host: host.to_owned(),
        is_connected: !error.is_connect(),
        reason: chain(&error.without_url()),
    }
}

fn is_worth_repeating(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer
        .headers()
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// What a refusal means; `what` is the thing asked for.
pub(crate) async fn refusal(
    answer: Response,
    ask: &Ask<'_>,
    host: &str,
    what: &str,
    is_push: bool,
) -> RegistryError {
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    let what = what.to_owned();
    match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound { what },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let detail = detail(&text);
            let detail = detail.trim_start_matches([':', ' ']);
            let detail = if detail.is_empty() {
                status.to_string()
            } else {
                detail.to_owned()
            };
            match is_push {
                true => RegistryError::PushDenied { what, detail },
                false => RegistryError::Denied { what, detail },
            }
        }
        status => RegistryError::Status {
            action: ask.action.clone(),
            host: host.to_owned(),
            status: status.as_u16(),
            detail: detail(&text),
        },
    }
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What a registry says about an error (distribution-spec, Error codes), with a separator before it.
pub(crate) fn detail(text: &str) -> String {
    let said = match serde_json::from_str::<Errors>(text) {
        Ok(errors) => errors
            .errors
            .iter()
            .map(|fault| format!("{}: {}", fault.code, fault.message))
            .collect::<Vec<_>>()
            .join("; "),
        Err(_) => text
            .trim()
            .chars()
            .take(200)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect(),
    };
    if said.is_empty() {
        said
    } else {
        format!(": {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_as_the_registry_told_them() {
        for (text, expected) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"requested access is denied","detail":[]}]}"#,
                ": DENIED: requested access is denied",
            ),
            ("<html>bad\ngateway</html>", ": <html>bad gateway</html>"),
            ("", ""),
        ] {
            assert_eq!(detail(text), expected);
        }
    }
}
