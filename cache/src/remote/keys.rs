//! An imported cache as a key store: only asked, never written to.
//!
//! ```text
//! query(key, link) ─ root key of (op digest, output) ─▶ records that name it, reached from `key` by that input
//! results(key) ─▶ ResultId "number" ─ layers(id) ─▶ the stack of layers it stands for
//! ```
//!
//! A record without inputs has the id of its root key, which is what it is written as. Others get ids of their own. A
//! config does not say which op digest a root key was made of, so only the sources of links can be told, not the links.
use super::{CacheConfig, RemoteCacheError, Time};
use keys::{Batch, KeyId, KeyStore, Link, Record, ResultId, Selector, StoreError};
use oci::{Descriptor, DiffId, Digest};
use std::collections::{HashMap, HashSet};

/// One layer of an imported result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteLayer {
    /// The packed blob.
    pub descriptor: Descriptor,
    /// The digest of its plain tar.
    pub diff_id: DiffId,
    /// When it was made.
    pub created: Time,
    /// What it says of itself.
    pub description: String,
}

/// How large a cache may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the config.
    pub config_bytes: u64,
    /// Layers of one result.
    pub layers: usize,
    /// Layers of all results together: a small config can speak of very many.
    pub all_layers: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        // Differs: BuildKit takes configs of up to 1 MiB, which its own exports of large builds exceed.
        Limits {
            config_bytes: 16 << 20,
            layers: oci::MAX_LAYERS,
            all_layers: 1_000_000,
        }
    }
}

/// The part of a link that a config can tell: from, input, selector, root key of the op.
type Step = (KeyId, u32, Selector, Digest);

/// The keys of an imported cache.
#[derive(Debug, Default)]
pub struct RemoteKeys {
    known: HashSet<KeyId>,
    links: HashMap<Step, Vec<KeyId>>,
    sources: HashMap<KeyId, Vec<(KeyId, u32, Selector)>>,
    records: HashMap<KeyId, Vec<Record>>,
    stacks: Vec<Vec<RemoteLayer>>,
}

impl RemoteKeys {
    /// The keys of a config whose blobs are `layers`. A result of which some layer is not among them is left out.
    ///
    /// # Errors
    /// An index of the config leads nowhere or in a circle, or a limit is exceeded.
    pub fn new(
        config: &CacheConfig,
        layers: &HashMap<Digest, RemoteLayer>,
        limits: Limits,
    ) -> Result<RemoteKeys, RemoteCacheError> {
        let mut made = RemoteKeys::default();
        let ids: Vec<KeyId> = config
            .records
            .iter()
            .enumerate()
            .map(|(at, record)| {
                if record.inputs.is_empty() {
                    KeyId::from_digest(record.digest)
                } else {
                    KeyId::from_digest(Digest::of(format!("imported:{at}").as_bytes()))
                }
            })
            .collect();
        made.known.extend(&ids);
        let mut count = 0;
        for (record, id) in config.records.iter().zip(&ids) {
            for (input, sources) in record.inputs.iter().enumerate() {
                if sources.is_empty() {
                    return Err(invalid(format!("input {input} of a record has no keys")));
                }
                let input = u32::try_from(input).map_err(invalid)?;
                for source in sources {
                    let from = at(&ids, source.link, "record")?;
                    let targets = made.links.entry((*from, input, source.selector, record.digest));
                    let targets = targets.or_default();
                    if !targets.contains(id) {
                        targets.push(*id);
                        let sources = made.sources.entry(*id).or_default();
                        sources.push((*from, input, source.selector));
                    }
                }
            }
            let chained = record.chains.iter().map(|chain| {
                let named = chain
                    .layers
                    .iter()
                    .map(|index| at(&config.layers, *index, "layer"));
                (named.collect::<Result<Vec<_>, _>>(), chain.created)
            });
            let stacked = record
                .layers
                .iter()
                .map(|result| (stack(config, result.layer, limits), result.created));
            for (named, created) in stacked.chain(chained) {
                let named = named?;
                count += named.len();
                if named.len() > limits.layers || count > limits.all_layers {
                    return Err(invalid("it speaks of too many layers"));
                }
                let found: Option<Vec<_>> = named
                    .iter()
                    .map(|layer| layers.get(&layer.blob).cloned())
                    .collect();
                if let Some(found) = found.filter(|found| !found.is_empty()) {
                    let result = ResultId::new(made.stacks.len().to_string());
                    made.stacks.push(found);
                    let records = made.records.entry(*id).or_default();
                    records.push(Record {
                        result,
                        created: created.0,
                    });
                }
            }
        }
        for records in made.records.values_mut() {
            records.sort_by_key(|record| std::cmp::Reverse(record.created));
        }
        for targets in made.links.values_mut() {
            targets.sort_unstable();
        }
        Ok(made)
    }

    /// The layers a result stands for, the lowest first.
    #[must_use]
    pub fn layers(&self, result: &ResultId) -> Option<&[RemoteLayer]> {
        let number: usize = result.as_str().parse().ok()?;
        self.stacks.get(number).map(Vec::as_slice)
    }

    /// How many keys there are, and how many results.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.known.len(), self.stacks.len())
    }
}

fn invalid(reason: impl ToString) -> RemoteCacheError {
    RemoteCacheError::invalid("the cache config", reason)
}

fn at<'a, T>(list: &'a [T], index: i64, what: &str) -> Result<&'a T, RemoteCacheError> {
    let found = usize::try_from(index).ok().and_then(|index| list.get(index));
    found.ok_or_else(|| invalid(format!("there is no {what} {index}")))
}

/// A layer and all beneath it, the lowest first.
fn stack(
    config: &CacheConfig,
    top: i64,
    limits: Limits,
) -> Result<Vec<&super::CacheLayer>, RemoteCacheError> {
    let mut found = Vec::new();
    let mut next = top;
    while next != -1 || found.is_empty() {
        // A circle exceeds this too.
        if found.len() > limits.layers {
            return Err(invalid("a result has too many layers, or they lie in a circle"));
        }
        let layer = at(&config.layers, next, "layer")?;
        found.push(layer);
        next = layer.parent;
    }
    found.reverse();
    Ok(found)
}

fn read_only(what: &'static str) -> StoreError {
    StoreError::new(what, "an imported cache is only read")
}

impl KeyStore for RemoteKeys {
    fn exists(&self, key: &KeyId) -> Result<bool, StoreError> {
        Ok(self.known.contains(key))
    }

    fn query(&self, key: &KeyId, link: &Link) -> Result<Vec<KeyId>, StoreError> {
        let op = *KeyId::root(&link.digest, link.output).digest();
        let found = self.links.get(&(*key, link.input, link.selector, op));
        Ok(found.cloned().unwrap_or_default())
    }

    fn results(&self, key: &KeyId) -> Result<Vec<Record>, StoreError> {
        Ok(self.records.get(key).cloned().unwrap_or_default())
    }

    fn links_to(&self, _: &KeyId) -> Result<Vec<(KeyId, Link)>, StoreError> {
        Ok(Vec::new())
    }

    fn sources(&self, key: &KeyId) -> Result<Vec<(KeyId, u32, Selector)>, StoreError> {
        Ok(self.sources.get(key).cloned().unwrap_or_default())
    }

    fn save(&self, _: &Batch) -> Result<(), StoreError> {
        Err(read_only("file keys"))
    }

    fn release(&self, _: &ResultId) -> Result<(), StoreError> {
        Err(read_only("release a result"))
    }
}
