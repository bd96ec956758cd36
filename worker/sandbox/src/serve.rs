//! The spawner's life: one thread that takes requests, starts processes and tells how they ended.
//!
//! ```text
//! request ─▶ launch ─▶ Started ─┐
//!        poll: socket, pidfds, report lines
//! pidfd readable ─▶ reap ─▶ stubs ─▶ cgroup ─▶ Ended
//! report line closed ─▶ kill          socket closed ─▶ exit: as pid 1 it takes everything along
//! ```
//!
//! It is pid 1 of a pid namespace of its own: however it ends, no process it started survives it.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

use crate::cgroup::Cgroups;
use crate::launch::{self, Host, Io, Running};
use crate::process::{Exit, Status, Usage};
use crate::rootfs::OverlaySupport;
use crate::seccomp::Filters;
use crate::sys::{self, Reaped};
use crate::targets;
use crate::wire::{self, Failure, Job, Report, Request};

/// Exit codes of the spawner, seen by nobody but a debugger.
const NO_NAMESPACE: i32 = 122;
const SOCKET_BROKEN: i32 = 123;

struct Step {
    running: Running,
    report: OwnedFd,
    is_abandoned: bool,
}

/// Serves requests from `socket` until it is closed.
pub(crate) fn serve(socket: &OwnedFd, instance: &str) -> ! {
    let Ok(mut host) = settle(instance) else {
        sys::exit_now(NO_NAMESPACE)
    };
    let mut steps: Vec<Step> = Vec::new();
    loop {
        let ready = wait(socket, &steps);
        finish_ended(&mut steps);
        for (index, step) in steps.iter_mut().enumerate() {
            if ready.lines.get(index).copied().unwrap_or(false) && !step.is_abandoned {
                step.is_abandoned = true;
                // It may have ended this instant; then there is nothing to kill.
                let _gone = rustix::process::pidfd_send_signal(&step.running.pidfd, Signal::KILL);
            }
        }
        if ready.socket {
            match wire::receive::<Request>(socket.as_fd()) {
                Ok(Some((request, descriptors))) => {
                    let started = start(&mut host, &steps, &request, descriptors);
                    steps.extend(started);
                }
                Ok(None) => leave(host, steps),
                Err(_) => sys::exit_now(SOCKET_BROKEN),
            }
        }
    }
}

/// Makes a home: mounts that follow the host's but never change them; nobody may look into this process.
fn settle(instance: &str) -> Result<Host, rustix::io::Errno> {
    let errno =
        |error: std::io::Error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
    crate::init::hide()?;
    rustix::process::setsid().or_else(|error| {
        // Already a leader, as pid 1 of a namespace may be.
        if error == rustix::io::Errno::PERM {
            rustix::process::getsid(None)
        } else {
            Err(error)
        }
    })?;
    rustix::process::umask(Mode::empty());
    sys::unshare(UnshareFlags::NEWNS).map_err(errno)?;
    let follow = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", follow)?;
    let home = rustix::fs::openat(
        rustix::fs::CWD,
        c"/proc/self/ns/mnt",
        OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let in_user_namespace = crate::rootless::is_in_user_namespace();
    Ok(Host {
        home: home.into(),
        processes: std::fs::File::open("/proc/self/ns/pid").map_err(errno)?.into(),
        filters: Filters::default(),
        cgroups: Cgroups::create(instance, !in_user_namespace),
        overlay: OverlaySupport::new(in_user_namespace),
        in_user_namespace,
        sets_groups: crate::rootless::may_set_groups(),
        capabilities: rustix::thread::capabilities(None)?.permitted.bits(),
        last_capability: last_capability(),
        count: Cell::new(0),
    })
}

fn last_capability() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    text.trim().parse().unwrap_or(40).min(63)
}

#[derive(Default)]
struct Ready {
    socket: bool,
    /// Per step, whether its report line was closed.
    lines: Vec<bool>,
}

fn wait(socket: &OwnedFd, steps: &[Step]) -> Ready {
    let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
    for step in steps {
        fds.push(PollFd::new(&step.running.pidfd, PollFlags::IN));
        // Asks for nothing but the end, which is always told; an abandoned line would be told for ever.
        fds.push(if step.is_abandoned {
            PollFd::new(&step.running.pidfd, PollFlags::IN)
        } else {
            PollFd::new(&step.report, PollFlags::empty())
        });
    }
    if rustix::event::poll(&mut fds, None).is_err() {
        return Ready::default();
    }
    let closed = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR);
    Ready {
        socket: !fds[0].revents().is_empty(),
        lines: fds[1..].chunks(2).map(|pair| closed(&pair[1])).collect(),
    }
}

