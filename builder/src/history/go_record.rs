//! A record as Go writes BuildKit's wire type in JSON, which is what bundles hold; and back.
//!
//! | field | of a [`Record`] |
//! |---|---|
//! | `Result.Results` | what each exporter made, by its number |
//! | `Result.Attestations`, `Results.<platform>.Attestations` | statements of a result without platforms, of each platform |
//! | `localState` | the context; what buildx remembers beside the daemon |
//!
//! Empty fields are left out. Read from a stranger's file: an id, a time or a number that cannot be is refused.
use super::Stamp;
use super::record::{Exporter, Failure, Record, Result as ExportResult, Steps};
use oci::{Descriptor, Digest};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

/// Longer than any id.
const MAX_ID: usize = 128;

/// Writes a record; its trace is in a bundle under another name, as it is changed on the way.
pub(super) fn write(record: &Record, trace: Option<&Value>) -> Value {
    let exporter = |one: &Exporter| object([("Type", json!(one.kind)), ("Attrs", json!(one.attributes))]);
    let error = record.error.as_ref();
    let error = error.map(|error| object([("code", json!(error.code)), ("message", json!(error.message))]));
    let made = record
        .results
        .iter()
        .filter_map(|(number, result)| Some((number.to_string(), descriptor(result.descriptor.as_ref()?))));
    let made: Map<String, Value> = made.collect();
    let stated = |of: &Vec<Descriptor>| Value::Array(of.iter().map(descriptor).collect());
    let of_platforms = record
        .statements
        .iter()
        .filter(|(platform, _)| !platform.is_empty());
    let of_platforms: Map<String, Value> = of_platforms
        .map(|(platform, statements)| (platform.clone(), json!({"Attestations": stated(statements)})))
        .collect();
    let result = object([
        (
            "Attestations",
            record.statements.get("").map_or(Value::Null, stated),
        ),
        ("Results", Value::Object(made)),
    ]);
    let trace = trace.map(|trace| {
        object([
            ("media_type", trace["mediaType"].clone()),
            ("digest", trace["digest"].clone()),
            ("size", trace["size"].clone()),
        ])
    });
    let steps = &record.steps;
    let context = record.context.as_ref();
    let mut written = object([
        ("Ref", json!(record.id)),
        ("Frontend", json!(record.frontend)),
        ("FrontendAttrs", json!(attributes(&record.attributes))),
        (
            "Exporters",
            json!(record.exporters.iter().map(exporter).collect::<Vec<_>>()),
        ),
        ("error", json!(error)),
        ("CreatedAt", time(record.created)),
        ("CompletedAt", json!(record.completed.map(time))),
        ("logs", json!(record.log.as_ref().map(descriptor))),
        ("ExporterResponse", json!(record.response)),
        ("Results", Value::Object(of_platforms)),
        ("Generation", json!(record.generation)),
        ("trace", json!(trace)),
        ("pinned", json!(record.is_pinned)),
        ("numCachedSteps", json!(steps.cached)),
        ("numTotalSteps", json!(steps.total)),
        ("numCompletedSteps", json!(steps.completed)),
        (
            "externalError",
            json!(record.external_error.as_ref().map(descriptor)),
        ),
        ("numWarnings", json!(steps.warnings)),
        ("DefaultPlatform", json!(oci::Platform::host().to_string())),
        (
            "localState",
            json!(context.map(|context| local_state(record, context))),
        ),
    ]);
    // Readers look into it without asking whether it is there.
    written["Result"] = result;
    written
}

/// What buildx remembers of a build beside the daemon.
fn local_state(record: &Record, context: &str) -> Value {
    let attribute = |name: &str, default: &str| {
        let value = record.attributes.get(name).cloned();
        json!(value.unwrap_or_else(|| default.to_owned()))
    };
    json!({
        "Target": attribute("target", "default"),
        "LocalPath": context,
        "DockerfilePath": attribute("filename", ""),
    })
}

/// Attributes, with credentials of caches left out.
fn attributes(attributes: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const IMPORTS: &str = "cache-imports";
    let mut kept = attributes.clone();
    if let Some(text) = kept.get_mut(IMPORTS) {
        let parsed = serde_json::from_str::<Vec<Value>>(text).unwrap_or_default();
        let entries = parsed.into_iter().map(|mut entry| {
            if let Some(attrs) = entry.get_mut("Attrs").and_then(Value::as_object_mut) {
                attrs.retain(|name, _| matches!(name.as_str(), "scope" | "ref"));
            }
            entry
        });
        *text = Value::Array(entries.collect()).to_string();
    }
    kept
}

