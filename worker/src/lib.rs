//! Does the work: sources, steps, file ops, exports.
//!
//! ```text
//! solver ─ Ops ─▶ ops ─┬─▶ source ─▶ ref        results ─ export ─▶ image, archive, registry, directory
//!                      ├─▶ file   ─▶ ref
//!                      └─▶ …
//! ```
//!
//! `Worker` is shared by all builds of a process; `Session` is what one of them brings along.
mod worker;
mod origins;
pub mod source;
pub mod file;
pub mod archive;
mod meter;
mod user;
mod network;
mod mounts;
mod emulation;
mod executor;
pub mod proxy;
mod process;
mod cdi;
mod ops;
pub mod container;
pub mod export;
pub mod remote;
pub mod explain;

pub use cdi::{DeviceError, DeviceGrants, InvalidGrant, KnownDevice};
pub use emulation::platforms;
pub use meter::SinkMeter;
pub use mounts::{Left, Subject};
pub use network::Dns;
pub use ops::build::NestedBuilds;
pub use ops::exec::ExitError;
pub use source::attestations::AttestationChain;
pub use source::checksum::{Algorithm, Checksum, InvalidChecksum};
pub use source::git::GitError;
pub use source::http::HttpError;
pub use source::image::{ImageError, ImagePlace, ResolveMode, ResolvedImage};
pub use source::metadata::{Extras, GitMetadata, HttpMetadata, SourceMetadata, newest_file};
pub use worker::{Entitlements, Options, Session, Worker};
