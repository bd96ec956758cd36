//! Starts a program of the host that sees prepared mounts; what it is for is told in `crate::tool`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::mount::MountAttrFlags;

use super::{Away, Host, Io, Running, check, programs, removable, spawn, strings};
use crate::cgroup::Group;
use crate::error::Step;
use crate::filesystem::{self, c_string};
use crate::init::{NetworkPlan, Plan};
use crate::rootfs::Stage;
use crate::spec::Spec;
use crate::sys;
use crate::targets::{self, Kind, Stub};
use crate::tool::Tool;
use crate::wire::{During, Failure};

/// Starts a program of the host that sees prepared mounts.
pub(crate) fn tool(host: &Host, tool: &Tool, io: Io, network: Option<OwnedFd>) -> Result<Running, Failure> {
    let away = Away::from(&host.home)?;
    let started = start_tool(host, tool, io, network);
    drop(away);
    let (cloned, stubs) = started?;
    Ok(Running {
        pid: cloned.pid,
        pidfd: cloned.pidfd,
        group: None,
        stubs: removable(stubs, tool.stubs),
        notes: Vec::new(),
        number: host.next_number(),
        terminal: None,
        terminals: None,
    })
}

fn start_tool(
    host: &Host,
    tool: &Tool,
    io: Io,
    network: Option<OwnedFd>,
) -> Result<(sys::Cloned, Vec<Stub>), Failure> {
    let Io::Given(descriptors) = io else {
        return Err(Failure::Invalid("a program of the host gets no terminal".into()));
    };
    // Opened before the staging area covers anything, in the namespace the tool will see.
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
    let step = || Step::Filesystem {
        fs: "proc".into(),
        target: "/proc".into(),
    };
    let proc = filesystem::create(c"proc", &[], MountAttrFlags::empty()).during(step)?;
    let place = rustix::fs::openat(
        rustix::fs::CWD,
        c"/proc",
        OFlags::PATH | OFlags::CLOEXEC,
        0.into(),
    );
    filesystem::attach(proc, place.during(step)?).during(step)?;
    let spec = Spec {
        args: tool.args.clone(),
        env: tool.env.clone(),
        ..Spec::default()
    };
    check(&spec)?;
    let cwd = tool.cwd.to_string_lossy().into_owned();
    let plan = Plan {
        cgroup_doors: Vec::new(),
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
    let none = Group::none();
    match spawn(&plan, 0, &none, &spec, &mut Vec::new()) {
        Ok(cloned) => Ok((cloned, stubs)),
        Err(failure) => {
            targets::remove(stubs, true);
            Err(failure)
        }
    }
}
