//! What a build shows of itself, for a terminal, a log file or a program.
//!
//! ```text
//! solver events ─▶ Model ─┬─▶ plain     numbered steps, one line each
//!                         ├─▶ terminal  a block that is redrawn
//!                         └─▶ summary   what ran, what the cache served, how long
//!               └───────────▶ json      the events themselves
//! ```
//!
//! 1. `text` makes a stranger's bytes harmless to a terminal.
//! 2. `intervals` adds up the times in which a step worked.
//! 3. `model` keeps what each step has shown so far; progress groups are one step.
//! 4. the displays read the model and write lines; they never block a build on more than stderr itself.
//! 5. `screen` chooses the display and feeds it until the events end.
//!
//! Never writes to stdout: that is for results.
mod text;
mod intervals;
mod model;
mod failure;
mod plain;
mod terminal;
mod json;
mod summary;
mod screen;
pub mod wire;
#[cfg(test)]
mod recorded;

pub(crate) use intervals::Intervals;
pub use model::Model;
pub(crate) use screen::window;
pub use screen::{Kind, Look, Replay, Screen, Tap};
pub use summary::Summary;
pub(crate) use text::plain_name;
pub use text::{clip, plain_line, width};
