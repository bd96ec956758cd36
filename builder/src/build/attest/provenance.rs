//! How a result was made, in the words of SLSA: v1 and v0.2, in two sizes.
//!
//! ```text
//! Capture, request ─▶ Document ─ min: without arguments, labels, secrets, steps ─▶ v1 │ v0.2
//! ```
//!
//! The documents equal BuildKit's field by field, in the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use llb::{Definition, Graph};
use oci::{Descriptor, Platform};
use serde_json::{Map, Value, json};
use solver::{Blame, OpError};
use worker::export::{Attestation, Predicate};

use super::asked::{Provenance, Version};
use super::capture::{Capture, Pins, UnknownRequest, masked};
use super::materials::{config_source, materials};
use super::run::Run;
use super::scope::{Request, Scope, Wanted};
use super::steps::Steps;

const BUILD_TYPE_V1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_V02: &str = "https://mobyproject.org/buildkit@v1";
const PREDICATE_V1: &str = "https://slsa.dev/provenance/v1";
const PREDICATE_V02: &str = "https://slsa.dev/provenance/v0.2";
/// Which of BuildKit's ways to do things this builder follows.
const COMPATIBILITY: u32 = 30;
/// The frontend whose version is stated.
const FRONTEND: &str = "dockerfile.v0";
/// Attributes that say something of the machine, not of the build.
const OF_THE_MACHINE: &[&str] = &["cgroup-parent", "image-resolve-mode", "platform", "cache-imports"];

/// All that is needed to state how a build's results were made.
pub(crate) struct Stating<'a> {
    pub(crate) asked: &'a Provenance,
    pub(crate) run: &'a Arc<Run>,
    pub(crate) pins: &'a Pins,
    /// Platforms of all results; none if there is one result without.
    pub(crate) platforms: &'a [Platform],
    /// Ids of all results.
    pub(crate) results: &'a BTreeSet<String>,
}

/// Materials that are needed and not known by digest.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct IncompleteMaterials(String);

impl Stating<'_> {
    /// How one result was made.
    ///
    /// # Errors
    /// All sources were to be known by digest, and are not.
    pub(crate) fn of(
        &self,
        scope: &Scope,
        definition: &Definition,
        platform: Option<&Platform>,
    ) -> Result<Attestation, OpError> {
        let graph = definition.to_graph().map_err(OpError::user)?;
        let document = self.document(scope, definition, graph, platform)?;
        Ok(Attestation {
            predicate_type: document.version_uri().to_owned(),
            file: self.asked.file.clone(),
            is_core_sbom: false,
            is_inline_only: self.asked.is_inline_only,
            subjects: Vec::new(),
            predicate: Arc::new(document),
        })
    }

    fn document(
        &self,
        scope: &Scope,
        definition: &Definition,
        graph: Graph,
        platform: Option<&Platform>,
    ) -> Result<Document, OpError> {
        let wanted = Wanted {
            pins: self.pins,
            platform,
            platforms: self.platforms,
        };
        let capture = scope.capture(&graph, self.results, &wanted);
        let is_complete = !capture.is_incomplete && capture.locals.is_empty();
        if self.asked.needs_materials && !is_complete {
            return Err(OpError::new(
                Blame::User,
                IncompleteMaterials(incomplete(&capture)),
            ));
        }
        let mut request = Parameters::of(scope.request(), &capture);
        let own = Parameters {
            secrets: Vec::new(),
            ssh: Vec::new(),
            ..request.clone()
        };
        let root = scope
            .request()
            .and(scope.root())
            .map(|root| Parameters::of(Some(root), &capture));
        let mut root = root.map(|root| Parameters {
            secrets: Vec::new(),
            ssh: Vec::new(),
            ..root
        });
        root.take_if(|root| *root == own || (root.frontend.is_empty() && root.args.is_empty()));
        let vcs = request.take_vcs();
        let mut is_whole = !request.frontend.is_empty();
        if !self.asked.is_max {
            is_whole &= !request.scrub();
            if root.as_mut().is_some_and(Parameters::scrub) {
                is_whole = false;
            }
        }
        Ok(Document {
            version: self.asked.version,
            run: self.run.clone(),
            materials: materials(&capture),
            request: request.json(&capture.locals, root.as_ref()),
            config_source: request.config_source,
            builder_id: self.asked.builder_id.clone(),
            vcs,
            is_proxied: capture.is_proxied,
            unknown_requests: capture.unknown_requests,
            is_hermetic: is_complete && !capture.has_network,
            is_whole,
            is_complete,
            is_reproducible: self.asked.is_reproducible,
            has_own_frontend: scope
                .request()
                .is_some_and(|request| request.frontend == FRONTEND),
            detail: self.asked.is_max.then(|| Detail::of(definition, graph)),
        })
    }
}

