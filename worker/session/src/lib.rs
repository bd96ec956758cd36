//! The line to whoever asked for a build: its directories, secrets, agents, credentials and stdin.
//!
//! ```text
//! worker ─▶ Caller ─┬─▶ LocalCaller   the asker is this very process: everything is read in place
//!                   └─▶ (a tunnel)    the asker is a client on the wire; arrives with the services
//! ```
//!
//! 1. `caller` is the trait the worker asks through; it never asks anybody else for the user's things.
//! 2. `secret` holds bytes that can be used but not printed.
//! 3. `ssh` is a handle on an agent of the caller.
//! 4. `local` answers from this process: paths, values and sockets that were named on the command line.
//!
//! Never decides whether something is *allowed*: entitlements are the builder's. Reads no environment:
//! what an environment variable held is handed in as a value.
pub mod wire;
mod secret;
mod ssh;
mod caller;
mod local;

pub use caller::{Caller, LocalDir, RegistryCredential, SessionError, SessionId, Upload};
pub use local::{CredentialLookup, LocalCaller, LocalOptions, NoCredentials, SecretSource, SshSource};
pub use secret::{MAX_SECRET_BYTES, Secret};
pub use ssh::SshAgent;
