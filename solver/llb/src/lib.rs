//! llb
