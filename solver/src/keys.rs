//! Which keys name an output, asked of the local store and every imported one.
//!
//! ```text
//! key of an input ─ link(input, output, op digest, selector) ─▶ keys of this output, per store
//! key of this output ─▶ records, newest first, of equally new ones the local first
//! ```
//!
//! A store that fails answers "nothing known": the build goes on without it, and says so in the log.

use std::sync::Arc;

use keys::{Batch, CacheKey, KeyId, KeyStore, Link, Record, View};

use crate::graph::Candidate;

/// The slot of the store results are filed in. Slot 0 is the index of running edges.
pub(crate) const LOCAL: usize = 1;

/// The stores a solver asks.
pub(crate) struct Stores {
    views: Vec<View>,
}

impl Stores {
    pub(crate) fn new(local: Arc<dyn KeyStore>) -> Self {
        Self {
            views: vec![View {
                store: local,
                slot: LOCAL,
                keeps_local: false,
            }],
        }
    }

    /// The store results are filed in.
    pub(crate) fn local(&self) -> &View {
        &self.views[0]
    }

    fn view(&self, slot: usize) -> Option<&View> {
        self.views.iter().find(|view| view.slot == slot)
    }

    /// The keys that `key` leads to by `link`, in every store.
    pub(crate) fn query(&self, key: &CacheKey, link: &Link) -> Vec<(usize, KeyId)> {
        let mut found = Vec::new();
        for view in &self.views {
            let asked = key
                .id_in(view)
                .and_then(|id| id.map_or(Ok(Vec::new()), |id| view.store.query(&id, link)));
            match asked {
                Ok(ids) => found.extend(ids.into_iter().map(|id| (view.slot, id))),
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cache not asked"),
            }
        }
        found
    }

    /// The ids a root key has in every store.
    pub(crate) fn ids(&self, key: &CacheKey) -> Vec<(usize, KeyId)> {
        let mut found = Vec::new();
        for view in &self.views {
            match key.id_in(view) {
                Ok(id) => found.extend(id.map(|id| (view.slot, id))),
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cache not asked"),
            }
        }
        found
    }

    /// Says under which id a store knows `key`.
    pub(crate) fn remember(&self, key: &CacheKey, slot: usize, id: KeyId) {
        if let Some(view) = self.view(slot) {
            key.remember(view, id);
        }
    }

    /// The records filed under `id`.
    pub(crate) fn candidates(&self, key: &CacheKey, slot: usize, id: &KeyId) -> Vec<Candidate> {
        let Some(view) = self.view(slot) else {
            return Vec::new();
        };
        match view.store.results(id) {
            Ok(records) => records
                .into_iter()
                .map(|record| Candidate {
                    slot,
                    key: key.clone(),
                    record,
                })
                .collect(),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cache not asked");
                Vec::new()
            }
        }
    }

    /// Lets every key an input is known by lead to `key`, which was found by some of them: the next
    /// build then finds it without asking for contents.
    pub(crate) fn link_alternatives(&self, key: &CacheKey) {
        let view = self.local();
        let mut batch = Batch::default();
        let linked = key.file(view, None, &mut batch).and_then(|_| {
            let mut missing = Batch::default();
            for (from, link, to) in batch.links {
                if !view.store.query(&from, &link)?.contains(&to) {
                    missing.links.push((from, link, to));
                }
            }
            if missing.is_empty() {
                Ok(())
            } else {
                view.store.save(&missing)
            }
        });
        if let Err(error) = linked {
            tracing::warn!(error = &error as &dyn std::error::Error, "cache keys not linked");
        }
    }

    /// Files a key in the local store, with a record if there is one.
    pub(crate) fn file(&self, key: &CacheKey, record: Option<&Record>) {
        let mut batch = Batch::default();
        let filed = key.file(self.local(), record, &mut batch).and_then(|_| {
            if batch.is_empty() {
                Ok(())
            } else {
                self.local().store.save(&batch)
            }
        });
        if let Err(error) = filed {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "result not filed in the cache"
            );
        }
    }
}
