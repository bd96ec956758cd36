//! What is stated about builds: provenance, SBOMs, claims of frontends; in images, beside files, in the history.
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

#[expect(unreachable_pub, reason = "another package's as well")]
#[path = "../../tests/src/registry.rs"]
mod registry;
mod support;

use api::control::{Exporter, SolveRequest};
use api::gateway::{self, Attestation, AttestationKind, Attestations, Ref, ReturnRequest, result};
use registry::Registry;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{Daemon, context, directory, local, of};

const PROVENANCE_V1: &str = "https://slsa.dev/provenance/v1";
const SPDX: &str = "https://spdx.dev/Document";

/// Runs the program with a store of its own.
fn builder(root: &Path, folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_builder"))
        .arg("--root")
        .arg(root)
        .args(args)
        .current_dir(folder)
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .expect("it starts")
}

fn must(root: &Path, folder: &Path, args: &[&str]) {
    let output = builder(root, folder, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}:\n{said}");
}

fn json_of(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// A folder of blobs.
struct Blobs(PathBuf);

impl Blobs {
    fn of(&self, digest: &Value) -> Value {
        let digest = digest.as_str().expect("a digest");
        json_of(&self.0.join(digest.trim_start_matches("sha256:")))
    }

    /// The statements beside the images of an index, with the manifests that list them.
    fn statements(&self, index: &Value) -> Vec<(Value, Vec<Value>)> {
        let entries = index["manifests"].as_array().expect("an index");
        let found = entries
            .iter()
            .filter(|entry| entry["annotations"]["vnd.docker.reference.type"] == "attestation-manifest")
            .map(|entry| {
                assert_eq!(
                    entry["platform"],
                    json!({"architecture": "unknown", "os": "unknown"})
                );
                let manifest = self.of(&entry["digest"]);
                let about = &entry["annotations"]["vnd.docker.reference.digest"];
                assert!(entries.iter().any(|other| other["digest"] == *about), "{index}");
                let layers = manifest["layers"].as_array().expect("layers");
                let statements = layers.iter().map(|layer| {
                    let statement = self.of(&layer["digest"]);
                    assert_eq!(layer["mediaType"], "application/vnd.in-toto+json");
                    assert_eq!(
                        layer["annotations"]["in-toto.io/predicate-type"],
                        statement["predicateType"]
                    );
                    statement
                });
                (manifest.clone(), statements.collect())
            });
        found.collect()
    }
}

/// The index in an image layout.
fn layout_index(layout: &Path) -> (Blobs, Value) {
    let blobs = Blobs(layout.join("blobs/sha256"));
    let index = blobs.of(&json_of(&layout.join("index.json"))["manifests"][0]["digest"]);
    (blobs, index)
}

/// Builds an image with a provenance; answers its index, the manifest of statements, and those.
fn stated(folder: &Path, options: &str) -> (Value, Value, Vec<Value>) {
    let root = folder.join("root");
    let context = context(folder, "FROM scratch\nARG A\nLABEL a=$A\nCOPY file /file\n");
    let layout = tempfile::tempdir_in(folder).expect("a folder");
    let output = format!(
        "type=oci,tar=false,name=example.com/app:1,dest={}",
        layout.path().display()
    );
    let provenance = format!("--provenance={options}");
    let args = ["build", "--build-arg=A=secret", &provenance, "-o", &output, "."];
    must(&root, &context, &args);
    let (blobs, index) = layout_index(layout.path());
    let mut stated = blobs.statements(&index);
    assert_eq!(stated.len(), 1, "{index}");
    let (manifest, statements) = stated.remove(0);
    (index, manifest, statements)
}

#[test]
fn an_image_says_how_it_was_made() {
    let place = tempfile::tempdir().expect("a folder");
    let (index, manifest, statements) = stated(place.path(), "mode=max,builder-id=https://example.com/me");
    assert_eq!(
        manifest["artifactType"],
        "application/vnd.docker.attestation.manifest.v1+json"
    );
    assert_eq!(manifest["subject"]["digest"], index["manifests"][0]["digest"]);
    assert_eq!(
        manifest["config"]["mediaType"],
        "application/vnd.oci.empty.v1+json"
    );
    let [statement] = &statements[..] else {
        panic!("one statement, not {}", statements.len());
    };
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], PROVENANCE_V1);
    let name = statement["subject"][0]["name"].as_str().expect("a name");
    assert!(
        name.starts_with("pkg:docker/example.com/app@1?platform=linux%2F"),
        "{name}"
    );
    let (definition, run) = (
        &statement["predicate"]["buildDefinition"],
        &statement["predicate"]["runDetails"],
    );
    let request = &definition["externalParameters"]["request"];
    assert_eq!(request["frontend"], "dockerfile.v0");
    assert_eq!(request["args"], json!({"build-arg:A": "secret"}));
    assert_eq!(
        request["locals"],
        json!([{"name": "context"}, {"name": "dockerfile"}])
    );
    assert_eq!(
        definition["externalParameters"]["configSource"],
        json!({"path": "Dockerfile"})
    );
    let config = &definition["internalParameters"]["buildConfig"];
    let steps = config["llbDefinition"].as_array().expect("steps");
    assert_eq!(steps.len(), 3, "the context, the copy, the end");
    assert_eq!(steps[0]["op"]["Op"]["source"]["identifier"], "local://context");
    assert!(
        steps[0]["op"]["Op"]["source"]["attrs"]
            .get("local.session")
            .is_none()
    );
    assert_eq!(
        steps[1]["op"]["Op"]["file"]["actions"][0]["Action"]["copy"]["dest"],
        "/file"
    );
    assert_eq!(steps[2]["inputs"], json!(["step1:0"]));
    assert_eq!(
        config["digestMapping"].as_object().map(serde_json::Map::len),
        Some(3)
    );
    assert_eq!(run["builder"]["id"], "https://example.com/me");
    let metadata = &run["metadata"];
    assert_eq!(
        metadata["buildkit_completeness"],
        json!({"request": true, "resolvedDependencies": false})
    );
    let source = &metadata["buildkit_metadata"]["source"];
    assert_eq!(source["infos"][0]["filename"], "Dockerfile");
    assert_eq!(
        source["locations"]["step1"]["locations"][0]["ranges"][0]["start"],
        json!({"line": 4})
    );
    let layers = &metadata["buildkit_metadata"]["layers"]["step1:0"][0];
    assert_eq!(layers.as_array().map(Vec::len), Some(1), "{layers}");
}

