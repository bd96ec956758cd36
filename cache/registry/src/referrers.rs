//! What refers to a manifest: signatures and other artifacts.
//!
//! ```text
//! GET referrers/<digest> ─ 200 ─▶ index
//!          └─ 404: a registry that has no such list ─▶ manifests/sha256-<hex> ─ 404 ─▶ nothing
//! ```
//!
//! distribution-spec, "Listing Referrers" and "Unavailable Referrers API".

use oci::{Descriptor, Digest, Document, OCI_INDEX, Reference};
use reqwest::header::ACCEPT;
use reqwest::{Method, StatusCode};

use crate::Registry;
use crate::error::RegistryError;
use crate::hosts::Endpoint;
use crate::request::{Ask, pull_scope, refusal};

impl Registry {
    /// The manifests that refer to `subject` in the repository of `reference`; the first page of them.
    ///
    /// # Errors
    /// Not allowed, not reachable, or no list. A registry that knows of none has none.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let paths = [
            format!("referrers/{subject}"),
            format!("manifests/sha256-{}", subject.hex()),
        ];
        let mut last = None;
        for endpoint in self.inner.hosts.for_pull(reference.domain())? {
            for path in &paths {
                match self.list_from(&endpoint, reference, path.clone(), subject).await {
                    Ok(Some(found)) => return Ok(found),
                    Ok(None) => {}
                    Err(error) => last = Some(error),
                }
            }
        }
        last.map_or(Ok(Vec::new()), Err)
    }

    async fn list_from(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        path: String,
        subject: &Digest,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let what = format!("{}@{subject}", reference.name());
        let ask = Ask {
            method: Method::GET,
            repository: reference.path(),
            path,
            scopes: vec![pull_scope(reference.path())],
            action: format!("list what refers to {what}"),
        };
        let answer = self
            .send(endpoint, &ask, |request| request.header(ACCEPT, OCI_INDEX))
            .await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status().is_success() {
            return Err(refusal(answer, &ask, &endpoint.host, &what, false).await);
        }
        let bytes = self.read_limited(answer, &ask, endpoint).await?;
        let invalid = |reason: String| RegistryError::Invalid {
            action: ask.action.clone(),
            host: endpoint.host.clone(),
            reason,
        };
        match Document::parse(&bytes, OCI_INDEX).map_err(|error| invalid(error.to_string()))? {
            Document::Index(index) => Ok(Some(index.manifests)),
            Document::Manifest(_) => Err(invalid("it is a manifest, not an index".to_owned())),
        }
    }
}
