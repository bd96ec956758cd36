//! Steps for other processors: the kernel runs them where it has a handler, else the build is told how to get one.
//!
//! ```text
//! wanted platform ─▶ header of its programs ─▶ entries of binfmt_misc ─▶ one that matches, fixed: the step runs
//! ```
//!
//! Entries are matched as the kernel matches them, by their magic, whatever they are called. One without the flag `F`
//! is of no use: the kernel would look for the emulator among the files of the step.
//!
//! Differs: BuildKit runs a program of each processor to learn what works and, failing that, mounts an emulator that it
//! brings with it into the step. Ours brings none.
use oci::Platform;
use std::{fs, path::Path};

/// Where the kernel lists its handlers.
const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";

/// Why a step cannot run here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum NoEmulator {
    /// No handler takes such programs.
    #[error(
        "this machine ({host}) cannot run programs for {wanted}: register an emulator with binfmt_misc (package qemu-user-static), or build this stage with --platform=$BUILDPLATFORM"
    )]
    None { host: String, wanted: String },
    /// The handler is looked up inside of the step.
    #[error(
        "this machine ({host}) cannot run programs for {wanted}: its emulator {name} is registered without the flag F (fix binary), so that steps would look for it in their own files; register it anew with that flag"
    )]
    NotFixed {
        host: String,
        wanted: String,
        name: String,
    },
}

/// Platforms that are told of, beside this machine's.
const PLATFORMS: [&str; 12] = [
    "linux/amd64",
    "linux/arm64",
    "linux/riscv64",
    "linux/ppc64le",
    "linux/ppc64",
    "linux/s390x",
    "linux/386",
    "linux/mips64le",
    "linux/mips64",
    "linux/loong64",
    "linux/arm/v7",
    "linux/arm/v6",
];

/// What steps can run for on this machine, itself first.
pub fn platforms() -> Vec<Platform> {
    let host = Platform::host();
    let others = PLATFORMS.iter().filter_map(|text| Platform::parse(text).ok());
    let others = others.filter(|other| *other != host && check(other).is_ok());
    let others: Vec<Platform> = others.collect();
    std::iter::once(host).chain(others).collect()
}

/// Checks that a step for `wanted` can run.
pub(crate) fn check(wanted: &Platform) -> Result<(), NoEmulator> {
    let host = Platform::host();
    if wanted.satisfies(&host) || runs_natively(&host.architecture, &wanted.architecture) {
        return Ok(());
    }
    check_among(&host, wanted, Path::new(HANDLERS))
}

/// An amd64 kernel that was built with the calls of 386 has this file.
fn runs_natively(host: &str, wanted: &str) -> bool {
    host == "amd64" && wanted == "386" && Path::new("/proc/sys/abi/vsyscall32").exists()
}

fn check_among(host: &Platform, wanted: &Platform, handlers: &Path) -> Result<(), NoEmulator> {
    let mut not_fixed = None;
    // The file `status` switches all of them.
    let are_on = fs::read_to_string(handlers.join("status")).is_ok_and(|text| text.trim() == "enabled");
    let entries = fs::read_dir(handlers).into_iter().flatten().flatten();
    for entry in entries.filter(|_| are_on) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if matches!(name.as_str(), "status" | "register") {
            continue;
        }
        let Some(handler) = fs::read_to_string(entry.path())
            .ok()
            .and_then(|text| Handler::read(&text))
        else {
            continue;
        };
        if !header(&wanted.architecture).is_some_and(|header| handler.takes(&header)) {
            continue;
        }
        if handler.is_fixed {
            return Ok(());
        }
        not_fixed = Some(name);
    }
    let (host, wanted) = (host.to_string(), wanted.to_string());
    Err(match not_fixed {
        Some(name) => NoEmulator::NotFixed { host, wanted, name },
        None => NoEmulator::None { host, wanted },
    })
}

