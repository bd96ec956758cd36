//! One build, from a request to what was asked for.
//!
//! ```text
//! run ─▶ bridge (the frontend's questions) ─▶ Answer ─▶ permissions ─▶ solver ─▶ attest ─▶ outputs ─▶ Outcome
//! ```
mod error;
pub(crate) mod permissions;
mod sources; // which may be used, and what instead of some
mod bridge;
pub(crate) mod caches; // --cache-from, --cache-to
mod docker_daemon;
pub(crate) mod host_gateway; // the machine's address among the names of --add-host
pub(crate) mod attest; // what is stated about a build
mod statements; // all of it of one build
pub(crate) mod metadata; // what the frontend says of its answer
mod kept; // what the history keeps of it
mod outcome;
pub(crate) mod outputs;
mod run;

pub use attest::{AskedError, ClaimError, ScanError};
pub(crate) use attest::{Request as ScopeRequest, Scope};
pub(crate) use bridge::{Bridge, image_of};
pub use caches::{CacheEntry, EntryError};
pub use error::{BuildError, Lines};
pub use kept::Kept;
pub(crate) use kept::Stated;
pub use outcome::{BuiltImage, Outcome};
pub(crate) use outputs::title;
pub(crate) use run::request_policy;
pub use run::{Engine, run};
pub(crate) use sources::{Denied, Guard, Rules, guarded, judge_request, normalized};
