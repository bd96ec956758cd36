//! Why one step ran.
//!
//! | the solver says | and the last build had | so |
//! |---|---|---|
//! | the cache was not to be asked | – | `--no-cache` |
//! | an input without a match | the same instruction | that input: files, base image, or a step before |
//! | all inputs matched | the same instruction | the result is gone |
//! | anything | another instruction at its place | what of it changed: text, build argument, user, … |
//! | anything | nothing like it | new |

use std::collections::BTreeMap;

use serde_json::Value;
use solver::{Outcome, StepReport};

use super::record::{Record, Step};

/// Longer texts are cut.
const MAX_TEXT: usize = 120;

/// Says which files behind a content digest changed.
type Changes<'a> = &'a dyn Fn(&oci::Digest) -> Vec<String>;

pub(super) fn causes(
    step: &StepReport,
    report: &[StepReport],
    last: Option<&Record>,
    changes: Changes<'_>,
) -> Vec<String> {
    if step.ignore_cache {
        return vec!["the cache was not asked (--no-cache)".to_owned()];
    }
    let Some(last) = last else {
        return vec!["there was no build of this Dockerfile and target in this store before".to_owned()];
    };
    let same: Vec<&Step> = last
        .steps
        .iter()
        .filter(|old| old.key == step.key && old.key.is_some())
        .collect();
    let nearest = same
        .iter()
        .find(|old| old.name == step.vertex.name)
        .or(same.first());
    if let Some(before) = nearest {
        return inputs(step, before, report, last, changes);
    }
    match last
        .steps
        .iter()
        .find(|old| place(&old.name).is_some() && place(&old.name) == place(&step.vertex.name))
    {
        Some(before) => instruction(step, before),
        None => match last
            .steps
            .iter()
            .find(|old| text(&old.name) == text(&step.vertex.name))
        {
            Some(before) => instruction(step, before),
            None => vec!["this instruction is new".to_owned()],
        },
    }
}

/// The instruction is as it was; what it works on is not.
fn inputs(
    step: &StepReport,
    before: &Step,
    report: &[StepReport],
    last: &Record,
    changes: Changes<'_>,
) -> Vec<String> {
    let mut words = Vec::new();
    for (index, input) in step
        .inputs
        .iter()
        .enumerate()
        .filter(|(_, input)| !input.is_matched)
    {
        let old = before.contents.get(index).copied().flatten();
        match (old, input.content) {
            (Some(old), Some(new)) if old != new => {
                let changes = changes(&new);
                match changes.is_empty() {
                    true => words.push(format!(
                        "the files it takes from {} changed",
                        name_of(input.vertex, report)
                    )),
                    false => words.extend(changes),
                }
            }
            _ => words.push(upstream(input.vertex, report, last)),
        }
    }
    words.dedup();
    if words.is_empty() {
        words.push("its earlier result is no longer in the cache".to_owned());
    }
    words
}

fn name_of(vertex: oci::Digest, report: &[StepReport]) -> String {
    find(vertex, report).map_or_else(|| "its input".to_owned(), |step| short(&step.vertex.name))
}

fn find(vertex: oci::Digest, report: &[StepReport]) -> Option<&StepReport> {
    report.iter().find(|step| step.vertex.digest == vertex)
}

fn upstream(vertex: oci::Digest, report: &[StepReport], last: &Record) -> String {
    let Some(step) = find(vertex, report) else {
        return "what it works on changed".to_owned();
    };
    let name = short(&step.vertex.name);
    if let Some(words) = base_image(step, last) {
        return words;
    }
    match step.outcome {
        Outcome::Ran | Outcome::Shared if step.inputs.is_empty() => format!("{name} changed"),
        Outcome::Ran | Outcome::Shared => format!("it follows {name}, which ran"),
        _ => format!("{name} is not what this instruction had before"),
    }
}

