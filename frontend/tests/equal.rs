//! For every Dockerfile of `fixtures/dockerfiles`: the same vertices, image config and findings as BuildKit.
//!
//! `expected.json` of each folder holds what BuildKit's own frontend made of it: digests, names, lines,
//! cache keys, configs, names of lint rules. `images.json` beside the folders is the registry. See the README there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;
use frontend::{FileRequest, Gateway, GatewayError, ImageRequest, Options, ResolvedImage, Warning, build};
use llb::cache::{Dep, op_key};
use llb::{CUSTOM_NAME, Definition, Op, op_bytes};
use oci::{Digest, Platform};
use serde_json::{Map, Value, json};

/// A registry and a client made of files.
struct Files {
    folder: PathBuf,
    images: Value,
    warnings: Mutex<Vec<String>>,
}

#[async_trait]
impl Gateway for Files {
    async fn read_files(
        &self,
        from: &Definition,
        files: &[FileRequest],
    ) -> Result<Vec<Option<Vec<u8>>>, GatewayError> {
        let graph = from.to_graph().map_err(GatewayError::new)?;
        let local = graph.vertices.iter().find_map(|vertex| match &vertex.op {
            Op::Source(source) if source.scheme() == "local" => Some(source.rest().to_owned()),
            _ => None,
        });
        let folder = match local.as_deref() {
            Some("dockerfile") => self.folder.clone(),
            Some(local) => self.folder.join(local),
            None => self.folder.join("remote"),
        };
        Ok(files
            .iter()
            .map(|file| std::fs::read(folder.join(&file.path)).ok())
            .collect())
    }

    async fn resolve_image(&self, request: &ImageRequest) -> Result<ResolvedImage, GatewayError> {
        let image = &self.images[&request.reference];
        let configs = &image["configs"];
        let config = configs
            .get(request.platform.to_string())
            .or_else(|| configs.get("*"));
        let config = config.ok_or_else(|| GatewayError::new(format!("{}: not found", request.reference)))?;
        let digest = Digest::parse(image["digest"].as_str().expect("a digest")).expect("a digest");
        let config = serde_json::to_vec(config).expect("JSON");
        Ok(ResolvedImage {
            reference: request.reference.clone(),
            digest,
            config,
        })
    }

    async fn source_time(&self, _: &Definition, _: &str) -> Result<Option<i64>, GatewayError> {
        Ok(None)
    }

    fn warn(&self, warning: Warning) {
        let lines = lines(&warning.location.ranges);
        self.warnings
            .lock()
            .expect("no panic before")
            .push(format!("{} @{lines}", warning.rule));
    }
}

fn lines(ranges: &[llb::Range]) -> String {
    let lines: Vec<String> = ranges
        .iter()
        .map(|r| format!("{}-{}", r.start.line, r.end.line))
        .collect();
    lines.join(",")
}

fn read_json(path: &Path) -> Option<Value> {
    Some(serde_json::from_slice(&std::fs::read(path).ok()?).expect("JSON"))
}

/// What is compared, in the form of `expected.json`.
async fn outcome(folder: &Path, images: &Value) -> (Value, Option<String>) {
    let attributes: BTreeMap<String, String> = read_json(&folder.join("options.json"))
        .map(|value| serde_json::from_value(value).expect("a map of texts"))
        .unwrap_or_default();
    let gateway = Files {
        folder: folder.to_owned(),
        images: images.clone(),
        warnings: Mutex::default(),
    };
    let mut options = Options::from_attributes(&attributes).expect("valid options");
    options.session = "session-1".to_owned();
    options.build_platform = Platform::new("linux", "amd64");
    let mut out = Map::new();
    let mut message = None;
    match build(&gateway, &options).await {
        Err(error) => {
            out.insert("error".into(), json!(true));
            message = Some(format!("{error} ({:?}, at {})", error.hint, lines(&error.ranges)));
        }
        Ok(answer) => {
            let platforms: Vec<Value> = answer.platforms.iter().map(platform).collect();
            out.insert("platforms".into(), json!(platforms));
        }
    }
    let mut warnings = gateway.warnings.into_inner().expect("no panic before");
    warnings.sort();
    // Warnings of a build that fails are shown or not depending on when it fails.
    if !warnings.is_empty() && message.is_none() {
        out.insert("warnings".into(), json!(warnings));
    }
    (Value::Object(out), message)
}

