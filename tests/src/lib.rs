//! The harness: the real program on a fresh root, and what came out of it.
//!
//! ```text
//! scenario.toml ─▶ scenario ─▶ run (the binary, a fresh root) ─▶ archive ─▶ image (a model tree) ─▶ compared
//! ```
//!
//! 1. `program` finds and runs the binary, as root or as an ordinary user.
//!    `daemon` runs it as one.
//! 2. `progress` reads which steps ran and which came from the cache.
//! 3. `image` reads an OCI archive into a model of its file system, with code of its own.
//! 4. `scenario` runs one folder of `fixtures/scenarios`.
//!    `server` serves what a case wants from the network, `registry` is one of others, `gate` a token server before it.
//! 5. `leftovers` looks for what a build must not leave behind.
mod program;
mod daemon;
mod progress;
mod image;
mod server;
mod registry;
mod gate;
mod scenario;
mod leftovers;

pub use daemon::Daemon;
pub use gate::TokenGate;
pub use image::{Image, Node};
pub use leftovers::Leftovers;
pub use program::{Output, Program, User, fixtures, is_root, tool};
pub use progress::Steps;
pub use registry::Registry;
pub use scenario::{Scenario, all_scenarios};
