//! What this machine can and cannot do for builds, found by looking and by trying.
//!
//! ```text
//! proc, sys, PATH ───────────────────────┐
//! a real step with limits, a real network ┴▶ Finding { subject, state, what, how to get it } ─▶ cli/doctor prints
//! ```
//!
//! Changes nothing: the step that is tried runs in temporary folders that are gone afterwards.
use crate::config::Config;
use sandbox::network::Networks;
use sandbox::spec::{Limits, Mount, MountFlags, Overlay, Root, Source, Upper};
use sandbox::{Spawner, Spec, Status, Stdio};
use std::path::Path;

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Works.
    Fine,
    /// Does not, and something is lost; builds go on.
    Less,
    /// Does not, and steps cannot run.
    Broken,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub subject: &'static str,
    /// How good it is.
    pub state: State,
    /// What was found.
    pub what: String,
    /// How to get what is missing.
    pub remedy: Option<String>,
}

impl Finding {
    pub(crate) fn fine(subject: &'static str, what: impl Into<String>) -> Finding {
        Finding {
            subject,
            state: State::Fine,
            what: what.into(),
            remedy: None,
        }
    }

    pub(crate) fn less(subject: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding {
            subject,
            state: State::Less,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    pub(crate) fn broken(
        subject: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding {
            subject,
            state: State::Broken,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Looks at everything. Must be called before any thread is started: it may enter a user namespace.
pub fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![kernel()];
    let is_root = sandbox::rootless::may_mount();
    findings.extend(ids(is_root));
    let is_entered = match sandbox::rootless::enter() {
        Ok(_) => true,
        Err(error) => {
            findings.push(Finding::broken(
                "user namespace",
                chain(&error),
                "allow it as said, or build as root",
            ));
            false
        }
    };
    if is_entered {
        findings.extend(tried(config, is_root));
    }
    findings.push(seccomp());
    findings.push(foreign_platforms());
    findings.push(tools());
    findings
}

fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease");
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // Attributes of mounts by descriptor, without which no step is confined, came with 5.12.
    match version {
        (major, minor) if (major, minor) >= (5, 12) => Finding::fine("kernel", format!("Linux {release}")),
        _ => Finding::broken(
            "kernel",
            format!("Linux {release} is too old"),
            "use Linux 5.12 or newer: steps cannot be confined by mounts on this one",
        ),
    }
}

fn ids(is_root: bool) -> Vec<Finding> {
    if is_root {
        return vec![Finding::fine("user", "root: no user namespace is needed")];
    }
    let uid = rustix::process::getuid().as_raw();
    let mut findings = Vec::new();
    if uid == 0 {
        findings.push(Finding::fine(
            "user",
            "root that may not mount: steps run in a user namespace",
        ));
    }
    if read("/proc/sys/user/max_user_namespaces") == "0" {
        findings.push(Finding::broken(
            "user",
            "user namespaces are switched off",
            "sysctl user.max_user_namespaces=10000",
        ));
    }
    if read("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        findings.push(Finding::broken(
            "user",
            "only root may make user namespaces",
            "sysctl kernel.unprivileged_userns_clone=1",
        ));
    }
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        findings.push(Finding::less(
            "user",
            "AppArmor restricts user namespaces of programs without a profile",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or write a profile for this program",
        ));
    }
    if uid == 0 {
        return findings;
    }
    let has_range = |file: &str| {
        let text = read(file);
        text.lines().any(|line| {
            line.split(':')
                .next()
                .is_some_and(|name| name == uid.to_string() || is_me(name))
        })
    };
    let has_tools = find_program("newuidmap") && find_program("newgidmap");
    findings.push(
        match (has_tools, has_range("/etc/subuid") && has_range("/etc/subgid")) {
            (true, true) => Finding::fine("user ids", "a range of ids for steps that are not root"),
            (false, _) => Finding::less(
                "user ids",
                "newuidmap is missing: steps have one id only, so apt and USER do not work",
                "install uidmap (Debian) or shadow-utils (Fedora)",
            ),
            (true, false) => Finding::less(
                "user ids",
                "no range of ids in /etc/subuid and /etc/subgid: steps have one id only",
                "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER (as root)",
            ),
        },
    );
    findings
}

fn is_me(name: &str) -> bool {
    let uid = rustix::process::getuid().as_raw().to_string();
    read("/etc/passwd").lines().any(|line| {
        let mut fields = line.split(':');
        fields.next() == Some(name) && fields.nth(1) == Some(uid.as_str())
    })
}

/// Runs a step with limits on this machine's own root, read-only, with an overlay of the store's file system beside it;
/// and gives it a network.
fn tried(config: &Config, is_root: bool) -> Vec<Finding> {
    const SUBJECT: &str = "steps";
    let remedy = "see which step of the set-up failed; in a container, give it the rights to mount";
    let spawner = match Spawner::start() {
        Ok(spawner) => spawner,
        Err(error) => return vec![Finding::broken(SUBJECT, chain(&error), remedy)],
    };
    let mut findings = Vec::new();
    match try_step(&spawner, &config.root) {
        Ok(notes) => {
            findings.push(Finding::fine(
                SUBJECT,
                "run in namespaces of their own, on overlays",
            ));
            findings.push(limits(&notes));
        }
        Err(reason) => findings.push(Finding::broken(SUBJECT, reason, remedy)),
    }
    findings.push(network(&spawner, is_root));
    findings
}

