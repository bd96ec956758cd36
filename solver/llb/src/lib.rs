//! The language between frontend, solver and worker: a graph of ops, byte-compatible with BuildKit's LLB.
//!
//! ```text
//! frontend ─▶ state ─▶ encode ─▶ Definition ─▶ decode ─▶ Graph of Vertex{Op} ─▶ solver, worker
//!                                    ▲                        └─▶ cache: op digest, selectors
//!                         other clients, over the wire
//! ```
//!
//! A vertex is named by the SHA-256 of its bytes as they came; nothing here ever re-encodes a received
//! op to name it. What is written here is written as Go writes it (fields 1, 10 and 11 before the op
//! itself, field 11 always there), so that our digests equal BuildKit's for the same graph.
//! This crate does no I/O, resolves nothing and decides nothing.

pub mod op;
pub mod attr;
mod definition;
mod error;
pub mod limits;
pub mod caps;
mod wire;
mod decode;
mod encode;
mod rewrite;
pub mod state;
pub mod cache;

#[expect(missing_docs, clippy::all, reason = "generated; the names are documented in proto/ops.proto")]
#[rustfmt::skip]
mod generated;

pub use definition::{
    CUSTOM_NAME, DOCKERFILE_COMMAND, Definition, Edge, Graph, LinuxResources, Location, OpMetadata, Position,
    ProgressGroup, Range, SourceFile, SourceInfo, Vertex,
};
pub use encode::op_bytes;
pub use error::Error;
pub use op::Op;
/// The wire types, for the rooms that speak the wire (the control and gateway services).
pub mod proto {
    pub use crate::generated::*;
}
