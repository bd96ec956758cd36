//! Upload: what is there already is not sent; what another repository of the registry has is mounted.
//!
//! ```text
//! blob ─ HEAD ─ there ─▶ done
//!          └─ not there ─ POST ?mount&from ─ 201 ─▶ done
//!                              └─ 202, upload session ─▶ PUT all of it ─▶ done
//! ```
//!
//! However many ask for the same blob in the same repository, it is sent once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use oci::{Descriptor, Digest, Reference};
use parking_lot::Mutex;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use crate::Registry;
use crate::error::RegistryError;
use crate::fetch::Progress;
use crate::hosts::Endpoint;
use crate::request::{Ask, network, pull_scope, push_scope, refusal};
use crate::resolve::header;

/// Gives the bytes of a blob, again for every attempt.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The bytes from the beginning.
    ///
    /// # Errors
    /// They cannot be read.
    async fn open(&self) -> std::io::Result<Box<dyn AsyncRead + Send + Unpin>>;
}

/// How a blob came to be in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// It was taken from another repository of the same registry.
    Mounted,
    /// It was sent.
    Uploaded,
}

/// How often an upload is begun anew.
const ATTEMPTS: u32 = 3;

type Key = (String, String, Digest);

/// Uploads under way or done, so that each is made once.
#[derive(Default)]
pub(crate) struct Pushes {
    running: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<bool>>>>,
}

impl Registry {
    /// Brings a blob into the repository of `reference`. `mount_from` are repositories that may have it;
    /// those of other registries are passed over.
    ///
    /// # Errors
    /// Not allowed, not reachable, or the source cannot be read.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        mount_from: &[Reference],
        progress: Option<Progress>,
    ) -> Result<Pushed, RegistryError> {
        let key = (
            reference.domain().to_owned(),
            reference.path().to_owned(),
            descriptor.digest,
        );
        let once = self.inner.pushes.running.lock().entry(key).or_default().clone();
        let mut is_there = once.lock().await;
        if *is_there {
            return Ok(Pushed::Existed);
        }
        let upload = Upload {
            registry: self,
            endpoint: self.inner.hosts.origin(reference.domain())?,
            reference,
            descriptor,
            progress,
        };
        let pushed = upload.push(source, mount_from).await?;
        *is_there = true;
        Ok(pushed)
    }

    /// Puts a manifest or index under the tag of `reference`, or under its digest only.
    ///
    /// # Errors
    /// Not allowed, not reachable, or refused (a blob it names is missing).
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
        by_digest: bool,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(bytes);
        let name = match reference.tag() {
            Some(tag) if !by_digest => tag.to_owned(),
            None if !by_digest => "latest".to_owned(),
            _ => digest.to_string(),
        };
        let ask = Ask {
            method: Method::PUT,
            repository: reference.path(),
            path: format!("manifests/{name}"),
            scopes: vec![push_scope(reference.path())],
            action: format!("push manifest {digest} to {reference}"),
        };
        let endpoint = self.inner.hosts.origin(reference.domain())?;
        let body = bytes.to_vec();
        let prepare = |request: RequestBuilder| request.header(CONTENT_TYPE, media_type).body(body.clone());
        let answer = self.send(&endpoint, &ask, prepare).await?;
        if !answer.status().is_success() {
            return Err(refusal(answer, &ask, &endpoint.host, &reference.to_string(), true).await);
        }
        Ok(digest)
    }
}

struct Upload<'a> {
    registry: &'a Registry,
    endpoint: Endpoint,
    reference: &'a Reference,
    descriptor: &'a Descriptor,
    progress: Option<Progress>,
}

