//! When a build ran, and the name of the run.

use std::sync::OnceLock;

use jiff::Timestamp;

/// One run of a build; all statements about it say the same.
#[derive(Debug)]
pub(crate) struct Run {
    /// Known to nothing else.
    pub(super) id: String,
    pub(super) started: Timestamp,
    finished: OnceLock<Timestamp>,
}

impl Run {
    /// A run that starts now, under a new id.
    pub(crate) fn begin(id: String) -> Run {
        Run {
            id,
            started: Timestamp::now(),
            finished: OnceLock::new(),
        }
    }

    /// When it was finished: when that was asked for first.
    pub(super) fn finished(&self) -> Timestamp {
        *self.finished.get_or_init(Timestamp::now)
    }
}
