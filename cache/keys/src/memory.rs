//! A key store in memory: for tests, for imported caches, and for finding equal edges.

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;

use crate::key::{KeyId, Link, Record, ResultId};
use crate::store::{Batch, KeyStore, StoreError};

/// Keys, links and records in hash maps; forgotten when dropped.
#[derive(Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    keys: HashMap<KeyId, Node>,
    holders: HashMap<ResultId, BTreeSet<KeyId>>,
}

#[derive(Default)]
struct Node {
    /// Newest first.
    records: Vec<Record>,
    links: HashMap<Link, BTreeSet<KeyId>>,
    linked_from: BTreeSet<(KeyId, Link)>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many keys are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().keys.len()
    }

    /// Whether no key is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every record in the store, once per key it is filed under, in the order of the keys.
    #[must_use]
    pub fn records(&self) -> Vec<(KeyId, Record)> {
        let inner = self.inner.lock();
        let mut all: Vec<_> = inner
            .keys
            .iter()
            .flat_map(|(key, node)| node.records.iter().map(|record| (*key, record.clone())))
            .collect();
        all.sort_by_key(|(key, _)| *key);
        all
    }
}

impl Inner {
    fn file(&mut self, key: KeyId, record: &Record) {
        let records = &mut self.keys.entry(key).or_default().records;
        records.retain(|known| known.result != record.result);
        let at = records.partition_point(|known| known.created > record.created);
        records.insert(at, record.clone());
        self.holders.entry(record.result.clone()).or_default().insert(key);
    }

    fn join(&mut self, from: KeyId, link: Link, to: KeyId) {
        self.keys
            .entry(from)
            .or_default()
            .links
            .entry(link)
            .or_default()
            .insert(to);
        self.keys.entry(to).or_default().linked_from.insert((from, link));
    }

    /// Removes keys that lead to nothing, beginning with `start` and going up.
    fn prune(&mut self, start: KeyId) {
        let mut open = vec![start];
        while let Some(key) = open.pop() {
            let idle = self
                .keys
                .get(&key)
                .is_some_and(|node| node.records.is_empty() && node.links.is_empty());
            if !idle {
                continue;
            }
            let node = self.keys.remove(&key).expect("the key was just found");
            for (from, link) in node.linked_from {
                let Some(parent) = self.keys.get_mut(&from) else {
                    continue;
                };
                if let Some(targets) = parent.links.get_mut(&link) {
                    targets.remove(&key);
                    if targets.is_empty() {
                        parent.links.remove(&link);
                    }
                }
                open.push(from);
            }
        }
    }
}

impl KeyStore for MemoryStore {
    fn exists(&self, key: &KeyId) -> Result<bool, StoreError> {
        Ok(self.inner.lock().keys.contains_key(key))
    }

    fn query(&self, key: &KeyId, link: &Link) -> Result<Vec<KeyId>, StoreError> {
        let inner = self.inner.lock();
        let targets = inner.keys.get(key).and_then(|node| node.links.get(link));
        Ok(targets
            .map(|targets| targets.iter().copied().collect())
            .unwrap_or_default())
    }

    fn results(&self, key: &KeyId) -> Result<Vec<Record>, StoreError> {
        Ok(self
            .inner
            .lock()
            .keys
            .get(key)
            .map(|node| node.records.clone())
            .unwrap_or_default())
    }

    fn links_to(&self, key: &KeyId) -> Result<Vec<(KeyId, Link)>, StoreError> {
        let inner = self.inner.lock();
        Ok(inner
            .keys
            .get(key)
            .map(|node| node.linked_from.iter().copied().collect())
            .unwrap_or_default())
    }

    fn save(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        for (from, link, to) in &batch.links {
            inner.join(*from, *link, *to);
        }
        for (key, record) in &batch.records {
            inner.file(*key, record);
        }
        Ok(())
    }

    fn release(&self, result: &ResultId) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        for key in inner.holders.remove(result).unwrap_or_default() {
            if let Some(node) = inner.keys.get_mut(&key) {
                node.records.retain(|record| record.result != *result);
            }
            inner.prune(key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn does_what_every_store_must() {
        crate::testsuite::run(MemoryStore::new);
    }

    #[test]
    fn is_empty_again_when_everything_is_released() {
        let store = MemoryStore::new();
        let result = crate::testsuite::fill_and_name_result(&store);
        assert!(!store.is_empty());
        store.release(&result).expect("memory does not fail");
        assert!(store.is_empty());
    }
}