fn incomplete(capture: &Capture) -> String {
    let mut text =
        "provenance materials are incomplete\n\nThe build requested complete provenance materials, but not \
                    all dependencies could be captured."
            .to_owned();
    if !capture.locals.is_empty() {
        text.push_str("\n\nUncaptured local sources:");
    }
    for name in &capture.locals {
        text.push_str(&format!("\n  - {name}\n    reason: local_source"));
    }
    if !capture.unknown_requests.is_empty() {
        text.push_str("\n\nUncaptured requests:");
    }
    for UnknownRequest { command, request, .. } in &capture.unknown_requests {
        text.push_str(&format!("\n  - {command}"));
        let words = [
            ("method", request.method.as_str()),
            ("url", &request.address),
            ("reason", request.reason),
        ];
        for (name, word) in words.iter().filter(|(_, word)| !word.is_empty()) {
            text.push_str(&format!("\n    {name}: {word}"));
        }
    }
    text
}

/// What a frontend was asked, as it is stated.
#[derive(Clone, Debug, Default, PartialEq)]
struct Parameters {
    frontend: String,
    args: BTreeMap<String, String>,
    config_source: Map<String, Value>,
    secrets: Vec<Value>,
    ssh: Vec<Value>,
}

impl Parameters {
    fn of(request: Option<&Request>, capture: &Capture) -> Parameters {
        let request = request.cloned().unwrap_or_default();
        let mut args = filtered(&request.attributes);
        let named = |key: &str| request.attributes.get(key).filter(|value| !value.is_empty());
        let context_key = match named("contextkey") {
            Some(key) => key.as_str(),
            None if named("input:context").is_some() => "input:context",
            None => "context",
        };
        let mut source = Map::new();
        if let Some(context) = args.get(context_key).filter(|value| !value.is_empty()).cloned() {
            if let Value::Object(found) = config_source(named(context_key).unwrap_or(&context), capture) {
                source = found;
            }
            args.remove(context_key);
        }
        if let Some(path) = named("filename") {
            source.insert("path".to_owned(), Value::from(path.as_str()));
            args.remove("filename");
        }
        let ids = |ids: &BTreeMap<String, bool>| {
            let one = |(id, is_optional): (&String, &bool)| match is_optional {
                true => json!({"id": id, "optional": true}),
                false => json!({"id": id}),
            };
            ids.iter().map(one).collect()
        };
        Parameters {
            frontend: request.frontend,
            args,
            config_source: source,
            secrets: ids(&capture.secrets),
            ssh: ids(&capture.ssh),
        }
    }

    /// Takes out where the source is kept.
    fn take_vcs(&mut self) -> BTreeMap<String, String> {
        let (vcs, args) = std::mem::take(&mut self.args)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(key, _)| key.starts_with("vcs:"));
        self.args = args;
        let named = vcs.into_iter().filter(|(_, value)| !value.is_empty());
        named
            .map(|(key, value)| {
                let name = key.trim_start_matches("vcs:").to_owned();
                let value = if name == "source" { masked(&value) } else { value };
                (name, value)
            })
            .collect()
    }

    /// Takes out what may tell too much; true if that was something of the request.
    fn scrub(&mut self) -> bool {
        let before = self.args.len();
        let tells = |key: &str| key.starts_with("build-arg:") || key.starts_with("label:");
        self.args.retain(|key, _| !tells(key));
        self.secrets.clear();
        self.ssh.clear();
        self.args.len() < before
    }

    fn json(&self, locals: &[String], root: Option<&Parameters>) -> Value {
        let mut out = Map::new();
        let mut set = |key: &str, value: Value| {
            out.insert(key.to_owned(), value);
        };
        if !self.frontend.is_empty() {
            set("frontend", Value::from(self.frontend.as_str()));
        }
        if !self.args.is_empty() {
            set("args", json!(self.args));
        }
        for (key, list) in [("secrets", &self.secrets), ("ssh", &self.ssh)] {
            if !list.is_empty() {
                set(key, Value::Array(list.clone()));
            }
        }
        if !locals.is_empty() {
            let locals: Vec<_> = locals.iter().map(|name| json!({"name": name})).collect();
            set("locals", Value::Array(locals));
        }
        if let Some(root) = root {
            let mut inner = root.json(&[], None);
            if let Some(inner) = inner.as_object_mut() {
                inner.remove("compatibilityVersion");
            }
            set(
                "root",
                json!({"configSource": root.config_source, "request": inner}),
            );
        }
        set("compatibilityVersion", Value::from(COMPATIBILITY));
        Value::Object(out)
    }
}

