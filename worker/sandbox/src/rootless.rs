//! Without root: a user namespace in which this process is root over a range of ids, entered before anything else.
//!
//! ```text
//! main (one thread) ─▶ fork a helper ─▶ unshare user + mount namespace ─▶ helper maps ids ─▶ go on as uid 0
//! ```
//!
//! With `newuidmap`, `newgidmap` and a range in `/etc/subuid` and `/etc/subgid` the namespace has 65,536 ids or
//! more; else one, our own, shown as 0: then steps can only be root and files only root's. Root that may not mount, as in
//! most containers, needs no such programs: it hands on all ids it has.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::mount::MountPropagationFlags;
use rustix::pipe::PipeFlags;
use rustix::thread::UnshareFlags;

use crate::Error;
use crate::sys;

/// What [`enter`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// Nothing: this process is root already, and may mount.
    AlreadyRoot,
    /// A namespace with a range of ids.
    Range,
    /// A namespace with one id.
    SingleId,
}

/// Whether this process is root and may mount. Root of a container often may not, and is then as anybody else.
#[must_use]
pub fn may_mount() -> bool {
    let sets = rustix::thread::capabilities(None);
    rustix::process::geteuid().is_root()
        && sets.is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

/// Enters a user namespace when this process is not root or may not mount. Must be called before any thread is started.
///
/// # Errors
/// [`Error::Rootless`] says what to change on the machine.
pub fn enter() -> Result<Entered, Error> {
    if may_mount() {
        return Ok(Entered::AlreadyRoot);
    }
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Rootless { what, source }
    };
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let mapping = match Ranges::find(uid) {
        _ if uid == 0 => Some(Mapping::Own),
        Some(ranges) => Some(Mapping::Subordinate(ranges, uid, gid)),
        None => None,
    };
    let helper = match &mapping {
        Some(mapping) => Some(Helper::start(mapping).map_err(failed("start a helper that maps ids"))?),
        None => None,
    };
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(failed(
        "make a user namespace (see user.max_user_namespaces, kernel.unprivileged_userns_clone and \
         kernel.apparmor_restrict_unprivileged_userns in sysctl)",
    ))?;
    let entered = if helper.is_some_and(|helper| helper.finish().is_ok()) {
        Entered::Range
    } else {
        map_single(uid, gid).map_err(failed("map our own id to root"))?;
        Entered::SingleId
    };
    let follow = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", follow).map_err(|errno| {
        failed(
            "change mounts in a user namespace (kernel.apparmor_restrict_unprivileged_userns=1 forbids it)",
        )(errno.into())
    })?;
    Ok(entered)
}

fn map_single(uid: u32, gid: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Tells whether this process is in a user namespace that is not the first one.
#[must_use]
pub fn is_in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<_> = map.split_whitespace().collect();
    !fields.is_empty() && fields != ["0", "0", "4294967295"]
}

/// Tells whether supplementary groups can be set here.
pub(crate) fn may_set_groups() -> bool {
    fs::read_to_string("/proc/self/setgroups").map_or(true, |text| text.trim() != "deny")
}

/// Subordinate ids of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranges {
    uids: Vec<(u32, u32)>,
    gids: Vec<(u32, u32)>,
}

impl Ranges {
    /// Those of the user `uid`, when both kinds exist and the programs that map them do.
    pub(crate) fn find(uid: u32) -> Option<Self> {
        let name = user_name(uid);
        let read = |path| {
            parse_ranges(
                &fs::read_to_string(path).unwrap_or_default(),
                uid,
                name.as_deref(),
            )
        };
        let ranges = Self {
            uids: read("/etc/subuid"),
            gids: read("/etc/subgid"),
        };
        let usable = !ranges.uids.is_empty() && !ranges.gids.is_empty();
        (usable && has_program("newuidmap") && has_program("newgidmap")).then_some(ranges)
    }
}

/// Tells whether a program is where programs are.
pub(crate) fn has_program(name: &str) -> bool {
    find_program(name).is_some()
}

/// Where a program is.
pub(crate) fn find_program(name: &str) -> Option<std::path::PathBuf> {
    [
        "/usr/bin",
        "/bin",
        "/usr/sbin",
        "/sbin",
        "/usr/local/bin",
        "/usr/local/sbin",
    ]
    .iter()
    .map(|dir| std::path::Path::new(dir).join(name))
    .find(|path| path.is_file())
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Lines `name-or-id:first:count` that are about `uid`.
fn parse_ranges(text: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let who = fields.next()?;
            let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            let is_ours = Some(who) == name || who.parse() == Ok(uid);
            (is_ours && count > 0 && !who.is_empty()).then_some((first, count))
        })
        .collect()
}