fn descriptor(of: &Descriptor) -> Value {
    object([
        ("media_type", json!(of.media_type)),
        ("digest", json!(of.digest.to_string())),
        ("size", json!(of.size)),
        ("annotations", json!(of.annotations)),
    ])
}

fn time(stamp: Stamp) -> Value {
    let since: Duration = stamp.system_time().duration_since(UNIX_EPOCH).unwrap_or_default();
    object([
        ("seconds", json!(since.as_secs())),
        ("nanos", json!(since.subsec_nanos())),
    ])
}

/// Without what is empty.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    };
    let kept = fields.into_iter().filter(|(_, value)| !is_empty(value));
    Value::Object(kept.map(|(name, value)| (name.to_owned(), value)).collect())
}

/// As it lies in a bundle. What this program does not know is passed over, as newer writers have more to say.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    #[serde(rename = "Ref")]
    id: String,
    #[serde(rename = "Frontend")]
    frontend: String,
    #[serde(rename = "FrontendAttrs")]
    attributes: BTreeMap<String, String>,
    #[serde(rename = "Exporters")]
    exporters: Vec<WrittenExporter>,
    error: Option<WrittenError>,
    #[serde(rename = "CreatedAt")]
    created: Option<WrittenTime>,
    #[serde(rename = "CompletedAt")]
    completed: Option<WrittenTime>,
    logs: Option<WrittenDescriptor>,
    #[serde(rename = "ExporterResponse")]
    response: BTreeMap<String, String>,
    #[serde(rename = "Result")]
    result: Option<WrittenResult>,
    #[serde(rename = "Results")]
    of_platforms: BTreeMap<String, WrittenResult>,
    #[serde(rename = "Generation")]
    generation: u32,
    trace: Option<WrittenDescriptor>,
    num_cached_steps: u32,
    num_total_steps: u32,
    num_completed_steps: u32,
    external_error: Option<WrittenDescriptor>,
    num_warnings: u32,
    local_state: Option<WrittenState>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WrittenExporter {
    r#type: String,
    attrs: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WrittenError {
    code: i32,
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WrittenTime {
    seconds: u64,
    nanos: u32,
}

#[derive(Deserialize)]
struct WrittenDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WrittenResult {
    result_deprecated: Option<WrittenDescriptor>,
    attestations: Vec<WrittenDescriptor>,
    results: BTreeMap<u32, WrittenDescriptor>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WrittenState {
    local_path: String,
}

/// Reads a record of a build that is over.
///
/// # Errors
/// A sentence that says what cannot be.
pub(super) fn read(bytes: &[u8]) -> Result<Record, String> {
    let written: Written = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let is_sane = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    if written.id.is_empty() || written.id.len() > MAX_ID || !written.id.bytes().all(is_sane) {
        return Err("its id is none".to_owned());
    }
    let created = written.created.ok_or("it does not say when the build began")?;
    let completed = written.completed.ok_or("the build was not over")?;
    let (created, completed) = (created.stamp()?, completed.stamp()?);
    if completed < created {
        return Err("the build ended before it began".to_owned());
    }
    let mut result = written.result.unwrap_or_default();
    if let (Some(made), true) = (result.result_deprecated.take(), result.results.is_empty()) {
        result.results.insert(0, made);
    }
    let stated = |of: Vec<WrittenDescriptor>| {
        let read = of.into_iter().map(WrittenDescriptor::read);
        read.collect::<Result<Vec<_>, _>>()
    };
    let mut statements: BTreeMap<String, Vec<Descriptor>> = BTreeMap::new();
    let all = written
        .of_platforms
        .into_iter()
        .map(|(platform, of)| (platform, of.attestations))
        .chain([(String::new(), result.attestations)]);
    for (platform, of) in all.filter(|(_, of)| !of.is_empty()) {
        statements.insert(platform, stated(of)?);
    }
    let results = result.results.into_iter().map(|(number, made)| {
        let descriptor = Some(made.read()?);
        Ok((number, ExportResult { descriptor }))
    });
    let one = |of: Option<WrittenDescriptor>| of.map(WrittenDescriptor::read).transpose();
    Ok(Record {
        frontend: written.frontend,
        attributes: written.attributes,
        exporters: written.exporters.into_iter().map(WrittenExporter::read).collect(),
        context: written
            .local_state
            .map(|state| state.local_path)
            .filter(|path| !path.is_empty()),
        created,
        completed: Some(completed),
        error: written.error.map(|error| Failure {
            code: error.code,
            message: error.message,
        }),
        external_error: one(written.external_error)?,
        log: one(written.logs)?,
        trace: one(written.trace)?,
        response: written.response,
        results: results.collect::<Result<_, String>>()?,
        statements,
        steps: Steps {
            total: written.num_total_steps,
            cached: written.num_cached_steps,
            completed: written.num_completed_steps,
            warnings: written.num_warnings,
        },
        generation: written.generation,
        ..Record::new(written.id)
    })
}

impl WrittenTime {
    fn stamp(&self) -> Result<Stamp, String> {
        let time = UNIX_EPOCH.checked_add(Duration::new(self.seconds, self.nanos % 1_000_000_000));
        // Only a time that can be written can be read again.
        let stamp = time
            .map(Stamp::from)
            .filter(|stamp| Stamp::parse(&stamp.to_string()).is_some());
        stamp.ok_or_else(|| format!("{} seconds are no time", self.seconds))
    }
}

impl WrittenExporter {
    fn read(self) -> Exporter {
        Exporter {
            kind: self.r#type,
            attributes: self.attrs,
        }
    }
}

impl WrittenDescriptor {
    fn read(self) -> Result<Descriptor, String> {
        let digest = Digest::parse(&self.digest).map_err(|error| error.to_string())?;
        let mut descriptor = Descriptor::new(&self.media_type, digest, self.size);
        descriptor.annotations = self.annotations;
        Ok(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_caches_are_left_out() {
        let imports = r#"[{"Type":"s3","Attrs":{"secret_access_key":"x","ref":"r"}}]"#;
        let kept = attributes(&[("cache-imports".to_owned(), imports.to_owned())].into());
        assert_eq!(kept["cache-imports"], r#"[{"Type":"s3","Attrs":{"ref":"r"}}]"#);
    }

    #[test]
    fn written_and_read_it_is_the_same() {
        let named = |text: &str| Descriptor::new("application/x", Digest::of(text.as_bytes()), 3);
        let mut record = Record::new("abc");
        record.completed = Some(Stamp::now());
        record.attributes = [("target".to_owned(), "web".to_owned())].into();
        record.exporters = vec![Exporter {
            kind: "image".into(),
            attributes: [("push".to_owned(), "true".to_owned())].into(),
        }];
        record.context = Some("/src".into());
        record.error = Some(Failure {
            code: 2,
            message: "no".into(),
        });
        record.log = Some(named("log"));
        record.results.entry(1).or_default().descriptor = Some(named("made"));
        record.statements = [
            (String::new(), vec![named("one")]),
            ("linux/arm64".to_owned(), vec![named("two"), named("three")]),
        ]
        .into();
        record.steps.total = 4;
        record.generation = 2;
        let written = write(&record, None);
        assert_eq!(
            read(written.to_string().as_bytes()).expect("its own text"),
            record
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = json!({"Ref": "a", "CreatedAt": {"seconds": 5}, "CompletedAt": {"seconds": 6}});
        assert!(read(good.to_string().as_bytes()).is_ok());
        for (field, value, expected) in [
            ("Ref", json!(""), "its id is none"),
            ("Ref", json!("../x"), "its id is none"),
            ("Ref", json!("a\u{1b}[2J"), "its id is none"),
            ("Ref", json!("a".repeat(129)), "its id is none"),
            ("CreatedAt", Value::Null, "it does not say when"),
            ("CompletedAt", Value::Null, "the build was not over"),
            ("CompletedAt", json!({"seconds": 4}), "before it began"),
            ("CompletedAt", json!({"seconds": u64::MAX}), "are no time"),
            ("CompletedAt", json!({"seconds": 1_u64 << 50}), "are no time"),
            ("CompletedAt", json!({"seconds": -1}), "invalid value"),
            ("logs", json!({"digest": "sha256:x"}), "sha256:x"),
            ("numTotalSteps", json!(-1), "invalid value"),
            ("Result", json!({"Results": {"x": {}}}), "invalid"),
            ("FrontendAttrs", json!([1]), "invalid type"),
        ] {
            let mut changed = good.clone();
            changed[field] = value;
            let refused = read(changed.to_string().as_bytes()).expect_err(field);
            assert!(refused.contains(expected), "{field}: {refused}");
        }
    }
}
