//! Steps that really run, in a root made of a static busybox; skipped, by name, without root or without busybox.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::spec::{
    Limits, Mount, MountFlags, Network, Overlay, Resource, Rlimit, Root, SecretFile, Security, Source, Spec,
    Stubs, Upper, User,
};
use crate::{Error, Exit, Process, Size, Spawner, Status, Stdio, Tool, ToolMount};

/// One spawner for all tests of this program, as in the builder.
fn spawner() -> &'static Spawner {
    static SPAWNER: OnceLock<Spawner> = OnceLock::new();
    SPAWNER.get_or_init(|| Spawner::start().expect("a spawner"))
}

/// A lower layer with busybox, an upper layer and a place for the kernel; removed with the value.
struct Ground {
    dir: PathBuf,
}

impl Ground {
    /// `None`, and a line that says so, where steps cannot run.
    fn new(test: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .iter()
            .map(Path::new)
            .find(|path| path.is_file());
        let Some(busybox) = busybox.filter(|_| rustix::process::geteuid().is_root()) else {
            skipped(test);
            return None;
        };
        let name = format!(
            "sandbox-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        for part in ["lower/bin", "lower/etc", "upper", "work", "shared/inside"] {
            fs::create_dir_all(dir.join(part)).expect("made");
        }
        fs::copy(busybox, dir.join("lower/bin/busybox")).expect("copied");
        symlink("busybox", dir.join("lower/bin/sh")).expect("linked");
        Some(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A step that runs `script`, with nothing written yet.
    fn spec(&self, script: &str) -> Spec {
        for part in ["upper", "work"] {
            fs::remove_dir_all(self.path(part)).expect("removed");
            fs::create_dir(self.path(part)).expect("made");
        }
        let upper = Upper {
            dir: self.path("upper"),
            work: self.path("work"),
        };
        Spec {
            root: Root::Overlay(Overlay {
                lowers: vec![self.path("lower")],
                upper: Some(upper),
            }),
            args: ["/bin/sh", "-c", script].map(String::from).into(),
            env: vec!["PATH=/bin".into(), "A=b".into()],
            hosts: Some(b"127.0.0.1\tlocalhost\n".to_vec()),
            resolv_conf: Some(b"nameserver 192.0.2.1\n".to_vec()),
            ..Spec::default()
        }
    }

    /// Everything below the upper layer, as sorted relative paths.
    fn written(&self) -> BTreeSet<String> {
        fn walk(dir: &Path, base: &Path, all: &mut BTreeSet<String>) {
            for entry in fs::read_dir(dir).expect("listed").flatten() {
                let path = entry.path();
                all.insert(
                    path.strip_prefix(base)
                        .expect("below")
                        .to_string_lossy()
                        .into_owned(),
                );
                if path.is_dir() && !path.is_symlink() {
                    walk(&path, base, all);
                }
            }
        }
        let mut all = BTreeSet::new();
        walk(&self.path("upper"), &self.path("upper"), &mut all);
        all
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).expect("removed");
    }
}

fn skipped(test: &str) {
    eprintln!("skipped: {test}: needs root and a static busybox");
}

fn start(spec: &Spec) -> Result<(Process, std::thread::JoinHandle<String>), Error> {
    let (stdio, out, err) = Stdio::pipes().expect("pipes");
    let process = spawner().step(spec, stdio, None)?;
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        fs::File::from(out).read_to_string(&mut text).expect("text");
        fs::File::from(err).read_to_string(&mut text).expect("text");
        text
    });
    Ok((process, reading))
}

fn run(spec: &Spec) -> (Exit, String) {
    let (mut process, reading) = start(spec).expect("started");
    let exit = process.wait().expect("ended");
    (exit, reading.join().expect("read"))
}

fn output(spec: &Spec) -> String {
    let (exit, text) = run(spec);
    assert_eq!(exit.status, Status::Code(0), "{text}");
    text
}

