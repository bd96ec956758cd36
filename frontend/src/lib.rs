//! Turns a Dockerfile into definitions and image configs.
//!
//! ```text
//! Options ─▶ context ─▶ Dockerfile ─▶ parse ─▶ stages ─▶ metadata ─▶ lower ─▶ Answer
//!               │                                           │           │
//!               └──────────────▶ Gateway ◀──────────────────┘           └─▶ lint ─▶ warnings
//! ```
//!
//! Questions to the world go through [`Gateway`], asked first and all at once; parsing, stages, lowering
//! and lint are functions from values to values.

mod gateway;
mod options;
mod answer;

pub use answer::{Answer, PlatformAnswer};
pub use gateway::{
    FileRequest, Gateway, GatewayError, ImagePlace, ImageRequest, ResolveMode, ResolvedImage, Warning,
};
pub use options::{Input, NoCache, Options, OptionsError};