/// What could not be had for it, in plain words.
fn try_step(spawner: &Spawner, root: &Path) -> Result<Vec<String>, String> {
    let made = std::fs::create_dir_all(root)
        .and_then(|()| tempfile::Builder::new().prefix("doctor-").tempdir_in(root));
    let folder = made.map_err(|error| format!("write to {}: {error}", root.display()))?;
    let sub = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir(&path)
            .map(|()| path)
            .map_err(|error| format!("make a folder: {error}"))
    };
    let overlay = Overlay {
        lowers: vec![sub("lower")?],
        upper: Some(Upper {
            dir: sub("upper")?,
            work: sub("work")?,
        }),
    };
    let spec = Spec {
        root: Root::Directory {
            path: "/".into(),
            readonly: true,
        },
        mounts: vec![Mount {
            target: "/mnt".into(),
            source: Source::Overlay {
                overlay,
                subpath: String::new(),
            },
            readonly: false,
            flags: MountFlags::default(),
        }],
        args: vec!["/bin/sh".into(), "-c".into(), ": > /mnt/written".into()],
        env: vec!["PATH=/usr/bin:/bin".into()],
        limits: Limits {
            memory_bytes: Some(256 << 20),
            cpu_quota_us: Some(90_000),
            cpuset_cpus: Some("0".into()),
            pids: Some(64),
            ..Limits::default()
        },
        ..Spec::default()
    };
    let stdio = Stdio::null().map_err(|error| error.to_string())?;
    let mut process = spawner.step(&spec, stdio, None).map_err(|error| chain(&error))?;
    let exit = process.wait().map_err(|error| chain(&error))?;
    match exit.status {
        Status::Code(0) => Ok(process.notes().to_vec()),
        status => Err(format!("a trial step ended with {status:?}")),
    }
}

/// Whether the limits of the step that was tried were in force.
fn limits(notes: &[String]) -> Finding {
    let mounts = read("/proc/mounts");
    let kinds: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    let version = match (kinds.contains(&"cgroup"), kinds.contains(&"cgroup2")) {
        (false, true) => "version 2",
        (true, true) => "hybrid: version 1 with version 2 beside it",
        (true, false) => "version 1",
        (false, false) => "none mounted",
    };
    let remedy = "limits of steps need cgroups that this user may write: build as root, or have systemd delegate \
                  them (systemd-run --user --scope -p Delegate=yes builder …)";
    match notes {
        [] => Finding::fine(
            "cgroups",
            format!("{version}; a trial step had limits of memory, processors and processes"),
        ),
        notes => Finding::less("cgroups", format!("{version}; {}", notes.join("; ")), remedy),
    }
}

fn seccomp() -> Finding {
    match read("/proc/sys/kernel/seccomp/actions_avail").contains("errno") {
        true => Finding::fine("seccomp", "filters system calls of steps"),
        false => Finding::less(
            "seccomp",
            "not in this kernel: steps may make any system call",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

/// Gives a step that is never started a network.
fn network(spawner: &Spawner, is_root: bool) -> Finding {
    let networks = Networks::new();
    match networks.lease(spawner) {
        Ok(lease) => {
            let words = match is_root {
                true => "steps have their own, by a bridge with NAT",
                false => "steps have their own, by pasta or slirp4netns",
            };
            let found = Finding::fine("network", format!("{words}; a trial one had {}", lease.address()));
            drop(lease);
            networks.settle();
            found
        }
        Err(error) => Finding::less(
            "network",
            format!("steps share this machine's: {}", chain(&error)),
            match is_root {
                true => "give it the rights to make network interfaces and nf_tables rules",
                false => {
                    "install passt (or slirp4netns), and let users open /dev/net/tun: chmod 666 /dev/net/tun"
                }
            },
        ),
    }
}

fn foreign_platforms() -> Finding {
    let entries = std::fs::read_dir("/proc/sys/fs/binfmt_misc")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<String> = entries
        .filter_map(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .strip_prefix("qemu-")
                .map(str::to_owned)
        })
        .collect();
    found.sort();
    match found.is_empty() {
        false => Finding::fine("other platforms", format!("emulated: {}", found.join(", "))),
        true => Finding::less(
            "other platforms",
            format!("RUN works for {} only", oci::Platform::host()),
            "install qemu-user-static and binfmt-support to run steps of other processors",
        ),
    }
}

fn tools() -> Finding {
    let found: Vec<&str> = ["git", "runc", "crun"]
        .into_iter()
        .filter(|name| find_program(name))
        .collect();
    match found.contains(&"git") {
        true => Finding::fine("programs", format!("found {}", found.join(", "))),
        false => Finding::less(
            "programs",
            "git is missing: git contexts do not work",
            "install git",
        ),
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn find_program(name: &str) -> bool {
    let usual = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ];
    usual.iter().any(|folder| Path::new(folder).join(name).is_file())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