#[test]
fn ends_are_told_as_they_were() {
    let Some(ground) = Ground::new("ends_are_told_as_they_were") else {
        return;
    };
    assert_eq!(run(&ground.spec("exit 7")).0.status, Status::Code(7));
    assert_eq!(run(&ground.spec("busybox true")).0.status.code(), 0);
    let text = output(&ground.spec("echo out; echo err >&2"));
    assert_eq!(text, "out\nerr\n");
    let missing = Spec {
        args: vec!["nothing-here".into()],
        ..ground.spec("")
    };
    assert!(matches!(start(&missing), Err(Error::NotFound { .. })));
    let directory = Spec {
        args: vec!["/etc".into()],
        ..ground.spec("")
    };
    assert!(matches!(
        start(&directory),
        Err(Error::Exec {
            errno: libc::EACCES,
            ..
        })
    ));
    let nowhere = Spec {
        cwd: "relative".into(),
        ..ground.spec("")
    };
    assert!(matches!(start(&nowhere), Err(Error::Invalid(_))));
}

#[test]
fn a_step_is_alone_and_confined() {
    let Some(ground) = Ground::new("a_step_is_alone_and_confined") else {
        return;
    };
    let text = output(&ground.spec(
        "echo pid $$; busybox hostname; busybox ls /proc/1/fd | busybox wc -l; busybox env | busybox sort | \
         busybox tr '\\n' ' '; busybox grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/1/status; \
         busybox ls /proc | busybox grep -c '^[0-9]'; busybox ls -d /.. /bin; busybox ls /../../ | busybox tr '\\n' ' '",
    ));
    // `ls` itself holds one more descriptor of the directory it lists, but that is not pid 1's.
    for expected in [
        "pid 1\n",
        "buildkitsandbox\n3\n",
        "A=b PATH=/bin PWD=/ ",
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
        "bin dev etc proc sys ",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
}

#[test]
fn nothing_of_the_host_is_in_sight() {
    let Some(ground) = Ground::new("nothing_of_the_host_is_in_sight") else {
        return;
    };
    let text = output(&ground.spec("busybox cat /proc/self/mountinfo"));
    let points: Vec<_> = text.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(
        points.iter().filter(|point| **point == "/").count(),
        1,
        "one root: {text}"
    );
    let expected = ["/", "/proc", "/sys", "/dev", "/etc/hosts", "/etc/resolv.conf"];
    let strange = points.iter().find(|point| {
        !expected.contains(*point)
            && !["/proc/", "/sys/", "/dev/"]
                .iter()
                .any(|top| point.starts_with(top))
    });
    assert_eq!(strange, None, "{text}");
    assert!(!text.contains(" shared:") && !text.contains(" master:"), "{text}");
}

#[test]
fn what_a_step_may_not_do_fails() {
    let Some(ground) = Ground::new("what_a_step_may_not_do_fails") else {
        return;
    };
    let refused = [
        "busybox mount -t tmpfs x /etc",
        "echo 1 > /proc/sys/kernel/sysrq",
        "echo b > /proc/sysrq-trigger",
        "busybox mkdir /sys/fs/cgroup/mine",
        "echo x > /etc/hosts",
        "busybox umount /proc/kcore",
        "busybox unshare -m true",
        "busybox mknod /disk b 1 0 && busybox dd if=/disk of=/dev/null count=1",
        "busybox mknod /dev/disk b 1 0 && busybox dd if=/dev/disk of=/dev/null count=1",
        "busybox mknod /mem c 1 1 && busybox dd if=/mem of=/dev/null count=1",
        "busybox sethostname other || busybox hostname other",
        "busybox head -c 1 /proc/kcore | busybox grep -q .",
    ];
    let script: String = refused
        .iter()
        .map(|line| format!("( {line} ) 2>/dev/null && echo \"done: {line}\"\n"))
        .collect();
    assert_eq!(output(&ground.spec(&format!("{script}true"))), "");
    let usual = "echo x > /dev/null; busybox head -c 4 /dev/urandom | busybox wc -c; busybox head -c 2 /dev/zero | \
                 busybox wc -c; busybox ls /dev/pts/ptmx /dev/shm; echo s > /dev/shm/f";
    assert_eq!(output(&ground.spec(usual)), "4\n2\n/dev/pts/ptmx\n\n/dev/shm:\n");
}

#[test]
fn an_insecure_step_may() {
    let Some(ground) = Ground::new("an_insecure_step_may") else {
        return;
    };
    let spec = Spec {
        security: Security::Insecure,
        ..ground.spec("busybox mount -t tmpfs x /etc && busybox grep Seccomp: /proc/1/status")
    };
    assert_eq!(output(&spec), "Seccomp:\t0\n");
}

#[test]
fn mount_points_vanish_unless_something_was_put_beside_them() {
    let Some(ground) = Ground::new("mount_points_vanish_unless_something_was_put_beside_them") else {
        return;
    };
    let tmpfs = |target: &str| Mount {
        target: target.into(),
        source: Source::Tmpfs {
            size_bytes: Some(1 << 20),
            mode: 0o1777,
        },
        readonly: false,
        flags: MountFlags::default(),
    };
    let mounts = vec![tmpfs("/var/cache/deep"), tmpfs("/opt/kept/cache")];
    let spec = Spec {
        mounts,
        ..ground.spec("echo > /opt/kept/file; echo > /var/cache/deep/lost; echo > /made")
    };
    output(&spec);
    let expected = [
        "dev",
        "etc",
        "made",
        "opt",
        "opt/kept",
        "opt/kept/file",
        "proc",
        "sys",
    ];
    assert_eq!(ground.written(), expected.map(String::from).into());
    assert_eq!(
        ground.path("upper/etc").metadata().expect("stat").mtime(),
        ground.path("lower/etc").metadata().expect("stat").mtime()
    );
}

#[test]
fn mounts_show_what_they_should() {
    let Some(ground) = Ground::new("mounts_show_what_they_should") else {
        return;
    };
    fs::write(ground.path("shared/inside/file"), "shared\n").expect("written");
    symlink("/etc", ground.path("shared/out")).expect("linked");
    let bind = |target: &str, subpath: &str, readonly| Mount {
        target: target.into(),
        source: Source::Bind {
            path: ground.path("shared"),
            subpath: subpath.into(),
        },
        readonly,
        flags: MountFlags::default(),
    };
    let secret = Mount {
        target: "/run/secrets/key".into(),
        source: Source::Secret(SecretFile {
            content: b"hush\n".to_vec(),
            mode: 0o440,
            uid: 7,
            gid: 8,
        }),
        readonly: true,
        flags: MountFlags {
            nosuid: true,
            nodev: true,
            noexec: true,
        },
    };
    let script = "busybox cat /ro/file /run/secrets/key; busybox stat -c '%a %u %g' /run/secrets/key; \
                  (echo x > /ro/file) 2>/dev/null || echo read-only; echo mine > /rw/inside/new; \
                  (echo x > /run/secrets/key) 2>/dev/null || echo read-only";
    let mounts = vec![bind("/ro", "inside", true), bind("/rw", "", false), secret];
    let text = output(&Spec {
        mounts,
        ..ground.spec(script)
    });
    assert_eq!(text, "shared\nhush\n440 7 8\nread-only\nread-only\n");
    assert_eq!(
        fs::read_to_string(ground.path("shared/inside/new")).expect("written"),
        "mine\n"
    );
    let escaping = Spec {
        mounts: vec![bind("/x", "out", true)],
        ..ground.spec("true")
    };
    assert!(
        matches!(
            start(&escaping),
            Err(Error::Setup {
                errno: libc::ENOENT,
                ..
            })
        ),
        "links end inside the source"
    );
}

#[test]
fn users_directories_and_limits_are_as_asked() {
    let Some(ground) = Ground::new("users_directories_and_limits_are_as_asked") else {
        return;
    };
    let spec = Spec {
        user: User {
            uid: 1000,
            gid: 1001,
            groups: vec![1001, 44],
        },
        cwd: "/home/me".into(),
        rlimits: vec![Rlimit {
            resource: Resource::Nofile,
            soft: 99,
            hard: 100,
        }],
        stubs: Stubs::Keep,
        ..ground.spec(
            "busybox id; busybox pwd; ulimit -n; busybox touch here; busybox grep CapEff /proc/1/status",
        )
    };
    let text = output(&spec);
    assert_eq!(
        text,
        "uid=1000 gid=1001 groups=44,1001\n/home/me\n99\nCapEff:\t0000000000000000\n"
    );
    let home = ground.path("upper/home/me").metadata().expect("made");
    assert_eq!((home.uid(), home.gid(), home.mode() & 0o777), (1000, 1001, 0o755));
}

#[test]
fn a_working_directory_outside_the_root_is_refused() {
    let Some(ground) = Ground::new("a_working_directory_outside_the_root_is_refused") else {
        return;
    };
    for number in 3..12 {
        let spec = Spec {
            cwd: format!("/proc/self/fd/{number}"),
            ..ground.spec("busybox ls ../../..")
        };
        assert!(start(&spec).is_err(), "descriptor {number}");
    }
}

#[test]
fn no_network_means_loopback_alone() {
    let Some(ground) = Ground::new("no_network_means_loopback_alone") else {
        return;
    };
    let spec = Spec {
        network: Network::None,
        ..ground.spec("busybox ls /sys/class/net; busybox ip -o addr")
    };
    let text = output(&spec);
    assert!(text.starts_with("lo\n") && text.contains("127.0.0.1/8"), "{text}");
}

#[test]
fn a_tool_sees_its_layers_and_the_network_it_was_given() {
    let Some(ground) = Ground::new("a_tool_sees_its_layers_and_the_network_it_was_given") else {
        return;
    };
    // A thread that leaves the machine's network hands on the namespace it is in then.
    let namespace = std::thread::spawn(|| {
        crate::sys::unshare(rustix::thread::UnshareFlags::NEWNET).expect("a network namespace");
        fs::File::open("/proc/thread-self/ns/net").expect("opened")
    });
    let namespace = namespace.join().expect("no panic");
    let target = ground.path("shared/inside");
    let script = format!("cat /proc/self/net/dev; ls {}", target.display());
    let overlay = Overlay {
        lowers: vec![ground.path("lower"), ground.path("layers")],
        upper: None,
    };
    fs::create_dir(ground.path("layers")).expect("made");
    let tool = Tool {
        args: vec!["/bin/sh".into(), "-c".into(), script],
        env: vec!["PATH=/usr/bin:/bin".into()],
        cwd: "/".into(),
        mounts: vec![ToolMount {
            target: target.clone(),
            overlay,
        }],
        targets: Vec::new(),
        directories: Vec::new(),
        stubs: Stubs::Keep,
        confined: None,
    };
    let (stdio, out, _err) = Stdio::pipes().expect("pipes");
    let mut process = spawner()
        .tool(&tool, stdio, Some(namespace.as_fd()))
        .expect("started");
    let mut text = String::new();
    fs::File::from(out).read_to_string(&mut text).expect("text");
    assert_eq!(process.wait().expect("ended").status, Status::Code(0), "{text}");
    let links: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim())
        .collect();
    assert_eq!(links, ["lo"], "{text}");
    assert!(text.ends_with("bin\netc\n"), "{text}");
    assert_eq!(
        fs::read_dir(&target).expect("listed").count(),
        0,
        "mounted for the tool alone"
    );
}

