//! Terminals that belong to a container: made in its own `/dev/pts`, so that `tty` names a file that is there.
//!
//! ```text
//! builder ◀── controller ══ user ──▶ stdin, stdout, stderr, /dev/console
//! ```

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;

use crate::error::Step;
use crate::process::Size;
use crate::wire::{During, Failure};

/// Both ends of one terminal.
pub(crate) struct Pair {
    /// Goes to the builder.
    pub(crate) controller: OwnedFd,
    /// Stays in the container.
    pub(crate) user: OwnedFd,
}

/// A terminal of this size in `terminals`, a mounted devpts, for the user `uid`.
pub(crate) fn open(terminals: BorrowedFd<'_>, size: Size, uid: u32) -> Result<Pair, Failure> {
    let make = || -> rustix::io::Result<Pair> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let controller = rustix::fs::openat(terminals, c"ptmx", flags, Mode::empty())?;
        rustix::pty::unlockpt(&controller)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let user = rustix::pty::ioctl_tiocgptpeer(&controller, flags)?;
        rustix::termios::tcsetwinsize(&controller, size.into())?;
        rustix::fs::fchown(&user, Some(Uid::from_raw(uid)), None)?;
        Ok(Pair { controller, user })
    };
    make().during(|| Step::Terminal)
}

impl Pair {
    /// The user's end, three times.
    pub(crate) fn stdio(&self) -> Result<[OwnedFd; 3], Failure> {
        let copy = || self.user.try_clone().during(|| Step::Terminal);
        Ok([copy()?, copy()?, copy()?])
    }
}
