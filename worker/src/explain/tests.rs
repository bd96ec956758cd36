use std::sync::Arc;

use oci::Digest;
use solver::progress::VertexInfo;
use solver::{InputReport, Outcome, StepReport};

use super::{Notes, explain, remember};

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// A step that ran; each input is the vertex's name, its content, and whether it was matched.
fn step(name: &str, explain: &str, inputs: &[(&str, Option<&str>, bool)]) -> StepReport {
    let vertex = VertexInfo {
        digest: digest(name),
        inputs: vec![],
        name: name.to_owned(),
        group: None,
    };
    let inputs = inputs.iter().map(|(vertex, content, is_matched)| InputReport {
        vertex: digest(vertex),
        content: content.map(digest),
        is_matched: *is_matched,
    });
    StepReport {
        vertex: Arc::new(vertex),
        outcome: Outcome::Ran,
        ignore_cache: false,
        key: Some(digest(explain)),
        explain: explain.to_owned(),
        pin: None,
        inputs: inputs.collect(),
    }
}

fn image(tag: &str) -> StepReport {
    let explain = format!(
        r#"{{"image":"docker.io/library/base:1","digest":"{}"}}"#,
        digest(tag)
    );
    step("[1/4] FROM docker.io/library/base:1", &explain, &[])
}

fn build(copied: &str, env: &str, run: &str, tag: &str) -> Vec<StepReport> {
    let base = "[1/4] FROM docker.io/library/base:1";
    let last = format!(r#"{{"Exec":{{"meta":{{"args":["{run}"],"env":["A=1","V={env}"]}}}}}}"#);
    vec![
        image(tag),
        step("[internal] load build context", "", &[]),
        step(
            "[2/4] COPY a b ./",
            "copy",
            &[
                (base, None, true),
                ("[internal] load build context", Some(copied), false),
            ],
        ),
        step(
            &format!("[3/4] RUN {run}"),
            &last,
            &[("[2/4] COPY a b ./", None, false)],
        ),
    ]
}

#[test]
fn causes_are_told_in_words() {
    let first = build("old", "1", "make", "one");
    let mut cases: Vec<(&str, Vec<StepReport>, &[&str])> = vec![
        (
            "build argument",
            build("old", "2", "make", "one"),
            &["build argument or variable V changed from \"1\" to \"2\""],
        ),
        (
            "instruction",
            build("old", "1", "make all", "one"),
            &["the instruction changed, it was: RUN make"],
        ),
        (
            "files",
            build("new", "1", "make", "one"),
            &[
                "the files it takes from [internal] load build context changed",
                "it follows [2/4] COPY a b ./, which ran",
            ],
        ),
    ];
    let mut other_base = build("old", "1", "make", "two");
    other_base[2].inputs[0].is_matched = false;
    other_base[2].inputs[1].is_matched = true;
    let expected = format!(
        "the base image docker.io/library/base:1 changed: {} to {}",
        &format!("{}…", &digest("one").to_string()[..19]),
        &format!("{}…", &digest("two").to_string()[..19])
    );
    let expected = [expected.as_str()];
    cases.push(("base", other_base, &expected));
    let mut gone = build("old", "1", "make", "one");
    for step in &mut gone {
        step.inputs.iter_mut().for_each(|input| input.is_matched = true);
    }
    cases.push(("gone", gone, &["its earlier result is no longer in the cache"]));
    let mut fresh = build("old", "1", "make", "one");
    fresh[3].ignore_cache = true;
    cases.push(("no cache", fresh, &["the cache was not asked (--no-cache)"]));

    for (what, report, expected) in cases {
        let root = tempfile::tempdir().expect("a directory");
        let notes = Notes::default();
        let text = explain(root.path(), "build", &first, &notes);
        assert!(text.contains("there was no build of this Dockerfile"), "{text}");
        remember(root.path(), "build", &first, &notes).expect("a record");
        let text = explain(root.path(), "build", &report, &notes);
        for line in expected {
            assert!(
                text.lines().any(|found| found.trim() == *line),
                "{what}: {line:?} is not in\n{text}"
            );
        }
    }
}

#[test]
fn a_cached_build_needs_no_words_and_forgets_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let first = build("old", "1", "make", "one");
    let notes = Notes::default();
    remember(root.path(), "build", &first, &notes).expect("a record");
    let mut cached = build("old", "1", "make", "one");
    for step in &mut cached {
        step.outcome = Outcome::NotNeeded;
        step.inputs.iter_mut().for_each(|input| input.content = None);
    }
    assert_eq!(
        explain(root.path(), "build", &cached, &notes),
        "every step came from the cache\n"
    );
    remember(root.path(), "build", &cached, &notes).expect("a record");
    let kept = super::record::load(&super::path(root.path(), "build")).expect("it is there");
    assert_eq!(
        kept.steps[2].contents[1],
        Some(digest("old")),
        "the contents of the last copy are still known"
    );
}