#[test]
fn nobody_else_may_add_to_our_groups() {
    let Some(ground) = Ground::new("nobody_else_may_add_to_our_groups") else {
        return;
    };
    output(&ground.spec("true"));
    let Some(unified) = crate::cgroup::Hierarchies::find().unified else {
        return;
    };
    let ours = format!("-{}-", std::process::id());
    for group in fs::read_dir(unified.join("builder"))
        .into_iter()
        .flatten()
        .flatten()
    {
        if group.file_name().to_string_lossy().contains(&ours) {
            assert_eq!(group.metadata().expect("stat").mode() & 0o022, 0, "{group:?}");
        }
    }
}

#[test]
fn killing_ends_all_descendants() {
    let Some(ground) = Ground::new("killing_ends_all_descendants") else {
        return;
    };
    let script = "busybox sleep 1000 & busybox setsid busybox sleep 1000 & echo ready; wait";
    let (mut process, reading) = start(&ground.spec(script)).expect("started");
    process.kill().expect("killed");
    let exit = process.wait().expect("ended");
    assert_eq!(exit.status, Status::Signal(libc::SIGKILL));
    // The pipe ends only when nobody holds it any more.
    reading.join().expect("all writers are gone");
}

#[test]
fn steps_end_with_their_spawner() {
    let Some(ground) = Ground::new("steps_end_with_their_spawner") else {
        return;
    };
    let own = Spawner::start().expect("a second spawner");
    let (stdio, out, _err) = Stdio::pipes().expect("pipes");
    let mut process = own
        .step(
            &ground.spec("busybox sleep 1000 & busybox sleep 1000"),
            stdio,
            None,
        )
        .expect("started");
    drop(own);
    let mut text = String::new();
    fs::File::from(out)
        .read_to_string(&mut text)
        .expect("the writers are gone");
    // Told as killed when the spawner could still say so.
    assert!(
        process
            .wait()
            .map_or(true, |exit| exit.status == Status::Signal(libc::SIGKILL))
    );
}

