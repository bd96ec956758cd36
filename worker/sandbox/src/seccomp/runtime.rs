//! The rules as the configuration of another OCI runtime has them (runtime-spec, `linux.seccomp`).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::profile::{self, Action, Condition, EPERM, Test};
use super::table::{Abi, NATIVE};
use crate::spec::Capabilities;

/// The filter of a process with `capabilities`; `None` where this architecture has no profile. What is newer than the
/// rules is the runtime's own affair: runc and crun answer it with `ENOSYS`, too.
#[must_use]
pub fn oci_profile(capabilities: Capabilities) -> Option<Value> {
    if NATIVE.is_empty() {
        return None;
    }
    let mut allowed = Vec::new();
    let mut refused: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    let mut calls = Vec::new();
    for (name, action) in profile::rules(capabilities) {
        match action {
            Action::Allow => allowed.push(name),
            Action::Errno(number) => refused.entry(number).or_default().push(name),
            // Entries of one name are alternatives.
            Action::AllowIf(conditions) => calls.extend(conditions.into_iter().map(|condition| {
                json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument(condition)]})
            })),
        }
    }
    calls.push(json!({"names": allowed, "action": "SCMP_ACT_ALLOW"}));
    for (number, names) in refused {
        calls.push(json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": number}));
    }
    let architectures: Vec<&str> = NATIVE.iter().map(|abi| architecture(*abi)).collect();
    Some(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures,
        "syscalls": calls,
    }))
}

fn argument(condition: Condition) -> Value {
    let (op, value) = match condition.test {
        Test::Less(value) => ("SCMP_CMP_LT", value),
        Test::Equal(value) => ("SCMP_CMP_EQ", value),
        Test::Greater(value) => ("SCMP_CMP_GT", value),
        // These bits, and they must be zero.
        Test::Clear(bits) => ("SCMP_CMP_MASKED_EQ", bits),
    };
    json!({"index": condition.argument, "value": value, "valueTwo": 0, "op": op})
}

fn architecture(abi: Abi) -> &'static str {
    match abi {
        Abi::X86_64 => "SCMP_ARCH_X86_64",
        Abi::X32 => "SCMP_ARCH_X32",
        Abi::X86 => "SCMP_ARCH_X86",
        Abi::Aarch64 => "SCMP_ARCH_AARCH64",
        Abi::Arm => "SCMP_ARCH_ARM",
        Abi::Riscv64 => "SCMP_ARCH_RISCV64",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_told_the_same_rules() {
        let Some(profile) = oci_profile(Capabilities::DOCKER) else {
            return;
        };
        let calls = profile["syscalls"].as_array().expect("calls");
        let of = |name: &str| -> Vec<&Value> {
            let named = |call: &&Value| {
                call["names"]
                    .as_array()
                    .is_some_and(|names| names.iter().any(|one| one == name))
            };
            calls.iter().filter(named).collect()
        };
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(of("read")[0]["action"], "SCMP_ACT_ALLOW");
        assert_eq!(of("clone3")[0]["errnoRet"], libc::ENOSYS);
        assert!(of("mount").is_empty(), "needs a capability");
        assert_eq!(
            of("socket").len(),
            3,
            "families below, between and above the refused ones"
        );
        let clone = &of("clone")[0]["args"][0];
        assert_eq!(
            (&clone["op"], &clone["valueTwo"]),
            (&json!("SCMP_CMP_MASKED_EQ"), &json!(0))
        );
        let all = oci_profile(Capabilities::ALL).expect("the same architecture");
        assert!(all.to_string().contains("\"mount\""));
    }
}
