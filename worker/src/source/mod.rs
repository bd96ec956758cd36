//! Where things come from: a name, then a key, then a ref.
pub mod local;