#[test]
fn many_layers_are_one_tree() {
    let Some(ground) = Ground::new("many_layers_are_one_tree") else {
        return;
    };
    let mut lowers: Vec<PathBuf> = (0..120).map(|n| ground.path(&format!("layers/{n}/fs"))).collect();
    for (n, lower) in lowers.iter().enumerate() {
        fs::create_dir_all(lower).expect("made");
        fs::write(lower.join("top"), format!("{n}\n")).expect("written");
        fs::write(lower.join(format!("only-{n}")), "").expect("written");
    }
    lowers.push(ground.path("lower"));
    let upper = Upper {
        dir: ground.path("upper"),
        work: ground.path("work"),
    };
    let spec = Spec {
        root: Root::Overlay(Overlay {
            lowers,
            upper: Some(upper),
        }),
        ..ground.spec("busybox cat /top; busybox ls / | busybox grep -c only; busybox rm /top")
    };
    assert_eq!(output(&spec), "0\n120\n");
    let whiteout = ground.path("upper/top").symlink_metadata().expect("a whiteout");
    assert_eq!(
        (whiteout.mode() & libc::S_IFMT, whiteout.rdev()),
        (libc::S_IFCHR, 0)
    );
}

#[test]
fn limits_of_the_group_hold_or_are_said_not_to() {
    let Some(ground) = Ground::new("limits_of_the_group_hold_or_are_said_not_to") else {
        return;
    };
    let limits = Limits {
        memory_bytes: Some(32 << 20),
        ..Limits::default()
    };
    let hungry = "busybox dd if=/dev/zero of=/dev/shm/big bs=1M count=60 2>/dev/null";
    let spec = Spec {
        limits,
        shm_size_bytes: 128 << 20,
        ..ground.spec(hungry)
    };
    let (mut process, reading) = start(&spec).expect("started");
    let notes = process.notes().to_vec();
    let exit = process.wait().expect("ended");
    reading.join().expect("read");
    if notes.is_empty() {
        assert!(exit.is_out_of_memory && exit.status.code() != 0, "{exit:?}");
    } else {
        assert!(notes[0].contains("memory"), "{notes:?}");
    }
}

