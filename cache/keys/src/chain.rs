//! A key with all that is behind it, and how a store comes to know it.
//!
//! ```text
//! CacheKey { op digest, output, per input: alternatives (key, selector) }
//!    │ id_in(view)                         │ file(view, record)
//!    ▼                                     ▼
//! KeyId a store knows it by           Batch of links and a record
//! ```
//!
//! A chain is a value: it never changes after it was made and is shared freely. Only the ids it has in
//! the stores it met are remembered inside, so that each is worked out once.
//!
//! Ids of inner keys are derived from the first alternative of every input, not drawn at random: two
//! processes that make the same step at the same time file it under the same id.

use std::sync::Arc;

use oci::Digest;
use parking_lot::Mutex;

use crate::key::{CONTENT_OUTPUT, KeyId, Link, Record, Selector};
use crate::store::{Batch, KeyStore, StoreError};

/// A store as one process sees it.
#[derive(Clone)]
pub struct View {
    /// The store.
    pub store: Arc<dyn KeyStore>,
    /// Its number in this process; ids are remembered under it.
    pub slot: usize,
    /// Whether keys that only this process knows may be written to it.
    pub keeps_local: bool,
}

/// One way to know an input: its key and the part of it that matters.
#[derive(Clone, Debug)]
pub struct Dependency {
    /// The key of the input.
    pub key: CacheKey,
    /// The part of the input that matters; always `None` with a content key.
    pub selector: Selector,
}

/// What names one output of one op, with everything behind it. Cheap to clone.
#[derive(Clone)]
pub struct CacheKey(Arc<Inner>);

struct Inner {
    digest: Digest,
    output: i32,
    is_local: bool,
    inputs: Vec<Vec<Dependency>>,
    ids: Mutex<Vec<(usize, Option<KeyId>)>>,
}

impl CacheKey {
    /// The key of an output of an op without inputs.
    #[must_use]
    pub fn root(digest: Digest, output: i32) -> Self {
        Self::new(digest, output, false, Vec::new())
    }

    /// The key of content.
    #[must_use]
    pub fn content(digest: Digest) -> Self {
        Self::root(digest, CONTENT_OUTPUT)
    }

    /// A root that is never found in a store of another process (a local context).
    #[must_use]
    pub fn local(digest: Digest, output: i32) -> Self {
        Self::new(digest, output, true, Vec::new())
    }

    /// The key of an output of an op with inputs, each known by any of its alternatives.
    #[must_use]
    pub fn inner(digest: Digest, output: i32, inputs: Vec<Vec<Dependency>>) -> Self {
        Self::new(digest, output, false, inputs)
    }

    fn new(digest: Digest, output: i32, is_local: bool, inputs: Vec<Vec<Dependency>>) -> Self {
        Self(Arc::new(Inner {
            digest,
            output,
            is_local,
            inputs,
            ids: Mutex::default(),
        }))
    }

