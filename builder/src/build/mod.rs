//! One build, from a request to what was asked for.
//!
//! ```text
//! run ─▶ bridge (the frontend's questions) ─▶ Answer ─▶ permissions ─▶ solver ─▶ outputs ─▶ Outcome
//! ```
mod error;
pub(crate) mod permissions;
mod bridge;
mod docker_daemon;
pub(crate) mod host_gateway; // the machine's address among the names of --add-host
mod outcome;
pub(crate) mod outputs;
mod run;

pub(crate) use bridge::{Bridge, Guard};
pub use error::{BuildError, Lines};
pub use outcome::{BuiltImage, Outcome};
pub(crate) use outputs::title;
pub use run::{Engine, run};
