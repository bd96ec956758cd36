//! The program: a command line in, a build out.
//!
//! ```text
//! argv ─▶ cli ─▶ BuildRequest ─▶ client ─▶ build/run ─▶ frontend, solver, worker ─▶ outputs
//!          ▲                        │
//! config ──┘                        └─▶ progress ─▶ stderr
//! ```
//!
//! 1. `config` is the only place that reads the environment, home directories and configuration files.
//! 2. `cli` turns flags into a request and errors into words; it alone knows flags.
//! 3. `request` is all that a build was asked.
//! 4. `client` opens the engine in this process and offers it the user's things.
//! 5. `build` is one build from request to answer.
//! 6. `progress` shows it.
//! 7. `daemon` is the same engine as a service.
//! 8. `history` keeps what it showed and how it ended; `trace` tells collectors.
pub mod units;
pub mod config;
pub mod request;
pub mod progress;
pub mod excerpt;
pub mod history;
pub(crate) mod trace;
pub mod build;
pub mod stored;
pub mod client;
pub mod daemon;
pub mod telemetry;
pub mod container;
pub mod doctor;
pub mod cli;
