//! The raw system calls that no safe library offers: one call each, deciding nothing.
//!
//! Everything else goes through `rustix`, which makes its calls directly, without libc and without allocating
//! when it is given a `&CStr`; `init` depends on that.
#![expect(unsafe_code, reason = "the one file for raw calls (STYLE 8)")]

use std::ffi::{CStr, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::thread::UnshareFlags;

/// Gives memory that was freed back to the kernel, where the allocator keeps it (malloc_trim(3) of glibc).
pub(crate) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The most heaps (arenas) the allocator makes for its threads (mallopt(3) of glibc).
pub(crate) fn share_heaps(most: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers; what it refuses stays as it is.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, most);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = most;
}

/// `CLONE_INTO_CGROUP` of clone3(2).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Stack of a cloned child: `init` needs a few pages; debug builds more.
const STACK_BYTES: usize = 512 << 10;

/// How a child is cloned, beyond `CLONE_VM | CLONE_VFORK | CLONE_PIDFD`.
pub(crate) struct CloneOptions<'a> {
    /// More `CLONE_*` flags (namespaces).
    pub(crate) flags: i32,
    /// The cgroup (version 2) the child starts in.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// A cloned child.
pub(crate) struct Cloned {
    /// Its number in our pid namespace.
    pub(crate) pid: i32,
    /// A descriptor of it.
    pub(crate) pidfd: OwnedFd,
}

/// Runs `child` in a new process that shares this one's memory, while this thread waits until it has executed
/// a program or exited. `child` must neither allocate, lock, panic nor return to anything but its exit code.
///
/// # Errors
/// Those of clone3(2); `ENOSYS` only when `options.cgroup` is given and the kernel or a filter lacks clone3.
pub(crate) fn clone_vfork(options: &CloneOptions<'_>, child: &mut dyn FnMut() -> i32) -> io::Result<Cloned> {
    let mut stack = vec![0_u128; STACK_BYTES / 16];
    let mut pidfd: RawFd = -1;
    let mut child = child;
    let argument = ptr::from_mut(&mut child).cast::<c_void>();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | options.flags;
    let pid = match clone3(flags, options.cgroup, &mut pidfd, &mut stack, argument) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && options.cgroup.is_none() => {
            clone_old(flags, &mut pidfd, &mut stack, argument)?
        }
        other => other?,
    };
    // SAFETY: the kernel has just stored a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned { pid, pidfd })
}

/// First function of the child: runs the closure behind `argument` and leaves without any clean-up.
extern "C" fn child_entry(argument: *mut c_void) -> libc::c_int {
    // SAFETY: `clone_vfork` passes a pointer to its `&mut dyn FnMut`, alive while it waits for us.
    let child = unsafe { &mut *argument.cast::<&mut dyn FnMut() -> i32>() };
    let code = child();
    // SAFETY: ends this process only; runs no handlers of the memory we share.
    unsafe { libc::_exit(code) }
}

fn clone_old(flags: i32, pidfd: &mut RawFd, stack: &mut [u128], argument: *mut c_void) -> io::Result<i32> {
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    // SAFETY: `top` is the aligned end of a stack that outlives the child's use of it (CLONE_VFORK), and with
    // CLONE_PIDFD the fifth argument receives the descriptor.
    let pid = unsafe {
        libc::clone(
            child_entry,
            top,
            flags | libc::SIGCHLD,
            argument,
            ptr::from_mut(pidfd).cast::<libc::pid_t>(),
        )
    };
    if pid < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(pid)
    }
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn clone3(
    flags: i32,
    cgroup: Option<BorrowedFd<'_>>,
    pidfd: &mut RawFd,
    stack: &mut [u128],
    argument: *mut c_void,
) -> io::Result<i32> {
    let args = CloneArgs {
        flags: u64::from(flags.cast_unsigned()) | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        pidfd: ptr::from_mut(pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: mem::size_of_val(stack) as u64,
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
        ..CloneArgs::default()
    };
    let result: isize;
    // SAFETY: the child starts on its own 16-byte aligned stack, calls `child_entry`, which does not return; the
    // parent continues behind the label with all but the named registers as they were.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") ptr::from_ref(&args),
            in("rsi") mem::size_of::<CloneArgs>(),
            in("r12") argument,
            in("r13") child_entry as extern "C" fn(*mut c_void) -> libc::c_int,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk #1",
            "2:",
            inlateout("x0") ptr::from_ref(&args) => result,
            in("x1") mem::size_of::<CloneArgs>(),
            in("x8") libc::SYS_clone3,
            in("x20") argument,
            in("x21") child_entry as extern "C" fn(*mut c_void) -> libc::c_int,
        );
    }
    if result < 0 {
        let errno = i32::try_from(-result).unwrap_or(libc::EINVAL);
        return Err(io::Error::from_raw_os_error(errno));
    }
    i32::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn clone3(
    _: i32,
    _: Option<BorrowedFd<'_>>,
    _: &mut RawFd,
    _: &mut [u128],
    _: *mut c_void,
) -> io::Result<i32> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// Moves this process (or, for mounts and network, this thread) into new namespaces.
///
/// # Errors
/// Those of unshare(2).
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: only `CLONE_FILES` could take descriptors from other threads; it is never passed.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Mount attributes to set and to clear, and the propagation to change to (0: leave).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// `MS_PRIVATE` and the like.
    pub(crate) propagation: u64,
    userns: u64,
}

