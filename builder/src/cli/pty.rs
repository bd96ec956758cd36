//! A terminal for a process in the sandbox, joined to the user's own.
//!
//! ```text
//! stdin (raw) ─▶ controller ═ pty of the container ═ process        window size follows the user's
//! stdout ◀────── controller
//! ```
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use sandbox::{Size, Terminal};
use std::fs::File;
use std::io::{Read, Result, Write};
use std::thread::JoinHandle;

/// Our end of the terminal; the user's is as before again when this is dropped.
pub(super) struct Pty {
    controller: Terminal,
    before: Option<Termios>,
    output: Option<JoinHandle<()>>,
}

impl Pty {
    /// The terminal a process was started in.
    pub(super) fn new(controller: Terminal) -> Pty {
        Pty {
            controller,
            before: None,
            output: None,
        }
    }

    /// The size of the user's window.
    pub(super) fn size() -> Size {
        tcgetwinsize(std::io::stdin()).map_or_else(
            |_| Size::default(),
            |size| Size {
                rows: size.ws_row,
                columns: size.ws_col,
            },
        )
    }

    /// Passes bytes both ways from now on; the user's terminal hands every key through.
    pub(super) fn join(&mut self) -> Result<()> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        self.before = Some(before);
        let end = || self.controller.try_clone().map(File::from);
        let (mut keys, mut screen) = (end()?, end()?);
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
        // A size that cannot be set is no reason to stop.
        let _ = self.controller.resize(Pty::size());
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
