//! Works out the results a build asks for, from the cache where it can, by running ops where it must.
//!
//! ```text
//! Definition ─▶ load ─▶ graph ─▶ scheduler ─▶ edge ─▶ keys ─▶ (cache hit) ─▶ result
//!                                     ▲          └──▶ once ─▶ op ─▶ (ran) ─▶ result
//!                                     └── answers ◀────┘
//! ```
//!
//! 1. `job`: a client's hold; [`Job::build`] hands a definition in and waits for the result.
//! 2. `load`: the definition becomes vertices, checked; equal ones become one.
//! 3. `scheduler` owns all state and decides; `edge` is the life of one output of one vertex; `keys` asks
//!    which result a key has; `turns` says who may run.
//! 4. `once` asks ops and brings answers back.
//! 5. `export` tells what is known of a result's keys, for other machines.
//! 6. `progress` is what the builds show meanwhile.
//!
//! Touches no bytes, files or sockets: an [`Op`] does the work and `R` is whatever it gives (a ref in the
//! builder, a number in tests). Reads no clock but the one it is given.

mod error;
pub mod progress;
mod op;
mod report;
mod load;
mod graph;
mod turns;
mod keys;
mod edge;
mod scheduler;
mod once;
mod export;
mod job;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use error::{Blame, OpError, Phase, Place, SolveError, VertexError};
pub use export::{ExportedKey, ImportedRecord};
pub use job::{BuiltResult, Holdings, Job, Options, Solver};
pub use load::dot;
pub use op::{CacheMap, Dep, Group, ImportedCache, Op, OpContext, Ops};
pub use report::{InputReport, Outcome, StepReport};
