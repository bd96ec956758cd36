//! Numbers of the calls: which architectures the kernel of this one can run, and what they call what.

/// One table of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    expect(dead_code, reason = "each architecture runs some of these")
)]
pub(super) enum Abi {
    /// 64-bit x86.
    X86_64,
    /// 64-bit x86 with 32-bit pointers; shares the audit number of `X86_64`, its numbers have bit 30 set.
    X32,
    /// 32-bit x86.
    X86,
    /// 64-bit Arm.
    Aarch64,
    /// 32-bit Arm.
    Arm,
    /// 64-bit RISC-V.
    Riscv64,
}

/// The bit in the numbers of the x32 table.
pub(super) const X32_BIT: u32 = 0x4000_0000;

#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE: &[Abi] = &[Abi::X86_64, Abi::X32, Abi::X86];
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: &[Abi] = &[Abi::Aarch64, Abi::Arm];
#[cfg(target_arch = "riscv64")]
pub(super) const NATIVE: &[Abi] = &[Abi::Riscv64];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
pub(super) const NATIVE: &[Abi] = &[];

/// Calls whose x32 number is not the x86_64 one, from 512 on.
const X32_OWN: &str = "rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace \
    rt_sigpending rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid \
    set_robust_list get_robust_list vmsplice move_pages preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg \
    process_vm_readv process_vm_writev setsockopt getsockopt io_setup io_submit execveat preadv2 pwritev2";

impl Abi {
    /// The number by which `seccomp_data.arch` names it (linux/audit.h).
    pub(super) const fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xC000_003E,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xC000_00B7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xC000_00F3,
        }
    }

    /// Whether arguments are compared in 64 bits.
    pub(super) const fn is_64_bit(self) -> bool {
        !matches!(self, Self::X86 | Self::Arm)
    }

    /// The number of the call `name`, if it has one.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86_64 => name.parse::<syscalls::x86_64::Sysno>().ok()?.id(),
            Self::X32 => return x32_number(name),
            Self::X86 => name.parse::<syscalls::x86::Sysno>().ok()?.id(),
            Self::Aarch64 => name.parse::<syscalls::aarch64::Sysno>().ok()?.id(),
            Self::Arm => name.parse::<syscalls::arm::Sysno>().ok()?.id(),
            Self::Riscv64 => name.parse::<syscalls::riscv64::Sysno>().ok()?.id(),
        };
        u32::try_from(number).ok()
    }
}

fn x32_number(name: &str) -> Option<u32> {
    if let Some(index) = X32_OWN.split_whitespace().position(|own| own == name) {
        return u32::try_from(512 + index).ok().map(|number| number | X32_BIT);
    }
    Abi::X86_64.number(name).map(|number| number | X32_BIT)
}
