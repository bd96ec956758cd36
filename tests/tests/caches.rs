//! What one machine built, imported by another: through a registry, a folder, an image; and caches that are broken. Each
//! case is tried without a daemon, and with one on each machine.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tests::{Daemon, Output, Program, Registry, Steps, User, fixtures, tool};

const DOCKERFILE: &str = "FROM busybox AS build\nWORKDIR /app\nCOPY f sub/ ./\nRUN cat f s > out\nFROM busybox\n\
                          COPY --from=build /app /final\nRUN cat /final/out > /last\n";

/// Machines that share nothing but a folder and a context.
struct Place {
    folder: TempDir,
    /// The daemon of each machine, where they have any.
    daemons: Option<RefCell<BTreeMap<String, Daemon>>>,
}

/// Tries a case by both doors.
fn by_both(case: impl Fn(&Place)) {
    case(&Place::new(false));
    case(&Place::new(true));
}

impl Place {
    fn new(has_daemons: bool) -> Place {
        let folder = tempfile::Builder::new()
            .prefix("builder-caches-")
            .tempdir()
            .expect("a temporary folder");
        let daemons = has_daemons.then(RefCell::default);
        let place = Place { folder, daemons };
        let context = place.path("context");
        fs::create_dir_all(context.join("sub")).expect("made");
        fs::write(context.join("f"), "first\n").expect("written");
        fs::write(context.join("sub/s"), "second\n").expect("written");
        place.dockerfile(DOCKERFILE);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn dockerfile(&self, text: &str) {
        fs::write(self.path("context").join("Dockerfile"), text).expect("written");
    }

    fn build(&self, machine: &str, progress: &str, args: &[&str]) -> Output {
        let program = Program::new(&self.path(machine), User::Same);
        let base = format!(
            "--build-context=busybox=oci-layout://{}",
            fixtures().join("bases/busybox").display()
        );
        let progress = format!("--progress={progress}");
        let mut all = vec!["build", &progress, &base];
        all.extend(args);
        all.push(".");
        let env = self.daemons.iter().map(|daemons| {
            let mut daemons = daemons.borrow_mut();
            let daemon = daemons.entry(machine.to_owned()).or_insert_with(|| {
                let place = self.path(&format!("{machine}-daemon"));
                fs::create_dir_all(&place).expect("made");
                Daemon::start(&program, &place).expect("it serves")
            });
            daemon.variable()
        });
        let env: Vec<_> = env.collect();
        let output = program
            .run(&self.path("context"), &all, &env, b"")
            .expect("it runs");
        assert_eq!(output.code, 0, "{all:?} {env:?}: {}", output.stderr);
        output
    }

    /// The names of the steps of a build that ran, without sources.
    fn ran(&self, machine: &str, args: &[&str]) -> Vec<String> {
        let output = self.build(machine, "rawjson", args);
        let mut steps = Steps::read(&output.stderr);
        steps.ran.retain(|name| !name.contains("FROM"));
        steps.ran
    }
}

fn has(steps: &[String], text: &str) -> bool {
    steps.iter().any(|step| step.contains(text))
}

/// How many bytes of layers are in a store.
fn blob_bytes(store: &Path) -> u64 {
    let blobs = fs::read_dir(store.join("blobs/sha256")).expect("a store");
    blobs
        .map(|entry| entry.expect("read").metadata().expect("a blob").len())
        .sum()
}

/// Tries a case by both doors, with a registry, where there is one to be started.
#[expect(
    clippy::print_stdout,
    reason = "whoever runs the tests is told what was skipped"
)]
fn with_registry(case: impl Fn(&Place, &Registry)) {
    if !tool("docker-registry") {
        println!("skipped: docker-registry is needed");
        return;
    }
    by_both(|place| case(place, &Registry::start(place.folder.path())));
}