#[test]
fn the_least_says_nothing_of_arguments_and_steps() {
    let place = tempfile::tempdir().expect("a folder");
    let (_, _, statements) = stated(place.path(), "mode=min");
    let predicate = &statements[0]["predicate"];
    assert!(!predicate.to_string().contains("secret"), "{predicate}");
    assert_eq!(
        predicate["runDetails"]["metadata"]["buildkit_completeness"]["request"],
        false
    );
    assert!(
        predicate["buildDefinition"]["internalParameters"]
            .get("buildConfig")
            .is_none()
    );

    let (_, _, statements) = stated(place.path(), "mode=min,version=v0.2,reproducible=true");
    let predicate = &statements[0]["predicate"];
    assert_eq!(statements[0]["predicateType"], "https://slsa.dev/provenance/v0.2");
    assert_eq!(predicate["buildType"], "https://mobyproject.org/buildkit@v1");
    assert_eq!(
        predicate["invocation"]["configSource"]["entryPoint"],
        "Dockerfile"
    );
    assert_eq!(predicate["metadata"]["reproducible"], true);
}

#[test]
fn what_is_not_asked_for_or_not_known_is_not_stated() {
    let place = tempfile::tempdir().expect("a folder");
    let (root, folder) = (place.path().join("root"), place.path());
    let context = context(folder, "FROM scratch\nCOPY file /file\n");
    let layout = folder.join("layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    // For images only, and an archive is none: no index is made for it.
    must(
        &root,
        &context,
        &[
            "build",
            "--provenance=mode=min,inline-only=true",
            "-o",
            &output,
            ".",
        ],
    );
    let top = json_of(&layout.join("index.json"));
    assert_eq!(
        top["manifests"][0]["mediaType"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    let wanted = "--provenance=complete-materials=true";
    let refused = builder(&root, &context, &["build", wanted, "-o", &output, "."]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(said.contains("Uncaptured local sources:"), "{said}");
    let output = format!("{output},oci-mediatypes=false");
    let refused = builder(
        &root,
        &context,
        &["build", "--provenance=true", "-o", &output, "."],
    );
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("cannot export attestations with \"oci-mediatypes=false\""),
        "{said}"
    );
}

#[test]
fn files_have_statements_beside_them() {
    let place = tempfile::tempdir().expect("a folder");
    let (root, folder) = (place.path().join("root"), place.path());
    let context = context(folder, "FROM scratch\nCOPY file /a/file\n");
    let names = |options: &str, extra: &[&str]| {
        let dest = tempfile::tempdir_in(folder).expect("a folder");
        let output = format!("type=local,dest={}{options}", dest.path().display());
        let mut args = vec!["build", "--provenance=mode=min", "-o", &output, "."];
        args.extend(extra);
        must(&root, &context, &args);
        let mut names: Vec<String> = fs::read_dir(dest.path())
            .expect("a folder")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        (dest, names)
    };
    let (dest, found) = names("", &[]);
    assert_eq!(found, ["a", "provenance.json"]);
    let statement = json_of(&dest.path().join("provenance.json"));
    let digest = oci::Digest::of(b"content\n").hex();
    assert_eq!(
        statement["subject"],
        json!([{"name": "a/file", "digest": {"sha256": digest}}])
    );
    let (_, found) = names(",attestation-prefix=of-", &[]);
    assert_eq!(found, ["a", "of-provenance.json"]);
    let platforms = ["--platform=linux/amd64,linux/arm64"];
    let (dest, found) = names("", &platforms);
    assert_eq!(found, ["linux_amd64", "linux_arm64"]);
    assert!(dest.path().join("linux_arm64/provenance.json").exists());
    let (_, found) = names(",platform-split=false", &platforms);
    assert_eq!(
        found,
        ["a", "provenance.linux_amd64.json", "provenance.linux_arm64.json"]
    );
}

/// A scanner that finds the files it is shown, as an image in the store at `root`.
fn scanner(root: &Path, folder: &Path) -> bool {
    if !(rustix::process::geteuid().is_root() && Path::new("/bin/busybox").exists()) {
        eprintln!("skipped: needs root and a static busybox");
        return false;
    }
    let context = folder.join("scanner");
    fs::create_dir(&context).expect("made");
    fs::copy("/bin/busybox", context.join("busybox")).expect("copied");
    let script = r#"
for source in $BUILDKIT_SCAN_SOURCE ${BUILDKIT_SCAN_SOURCE_EXTRAS:+$BUILDKIT_SCAN_SOURCE_EXTRAS/*}; do
  /busybox test -f $source/file && found='{"fileName":"file"}' || found=
  echo "{\"predicateType\":\"https://spdx.dev/Document\",\"predicate\":{\"spdxVersion\":\"SPDX-2.3\",\"name\":\"$BUILDKIT_SCAN_HINT\",\"files\":[$found]}}" \
    > $BUILDKIT_SCAN_DESTINATION/${source##*/}.spdx.json
done
"#;
    fs::write(context.join("scan"), script).expect("written");
    let dockerfile = "FROM scratch\nCOPY busybox scan /\nENTRYPOINT [\"/busybox\", \"sh\", \"/scan\"]\n";
    fs::write(context.join("Dockerfile"), dockerfile).expect("written");
    must(root, &context, &["build", "-t", "example.com/scanner:1", "."]);
    true
}

#[test]
fn a_scanner_says_what_is_in_an_image() {
    let place = tempfile::tempdir().expect("a folder");
    let (root, folder) = (place.path().join("root"), place.path());
    if !scanner(&root, folder) {
        return;
    }
    let dockerfile = "ARG BUILDKIT_SBOM_SCAN_CONTEXT=true\nFROM scratch AS made\nARG BUILDKIT_SBOM_SCAN_STAGE=true\n\
                      COPY file /file\nFROM scratch AS unseen\nCOPY file /other\n\
                      FROM scratch\nCOPY --from=made /file /file\nCOPY --from=unseen /other /other\n";
    let context = context(folder, dockerfile);
    let mut seen = Vec::new();
    let check = |layout: &Path| {
        let (blobs, index) = layout_index(layout);
        let (_, statements) = blobs.statements(&index).remove(0);
        // Of the result, of the build context, and of the stage that wants it.
        let [sbom, of_context, of_stage, provenance] = &statements[..] else {
            panic!("four statements, not {}", statements.len());
        };
        for scanned in [sbom, of_context, of_stage] {
            assert_eq!(scanned["predicateType"], SPDX);
            assert_eq!(scanned["predicate"]["files"][0]["fileName"], "file");
        }
        assert_eq!(provenance["predicateType"], PROVENANCE_V1);
        let materials = &provenance["predicate"]["buildDefinition"]["resolvedDependencies"];
        let scanner = materials[0]["uri"].as_str().unwrap_or_default();
        assert!(
            scanner.starts_with("pkg:docker/example.com/scanner@1"),
            "{materials}"
        );
        sbom["predicate"].clone()
    };
    let sbom = "--sbom=generator=example.com/scanner:1,HINT=here";
    let layout = folder.join("own");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    must(
        &root,
        &context,
        &["build", sbom, "--provenance=mode=min", "-o", &output, "."],
    );
    seen.push(check(&layout));

    // The same through a daemon with that store.
    let daemon = Daemon::start_as(folder, |_| {});
    let address = format!("unix://{}", daemon.socket.display());
    let layout = folder.join("daemons");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    must(
        &root,
        &context,
        &[
            "build",
            "--addr",
            &address,
            sbom,
            "--provenance=mode=min",
            "-o",
            &output,
            ".",
        ],
    );
    seen.push(check(&layout));
    for predicate in seen {
        assert_eq!(predicate["name"], "here");
        let comment = predicate["files"][0]["comment"].as_str().unwrap_or_default();
        assert!(comment.starts_with("layerID: sha256:"), "{predicate}");
        let creator = predicate["creationInfo"]["creators"][0]
            .as_str()
            .unwrap_or_default();
        assert!(creator.starts_with("Tool: builder-"), "{predicate}");
    }

    let wrong = builder(
        &root,
        &context,
        &["build", "--sbom=generator=example.com/none:1", "."],
    );
    assert!(!wrong.status.success());
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("example.com/none:1"), "{said}");
}

/// Builds as a client whose frontend claims something of the result; answers the statements beside the files.
async fn claimed(
    daemon: &Daemon,
    folder: &Path,
    id: &str,
    change: impl FnOnce(&mut Attestation),
) -> Result<Vec<(String, Value)>, String> {
    let client = daemon.client().await;
    let context = context(folder, "FROM scratch\nCOPY file claim.json stated /\n");
    fs::write(context.join("claim.json"), r#"{"is": "claimed"}"#).expect("written");
    fs::create_dir_all(context.join("stated")).expect("made");
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "https://example.com/b",
        "subject": [{"name": "thing", "digest": {"sha256": "ab"}}],
        "predicate": {"z": 1, "a": 2},
    });
    fs::write(context.join("stated/b.json"), statement.to_string()).expect("written");
    let dockerfile = "FROM scratch\nCOPY file claim.json /\nCOPY stated /stated\n";
    fs::write(context.join("Dockerfile"), dockerfile).expect("written");
    let out = folder.join(format!("out-{id}"));
    let dirs: [(&str, &Path); 2] = [("context", &context), ("dockerfile", &context)];
    let session = client
        .session(&format!("session-{id}"), &dirs, Some(directory(&out)))
        .await;
    let mut control = client.control();
    let request = SolveRequest {
        r#ref: id.into(),
        session: format!("session-{id}"),
        exporters: local(),
        ..SolveRequest::default()
    };
    let solve = tokio::spawn(async move { control.solve(request).await });
    let asked = gateway::SolveRequest {
        frontend: "dockerfile.v0".into(),
        allow_result_return: true,
        ..gateway::SolveRequest::default()
    };
    let solved = client.bridge().solve(of(id, asked)).await.expect("it is solved");
    let mut answer = solved.into_inner().result.expect("a result");
    let Some(result::Result::Ref(one)) = &answer.result else {
        panic!("it has one ref");
    };
    let mut claim = Attestation {
        kind: AttestationKind::InToto.into(),
        r#ref: Some(Ref {
            id: one.id.clone(),
            def: None,
        }),
        path: "/claim.json".into(),
        in_toto_predicate_type: "https://example.com/claim".into(),
        ..Attestation::default()
    };
    change(&mut claim);
    let platform = oci::Platform::host().to_string();
    let attestation = vec![claim];
    answer.attestations.insert(platform, Attestations { attestation });
    let returned = ReturnRequest {
        result: Some(answer),
        error: None,
    };
    client.bridge().r#return(of(id, returned)).await.expect("taken");
    let ended = solve.await.expect("no panic");
    if ended.is_ok() {
        session.settle().await;
    }
    session.cancel();
    ended.map_err(|status| status.message().to_owned())?;
    let files = fs::read_dir(&out)
        .expect("a folder")
        .map(|entry| entry.expect("an entry"));
    let statements = files
        .filter(|entry| entry.file_type().expect("a type").is_file())
        .filter_map(|entry| {
            let value: Value = serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?;
            value.get("predicateType")?;
            Some((entry.file_name().to_string_lossy().into_owned(), value))
        });
    Ok(statements.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_states_things_of_its_own_but_no_provenance() {
    let place = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(place.path());
    let files = claimed(&daemon, place.path(), "file", |_| {})
        .await
        .expect("it is built");
    let [(name, statement)] = &files[..] else {
        panic!("one statement: {files:?}");
    };
    assert_eq!(name, "claim.json");
    assert_eq!(statement["predicateType"], "https://example.com/claim");
    assert_eq!(statement["predicate"], json!({"is": "claimed"}));
    let subjects = statement["subject"].as_array().expect("subjects");
    assert!(subjects.iter().any(|subject| subject["name"] == "stated/b.json"));

    let bundle = |claim: &mut Attestation| {
        claim.kind = AttestationKind::Bundle.into();
        claim.path = "/stated".into();
        claim.in_toto_predicate_type = String::new();
    };
    let files = claimed(&daemon, place.path(), "bundle", bundle)
        .await
        .expect("it is built");
    let [(name, statement)] = &files[..] else {
        panic!("one statement: {files:?}");
    };
    assert_eq!(name, "b.json");
    assert_eq!(statement["subject"][0]["name"], "thing");
    assert_eq!(statement["predicate"], json!({"a": 2, "z": 1}));

    for (id, change, expected) in [
        (
            "provenance",
            Box::new(|claim: &mut Attestation| claim.in_toto_predicate_type = PROVENANCE_V1.into())
                as Box<dyn FnOnce(&mut Attestation)>,
            "frontend may not set provenance attestations",
        ),
        (
            "folder",
            Box::new(|claim| claim.path = "/stated".into()),
            "cannot read in-toto attestation: /stated is not a regular file",
        ),
        (
            "escape",
            Box::new(|claim| claim.path = "/../../etc/hostname".into()),
            "no such file or directory",
        ),
        (
            "bytes",
            Box::new(|claim| claim.path = "/file".into()),
            "cannot decode in-toto statement",
        ),
        (
            "scratch",
            Box::new(|claim| claim.r#ref = None),
            "attestation does not have available content",
        ),
        (
            "kind",
            Box::new(|claim| {
                claim.kind = AttestationKind::Bundle.into();
                claim.path = "/stated".into();
            }),
            "does not match required predicate type https://example.com/claim",
        ),
    ] {
        let refused = claimed(&daemon, place.path(), id, change).await.expect_err(id);
        assert!(refused.contains(expected), "{id}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_has_the_provenance_of_every_build() {
    let place = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(place.path());
    let context = context(place.path(), "FROM scratch\nCOPY file /file\n");
    let client = daemon.client().await;
    let exporter = Exporter {
        r#type: "image".into(),
        attrs: BTreeMap::from([("name".into(), "example.com/app:1".into())]),
    };
    let built = client.build("first", &context, vec![exporter], None).await;
    built.answer.expect("it is built");
    let request = api::control::BuildHistoryRequest {
        r#ref: "first".into(),
        early_exit: true,
        ..<_>::default()
    };
    let mut events = client
        .control()
        .listen_build_history(request)
        .await
        .expect("a stream")
        .into_inner();
    let record = loop {
        let event = events.message().await.expect("it goes on").expect("an event");
        if let Some(record) = event.record.filter(|record| record.completed_at.is_some()) {
            break record;
        }
    };
    let attachment = record.result.expect("a result").attestations.remove(0);
    assert_eq!(attachment.annotations["in-toto.io/predicate-type"], PROVENANCE_V1);
    let digest = attachment.digest.trim_start_matches("sha256:").to_owned();
    let kept = place.path().join("root/history/blobs").join(&digest);
    let predicate = json_of(&kept);
    let steps = &predicate["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"];
    assert_eq!(steps.as_array().map(Vec::len), Some(3));
    let layers = &predicate["runDetails"]["metadata"]["buildkit_metadata"]["layers"];
    assert_eq!(layers["step1:0"][0].as_array().map(Vec::len), Some(1), "{layers}");
}

/// What another program says; it must be content.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}:\n{errors}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn pushed_statements_are_found_by_other_programs() {
    let has = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|part| part.join(program).exists())
    };
    if !(has("docker-registry") && has("skopeo")) {
        eprintln!("skipped: docker-registry and skopeo are needed");
        return;
    }
    let place = tempfile::tempdir().expect("a folder");
    let (root, folder) = (place.path().join("root"), place.path());
    if !scanner(&root, folder) {
        return;
    }
    let registry = Registry::start(folder);
    let context = context(folder, "FROM scratch\nCOPY file /file\n");
    let mut doors = vec![("own", None)];
    let daemon = Daemon::start_as(folder, |_| {});
    let address = format!("unix://{}", daemon.socket.display());
    doors.push(("daemon", Some(&address)));
    for (door, address) in doors {
        let name = format!("{}/team/app:{door}", registry.address);
        let output = format!("type=image,name={name},push=true");
        let mut args = vec![
            "build",
            "--progress=plain",
            "--platform=linux/amd64,linux/arm64",
            "--sbom=generator=example.com/scanner:1",
            "--provenance=mode=max",
            "-o",
            &output,
        ];
        args.extend(address.iter().flat_map(|address| ["--addr", address.as_str()]));
        args.push(".");
        must(&root, &context, &args);
        let reference = format!("docker://{name}");
        let index = said("skopeo", &["inspect", "--raw", "--tls-verify=false", &reference]);
        let index: Value = serde_json::from_str(&index).expect("JSON");
        assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
        let copied = folder.join(format!("copied-{door}"));
        let target = format!("dir:{}", copied.display());
        said(
            "skopeo",
            &[
                "copy",
                "--all",
                "--quiet",
                "--src-tls-verify=false",
                &reference,
                &target,
            ],
        );
        let (blobs, images) = (Blobs(copied), &index["manifests"]);
        // Manifests lie beside blobs under names of their own there.
        for entry in images.as_array().expect("an index") {
            let hex = entry["digest"]
                .as_str()
                .expect("a digest")
                .trim_start_matches("sha256:");
            let from = blobs.0.join(format!("{hex}.manifest.json"));
            fs::rename(from, blobs.0.join(hex)).expect("a manifest");
        }
        let found = blobs.statements(&index);
        assert_eq!(
            (images.as_array().map(Vec::len), found.len()),
            (Some(4), 2),
            "{index}"
        );
        for (number, (manifest, statements)) in found.iter().enumerate() {
            assert_eq!(
                manifest["mediaType"],
                "application/vnd.oci.image.manifest.v1+json"
            );
            assert_eq!(
                manifest["artifactType"],
                "application/vnd.docker.attestation.manifest.v1+json"
            );
            assert_eq!(
                manifest["config"]["mediaType"],
                "application/vnd.oci.empty.v1+json"
            );
            assert_eq!(manifest["subject"]["digest"], images[number]["digest"]);
            let kinds: Vec<_> = statements
                .iter()
                .map(|one| one["predicateType"].clone())
                .collect();
            assert_eq!(kinds, [SPDX, PROVENANCE_V1], "{door}");
            for statement in statements {
                assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
                let subject = &statement["subject"][0];
                let digest = images[number]["digest"].as_str().expect("a digest");
                assert_eq!(subject["digest"]["sha256"], digest.trim_start_matches("sha256:"));
                let purl = subject["name"].as_str().unwrap_or_default();
                assert!(purl.starts_with("pkg:docker/"), "{purl}");
            }
            let steps = &statements[1]["predicate"]["buildDefinition"]["internalParameters"]["buildConfig"];
            assert!(steps["llbDefinition"].is_array(), "{steps}");
        }
    }
}
