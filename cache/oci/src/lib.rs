//! The nouns of the OCI specs. Does no I/O.

mod digest;
mod platform;

pub use digest::{ChainId, DiffId, Digest, ParseDigestError};
pub use platform::{ParsePlatformError, Platform};
