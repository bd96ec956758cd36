//! What is kept of builds is the same whichever door they came through, and travels.
mod support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use support::{Daemon, context};

const DOCKERFILE: &str = "FROM scratch AS base\nCOPY file /copied\nFROM base\nCOPY file /again\n";

fn builder(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_builder"));
    command.arg("--root").arg(root).args(arguments);
    for name in [
        "BROWSER",
        "DISPLAY",
        "WAYLAND_DISPLAY",
        "BUILDX_METADATA_PROVENANCE",
    ] {
        command.env_remove(name);
    }
    command.output().expect("the program starts")
}

fn said(root: &Path, arguments: &[&str]) -> String {
    let output = builder(root, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn keys(of: &Value) -> BTreeSet<&str> {
    let fields = of.as_object().expect("an object").keys();
    fields.map(String::as_str).collect()
}

/// Builds; answers the metadata file.
fn build(root: &Path, folder: &Path, more: &[&str]) -> Value {
    let context = context(folder, DOCKERFILE);
    let file = folder.join("metadata.json");
    let (context, file) = (context.display().to_string(), file.display().to_string());
    let mut arguments = vec!["build", "--progress=plain", "--metadata-file", &file, "-t", "a:1"];
    arguments.extend(more);
    arguments.push(&context);
    said(root, &arguments);
    json(&std::fs::read_to_string(&file).expect("written"))
}

#[test]
fn both_doors_keep_and_say_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let own = folder.path().join("own");
    let daemon = Daemon::start(folder.path());
    let of_daemon = folder.path().join("root");
    let address = format!("unix://{}", daemon.socket.display());
    let mut first = build(&own, folder.path(), &[]);
    let mut second = build(&of_daemon, folder.path(), &["--addr", &address]);
    assert_eq!(keys(&first), keys(&second));
    for metadata in [&mut first, &mut second] {
        let provenance = &metadata["buildx.build.provenance"];
        assert_eq!(
            provenance["invocation"]["configSource"]["entryPoint"],
            "Dockerfile"
        );
        assert!(provenance.get("buildConfig").is_none() && provenance.get("metadata").is_none());
    }
    let record = |root: &Path| json(&said(root, &["history", "inspect"]));
    let (first, second) = (record(&own), record(&of_daemon));
    let without = |of: &Value, names: &[&str]| -> BTreeSet<String> {
        let kept = keys(of).into_iter().filter(|key| !names.contains(key));
        kept.map(str::to_owned).collect()
    };
    // A daemon is not told the folder.
    assert_eq!(without(&first, &["context"]), without(&second, &["context"]));
    assert_eq!(keys(&first["response"]), keys(&second["response"]));
    for record in [&first, &second] {
        assert_eq!(
            record["statements"][""][0]["mediaType"],
            "application/vnd.in-toto+json"
        );
        assert_eq!(
            record["trace"]["mediaType"],
            "application/vnd.buildkit.otlp.json.v0"
        );
        assert!(record["results"]["0"]["descriptor"]["digest"].is_string());
    }
    let steps = |root: &Path| {
        let page = json(&said(root, &["history", "trace"]));
        let spans = page["data"][0]["spans"].as_array().expect("spans").iter();
        let names = spans.map(|span| span["operationName"].as_str().unwrap_or_default().to_owned());
        names
            .filter(|name| name.starts_with('['))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(steps(&own), steps(&of_daemon));
    assert!(steps(&own).contains("[base 1/1] COPY file /copied"));
}

#[test]
fn a_build_travels_and_its_page_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    build(&from, folder.path(), &[]);
    let bundle = folder.path().join("one.dockerbuild").display().to_string();
    said(&from, &["history", "export", "--output", &bundle]);
    let imported = said(&to, &["history", "import", &bundle]);
    assert!(imported.starts_with("imported "), "{imported}");
    let again = said(&to, &["history", "import", "--file", &bundle]);
    assert!(again.starts_with("kept, as it was there "), "{again}");
    let record = |root: &Path| {
        let mut record = json(&said(root, &["history", "inspect"]));
        let fields = record.as_object_mut().expect("an object");
        fields.remove("imported");
        fields.remove("beneath");
        for (_, result) in fields["results"].as_object_mut().expect("results") {
            // Of a result only what the protocol has travels.
            result["descriptor"]
                .as_object_mut()
                .expect("one")
                .remove("platform");
        }
        record
    };
    assert_eq!(record(&from), record(&to));
    assert_eq!(said(&from, &["history", "logs"]), said(&to, &["history", "logs"]));
    assert_eq!(
        said(&from, &["history", "trace"]),
        said(&to, &["history", "trace"])
    );
    let page = said(&to, &["history", "open"]);
    let html = std::fs::read_to_string(page.trim_end()).expect("the page is there");
    assert!(html.contains("COPY file /again"));
    said(&to, &["history", "rm", "--all"]);
    assert!(!Path::new(page.trim_end()).exists());
    let refused = builder(
        &to,
        &[
            "history",
            "import",
            &folder.path().join("metadata.json").display().to_string(),
        ],
    );
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && why.contains("the bundle is no archive"),
        "{why}"
    );
}

#[test]
fn provenance_in_the_metadata_is_as_large_as_it_is_wanted() {
    let folder = tempfile::tempdir().expect("a folder");
    for (wanted, has_provenance, has_steps) in [("max", true, true), ("false", false, false)] {
        let context = context(folder.path(), DOCKERFILE);
        let file = folder.path().join("metadata.json");
        let status = Command::new(env!("CARGO_BIN_EXE_builder"))
            .arg("--root")
            .arg(folder.path().join("root"))
            .args(["build", "--progress=quiet", "--metadata-file"])
            .arg(&file)
            .arg(&context)
            .env("BUILDX_METADATA_PROVENANCE", wanted)
            .output();
        assert!(status.expect("the program starts").status.success());
        let metadata = json(&std::fs::read_to_string(&file).expect("written"));
        let provenance = metadata.get("buildx.build.provenance");
        assert_eq!(provenance.is_some(), has_provenance, "{wanted}");
        let steps = provenance.is_some_and(|one| one["buildConfig"]["llbDefinition"].is_array());
        assert_eq!(steps, has_steps, "{wanted}");
    }
}
