//! One change set, in its forms: an index of entries, a tar, a directory of an overlay.
//!
//! ```text
//! tar stream ─▶ read ─▶ stack (builder) ─▶ TreeIndex ─▶ materialise ─▶ overlay directory
//!                                             ▲  │                          │
//!                            codec (on disk) ─┘  └─▶ view (merged) ◀────────┤ scan
//!                                                       │                   ▼
//! entries + contents ─▶ write ─▶ tar + TreeIndex ◀──────┴──────────────── diff
//!                         └─▶ compress ─▶ gzip, zstd
//! ```
//!
//! 1. `index` is the tree form: entries in BuildKit's order, whiteouts, and where each content lies.
//! 2. `builder` makes one from entries that come in any order, as an archive may have them.
//! 3. `codec` is how it is kept on disk.
//! 4. `header` turns one entry into canonical tar headers; `write` streams a whole layer.
//! 5. `decompress` and `read` take a stranger's tar apart; `apply` gives it an index, a tar or a directory.
//! 6. `scan` reads an overlay's upper directory; `diff` makes the tar of it.
//! 7. `compress` makes gzip and zstd of a tar on all cores.
//!
//! Nothing here mounts. Nothing from a stranger's archive reaches a path except through [`tree::Root`].
mod index;
mod builder;
mod codec;
mod header;
mod write;
mod decompress;
mod read;
mod pax;
mod apply;
mod materialise;
mod scan;
mod diff;
mod difference;
mod compress;
mod rewrite;
mod error;

pub use apply::{Applied, Limits, index_archive, index_stream, is_tar, unpack_stream};
pub use builder::TreeBuilder;
pub use compress::{Compressed, Level, compress};
pub use decompress::{Decompressor, Sniffed, decompress, sniff};
pub use diff::diff_dir;
pub use difference::diff_views;
pub use error::LayerError;
pub use index::{EntryRef, HeaderDigest, NodeKind, Place, TreeIndex};
pub use materialise::{DirOptions, OverlayXattrs, Ownership, materialise, placed_in_dir};
pub use rewrite::rewrite_timestamps;
pub use scan::scan_upper;
pub use write::{TarLayer, TarLayerWriter};

#[cfg(test)]
mod tests;