    /// The op's own digest, or that of the content.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.0.digest
    }

    /// The output index; [`CONTENT_OUTPUT`] for content.
    #[must_use]
    pub fn output(&self) -> i32 {
        self.0.output
    }

    /// Whether only this process knows the key.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.0.is_local
    }

    /// The alternatives of every input; empty for a root.
    #[must_use]
    pub fn inputs(&self) -> &[Vec<Dependency>] {
        &self.0.inputs
    }

    /// Tells apart keys that were made apart, as long as both are held.
    #[must_use]
    pub fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Says under which id a store was found to have this key.
    pub fn remember(&self, view: &View, id: KeyId) {
        let mut ids = self.0.ids.lock();
        match ids.iter_mut().find(|(slot, _)| *slot == view.slot) {
            Some(known) => known.1 = Some(id),
            None => ids.push((view.slot, Some(id))),
        }
    }

    /// The id this key has, or would get, in a store; `None` if the store cannot know it, because an
    /// input has no key that may be written there.
    ///
    /// # Errors
    /// The store failed.
    pub fn id_in(&self, view: &View) -> Result<Option<KeyId>, StoreError> {
        if let Some((_, id)) = self.0.ids.lock().iter().find(|(slot, _)| *slot == view.slot) {
            return Ok(*id);
        }
        let id = self.find(view)?;
        self.0.ids.lock().push((view.slot, id));
        Ok(id)
    }

    fn find(&self, view: &View) -> Result<Option<KeyId>, StoreError> {
        let inner = &*self.0;
        if inner.is_local {
            return Ok(view
                .keeps_local
                .then(|| KeyId::local(&inner.digest, inner.output)));
        }
        if inner.inputs.is_empty() {
            return Ok(Some(KeyId::root(&inner.digest, inner.output)));
        }
        let mut common: Option<Vec<KeyId>> = None;
        let mut text = format!("inner:{}@{}", inner.digest, inner.output);
        for index in 0..inner.inputs.len() {
            let known = self.known(view, index)?;
            let Some((first, link)) = known.first() else {
                return Ok(None);
            };
            text.push_str(&format!("\n{first}"));
            if let Some(selector) = &link.selector {
                text.push_str(&format!(" {selector}"));
            }
            let mut targets = Vec::new();
            for (key, link) in &known {
                targets.extend(view.store.query(key, link)?);
            }
            match &mut common {
                None => common = Some(targets),
                Some(common) => common.retain(|key| targets.contains(key)),
            }
        }
        let found = common.unwrap_or_default().into_iter().min();
        Ok(Some(found.unwrap_or_else(|| {
            KeyId::from_digest(Digest::of(text.as_bytes()))
        })))
    }

    /// The alternatives of one input that the store may know, with their links.
    fn known(&self, view: &View, index: usize) -> Result<Vec<(KeyId, Link)>, StoreError> {
        let mut known = Vec::new();
        for dependency in &self.0.inputs[index] {
            if let Some(id) = dependency.key.id_in(view)? {
                let input = u32::try_from(index).expect("an op has fewer than 2^32 inputs");
                known.push((id, self.link(input, dependency.selector)));
            }
        }
        Ok(known)
    }

    /// The link by which `input`, seen through `selector`, leads to this key.
    #[must_use]
    pub fn link(&self, input: u32, selector: Selector) -> Link {
        Link {
            input,
            output: self.0.output,
            digest: self.0.digest,
            selector,
        }
    }

    /// Adds to `batch` what makes this key known in the store, and its id there.
    ///
    /// The inputs' own links are not added; they were when the inputs were filed.
    ///
    /// # Errors
    /// The store failed.
    pub fn file(
        &self,
        view: &View,
        record: Option<&Record>,
        batch: &mut Batch,
    ) -> Result<Option<KeyId>, StoreError> {
        let Some(id) = self.id_in(view)? else {
            return Ok(None);
        };
        for index in 0..self.0.inputs.len() {
            for (from, link) in self.known(view, index)? {
                batch.links.push((from, link, id));
            }
        }
        if let Some(record) = record {
            batch.records.push((id, record.clone()));
        }
        Ok(Some(id))
    }
}

impl std::fmt::Debug for CacheKey {
    /// The key alone: what is behind it may be a whole build.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "CacheKey({}@{}, {} inputs)",
            self.0.digest,
            self.0.output,
            self.0.inputs.len()
        )
    }
}

