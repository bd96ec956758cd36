//! `du`, `prune` and `workers` on a daemon.
//!
//! ```text
//! DiskUsage, Prune ─▶ records of the wire ─▶ cache::UsageRecord, as the store here would say it
//! ```
use super::connect::Remote;
use super::in_process::runtime;
use super::solve::failure;
use crate::build::BuildError;
use api::control::control_client::ControlClient;
use api::control::{DiskUsageRequest, ListWorkersRequest, PruneRequest};
use api::types::WorkerRecord;
use cache::{RecordKind, UsageRecord};
use std::time::{Duration, SystemTime};

/// What a daemon's store holds.
///
/// # Errors
/// It cannot be reached, or refuses.
pub fn disk_usage(remote: &Remote) -> Result<Vec<UsageRecord>, BuildError> {
    runtime()?.block_on(async {
        let mut control = ControlClient::new(remote.connect().await?);
        let answer = control
            .disk_usage(DiskUsageRequest::default())
            .await
            .map_err(failure)?;
        Ok(answer.into_inner().record.into_iter().map(record).collect())
    })
}

/// The workers of a daemon, those that filters choose.
///
/// # Errors
/// It cannot be reached, or refuses.
pub fn workers(remote: &Remote, filters: &[String]) -> Result<Vec<WorkerRecord>, BuildError> {
    let asked = ListWorkersRequest {
        filter: filters.to_vec(),
    };
    runtime()?.block_on(async {
        let mut control = ControlClient::new(remote.connect().await?);
        let answer = control.list_workers(asked).await.map_err(failure)?;
        Ok(answer.into_inner().record)
    })
}

/// What is to be removed.
#[derive(Clone, Debug, Default)]
pub struct Pruning {
    /// Filters as they were given, without ages.
    pub filters: Vec<String>,
    /// Internal and shared records too.
    pub all: bool,
    /// Only what was not used for so long.
    pub unused_for: Option<Duration>,
    /// Bytes that may stay.
    pub max_used: Option<u64>,
    /// Bytes that always stay.
    pub reserved: Option<u64>,
    /// Bytes of the disk that must be free.
    pub min_free: Option<u64>,
}

/// Makes room on a daemon; answers what it removed.
///
/// # Errors
/// It cannot be reached, or refuses.
pub fn prune(remote: &Remote, pruning: &Pruning) -> Result<Vec<UsageRecord>, BuildError> {
    let bytes = |value: Option<u64>| i64::try_from(value.unwrap_or_default()).unwrap_or(i64::MAX);
    let asked = PruneRequest {
        filter: pruning.filters.iter().map(|filter| wire_filter(filter)).collect(),
        all: pruning.all,
        keep_duration: pruning
            .unused_for
            .map_or(0, |age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)),
        reserved_space: bytes(pruning.reserved),
        max_used_space: bytes(pruning.max_used),
        min_free_space: bytes(pruning.min_free),
    };
    runtime()?.block_on(async {
        let mut control = ControlClient::new(remote.connect().await?);
        let mut stream = control.prune(asked).await.map_err(failure)?.into_inner();
        let mut removed = Vec::new();
        while let Some(next) = stream.message().await.map_err(failure)? {
            removed.push(record(next));
        }
        Ok(removed)
    })
}

/// `key=value` as daemons read it: `key==value`.
fn wire_filter(filter: &str) -> String {
    let parts = filter.split(',').map(|part| match part.find('=') {
        Some(at)
            if !part[at..].starts_with("==")
                && !part[..at].ends_with(['!', '~', '='])
                && !part[at..].starts_with("=~") =>
        {
            format!("{}=={}", &part[..at], &part[at + 1..])
        }
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join(",")
}

fn record(record: api::control::UsageRecord) -> UsageRecord {
    let time = |time: Option<prost_types::Timestamp>| {
        time.and_then(|time| SystemTime::try_from(time).ok())
            .unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let number = |value: i64| u64::try_from(value).unwrap_or_default();
    UsageRecord {
        created: time(record.created_at),
        // What was never used is as old as it is.
        last_used: time(record.last_used_at.or(record.created_at)),
        id: record.id,
        parents: record.parents,
        usage_count: number(record.usage_count),
        size: number(record.size),
        shared: record.shared,
        in_use: record.in_use,
        mutable: record.mutable,
        kind: RecordKind::parse(&record.record_type),
        description: record.description,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_written_as_daemons_read_them() {
        for (given, sent) in [
            ("type=regular", "type==regular"),
            ("type==regular,id~=abc", "type==regular,id~=abc"),
            ("id!=x,inuse", "id!=x,inuse"),
        ] {
            assert_eq!(wire_filter(given), sent);
        }
    }
}
