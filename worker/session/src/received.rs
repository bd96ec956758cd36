//! Contexts that were received, kept so that next time only changes travel.
//!
//! ```text
//! <root>/<slot>.lock                   held by the daemon that uses the slot
//!        <slot>/<key>/<number>/tree    one copy, whole once its mark is there; never changed afterwards
//!                             /index   what was said of each entry
//!                             /whole   its bytes and its name in builds, a line each
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
    pub fn mark_whole(&self, name: &str, bytes: u64) -> io::Result<()> {
        let name: String = name.chars().filter(|c| !c.is_control()).collect();
        fs::write(self.folder.join("whole"), format!("{bytes}\n{name}\n"))
    }

    /// Its bytes and its name in builds.
    fn mark(&self) -> (u64, String) {
        let text = fs::read_to_string(self.folder.join("whole")).unwrap_or_default();
        let mut lines = text.lines();
        let bytes = lines.next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        (bytes, lines.next().unwrap_or_default().to_owned())
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

    /// What is kept, the longest unused first.
    pub fn list(&self) -> Vec<Kept> {
        let latest: Vec<_> = {
            let latest = self.latest.lock();
            // One hold is the map's own.
            let held = |copy: &Arc<Copy>| Arc::strong_count(copy) > 1;
            let all = latest.iter();
            all.map(|(id, copy)| (id.clone(), held(copy), copy.clone()))
                .collect()
        };
        let mut kept: Vec<Kept> = latest
            .into_iter()
            .map(|(id, is_in_use, copy)| {
                let (bytes, name) = copy.mark();
                let time = |path: PathBuf| fs::metadata(path).and_then(|data| data.modified());
                let made = time(copy.folder.join("whole")).unwrap_or(SystemTime::UNIX_EPOCH);
                let used = time(copy.index()).unwrap_or(made);
                Kept {
                    id,
                    name,
                    bytes,
                    made,
                    used,
                    is_in_use,
                }
            })
            .collect();
        kept.sort_by(|a, b| (a.used, &a.id).cmp(&(b.used, &b.id)));
        kept
    }

    /// Removes what is kept under an id, unless a build reads it now; true if it did.
    pub fn forget(&self, id: &str) -> bool {
        let mut latest = self.latest.lock();
        match latest.get(id) {
            Some(copy) if Arc::strong_count(copy) == 1 => {
                copy.is_replaced.store(true, Ordering::Release);
                let gone = latest.remove(id);
                // Removing a tree takes its time.
                drop(latest);
                drop(gone);
                true
            }
            _ => false,
        }
    }

    /// Removes copies nobody used for `age`, and the longest unused while all have more than `bytes`.
    pub fn sweep(&self, age: Duration, bytes: u64) {
        let now = SystemTime::now();
        let kept = self.list();
        let mut left: u64 = kept.iter().map(|kept| kept.bytes).sum();
        for kept in kept {
            let is_old = now.duration_since(kept.used).unwrap_or_default() >= age;
            if (is_old || left > bytes) && self.forget(&kept.id) {
                left = left.saturating_sub(kept.bytes);
            }
        }
    }
}

/// One kept directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name here.
    pub id: String,
    /// Its name in builds: `context`.
    pub name: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// When it came.
    pub made: SystemTime,
    /// When a build last used it.
    pub used: SystemTime,
    /// Whether a build reads it now.
    pub is_in_use: bool,
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
        copy.mark_whole(key, content.len() as u64).expect("written");
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
        assert!(again.list()[0].is_in_use, "it is held here");
        again.sweep(Duration::ZERO, u64::MAX);
        assert!(again.latest("../../etc").is_some(), "a build reads it");
        drop(kept);
        again.sweep(Duration::ZERO, u64::MAX);
        assert!(again.latest("../../etc").is_none());
    }

    #[test]
    fn the_longest_unused_goes_when_all_are_too_much() {
        let root = tempfile::tempdir().expect("a folder");
        let received = Received::open(root.path()).expect("opened");
        for (age, key) in ["a", "b", "c"].into_iter().enumerate() {
            let copy = made(&received, key, "12345678");
            let used = SystemTime::now() - Duration::from_secs(100 - age as u64);
            let index = File::options().write(true).open(copy.index()).expect("there");
            index
                .set_times(fs::FileTimes::new().set_modified(used))
                .expect("set");
        }
        let listed: Vec<_> = received
            .list()
            .into_iter()
            .map(|kept| (kept.name, kept.bytes))
            .collect();
        assert_eq!(
            listed,
            [("a".to_owned(), 8), ("b".to_owned(), 8), ("c".to_owned(), 8)]
        );
        received.sweep(Duration::from_secs(1000), 20);
        let listed: Vec<_> = received.list().into_iter().map(|kept| kept.name).collect();
        assert_eq!(listed, ["b", "c"]);
    }
}