impl Upload<'_> {
    fn ask(&self, method: Method, path: String, scopes: Vec<String>) -> Ask<'_> {
        let action = format!("push {} to {}", self.descriptor.digest, self.reference.name());
        Ask {
            method,
            repository: self.reference.path(),
            path,
            scopes,
            action,
        }
    }

    async fn refused<T>(&self, answer: Response, ask: &Ask<'_>) -> Result<T, RegistryError> {
        Err(refusal(answer, ask, &self.endpoint.host, &self.reference.name(), true).await)
    }

    async fn push(&self, source: &dyn BlobSource, mount_from: &[Reference]) -> Result<Pushed, RegistryError> {
        let own = vec![push_scope(self.reference.path())];
        let head = self.ask(
            Method::HEAD,
            format!("blobs/{}", self.descriptor.digest),
            own.clone(),
        );
        let answer = self
            .registry
            .send(&self.endpoint, &head, |request| request)
            .await?;
        match answer.status() {
            status if status.is_success() => return Ok(Pushed::Existed),
            StatusCode::NOT_FOUND => {}
            _ => return self.refused(answer, &head).await,
        }
        let neighbours = mount_from.iter().filter(|other| {
            other.domain() == self.reference.domain() && other.path() != self.reference.path()
        });
        for other in neighbours {
            if self.mount(other).await? {
                return Ok(Pushed::Mounted);
            }
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.upload(source, &own).await {
                Err(error) if error.is_temporary() && attempt < ATTEMPTS => {
                    tracing::debug!(%error, "upload begun anew");
                }
                done => return done.map(|()| Pushed::Uploaded),
            }
        }
    }

    /// Takes the blob from another repository; that it cannot be had there is no error.
    async fn mount(&self, other: &Reference) -> Result<bool, RegistryError> {
        let scopes = vec![push_scope(self.reference.path()), pull_scope(other.path())];
        let path = format!(
            "blobs/uploads/?mount={}&from={}",
            self.descriptor.digest,
            other.path()
        );
        let ask = self.ask(Method::POST, path, scopes);
        let answer = self
            .registry
            .send(&self.endpoint, &ask, |request| request.header(CONTENT_LENGTH, 0))
            .await?;
        Ok(answer.status() == StatusCode::CREATED)
    }

    async fn upload(&self, source: &dyn BlobSource, scopes: &[String]) -> Result<(), RegistryError> {
        let ask = self.ask(Method::POST, "blobs/uploads/".to_owned(), scopes.to_vec());
        let answer = self
            .registry
            .send(&self.endpoint, &ask, |request| request.header(CONTENT_LENGTH, 0))
            .await?;
        if answer.status() != StatusCode::ACCEPTED {
            return self.refused(answer, &ask).await;
        }
        let address = self.session_address(&answer, &ask)?;
        let body = self.body(source).await?;
        let endpoint = self.registry.inner.hosts.origin(self.reference.domain())?;
        let mut request = endpoint
            .client
            .put(address.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, self.descriptor.size)
            .body(body);
        // A session elsewhere (a store of the registry's) carries its own permission in its address.
        let is_own = address.host_str() == answer.url().host_str() && address.port() == answer.url().port();
        if is_own && let Some(token) = self.registry.inner.tokens.get(&self.endpoint.host, scopes) {
            request = token.apply(request);
        }
        self.registry
            .inner
            .counters
            .requests
            .fetch_add(1, Ordering::Relaxed);
        let answer = request
            .send()
            .await
            .map_err(|error| network(&ask.action, &self.endpoint.host, error))?;
        match answer.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::OK => Ok(()),
            _ => self.refused(answer, &ask).await,
        }
    }

    fn session_address(&self, answer: &Response, ask: &Ask<'_>) -> Result<url::Url, RegistryError> {
        let invalid = |reason: &str| RegistryError::Invalid {
            action: ask.action.clone(),
            host: self.endpoint.host.clone(),
            reason: reason.to_owned(),
        };
        let location = header(answer, LOCATION.as_str()).ok_or_else(|| invalid("no address to upload to"))?;
        let mut address = answer
            .url()
            .join(&location)
            .map_err(|_| invalid("the address to upload to is none"))?;
        if !matches!(address.scheme(), "http" | "https")
            || (answer.url().scheme() == "https" && address.scheme() == "http")
        {
            return Err(invalid("the address to upload to is not https"));
        }
        address
            .query_pairs_mut()
            .append_pair("digest", &self.descriptor.digest.to_string());
        Ok(address)
    }

    async fn body(&self, source: &dyn BlobSource) -> Result<reqwest::Body, RegistryError> {
        let what = self.descriptor.digest.to_string();
        let reader = source
            .open()
            .await
            .map_err(|source| RegistryError::Source { what, source })?;
        let registry = self.registry.clone();
        let progress = self.progress.clone();
        let mut sent = 0;
        let stream = ReaderStream::with_capacity(reader, 256 << 10).inspect_ok(move |part| {
            sent += part.len() as u64;
            registry
                .inner
                .counters
                .pushed_bytes
                .fetch_add(part.len() as u64, Ordering::Relaxed);
            if let Some(progress) = &progress {
                progress(sent);
            }
        });
        Ok(reqwest::Body::wrap_stream(stream))
    }
}