/// The attributes that say something of the build.
fn filtered(attributes: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let named = attributes.get("contextkey").filter(|key| !key.is_empty());
    let context_key = named.map_or("context", String::as_str);
    attributes
        .iter()
        .filter(|(key, _)| !OF_THE_MACHINE.contains(&key.as_str()) && !key.starts_with("attest:"))
        .map(|(key, value)| {
            let is_address = key == context_key || key.starts_with("context:");
            let value = if is_address { masked(value) } else { value.clone() };
            (key.clone(), value)
        })
        .collect()
}

/// A provenance, but for the time it was finished.
#[derive(Debug)]
struct Document {
    version: Version,
    run: Arc<Run>,
    materials: Vec<Value>,
    request: Value,
    config_source: Map<String, Value>,
    builder_id: String,
    vcs: BTreeMap<String, String>,
    is_proxied: bool,
    unknown_requests: Vec<UnknownRequest>,
    is_hermetic: bool,
    /// Nothing of the request is left out.
    is_whole: bool,
    /// All materials are known.
    is_complete: bool,
    is_reproducible: bool,
    /// Whether the Dockerfile frontend of this program made it.
    has_own_frontend: bool,
    /// All there is to say.
    detail: Option<Detail>,
}

/// What only the largest provenance says.
#[derive(Debug)]
struct Detail {
    graph: Graph,
    steps: Steps,
    source: Option<Value>,
}

impl Detail {
    fn of(definition: &Definition, graph: Graph) -> Detail {
        let steps = Steps::of(definition);
        Detail {
            source: steps.source(definition),
            steps,
            graph,
        }
    }
}

impl Predicate for Document {
    fn content(&self, layers: &[Descriptor]) -> Result<Value, OpError> {
        let finished = self.run.finished();
        let metadata = self.buildkit_metadata(layers);
        Ok(match self.version {
            Version::V1 => self.v1(finished, metadata),
            Version::V02 => self.v02(finished, metadata),
        })
    }
}

