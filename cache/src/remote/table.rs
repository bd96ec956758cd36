//! What a build knows of its keys and results, as a cache config.
//!
//! ```text
//! Entry { digest, inputs, result } … ─ drop what leads to no result ─ sort ─▶ CacheConfig + its layers
//!                                                                     └─▶ inline: records by the image's own layers
//! ```
//!
//! The same entries give the same bytes, in whatever order they come.
use super::{
    CREATED_AT, CacheConfig, CacheInput, CacheLayer, CacheRecord, CacheResult, Chain, Time, UNCOMPRESSED,
};
use crate::LayerBlob;
use keys::Selector;
use oci::{Compression, Descriptor, DiffId, Digest};
use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

/// One key of a build.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The root key of the op's digest and output.
    pub digest: Digest,
    /// Per input the entries it may be known by, each listed before this one, and the part of it that matters.
    pub inputs: Vec<Vec<(usize, Selector)>>,
    /// The layers of its result, the lowest first, and when that was made.
    pub result: Option<(Vec<PackedLayer>, SystemTime)>,
}

/// A packed layer of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedLayer {
    /// OCI media type, digest and size; the annotations say diff id and time.
    pub descriptor: Descriptor,
    /// The digest of its plain tar.
    pub diff_id: DiffId,
}

impl From<&LayerBlob> for PackedLayer {
    fn from(blob: &LayerBlob) -> PackedLayer {
        let mut descriptor = blob.descriptor.clone();
        if let Some(compression) = Compression::of_layer(&descriptor.media_type) {
            descriptor.media_type = compression.layer_media_type(true).to_owned();
        }
        descriptor.annotations = BTreeMap::from([
            (UNCOMPRESSED.to_owned(), blob.diff_id.digest().to_string()),
            (CREATED_AT.to_owned(), Time(blob.created).to_string()),
        ]);
        PackedLayer {
            descriptor,
            diff_id: blob.diff_id,
        }
    }
}

/// Everything one export says.
#[derive(Clone, Debug)]
pub struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// A table of these entries, without those that lead to no result.
    #[must_use]
    pub fn new(mut entries: Vec<Entry>) -> Table {
        let mut is_needed = vec![false; entries.len()];
        for at in (0..entries.len()).rev() {
            is_needed[at] |= entries[at]
                .result
                .as_ref()
                .is_some_and(|(layers, _)| !layers.is_empty());
            if is_needed[at] {
                for (source, _) in entries[at].inputs.iter().flatten() {
                    is_needed[*source] = true;
                }
            }
        }
        let mut moved = vec![0; entries.len()];
        let mut kept = 0;
        for (at, needed) in is_needed.iter().enumerate() {
            moved[at] = kept;
            kept += usize::from(*needed);
        }
        let mut needed = is_needed.iter();
        entries.retain(|_| *needed.next().expect("one per entry"));
        for (source, _) in entries.iter_mut().flat_map(|entry| &mut entry.inputs).flatten() {
            *source = moved[*source];
        }
        Table { entries }
    }

    /// Whether there is no result.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The config, and its layers, each once.
    #[must_use]
    pub fn config(&self) -> (CacheConfig, Vec<Descriptor>) {
        let mut stacks = Stacks::default();
        let mut config = self.records(&mut stacks);
        sort_layers(&mut config, stacks.layers);
        sort_records(&mut config);
        let mut listed = Vec::new();
        for layer in &config.layers {
            listed.extend(stacks.descriptors.remove(&layer.blob));
        }
        (config, listed)
    }

    /// The records alone, as the config of an image with these layers holds them: results that consist of the image's
    /// layers. `None` if there are none.
    #[must_use]
    pub fn inline(&self, image: &[(Digest, DiffId)]) -> Option<Vec<u8>> {
        let place = |layer: &PackedLayer| {
            image
                .iter()
                .position(|(blob, diff_id)| *blob == layer.descriptor.digest || *diff_id == layer.diff_id)
        };
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            let is_in_image = |(layers, _): &(Vec<PackedLayer>, SystemTime)| {
                layers.iter().all(|layer| place(layer).is_some())
            };
            entry.result = entry.result.take().filter(is_in_image);
        }
        let inner = Table::new(entries);
        let mut config = inner.records(&mut Stacks::default());
        for (record, entry) in config.records.iter_mut().zip(&inner.entries) {
            record.layers.clear();
            let Some((layers, created)) = &entry.result else {
                continue;
            };
            let created = Time(*created);
            let is_lowest = layers.len() <= image.len()
                && layers.iter().zip(image).all(|(layer, (blob, diff_id))| {
                    *blob == layer.descriptor.digest || *diff_id == layer.diff_id
                });
            let number = |at: usize| i64::try_from(at).unwrap_or(i64::MAX);
            if is_lowest {
                let layer = number(layers.len() - 1);
                record.layers.push(CacheResult { layer, created });
            } else {
                let layers = layers.iter().filter_map(place).map(number).collect();
                record.chains.push(Chain { layers, created });
            }
        }
        config.layers.clear();
        sort_records(&mut config);
        (!config.records.is_empty()).then(|| oci::go_json(&config.records, false))
    }

    /// The entries as records, in their order; layers as `stacks` numbers them.
    fn records(&self, stacks: &mut Stacks) -> CacheConfig {
        let record = |entry: &Entry| {
            let result = entry.result.as_ref().filter(|(layers, _)| !layers.is_empty());
            let result = result.map(|(layers, created)| CacheResult {
                layer: stacks.number(layers),
                created: Time(*created),
            });
            let inputs = entry.inputs.iter().map(|sources| {
                let input = |(source, selector): &(usize, Selector)| CacheInput {
                    selector: *selector,
                    link: i64::try_from(*source).unwrap_or(i64::MAX),
                };
                sources.iter().map(input).collect()
            });
            CacheRecord {
                layers: result.into_iter().collect(),
                chains: Vec::new(),
                digest: entry.digest,
                inputs: inputs.collect(),
            }
        };
        CacheConfig {
            layers: Vec::new(),
            records: self.entries.iter().map(record).collect(),
        }
    }
}

