//! Shows transfers and unpacking of blobs as parts of a vertex.
//!
//! `sha256:<digest>` with bytes for a download, `extracting sha256:<digest>` for unpacking: BuildKit's texts.
use cache::Meter;
use oci::Digest;
use parking_lot::Mutex;
use solver::progress::{Activity, Sink};
use std::{collections::HashMap, sync::Arc};

/// A meter that reports to a vertex.
pub struct SinkMeter {
    sink: Sink,
    going: Mutex<HashMap<(Digest, bool), Activity>>,
}

impl SinkMeter {
    /// Reports to `sink`.
    pub fn shared(sink: Sink) -> Arc<dyn Meter> {
        Arc::new(SinkMeter {
            sink,
            going: Mutex::default(),
        })
    }
}

impl Meter for SinkMeter {
    fn transferred(&self, digest: &Digest, current: u64, total: u64, done: bool) {
        let mut going = self.going.lock();
        let key = (*digest, false);
        going
            .entry(key)
            .or_insert_with(|| self.sink.begin(digest.to_string(), "downloading"))
            .set(current, total);
        if done {
            going.remove(&key);
        }
    }

    fn unpacked(&self, digest: &Digest, done: bool) {
        let mut going = self.going.lock();
        let key = (*digest, true);
        match done {
            true => drop(going.remove(&key)),
            false => drop(
                going
                    .entry(key)
                    .or_insert_with(|| self.sink.begin(format!("extracting {digest}"), "extract")),
            ),
        }
    }
}
