//! The question the solver asks the cache: which result has this key?
//!
//! ```text
//! op digest, output ─▶ root key ─┐
//!                                ├─ link (input, output, op digest, selector) ─▶ inner key ─▶ records
//! content of an input ─▶ root key┘
//! ```
//!
//! 1. `key` names things: [`KeyId`], [`Selector`], [`Link`], [`ResultId`], [`Record`].
//! 2. `store` is the question itself: the trait [`KeyStore`].
//! 3. `chain` is a key with all that is behind it, and how a store comes to know it.
//! 4. `memory` answers from memory; the store on disk is in the crate `cache`.
//! 5. `testsuite` is what every store must do; each implementation runs it in its tests.
//!
//! A result is never looked up by a hash over its inputs. Keys form a graph of links, and a key is
//! found when every input leads to it; so an input may be known by several keys at once (by its
//! definition, by its content) and each of them finds the result.
//!
//! Nothing here knows what a result is: a [`ResultId`] is a text only its store understands.

mod key;
mod store;
mod chain;
mod memory;
pub mod testsuite;

pub use chain::{CacheKey, Dependency, View};
pub use key::{CONTENT_OUTPUT, KeyId, Link, Record, ResultId, Selector};
pub use memory::MemoryStore;
pub use store::{Batch, KeyStore, StoreError};
