//! Starts a program of the host that sees prepared mounts; what it is for is told in `crate::tool`.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::mount::MountAttrFlags;

use super::{Away, Host, Io, Running, check, programs, removable, spawn, strings};
use crate::cgroup::Group;
use crate::error::Step;
use crate::filesystem::{self, c_string};
use crate::init::{NetworkPlan, Plan};
use crate::rootfs::Stage;
use crate::spec::{Security, Spec};
use crate::sys;
use crate::targets::{self, Kind, Stub};
use crate::tool::{Confined, Tool};
use crate::wire::{During, Failure};

/// Starts a program of the host that sees prepared mounts.
pub(crate) fn tool(host: &Host, tool: &Tool, io: Io, network: Option<OwnedFd>) -> Result<Running, Failure> {
    let mut notes = Vec::new();
    let number = host.next_number();
    let group = match &tool.confined {
        Some(confined) => Some(group(host, confined, number, &mut notes)?),
        None => None,
    };
    let started = Away::from(&host.home).and_then(|_away| {
        let none = Group::none();
        let inside = group.as_ref().unwrap_or(&none);
        start_tool(host, tool, io, network, inside, &mut notes)
    });
    match started {
        Ok((cloned, stubs)) => Ok(Running {
            pid: cloned.pid,
            pidfd: cloned.pidfd,
            group,
            stubs: removable(stubs, tool.stubs),
            notes,
            number,
            terminal: None,
            terminals: None,
        }),
        Err(failure) => {
            if let Some(group) = group {
                group.remove();
            }
            Err(failure)
        }
    }
}

/// The group of a tool that makes none itself. It must confine devices: nobody else does.
fn group(host: &Host, confined: &Confined, number: u64, notes: &mut Vec<String>) -> Result<Group, Failure> {
    let spec = Spec {
        cgroup_parent: confined.parent.clone(),
        limits: confined.limits.clone(),
        security: confined.security,
        devices: confined.devices.clone(),
        ..Spec::default()
    };
    let group = host.cgroups.group(&spec, &format!("tool-{number}"), notes)?;
    if confined.security == Security::Confined && !group.confines_devices() {
        group.remove();
        return Err(Failure::Invalid(
            "devices cannot be confined for this OCI runtime: cgroup version 2 with device programs is needed".into(),
        ));
    }
    Ok(group)
}

fn start_tool(
    host: &Host,
    tool: &Tool,
    io: Io,
    network: Option<OwnedFd>,
    group: &Group,
    notes: &mut Vec<String>,
) -> Result<(sys::Cloned, Vec<Stub>), Failure> {
    let Io::Given(descriptors) = io else {
        return Err(Failure::Invalid("a program of the host gets no terminal".into()));
    };
    // Opened before anything is covered, in the namespace the tool will see.
    let cgroup_doors = group.doors()?;
    let mut places = Vec::new();
    for mount in &tool.mounts {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::openat(rustix::fs::CWD, &mount.target, flags, rustix::fs::Mode::empty());
        places.push(place.during(|| Step::Root(mount.target.clone()))?);
    }
    let stage = Stage::create()?;
    let mut first = None;
    for (mount, place) in tool.mounts.iter().zip(places) {
        let step = || Step::Root(mount.target.clone());
        let tree = stage.tree(&mount.overlay, &host.overlay)?;
        let copy = filesystem::copy(tree).during(step)?;
        filesystem::attach(&copy, place).during(step)?;
        first.get_or_insert(copy);
    }
    let mut stubs = Vec::new();
    if let Some(root) = &first {
        for (path, uid, gid) in &tool.directories {
            targets::ensure(
                root.as_fd(),
                path,
                Kind::Directory,
                Some((*uid, *gid)),
                &mut Vec::new(),
            )
            .during(|| Step::Cwd { path: path.clone() })?;
        }
        for (path, is_dir) in &tool.targets {
            let kind = if *is_dir { Kind::Directory } else { Kind::File };
            targets::ensure(root.as_fd(), path, kind, None, &mut stubs)
                .during(|| Step::Target { target: path.clone() })?;
        }
    }
    // What was mounted on the places stays; the staging area is not the tool's business.
    rustix::mount::unmount(c".", rustix::mount::UnmountFlags::DETACH).during(|| Step::Filesystem {
        fs: "tmpfs".into(),
        target: "the staging area".into(),
    })?;
    // A runtime looks itself up by number: /proc must speak of the namespace we are all in.
    cover(c"proc", c"/proc")?;
    if tool.confined.is_some() {
        // crun refuses machines that have both versions of cgroups, whether or not it is to use them.
        cover(c"cgroup2", c"/sys/fs/cgroup")?;
    }
    let spec = Spec {
        args: tool.args.clone(),
        env: tool.env.clone(),
        ..Spec::default()
    };
    check(&spec)?;
    let cwd = tool.cwd.to_string_lossy().into_owned();
    let plan = Plan {
        cgroup_doors,
        own_cgroups: false,
        network: network.map_or(NetworkPlan::Inherited, NetworkPlan::Join),
        enter: None,
        stdio: descriptors,
        terminal: false,
        root: None,
        rlimits: Vec::new(),
        seccomp: None,
        identity: None,
        cwd: c_string(cwd.as_str()).during(|| Step::Cwd { path: cwd.clone() })?,
        programs: programs(&tool.args[0], &tool.env)?,
        args: strings(&tool.args)?,
        env: strings(&tool.env)?,
    };
    match spawn(&plan, 0, group, &spec, notes) {
        Ok(cloned) => Ok((cloned, stubs)),
        Err(failure) => {
            targets::remove(stubs, true);
            Err(failure)
        }
    }
}

/// Mounts a new file system of the kernel over a directory, for the tool only.
fn cover(kind: &CStr, target: &CStr) -> Result<(), Failure> {
    let step = || Step::Filesystem {
        fs: kind.to_string_lossy().into_owned(),
        target: target.to_string_lossy().into_owned(),
    };
    let tree = filesystem::create(kind, &[], MountAttrFlags::empty()).during(step)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::openat(rustix::fs::CWD, target, flags, 0.into()).during(step)?;
    filesystem::attach(tree, place).during(step)
}