/// How a namespace gets its ids.
enum Mapping {
    /// Of root: all it has itself, under the same numbers.
    Own,
    /// Our own, shown as 0, and subordinate ones behind it.
    Subordinate(Ranges, u32, u32),
}

impl Mapping {
    /// Maps the ids of `target`; whether that went well.
    fn apply(&self, target: u32) -> bool {
        match self {
            Self::Own => ["uid_map", "gid_map"].iter().all(|map| {
                let ours = fs::read_to_string(format!("/proc/self/{map}")).unwrap_or_default();
                fs::write(format!("/proc/{target}/{map}"), same_ids(&ours)).is_ok()
            }),
            Self::Subordinate(ranges, uid, gid) => {
                map("newuidmap", target, *uid, &ranges.uids) && map("newgidmap", target, *gid, &ranges.gids)
            }
        }
    }
}

/// The map that shows the ids of the map `ours` under the same numbers; never quite all there can be, by which one would
/// take it for the first namespace.
fn same_ids(ours: &str) -> String {
    const MOST: u32 = 0x7fff_ffff;
    let mut map = String::new();
    for line in ours.lines() {
        let mut fields = line.split_whitespace();
        if let (Some(first), Some(count)) =
            (fields.next(), fields.nth(1).and_then(|count| count.parse().ok()))
        {
            map += &format!("{first} {first} {}\n", MOST.min(count));
        }
    }
    map
}

/// A process left outside, which alone may map the ids of the one inside.
struct Helper {
    go: OwnedFd,
    done: OwnedFd,
}

impl Helper {
    fn start(mapping: &Mapping) -> io::Result<Self> {
        let (wait, go) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (done, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let target = std::process::id();
        if sys::fork_single_threaded()?.is_some() {
            return Ok(Self { go, done });
        }
        drop((go, done));
        let mut byte = [0];
        let told = fs::File::from(wait).read(&mut byte).unwrap_or(0) == 1;
        let mapped = told && mapping.apply(target);
        // The reader takes silence for failure.
        let _told = fs::File::from(tell).write_all(&[u8::from(mapped)]);
        sys::exit_now(0)
    }

    fn finish(self) -> io::Result<()> {
        fs::File::from(self.go).write_all(b"x")?;
        let mut byte = [0];
        let read = fs::File::from(self.done).read(&mut byte)?;
        // Collects the helper, whose only child we know of it is.
        let _collected = rustix::process::wait(rustix::process::WaitOptions::empty());
        if read == 1 && byte[0] == 1 {
            Ok(())
        } else {
            Err(io::Error::other("ids could not be mapped"))
        }
    }
}

/// Our own id becomes 0, the subordinate ones follow from 1 on.
fn map(program: &str, target: u32, own: u32, ranges: &[(u32, u32)]) -> bool {
    let Some(program) = find_program(program) else {
        return false;
    };
    let mut command = Command::new(program);
    command.args([target, 0, own, 1].map(|number| number.to_string()));
    let mut next = 1_u32;
    for (first, count) in ranges {
        command.args([next, *first, *count].map(|number| number.to_string()));
        let Some(following) = next.checked_add(*count) else {
            break;
        };
        next = following;
    }
    command.output().is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_belong_to_a_name_or_an_id() {
        let text = "alice:100000:65536\n1000:200000:10\nbob:1:1\nbroken\nalice:x:1\nalice:5:0\n";
        assert_eq!(
            parse_ranges(text, 1000, Some("alice")),
            [(100_000, 65_536), (200_000, 10)]
        );
        assert_eq!(parse_ranges(text, 1001, Some("bob")), [(1, 1)]);
        assert!(parse_ranges(text, 7, None).is_empty());
    }

    #[test]
    fn root_hands_on_the_ids_it_has() {
        for (ours, expected) in [
            ("         0          0 4294967295\n", "0 0 2147483647\n"),
            ("0 1000 1\n1 100000 65536\n", "0 0 1\n1 1 65536\n"),
            ("", ""),
        ] {
            assert_eq!(same_ids(ours), expected);
        }
    }
}
