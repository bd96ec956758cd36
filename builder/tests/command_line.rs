//! The program's own words: help, versions, refusals. Also what makes `cargo test` build the program for the crate `tests`.
use std::process::{Command, Output};

fn builder(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_builder"))
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_names_every_flag_people_know_from_buildx() {
    let output = builder(&["build", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for flag in [
        "--tag",
        "--file",
        "--target",
        "--build-arg",
        "--build-context",
        "--secret",
        "--ssh",
        "--no-cache",
        "--no-cache-filter",
        "--pull",
        "--platform",
        "--label",
        "--annotation",
        "--add-host",
        "--network",
        "--shm-size",
        "--ulimit",
        "--cgroup-parent",
        "--progress",
        "--quiet",
        "--output",
        "--push",
        "--load",
        "--iidfile",
        "--metadata-file",
        "--explain",
        "--oci-runtime",
    ] {
        assert!(help.contains(flag), "{flag} is not in --help:\n{help}");
    }
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    for flag in [
        "--cache-to=type=inline",
        "--cache-from=x",
        "--sbom=true",
        "--addr=unix:///x",
        "--call=check",
    ] {
        let output = builder(&["build", flag, "."]);
        assert_ne!(output.status.code(), Some(0), "{flag} was accepted");
        let name = flag.split('=').next().unwrap_or(flag);
        assert!(
            text(&output.stderr).contains(name),
            "{flag}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn commands_that_do_not_exist_are_refused_with_a_suggestion() {
    let output = builder(&["imags"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("images"),
        "{}",
        text(&output.stderr)
    );
}
