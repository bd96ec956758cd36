//! The line to whoever asked for a build: its directories, secrets, agents, credentials and stdin.
//!
//! ```text
//! worker ─▶ Caller ─┬─▶ LocalCaller   the asker is this very process: everything is read in place
//!                   └─▶ RemoteCaller  the asker is a client on the wire, reached through the tunnel it opened
//! ```
//!
//! 1. `caller` is the trait the worker asks through; it never asks anybody else for the user's things.
//! 2. `secret` holds bytes that can be used but not printed.
//! 3. `ssh` is a handle on an agent of the caller; `agent` serves key files, and keeps builds from changing agents.
//! 4. `local` answers from this process: paths, values and sockets that were named on the command line; `folder` is its
//!    stores of blobs.
//! 5. `tokens`: how a client fetches tokens for registries itself, and shows who it is.
//! 6. `tunnel` is gRPC inside a stream of bytes; `wire` its messages; `transfer` directories over it, `hand` large files
//!    beside it.
//! 7. `received` keeps what clients sent, so that next time only changes travel.
//! 8. `remote` answers by asking a client (`blobs` for those of its stores); `sessions` finds the client of a build.
//! 9. `provider` is the client's end: it answers a daemon with what a `LocalCaller` has.
//!
//! Never decides whether something is *allowed*: entitlements are the builder's. Reads no environment:
//! what an environment variable held is handed in as a value.
pub mod wire;
mod secret;
mod ssh;
mod agent;
mod caller;
mod tokens;
mod folder;
mod local;
pub mod tunnel;
pub mod hand;
pub mod transfer;
mod received;
mod blobs;
mod remote;
mod sessions;
pub mod provider;

pub use agent::{KeyError, Keyring};
pub use caller::{
    Caller, FileSend, LocalDir, LocalRequest, Meter, RegistryCredential, SessionError, SessionId, Upload,
};
pub use local::{CredentialLookup, LocalCaller, LocalOptions, NoCredentials, SecretSource, SshSource};
pub use received::{Copy, Kept, Received};
pub use remote::RemoteCaller;
pub use secret::{MAX_SECRET_BYTES, Secret};
pub use sessions::{Attachment, LateCaller, Sessions};
pub use ssh::SshAgent;
pub use tokens::{RegistryToken, TokenAuthority, TokenQuestion, TokenSource};