#[test]
fn another_machine_runs_nothing_and_fetches_only_what_it_reads() {
    with_registry(|place, registry| {
        let cache = format!("{}/team/cache:max", registry.address);
        let to = format!("--cache-to=type=registry,ref={cache},mode=max");
        assert_eq!(place.ran("first", &[&to]).len(), 5);
        let from = format!("--cache-from={cache}");
        assert_eq!(place.ran("second", &[&from]), [""; 0]);
        let image = place.path("image.tar").display().to_string();
        let output = format!("type=oci,dest={image}");
        assert_eq!(place.ran("third", &[&from, "-o", &output]), [""; 0]);
        assert!(
            blob_bytes(&place.path("second")) < blob_bytes(&place.path("third")),
            "layers nobody read were fetched"
        );
        // A step that was never run reads what was imported; the stage it does not touch stays where it is.
        place.dockerfile(&format!(
            "{DOCKERFILE}RUN cat /last && test \"$(cat /last)\" != first\n"
        ));
        let ran = place.ran("second", &[&from]);
        assert_eq!(ran.len(), 1, "{ran:?}");
        // What came from there is known from then on.
        assert_eq!(place.ran("second", &[]), [""; 0]);
    });
}

#[test]
fn a_layer_that_turns_out_broken_when_it_is_read_is_built_again() {
    with_registry(|place, registry| {
        let cache = format!("{}/team/cache:max", registry.address);
        place.build(
            "first",
            "plain",
            &[&format!("--cache-to=type=registry,ref={cache},mode=max")],
        );
        // The registry says it has them; what it sends is something else.
        for layer in small_blobs(&place.path("registry")) {
            let mut bytes = fs::read(&layer).expect("a blob");
            if bytes.starts_with(&[0x1f, 0x8b]) {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                fs::write(&layer, bytes).expect("written");
            }
        }
        let image = place.path("image.tar").display().to_string();
        let output = format!("type=oci,dest={image}");
        let from = format!("--cache-from={cache}");
        let exported = place.build("second", "plain", &[&from, "-o", &output]);
        assert!(
            exported.stderr.contains("built without it"),
            "{}",
            exported.stderr
        );
        place.dockerfile(&format!("{DOCKERFILE}RUN cat /last\n"));
        let ran = place.build("third", "plain", &[&from]);
        assert!(ran.stderr.contains("built without it"), "{}", ran.stderr);
        assert_eq!(place.ran("third", &[]), [""; 0]);
    });
}

