//! A name to its descriptor and manifest.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::StreamExt;
use oci::{ACCEPTED_MANIFESTS, Descriptor, Digest, Document, MAX_MANIFEST_BYTES, Reference};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, Response, StatusCode};

use crate::Registry;
use crate::error::RegistryError;
use crate::hosts::Endpoint;
use crate::request::{Ask, network, pull_scope, refusal};

/// What a name stands for.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Type, size and digest of the manifest or index.
    pub descriptor: Descriptor,
    /// Its bytes, verified.
    pub bytes: Bytes,
}

impl Registry {
    /// What a reference stands for: its digest if it has one, else its tag, else `latest`.
    ///
    /// # Errors
    /// Not there, not allowed, not reachable, or not what its digest says.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, RegistryError> {
        let expected = reference.digest();
        let name = match (&expected, reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        self.manifest(reference, &name, expected, &reference.to_string())
            .await
    }

    /// The bytes of a manifest or index of the repository of `reference`.
    ///
    /// # Errors
    /// As for [`Registry::resolve`].
    pub async fn fetch_manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let digest = descriptor.digest;
        let what = format!("{}@{digest}", reference.name());
        Ok(self
            .manifest(reference, &digest.to_string(), Some(digest), &what)
            .await?
            .bytes)
    }

    /// Whether a registry has a blob in the repository of `reference`; nothing of it is fetched.
    ///
    /// # Errors
    /// Not allowed, or not reachable.
    pub async fn has_blob(&self, reference: &Reference, digest: &Digest) -> Result<bool, RegistryError> {
        let found = self.blob_head(reference, digest, |_| Ok(())).await?;
        Ok(found.is_some())
    }

    /// How many bytes a blob of the repository of `reference` has; `None` where there is no such blob.
    ///
    /// # Errors
    /// Not allowed, not reachable, or a registry that does not say.
    pub async fn blob_size(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Option<u64>, RegistryError> {
        let read = |answer: &Response| {
            let size = header(answer, "content-length").and_then(|size| size.parse().ok());
            size.ok_or("it does not say how large the blob is")
        };
        self.blob_head(reference, digest, read).await
    }

    /// What `read` finds in the first head of a blob that has it; `None` where no registry has the blob.
    async fn blob_head<T>(
        &self,
        reference: &Reference,
        digest: &Digest,
        read: impl Fn(&Response) -> Result<T, &'static str>,
    ) -> Result<Option<T>, RegistryError> {
        let what = format!("{}@{digest}", reference.name());
        let mut refused = None;
        for endpoint in self.inner.hosts.for_pull(reference.domain())? {
            let ask = Ask {
                method: Method::HEAD,
                repository: reference.path(),
                path: format!("blobs/{digest}"),
                scopes: vec![pull_scope(reference.path())],
                action: format!("look for blob {what}"),
            };
            match self.send(&endpoint, &ask, |request| request).await {
                Ok(answer) if answer.status().is_success() => match read(&answer) {
                    Ok(found) => return Ok(Some(found)),
                    Err(reason) => {
                        refused = Some(RegistryError::Invalid {
                            action: ask.action.clone(),
                            host: endpoint.host.clone(),
                            reason: reason.to_owned(),
                        });
                    }
                },
                Ok(answer) if answer.status() == StatusCode::NOT_FOUND => {}
                Ok(answer) => refused = Some(refusal(answer, &ask, &endpoint.host, &what, false).await),
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(None), Err)
    }

    async fn manifest(
        &self,
        reference: &Reference,
        name: &str,
        expected: Option<Digest>,
        what: &str,
    ) -> Result<Resolved, RegistryError> {
        let mut last = None;
        for endpoint in self.inner.hosts.for_pull(reference.domain())? {
            match self
                .manifest_from(&endpoint, reference, name, expected, what)
                .await
            {
                Ok(resolved) => return Ok(resolved),
                Err(error) => {
                    tracing::debug!(host = endpoint.host, %error, "manifest not had");
                    last = Some(error);
                }
            }
        }
        Err(last.expect("the registry itself is always asked"))
    }

    async fn manifest_from(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        name: &str,
        expected: Option<Digest>,
        what: &str,
    ) -> Result<Resolved, RegistryError> {
        let ask = Ask {
            method: Method::GET,
            repository: reference.path(),
            path: format!("manifests/{name}"),
            scopes: vec![pull_scope(reference.path())],
            action: format!("resolve {what}"),
        };
        let accept = ACCEPTED_MANIFESTS.join(", ");
        let answer = self
            .send(endpoint, &ask, |request| request.header(ACCEPT, &accept))
            .await?;
        if !answer.status().is_success() {
            return Err(refusal(answer, &ask, &endpoint.host, what, false).await);
        }
        let media_type = header(&answer, CONTENT_TYPE.as_str()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let told = header(&answer, "docker-content-digest").and_then(|text| Digest::parse(&text).ok());
        let bytes = self.read_limited(answer, &ask, endpoint).await?;
        let found = Digest::of(&bytes);
        if let Some(expected) = expected.or(told)
            && expected != found
        {
            let host = endpoint.host.clone();
            return Err(RegistryError::WrongDigest {
                what: what.to_owned(),
                host,
                expected,
                found,
            });
        }
        let invalid = |reason: String| RegistryError::Invalid {
            action: ask.action.clone(),
            host: endpoint.host.clone(),
            reason,
        };
        let document = Document::parse(&bytes, &media_type).map_err(|error| invalid(error.to_string()))?;
        let media_type = match document {
            Document::Manifest(manifest) => non_empty(manifest.media_type, media_type, oci::OCI_MANIFEST),
            Document::Index(index) => non_empty(index.media_type, media_type, oci::OCI_INDEX),
        };
        Ok(Resolved {
            descriptor: Descriptor::new(media_type, found, bytes.len() as u64),
            bytes,
        })
    }

    /// A body that must be small.
    pub(crate) async fn read_limited(
        &self,
        answer: Response,
        ask: &Ask<'_>,
        endpoint: &Endpoint,
    ) -> Result<Bytes, RegistryError> {
        let mut bytes = Vec::new();
        let mut stream = answer.bytes_stream();
        while let Some(part) = stream.next().await {
            let part = part.map_err(|error| network(&ask.action, &endpoint.host, error))?;
            if bytes.len() + part.len() > MAX_MANIFEST_BYTES {
                return Err(RegistryError::Invalid {
                    action: ask.action.clone(),
                    host: endpoint.host.clone(),
                    reason: format!("the manifest has more than {MAX_MANIFEST_BYTES} bytes"),
                });
            }
            bytes.extend_from_slice(&part);
        }
        self.inner
            .counters
            .fetched_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes.into())
    }
}

fn non_empty(in_document: String, in_header: String, default: &str) -> String {
    [in_document, in_header]
        .into_iter()
        .find(|text| !text.is_empty())
        .unwrap_or_else(|| default.to_owned())
}

pub(crate) fn header(answer: &Response, name: &str) -> Option<String> {
    Some(answer.headers().get(name)?.to_str().ok()?.to_owned())
}
