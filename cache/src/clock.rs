//! The time of records: nanoseconds since 1970, never going back within a process.
use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Now; later than every earlier answer of this process.
pub(crate) fn now() -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall = i64::try_from(wall.as_nanos()).unwrap_or(i64::MAX - 1);
    let before = LAST.fetch_max(wall, Ordering::Relaxed);
    if before < wall {
        wall
    } else {
        LAST.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A stored time as the system's.
pub(crate) fn time(nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds.max(0).cast_unsigned())
}

/// The system's time as it is stored.
pub(crate) fn stored(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
