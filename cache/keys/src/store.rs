//! The trait through which keys are asked for and filed.
//!
//! ```text
//! solver ─ query(key, link) ─▶ keys ─ results(key) ─▶ records, newest first
//! solver ─ save(batch) ─▶ links and records, all or none
//! cache  ─ release(result) ─▶ the record is gone, and every key that led to nothing else
//! ```
//!
//! Calls are synchronous and cheap (microseconds): the solver makes them while it decides.

use std::borrow::Cow;

use crate::key::{KeyId, Link, Record, ResultId, Selector};

/// A failure of the storage below a key store.
#[derive(Debug, thiserror::Error)]
#[error("cache keys: {action}")]
pub struct StoreError {
    action: Cow<'static, str>,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl StoreError {
    /// Says which `action` failed ("read the links of a key") and why.
    pub fn new(
        action: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            action: action.into(),
            source: source.into(),
        }
    }
}

/// What one finished step adds to a store; written as a whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// From, how, to.
    pub links: Vec<(KeyId, Link, KeyId)>,
    /// Records under their keys.
    pub records: Vec<(KeyId, Record)>,
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.records.is_empty()
    }
}

/// A graph of keys with results.
///
/// A key exists while it has a record, or a link leads from or to it.
pub trait KeyStore: Send + Sync {
    /// Whether anything is known of `key`.
    ///
    /// # Errors
    /// The storage below failed; the caller goes on without the cache.
    fn exists(&self, key: &KeyId) -> Result<bool, StoreError>;

    /// The keys that `link` leads to from `key`, in the order of their ids.
    ///
    /// # Errors
    /// As for [`KeyStore::exists`].
    fn query(&self, key: &KeyId, link: &Link) -> Result<Vec<KeyId>, StoreError>;

    /// The records of `key`, newest first; of equally new ones the one filed last comes first.
    ///
    /// # Errors
    /// As for [`KeyStore::exists`].
    fn results(&self, key: &KeyId) -> Result<Vec<Record>, StoreError>;

    /// The links that lead to `key`, with the keys they come from, in order.
    ///
    /// # Errors
    /// As for [`KeyStore::exists`].
    fn links_to(&self, key: &KeyId) -> Result<Vec<(KeyId, Link)>, StoreError>;

    /// The keys that lead to `key`, each with the input it is known by and the part of it that matters.
    ///
    /// # Errors
    /// As for [`KeyStore::exists`].
    fn sources(&self, key: &KeyId) -> Result<Vec<(KeyId, u32, Selector)>, StoreError> {
        let links = self.links_to(key)?;
        Ok(links
            .into_iter()
            .map(|(from, link)| (from, link.input, link.selector))
            .collect())
    }

    /// Files links and records, all or none. What is there already stays as it is, except that a
    /// record filed again takes the new time.
    ///
    /// # Errors
    /// The storage below failed; nothing was written and the caller goes on.
    fn save(&self, batch: &Batch) -> Result<(), StoreError>;

    /// Forgets a result under every key. A key left without records and without links from it goes
    /// too, with the links to it; then the same holds for the keys those links came from.
    ///
    /// # Errors
    /// The storage below failed; the result may still be found and will not load.
    fn release(&self, result: &ResultId) -> Result<(), StoreError>;
}
