//! What is known of the keys of a result, for a cache that other machines import.
//!
//! ```text
//! keys of a result ─ walk, what is behind them first ─▶ ExportedKey { digest, inputs, records } …
//!                             ▲
//! links of the local store ───┤ keys by content that an earlier build worked out
//! imported caches ────────────┘ results that nothing asked for: they stay in the cache a job imports and exports again
//! ```
//!
//! A key that only this process knows (a local context) is left out; what it leads to is told by the content keys of its
//! inputs, or not at all. Results of sources are not told: their keys stand for themselves.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use keys::{CacheKey, KeyId, Record, Selector, StoreError, View};
use oci::Digest;

use crate::op::ImportedCache;

/// A result of an imported cache.
pub struct ImportedRecord<R> {
    /// The cache.
    pub cache: Arc<dyn ImportedCache<R>>,
    /// Its record.
    pub record: Record,
}

impl<R> Clone for ImportedRecord<R> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            record: self.record.clone(),
        }
    }
}

impl<R> fmt::Debug for ImportedRecord<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.record.fmt(f)
    }
}

/// One key, as other machines may know it.
#[derive(Debug)]
pub struct ExportedKey<R> {
    /// The root key of the op's digest and output; of content and -1.
    pub digest: Digest,
    /// Per input the numbers of the keys it may be known by, and the part of it that matters.
    pub inputs: Vec<Vec<(usize, Selector)>>,
    /// Its results in the local store, newest first.
    pub records: Vec<Record>,
    /// Its results in imported caches.
    pub imported: Vec<ImportedRecord<R>>,
    /// Whether it is a key of the result itself.
    pub is_result: bool,
}

impl<R> Clone for ExportedKey<R> {
    fn clone(&self) -> Self {
        Self {
            digest: self.digest,
            inputs: self.inputs.clone(),
            records: self.records.clone(),
            imported: self.imported.clone(),
            is_result: self.is_result,
        }
    }
}

/// What the local store and the imported ones know of `keys` and of all that is behind them; what others are made of
/// comes first.
pub(crate) fn export<R>(
    keys: &[CacheKey],
    local: View,
    imports: Vec<(View, Arc<dyn ImportedCache<R>>)>,
) -> Result<Vec<ExportedKey<R>>, StoreError> {
    let mut walk = Walk {
        local,
        imports,
        numbers: HashMap::new(),
        exported: Vec::new(),
    };
    for key in keys {
        walk.add(key)?;
        if let Some(number) = walk.number(key)? {
            walk.exported[number].is_result = true;
        }
    }
    Ok(walk.exported)
}

struct Walk<R> {
    local: View,
    imports: Vec<(View, Arc<dyn ImportedCache<R>>)>,
    /// By the ids of the local store; `None` for a key that cannot be told.
    numbers: HashMap<KeyId, Option<usize>>,
    exported: Vec<ExportedKey<R>>,
}

impl<R> Walk<R> {
    /// Adds a key and all behind it, in a loop: a chain may be longer than the stack is deep.
    fn add(&mut self, key: &CacheKey) -> Result<(), StoreError> {
        let mut seen = HashSet::new();
        let mut open = vec![(key, false)];
        while let Some((one, is_ready)) = open.pop() {
            if is_ready {
                self.place(one)?;
            } else if seen.insert(one.address()) {
                open.push((one, true));
                let behind = one.inputs().iter().flatten();
                open.extend(behind.map(|dependency| (&dependency.key, false)));
            }
        }
        Ok(())
    }

    fn number(&self, key: &CacheKey) -> Result<Option<usize>, StoreError> {
        let id = key.id_in(&self.local)?;
        Ok(id.and_then(|id| self.numbers.get(&id).copied().flatten()))
    }

