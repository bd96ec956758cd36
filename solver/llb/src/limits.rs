//! How large a definition may be (SECURITY: decode once, at the door, within limits).

/// Ops in one definition.
pub const MAX_OPS: usize = 50_000;
/// Bytes of one op: a Dockerfile's heredocs are inside ops, so as much as a Dockerfile may have.
pub const MAX_OP_BYTES: usize = 32 << 20;
/// Inputs, mounts, actions or other repeated parts of one op.
pub const MAX_PARTS: usize = 10_000;
/// Definitions inside definitions (build ops, how a source file was had).
pub const MAX_NESTING: usize = 4;
/// Bytes of a name that is put together of the names of inputs (merge, diff).
pub const MAX_NAME: usize = 1 << 10;
