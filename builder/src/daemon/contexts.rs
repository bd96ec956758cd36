//! Contexts that clients sent, as records of the store: listed by `du`, removed by `prune`.
//!
//! ```text
//! Received ─ list ─▶ UsageRecord (source.local) ─▶ DiskUsage
//!          ◀─ forget ─ what the filters and bounds of Prune choose, the longest unused first
//! ```
//!
//! They go before anything that was built, as a client that has them sends them again.
use cache::{PruneOptions, RecordKind, UsageRecord};
use session::{Kept, Received};
use std::time::SystemTime;

/// All kept contexts.
pub(super) fn records(received: &Received) -> Vec<UsageRecord> {
    received.list().into_iter().map(record).collect()
}

fn record(kept: Kept) -> UsageRecord {
    UsageRecord {
        id: kept.id,
        parents: Vec::new(),
        created: kept.made,
        last_used: kept.used,
        usage_count: 1,
        size: kept.bytes,
        shared: false,
        in_use: kept.is_in_use,
        mutable: true,
        kind: RecordKind::SourceLocal,
        description: format!("local source for {}", kept.name),
    }
}

/// Removes contexts; `store_bytes` is what the store holds beside them.
pub(super) fn prune(received: &Received, options: &PruneOptions, store_bytes: u64) -> Vec<UsageRecord> {
    let now = SystemTime::now();
    let all = records(received);
    let mut left: u64 = all.iter().map(|record| record.size).sum();
    let mut removed = Vec::new();
    for record in all {
        let is_meant =
            options.filters.is_empty() || options.filters.iter().any(|filter| filter.matches(&record));
        let is_old = options
            .unused_for
            .is_none_or(|age| now.duration_since(record.last_used).is_ok_and(|idle| idle >= age));
        let is_too_much = match options.max_used {
            Some(most) => left + store_bytes > most,
            // How much of the disk is free is asked by the store, which removes what it must.
            None => options.min_free.is_none(),
        };
        let is_reserved = options.reserved.is_some_and(|least| left + store_bytes <= least);
        if is_meant && is_old && is_too_much && !is_reserved && received.forget(&record.id) {
            left -= record.size;
            removed.push(record);
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache::Filter;

    fn kept(root: &std::path::Path) -> Received {
        let received = Received::open(root).expect("opened");
        for name in ["context", "dockerfile"] {
            let copy = received.begin(name);
            std::fs::create_dir_all(copy.tree()).expect("made");
            std::fs::write(copy.index(), b"").expect("written");
            copy.mark_whole(name, 100).expect("marked");
            received.keep(name, &copy);
        }
        received
    }

    fn pruned(options: &PruneOptions, store_bytes: u64) -> usize {
        let root = tempfile::tempdir().expect("a folder");
        let received = kept(root.path());
        let removed = prune(&received, options, store_bytes).len();
        assert_eq!(records(&received).len(), 2 - removed);
        removed
    }

    #[test]
    fn filters_and_bounds_choose() {
        let filter = |text: &str| vec![Filter::parse(text).expect("a filter")];
        let all = PruneOptions::default();
        let filtered = |text| PruneOptions {
            filters: filter(text),
            ..all.clone()
        };
        let at_most = |bytes| PruneOptions {
            max_used: Some(bytes),
            ..all.clone()
        };
        for (options, expected) in [
            (all.clone(), 2),
            (filtered("type==source.local"), 2),
            (filtered("type==regular"), 0),
            (filtered("description~=dockerfile"), 1),
            (at_most(5000), 0),
            (at_most(1150), 1),
            (at_most(0), 2),
        ] {
            assert_eq!(pruned(&options, 1000), expected, "{options:?}");
        }
    }
}
