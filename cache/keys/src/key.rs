//! The names a key store works with.
//!
//! | name | made of | never made of |
//! |---|---|---|
//! | root [`KeyId`] | op or content digest, output index | host, time, session |
//! | inner [`KeyId`] | op digest, output, first known key and selector of every input | the other alternatives |
//! | [`Link`] | input index, output index, op digest, selector | the keys it joins |
//!
//! A content key is a root key whose output is [`CONTENT_OUTPUT`].

use std::fmt;
use std::time::SystemTime;

use oci::Digest;

/// The output index of a key that names content rather than an output of an op.
pub const CONTENT_OUTPUT: i32 = -1;

/// The part of an input that matters, as the digest of its paths; `None` for the whole input.
pub type Selector = Option<Digest>;

/// The name of a key in a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Digest);

impl KeyId {
    /// Names the output `output` of an op without inputs, or content with [`CONTENT_OUTPUT`].
    ///
    /// The same name is written to exported caches, so it is fixed to the byte:
    /// `sha256("sha256:<hex>@<output>")`.
    #[must_use]
    pub fn root(digest: &Digest, output: i32) -> Self {
        Self(Digest::of(format!("{digest}@{output}").as_bytes()))
    }

    /// Names a root that only this process knows; it never equals a [`KeyId::root`].
    #[must_use]
    pub fn local(digest: &Digest, output: i32) -> Self {
        Self(Digest::of(format!("local:{digest}@{output}").as_bytes()))
    }

    /// Takes a name as it was stored.
    #[must_use]
    pub fn from_digest(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest behind the name, for storing it.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({})", self.0)
    }
}

/// How one key leads to another: as input `input` of the op `digest`, whose output `output` it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// Index of the input the link starts from.
    pub input: u32,
    /// Index of the op's output the link leads to.
    pub output: i32,
    /// The op's own digest.
    pub digest: Digest,
    /// The part of the input that matters.
    pub selector: Selector,
}

/// The name of a stored result; only the store of results understands it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResultId(String);

impl ResultId {
    /// Takes the name a result store gave.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The name as given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ResultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResultId({})", self.0)
    }
}

/// A result filed under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name of the result.
    pub result: ResultId,
    /// When it was made; the newest of several is preferred.
    pub created: SystemTime,
}
