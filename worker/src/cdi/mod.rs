//! Devices of this machine that a step asks for by name (`RUN --device`): Container Device Interface, 0.3 to 1.1.
//!
//! ```text
//! files of /etc/cdi, /var/run/cdi … ─ file ─▶ Registry ─┐
//! names of the step, what the build may use ────────────┴─ grant ─▶ Devices ─ edits ─▶ Spec
//! ```
//!
//! 1. `file` reads what vendors describe, JSON or YAML; read anew for every step that asks, as devices come and go.
//! 2. `grant` finds what the names mean and refuses what the build was not allowed.
//! 3. `edits` puts variables, nodes, mounts, groups and hooks into the description of the step.
//!
//! Never: a device that no file describes; a part of a description left out in silence.
mod file;
mod grant;
mod edits;

pub(crate) use edits::apply;
pub(crate) use file::Registry;
pub(crate) use grant::known;
pub use grant::{DeviceGrants, InvalidGrant, KnownDevice};

/// Why a step cannot have its devices.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No description has it.
    #[error("required device {name:?} is not registered{}", unread(.faults))]
    Unknown {
        /// As the step calls it.
        name: String,
        /// Descriptions that could not be read.
        faults: Vec<String>,
    },
    /// The build may not use them.
    #[error("{} requested by the build but not allowed", listed(.0))]
    Forbidden(Vec<String>),
    /// The description asks for what steps cannot have.
    #[error("device {device}: {reason}")]
    Unsupported {
        /// Its full name.
        device: String,
        /// What it is.
        reason: String,
    },
    /// A node it describes is not there.
    #[error("device {device}: {path}: {source}")]
    Node {
        /// Its full name.
        device: String,
        /// The node on this machine.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

fn unread(faults: &[String]) -> String {
    match faults {
        [] => String::new(),
        some => format!(" (not read: {})", some.join("; ")),
    }
}

fn listed(names: &[String]) -> String {
    match names {
        [one] => format!("device {one} is"),
        more => format!("devices {} are", more.join(", ")),
    }
}

#[cfg(test)]
mod tests;