/// An image that means something else than the last time.
fn base_image(step: &StepReport, last: &Record) -> Option<String> {
    let field = |explain: &str, name: &str| -> Option<String> {
        Some(
            serde_json::from_str::<Value>(explain)
                .ok()?
                .get(name)?
                .as_str()?
                .to_owned(),
        )
    };
    let (image, now) = (field(&step.explain, "image")?, field(&step.explain, "digest")?);
    let plain = |image: &str| image.split('@').next().unwrap_or(image).to_owned();
    let same = |old: &&Step| field(&old.explain, "image").is_some_and(|old| plain(&old) == plain(&image));
    let before = last
        .steps
        .iter()
        .find(same)
        .and_then(|old| field(&old.explain, "digest"));
    Some(match before {
        Some(before) if before != now => format!(
            "the base image {} changed: {} to {}",
            plain(&image),
            cut(&before, 19),
            cut(&now, 19)
        ),
        Some(_) => format!("it was not built on {} before", plain(&image)),
        None => format!("the base image is another: {}", plain(&image)),
    })
}

/// The instruction itself is another than the one that was here.
fn instruction(step: &StepReport, before: &Step) -> Vec<String> {
    let (now, was) = (text(&step.vertex.name), text(&before.name));
    if now != was {
        return vec![format!("the instruction changed, it was: {}", cut(was, MAX_TEXT))];
    }
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    let mut words = Vec::new();
    differences("", &parse(&before.explain), &parse(&step.explain), &mut words);
    if words.is_empty() {
        words.push("its options changed".to_owned());
    }
    words
}

/// What is different in what two keys were made of.
fn differences(name: &str, before: &Value, after: &Value, words: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
            for name in names {
                let of = |object: &serde_json::Map<String, Value>| {
                    object.get(name).cloned().unwrap_or(Value::Null)
                };
                differences(name, &of(before), &of(after), words);
            }
        }
        (before, after) if before == after => {}
        (Value::Array(_) | Value::Null, Value::Array(_) | Value::Null)
            if name.eq_ignore_ascii_case("env") =>
        {
            environment(&assignments(before), &assignments(after), words);
        }
        (Value::String(before), Value::String(after)) => {
            words.push(format!(
                "{name} changed from {:?} to {:?}",
                cut(before, MAX_TEXT),
                cut(after, MAX_TEXT)
            ));
        }
        (Value::Null, Value::String(after)) => {
            words.push(format!("{name} is now {:?}", cut(after, MAX_TEXT)))
        }
        (Value::String(before), Value::Null) => {
            words.push(format!("{name} is no longer {:?}", cut(before, MAX_TEXT)))
        }
        _ if name.eq_ignore_ascii_case("actions") => {
            words.push("what it copies or makes changed (owner, mode, destination or options)".to_owned())
        }
        _ => words.push(format!("its {} changed", name.to_lowercase())),
    }
}

fn assignments(list: &Value) -> BTreeMap<String, String> {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts
        .filter_map(|text| text.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn environment(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>, words: &mut Vec<String>) {
    for (name, value) in after {
        match before.get(name) {
            None => words.push(format!(
                "build argument or variable {name} is new: {:?}",
                cut(value, MAX_TEXT)
            )),
            Some(old) if old != value => words.push(format!(
                "build argument or variable {name} changed from {:?} to {:?}",
                cut(old, MAX_TEXT),
                cut(value, MAX_TEXT)
            )),
            Some(_) => {}
        }
    }
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    words.extend(gone.map(|name| format!("build argument or variable {name} is gone")));
}

/// `build 3` of `[build 3/5] RUN make`.
fn place(name: &str) -> Option<&str> {
    name.strip_prefix('[')?.split_once(']')?.0.split('/').next()
}

/// `RUN make` of `[build 3/5] RUN make`.
fn text(name: &str) -> &str {
    match name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, text)) => text,
        None => name,
    }
}

fn short(name: &str) -> String {
    cut(name, 60)
}

fn cut(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit).chain(['…']).collect()
}
