//! Transfers and unpacking of layers, shown under the vertex that needs them.

use std::{collections::HashMap, sync::Arc};

use cache::Meter;
use oci::Digest;
use parking_lot::Mutex;
use solver::progress::{Activity, Sink};

/// Shows what the store fetches for one vertex.
pub(crate) struct ProgressMeter {
    sink: Sink,
    open: Mutex<HashMap<(Digest, Part), Activity>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Transfer,
    Unpack,
}

impl ProgressMeter {
    /// A meter that reports to `sink`.
    pub(crate) fn shared(sink: &Sink) -> Arc<dyn Meter> {
        Arc::new(ProgressMeter { sink: sink.clone(), open: Mutex::default() })
    }
}

impl Meter for ProgressMeter {
    fn transferred(&self, digest: &Digest, current: u64, total: u64, done: bool) {
        let mut open = self.open.lock();
        let key = (*digest, Part::Transfer);
        let activity = open.entry(key).or_insert_with(|| self.sink.begin(digest.to_string(), "downloading"));
        activity.set(current, total);
        if done {
            open.remove(&key);
        }
    }

    fn unpacked(&self, digest: &Digest, done: bool) {
        let mut open = self.open.lock();
        let key = (*digest, Part::Unpack);
        if done {
            open.remove(&key);
        } else {
            let name = format!("extracting {digest}");
            open.entry(key).or_insert_with(|| self.sink.begin(name.clone(), name));
        }
    }
}
