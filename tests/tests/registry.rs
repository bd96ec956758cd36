//! Images through a real registry, looked at and run by tools of others: docker-registry, skopeo, umoci, runc.
#![expect(clippy::print_stdout, reason = "a test says by name what it skips")]

use std::{fs, path::Path, process::Command};
use tests::{Image, Program, Registry, User, fixtures, is_root, tool};

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}:\n{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn an_image_goes_through_a_registry_and_runs_elsewhere() {
    if !(tool("docker-registry") && tool("skopeo")) {
        println!("skipped: docker-registry and skopeo are needed");
        return;
    }
    let place = tempfile::Builder::new()
        .prefix("builder-registry-")
        .tempdir()
        .expect("a temporary folder");
    let registry = Registry::start(place.path());
    let context = place.path().join("context");
    fs::create_dir(&context).expect("made");
    let dockerfile = "FROM busybox\nCOPY f /data/f\nRUN echo made > /data/made && rm -r /home\nCMD [\"cat\", \"/data/f\", \"/data/made\"]\n";
    fs::write(context.join("Dockerfile"), dockerfile).expect("written");
    fs::write(context.join("f"), "copied\n").expect("written");
    let program = Program::new(&place.path().join("root"), User::Same);
    let base = format!(
        "--build-context=busybox=oci-layout://{}",
        fixtures().join("bases/busybox").display()
    );
    for (tag, options) in [
        ("gzip", "compression=gzip"),
        ("zstd", "compression=zstd,force-compression=true"),
        ("plain", "compression=uncompressed,force-compression=true"),
        ("docker", "oci-mediatypes=false"),
    ] {
        let name = format!("{}/team/app:{tag}", registry.address);
        let output = format!("type=image,name={name},push=true,{options}");
        program
            .must(
                &context,
                &["build", "--progress=plain", &base, "-o", &output, "."],
            )
            .expect("the build is pushed");
        let reference = format!("docker://{name}");
        let inspected: serde_json::Value =
            serde_json::from_str(&said("skopeo", &["inspect", "--tls-verify=false", &reference]))
                .expect("JSON");
        assert_eq!(
            inspected["Layers"].as_array().map(Vec::len),
            Some(3),
            "{inspected}"
        );
        let raw = said("skopeo", &["inspect", "--raw", "--tls-verify=false", &reference]);
        let manifest: serde_json::Value = serde_json::from_str(&raw).expect("JSON");
        let media_type = manifest["layers"][2]["mediaType"].as_str().unwrap_or_default();
        let expected = match tag {
            "gzip" => "application/vnd.oci.image.layer.v1.tar+gzip",
            "zstd" => "application/vnd.oci.image.layer.v1.tar+zstd",
            "plain" => "application/vnd.oci.image.layer.v1.tar",
            _ => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        };
        assert_eq!(media_type, expected, "{tag}");
        let layout = place.path().join(format!("layout-{tag}"));
        let target = format!("oci:{}:app", layout.display());
        said(
            "skopeo",
            &["copy", "--quiet", "--src-tls-verify=false", &reference, &target],
        );
        let image = Image::open_layout(&layout).expect("an image");
        assert_eq!(image.tree["data/made"].content, b"made\n");
        assert!(!image.tree.contains_key("home"), "{}", image.listing(0));
        if tag == "gzip" {
            unpacked_and_run(place.path(), &layout);
        }
    }
    // Another store pulls it, and a build upon it fetches no layer nobody reads.
    let other = Program::new(&place.path().join("other"), User::Same);
    let name = format!("{}/team/app:gzip", registry.address);
    other.must(&context, &["pull", &name]).expect("pulled");
    let ran = other.must(&context, &["run", &name]).expect("it runs");
    assert_eq!(ran.stdout, "copied\nmade\n");
    let lazy = Program::new(&place.path().join("lazy"), User::Same);
    let label = place.path().join("label");
    fs::create_dir(&label).expect("made");
    fs::write(label.join("Dockerfile"), format!("FROM {name}\nLABEL a=b\n")).expect("written");
    let target = format!("{}/team/labelled:1", registry.address);
    lazy.must(
        &label,
        &["build", "--progress=plain", "--push", "-t", &target, "."],
    )
    .expect("pushed");
    let fetched = fs::read_dir(place.path().join("lazy/layers"))
        .expect("the store")
        .count();
    assert_eq!(fetched, 0, "a base nobody runs on was unpacked");
    let labels = said(
        "skopeo",
        &["inspect", "--tls-verify=false", &format!("docker://{target}")],
    );
    assert!(labels.contains("\"a\": \"b\""), "{labels}");
}

/// Unpacks an image with umoci and runs it with runc.
fn unpacked_and_run(place: &Path, layout: &Path) {
    if !(is_root() && tool("umoci") && tool("runc")) {
        println!("skipped: unpacking and running elsewhere needs root, umoci and runc");
        return;
    }
    let bundle = place.join("bundle");
    let image = format!("{}:app", layout.display());
    said(
        "umoci",
        &["unpack", "--image", &image, &bundle.display().to_string()],
    );
    let path = bundle.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("config.json")).expect("JSON");
    config["process"]["terminal"] = false.into();
    fs::write(&path, config.to_string()).expect("written");
    let state = place.join("runc");
    let args = [
        "--root",
        &state.display().to_string(),
        "run",
        "--bundle",
        &bundle.display().to_string(),
        "registry-test",
    ];
    assert_eq!(said("runc", &args), "copied\nmade\n");
}

