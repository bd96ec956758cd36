//! The builder's end: starts the helper process that clones, and asks it for processes.
//!
//! ```text
//! Spawner::start ─▶ seal our own program ─▶ clone (pid namespace) ─▶ exec it with a private argument
//!                                                └▶ main ─▶ spawner_main ─▶ serve
//! Spawner::step(Spec, Stdio, network) ─▶ Process
//! ```
//!
//! The program the helper executes is a read-only view of ours that nothing can write through, so that a container
//! which gets hold of `/proc/<pid>/exe` cannot change the host's file (CVE-2019-5736).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::Error;
use crate::process::{Doorway, Process, Stdio};
use crate::spec::Spec;
use crate::sys::{self, CStringArray, CloneOptions};
use crate::tool::Tool;
use crate::wire::{self, Job, Request};

/// The first argument by which [`spawner_main`] knows that this process is a spawner.
const ARGUMENT: &str = "--sandbox-spawner";
/// Where the spawner finds its socket.
const SOCKET: i32 = 3;

/// Serves as a spawner and never returns, when this process was started as one; else returns at once.
/// To be called first thing in `main`, before any thread is started.
pub fn spawner_main() {
    let mut args = std::env::args_os();
    if args.nth(1).is_none_or(|argument| argument != ARGUMENT) {
        return;
    }
    let instance = args
        .next()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default();
    match File::open(format!("/proc/self/fd/{SOCKET}")) {
        // A socket cannot be opened through /proc: this error is what an open descriptor gives.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
        _ => sys::exit_now(120),
    }
    let socket = sys::inherited(SOCKET);
    crate::serve::serve(&socket, &instance)
}

/// Tests have no `main` of their own: this runs before the harness's.
#[cfg(any(test, feature = "before-main"))]
mod before_main;

/// A helper process that starts steps; it and all it started die with this value.
#[derive(Debug)]
pub struct Spawner {
    socket: OwnedFd,
    pidfd: OwnedFd,
    /// Where this process stepped aside for the groups of steps; left when the helper has ended.
    _room: Option<crate::cgroup::Room>,
}

impl Spawner {
    /// Starts the helper. Costs a few milliseconds; one is enough for a whole program.
    ///
    /// # Errors
    /// [`Error::StartSpawner`]; without root one must have called [`crate::rootless::enter`] before.
    pub fn start() -> Result<Self, Error> {
        let failed = |what| move |source| Error::StartSpawner { what, source };
        let (ours, theirs) = wire::pair().map_err(failed("make a socket pair"))?;
        let program = sealed_program().map_err(failed("make a read-only view of this program"))?;
        let instance = crate::cgroup::instance_name().unwrap_or_else(|| "unknown".into());
        let room = crate::cgroup::Room::make(&instance);
        let args = ["builder", ARGUMENT, &instance].map(|text| CString::new(text).expect("no zero byte"));
        let args = CStringArray::new(args.into());
        let env = CStringArray::new(Vec::new());
        let theirs = above_stdio(theirs).map_err(failed("move a descriptor"))?;
        let program = above_stdio(program).map_err(failed("move a descriptor"))?;
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .and_then(|null| above_stdio(null.into()))
            .map_err(failed("open /dev/null"))?;
        let mut errno = 0;
        let mut child = || {
            errno = become_spawner(theirs.as_fd(), null.as_fd(), program.as_fd(), &args, &env)
                .raw_os_error()
                .unwrap_or(libc::EIO);
            127
        };
        let options = CloneOptions {
            flags: libc::CLONE_NEWPID,
            cgroup: None,
        };
        let cloned = sys::clone_vfork(&options, &mut child).map_err(failed("clone into a pid namespace"))?;
        if errno != 0 {
            return Err(failed("execute this program again")(
                io::Error::from_raw_os_error(errno),
            ));
        }
        Ok(Self {
            socket: ours,
            pidfd: cloned.pidfd,
            _room: room,
        })
    }

    /// Starts a step. `network` is the namespace of a step whose spec says [`crate::spec::Network::Own`].
    /// Blocks for the few milliseconds that takes.
    ///
    /// # Errors
    /// [`Error::Setup`], [`Error::NotFound`], [`Error::Exec`] or [`Error::Invalid`] say why it did not start;
    /// [`Error::SpawnerGone`] that nothing will start any more.
    pub fn step(&self, spec: &Spec, stdio: Stdio, network: Option<BorrowedFd<'_>>) -> Result<Process, Error> {
        self.ask(&Job::Step(Box::new(spec.clone())), stdio, network)
    }

