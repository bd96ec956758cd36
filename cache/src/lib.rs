//! The near end of the store: layers in their forms, and the names for them.
//!
//! ```text
//! worker ─▶ Cache ─┬─ add_tar_layer · add_blob_layer · add_external · new_mutable ─▶ ImmutableRef
//!                  ├─ ImmutableRef: view · directories · layer_blobs   (forms, made when needed)
//!                  ├─ content · images · cache_mount
//!                  └─ keys · result                                     (what the solver asks)
//! ```
//!
//! 1. `store` opens it and makes refs; `db` holds the records, `content` the blobs.
//! 2. `layer`, `view` and `checksum` know what a layer is; they know nothing of the store.
//! 3. `forms`, `mutable` and `blobs` turn one form of a layer into another.
//! 4. `owner`, `usage` and `gc` decide what stays.
//!
//! Mounts nothing. Never sees an op. A blob exists only whole and verified; a committed layer never changes.
mod error;
mod clock;
mod db; // the records
mod owner; // who uses the store
mod content; // the blobs
pub mod layer; // one change set in its forms
pub mod view; // layers read as one tree
pub mod checksum; // content digests of paths
pub mod stat_cache; // what was known of a context
mod refs; // held results
mod store; // where they are made and found
mod forms; // tree, tar, directory, fetched blob
mod mutable; // a directory being written
mod blobs; // packed layers
mod cache_mount; // RUN --mount=type=cache
mod images; // the builder's own image store
mod keys_db; // cache keys
mod results; // what keys lead to
pub mod remote; // caches of other machines
mod usage; // what takes how many bytes
mod filter; // which records are meant
mod gc; // what may go
mod watch; // what running steps write

pub use blobs::{CompressionChoice, LayerBlob};
pub use cache_mount::{CacheMount, Sharing};
pub use content::{ContentStore, Ingest};
pub use error::{CacheError, Result};
pub use filter::{Filter, FilterError, Key, Test};
pub use forms::{Aside, Meter, NoMeter};
pub use gc::PruneOptions;
pub use images::{Image, Images};
pub use keys_db::KeysDb;
pub use mutable::MutableRef;
pub use owner::Lease;
pub use refs::{ImmutableRef, Layer, LayerId, RecordInfo, RecordKind, RefId};
pub use store::{Blob, Cache, Counters, Options, Origin, RemoteError, Remotes};
pub use usage::UsageRecord;
pub use watch::Watch;
