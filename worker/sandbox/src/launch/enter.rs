//! Starts a further process in a container that runs: in all its namespaces and groups, as a child of ours.
//!
//! ```text
//! pid namespace (ours, for the clone only) ─▶ clone ─▶ init: setns to the rest ─▶ identity ─▶ execve
//! ```
//!
//! Nothing is mounted, made or removed for it; when the container's first process ends the kernel ends it, too.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::{Host, Io, Running, check, filter, identity, programs, rlimits, spawn, strings};
use crate::cgroup::Group;
use crate::error::Step;
use crate::filesystem::c_string;
use crate::init::{NetworkPlan, Plan};
use crate::spec::{Network, Spec};
use crate::sys;
use crate::terminal;
use crate::wire::{During, Failure};

/// Starts a process beside `first`.
pub(crate) fn enter(host: &mut Host, spec: &Spec, io: Io, first: &Running) -> Result<Running, Failure> {
    check(spec)?;
    let none = Group::none();
    let group = first.group.as_ref().unwrap_or(&none);
    let (stdio, terminal) = match (io, &first.terminals) {
        (Io::Given(descriptors), _) => (descriptors, None),
        (Io::Terminal(size), Some(terminals)) => {
            let pair = terminal::open(terminals.as_fd(), size, spec.user.uid)?;
            (pair.stdio()?, Some(pair.controller))
        }
        (Io::Terminal(_), None) => {
            return Err(Failure::Invalid("a program of the host has no terminals".into()));
        }
    };
    let mut namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    if spec.network != Network::Host {
        namespaces |= ThreadNameSpaceType::NETWORK;
    }
    let process = first.pidfd.try_clone().during(|| Step::Enter)?;
    let plan = Plan {
        cgroup_doors: group.doors()?,
        own_cgroups: false,
        network: NetworkPlan::Inherited,
        enter: Some((process, namespaces)),
        stdio,
        terminal: terminal.is_some(),
        root: None,
        rlimits: rlimits(spec),
        seccomp: filter(host, spec)?,
        identity: Some(identity(host, spec)),
        cwd: c_string(spec.cwd.as_str()).during(|| Step::Cwd {
            path: spec.cwd.clone(),
        })?,
        programs: programs(&spec.args[0], &spec.env)?,
        args: strings(&spec.args)?,
        env: strings(&spec.env)?,
    };
    let mut notes = Vec::new();
    let inside = Inside::of(first.pidfd.as_fd(), host.processes.as_fd())?;
    let cloned = spawn(&plan, 0, group, spec, &mut notes);
    drop(inside);
    let cloned = cloned?;
    Ok(Running {
        pid: cloned.pid,
        pidfd: cloned.pidfd,
        group: None,
        stubs: (Vec::new(), false),
        notes,
        number: host.next_number(),
        terminal,
        terminals: None,
    })
}

/// While it lives our next child is born into another pid namespace. A spawner that cannot come home ends.
struct Inside<'a> {
    home: BorrowedFd<'a>,
}

impl<'a> Inside<'a> {
    fn of(process: BorrowedFd<'_>, home: BorrowedFd<'a>) -> Result<Self, Failure> {
        match rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID) {
            Ok(()) => Ok(Self { home }),
            Err(rustix::io::Errno::SRCH) => Err(Failure::Invalid("the container has ended".into())),
            Err(error) => Err(error).during(|| Step::Enter),
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let kind = Some(LinkNameSpaceType::ProcessID);
        if rustix::thread::move_into_link_name_space(self.home, kind).is_err() {
            sys::exit_now(121);
        }
    }
}
