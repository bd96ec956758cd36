//! What can be wrong with a definition. Whoever made the definition has to act.

use oci::Digest;

/// A definition that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes that are no definition or op at all.
    #[error("cannot read {what}")]
    Wire {
        /// Which part.
        what: String,
        /// What the decoder found.
        source: prost::DecodeError,
    },
    /// A field this builder does not know: leaving it out could change what is built.
    #[error("op {op} uses field {field} of {message}, which this builder does not know")]
    UnknownField {
        /// The op's digest.
        op: Digest,
        /// Name of the wire message.
        message: &'static str,
        /// Number of the field.
        field: u32,
    },
    /// Something in an op that makes no sense.
    #[error("op {op}: {reason}")]
    InvalidOp {
        /// The op's digest.
        op: Digest,
        /// What and why.
        reason: String,
    },
    /// A key that should be a digest.
    #[error("{what} names {found:?}, which is no digest")]
    NoDigest {
        /// Which part of the definition.
        what: &'static str,
        /// What it says.
        found: String,
    },
    /// An input that is not part of the definition.
    #[error("op {op} needs {input}, which the definition does not contain")]
    MissingInput {
        /// Who needs it.
        op: Digest,
        /// What is missing.
        input: Digest,
    },
    /// An output that the input does not have.
    #[error("op {op} uses output {index} of {input}, which has {outputs}")]
    MissingOutput {
        /// Who needs it.
        op: Digest,
        /// Whose output.
        input: Digest,
        /// Which output.
        index: u32,
        /// How many there are.
        outputs: usize,
    },
    /// Ops that need each other.
    #[error("op {op} depends on itself")]
    Cycle {
        /// One of them.
        op: Digest,
    },
    /// A definition whose last entry does not name a result.
    #[error("the definition names no result: {reason}")]
    NoResult {
        /// What the last entry is instead.
        reason: &'static str,
    },
    /// More than is allowed.
    #[error("the definition has {found} {what}; the limit is {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A graph under construction that lacks a part.
    #[error("cannot write the definition: {0}")]
    Unfinished(String),
    /// An op whose cache key cannot be worked out.
    #[error("cannot work out the cache key of op {op}: {reason}")]
    Key {
        /// The op's digest.
        op: Digest,
        /// Why.
        reason: String,
    },
}
