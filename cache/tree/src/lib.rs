//! What a directory is to a builder: entries in one defined order, read and changed beneath a root.
//!
//! ```text
//! bytes ─▶ path (cleaned, cannot escape) ─▶ pattern (wanted?) ─▶ root (descriptors) ─▶ walk ─▶ entries in order
//!                                                                  └──▶ copy (contents, the cheapest way)
//! ```
//!
//! 1. [`RootPath`] is a path inside a root: it has no `..`, no leading `/`, and orders as BuildKit orders.
//! 2. [`Entry`] is everything a layer or a context says about one path, without its contents.
//! 3. [`Root`] opens, creates and removes beneath a directory descriptor; no path is ever joined as a string.
//! 4. [`walk`] lists a whole tree on all cores and returns it in order.
//! 5. [`ContextFilter`] says what of a context is listed; `follow` finds the links along wanted paths.
//! 6. [`copy`] moves contents by reflink, else inside the kernel, else by bytes.
//!
//! Nothing here knows images, layers or tar. Nothing here follows a symbolic link unless its name says so.
mod path;
mod entry;
mod pattern;
mod root;
mod create;
mod attributes;
mod walk;
mod follow;
mod select;
pub mod copy;
mod error;
#[cfg(test)]
mod testing;

pub use entry::{Entry, Kind, Timestamp};
pub use error::{Error, Result};
pub use path::{MAX_PATH_BYTES, MAX_PATH_DEPTH, PathError, RootPath};
pub use pattern::{MatchInfo, PatternError, PatternSet, go_match, read_ignore_file};
pub use root::{DirItem, Metadata, Root, StatId};
pub use select::{ContextFilter, Matched};
pub use walk::{Everything, Filter, Found, Visit, WalkOptions, walk};
