//! A daemon of the program, for tests that build through one.
use crate::Program;
use anyhow::{Result, bail};
use std::fs;
use std::path::Path;

/// A daemon on a program's root; ended when dropped.
#[derive(Debug)]
pub struct Daemon {
    /// `unix://…`
    pub address: String,
    child: std::process::Child,
}

impl Daemon {
    /// Starts one whose socket and log lie in `place`; returns when it listens.
    ///
    /// # Errors
    /// It does not serve.
    pub fn start(program: &Program, place: &Path) -> Result<Daemon> {
        let socket = place.join("daemon.sock");
        let address = format!("unix://{}", socket.display());
        let log = fs::File::create(place.join("daemon.log"))?;
        let mut child = program
            .command(&[
                "serve",
                "--addr",
                &address,
                "--allow-insecure-entitlement=network.host,security.insecure",
            ])
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let begun = std::time::Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let ended = child.try_wait()?;
            if ended.is_some() || begun.elapsed() > std::time::Duration::from_secs(30) {
                let said = fs::read_to_string(place.join("daemon.log"))?;
                bail!("the daemon does not serve ({ended:?}): {said}");
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(Daemon { address, child })
    }

    /// Makes `build` go there.
    pub fn variable(&self) -> (String, String) {
        ("BUILDER_HOST".to_owned(), self.address.clone())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