/// Layers as they are met: each on top of each other one once.
#[derive(Default)]
struct Stacks {
    layers: Vec<CacheLayer>,
    numbers: HashMap<(Digest, i64), i64>,
    descriptors: HashMap<Digest, Descriptor>,
}

impl Stacks {
    /// The number of the topmost of `layers`.
    fn number(&mut self, layers: &[PackedLayer]) -> i64 {
        let mut parent = -1;
        for layer in layers {
            let blob = layer.descriptor.digest;
            let next = i64::try_from(self.layers.len()).unwrap_or(i64::MAX);
            let number = *self.numbers.entry((blob, parent)).or_insert(next);
            if number == next {
                self.layers.push(CacheLayer { blob, parent });
                self.descriptors
                    .entry(blob)
                    .or_insert_with(|| layer.descriptor.clone());
            }
            parent = number;
        }
        parent
    }
}

/// By blob, then by what lies beneath.
fn sort_layers(config: &mut CacheConfig, layers: Vec<CacheLayer>) {
    let below = |layer: &CacheLayer| {
        let mut stack = Vec::new();
        let mut next = layer.parent;
        while let Some(layer) = usize::try_from(next).ok().and_then(|at| layers.get(at)) {
            stack.push(layer.blob);
            next = layer.parent;
        }
        stack.reverse();
        stack
    };
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_cached_key(|at| (layers[*at].blob, below(&layers[*at])));
    let moved = moved(&order);
    let sorted = order.iter().map(|at| {
        let CacheLayer { blob, parent } = layers[*at].clone();
        let parent = renumber(parent, &moved);
        CacheLayer { blob, parent }
    });
    config.layers = sorted.collect();
    for result in config.records.iter_mut().flat_map(|record| &mut record.layers) {
        result.layer = renumber(result.layer, &moved);
    }
}

/// By digest, then by the inputs.
fn sort_records(config: &mut CacheConfig) {
    let name = |link: &CacheInput| {
        let source = usize::try_from(link.link).ok();
        let digest = source
            .and_then(|at| config.records.get(at))
            .map(|record| record.digest);
        (link.selector, digest)
    };
    let describe = |record: &CacheRecord| {
        let inputs = record.inputs.iter().map(|sources| {
            let mut names: Vec<_> = sources.iter().map(name).collect();
            names.sort_unstable();
            (sources.len(), names)
        });
        let results: Vec<_> = record.layers.iter().map(|result| result.layer).collect();
        (
            record.digest,
            record.inputs.len(),
            inputs.collect::<Vec<_>>(),
            results,
        )
    };
    let mut order: Vec<usize> = (0..config.records.len()).collect();
    order.sort_by_cached_key(|at| describe(&config.records[*at]));
    let moved = moved(&order);
    let mut records: Vec<_> = order.iter().map(|at| config.records[*at].clone()).collect();
    for sources in records.iter_mut().flat_map(|record| &mut record.inputs) {
        for source in sources.iter_mut() {
            source.link = renumber(source.link, &moved);
        }
        sources.sort_by_key(|source| (source.link, source.selector));
        sources.dedup();
    }
    config.records = records;
}