    /// Adds one key; those behind it were.
    fn place(&mut self, key: &CacheKey) -> Result<(), StoreError> {
        let Some(id) = key.id_in(&self.local)? else {
            return Ok(());
        };
        let mut inputs = Vec::with_capacity(key.inputs().len());
        for alternatives in key.inputs() {
            let mut known = Vec::new();
            for dependency in alternatives {
                let number = self.number(&dependency.key)?;
                known.extend(number.map(|number| (number, dependency.selector)));
            }
            inputs.push(known);
        }
        let stored = self.stored(key, &id, &mut inputs)?;
        if let Some(Some(number)) = self.numbers.get(&id) {
            let known = &mut self.exported[*number];
            for (known, more) in known.inputs.iter_mut().zip(inputs) {
                // Equal keys met twice: only what came before the first may be told, so that there are no circles.
                known.extend(more.into_iter().filter(|(source, _)| source < number));
                tidy(known);
            }
            return Ok(());
        }
        if inputs.iter().any(Vec::is_empty) {
            self.numbers.entry(id).or_insert(None);
            return Ok(());
        }
        inputs.iter_mut().for_each(tidy);
        let digest = *KeyId::root(key.digest(), key.output()).digest();
        let number = self.push(id, digest, inputs);
        let known = &mut self.exported[number];
        (known.records, known.imported) = stored;
        Ok(())
    }

    /// The results of a key, and to `inputs` what stores know to lead to it. Results of sources are not told.
    fn stored(
        &mut self,
        key: &CacheKey,
        id: &KeyId,
        inputs: &mut [Vec<(usize, Selector)>],
    ) -> Result<(Vec<Record>, Vec<ImportedRecord<R>>), StoreError> {
        if inputs.is_empty() {
            return Ok(Default::default());
        }
        let local = self.local.clone();
        self.add_sources(&local, id, inputs)?;
        let (records, mut imported) = (local.store.results(id)?, Vec::new());
        for (view, cache) in self.imports.clone() {
            let Some(id) = key.id_in(&view)? else { continue };
            self.add_sources(&view, &id, inputs)?;
            let found = view.store.results(&id)?.into_iter().map(|record| ImportedRecord {
                cache: cache.clone(),
                record,
            });
            imported.extend(found);
        }
        Ok((records, imported))
    }

    /// Adds what a store knows to lead to a key: sources and contents, and keys that are told already.
    fn add_sources(
        &mut self,
        view: &View,
        id: &KeyId,
        inputs: &mut [Vec<(usize, Selector)>],
    ) -> Result<(), StoreError> {
        for (from, input, selector) in view.store.sources(id)? {
            let Some(known) = inputs.get_mut(input as usize) else {
                continue;
            };
            // The ids of sources and contents are the same in every store.
            let number = match self.numbers.get(&from) {
                Some(number) => *number,
                None if view.store.sources(&from)?.is_empty() => {
                    Some(self.push(from, *from.digest(), Vec::new()))
                }
                None => None,
            };
            known.extend(number.map(|number| (number, selector)));
        }
        Ok(())
    }

    fn push(&mut self, id: KeyId, digest: Digest, inputs: Vec<Vec<(usize, Selector)>>) -> usize {
        let number = self.exported.len();
        self.exported.push(ExportedKey {
            digest,
            inputs,
            records: Vec::new(),
            imported: Vec::new(),
            is_result: false,
        });
        self.numbers.insert(id, Some(number));
        number
    }
}

