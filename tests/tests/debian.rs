//! A real distribution: packages over the network in a step, a compiler, and a program shipped alone.
use std::{fs, process::Command};
use tests::{Leftovers, Program, User, is_root, tool};

#[test]
fn a_debian_base_installs_a_compiler_and_ships_what_it_made() {
    if !is_root() || !tool("mmdebstrap") {
        println!("skipped: making a Debian base needs root and mmdebstrap");
        return;
    }
    let place = tempfile::Builder::new()
        .prefix("builder-debian-")
        .tempdir()
        .expect("a temporary folder");
    let (base, app, root) = (
        place.path().join("base"),
        place.path().join("app"),
        place.path().join("root"),
    );
    for folder in [&base, &app] {
        fs::create_dir(folder).expect("made");
    }
    let made = Command::new("mmdebstrap")
        .args(["--variant=minbase", "--quiet", "bookworm"])
        .arg(base.join("debian.tar"))
        .output()
        .expect("mmdebstrap starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::write(
        base.join("Dockerfile"),
        "FROM scratch\nADD debian.tar /\nCMD [\"/bin/bash\"]\n",
    )
    .expect("written");
    fs::write(
        app.join("hello.c"),
        "#include <stdio.h>\nint main(void) { puts(\"compiled in a build\"); return 0; }\n",
    )
    .expect("written");
    fs::write(
        app.join("Dockerfile"),
        "FROM debian AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make
WORKDIR /src
COPY hello.c .
RUN make hello LDFLAGS=-static && ./hello
FROM scratch
COPY --from=build /src/hello /hello
ENTRYPOINT [\"/hello\"]
",
    )
    .expect("written");
    let program = Program::new(&root, User::Same);
    let before = Leftovers::look(&root);
    program
        .must(&base, &["build", "--progress=plain", "-t", "debian", "."])
        .expect("the base builds");
    let built = program
        .must(&app, &["build", "--progress=plain", "-t", "hello-c", "."])
        .expect("the program builds");
    assert!(built.stderr.contains("compiled in a build"), "{}", built.stderr);
    let ran = program.must(&app, &["run", "hello-c"]).expect("the image runs");
    assert_eq!(ran.stdout, "compiled in a build\n");
    let again = program
        .must(&app, &["build", "--progress=plain", "-t", "hello-c", "."])
        .expect("it builds again");
    assert_eq!(again.stderr.matches(" CACHED").count(), 5, "{}", again.stderr);
    let left = Leftovers::look(&root).since(&before);
    assert!(left.is_empty(), "left behind: {left:?}");
}