/// Where each number went.
fn moved(order: &[usize]) -> Vec<usize> {
    let mut moved = vec![0; order.len()];
    for (new, old) in order.iter().enumerate() {
        moved[*old] = new;
    }
    moved
}

fn renumber(number: i64, moved: &[usize]) -> i64 {
    match usize::try_from(number) {
        Ok(at) => i64::try_from(moved[at]).unwrap_or(i64::MAX),
        Err(_) => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::{Limits, RemoteKeys, RemoteLayer};
    use keys::{CacheKey, Dependency, KeyId, KeyStore, View};
    use std::sync::Arc;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn layer(name: &str) -> PackedLayer {
        let diff_id = DiffId::new(digest(&name.to_uppercase()));
        let mut descriptor = Descriptor::of(oci::OCI_LAYER_GZIP, name.as_bytes());
        descriptor.annotations = BTreeMap::from([(UNCOMPRESSED.to_owned(), diff_id.digest().to_string())]);
        PackedLayer { descriptor, diff_id }
    }

    fn root(op: &str, output: i32) -> Digest {
        *KeyId::root(&digest(op), output).digest()
    }

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
    }

    /// base ─▶ copy (context by content) ─▶ run; and a key that leads to nothing.
    fn entries() -> Vec<Entry> {
        let entry = |digest, inputs, result: Option<&[&str]>| Entry {
            digest,
            inputs,
            result: result.map(|names| {
                (
                    names.iter().map(|name| layer(name)).collect(),
                    time(1_700_000_000),
                )
            }),
        };
        vec![
            entry(root("base", 0), vec![], None),
            entry(root("context", -1), vec![], None),
            entry(root("useless", 0), vec![], None),
            entry(
                root("copy", 0),
                vec![vec![(0, None)], vec![(1, None)]],
                Some(&["b", "c"]),
            ),
            entry(
                root("run", 0),
                vec![vec![(3, Some(digest("/")))]],
                Some(&["b", "c", "r"]),
            ),
            entry(root("bench", 0), vec![vec![(2, None)]], None),
        ]
    }

    /// The build asks an imported cache as the solver does.
    #[test]
    fn what_is_exported_is_found_by_an_import() {
        let table = Table::new(entries());
        let (config, descriptors) = table.config();
        assert_eq!(
            (config.records.len(), config.layers.len(), descriptors.len()),
            (4, 3, 3)
        );
        let (bytes, _) = crate::remote::CacheManifest::write(
            crate::remote::Shape::Image,
            Descriptor::of(crate::remote::CACHE_CONFIG, &config.to_json()),
            descriptors,
        );
        let manifest = crate::remote::CacheManifest::parse(&bytes)
            .expect("read")
            .expect("a cache");
        let config = CacheConfig::parse(&config.to_json()).expect("a config");
        let keys = RemoteKeys::new(&config, &manifest.layers, Limits::default()).expect("keys");
        let keys = Arc::new(keys);
        let view = View {
            store: keys.clone(),
            slot: 2,
            keeps_local: false,
        };
        let base = CacheKey::root(digest("base"), 0);
        let content = CacheKey::content(digest("context"));
        let dependency = |key: &CacheKey, selector| Dependency {
            key: key.clone(),
            selector,
        };
        let copy = CacheKey::inner(
            digest("copy"),
            0,
            vec![vec![dependency(&base, None)], vec![dependency(&content, None)]],
        );
        let run = CacheKey::inner(digest("run"), 0, vec![vec![dependency(&copy, Some(digest("/")))]]);
        let id = run.id_in(&view).expect("memory").expect("known");
        let records = keys.results(&id).expect("memory");
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].created, time(1_700_000_000));
        let layers = keys.layers(&records[0].result).expect("layers");
        let names: Vec<Digest> = layers.iter().map(|layer| layer.descriptor.digest).collect();
        assert_eq!(names, ["b", "c", "r"].map(digest));
        let other = CacheKey::inner(digest("run"), 0, vec![vec![dependency(&copy, None)]]);
        let id = other.id_in(&view).expect("memory").expect("an id");
        assert!(
            !keys.exists(&id).expect("memory"),
            "another selector is another key"
        );
    }

    #[test]
    fn the_order_of_entries_does_not_matter() {
        let (config, _) = Table::new(entries()).config();
        let mut turned = entries();
        turned.swap(0, 1);
        for (source, _) in turned.iter_mut().flat_map(|entry| &mut entry.inputs).flatten() {
            *source = [1, 0, 2, 3, 4, 5][*source];
        }
        let (again, _) = Table::new(turned).config();
        assert_eq!(
            String::from_utf8_lossy(&config.to_json()),
            String::from_utf8_lossy(&again.to_json())
        );
    }

    #[test]
    fn an_image_holds_results_that_are_made_of_its_layers() {
        let table = Table::new(entries());
        let image = |names: &[&str]| -> Vec<(Digest, DiffId)> {
            let layers = names.iter().map(|name| layer(name));
            layers
                .map(|layer| (layer.descriptor.digest, layer.diff_id))
                .collect()
        };
        let records = |names: &[&str]| -> Vec<CacheRecord> {
            let bytes = table.inline(&image(names)).expect("some");
            CacheConfig::parse_records(&bytes).expect("records")
        };
        let whole = records(&["b", "c", "r"]);
        let tops: Vec<i64> = whole
            .iter()
            .flat_map(|record| &record.layers)
            .map(|result| result.layer)
            .collect();
        assert_eq!(tops.iter().sum::<i64>(), 1 + 2, "{whole:?}");
        // The layers lie elsewhere in an image that stacks them on others.
        let moved = records(&["x", "b", "c"]);
        let chains: Vec<_> = moved.iter().flat_map(|record| &record.chains).collect();
        assert_eq!(chains.len(), 1);
        assert_eq!(chains[0].layers, [1, 2]);
        assert!(table.inline(&image(&["x"])).is_none());
        assert!(table.inline(&[]).is_none());
    }

    #[test]
    fn what_leads_nowhere_or_in_circles_is_refused() {
        let a = "a".repeat(64);
        let layers: HashMap<Digest, RemoteLayer> = HashMap::new();
        for (text, expected) in [
            (
                r#"{"records":[{"digest":"sha256:A","inputs":[[{"link":7}]]}]}"#,
                "no record 7",
            ),
            (
                r#"{"records":[{"digest":"sha256:A","inputs":[[{"link":-1}]]}]}"#,
                "no record -1",
            ),
            (
                r#"{"records":[{"digest":"sha256:A","inputs":[[]]}]}"#,
                "has no keys",
            ),
            (
                r#"{"records":[{"digest":"sha256:A","layers":[{"layer":3,"createdAt":"2026-01-01T00:00:00Z"}]}]}"#,
                "no layer 3",
            ),
            (
                r#"{"layers":[{"blob":"sha256:A","parent":1},{"blob":"sha256:A"}],"records":[{"digest":"sha256:A","layers":[{"layer":0,"createdAt":"2026-01-01T00:00:00Z"}]}]}"#,
                "circle",
            ),
            (
                r#"{"records":[{"digest":"sha256:A","chains":[{"layers":[0],"createdAt":"2026-01-01T00:00:00Z"}]}]}"#,
                "no layer 0",
            ),
        ] {
            let config = CacheConfig::parse(text.replace('A', &a).as_bytes()).expect("json");
            let error = RemoteKeys::new(&config, &layers, Limits::default()).expect_err(text);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_small_config_cannot_speak_of_endless_layers() {
        let (a, many) = ("a".repeat(64), 400);
        let mut config = CacheConfig::default();
        for parent in -1..many {
            let blob = Digest::parse(&format!("sha256:{a}")).expect("a digest");
            config.layers.push(CacheLayer { blob, parent });
        }
        let result = CacheResult {
            layer: many,
            created: Time::default(),
        };
        config.records.push(CacheRecord {
            layers: vec![result; 10_000],
            chains: Vec::new(),
            digest: digest("op"),
            inputs: Vec::new(),
        });
        let error = RemoteKeys::new(&config, &HashMap::new(), Limits::default()).expect_err("too many");
        assert!(error.to_string().contains("too many layers"), "{error}");
    }
}
