//! Which keys name an output, asked of the local store and every imported one.
//!
//! ```text
//! key of an input ─ link(input, output, op digest, selector) ─▶ keys of this output, per store
//! key of this output ─▶ records, newest first, of equally new ones the local first
//! ```
//!
//! Imported caches come and go with the job that brings them; they are asked only for vertices that job wants.
//!
//! A store that fails answers "nothing known": the build goes on without it, and says so in the log.

use std::collections::HashSet;
use std::sync::Arc;

use keys::{Batch, CacheKey, KeyId, KeyStore, Link, Record, View};

use crate::graph::Candidate;

/// The slot of the store results are filed in. Slot 0 is the index of running edges.
pub(crate) const LOCAL: usize = 1;

/// The stores a solver asks.
pub(crate) struct Stores {
    /// The local one first.
    views: Vec<View>,
    next_slot: usize,
}

impl Stores {
    pub(crate) fn new(local: Arc<dyn KeyStore>) -> Self {
        Self {
            views: vec![View {
                store: local,
                slot: LOCAL,
                keeps_local: false,
            }],
            next_slot: LOCAL + 1,
        }
    }

    /// Adds an imported cache; its slot, which no other ever has.
    pub(crate) fn import(&mut self, store: Arc<dyn KeyStore>) -> usize {
        let slot = self.next_slot;
        self.next_slot += 1;
        self.views.push(View {
            store,
            slot,
            keeps_local: false,
        });
        slot
    }

    /// Takes an imported cache away.
    pub(crate) fn remove(&mut self, slot: usize) {
        self.views.retain(|view| view.slot == LOCAL || view.slot != slot);
    }

    /// The store results are filed in.
    pub(crate) fn local(&self) -> &View {
        &self.views[0]
    }

    /// The store of a slot.
    pub(crate) fn view(&self, slot: usize) -> Option<&View> {
        self.views.iter().find(|view| view.slot == slot)
    }

    /// The local store and those of the imported ones.
    fn among(&self, imports: &[usize]) -> impl Iterator<Item = &View> {
        let wanted = |view: &&View| view.slot == LOCAL || imports.contains(&view.slot);
        self.views.iter().filter(wanted)
    }

    /// The keys that `key` leads to by `link`, in the local store and those of `imports`.
    pub(crate) fn query(&self, imports: &[usize], key: &CacheKey, link: &Link) -> Vec<(usize, KeyId)> {
        let mut found = Vec::new();
        for view in self.among(imports) {
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

    /// The ids a root key has in the local store and those of `imports`.
    pub(crate) fn ids(&self, imports: &[usize], key: &CacheKey) -> Vec<(usize, KeyId)> {
        let mut found = Vec::new();
        for view in self.among(imports) {
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

    /// Files a key that an imported cache knew, with all that is behind it, and the result that came from there.
    pub(crate) fn file_imported(&self, key: &CacheKey, record: &Record) {
        if let Err(error) = self.try_file_imported(key, record) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "imported result not filed in the cache"
            );
        }
    }

    fn try_file_imported(&self, key: &CacheKey, record: &Record) -> Result<(), keys::StoreError> {
        let view = self.local();
        let (mut batch, mut seen) = (Batch::default(), HashSet::new());
        // What a key is made of comes before it, so that ids are worked out one step at a time.
        let mut open = vec![(key, false)];
        while let Some((one, is_ready)) = open.pop() {
            if is_ready {
                let record = (one.address() == key.address()).then_some(record);
                one.file(view, record, &mut batch)?;
            } else if seen.insert(one.address()) {
                open.push((one, true));
                let behind = one.inputs().iter().flatten();
                open.extend(behind.map(|dependency| (&dependency.key, false)));
            }
        }
        view.store.save(&batch)
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
