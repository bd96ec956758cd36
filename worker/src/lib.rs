//! Does the work: sources, steps, file ops, exports.
pub mod archive;
pub mod file;
pub mod source;