fn tidy(known: &mut Vec<(usize, Selector)>) {
    known.sort_unstable();
    known.dedup();
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use keys::{KeyStore, MemoryStore, ResultId};
    use parking_lot::Mutex;

    use super::*;
    use crate::job::{Job, Options, Solver};
    use crate::progress::Sink;
    use crate::simulation::{FakeVertex, expected, local, plan, run, source};
    use crate::{Op, OpError, Ops};

    /// One machine: its results and its keys.
    #[derive(Default)]
    struct Machine {
        results: Mutex<HashMap<ResultId, u64>>,
        keys: Arc<MemoryStore>,
        /// What no importer of it can have.
        is_lost: bool,
    }

    struct Here(Arc<Machine>);

    #[async_trait]
    impl Ops<u64> for Here {
        fn op(&self, _: &llb::Vertex) -> Result<Arc<dyn Op<u64>>, OpError> {
            Err(OpError::internal("plans are made by the tests"))
        }

        async fn load(&self, id: &ResultId) -> Result<Option<u64>, OpError> {
            Ok(self.0.results.lock().get(id).copied())
        }

        async fn save(&self, result: &u64) -> Result<Option<ResultId>, OpError> {
            let mut results = self.0.results.lock();
            let id = ResultId::new(results.len().to_string());
            results.insert(id.clone(), *result);
            Ok(Some(id))
        }
    }

    #[async_trait]
    impl ImportedCache<u64> for Machine {
        fn keys(&self) -> Arc<dyn KeyStore> {
            self.keys.clone()
        }

        async fn load(&self, _: &Sink, id: &ResultId) -> Result<Option<u64>, OpError> {
            Ok(self.results.lock().get(id).copied().filter(|_| !self.is_lost))
        }
    }

    fn solver(machine: &Arc<Machine>) -> Solver<u64> {
        let ops = Arc::new(Here(machine.clone()));
        Solver::new(ops, machine.keys.clone(), Options::default())
    }

    /// Two bases, a COPY by content from the context and one from a stage, a RUN.
    fn vertices() -> Vec<FakeVertex> {
        vec![
            source("base"),
            local("context", 7),
            run("copy", &[(0, false), (1, true)]),
            run("stage", &[(2, false)]),
            run("from stage", &[(0, false), (3, true)]),
            run("last", &[(4, false)]),
        ]
    }

    /// What ran, and the keys of the result.
    async fn build(job: &Job<u64>, vertices: &[FakeVertex]) -> (Vec<String>, Vec<CacheKey>) {
        let runs = Arc::default();
        let solved = job.solve(plan(vertices, &runs)).await;
        let cached = solved.map_err(|error| format!("{error:?}")).expect("it builds");
        assert_eq!(Some(&cached.result), expected(vertices).last());
        let runs = runs.lock().clone();
        (runs, cached.keys)
    }

    #[tokio::test]
    async fn an_imported_cache_serves_and_what_it_served_is_known_from_then_on() {
        let (there, here) = (Arc::<Machine>::default(), Arc::<Machine>::default());
        let first = solver(&there).job("there", Arc::new(()));
        assert_eq!(build(&first, &vertices()).await.0.len(), 6);
        let solver = solver(&here);
        let job = solver.job("with", Arc::new(()));
        job.import(there);
        assert_eq!(build(&job, &vertices()).await.0, ["context"]);
        // Another job at the same time did not bring it along.
        let other = solver.job("without", Arc::new(()));
        let mut changed = vertices();
        changed.push(run("more", &[(5, false)]));
        assert_eq!(build(&other, &changed).await.0, ["more"]);
        job.discard().await;
        other.discard().await;
        let job = solver.job("later", Arc::new(()));
        assert_eq!(build(&job, &changed).await.0, ["context"]);
        job.discard().await;
        assert_eq!(solver.holdings(), crate::Holdings::default());
    }

    #[tokio::test]
    async fn a_cache_is_used_only_by_the_job_that_brings_it() {
        let (there, here) = (Arc::<Machine>::default(), Arc::<Machine>::default());
        let first = solver(&there).job("there", Arc::new(()));
        build(&first, &vertices()).await;
        let solver = solver(&here);
        let with = solver.job("with", Arc::new(()));
        with.import(there);
        let without = solver.job("without", Arc::new(()));
        assert_eq!(build(&without, &vertices()).await.0.len(), 6);
        let (with, without) = (with.discard().await, without.discard().await);
        assert_eq!((with, without), ((), ()));
    }

    #[tokio::test]
    async fn a_result_that_cannot_be_had_is_a_miss() {
        let there = Arc::new(Machine {
            is_lost: true,
            ..Machine::default()
        });
        let first = solver(&there).job("there", Arc::new(()));
        build(&first, &vertices()).await;
        let here = Arc::<Machine>::default();
        let job = solver(&here).job("with", Arc::new(()));
        job.import(there);
        assert_eq!(build(&job, &vertices()).await.0.len(), 6);
    }

    #[tokio::test]
    async fn what_came_from_a_cache_that_is_not_trusted_any_more_is_worked_out_anew() {
        let (there, here) = (Arc::<Machine>::default(), Arc::<Machine>::default());
        let first = solver(&there).job("there", Arc::new(()));
        build(&first, &vertices()).await;
        let solver = solver(&here);
        let job = solver.job("with", Arc::new(()));
        job.import(there);
        assert_eq!(build(&job, &vertices()).await.0, ["context"]);
        job.distrust_imports();
        for result in here.results.lock().keys() {
            here.keys.release(result).expect("memory");
        }
        // The vertex that was loaded is a new one; those nothing was loaded for are those of the first plan, and count there.
        assert_eq!(build(&job, &vertices()).await.0, ["last"]);
        job.discard().await;
        assert_eq!(solver.holdings(), crate::Holdings::default());
    }

    #[tokio::test]
    async fn what_was_imported_and_not_asked_for_is_told_again() {
        let (there, here) = (Arc::<Machine>::default(), Arc::<Machine>::default());
        let first = solver(&there).job("there", Arc::new(()));
        let (_, keys) = build(&first, &vertices()).await;
        let told = first.export(&keys).expect("memory");
        let job = solver(&here).job("with", Arc::new(()));
        job.import(there.clone());
        let (runs, keys) = build(&job, &vertices()).await;
        assert_eq!(runs, ["context"]);
        let again = job.export(&keys).expect("memory");
        let shape = |keys: &[ExportedKey<u64>]| {
            let mut shape: Vec<_> = keys
                .iter()
                .map(|key| {
                    let inputs: Vec<usize> = key.inputs.iter().map(Vec::len).collect();
                    let has_result = !key.records.is_empty() || !key.imported.is_empty();
                    (key.digest, inputs, has_result, key.is_result)
                })
                .collect();
            shape.sort();
            shape
        };
        assert_eq!(shape(&again), shape(&told));
    }

    #[tokio::test]
    async fn what_is_told_can_be_followed_without_the_context() {
        let machine = Arc::<Machine>::default();
        let solver = solver(&machine);
        for round in 0..2 {
            let job = solver.job("one", Arc::new(()));
            let (_, keys) = build(&job, &vertices()).await;
            let exported = job.export(&keys).expect("memory");
            let with_results = exported.iter().filter(|key| !key.records.is_empty()).count();
            assert_eq!(with_results, 4, "round {round}: {exported:#?}");
            // base, content of the context, content of the stage.
            let sources = exported.iter().filter(|key| key.inputs.is_empty()).count();
            assert_eq!(sources, 3, "round {round}");
            for (number, key) in exported.iter().enumerate() {
                let mut inputs = key.inputs.iter();
                assert!(inputs.all(|input| !input.is_empty() && input.iter().all(|(at, _)| *at < number)));
            }
            let result: Vec<_> = exported.iter().filter(|key| key.is_result).collect();
            assert_eq!(result.len(), 1);
            assert_eq!(result[0].digest, exported.last().expect("some").digest);
            let from_stage = exported
                .iter()
                .find(|key| key.inputs.len() == 2 && key.inputs[1].len() == 2);
            assert!(
                from_stage.is_some(),
                "a COPY from a stage is known by definition and by content"
            );
            job.discard().await;
        }
    }
}
