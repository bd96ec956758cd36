//! A directory of the caller's, read in place: its listing is the result, its bytes stay where they are.
//!
//! ```text
//! patterns, wanted paths ─▶ tree::ContextFilter ─▶ walk ─▶ read ─▶ TreeIndex over the directory
//!                                            stat cache ────┘ (digests known from last time)
//! ```
//!
//! `read` lists on all cores and makes the tree: owner 0:0, times kept, sockets left out.
//!
//! Nothing is hashed and nothing copied here; both happen only to what is asked for later.
mod read;

pub use read::{ContextError, ContextOptions, read_context};
