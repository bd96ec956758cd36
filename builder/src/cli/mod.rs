//! The command line.
mod args;
mod build_flags;
mod values;
mod contexts;
mod outputs;
mod install;
mod exit;

pub use args::{Cli, Command, command};
pub use exit::ExitStatus;
