//! Agents of the client as a build gets to see them: keys from files served by ourselves, or another agent's, and
//! nothing but listing and signing either way.
//!
//! ```text
//! key files ─▶ file ─▶ Keyring ──┐
//!                                ├─▶ Serving (a socket only we may enter) ─▶ SshAgent ─▶ steps, git
//! agent's socket ─▶ filter ──────┘
//! ```
//!
//! 1. `wire` reads and writes messages of the agent protocol (draft-miller-ssh-agent, sections 3 to 5).
//! 2. `file` reads private keys as ssh-keygen and openssl write them; `keyring` lists them and signs.
//! 3. `serve` answers one connection after the other until nobody holds it any more.
//!
//! Never: adding, removing or locking keys, or any other request of a build that changes an agent of the user's
//! (`raw=true` hands the socket on as it is); a key in a log or in an error.
mod wire;
mod file;
mod keyring;
mod serve;

pub use file::KeyError;
pub use keyring::Keyring;
pub(crate) use serve::{Answers, Serving};

#[cfg(test)]
mod tests;
