//! The exit codes, a documented list.

/// What `--help` says about exit codes.
pub(super) const HELP: &str = "\
Exit codes:
  0    done
  1    the build failed, or what was asked for cannot be done: your move
  2    the command line was not understood
  3    this machine, its disk, the network or a registry stood in the way
  4    a fault of the builder itself
  130  cancelled (Ctrl-C); 143 by SIGTERM
  `run` ends with the exit code of the command (128 + signal if one ended it),
  125 if it could not be set up, 126 if it could not be started, 127 if it was not found";

/// With what the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

impl ExitStatus {
    /// Done.
    pub const DONE: ExitStatus = ExitStatus(0);
    /// The user's move.
    pub const USER: ExitStatus = ExitStatus(1);
    /// The command line was not understood.
    pub const USAGE: ExitStatus = ExitStatus(2);
    /// The machine's, the network's or a registry's fault.
    pub const ENVIRONMENT: ExitStatus = ExitStatus(3);
    /// Our fault.
    pub const INTERNAL: ExitStatus = ExitStatus(4);
    /// Ctrl-C.
    pub const INTERRUPTED: ExitStatus = ExitStatus(130);
    /// SIGTERM.
    pub const TERMINATED: ExitStatus = ExitStatus(143);
    /// `run`: could not be set up.
    pub const RUN_SETUP: ExitStatus = ExitStatus(125);
    /// `run`: could not be started.
    pub const RUN_NOT_STARTED: ExitStatus = ExitStatus(126);
    /// `run`: was not found.
    pub const RUN_NOT_FOUND: ExitStatus = ExitStatus(127);
}
