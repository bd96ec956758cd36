//! When a build ran, and the name of the run.

use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use serde_json::{Map, Value};

/// One run of a build; all statements about it say the same.
#[derive(Debug)]
pub(crate) struct Run {
    /// Known to nothing else.
    pub(super) id: String,
    pub(super) started: Timestamp,
    finished: OnceLock<Timestamp>,
    /// What the administrator of a daemon adds to the environment of all builds.
    pub(super) environment: Arc<Map<String, Value>>,
}

impl Run {
    /// A run that starts now, under a new id.
    pub(crate) fn begin(id: String) -> Run {
        Run {
            id,
            started: Timestamp::now(),
            finished: OnceLock::new(),
            environment: Arc::default(),
        }
    }

    /// The same with these in the environment that is stated.
    pub(crate) fn in_environment(self, environment: Arc<Map<String, Value>>) -> Run {
        Run { environment, ..self }
    }

    /// When it was finished: when that was asked for first.
    pub(super) fn finished(&self) -> Timestamp {
        *self.finished.get_or_init(Timestamp::now)
    }
}
