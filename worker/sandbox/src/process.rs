//! A started process, as the builder holds it: a descriptor to signal it by, and a line on which its end is told.
//!
//! Dropping a [`Process`] kills what it stands for; the spawner sees the line close.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::wire::{self, Report};

/// Where stdin, stdout and stderr of a process go.
#[derive(Debug)]
pub enum Stdio {
    /// The three descriptors.
    Descriptors {
        /// Read by the process.
        stdin: OwnedFd,
        /// Written by the process.
        stdout: OwnedFd,
        /// Written by the process.
        stderr: OwnedFd,
    },
    /// A new terminal of the container for all three; it becomes the controlling one and `/dev/console`. What comes
    /// out of it and goes into it passes through [`Process::terminal`].
    Terminal(Size),
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl Default for Size {
    /// That of terminals that have not been told any.
    fn default() -> Self {
        Self {
            rows: 24,
            columns: 80,
        }
    }
}

/// The controlling end of a terminal that a process was started in.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Tells the programs in it that the window has another size.
    ///
    /// # Errors
    /// Those of `TIOCSWINSZ`.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        Ok(rustix::termios::tcsetwinsize(&self.0, size.into())?)
    }

    /// One more descriptor of it, for a reader or writer of its own. Reading ends with `EIO` when the last process
    /// in it has closed it.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Size> for rustix::termios::Winsize {
    fn from(size: Size) -> Self {
        Self {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        }
    }
}

impl Stdio {
    /// Nothing to read; two pipes to write to, whose reading ends (stdout, stderr) come back.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub fn pipes() -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let stdin = std::fs::File::open("/dev/null")?.into();
        let (out, stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (err, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok((
            Self::Descriptors {
                stdin,
                stdout,
                stderr,
            },
            out,
            err,
        ))
    }

    /// Nothing to read, everything written is dropped.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn null() -> io::Result<Self> {
        let open = || {
            std::fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map(OwnedFd::from)
        };
        Ok(Self::Descriptors {
            stdin: open()?,
            stdout: open()?,
            stderr: open()?,
        })
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code or the signal that ended it.
    pub status: Status,
    /// Whether the memory limit of its cgroup killed one of its processes.
    pub is_out_of_memory: bool,
    /// What it used.
    pub usage: Usage,
}

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Status {
    /// The code a shell would report: 128 + n for signal n.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// What a process and its descendants used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Time in user mode.
    pub user: Duration,
    /// Time in the kernel.
    pub system: Duration,
    /// Largest memory of the cgroup where there is a memory controller, else of the largest process; bytes.
    pub peak_memory_bytes: u64,
}

/// The way into the container of a process, as long as that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorway(pub(crate) u64);

/// A process that runs, or whose end has not been asked for yet.
#[derive(Debug)]
pub struct Process {
    report: OwnedFd,
    pidfd: OwnedFd,
    notes: Vec<String>,
    number: u64,
    terminal: Option<Terminal>,
    exit: Option<Exit>,
}

impl Process {
    /// Waits for the answer to a request that has just been sent.
    pub(crate) fn started(report: OwnedFd) -> Result<Self, Error> {
        let answer = wire::receive(report.as_fd()).map_err(|source| Error::Talk {
            what: "whether the process started",
            source,
        })?;
        match answer {
            Some((Report::Started { notes, number }, descriptors)) if !descriptors.is_empty() => {
                let mut descriptors = descriptors.into_iter();
                Ok(Self {
                    report,
                    pidfd: descriptors.next().expect("it was asked for in the pattern"),
                    notes,
                    number,
                    terminal: descriptors.next().map(Terminal),
                    exit: None,
                })
            }
            Some((Report::Failed(failure), _)) => Err(failure.into()),
            _ => Err(Error::SpawnerGone {
                doing: "starting a process",
            }),
        }
    }

    /// What was asked for but could not be had and was done without, in plain words.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The way into its container for further processes ([`crate::Spawner::enter`]).
    #[must_use]
    pub fn doorway(&self) -> Doorway {
        Doorway(self.number)
    }

    /// The controlling end of its terminal, where one was asked for and has not been taken yet.
    #[must_use]
    pub fn terminal(&mut self) -> Option<Terminal> {
        self.terminal.take()
    }

    /// Waits until the process has ended and everything it left behind is removed. Blocks.
    ///
    /// # Errors
    /// [`Error::SpawnerGone`] when the spawner died; then the process is dead too.
    pub fn wait(&mut self) -> Result<Exit, Error> {
        if let Some(exit) = &self.exit {
            return Ok(exit.clone());
        }
        let answer = wire::receive(self.report.as_fd()).map_err(|source| Error::Talk {
            what: "how the process ended",
            source,
        })?;
        match answer {
            Some((Report::Ended(exit), _)) => {
                self.exit = Some(exit.clone());
                Ok(exit)
            }
            _ => Err(Error::SpawnerGone {
                doing: "waiting for a process",
            }),
        }
    }

    /// A descriptor that becomes readable when [`Process::wait`] will not block.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// A handle that can end the process from elsewhere while this one waits.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn killer(&self) -> io::Result<Killer> {
        Ok(Killer {
            pidfd: self.pidfd.try_clone()?,
        })
    }

    /// Sends a signal to the process, which is pid 1 of its namespace. One that has ended is left alone.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        signal_to(&self.pidfd, signal)
    }

    /// Ends the process and, as it is pid 1, all its descendants.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn kill(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)
    }
}

/// Signals a process, or ends it; see [`Process::killer`].
#[derive(Debug)]
pub struct Killer {
    pidfd: OwnedFd,
}

impl Killer {
    /// One more of it.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            pidfd: self.pidfd.try_clone()?,
        })
    }

    /// Sends a signal to the process; one that has ended is left alone.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2); `EINVAL` for a number that is no signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        signal_to(&self.pidfd, signal)
    }

    /// Ends the process and all its descendants; one that has ended is left alone.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn kill(&self) -> io::Result<()> {
        signal_to(&self.pidfd, libc::SIGKILL)
    }
}

fn signal_to(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let signal = Signal::from_named_raw(signal).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}