impl Document {
    fn version_uri(&self) -> &'static str {
        match self.version {
            Version::V1 => PREDICATE_V1,
            Version::V02 => PREDICATE_V02,
        }
    }

    /// Where the source is kept; for the largest provenance its lines, and the layers made of it.
    fn buildkit_metadata(&self, layers: &[Descriptor]) -> Value {
        let mut metadata = Map::new();
        if !self.vcs.is_empty() {
            metadata.insert("vcs".to_owned(), json!(self.vcs));
        }
        if let Some(detail) = &self.detail {
            let source = detail.source.clone();
            metadata.extend(source.map(|source| ("source".to_owned(), source)));
            let layers = detail.steps.layers(&detail.graph, layers);
            if !layers.is_empty() {
                metadata.insert("layers".to_owned(), json!(layers));
            }
        }
        if self.is_proxied {
            metadata.insert("network".to_owned(), self.network());
        }
        Value::Object(metadata)
    }

    /// How steps reached the outside, and what of it is not known.
    fn network(&self) -> Value {
        let mut network = Map::new();
        network.insert("mode".to_owned(), json!("proxy"));
        let unknown = self.unknown_requests.iter().map(|unknown| {
            let UnknownRequest {
                vertex,
                command,
                request,
            } = unknown;
            let words = [
                ("op", vertex.to_string()),
                ("name", command.clone()),
                ("method", request.method.clone()),
                ("uri", request.address.clone()),
                ("reason", request.reason.to_owned()),
            ];
            let said = words.into_iter().filter(|(_, word)| !word.is_empty());
            Value::Object(said.map(|(name, word)| (name.to_owned(), json!(word))).collect())
        });
        let unknown: Vec<Value> = unknown.collect();
        if !unknown.is_empty() {
            network.insert("proxy".to_owned(), json!({ "incomplete": unknown }));
        }
        Value::Object(network)
    }

    fn v1(&self, finished: Timestamp, buildkit_metadata: Value) -> Value {
        let mut definition = Map::new();
        definition.insert("buildType".to_owned(), Value::from(BUILD_TYPE_V1));
        if !self.materials.is_empty() {
            definition.insert(
                "resolvedDependencies".to_owned(),
                Value::Array(self.materials.clone()),
            );
        }
        definition.insert(
            "externalParameters".to_owned(),
            json!({"configSource": self.config_source, "request": self.request}),
        );
        let mut internal = self.environment("builderPlatform");
        if let (Some(detail), Some(internal)) = (&self.detail, internal.as_object_mut()) {
            internal.insert("buildConfig".to_owned(), detail.steps.build_config());
        }
        internal.sort_all_objects();
        definition.insert("internalParameters".to_owned(), internal);
        let mut metadata = Map::new();
        let mut set = |key: &str, value: Value| metadata.insert(key.to_owned(), value);
        set("invocationId", Value::from(self.run.id.as_str()));
        set("startedOn", Value::from(self.run.started.to_string()));
        set("finishedOn", Value::from(finished.to_string()));
        set("buildkit_metadata", buildkit_metadata);
        if self.is_hermetic {
            set("buildkit_hermetic", Value::Bool(true));
        }
        set(
            "buildkit_completeness",
            json!({"request": self.is_whole, "resolvedDependencies": self.is_complete}),
        );
        if self.is_reproducible {
            set("buildkit_reproducible", Value::Bool(true));
        }
        json!({
            "buildDefinition": definition,
            "runDetails": {"builder": {"id": self.builder_id}, "metadata": metadata},
        })
    }

    fn environment(&self, platform_key: &str) -> Value {
        // What is known wins over what an administrator says.
        let mut out = Map::clone(&self.run.environment);
        if self.has_own_frontend {
            let version = Value::from(frontend::DOCKERFILE_VERSION);
            out.insert("dockerfileVersion".to_owned(), version);
        }
        out.insert(platform_key.to_owned(), Value::from(Platform::host().to_string()));
        Value::Object(out)
    }

    fn v02(&self, finished: Timestamp, buildkit_metadata: Value) -> Value {
        let mut source = Map::new();
        for (key, name) in [("uri", "uri"), ("digest", "digest"), ("path", "entryPoint")] {
            if let Some(value) = self.config_source.get(key) {
                source.insert(name.to_owned(), value.clone());
            }
        }
        let mut metadata = Map::new();
        let mut set = |key: &str, value: Value| metadata.insert(key.to_owned(), value);
        set("buildInvocationID", Value::from(self.run.id.as_str()));
        set("buildStartedOn", Value::from(self.run.started.to_string()));
        set("buildFinishedOn", Value::from(finished.to_string()));
        set(
            "completeness",
            json!({"parameters": self.is_whole, "environment": true, "materials": self.is_complete}),
        );
        set("reproducible", Value::Bool(self.is_reproducible));
        set("https://mobyproject.org/buildkit@v1#metadata", buildkit_metadata);
        if self.is_hermetic {
            set("https://mobyproject.org/buildkit@v1#hermetic", Value::Bool(true));
        }
        let mut document = Map::new();
        let mut set = |key: &str, value: Value| document.insert(key.to_owned(), value);
        set("builder", json!({"id": self.builder_id}));
        set("buildType", Value::from(BUILD_TYPE_V02));
        if !self.materials.is_empty() {
            set("materials", Value::Array(self.materials.clone()));
        }
        set(
            "invocation",
            json!({
                "configSource": source,
                "parameters": self.request,
                "environment": self.environment("platform"),
            }),
        );
        if let Some(detail) = &self.detail {
            set("buildConfig", detail.steps.build_config());
        }
        set("metadata", Value::Object(metadata));
        Value::Object(document)
    }
}
