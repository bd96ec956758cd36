//! What is kept of builds that are over: what was asked, how it ended, what it showed, how long each step took.
//!
//! ```text
//! progress events ─▶ log (a spool many can read) ─┐
//! request, answer ─▶ record ──────────────────────┴─▶ store ─▶ query ─▶ `builder history`, ListenBuildHistory
//!                                                        └───▶ timing ─▶ bars (terminal), page (HTML)
//! ```
//!
//! 1. `record` is one build; `time` its clock readings.
//! 2. `store` keeps records as files beside the store: written aside, renamed; a build that is running holds a lock
//!    on its record, so one that was killed is told from one that works.
//! 3. `log` is the build's events, on disk while they come, so that any number of readers follow or come late.
//! 4. `query` chooses records, with the filters of `buildx history ls`.
//! 5. `timing` finds what each step waited for, and the path nothing could have been faster without.
//! 6. `bars` and `page` draw it; `bundle` writes records to a file, `intake` reads one; `jaeger` writes a trace for Jaeger.
mod time;
mod record;
mod counts;
mod log;
mod store;
mod query;
mod timing;
mod bars;
mod page;
mod go_record;
mod bundle; // .dockerbuild, written
mod intake; // and read
mod jaeger;

pub use bars::bars;
pub use bundle::{BundleError, write as write_bundle};
pub use counts::Counts;
pub use intake::{IntakeError, Taken, import};
pub use jaeger::jaeger;
pub use log::{EventLog, LogReader, MAX_LOG_BYTES, MEDIA_TYPE as LOG_MEDIA_TYPE};
pub use page::page;
pub use query::{Query, QueryError};
pub use record::{Exporter, Failure, Outcome, Record, Result as ExportResult, Steps};
pub use store::{Change, ChangeKind, History, HistoryError, Limits, Running};
pub use time::Stamp;
pub use timing::{TimedStep, Timeline};