impl MountAttributes {
    /// Sets `set`, clears nothing.
    pub(crate) const fn set(set: u64) -> Self {
        Self {
            set,
            clear: 0,
            propagation: 0,
            userns: 0,
        }
    }

    /// Changes the propagation alone, to `MS_PRIVATE` and the like.
    pub(crate) const fn propagate(propagation: u64) -> Self {
        Self {
            set: 0,
            clear: 0,
            propagation,
            userns: 0,
        }
    }
}

/// Changes the attributes of the mount `fd` refers to, and of all below it.
///
/// # Errors
/// Those of mount_setattr(2).
pub(crate) fn mount_setattr(fd: BorrowedFd<'_>, attributes: MountAttributes) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the structure and the empty path live during the call and the size is the structure's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(&attributes),
            mem::size_of::<MountAttributes>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Installs a filter of system calls for this thread and all it becomes.
///
/// # Errors
/// Those of seccomp(2).
pub(crate) fn install_seccomp(program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            ptr::from_ref(&program),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes `target` (0, 1 or 2) refer to what `fd` refers to, kept over execve.
///
/// # Errors
/// Those of dup2(2).
pub(crate) fn dup_to(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: passes integers only; the standard descriptors have no owner.
    match unsafe { libc::dup2(fd.as_raw_fd(), target) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Closes every descriptor from `first` on, in this process only. Nothing that owned one may be used again.
///
/// # Errors
/// Those of close_range(2).
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called in a child between clone and exec, where no owner of a descriptor runs any more.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets every signal to its default action and blocks none.
pub(crate) fn reset_signals() {
    // SAFETY: installs default actions and an empty mask; the structures are valid when zeroed.
    unsafe {
        let action: libc::sigaction = mem::zeroed();
        for signal in 1..=64 {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        let empty: libc::sigset_t = mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, ptr::null_mut());
    }
}

/// Null-terminated strings as execve(2) wants them; made before the clone, used after it.
pub(crate) struct CStringArray {
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<std::ffi::CString>,
}

impl CStringArray {
    /// Takes the strings over.
    pub(crate) fn new(strings: Vec<std::ffi::CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Self {
            pointers,
            _strings: strings,
        }
    }
}

/// Replaces this process by `program`; returns only when that failed.
pub(crate) fn execve(program: &CStr, args: &CStringArray, env: &CStringArray) -> io::Error {
    // SAFETY: all three are null-terminated and alive; on success nothing of ours remains.
    unsafe { libc::execve(program.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces this process by the program that `fd` refers to; returns only when that failed.
pub(crate) fn execveat(fd: BorrowedFd<'_>, args: &CStringArray, env: &CStringArray) -> io::Error {
    // SAFETY: as in `execve`; the path is empty and the flag says so.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            args.pointers.as_ptr(),
            env.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Tells whether the working directory can be reached from the root directory.
///
/// # Errors
/// Those of getcwd(2).
pub(crate) fn cwd_is_inside_root() -> io::Result<bool> {
    let mut path = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer has the length that is passed.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    if length < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(path[0] == b'/')
    }
}

/// Brings the loopback interface of this thread's network namespace up.
///
/// # Errors
/// Those of socket(2) and netdevice(7).
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: `ifreq` is valid when zeroed and holds the terminated name "lo"; the socket is closed here.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut request: libc::ifreq = mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed();
        request.ifr_name[1] = b'o'.cast_signed();
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let result = libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw mut request);
        let error = io::Error::last_os_error();
        libc::close(socket);
        if result < 0 { Err(error) } else { Ok(()) }
    }
}

/// Sets one limit of this process.
///
/// # Errors
/// Those of setrlimit(2).
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the structure lives during the call.
    match unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, ptr::from_ref(&limit), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How a child ended, and what it and its reaped descendants used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reaped {
    /// Exit code, or the signal number when `killed`.
    pub(crate) status: i32,
    /// Whether a signal ended it.
    pub(crate) killed: bool,
    /// User time in microseconds.
    pub(crate) user_us: u64,
    /// System time in microseconds.
    pub(crate) system_us: u64,
    /// Largest resident set of one process, in bytes.
    pub(crate) peak_rss_bytes: u64,
}

/// Reaps the child behind `pidfd` if it has ended.
///
/// # Errors
/// Those of waitid(2).
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Reaped>> {
    // SAFETY: both structures are valid when zeroed and live during the call; the fields read are those that
    // waitid(2) fills for an exited child.
    unsafe {
        let mut info: libc::siginfo_t = mem::zeroed();
        let mut usage: libc::rusage = mem::zeroed();
        let result = libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            &raw mut info,
            libc::WEXITED | libc::WNOHANG,
            &raw mut usage,
        );
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        if info.si_signo == 0 {
            return Ok(None);
        }
        let micros =
            |time: libc::timeval| time.tv_sec.cast_unsigned() * 1_000_000 + time.tv_usec.cast_unsigned();
        Ok(Some(Reaped {
            status: info.si_status(),
            killed: info.si_code != libc::CLD_EXITED,
            user_us: micros(usage.ru_utime),
            system_us: micros(usage.ru_stime),
            peak_rss_bytes: usage.ru_maxrss.cast_unsigned() * 1024,
        }))
    }
}

/// Reaps every ended child except those somebody holds a pidfd of; what init of a pid namespace owes.
pub(crate) fn reap_strangers(ours: &[i32]) {
    loop {
        // SAFETY: the structure is valid when zeroed; WNOWAIT leaves the child to be reaped below.
        let pid = unsafe {
            let mut info: libc::siginfo_t = mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            if libc::waitid(libc::P_ALL, 0, &raw mut info, flags) < 0 {
                return;
            }
            info.si_pid()
        };
        if pid == 0 || ours.contains(&pid) {
            return;
        }
        // SAFETY: reaps a child that has ended; no result is asked for.
        unsafe { libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG) };
    }
}

/// Forks this process, which must have a single thread; `Ok(None)` in the child.
///
/// # Errors
/// Those of fork(2).
pub(crate) fn fork_single_threaded() -> io::Result<Option<i32>> {
    // SAFETY: the caller has one thread, so the child's memory is as consistent as the parent's.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Ends this process at once, without handlers or destructors.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

/// Loads a program that decides on devices for cgroups.
///
/// # Errors
/// Those of bpf(2); `EPERM` without the right to do so.
pub(crate) fn load_device_program(code: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        code: u64,
        license: u64,
        log: [u64; 2],
        rest: [u64; 12],
    }
    const PROG_LOAD: i32 = 5;
    const CGROUP_DEVICE: u32 = 15;
    let load = Load {
        kind: CGROUP_DEVICE,
        count: u32::try_from(code.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
        code: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the structure, the code and the license live during the call and the size is the structure's.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, mem::size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EMFILE))?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a loaded program decide on the devices of all processes in `cgroup`.
///
/// # Errors
/// Those of bpf(2).
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    const PROG_ATTACH: i32 = 8;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let attach = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the structure lives during the call and the size is its own.
    match unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attach,
            mem::size_of::<Attach>(),
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes over a descriptor that was left open for this program under a fixed number.
pub(crate) fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: the caller has checked that it is open; whoever started us left it for this purpose and nothing
    // else in this program refers to it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // A failure would mean that it is not open, which was checked.
    let _set = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
    fd
}

/// Has the loader call a function before `main`.
#[cfg(any(test, feature = "before-main"))]
macro_rules! before_main {
    ($function:path) => {
        // SAFETY: the section holds pointers to functions of this signature, which the loader calls in order.
        #[expect(
            unsafe_code,
            reason = "where the macro is used, this file's word does not hold"
        )]
        #[used]
        #[unsafe(link_section = ".init_array.65535")]
        static BEFORE_MAIN: extern "C" fn() = $function;
    };
}
#[cfg(any(test, feature = "before-main"))]
pub(crate) use before_main;
