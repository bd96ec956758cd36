//! Keeps the store within its limits: the policies of the configuration, one after the other.
//!
//! ```text
//! Gc (configuration) ─▶ policies for this disk ─▶ PruneOptions ─▶ contexts::prune, Cache::prune ─▶ bytes freed
//! ```
//!
//! A sweep follows builds, as only they make the store larger; it never takes what a build uses.
use super::contexts;
use crate::config::{Gc, GcPolicy};
use cache::{Cache, CacheError, Filter, PruneOptions};
use session::Received;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// One sweep. Blocks.
pub(super) fn sweep(gc: &Gc, cache: &Cache, received: &Received) -> Result<Swept, CacheError> {
    let disk = cache.disk_bytes()?;
    let mut swept = Swept::default();
    for policy in gc.policies(disk) {
        let options = options(&policy, disk);
        let store_bytes = cache.usage()?.iter().map(|record| record.size).sum();
        let mut removed = contexts::prune(received, &options, store_bytes);
        removed.extend(cache.prune(&options)?);
        swept.records += removed.len() as u64;
        swept.bytes += removed.iter().map(|record| record.size).sum::<u64>();
    }
    Ok(swept)
}

fn options(policy: &GcPolicy, disk: u64) -> PruneOptions {
    // Checked when the configuration was read.
    let filters = policy
        .filters
        .iter()
        .filter_map(|filter| Filter::parse(filter).ok());
    PruneOptions {
        filters: filters.collect(),
        all: policy.all,
        unused_for: policy.keep_duration,
        max_used: policy.max_used.map(|space| space.bytes(disk)),
        reserved: policy.reserved.map(|space| space.bytes(disk)),
        min_free: policy.min_free.map(|space| space.bytes(disk)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Space;

    #[test]
    fn a_policy_as_the_store_takes_it() {
        let policy = GcPolicy {
            filters: vec!["type==source.local".into()],
            all: true,
            max_used: Some(Space::Percent(50)),
            reserved: Some(Space::Bytes(7)),
            ..GcPolicy::default()
        };
        let options = options(&policy, 100 << 30);
        assert_eq!(options.max_used, Some(51_000_000_000));
        assert_eq!((options.reserved, options.min_free), (Some(7), None));
        assert!(options.all && options.filters.len() == 1);
    }
}
