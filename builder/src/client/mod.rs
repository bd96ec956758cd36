//! The asker's side of a build: opens the engine, offers the user's things, shows progress, writes files.
//!
//! ```text
//! BuildRequest ─▶ offer (LocalCaller) ─┬─▶ in_process (engine, signals, screen) ────────┬─▶ Outcome ─▶ files
//!                                      └─▶ connect ─▶ attach (session) ─▶ solve (daemon) ─┘
//! ```
mod store;
mod tokens; // tokens for registries, fetched here
mod offer;
mod caches; // folders that hold caches
mod remote_file; // a Dockerfile from an address
mod provenance; // for --metadata-file
mod files;
mod signals;
mod recorder;
mod in_process;
mod transfer;
mod connect;
mod attach;
mod solve;
mod beside; // a daemon of a build's own
mod usage;
mod checkup;

pub use beside::{build_beside, wants_image};
pub use checkup::checkup;
pub use connect::{Address, AddressError, ConnectError, Remote, TlsFiles};
pub(crate) use in_process::new_id;
pub use in_process::{Setting, build, open, runtime};
pub use signals::Signals;
pub use solve::build_on;
pub use store::{hosts, open_store};
pub use transfer::{Shown, TransferError, digests, pull, push};
pub use usage::{Pruning, disk_usage, prune, workers};
