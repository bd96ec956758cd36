//! What is stated about a build: how it was made (provenance) and what is in it (SBOM).
//!
//! ```text
//! attest:… ─▶ asked ──────────────────────────────────────────────┐
//! frontends' questions ─▶ scope ─┐                                  ▼
//! definitions, pins of sources ──┴─▶ capture ─▶ provenance ─▶ export::Attestation
//! ```
//!
//! 1. `asked` reads what is to be stated.
//! 2. `scope` notes what each frontend was asked, and what it looked at.
//! 3. `capture` is what one result was made from: sources with what they were found to be, secrets, networks.
//! 4. `provenance` says that in the words of SLSA, v1 or v0.2.
//!
//! Names of secrets are stated, never their values; user info of addresses is masked.
mod asked; // attributes → choices
mod capture; // what a definition is made from
mod scope; // what frontends were asked and looked at
mod run; // when, and as what, a build ran
mod materials; // sources as statements name them
mod op_json; // ops as BuildKit prints them
mod steps; // a definition, step by step
mod provenance; // all of it as a predicate
mod scan; // a scanner's run as a definition
mod bundle; // statements in files

pub use asked::AskedError;
pub(crate) use asked::{Asked, Provenance, Sbom};
pub use bundle::ClaimError;
pub(crate) use bundle::{Claim, SPDX, core_first};
pub(crate) use capture::{ImageSource, Pins, pins};
pub(crate) use op_json::protojson;
pub(crate) use provenance::Stating;
pub(crate) use run::Run;
pub use scan::ScanError;
pub(crate) use scan::Scanner;
pub(crate) use scope::{Request, Scope};