    /// Starts a further process in the container of the process that `doorway` is from; it ends with that at the latest.
    /// Of `spec` only the command, environment, working directory, user, rights and limits of processes count.
    ///
    /// # Errors
    /// As [`Spawner::step`]; [`Error::Invalid`] when the container has ended.
    pub fn enter(&self, doorway: Doorway, spec: &Spec, stdio: Stdio) -> Result<Process, Error> {
        self.ask(&Job::Enter(doorway.0, Box::new(spec.clone())), stdio, None)
    }

    /// Starts a program of the host with mounts prepared for it, in the network namespace `network` when there is one.
    ///
    /// # Errors
    /// As [`Spawner::step`].
    pub fn tool(&self, tool: &Tool, stdio: Stdio, network: Option<BorrowedFd<'_>>) -> Result<Process, Error> {
        self.ask(&Job::Tool(Box::new(tool.clone())), stdio, network)
    }

    fn ask(&self, job: &Job, stdio: Stdio, network: Option<BorrowedFd<'_>>) -> Result<Process, Error> {
        let failed = |what| move |source| Error::Talk { what, source };
        let (line, theirs) = wire::pair().map_err(failed("make a socket pair"))?;
        let file = wire::write_job(job).map_err(failed("write the job"))?;
        let mut descriptors = vec![theirs.as_fd(), file.as_fd()];
        match &stdio {
            Stdio::Terminal(_) => {}
            Stdio::Descriptors {
                stdin,
                stdout,
                stderr,
            } => {
                descriptors.extend([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
            }
        }
        descriptors.extend(network);
        let request = Request {
            terminal: match stdio {
                Stdio::Terminal(size) => Some(size),
                Stdio::Descriptors { .. } => None,
            },
            network: network.is_some(),
        };
        wire::send(self.socket.as_fd(), &request, &descriptors).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EPIPE | libc::ECONNRESET) => Error::SpawnerGone {
                    doing: "asking for a process",
                },
                _ => failed("ask for a process")(source),
            }
        })?;
        drop(theirs);
        drop(stdio);
        Process::started(line)
    }
}

impl Drop for Spawner {
    /// Ends the helper and all it started, and waits for that.
    fn drop(&mut self) {
        // Closing would do; shutting down also works while another thread is asking.
        let _closed = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let end = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        let _reaped = rustix::process::waitid(end, rustix::process::WaitIdOptions::EXITED);
    }
}

/// Runs in the clone: moves descriptors into place and executes. No allocation.
fn become_spawner(
    socket: BorrowedFd<'_>,
    null: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    args: &CStringArray,
    env: &CStringArray,
) -> io::Error {
    sys::reset_signals();
    let moves = [(null, 0), (null, 1), (null, 2), (socket, SOCKET)];
    for (from, to) in moves {
        if let Err(error) = sys::dup_to(from, to) {
            return error;
        }
    }
    // Others are closed on exec, the program's own descriptor included.
    sys::execveat(program, args, env)
}

/// The same descriptor under a number above those that are about to be replaced.
fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > SOCKET {
        return Ok(fd);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&fd, SOCKET + 1)?)
}

/// This very program, such that nobody can write to it: seen through a read-only overlay without a writable
/// layer, or copied into sealed memory where that cannot be had.
fn sealed_program() -> io::Result<OwnedFd> {
    overlaid_program().or_else(|_| copied_program())
}

fn overlaid_program() -> io::Result<OwnedFd> {
    use rustix::mount::{fsconfig_create, fsconfig_set_string, fsmount, fsopen};
    let path = std::fs::read_link("/proc/self/exe")?;
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    };
    // Two layers are the least an overlay without a writable one takes; the second is hidden by the name.
    let lower = format!("{}:/dev", dir.display());
    if lower.len() > 250 || dir.starts_with("/dev") || lower.matches([':', '\\', ',']).count() > 1 {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"lowerdir", lower.as_str())?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let program = rustix::fs::openat(&mount, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let (ours, seen) = (rustix::fs::stat("/proc/self/exe")?, rustix::fs::fstat(&program)?);
    if ours.st_size != seen.st_size || ours.st_mtime != seen.st_mtime {
        // Replaced on disk since we were started: the spawner must be the same build as we are.
        return Err(io::Error::from_raw_os_error(libc::ESTALE));
    }
    Ok(program)
}

fn copied_program() -> io::Result<OwnedFd> {
    let mut program = File::open("/proc/self/exe")?;
    let memory = rustix::fs::memfd_create(c"builder", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = File::from(memory);
    io::copy(&mut program, &mut copy)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}