/// The first bytes of a static program for a processor.
fn header(architecture: &str) -> Option<[u8; 20]> {
    // Class (1: 32 bits, 2: 64), byte order (1: little, 2: big) and machine, as the ELF specification numbers them.
    let (class, order, machine): (u8, u8, u16) = match architecture {
        "386" => (1, 1, 3),
        "mips" => (1, 2, 8),
        "mipsle" => (1, 1, 8),
        "mips64" => (2, 2, 8),
        "mips64le" => (2, 1, 8),
        "ppc64" => (2, 2, 21),
        "ppc64le" => (2, 1, 21),
        "s390x" => (2, 2, 22),
        "arm" => (1, 1, 40),
        "amd64" => (2, 1, 62),
        "arm64" => (2, 1, 183),
        "riscv64" => (2, 1, 243),
        "loong64" => (2, 1, 258),
        _ => return None,
    };
    let ordered = |number: u16| match order {
        1 => number.to_le_bytes(),
        _ => number.to_be_bytes(),
    };
    let mut bytes = [0; 20];
    bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order, 1]);
    bytes[16..18].copy_from_slice(&ordered(2));
    bytes[18..].copy_from_slice(&ordered(machine));
    Some(bytes)
}

/// What the file of an entry says.
#[derive(Debug, PartialEq, Eq)]
struct Handler {
    is_fixed: bool,
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

impl Handler {
    /// Reads an entry; `None` for one that is off or goes by the ending of the name.
    fn read(text: &str) -> Option<Handler> {
        let mut lines = text.lines();
        (lines.next() == Some("enabled")).then_some(())?;
        let mut handler = Handler {
            is_fixed: false,
            offset: 0,
            magic: Vec::new(),
            mask: Vec::new(),
        };
        for line in lines {
            match line.split_once(' ') {
                Some(("flags:", flags)) => handler.is_fixed = flags.contains('F'),
                Some(("offset", offset)) => handler.offset = offset.parse().ok()?,
                Some(("magic", bytes)) => handler.magic = hex::decode(bytes).ok()?,
                Some(("mask", bytes)) => handler.mask = hex::decode(bytes).ok()?,
                _ => {}
            }
        }
        (!handler.magic.is_empty()).then_some(handler)
    }

    fn takes(&self, header: &[u8]) -> bool {
        let part = self
            .offset
            .checked_add(self.magic.len())
            .and_then(|end| header.get(self.offset..end));
        part.is_some_and(|part| {
            part.iter()
                .zip(&self.magic)
                .enumerate()
                .all(|(at, (have, want))| {
                    let mask = self.mask.get(at).copied().unwrap_or(0xff);
                    have & mask == want & mask
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM64: &str = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: POCF\noffset 0\nmagic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    fn handlers(entries: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in entries {
            fs::write(dir.path().join(name), text).expect("write");
        }
        dir
    }

    fn checked(wanted: &str, entries: &[(&str, &str)]) -> Result<(), String> {
        let host = Platform::new("linux", "amd64");
        let dir = handlers(entries);
        check_among(&host, &Platform::new("linux", wanted), dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_entry_counts_by_its_magic_not_by_its_name() {
        let on = ("status", "enabled\n");
        assert_eq!(checked("arm64", &[on, ("rosetta", ARM64)]), Ok(()));
        let error = checked("s390x", &[on, ("qemu-s390x", ARM64)]).expect_err("of another processor");
        assert!(error.contains("cannot run programs for linux/s390x"), "{error}");
        assert!(error.contains("qemu-user-static"), "{error}");
        for unknown in ["wasm", ""] {
            assert!(checked(unknown, &[on, ("qemu-aarch64", ARM64)]).is_err());
        }
    }

    #[test]
    fn what_is_off_is_of_no_use() {
        assert!(checked("arm64", &[("qemu-aarch64", ARM64)]).is_err());
        assert!(checked("arm64", &[("status", "disabled\n"), ("qemu-aarch64", ARM64)]).is_err());
        let off = ARM64.replace("enabled", "disabled");
        assert!(checked("arm64", &[("status", "enabled\n"), ("qemu-aarch64", &off)]).is_err());
    }

    #[test]
    fn a_handler_that_is_not_fixed_is_named() {
        let text = ARM64.replace("POCF", "POC");
        let error = checked("arm64", &[("status", "enabled\n"), ("qemu-aarch64", &text)]).expect_err("no F");
        assert!(
            error.contains("qemu-aarch64 is registered without the flag F"),
            "{error}"
        );
    }

    #[test]
    fn other_entries_are_passed_over() {
        let on = ("status", "enabled\n");
        for text in [
            "",
            "enabled\ninterpreter /x\nflags: F\nextension .py\n",
            "enabled\nflags: F\noffset 18446744073709551615\nmagic 7f\n",
            "enabled\nflags: F\noffset 0\nmagic 7\n",
            "enabled\nflags: F\noffset 19\nmagic 0000\n",
        ] {
            assert!(checked("arm64", &[on, ("x", text)]).is_err(), "{text:?}");
        }
    }
}