fn platform(answer: &frontend::PlatformAnswer) -> Value {
    let graph = answer.definition.to_graph().expect("a valid definition");
    let mut vertices: Vec<Value> = graph
        .vertices
        .iter()
        .map(|vertex| {
            let again = op_bytes(&vertex.inputs, &vertex.op, vertex.platform.as_ref());
            assert!(
                answer.definition.ops.contains(&again),
                "{} is written again as it was",
                vertex.name()
            );
            let mut out = Map::new();
            out.insert("digest".into(), json!(vertex.digest.to_string()));
            let key = op_key(vertex, &Platform::new("linux", "amd64")).expect("a key");
            if let Some(key) = key {
                out.insert("key".into(), json!(key.digest.to_string()));
                let dep = |dep: &Dep| {
                    let selector = dep
                        .selector
                        .map(|selector| selector.to_string())
                        .unwrap_or_default();
                    format!("{selector} content={}", dep.content.is_some())
                };
                out.insert("deps".into(), key.deps.iter().map(dep).collect());
            }
            if let Some(name) = vertex.metadata.description.get(CUSTOM_NAME) {
                out.insert("name".into(), json!(name));
            }
            let places = answer.definition.source.locations.get(&vertex.digest);
            let places: Vec<llb::Range> = places
                .into_iter()
                .flatten()
                .flat_map(|place| place.ranges.clone())
                .collect();
            if !places.is_empty() {
                out.insert("lines".into(), json!(lines(&places)));
            }
            if vertex.metadata.ignore_cache {
                out.insert("no_cache".into(), json!(true));
            }
            Value::Object(out)
        })
        .collect();
    vertices.sort_by_key(|vertex| vertex["digest"].to_string());
    let result = graph.root.map_or_else(
        || "scratch".to_owned(),
        |root| format!("{}@{}", root.digest, root.index),
    );
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("a config");
    let mut out = Map::new();
    out.insert("id".into(), json!(answer.id));
    out.insert("result".into(), json!(result));
    out.insert("vertices".into(), json!(vertices));
    out.insert("config".into(), parse(&answer.config));
    if let Some(base) = &answer.base_config {
        out.insert("base_config".into(), parse(base));
    }
    if let Some(epoch) = answer.epoch {
        out.insert("epoch".into(), json!(epoch.to_string()));
    }
    Value::Object(out)
}

/// Go writes null for lists and maps that are empty, and lists lines of equal vertices in its own order.
fn normal(value: &Value, key: &str) -> Value {
    match value {
        Value::Object(map) => {
            let members = map.iter().map(|(key, value)| (key.clone(), normal(value, key)));
            let filled = members.filter(|(_, value)| {
                !matches!(value, Value::Null)
                    && *value != json!([])
                    && *value != json!({})
                    && *value != json!("")
                    && *value != json!(0)
            });
            let sorted: BTreeMap<String, Value> = filled.collect();
            sorted.into_iter().collect::<Map<_, _>>().into()
        }
        Value::Array(items) if key != "ExposedPorts" => items.iter().map(|item| normal(item, "")).collect(),
        Value::String(text) if key == "lines" => {
            let mut lines: Vec<&str> = text.split(',').collect();
            lines.sort_unstable();
            lines.dedup();
            json!(lines.join(","))
        }
        other => other.clone(),
    }
}

#[tokio::test]
async fn dockerfiles_become_what_buildkit_makes_of_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dockerfiles");
    let images = read_json(&root.join("images.json")).expect("images.json");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&root)
        .expect("fixtures")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() >= 90, "only {} cases", folders.len());
    let mut wrong = Vec::new();
    for folder in &folders {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let mut expected = read_json(&folder.join("expected.json")).expect("expected.json");
        if expected["error"] == json!(true) {
            let expected = expected.as_object_mut().expect("an object");
            expected.remove("warnings");
            expected.remove("error_lines");
        }
        let (found, message) = outcome(folder, &images).await;
        let (found, expected) = (normal(&found, ""), normal(&expected, ""));
        if found != expected {
            wrong.push(format!(
                "== {name} {}\n{}",
                message.unwrap_or_default(),
                difference(&found, &expected)
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ\n{}",
        wrong.len(),
        folders.len(),
        wrong.join("\n")
    );
}

/// Lines of one text that are not in the other.
fn difference(found: &Value, expected: &Value) -> String {
    let text = |value: &Value| serde_json::to_string_pretty(value).expect("JSON");
    let (found, expected) = (text(found), text(expected));
    let missing = |a: &str, b: &str, sign: char| {
        let other: Vec<&str> = b.lines().collect();
        let lines = a
            .lines()
            .filter(|line| !other.contains(line))
            .map(|line| format!("{sign}{line}\n"));
        lines.collect::<String>()
    };
    missing(&found, &expected, '+') + &missing(&expected, &found, '-')
}