#[test]
fn a_dockerfile_is_pinned_to_what_the_registry_has() {
    if !(tool("docker-registry") && tool("skopeo")) {
        println!("skipped: docker-registry and skopeo are needed");
        return;
    }
    let place = tempfile::Builder::new()
        .prefix("builder-pin-")
        .tempdir()
        .expect("a temporary folder");
    let registry = Registry::start(place.path());
    let base = format!("oci:{}", fixtures().join("bases/busybox").display());
    let name = format!("{}/base", registry.address);
    let push = |tag: &str, annotation: &str| {
        let target = format!("docker://{name}:{tag}");
        said(
            "skopeo",
            &[
                "copy",
                "-q",
                "--dest-tls-verify=false",
                "--format",
                annotation,
                &base,
                &target,
            ],
        );
        let format = ["inspect", "--tls-verify=false", "--format={{.Digest}}", &target];
        said("skopeo", &format).trim().to_owned()
    };
    let (one, two) = (push("1", "oci"), push("2", "oci"));
    assert_eq!(one, two, "the same image");
    let text = format!(
        "# {name}:1 is the base\nFROM {name}:1 AS a\nFROM a AS b\nCOPY --link --from={name}:2 /bin /b\n\
         RUN --mount=type=bind,from={name}:1,target=/m true\nCOPY --from=a / /\nFROM scratch\n"
    );
    let pinned = text
        .replace(&format!("FROM {name}:1"), &format!("FROM {name}:1@{one}"))
        .replace(&format!("--from={name}:2"), &format!("--from={name}:2@{one}"))
        .replace(&format!(",from={name}:1"), &format!(",from={name}:1@{one}"));
    let file = place.path().join("Dockerfile");
    let program = Program::new(&place.path().join("root"), User::Same);
    let pin = |more: &[&str]| {
        let path = file.display().to_string();
        let args = [&["pin", "-f", path.as_str()], more].concat();
        program.run(place.path(), &args, &[], b"").expect("it runs")
    };
    fs::write(&file, &text).expect("written");
    let unpinned = pin(&["--check"]);
    assert_eq!(unpinned.code, 1, "{}", unpinned.stdout);
    assert_eq!(unpinned.stdout.lines().count(), 3, "{}", unpinned.stdout);
    assert!(unpinned.stdout.contains("Dockerfile:4:"), "{}", unpinned.stdout);
    let dry = pin(&["--dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.stderr);
    assert_eq!(fs::read_to_string(&file).expect("read"), text, "only shown");
    assert_eq!(pin(&[]).code, 0);
    assert_eq!(fs::read_to_string(&file).expect("read"), pinned);
    assert_eq!(pin(&["--check"]).code, 0);
    // Another image under the same name: pinned files stay as they are, unless they are to be updated.
    let moved = push("1", "v2s2");
    assert_ne!(moved, one);
    assert_eq!(pin(&[]).code, 0);
    assert_eq!(fs::read_to_string(&file).expect("read"), pinned);
    assert_eq!(pin(&["--update"]).code, 0);
    let updated = pinned.replace(&format!("base:1@{one}"), &format!("base:1@{moved}"));
    assert_eq!(fs::read_to_string(&file).expect("read"), updated);
    // What is not there changes nothing.
    let broken = text.replace(":2", ":nowhere");
    fs::write(&file, &broken).expect("written");
    let failed = pin(&[]);
    assert_ne!(failed.code, 0);
    assert!(failed.stderr.contains("base:nowhere"), "{}", failed.stderr);
    assert_eq!(fs::read_to_string(&file).expect("read"), broken);
}