impl Drop for Inner {
    /// Takes a long chain apart in a loop, so that its length never becomes depth of the stack.
    fn drop(&mut self) {
        let mut open: Vec<Dependency> = std::mem::take(&mut self.inputs).into_iter().flatten().collect();
        while let Some(dependency) = open.pop() {
            if let Some(mut inner) = Arc::into_inner(dependency.key.0) {
                open.extend(std::mem::take(&mut inner.inputs).into_iter().flatten());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;
    use std::time::SystemTime;

    fn view(slot: usize, keeps_local: bool) -> View {
        View {
            store: Arc::new(MemoryStore::new()),
            slot,
            keeps_local,
        }
    }

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn dep(key: &CacheKey, selector: Selector) -> Dependency {
        Dependency {
            key: key.clone(),
            selector,
        }
    }

    #[test]
    fn a_root_is_named_as_in_exported_caches() {
        let op = Digest::parse("sha256:0114b6bda8d7ef3211aeaeb5efaae98427e8e41a5bb21a12e87adbd1c8954021")
            .expect("digest");
        let expected = Digest::of(format!("{op}@0").as_bytes());
        assert_eq!(
            CacheKey::root(op, 0).id_in(&view(0, false)).expect("memory"),
            Some(KeyId::from_digest(expected))
        );
        assert_eq!(
            KeyId::root(&op, -1),
            KeyId::from_digest(Digest::of(format!("{op}@-1").as_bytes()))
        );
    }

    #[test]
    fn a_local_root_is_unknown_to_a_store_that_lasts() {
        let context = CacheKey::local(digest("context"), 0);
        let copy = CacheKey::inner(digest("copy"), 0, vec![vec![dep(&context, None)]]);
        assert_eq!(copy.id_in(&view(0, false)).expect("memory"), None);
        assert!(copy.id_in(&view(1, true)).expect("memory").is_some());

        let content = CacheKey::content(digest("bytes"));
        let both = CacheKey::inner(
            digest("copy"),
            0,
            vec![vec![dep(&context, None), dep(&content, None)]],
        );
        assert!(both.id_in(&view(0, false)).expect("memory").is_some());
    }

    #[test]
    fn any_alternative_finds_the_same_key() {
        let view = view(0, false);
        let (by_definition, by_content) = (
            CacheKey::root(digest("stage"), 0),
            CacheKey::content(digest("bytes")),
        );
        let selector = Some(digest("/app"));
        let made = CacheKey::inner(
            digest("copy"),
            0,
            vec![vec![dep(&by_definition, selector), dep(&by_content, None)]],
        );
        let mut batch = Batch::default();
        let record = Record {
            result: crate::ResultId::new("r"),
            created: SystemTime::UNIX_EPOCH,
        };
        let id = made
            .file(&view, Some(&record), &mut batch)
            .expect("memory")
            .expect("an id");
        view.store.save(&batch).expect("memory");

        for one in [dep(&by_definition, selector), dep(&by_content, None)] {
            let again = CacheKey::inner(digest("copy"), 0, vec![vec![one]]);
            assert_eq!(again.id_in(&view).expect("memory"), Some(id));
        }
        let whole = CacheKey::inner(digest("copy"), 0, vec![vec![dep(&by_definition, None)]]);
        assert_ne!(
            whole.id_in(&view).expect("memory"),
            Some(id),
            "another selector is another key"
        );
    }

    #[test]
    fn a_key_needs_every_input() {
        let view = view(0, false);
        let (a, b, c) = (
            CacheKey::root(digest("a"), 0),
            CacheKey::root(digest("b"), 0),
            CacheKey::root(digest("c"), 0),
        );
        let made = CacheKey::inner(digest("merge"), 0, vec![vec![dep(&a, None)], vec![dep(&b, None)]]);
        let mut batch = Batch::default();
        let id = made.file(&view, None, &mut batch).expect("memory");
        view.store.save(&batch).expect("memory");
        let other = CacheKey::inner(digest("merge"), 0, vec![vec![dep(&a, None)], vec![dep(&c, None)]]);
        assert_ne!(other.id_in(&view).expect("memory"), id);
    }

    #[test]
    fn a_long_chain_is_dropped_without_a_deep_stack() {
        let mut key = CacheKey::root(digest("base"), 0);
        for _ in 0..200_000 {
            key = CacheKey::inner(digest("step"), 0, vec![vec![dep(&key, None)]]);
        }
        drop(key);
    }
}
