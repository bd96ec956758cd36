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
mod error;
mod suggest;
mod words;
mod parse;
mod lint;
mod remote;
mod context;
mod metadata;
mod named;
mod stages;
mod lower;
mod answer;
mod dockerfile;
mod requests; // lint, outline, targets
pub mod pin;

/// The version of the Dockerfile syntax that is understood.
pub const DOCKERFILE_VERSION: &str = "1.26.0";

pub use answer::{Answer, PlatformAnswer};
pub use dockerfile::{build, is_built_in};
pub use error::{Error, ErrorKind};
pub use gateway::{
    FileRequest, Gateway, GatewayError, ImagePlace, ImageRequest, ResolveMode, ResolvedImage, Warning,
};
pub use options::{Input, NoCache, Options, OptionsError, csv};
pub use remote::git_address;
pub use requests::{Report, has_request, request};
