//! Steps for other processors: the kernel runs them where it has a handler, else the build is told how to get one.
use oci::Platform;

/// Why a step cannot run here.
#[derive(Debug, thiserror::Error)]
#[error(
    "this machine ({host}) cannot run programs for {wanted}: register an emulator with binfmt_misc (package qemu-user-static), or build this stage with --platform=$BUILDPLATFORM"
)]
pub(crate) struct NoEmulator {
    host: String,
    wanted: String,
}

/// Checks that a step for `wanted` can run.
pub(crate) fn check(wanted: &Platform) -> Result<(), NoEmulator> {
    let host = Platform::host();
    if wanted.satisfies(&host) || has_handler(&wanted.architecture) {
        return Ok(());
    }
    Err(NoEmulator {
        host: host.to_string(),
        wanted: wanted.to_string(),
    })
}

fn has_handler(architecture: &str) -> bool {
    let name = match architecture {
        "arm64" => "aarch64",
        "amd64" => "x86_64",
        "386" => "i386",
        "loong64" => "loongarch64",
        "mips64le" => "mips64el",
        "mipsle" => "mipsel",
        other => other,
    };
    let entry = std::fs::read_to_string(format!("/proc/sys/fs/binfmt_misc/qemu-{name}"));
    entry.is_ok_and(|text| text.lines().next() == Some("enabled"))
}
