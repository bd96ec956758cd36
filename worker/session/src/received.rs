//! Contexts that were received, kept so that next time only changes travel.
//!
//! ```text
//! <root>/<slot>.lock                   held by the daemon that uses the slot
//!        <slot>/<key>/<number>/tree    one copy, whole once its mark is there; never changed afterwards
//!                             /index   what was said of each entry
//! ```
//!
//! Every transfer that found a change makes a new copy, whose unchanged files are further names of the old one's. So a
//! build reads what it was sent, whoever sends what meanwhile, and no build waits for another. A copy goes when a newer
//! one is there and nobody holds it.
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Daemons that may use one root at the same time.
const SLOTS: usize = 64;

/// The kept contexts of one daemon.
#[derive(Debug)]
pub struct Received {
    folder: PathBuf,
    latest: Mutex<HashMap<String, Arc<Copy>>>,
    next: AtomicU64,
    _lock: File,
}

/// One copy of a directory, held while a build reads it.
#[derive(Debug)]
pub struct Copy {
    folder: PathBuf,
    is_replaced: AtomicBool,
}

impl Copy {
    /// Its files.
    pub fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    /// What was said of each entry.
    pub fn index(&self) -> PathBuf {
        self.folder.join("index")
    }

    /// Says that everything is written; a copy without this mark is removed at the next start.
    ///
    /// # Errors
    /// The mark cannot be made.
    pub fn mark_whole(&self) -> io::Result<()> {
        File::create(self.folder.join("whole")).map(drop)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.is_replaced.load(Ordering::Acquire) {
            // What cannot be removed now goes when the daemon next starts.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl Received {
    /// Opens the contexts kept under `root`, in the first slot no other daemon uses.
    ///
    /// # Errors
    /// The folder cannot be made or read, or every slot is taken.
    pub fn open(root: &Path) -> io::Result<Received> {
        fs::create_dir_all(root)?;
        for slot in 0..SLOTS {
            let lock = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(root.join(format!("{slot}.lock")))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let folder = root.join(slot.to_string());
            fs::create_dir_all(&folder)?;
            let (latest, next) = read(&folder)?;
            return Ok(Received {
                folder,
                latest: Mutex::new(latest),
                next: AtomicU64::new(next),
                _lock: lock,
            });
        }
        Err(io::Error::other(format!(
            "more than {SLOTS} daemons use {}",
            root.display()
        )))
    }

    /// The newest copy of a key.
    pub fn latest(&self, key: &str) -> Option<Arc<Copy>> {
        let copy = self.latest.lock().get(&name(key)).cloned()?;
        // Used now: the sweep goes by this time.
        if let Ok(index) = File::open(copy.index()) {
            let _ = index.set_times(fs::FileTimes::new().set_modified(SystemTime::now()));
        }
        Some(copy)
    }

    /// A place for a new copy; it is removed unless it is kept.
    pub fn begin(&self, key: &str) -> Arc<Copy> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Arc::new(Copy {
            folder: self.folder.join(name(key)).join(number.to_string()),
            is_replaced: AtomicBool::new(true),
        })
    }

    /// Makes a whole copy the newest one of its key.
    pub fn keep(&self, key: &str, copy: &Arc<Copy>) {
        copy.is_replaced.store(false, Ordering::Release);
        if let Some(old) = self.latest.lock().insert(name(key), copy.clone()) {
            old.is_replaced.store(true, Ordering::Release);
        }
    }

    /// Removes copies nobody used for `age`.
    pub fn sweep(&self, age: Duration) {
        let now = SystemTime::now();
        self.latest.lock().retain(|_, copy| {
            let used = fs::metadata(copy.index()).and_then(|data| data.modified());
            let is_old = used.is_ok_and(|used| now.duration_since(used).unwrap_or_default() >= age);
            if is_old {
                copy.is_replaced.store(true, Ordering::Release);
            }
            !is_old
        });
    }
}

/// Finds whole copies, and removes everything else.
fn read(folder: &Path) -> io::Result<(HashMap<String, Arc<Copy>>, u64)> {
    let (mut latest, mut next) = (HashMap::new(), 0);
    for key in fs::read_dir(folder)?.flatten() {
        let mut numbers: Vec<u64> = fs::read_dir(key.path())?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        numbers.sort_unstable();
        next = next.max(numbers.last().map_or(0, |last| last + 1));
        let mut is_found = false;
        while let Some(number) = numbers.pop() {
            let place = key.path().join(number.to_string());
            if is_found || !place.join("whole").exists() {
                fs::remove_dir_all(&place)?;
                continue;
            }
            is_found = true;
            let copy = Copy {
                folder: place,
                is_replaced: AtomicBool::new(false),
            };
            latest.insert(key.file_name().to_string_lossy().into_owned(), Arc::new(copy));
        }
        if !is_found {
            let _ = fs::remove_dir(key.path());
        }
    }
    Ok((latest, next))
}

/// The folder of a key: keys come from strangers.
fn name(key: &str) -> String {
    oci::Digest::of(key.as_bytes()).hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(received: &Received, key: &str, content: &str) -> Arc<Copy> {
        let copy = received.begin(key);
        fs::create_dir_all(copy.tree()).expect("made");
        fs::write(copy.tree().join("f"), content).expect("written");
        fs::write(copy.index(), b"").expect("written");
        copy.mark_whole().expect("written");
        received.keep(key, &copy);
        copy
    }

    #[test]
    fn a_copy_in_use_outlives_its_successor() {
        let root = tempfile::tempdir().expect("a folder");
        let received = Received::open(root.path()).expect("opened");
        let old = made(&received, "context", "old");
        let new = made(&received, "context", "new");
        assert_eq!(fs::read(old.tree().join("f")).expect("still there"), b"old");
        let place = old.tree();
        drop(old);
        assert!(!place.exists() && new.tree().exists());
        let unfinished = received.begin("context");
        fs::create_dir_all(unfinished.tree()).expect("made");
        let place = unfinished.tree();
        drop(unfinished);
        assert!(!place.exists());
    }

    #[test]
    fn only_whole_copies_survive_a_restart_and_two_daemons_keep_apart() {
        let root = tempfile::tempdir().expect("a folder");
        let received = Received::open(root.path()).expect("opened");
        made(&received, "../../etc", "kept");
        let cut = received.begin("cut");
        fs::create_dir_all(cut.tree()).expect("made");
        std::mem::forget(cut);
        let other = Received::open(root.path()).expect("another slot");
        assert!(other.latest("../../etc").is_none());
        drop((received, other));
        let again = Received::open(root.path()).expect("opened");
        let kept = again.latest("../../etc").expect("it was whole");
        assert_eq!(fs::read(kept.tree().join("f")).expect("there"), b"kept");
        assert!(again.latest("cut").is_none());
        assert_eq!(fs::read_dir(root.path().join("0")).expect("there").count(), 1);
        drop(kept);
        again.sweep(Duration::ZERO);
        assert!(again.latest("../../etc").is_none());
    }
}
