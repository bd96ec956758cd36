//! The words between the builder and its spawner: small messages on a socket, with descriptors beside them.
//!
//! ```text
//! builder ── Request + [report, spec file, stdio…, network] ─▶ spawner     (one socket for all)
//! builder ◀─ Report::{Started + [pidfd], Failed, Ended} ────── spawner     (one socket per process)
//! ```
//!
//! Both ends are the same program, so there is no version; the spec travels in a sealed memory file, because it
//! may be larger than a message.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Step;
use crate::process::{Exit, Size};
use crate::spec::Spec;

/// At most so many descriptors accompany one message.
const MAX_DESCRIPTORS: usize = 8;
/// At most so many bytes are in one message.
const MAX_MESSAGE_BYTES: usize = 32 << 10;

/// Asks for a process. Descriptors: report socket, spec file, then those that are announced, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// A new terminal for all three of stdin, stdout and stderr; else three descriptors come.
    pub(crate) terminal: Option<Size>,
    /// A network namespace comes last.
    pub(crate) network: bool,
}

/// What the spec file holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// A step in a container.
    Step(Box<Spec>),
    /// A further process in the container of the step with this number.
    Enter(u64, Box<Spec>),
    /// A program of the host that sees prepared mounts.
    Tool(Box<crate::tool::Tool>),
}

/// What the spawner says of one process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It runs; its pidfd comes along, and the controlling end of its terminal if it has one.
    Started {
        /// What it is called here.
        number: u64,
        /// What could not be had and was done without.
        notes: Vec<String>,
    },
    /// It could not be started.
    Failed(Failure),
    /// It ended.
    Ended(Exit),
}

/// Why a process could not be started.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// A step of the set-up failed with this error number.
    Setup(Step, i32),
    /// The program is not there.
    NotFound(String),
    /// The program cannot be executed.
    Exec(String, i32),
    /// The spec makes no sense.
    Invalid(String),
}

impl From<Failure> for crate::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Setup(step, errno) => Self::Setup { step, errno },
            Failure::NotFound(program) => Self::NotFound { program },
            Failure::Exec(program, errno) => Self::Exec { program, errno },
            Failure::Invalid(text) => Self::Invalid(text),
        }
    }
}

/// Adds the step to a kernel error.
pub(crate) trait During<T> {
    /// The value, or the failure of `step`.
    fn during(self, step: impl FnOnce() -> Step) -> Result<T, Failure>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, step: impl FnOnce() -> Step) -> Result<T, Failure> {
        self.map_err(|error| Failure::Setup(step(), error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

impl<T> During<T> for rustix::io::Result<T> {
    fn during(self, step: impl FnOnce() -> Step) -> Result<T, Failure> {
        self.map_err(|error| Failure::Setup(step(), error.raw_os_error()))
    }
}

/// A pair of connected sockets that keep messages apart.
///
/// # Errors
/// Those of socketpair(2).
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message with descriptors.
///
/// # Errors
/// Those of sendmsg(2); `EPIPE` when the other end is gone.
pub(crate) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message with its descriptors; `None` when the other end is closed.
///
/// # Errors
/// Those of recvmsg(2), and `InvalidData` for anything but a whole message.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0_u8; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&bytes[..received.bytes])?;
    Ok(Some((message, descriptors)))
}

/// Writes `job` into a sealed memory file.
///
/// # Errors
/// Those of memfd_create(2) and write(2), and `InvalidInput` for a path that is not UTF-8.
pub(crate) fn write_job(job: &Job) -> io::Result<OwnedFd> {
    let bytes =
        serde_json::to_vec(job).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let memory = rustix::fs::memfd_create(c"sandbox-job", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&bytes)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
    Ok(file.into())
}

/// Reads what [`write_job`] wrote.
///
/// # Errors
/// Those of read(2), and `InvalidData` for anything else.
pub(crate) fn read_job(file: OwnedFd) -> io::Result<Job> {
    let mut file = std::fs::File::from(file);
    io::Seek::rewind(&mut file)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_together() {
        let (here, there) = pair().expect("socketpair");
        let job = Job::Step(Box::new(Spec {
            args: vec!["true".into()],
            ..Spec::default()
        }));
        let file = write_job(&job).expect("memfd");
        let request = Request {
            terminal: Some(Size::default()),
            network: true,
        };
        send(here.as_fd(), &request, &[file.as_fd()]).expect("send");
        let (got, mut fds): (Request, _) = receive(there.as_fd()).expect("receive").expect("a message");
        assert!(got.terminal == Some(Size::default()) && got.network);
        let Job::Step(spec) = read_job(fds.remove(0)).expect("job") else {
            panic!("a step was sent")
        };
        assert_eq!(spec.args, ["true"]);
        drop(here);
        assert!(receive::<Request>(there.as_fd()).expect("end").is_none());
    }
}
