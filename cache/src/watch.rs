//! Keeps an eye on what a running step writes, which asks nobody for room.
//!
//! ```text
//! Cache::watch(directories) ─▶ Watch ─ check, now and then ─▶ measured ─▶ room, as for a blob: prune, else Full
//! ```
//!
//! 1. What was measured counts as being written until the watch is dropped, so that steps side by side share the room.
//! 2. A disk that runs full under the step is told before the store itself has no room for its records.
//!
//! Never: an exact bound. Between two checks a step may write more than is left; then it is stopped soon after.
use crate::{
    Cache,
    error::{CacheError, Result},
    gc,
    usage::disk_bytes,
};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// Below this many free bytes of the disk a step is stopped.
const MIN_FREE_BYTES: u64 = 64 << 20;
/// How often is looked at least.
const INTERVAL: Duration = Duration::from_millis(250);
/// Measuring takes at most this part of the time.
const MEASURING_SHARE: u32 = 20;

/// What a step writes.
#[derive(Debug)]
pub struct Watch {
    cache: Cache,
    directories: Vec<PathBuf>,
    /// What counts as being written because of us.
    counted: u64,
}

impl Cache {
    /// Watches directories that a step is about to write.
    pub fn watch(&self, directories: Vec<PathBuf>) -> Watch {
        Watch {
            cache: self.clone(),
            directories,
            counted: 0,
        }
    }
}

impl Watch {
    /// Measures, makes room where that is needed, and says how long to wait before the next time. Blocks.
    ///
    /// # Errors
    /// [`CacheError::Full`] or [`CacheError::DiskFull`]: the step is to be stopped.
    pub fn check(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let written: u64 = self.directories.iter().map(|folder| disk_bytes(folder)).sum();
        let interval = INTERVAL.max(begin.elapsed() * MEASURING_SHARE);
        if let Some(more) = written.checked_sub(self.counted).filter(|more| *more > 0)
            && let Some(first) = self.directories.first()
        {
            self.cache.content().ask(first, more)?;
            self.cache.content().count(more);
        } else {
            self.cache.content().uncount(self.counted - written);
        }
        self.counted = written;
        let root = &self.cache.inner.root;
        if gc::disk(root)?.1 < MIN_FREE_BYTES {
            let limits = gc::PruneOptions {
                min_free: Some(MIN_FREE_BYTES),
                ..gc::PruneOptions::default()
            };
            self.cache.prune(&limits)?;
            let free = gc::disk(root)?.1;
            if free < MIN_FREE_BYTES {
                return Err(CacheError::DiskFull {
                    root: root.clone(),
                    free,
                });
            }
        }
        Ok(interval)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cache.content().uncount(self.counted);
    }
}