/// The blobs of a registry that are no base image.
fn small_blobs(registry: &Path) -> Vec<PathBuf> {
    let (mut open, mut found) = (vec![registry.to_owned()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("read").path();
            if path.is_dir() {
                open.push(path);
            } else if path.ends_with("data") && fs::metadata(&path).expect("a file").len() < 100_000 {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn a_cache_that_is_imported_and_exported_again_keeps_what_nobody_asked_for() {
    by_both(|place| {
        let folder = place.path("cache").display().to_string();
        let to = format!("--cache-to=type=local,dest={folder},mode=max");
        let from = format!("--cache-from=type=local,src={folder}");
        assert_eq!(place.ran("first", &[&to]).len(), 5);
        assert_eq!(place.ran("second", &[&from, &to]), [""; 0]);
        // The stage's own steps were not asked for by the second machine; the third needs their results.
        place.dockerfile(&DOCKERFILE.replace(
            "FROM busybox\nCOPY",
            "RUN cat out && touch more\nFROM busybox\nCOPY",
        ));
        let ran = place.ran("third", &[&from]);
        assert!(has(&ran, "touch more") && !has(&ran, "cat f s"), "{ran:?}");
    });
}

#[test]
fn a_minimal_cache_has_the_layers_of_the_result_alone() {
    by_both(|place| {
        for mode in ["min", "max"] {
            let folder = place.path(mode).display().to_string();
            let to = format!("--cache-to=type=local,dest={folder},mode={mode}");
            place.build(&format!("first-{mode}"), "plain", &[&to]);
            let from = format!("--cache-from=type=local,src={folder}");
            assert_eq!(place.ran(&format!("second-{mode}"), &[&from]), [""; 0], "{mode}");
        }
        assert!(blob_bytes(&place.path("min")) < blob_bytes(&place.path("max")));
    });
}

#[test]
fn an_image_serves_as_a_cache() {
    with_registry(|place, registry| {
        let name = format!("{}/team/app:1", registry.address);
        place.build(
            "first",
            "plain",
            &["--cache-to=type=inline", "--push", "-t", &name],
        );
        let from = format!("--cache-from={name}");
        assert_eq!(place.ran("second", &[&from]), [""; 0]);
        // So does one whose layers have other times than what was built.
        let times = format!("{}/team/times:1", registry.address);
        let output = format!("type=image,name={times},push=true,rewrite-timestamp=true");
        let epoch = "--build-arg=SOURCE_DATE_EPOCH=1000000";
        place.build(
            "first",
            "plain",
            &["--cache-to=type=inline", epoch, "-o", &output],
        );
        let from = format!("--cache-from={times}");
        assert_eq!(place.ran("fourth", &[&from, epoch]), [""; 0]);
        // One without a cache in it serves nothing, and says so.
        let plain = format!("{}/team/plain:1", registry.address);
        place.build("first", "plain", &["--push", "-t", &plain]);
        let output = place.build("third", "plain", &[&format!("--cache-from={plain}")]);
        assert!(
            output.stderr.contains("there is no cache in"),
            "{}",
            output.stderr
        );
        assert!(
            output.stderr.contains(", 0 came from the cache"),
            "{}",
            output.stderr
        );
    });
}

#[test]
fn a_cache_that_is_broken_is_a_miss_and_says_so() {
    by_both(|place| {
        let good = place.path("good");
        let to = format!("--cache-to=type=local,dest={},mode=max", good.display());
        place.build("first", "plain", &[&to]);
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(good.join("index.json")).expect("index.json")).expect("JSON");
        let blob = |digest: &serde_json::Value| {
            let digest = digest.as_str().expect("a digest");
            Path::new("blobs/sha256").join(digest.trim_start_matches("sha256:"))
        };
        let manifest = blob(&index["manifests"][0]["digest"]);
        let parsed: serde_json::Value =
            serde_json::from_slice(&fs::read(good.join(&manifest)).expect("the manifest")).expect("JSON");
        let config = blob(&parsed["config"]["digest"]);
        let layers: Vec<PathBuf> = parsed["layers"]
            .as_array()
            .expect("layers")
            .iter()
            .map(|layer| blob(&layer["digest"]))
            .collect();
        type Harm<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>, &'a str);
        let harms: [Harm<'_>; 6] = [
            (
                "layers with other bytes",
                Box::new(|folder| {
                    for layer in &layers {
                        let mut bytes = fs::read(folder.join(layer)).expect("a layer");
                        let last = bytes.len() - 1;
                        bytes[last] ^= 1;
                        fs::write(folder.join(layer), bytes).expect("written");
                    }
                }),
                "is not to be had",
            ),
            (
                "no layers",
                Box::new(|folder| {
                    for layer in &layers {
                        fs::remove_file(folder.join(layer)).expect("removed");
                    }
                }),
                "is not to be had",
            ),
            (
                "another config",
                Box::new(|folder| fs::write(folder.join(&config), "{}").expect("written")),
                "what came is",
            ),
            (
                "a huge config",
                Box::new(|folder| fs::write(folder.join(&config), vec![b' '; 17 << 20]).expect("written")),
                "larger than",
            ),
            (
                "a manifest that is none",
                Box::new(|folder| fs::write(folder.join(&manifest), "<html>").expect("written")),
                "what came is",
            ),
            (
                "no manifest",
                Box::new(|folder| fs::remove_file(folder.join(&manifest)).expect("removed")),
                "is not imported",
            ),
        ];
        for (number, (name, harm, said)) in harms.into_iter().enumerate() {
            let folder = place.path(&format!("harmed-{number}"));
            let copied = std::process::Command::new("cp")
                .arg("-r")
                .args([&good, &folder])
                .status();
            assert!(copied.expect("cp starts").success());
            harm(&folder);
            let from = format!("--cache-from=type=local,src={}", folder.display());
            let output = place.build(&format!("machine-{number}"), "plain", &[&from]);
            assert!(output.stderr.contains(said), "{name}: {}", output.stderr);
            assert!(
                output.stderr.contains(", 0 came from the cache"),
                "{name}: {}",
                output.stderr
            );
        }
        let missing = format!("--cache-from=type=local,src={}", place.path("nowhere").display());
        let output = place.build("last", "plain", &[&missing]);
        assert!(output.stderr.contains("is not imported"), "{}", output.stderr);
    });
}
