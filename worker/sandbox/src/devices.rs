//! `/dev` of a step, and who may open which device.
//!
//! Devices are confined in one of two ways. Where a program can be attached to the step's cgroup (root, a mounted
//! cgroup v2) it allows what Docker allows: making any node, opening the usual ones. Elsewhere nodes have no effect
//! in any of the step's file systems, and the usual ones are bound from the host one by one.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::MountAttrFlags;

use crate::error::Step;
use crate::filesystem::{self, FsOption};
use crate::spec::{DeviceKind, DeviceNode};
use crate::wire::{During, Failure};

/// How devices are confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// By a program on the cgroup; nodes are made.
    Cgroup,
    /// By `nodev` everywhere; nodes are bound.
    NoDev,
}

/// Name, major and minor number of the nodes every step has.
const NODES: [(&CStr, u32, u32); 6] = [
    (c"null", 1, 3),
    (c"zero", 1, 5),
    (c"full", 1, 7),
    (c"random", 1, 8),
    (c"urandom", 1, 9),
    (c"tty", 5, 0),
];

const LINKS: [(&CStr, &CStr); 6] = [
    (c"ptmx", c"pts/ptmx"),
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"core", c"/proc/kcore"),
];

/// Devices that an insecure step gets where the host has them.
const MORE: [&str; 5] = ["kmsg", "fuse", "kvm", "net/tun", "loop-control"];

/// A new `/dev`, detached: nodes or places for them, links, and directories for what is mounted below it.
pub(crate) fn create(guard: Guard, insecure: bool) -> Result<OwnedFd, Failure> {
    let step = || Step::Filesystem {
        fs: "tmpfs".into(),
        target: "/dev".into(),
    };
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    if guard == Guard::NoDev && !insecure {
        attributes |= MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    let options = [
        FsOption::Value(c"mode", c"0755"),
        FsOption::Value(c"size", c"65536k"),
    ];
    let dev = filesystem::create(c"tmpfs", &options, attributes).during(step)?;
    for name in [c"pts", c"shm", c"mqueue"] {
        rustix::fs::mkdirat(&dev, name, Mode::from(0o755)).during(step)?;
    }
    for (name, target) in LINKS {
        // Not every kernel has it.
        if target == c"/proc/kcore" && !std::path::Path::new("/proc/kcore").exists() {
            continue;
        }
        rustix::fs::symlinkat(target, &dev, name).during(step)?;
    }
    for (name, major, minor) in NODES {
        let step = || Step::Device(name.to_string_lossy().into_owned());
        match guard {
            Guard::Cgroup => {
                let number = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, Mode::from(0o666), number)
                    .during(step)?;
            }
            Guard::NoDev => place(&dev, name).during(step)?,
        }
    }
    Ok(dev)
}

fn place(dev: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(dev, name, flags, Mode::from(0o666)).map(drop)
}

/// Binds the host's nodes onto the places in `dev`, which must be attached by now.
pub(crate) fn bind_nodes(dev: &OwnedFd) -> Result<(), Failure> {
    for (name, major, minor) in NODES {
        let step = || Step::Device(name.to_string_lossy().into_owned());
        let path = [c"/dev/".to_bytes(), name.to_bytes()].concat();
        let source = host_node(&path, Some((major, minor))).during(step)?;
        bind(&source, dev, name).during(step)?;
    }
    Ok(())
}

fn bind(source: &OwnedFd, dev: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
    let target = rustix::fs::openat(dev, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    filesystem::attach(filesystem::copy(source)?, target)
}

/// Makes `/dev/console` in an attached `dev` the terminal `user`.
pub(crate) fn bind_console(dev: &OwnedFd, user: &OwnedFd) -> rustix::io::Result<()> {
    place(dev, c"console")?;
    bind(user, dev, c"console")
}

/// Opens a device node of the host and checks that it is the one it is named for.
pub(crate) fn host_node(path: &[u8], number: Option<(u32, u32)>) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&node)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    let found = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if !is_device || number.is_some_and(|wanted| wanted != found) {
        return Err(rustix::io::Errno::NODEV);
    }
    Ok(node)
}

