//! Who is using the store: one locked file per process, one lease per build.
//!
//! ```text
//! locks/owner-<start>-<pid>   held by flock while the process lives; whoever can lock it knows it is dead;
//!                             its time of change says since when what the process uses must stay
//! ```
//!
//! Whatever a build has used since its lease began, gc leaves alone; and what a process that had no lease yet has used
//! since it began. A daemon between builds holds nothing back. A record is
//! marked used before its name is told to anyone, so nothing in use can look unused.
use crate::{
    clock,
    error::{CacheError, Result},
};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// This process, as the other users of the store see it.
#[derive(Debug)]
pub(crate) struct Owner {
    folder: PathBuf,
    name: String,
    path: PathBuf,
    lock: File,
    leases: Mutex<BTreeMap<(i64, u64), ()>>,
}

/// Keeps what one build uses; give it back by dropping it when the build has ended.
#[derive(Debug)]
pub struct Lease {
    owner: Arc<Owner>,
    key: (i64, u64),
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = self.owner.leases.lock();
        leases.remove(&self.key);
        let oldest = leases.first_key_value().map(|(key, ())| key.0);
        self.owner.publish(oldest);
    }
}

impl Owner {
    /// Announces this process under `root`.
    pub(crate) fn announce(root: &Path) -> Result<Owner> {
        let folder = root.join("locks");
        fs::create_dir_all(&folder).map_err(CacheError::io("create", &folder))?;
        loop {
            let name = format!("{}-{}", clock::now(), std::process::id());
            let path = folder.join(format!("owner-{name}"));
            let lock = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(CacheError::io("create", &path))?;
            flock(&lock, FlockOperation::LockExclusive)
                .map_err(|e| CacheError::io("lock", &path)(e.into()))?;
            // Whoever looks for the dead may have removed it between the two calls.
            if path.exists() {
                return Ok(Owner {
                    folder,
                    name,
                    path,
                    lock,
                    leases: Mutex::default(),
                });
            }
        }
    }

    /// The name that marks this process's files.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Begins a build's hold.
    pub(crate) fn lease(self: &Arc<Owner>) -> Lease {
        let mut leases = self.leases.lock();
        let start = clock::now();
        let number = leases.last_key_value().map_or(0, |(key, ())| key.1 + 1);
        if leases.is_empty() {
            self.publish(Some(start));
        }
        leases.insert((start, number), ());
        Lease {
            owner: self.clone(),
            key: (start, number),
        }
    }

    /// When this process's holds began, the oldest first.
    pub(crate) fn leases(&self) -> Vec<SystemTime> {
        self.leases.lock().keys().map(|key| clock::time(key.0)).collect()
    }

    /// The time from which on everything used must stay: that of the oldest live process but this one, and of
    /// this one's oldest lease. The names of dead processes come beside it.
    pub(crate) fn protected_since(&self) -> Result<(i64, Vec<String>)> {
        let own = self.leases.lock().first_key_value().map(|(key, ())| key.0);
        let mut since = own.unwrap_or_else(clock::now);
        let mut dead = Vec::new();
        let failed = || CacheError::io("list", self.folder.clone());
        for entry in fs::read_dir(&self.folder).map_err(|e| failed()(e))? {
            let entry = entry.map_err(|e| failed()(e))?;
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str().and_then(|name| name.strip_prefix("owner-")) else {
                continue;
            };
            if name == self.name {
                continue;
            }
            let start = published(&entry.path());
            match is_dead(&entry.path()) {
                Ok(true) => dead.push(name.to_owned()),
                // Neither to be opened nor removed: somebody else's business, and alive as far as we know.
                Ok(false) | Err(_) => since = since.min(start.unwrap_or(0)),
            }
        }
        Ok((since, dead))
    }

    /// Tells other processes since when what this one uses must stay; `None`: it uses nothing.
    fn publish(&self, since: Option<i64>) {
        let time = match since {
            Some(since) => clock::time(since),
            None => SystemTime::UNIX_EPOCH + NEVER,
        };
        // An older time stays then, which holds back more than it must.
        if let Err(error) = self.lock.set_times(fs::FileTimes::new().set_modified(time)) {
            tracing::warn!(%error, "gc of other processes will keep more than it must");
        }
    }

    /// Forgets a dead process, after its files were removed.
    pub(crate) fn bury(&self, name: &str) {
        // It may have been buried by another process meanwhile; either way it is gone.
        let _ = fs::remove_file(self.folder.join(format!("owner-{name}")));
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Left behind, it would be found dead and removed by the next.
        let _ = fs::remove_file(&self.path);
    }
}

/// A time no build begins after.
const NEVER: Duration = Duration::from_secs(1 << 33);

/// Since when what the process of this file uses must stay; a moment earlier, as file systems round times.
fn published(path: &Path) -> Option<i64> {
    let changed = fs::metadata(path).and_then(|data| data.modified()).ok()?;
    Some(clock::stored(changed.checked_sub(Duration::from_millis(20))?))
}

fn is_dead(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(cause) => return Err(cause),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(cause) => Err(cause.into()),
    }
}

/// A lock by file, held until dropped; waits for it on the calling thread.
pub(crate) fn lock_file(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(CacheError::io("open", path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|e| CacheError::io("lock", path)(e.into()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_leases_hold_back() {
        let root = tempfile::tempdir().expect("a folder");
        let owner = || Arc::new(Owner::announce(root.path()).expect("announced"));
        let (daemon, other) = (owner(), owner());
        let since = || other.protected_since().expect("readable").0;
        let before = clock::now();
        assert!(
            since() < before,
            "a process without leases yet is protected from its start"
        );
        let first = daemon.lease();
        let between = clock::now();
        std::thread::sleep(Duration::from_millis(50));
        let second = daemon.lease();
        assert!(since() <= between);
        drop(first);
        assert!(since() > between, "the second lease began later");
        assert!(since() <= second.key.0);
        drop(second);
        let now = clock::now();
        assert!(since() >= now, "between builds nothing is held back");
        let _again = daemon.lease();
        let now = clock::now();
        assert!(since() <= now);
    }
}
