//! Auth, Secrets, SSH and Upload: what the user named on the command line, asked for by a daemon.
//!
//! | question | answer | nothing there |
//! |---|---|---|
//! | `Credentials` | user and password, or an identity token | two empty fields: go on anonymously |
//! | `GetTokenAuthority`, `VerifyTokenAuthority` | who this user is, without a name | Unimplemented: `Credentials` is asked |
//! | `FetchToken` | a token, fetched here with the credentials | likewise |
//! | `GetSecret` | its bytes | NotFound |
//! | `CheckAgent`, `ForwardAgent` | a connection to the agent | an error that names the id |
//! | `Pull` | the stream, once | NotFound |
use super::values;
use crate::caller::{Caller, RegistryCredential, SessionError};
use crate::tokens::Signer;
use crate::wire::filesync::{self, auth_server::Auth};
use crate::wire::secrets::{self, secrets_server::Secrets};
use crate::wire::ssh::{self, ssh_server::Ssh};
use crate::wire::upload::{self, upload_server::Upload};
use crate::{LocalCaller, Secret, SshAgent, TokenQuestion, TokenSource};
use futures_util::{Stream, StreamExt};
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of an upload in one message.
const UPLOAD_CHUNK: usize = 256 << 10;

#[derive(Clone)]
pub(super) struct Answers {
    pub(super) caller: Arc<LocalCaller>,
}

fn failed(error: SessionError) -> Status {
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(&error) {
        text = format!("{text}: {cause}");
    }
    Status::unknown(text)
}

#[tonic::async_trait]
impl Auth for Answers {
    async fn credentials(
        &self,
        call: Request<filesync::CredentialsRequest>,
    ) -> Result<Response<filesync::CredentialsResponse>, Status> {
        let text = |secret: &Secret| secret.expose_text().unwrap_or_default().to_owned();
        let found = self
            .caller
            .credentials(&call.into_inner().host)
            .await
            .map_err(failed)?;
        Ok(Response::new(match &found {
            None => filesync::CredentialsResponse::default(),
            Some(RegistryCredential::Basic { username, secret }) => filesync::CredentialsResponse {
                username: username.clone(),
                secret: text(secret),
            },
            Some(RegistryCredential::IdentityToken(token)) => filesync::CredentialsResponse {
                username: String::new(),
                secret: text(token),
            },
        }))
    }

    async fn fetch_token(
        &self,
        call: Request<filesync::FetchTokenRequest>,
    ) -> Result<Response<filesync::FetchTokenResponse>, Status> {
        let call = call.into_inner();
        let question = TokenQuestion {
            host: call.host,
            realm: call.realm,
            service: call.service,
            scopes: call.scopes,
        };
        let token = self.tokens()?.fetch(&question).await;
        let token = token.map_err(Status::unknown)?;
        Ok(Response::new(filesync::FetchTokenResponse {
            token: token.text.expose_text().unwrap_or_default().to_owned(),
            expires_in: token
                .seconds
                .and_then(|seconds| i64::try_from(seconds).ok())
                .unwrap_or(0),
            // Zero means now.
            issued_at: 0,
        }))
    }

    async fn get_token_authority(
        &self,
        call: Request<filesync::GetTokenAuthorityRequest>,
    ) -> Result<Response<filesync::GetTokenAuthorityResponse>, Status> {
        let call = call.into_inner();
        let signer = self.signer(&call.host, &call.salt).await?;
        Ok(Response::new(filesync::GetTokenAuthorityResponse {
            public_key: signer.key().into(),
        }))
    }

    async fn verify_token_authority(
        &self,
        call: Request<filesync::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<filesync::VerifyTokenAuthorityResponse>, Status> {
        let call = call.into_inner();
        let signer = self.signer(&call.host, &call.salt).await?;
        let signed = signer.sign(&call.payload);
        let signed =
            signed.ok_or_else(|| Status::invalid_argument("the payload is too long to be signed"))?;
        Ok(Response::new(filesync::VerifyTokenAuthorityResponse {
            signed: signed.into(),
        }))
    }
}

impl Answers {
    fn tokens(&self) -> Result<&dyn TokenSource, Status> {
        let tokens = self.caller.tokens();
        tokens.ok_or_else(|| Status::unimplemented("tokens are fetched by the daemon"))
    }

    async fn signer(&self, host: &str, salt: &[u8]) -> Result<Signer, Status> {
        let seed = self.tokens()?.seed(host).await.map_err(Status::unknown)?;
        Ok(Signer::new(salt, seed.as_ref()))
    }
}

#[tonic::async_trait]
impl Secrets for Answers {
    async fn get_secret(
        &self,
        call: Request<secrets::GetSecretRequest>,
    ) -> Result<Response<secrets::GetSecretResponse>, Status> {
        let id = call.into_inner().id;
        match self.caller.secret(&id).await.map_err(failed)? {
            Some(secret) => Ok(Response::new(secrets::GetSecretResponse {
                data: secret.expose().to_vec().into(),
            })),
            None => Err(Status::not_found(format!("secret {id} not found"))),
        }
    }
}

impl Answers {
    async fn agent(&self, id: &str) -> Result<SshAgent, Status> {
        let found = self.caller.ssh_agent(id).await.map_err(failed)?;
        let id = if id.is_empty() { "default" } else { id };
        found.ok_or_else(|| Status::unknown(format!("unset ssh forward key {id}")))
    }
}

#[tonic::async_trait]
impl Ssh for Answers {
    type ForwardAgentStream = Pin<Box<dyn Stream<Item = Result<ssh::BytesMessage, Status>> + Send>>;

    async fn check_agent(
        &self,
        call: Request<ssh::CheckAgentRequest>,
    ) -> Result<Response<ssh::CheckAgentResponse>, Status> {
        self.agent(&call.into_inner().id).await?;
        Ok(Response::new(ssh::CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        call: Request<Streaming<ssh::BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = values(call.metadata(), "buildkit.ssh.id").into_iter().next();
        let agent = self.agent(&id.unwrap_or_default()).await?;
        let (from_agent, mut to_agent) = agent.connect().await.map_err(failed)?.into_split();
        let mut questions = call.into_inner();
        // Ends with the call: its stream of messages does.
        tokio::spawn(async move {
            while let Ok(Some(message)) = questions.message().await {
                if to_agent.write_all(&message.data).await.is_err() {
                    return;
                }
            }
            // The agent sees the end of the questions and closes its side.
            let _ = to_agent.shutdown().await;
        });
        // The handle is held as long as the connection: keys from files are served by this process.
        let answers = ReaderStream::new(from_agent).map(move |read| match (&agent, read) {
            (_, Ok(data)) => Ok(ssh::BytesMessage { data }),
            (_, Err(error)) => Err(Status::unavailable(error.to_string())),
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tonic::async_trait]
impl Upload for Answers {
    type PullStream = Pin<Box<dyn Stream<Item = Result<upload::BytesMessage, Status>> + Send>>;

    async fn pull(
        &self,
        call: Request<Streaming<upload::BytesMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let path = values(call.metadata(), "urlpath")
            .into_iter()
            .next()
            .unwrap_or_default();
        let id = path.trim_start_matches('/');
        let stream = self
            .caller
            .upload(id)
            .await
            .map_err(|error| Status::not_found(error.to_string()))?;
        let messages = ReaderStream::with_capacity(stream, UPLOAD_CHUNK).map(|read| match read {
            Ok(data) => Ok(upload::BytesMessage { data }),
            Err(error) => Err(Status::unknown(format!("read the upload: {error}"))),
        });
        Ok(Response::new(Box::pin(messages)))
    }
}
