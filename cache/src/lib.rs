//! The near end of the store: layers in their forms, and the names for them.
pub mod layer;
pub mod view;
pub mod checksum;
pub mod stat_cache;