/// Everything that comes out of a terminal until its last user has closed it.
fn shown(process: &mut Process) -> std::thread::JoinHandle<String> {
    let mut terminal = fs::File::from(
        process
            .terminal()
            .expect("it was asked for")
            .try_clone()
            .expect("a descriptor"),
    );
    std::thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), [0; 1024]);
        while let Ok(count @ 1..) = terminal.read(&mut buffer) {
            all.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8(all).expect("text")
    })
}

#[test]
fn a_terminal_is_one_of_the_container_and_its_console() {
    let Some(ground) = Ground::new("a_terminal_is_one_of_the_container_and_its_console") else {
        return;
    };
    let script = "busybox tty; busybox stty size; busybox stat -c '%u %F' $(busybox tty); echo to-console > /dev/console; \
                  echo to-tty > /dev/tty; busybox ps -o pid,tty | busybox tail -1";
    let mut spec = ground.spec(script);
    spec.user = User {
        uid: 7,
        gid: 7,
        groups: Vec::new(),
    };
    let size = Size {
        rows: 31,
        columns: 97,
    };
    let mut process = spawner()
        .step(&spec, Stdio::Terminal(size), None)
        .expect("started");
    let reading = shown(&mut process);
    let exit = process.wait().expect("ended");
    let text = reading.join().expect("read");
    assert_eq!(exit.status, Status::Code(0), "{text}");
    for expected in [
        "/dev/pts/0\r\n31 97\r\n7 character special file\r\n",
        "to-console\r\n",
        "to-tty\r\n",
        "136,0",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
}

#[test]
fn further_processes_are_in_the_container_and_end_with_it() {
    let Some(ground) = Ground::new("further_processes_are_in_the_container_and_end_with_it") else {
        return;
    };
    let limits = Limits {
        pids: Some(50),
        ..Limits::default()
    };
    let spec = Spec {
        limits,
        hostname: "first".into(),
        ..ground.spec("echo made > /here; echo ready; exec busybox sleep 600")
    };
    let (stdio, out, _err) = Stdio::pipes().expect("pipes");
    let mut first = spawner().step(&spec, stdio, None).expect("started");
    let mut ready = [0; 6];
    fs::File::from(out).read_exact(&mut ready).expect("it says so");
    let further = |script: &str| Spec {
        args: ["sh", "-c", script].map(String::from).into(),
        env: vec!["PATH=/bin".into()],
        cwd: "/bin".into(),
        user: User {
            uid: 12,
            gid: 13,
            groups: vec![14],
        },
        ..Spec::default()
    };
    let (stdio, out, err) = Stdio::pipes().expect("pipes");
    let looks = "cat() { busybox cat \"$@\"; }; cat /here; busybox hostname; busybox pwd; busybox id; busybox ps -o pid,args; \
                 busybox grep -E '^(CapBnd|Seccomp):' /proc/self/status; busybox ls /dev; echo $0 >&2; exit 9";
    let mut second = spawner()
        .enter(first.doorway(), &further(looks), stdio)
        .expect("entered");
    let mut text = String::new();
    fs::File::from(out).read_to_string(&mut text).expect("text");
    fs::File::from(err).read_to_string(&mut text).expect("text");
    assert_eq!(second.wait().expect("ended").status, Status::Code(9), "{text}");
    for expected in [
        "made\nfirst\n/bin\nuid=12 gid=13 groups=14\n",
        "1 busybox sleep 600",
        "CapBnd:\t00000000a80425fb",
        "Seccomp:\t2",
        "urandom",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    let mut third = spawner()
        .enter(
            first.doorway(),
            &further("busybox tty; busybox stty size"),
            Stdio::Terminal(Size::default()),
        )
        .expect("entered");
    let reading = shown(&mut third);
    assert_eq!(third.wait().expect("ended").status, Status::Code(0));
    assert_eq!(reading.join().expect("read"), "/dev/pts/0\r\n24 80\r\n");
    let missing = Spec {
        args: vec!["nothing-here".into()],
        ..further("")
    };
    let refused = spawner().enter(first.doorway(), &missing, Stdio::null().expect("null"));
    assert!(matches!(refused, Err(Error::NotFound { .. })), "{refused:?}");
    let mut fourth = spawner()
        .enter(
            first.doorway(),
            &further("busybox sleep 600"),
            Stdio::null().expect("null"),
        )
        .expect("entered");
    first.kill().expect("killed");
    first.wait().expect("ended");
    assert_eq!(
        fourth.wait().expect("ended").status,
        Status::Signal(libc::SIGKILL)
    );
    let late = spawner().enter(first.doorway(), &further("true"), Stdio::null().expect("null"));
    assert!(matches!(late, Err(Error::Invalid(_))), "{late:?}");
    // The spawner is as able as before.
    assert_eq!(output(&ground.spec("echo $$")), "1\n");
}

#[test]
#[ignore = "prints times; run by hand"]
fn how_long_a_step_takes() {
    let Some(ground) = Ground::new("how_long_a_step_takes") else {
        return;
    };
    let mut bare = Vec::new();
    let mut steps = Vec::new();
    for _ in 0..60 {
        let begin = std::time::Instant::now();
        std::process::Command::new("/bin/busybox")
            .arg("true")
            .status()
            .expect("ran");
        bare.push(begin.elapsed());
        let spec = Spec {
            args: ["/bin/busybox", "true"].map(String::from).into(),
            ..ground.spec("")
        };
        let begin = std::time::Instant::now();
        let mut process = spawner()
            .step(&spec, Stdio::null().expect("null"), None)
            .expect("started");
        process.wait().expect("ended");
        steps.push(begin.elapsed());
    }
    bare.sort();
    steps.sort();
    eprintln!("bare: least {:?}, median {:?}", bare[0], bare[30]);
    eprintln!("step: least {:?}, median {:?}", steps[0], steps[30]);
}
