//! The actions of a file op, done as bookkeeping on a view: nothing is mounted, the base is never unpacked.
//!
//! ```text
//! base view ─▶ Stage ─▶ copy, make, symlink, remove, unpack (in order) ─▶ Stage::write ─▶ one tar layer
//! source views ────────────┘ (contents stay where they are until the layer is written)
//! ```
//!
//! The layer holds what BuildKit's overlay would hold after the same calls: what was made or changed, the directories on
//! the way to it, and a whiteout for each thing of the base that is gone.
mod error;
mod stage;
mod wildcard;
mod mode;
mod owner;
mod make;
mod symlink;
mod remove;
mod copy;
mod unpack;

pub use copy::copy;
pub use error::FileError;
pub use make::{mkdir, mkfile};
pub use owner::{Ids, find_owner};
pub use remove::remove;
pub use stage::Stage;
pub use symlink::symlink;

#[cfg(test)]
mod tests;
