//! A terminal for a process in the sandbox, joined to the user's own.
//!
//! ```text
//! stdin (raw) ─▶ controller ═ pty ═ process        window size follows the user's
//! stdout ◀────── controller
//! ```
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Result, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::thread::JoinHandle;

/// Our end of the terminal; the user's is as before again when this is dropped.
pub(super) struct Pty {
    controller: File,
    before: Option<Termios>,
    output: Option<JoinHandle<()>>,
}

impl Pty {
    /// A terminal, and the end the process gets.
    pub(super) fn open() -> Result<(Pty, OwnedFd)> {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&controller)?;
        unlockpt(&controller)?;
        let name = ptsname(&controller, Vec::new())?;
        let path = std::ffi::OsStr::from_bytes(name.to_bytes());
        let no_controlling = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
        let user = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(no_controlling)
            .open(path)?;
        let pty = Pty {
            controller: File::from(controller),
            before: None,
            output: None,
        };
        pty.follow_window();
        Ok((pty, user.into()))
    }

    /// Passes bytes both ways from now on; the user's terminal hands every key through.
    pub(super) fn join(&mut self) -> Result<()> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        self.before = Some(before);
        let (mut keys, mut screen) = (self.controller.try_clone()?, self.controller.try_clone()?);
        // Waits for a key when the process has ended already; it goes with this program.
        std::thread::Builder::new()
            .name("terminal-in".into())
            .spawn(move || {
                let _ = copy(&mut std::io::stdin(), &mut keys);
            })?;
        let output = std::thread::Builder::new()
            .name("terminal-out".into())
            .spawn(move || {
                // Ends with an error when the last user of the terminal is gone.
                let _ = copy(&mut screen, &mut std::io::stdout());
            })?;
        self.output = Some(output);
        Ok(())
    }

    /// Gives the process's terminal the size of the user's window.
    pub(super) fn follow_window(&self) {
        if let Ok(size) = tcgetwinsize(std::io::stdin()) {
            // A size that cannot be set is no reason to stop.
            let _ = tcsetwinsize(&self.controller, size);
        }
    }

    /// Waits until all output has been shown, once the process has ended.
    pub(super) fn drain(&mut self) {
        if let Some(output) = self.output.take() {
            let _ = output.join();
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<()> {
    let mut buffer = [0; 8192];
    loop {
        let bytes = from.read(&mut buffer)?;
        if bytes == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..bytes])?;
        to.flush()?;
    }
}