/// Adds to an attached `dev` what an insecure step gets on top: kmsg, fuse, kvm, tun and loop devices of the host.
pub(crate) fn bind_more(dev: &OwnedFd) -> Result<(), Failure> {
    let loops = (0..8).map(|n| format!("loop{n}"));
    for name in MORE.iter().map(ToString::to_string).chain(loops) {
        let step = || Step::Device(name.clone());
        let Ok(source) = host_node(format!("/dev/{name}").as_bytes(), None) else {
            continue;
        };
        let mut made = Vec::new();
        let target = crate::targets::ensure(dev.as_fd(), &name, crate::targets::Kind::File, None, &mut made)
            .during(step)?;
        filesystem::copy(&source)
            .and_then(|mount| filesystem::attach(mount, target))
            .during(step)?;
    }
    Ok(())
}

/// `/dev/pts` of its own, detached. Group 5 is tty everywhere; left out where that group is not mapped.
pub(crate) fn terminals() -> Result<OwnedFd, Failure> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [
        FsOption::Flag(c"newinstance"),
        FsOption::Value(c"ptmxmode", c"0666"),
        FsOption::Value(c"mode", c"0620"),
        FsOption::Value(c"gid", c"5"),
    ];
    filesystem::create(c"devpts", &options, attributes)
        .or_else(|_| filesystem::create(c"devpts", &options[..3], attributes))
        .during(|| Step::Filesystem {
            fs: "devpts".into(),
            target: "/dev/pts".into(),
        })
}

/// The program that decides which device a step may open, as the kernel runs it for a cgroup: 8 bytes each.
/// Making any node is allowed; opening null, zero, full, random, urandom, tty, console, ptmx, terminals and `more`.
pub(crate) fn program(more: &[DeviceNode]) -> Vec<u64> {
    const READ: i32 = 2;
    const WRITE: i32 = 4;
    const ACCESS: u8 = 2;
    const MAJOR: u8 = 3;
    const MINOR: u8 = 4;
    const KIND: u8 = 5;
    let instruction = |code: u8, dst: u8, src: u8, offset: i16, value: i32| {
        u64::from(code)
            | u64::from(src << 4 | dst) << 8
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(value.cast_unsigned()) << 32
    };
    let load = |dst, offset| instruction(0x61, dst, 1, offset, 0);
    let unless = |register, value, skip| instruction(0x55, register, 0, skip, value);
    let when = |register, value, skip| instruction(0x15, register, 0, skip, value);
    let answer = |value| [instruction(0xb7, 0, 0, 0, value), instruction(0x95, 0, 0, 0, 0)];
    let mut code = vec![load(KIND, 0), load(MAJOR, 4), load(MINOR, 8)];
    code.push(instruction(0xbf, ACCESS, KIND, 0, 0)); // access = word >> 16; kind = word & 0xffff
    code.push(instruction(0x77, ACCESS, 0, 0, 16));
    code.push(instruction(0x57, KIND, 0, 0, 0xffff));
    code.push(unless(ACCESS, 1, 2)); // only making a node
    code.extend(answer(1));
    let any_of = |register, bits, skip| instruction(0x45, register, 0, skip, bits);
    for device in more {
        let kind = match device.kind {
            DeviceKind::Block => 1,
            DeviceKind::Character => 2,
        };
        let refused = if device.may_read { 0 } else { READ } | if device.may_write { 0 } else { WRITE };
        code.push(unless(KIND, kind, 5));
        code.push(unless(MAJOR, device.major.cast_signed(), 4));
        code.push(unless(MINOR, device.minor.cast_signed(), 3));
        code.push(any_of(ACCESS, refused, 2));
        code.extend(answer(1));
    }
    code.push(when(KIND, 2, 2)); // a character device
    code.extend(answer(0));
    code.push(unless(MAJOR, 136, 2)); // terminals
    code.extend(answer(1));
    for (major, minors) in [(1, [3, 5, 7, 8, 9].as_slice()), (5, [0, 1, 2].as_slice())] {
        for minor in minors {
            code.push(unless(MAJOR, major, 3));
            code.push(unless(MINOR, *minor, 2));
            code.extend(answer(1));
        }
    }
    code.extend(answer(0));
    code
}