/// Strangers are descendants of tools that outlived their parents; as pid 1 we are theirs now.
fn finish_ended(steps: &mut Vec<Step>) {
    let mut index = 0;
    while index < steps.len() {
        match sys::reap(steps[index].running.pidfd.as_fd()) {
            Ok(Some(reaped)) => {
                let step = steps.remove(index);
                finish(step, reaped);
            }
            _ => index += 1,
        }
    }
    let ours: Vec<i32> = steps.iter().map(|step| step.running.pid).collect();
    sys::reap_strangers(&ours);
}

fn finish(step: Step, reaped: Reaped) {
    let Running {
        group,
        stubs: (stubs, parents),
        ..
    } = step.running;
    targets::remove(stubs, parents);
    let group_times = group.as_ref().and_then(|group| group.times());
    let peak = group.as_ref().and_then(|group| group.peak_memory_bytes());
    let is_out_of_memory = group.as_ref().is_some_and(|group| group.was_out_of_memory());
    if let Some(group) = group {
        group.remove();
    }
    let (user, system) = group_times.unwrap_or((
        Duration::from_micros(reaped.user_us),
        Duration::from_micros(reaped.system_us),
    ));
    let exit = Exit {
        status: if reaped.killed {
            Status::Signal(reaped.status)
        } else {
            Status::Code(reaped.status)
        },
        is_out_of_memory,
        usage: Usage {
            user,
            system,
            peak_memory_bytes: peak.unwrap_or(reaped.peak_rss_bytes),
        },
    };
    // Whoever asked may be gone; the process is finished all the same.
    let _nobody = wire::send(step.report.as_fd(), &Report::Ended(exit), &[]);
}

fn start(host: &mut Host, steps: &[Step], request: &Request, descriptors: Vec<OwnedFd>) -> Option<Step> {
    let mut descriptors = descriptors.into_iter();
    let report = descriptors.next()?;
    let started = try_start(host, steps, request, descriptors);
    let told = match &started {
        Ok(running) => {
            let mut along = vec![running.pidfd.as_fd()];
            along.extend(running.terminal.as_ref().map(AsFd::as_fd));
            let started = Report::Started {
                notes: running.notes.clone(),
                number: running.number,
            };
            wire::send(report.as_fd(), &started, &along)
        }
        Err(_) => Ok(()),
    };
    match started {
        Ok(mut running) => {
            running.terminal = None;
            if told.is_err() {
                let _gone = rustix::process::pidfd_send_signal(&running.pidfd, Signal::KILL);
            }
            Some(Step {
                running,
                report,
                is_abandoned: told.is_err(),
            })
        }
        Err(failure) => {
            let _nobody = wire::send(report.as_fd(), &Report::Failed(failure), &[]);
            None
        }
    }
}

fn try_start(
    host: &mut Host,
    steps: &[Step],
    request: &Request,
    mut descriptors: impl Iterator<Item = OwnedFd>,
) -> Result<Running, Failure> {
    let incomplete = || Failure::Invalid("the request came without its descriptors".into());
    let mut next = || descriptors.next().ok_or_else(incomplete);
    let job =
        wire::read_job(next()?).map_err(|error| Failure::Invalid(format!("unreadable job: {error}")))?;
    let io = match request.terminal {
        Some(size) => Io::Terminal(size),
        None => Io::Given([next()?, next()?, next()?]),
    };
    let network = if request.network { Some(next()?) } else { None };
    match job {
        Job::Step(spec) => launch::step(host, &spec, io, network),
        Job::Enter(number, spec) => {
            let first = steps.iter().find(|step| step.running.number == number);
            let first = first.ok_or_else(|| Failure::Invalid("the container has ended".into()))?;
            launch::enter(host, &spec, io, &first.running)
        }
        Job::Tool(tool) => launch::tool(host, &tool, io, network),
    }
}

/// The builder is gone or wants us gone: ends every step, tidies up, exits.
fn leave(host: Host, mut steps: Vec<Step>) -> ! {
    for step in &steps {
        let _gone = rustix::process::pidfd_send_signal(&step.running.pidfd, Signal::KILL);
    }
    while !steps.is_empty() {
        let mut fds: Vec<_> = steps
            .iter()
            .map(|step| PollFd::new(&step.running.pidfd, PollFlags::IN))
            .collect();
        let _interrupted = rustix::event::poll(&mut fds, None);
        finish_ended(&mut steps);
    }
    drop(host);
    sys::exit_now(0)
}
