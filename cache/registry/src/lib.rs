//! The far end of the store: names to descriptors, blobs to and from registries, by digest.
//!
//! ```text
//! Reference ─ hosts ─▶ endpoints (mirrors, then the registry itself)
//!                         └─ request (auth, retries) ─┬─ resolve ─▶ descriptor and manifest, verified
//!                                                     ├─ fetch ─▶ bytes, verified while they stream
//!                                                     └─ push ─▶ blob or manifest there
//! ```
//!
//! 1. `hosts`: which machines answer for a registry, and how they are spoken to.
//! 2. `auth`: challenges and credentials; `token`: what a token server gives; `shelf`: tokens that are kept.
//! 3. `request`: one request with its retries; answers become errors by the distribution-spec.
//! 4. `resolve`, `fetch`, `push`: what a builder does with a registry.
//!
//! Nothing is believed before its digest was checked. Credentials go to the registry they are for, its
//! token server, and nowhere else; a redirect to another host carries none. A descriptor's `urls` are never
//! called. Mirrors are asked for pulls only.

mod error;
mod hosts;
mod auth;
mod token;
mod shelf;
mod request;
mod resolve;
mod referrers; // what points at a manifest
mod fetch;
mod push;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

pub use auth::{
    Authority, Credential, CredentialError, Credentials, NoCredentials, Password, Token, TokenQuestion,
};
pub use error::RegistryError;
pub use fetch::{BlobReader, Progress};
pub use hosts::{HostConfig, HostsConfig};
pub use push::{BlobSource, Pushed};
pub use resolve::Resolved;

/// What was asked of registries so far.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    fetched_bytes: AtomicU64,
    pushed_bytes: AtomicU64,
}

impl Counters {
    /// Requests sent, retries and token requests included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of blobs received.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of blobs sent.
    pub fn pushed_bytes(&self) -> u64 {
        self.pushed_bytes.load(Ordering::Relaxed)
    }
}

/// A client for all registries. Cheap to clone; clones share connections, tokens and counters.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    hosts: Arc<hosts::Hosts>,
    tokens: shelf::Tokens,
    credentials: Arc<dyn Credentials>,
    pushes: push::Pushes,
    counters: Arc<Counters>,
}

impl Registry {
    /// A client that speaks to hosts as `config` says and shows what `credentials` gives.
    ///
    /// # Errors
    /// A certificate file of the configuration cannot be used.
    pub fn new(config: HostsConfig, credentials: Arc<dyn Credentials>) -> Result<Self, RegistryError> {
        Ok(Self {
            inner: Arc::new(Inner {
                hosts: Arc::new(hosts::Hosts::new(config)?),
                tokens: shelf::Tokens::default(),
                credentials,
                pushes: push::Pushes::default(),
                counters: Arc::default(),
            }),
        })
    }

    /// The same client for another user: connections and counters are shared, credentials not, and tokens only with
    /// those who prove to be the same ([`Authority`]).
    #[must_use]
    pub fn with_credentials(&self, credentials: Arc<dyn Credentials>) -> Self {
        Self {
            inner: Arc::new(Inner {
                hosts: self.inner.hosts.clone(),
                tokens: self.inner.tokens.of_another(),
                credentials,
                pushes: push::Pushes::default(),
                counters: self.inner.counters.clone(),
            }),
        }
    }

    /// The same client, for whom any certificate of this registry will do, and plain HTTP too.
    #[must_use]
    pub fn insecure(&self, domain: &str) -> Self {
        Self {
            inner: Arc::new(Inner {
                hosts: Arc::new(self.inner.hosts.insecure(domain)),
                tokens: shelf::Tokens::default(),
                credentials: self.inner.credentials.clone(),
                pushes: push::Pushes::default(),
                counters: self.inner.counters.clone(),
            }),
        }
    }

    /// The same client, as long as somebody else holds it.
    pub fn downgrade(&self) -> WeakRegistry {
        WeakRegistry(Arc::downgrade(&self.inner))
    }

    /// What was asked of registries so far.
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }
}

/// A client that goes with the last one who holds it.
#[derive(Clone, Default)]
pub struct WeakRegistry(Weak<Inner>);

impl WeakRegistry {
    /// The client, if somebody still holds it.
    pub fn upgrade(&self) -> Option<Registry> {
        self.0.upgrade().map(|inner| Registry { inner })
    }

    /// Whether both are the same client.
    pub fn is_same(&self, other: &WeakRegistry) -> bool {
        self.0.ptr_eq(&other.0)
    }
}
