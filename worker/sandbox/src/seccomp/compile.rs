//! Turns rules into a BPF program: architecture, then binary search on the number, then arguments.
//!
//! Every block ends in a verdict, so blocks are simply put one behind the other; a jump over more than 255
//! instructions goes through an unconditional one.

use std::collections::BTreeMap;

use libc::sock_filter;

use super::profile::{self, Action, Condition, ENOSYS, EPERM, Test};
use super::table::{Abi, NATIVE, X32_BIT};
use crate::spec::Capabilities;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const VERDICT: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Offsets in `seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

type Code = Vec<sock_filter>;

/// The whole program for a process with `capabilities`; `None` where the architecture is not known.
pub(super) fn program(capabilities: Capabilities) -> Option<Code> {
    if NATIVE.is_empty() {
        return None;
    }
    let rules = profile::rules(capabilities);
    let mut code = verdict(libc::SECCOMP_RET_KILL_PROCESS);
    for abi in NATIVE.iter().rev().filter(|abi| **abi != Abi::X32) {
        let mut body = numbers(*abi, &rules);
        if *abi == Abi::X86_64 && NATIVE.contains(&Abi::X32) {
            body = branch(IF_AT_LEAST, X32_BIT, numbers(Abi::X32, &rules), body);
        }
        let mut section = vec![instruction(LOAD, 0, 0, NUMBER)];
        section.append(&mut body);
        code = branch(IF_EQUAL, abi.audit(), section, code);
    }
    let mut whole = vec![instruction(LOAD, 0, 0, ARCHITECTURE)];
    whole.append(&mut code);
    Some(whole)
}

/// The search among the numbers of one architecture.
fn numbers(abi: Abi, rules: &BTreeMap<&'static str, Action>) -> Code {
    let by_number: BTreeMap<u32, &Action> = rules
        .iter()
        .filter_map(|(name, action)| Some((abi.number(name)?, action)))
        .collect();
    let refused = Action::Errno(EPERM);
    let unknown = Action::Errno(ENOSYS);
    // (first number, what happens from there on)
    let mut ranges: Vec<(u32, &Action)> = vec![(0, &refused)];
    let mut push = |start: u32, action| match ranges.last_mut() {
        Some((_, last)) if *last == action => {}
        Some((at, last)) if *at == start => *last = action,
        _ => ranges.push((start, action)),
    };
    let mut next = 0;
    for (number, action) in by_number {
        if number > next {
            push(next, &refused);
        }
        push(number, action);
        next = number + 1;
    }
    push(next, &unknown);
    search(abi, &ranges)
}

fn search(abi: Abi, ranges: &[(u32, &Action)]) -> Code {
    match ranges {
        [] => verdict(errno(EPERM)),
        [(_, action)] => apply(abi, action),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            branch(IF_AT_LEAST, high[0].0, search(abi, high), search(abi, low))
        }
    }
}

fn apply(abi: Abi, action: &Action) -> Code {
    match action {
        Action::Allow => verdict(libc::SECCOMP_RET_ALLOW),
        Action::Errno(number) => verdict(errno(*number)),
        Action::AllowIf(conditions) => conditions
            .iter()
            .rev()
            .fold(verdict(errno(EPERM)), |otherwise, condition| {
                test(abi, *condition, otherwise)
            }),
    }
}

/// Allows when `condition` holds, goes on with `otherwise` when not.
fn test(abi: Abi, condition: Condition, otherwise: Code) -> Code {
    let allow = verdict(libc::SECCOMP_RET_ALLOW);
    let low = ARGUMENTS + 8 * u32::from(condition.argument);
    let load = |offset, mut code: Code| {
        code.insert(0, instruction(LOAD, 0, 0, offset));
        code
    };
    let on_low = |yes: Code, no: Code| {
        let code = match condition.test {
            Test::Less(value) => branch(IF_AT_LEAST, value, no, yes),
            Test::Equal(value) => branch(IF_EQUAL, value, yes, no),
            Test::Greater(value) => branch(IF_GREATER, value, yes, no),
            Test::Clear(bits) => branch(IF_ANY_BIT, bits, no, yes),
        };
        load(low, code)
    };
    let high = low + 4;
    match condition.test {
        _ if !abi.is_64_bit() => on_low(allow, otherwise),
        Test::Clear(_) => on_low(allow, otherwise),
        Test::Less(_) | Test::Equal(_) => load(
            high,
            branch(IF_EQUAL, 0, on_low(allow, otherwise.clone()), otherwise),
        ),
        Test::Greater(_) => load(high, branch(IF_EQUAL, 0, on_low(allow.clone(), otherwise), allow)),
    }
}

fn branch(compare: u16, value: u32, mut yes: Code, mut no: Code) -> Code {
    let distance = yes.len();
    let mut code = match u8::try_from(distance) {
        Ok(near) => vec![instruction(compare, 0, near, value)],
        Err(_) => {
            let far = u32::try_from(distance).expect("programs have at most 4096 instructions");
            vec![instruction(compare, 1, 0, value), instruction(JUMP, 0, 0, far)]
        }
    };
    code.append(&mut yes);
    code.append(&mut no);
    code
}

fn verdict(value: u32) -> Code {
    vec![instruction(VERDICT, 0, 0, value)]
}

fn errno(number: u16) -> u32 {
    libc::SECCOMP_RET_ERRNO | u32::from(number)
}

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// What the program answers to one call: a small interpreter of what the compiler emits.
    fn run(code: &[sock_filter], abi: Abi, number: u32, arguments: &[u64]) -> (u32, usize) {
        let mut data = [0_u32; 16];
        data[0] = number;
        data[1] = abi.audit();
        for (index, argument) in arguments.iter().enumerate() {
            data[4 + 2 * index] = u32::try_from(argument & 0xFFFF_FFFF).expect("masked");
            data[5 + 2 * index] = u32::try_from(argument >> 32).expect("shifted");
        }
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let now = code[at];
            at += 1;
            steps += 1;
            let jump = |yes: bool| usize::from(if yes { now.jt } else { now.jf });
            match now.code {
                LOAD => accumulator = data[usize::try_from(now.k / 4).expect("small")],
                JUMP => at += usize::try_from(now.k).expect("small"),
                IF_EQUAL => at += jump(accumulator == now.k),
                IF_AT_LEAST => at += jump(accumulator >= now.k),
                IF_GREATER => at += jump(accumulator > now.k),
                IF_ANY_BIT => at += jump(accumulator & now.k != 0),
                VERDICT => return (now.k, steps),
                other => panic!("unexpected instruction {other:#x}"),
            }
        }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    #[test]
    fn calls_are_answered_as_docker_does() {
        let code = program(Capabilities::DOCKER).expect("x86_64 is known");
        let eperm = errno(EPERM);
        let enosys = errno(ENOSYS);
        let cases: &[(Abi, &str, &[u64], u32)] = &[
            (Abi::X86_64, "read", &[], ALLOW),
            (Abi::X86, "read", &[], ALLOW),
            (Abi::X32, "ioctl", &[], ALLOW),
            (Abi::X86_64, "mount", &[], eperm),
            (Abi::X86_64, "io_uring_setup", &[], eperm),
            (Abi::X86_64, "userfaultfd", &[], eperm),
            (Abi::X86_64, "clone3", &[], enosys),
            (Abi::X86_64, "chroot", &[], ALLOW),
            (Abi::X86_64, "clone", &[0x11], ALLOW),
            (Abi::X86_64, "clone", &[0x1000_0000], eperm),
            (Abi::X86_64, "socket", &[2], ALLOW),
            (Abi::X86_64, "socket", &[38], eperm),
            (Abi::X86_64, "socket", &[39], ALLOW),
            (Abi::X86_64, "socket", &[40], eperm),
            (Abi::X86_64, "socket", &[41], ALLOW),
            (Abi::X86_64, "socket", &[1 << 32 | 38], ALLOW),
            (Abi::X86_64, "personality", &[8], ALLOW),
            (Abi::X86_64, "personality", &[0xFFFF_FFFF], ALLOW),
            (Abi::X86_64, "personality", &[0x40_0000], eperm),
            (Abi::X86, "personality", &[0x40_0000], eperm),
        ];
        for (abi, name, arguments, expected) in cases {
            let number = abi.number(name).expect("known call");
            let (answer, _) = run(&code, *abi, number, arguments);
            assert_eq!(answer, *expected, "{abi:?} {name} {arguments:x?}");
        }
        assert_eq!(
            run(&code, Abi::X86_64, 9999, &[]).0,
            enosys,
            "newer than every rule"
        );
        assert_eq!(
            run(&code, Abi::Arm, 3, &[]).0,
            libc::SECCOMP_RET_KILL_PROCESS,
            "foreign architecture"
        );
    }

    #[test]
    fn every_rule_is_found_on_every_architecture() {
        let rules = profile::rules(Capabilities::DOCKER);
        let code = program(Capabilities::DOCKER).expect("x86_64 is known");
        for abi in NATIVE {
            for (name, action) in &rules {
                let Some(number) = abi.number(name) else { continue };
                let (answer, steps) = run(&code, *abi, number, &[]);
                let expected = match action {
                    Action::Errno(number) => errno(*number),
                    Action::Allow | Action::AllowIf(_) => ALLOW,
                };
                assert_eq!(answer, expected, "{abi:?} {name}");
                assert!(steps < 30, "{abi:?} {name} takes {steps} steps");
            }
        }
    }

    #[test]
    fn capabilities_open_what_they_stand_for() {
        let code = program(Capabilities::ALL).expect("x86_64 is known");
        for name in ["mount", "clone3", "bpf", "reboot", "unshare"] {
            let number = Abi::X86_64.number(name).expect("known call");
            assert_eq!(run(&code, Abi::X86_64, number, &[1 << 28]).0, ALLOW, "{name}");
        }
        assert!(
            code.len() < 4096,
            "{} instructions fit the kernel's limit",
            code.len()
        );
    }
}
