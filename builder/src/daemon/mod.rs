//! The engine as a service that speaks BuildKit's API.
//!
//! ```text
//! listen ─▶ control ─ Solve ──▶ run ─▶ (frontend | definition | a client through gateway) ─▶ outputs
//!                   ─ Status ─▶ the build's log          ▲
//!                   ─ Session ▶ session::Sessions        │
//!           gateway ─ Solve, ReadFile, …, Return ────────┘
//!           content ─ blobs of the history       health, traces
//! ```
//!
//! 1. `start` is its life: open, listen, serve, drain.
//! 2. `listen` makes sockets: unix, TCP with or without TLS, those systemd hands over.
//! 3. `containers` are those that frontends start; `builds` are the builds that run, found by their id.
//! 4. `result` is what a frontend answers: refs by platform, and metadata.
//! 5. `policy` asks a client about sources; `run` is one Solve from request to answer; `delivery` gives its result out,
//!    by `output` through the session; `ending` files the build away; `image_frontend` runs frontends that are images, on a line of their own to `gateway`.
//!    `observe` follows builds and counts, for metrics and `/debug`.
//! 6. `control`, `gateway`, `content`, `traces` are the services, one file each: wire types in, own types out.
//! 7. `errors` turns ours into status and details.
//! 8. `upkeep` keeps history and received contexts within their limits, and by `gc` the store; `notify` tells systemd.
mod errors;
mod result;
mod containers;
mod left; // what failed steps leave
mod builds;
mod worker_info;
mod output;
mod statements; // what is stated about results
mod claims; // what frontends and scanners state
mod observe;
mod policy;
mod imports;
mod delivery; // of a result
mod ending; // what is kept of a build
mod run;
mod nested; // definitions found in results
mod records;
mod contexts;
mod control;
mod image_frontend;
mod caps; // what this daemon says it can do
mod container_files; // looked at from outside
mod gateway;
mod content;
mod source_meta; // commits and files of the network
mod traces;
mod gc;
mod upkeep;
mod notify; // systemd
mod listen;
mod start;

pub(crate) use errors::ADVICE;
pub use listen::{Address, AddressError, Owner, TlsFiles};
pub use notify::Notify;
pub use start::{Served, Service, Stop, serve};
pub(crate) use worker_info::{WorkerInfo, disk_bytes};
