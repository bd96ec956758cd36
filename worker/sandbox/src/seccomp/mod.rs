//! Which system calls a step may make, as a program for the kernel.
//!
//! ```text
//! capabilities ─▶ profile: rules by name ─▶ table: numbers per architecture ─▶ compile: BPF ─▶ (kept in memory)
//!                                       ─▶ runtime: for the configuration of another OCI runtime
//! ```
//!
//! The rules are those of Docker's default profile of 2026. The program decides by binary search on the number
//! of the call, for the native architecture and the 32-bit ones it can run.

mod profile;
mod table;
mod compile;
mod runtime;

pub use runtime::oci_profile;

use std::collections::HashMap;
use std::rc::Rc;

use crate::spec::Capabilities;

/// Compiled filters, one per set of capabilities.
#[derive(Default)]
pub(crate) struct Filters {
    compiled: HashMap<u64, Rc<[libc::sock_filter]>>,
}

impl Filters {
    /// The filter for a process with `capabilities`; `None` where this architecture has no profile.
    pub(crate) fn get(&mut self, capabilities: Capabilities) -> Option<Rc<[libc::sock_filter]>> {
        if let Some(found) = self.compiled.get(&capabilities.0) {
            return Some(Rc::clone(found));
        }
        let program: Rc<[libc::sock_filter]> = compile::program(capabilities)?.into();
        self.compiled.insert(capabilities.0, Rc::clone(&program));
        Some(program)
    }
}
