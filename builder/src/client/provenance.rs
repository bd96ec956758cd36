//! How a build was made, for `--metadata-file`: read back from the history it was filed in, a daemon's or our own.
//!
//! ```text
//! in process: Record ─▶ blobs ─────────────────────────┐
//! daemon: ListenBuildHistory ─▶ Content.Read ──────────┴─▶ encode (SLSA v0.2) ─▶ buildx.build.provenance[/<platform>]
//! ```
//!
//! As buildx writes it: always in the words of SLSA v0.2, without build config and metadata unless all of it is wanted
//! (`BUILDX_METADATA_PROVENANCE=min|max|disabled`). A daemon that keeps none is no error: the file has no such key.
use crate::config::Environment;
use crate::history::{History, Record};
use api::content::ReadContentRequest;
use api::content::content_client::ContentClient;
use api::control::control_client::ControlClient;
use api::control::{BuildHistoryRequest, BuildResultInfo, Descriptor};
use serde_json::{Map, Value, json};
use std::io::Read;
use tonic::Status;
use tonic::transport::Channel;

const KEY: &str = "buildx.build.provenance";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
const SLSA: &str = "https://slsa.dev/provenance/";
const SLSA_V1: &str = "https://slsa.dev/provenance/v1";
const BUILD_TYPE: &str = "https://mobyproject.org/buildkit@v1";
/// More than any statement of a sane build.
const MAX_BYTES: u64 = 64 << 20;

/// How much of it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// What from, with which parameters.
    Min,
    /// Each step as well.
    Max,
    /// Nothing.
    Disabled,
}

impl Mode {
    pub(super) fn of(environment: &Environment) -> Mode {
        match environment.text("BUILDX_METADATA_PROVENANCE").unwrap_or_default() {
            "max" => Mode::Max,
            "disabled" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Mode::Disabled,
            _ => Mode::Min,
        }
    }
}

/// Of a record of our own history.
pub(super) fn of_record(history: &History, record: &Record, mode: Mode) -> Map<String, Value> {
    let mut found = Map::new();
    for (platform, statements) in &record.statements {
        let Some((one, kind)) = statements.iter().find_map(|one| {
            let kind = one.annotations.get(PREDICATE_TYPE)?;
            (one.media_type == IN_TOTO && kind.starts_with(SLSA)).then_some((one, kind))
        }) else {
            continue;
        };
        let Ok(Some(file)) = history.open_blob(&one.digest) else {
            continue;
        };
        let mut bytes = Vec::new();
        if file.take(MAX_BYTES).read_to_end(&mut bytes).is_ok() {
            found.extend(encode(&bytes, kind, mode).map(|value| (key(platform), value)));
        }
    }
    found
}

/// Of a record of a daemon.
///
/// # Errors
/// The daemon has a history but does not answer.
pub(super) async fn of_daemon(
    channel: &Channel,
    build: &str,
    mode: Mode,
) -> Result<Map<String, Value>, Status> {
    let mut found = Map::new();
    let asked = BuildHistoryRequest {
        r#ref: build.to_owned(),
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let mut events = ControlClient::new(channel.clone())
        .listen_build_history(asked)
        .await?
        .into_inner();
    while let Some(event) = events.message().await? {
        let record = event.record.unwrap_or_default();
        let of_all = record.result.filter(|_| record.results.is_empty());
        let all = of_all.into_iter().map(|result| (String::new(), result));
        for (platform, result) in all.chain(record.results) {
            let Some((one, kind)) = provenance(&result) else {
                continue;
            };
            let bytes = blob(channel, one).await?;
            found.extend(encode(&bytes, &kind, mode).map(|value| (key(&platform), value)));
        }
    }
    Ok(found)
}

fn provenance(result: &BuildResultInfo) -> Option<(&Descriptor, String)> {
    let mut all = result.attestations.iter();
    all.find_map(|one| {
        let kind = one.annotations.get(PREDICATE_TYPE)?;
        (one.media_type == IN_TOTO && kind.starts_with(SLSA)).then(|| (one, kind.clone()))
    })
}

async fn blob(channel: &Channel, of: &Descriptor) -> Result<Vec<u8>, Status> {
    let asked = ReadContentRequest {
        digest: of.digest.clone(),
        ..ReadContentRequest::default()
    };
    let mut chunks = ContentClient::new(channel.clone())
        .read(asked)
        .await?
        .into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        bytes.extend_from_slice(&chunk.data);
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Status::resource_exhausted("the build's provenance is too large"));
        }
    }
    let found = oci::Digest::of(&bytes);
    match found.to_string() == of.digest {
        true => Ok(bytes),
        false => Err(Status::data_loss(format!("{} was sent as {found}", of.digest))),
    }
}

fn key(platform: &str) -> String {
    match platform {
        "" => KEY.to_owned(),
        platform => format!("{KEY}/{platform}"),
    }
}

/// A predicate in the words of SLSA v0.2; nothing for what is none.
fn encode(bytes: &[u8], kind: &str, mode: Mode) -> Option<Value> {
    let mut predicate: Value = serde_json::from_slice(bytes).ok()?;
    if kind == SLSA_V1 {
        predicate = as_v02(&predicate);
    }
    if mode == Mode::Min {
        let fields = predicate.as_object_mut()?;
        fields.remove("buildConfig");
        fields.remove("metadata");
    }
    Some(predicate)
}

/// The same in older words.
fn as_v02(v1: &Value) -> Value {
    let (definition, details) = (&v1["buildDefinition"], &v1["runDetails"]);
    let (external, internal) = (
        &definition["externalParameters"],
        &definition["internalParameters"],
    );
    let source = &external["configSource"];
    let source = renamed(
        source,
        &[("uri", "uri"), ("digest", "digest"), ("path", "entryPoint")],
    );
    let mut environment = internal.as_object().cloned().unwrap_or_default();
    environment.remove("buildConfig");
    if let Some(platform) = environment.remove("builderPlatform") {
        environment.insert("platform".to_owned(), platform);
    }
    let materials = definition["resolvedDependencies"].as_array().map(|all| {
        let all = all
            .iter()
            .map(|one| renamed(one, &[("uri", "uri"), ("digest", "digest")]));
        all.collect::<Vec<_>>()
    });
    let mut v02 = json!({
        "builder": {"id": details["builder"]["id"]},
        "buildType": BUILD_TYPE,
        "invocation": {
            "configSource": source,
            "parameters": external["request"],
            "environment": environment,
        },
    });
    if let Some(materials) = materials {
        v02["materials"] = Value::Array(materials);
    }
    if let Some(config) = internal.get("buildConfig") {
        v02["buildConfig"] = config.clone();
    }
    let metadata = &details["metadata"];
    if metadata.is_object() {
        let completeness = &metadata["buildkit_completeness"];
        let mut kept = json!({
            "buildInvocationID": metadata["invocationId"],
            "buildStartedOn": metadata["startedOn"],
            "buildFinishedOn": metadata["finishedOn"],
            "completeness": {
                "parameters": completeness["request"] == true,
                "environment": true,
                "materials": completeness["resolvedDependencies"] == true,
            },
            "reproducible": metadata["buildkit_reproducible"] == true,
            "https://mobyproject.org/buildkit@v1#metadata": metadata["buildkit_metadata"],
        });
        if metadata["buildkit_hermetic"] == true {
            kept["https://mobyproject.org/buildkit@v1#hermetic"] = Value::Bool(true);
        }
        v02["metadata"] = kept;
    }
    v02
}

/// Those of an object's fields, by other names.
fn renamed(of: &Value, names: &[(&str, &str)]) -> Value {
    let fields = names.iter().filter_map(|(from, to)| {
        let value = of.get(from).filter(|value| !value.is_null())?;
        Some(((*to).to_owned(), value.clone()))
    });
    Value::Object(fields.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (value, expected) in [
            ("", Mode::Min),
            ("min", Mode::Min),
            ("max", Mode::Max),
            ("disabled", Mode::Disabled),
            ("false", Mode::Disabled),
            ("true", Mode::Min),
        ] {
            let environment = Environment::of(&[("BUILDX_METADATA_PROVENANCE", value)]);
            assert_eq!(Mode::of(&environment), expected, "{value}");
        }
        assert_eq!(Mode::of(&Environment::of(&[])), Mode::Min);
    }

    #[test]
    fn new_words_become_old_ones() {
        let v1 = json!({
            "buildDefinition": {
                "buildType": "new",
                "resolvedDependencies": [{"uri": "pkg:docker/a", "digest": {"sha256": "x"}, "name": "n"}],
                "externalParameters": {
                    "configSource": {"path": "Dockerfile"},
                    "request": {"frontend": "dockerfile.v0"},
                },
                "internalParameters": {"builderPlatform": "linux/amd64", "zone": "z", "buildConfig": {"llbDefinition": []}},
            },
            "runDetails": {
                "builder": {"id": "b"},
                "metadata": {
                    "invocationId": "i", "startedOn": "s", "finishedOn": "f",
                    "buildkit_metadata": {"layers": {}},
                    "buildkit_completeness": {"request": true, "resolvedDependencies": false},
                },
            },
        });
        let text = v1.to_string();
        let max = encode(text.as_bytes(), SLSA_V1, Mode::Max).expect("a predicate");
        let expected = json!({
            "builder": {"id": "b"},
            "buildType": BUILD_TYPE,
            "materials": [{"uri": "pkg:docker/a", "digest": {"sha256": "x"}}],
            "invocation": {
                "configSource": {"entryPoint": "Dockerfile"},
                "parameters": {"frontend": "dockerfile.v0"},
                "environment": {"platform": "linux/amd64", "zone": "z"},
            },
            "buildConfig": {"llbDefinition": []},
            "metadata": {
                "buildInvocationID": "i", "buildStartedOn": "s", "buildFinishedOn": "f",
                "completeness": {"parameters": true, "environment": true, "materials": false},
                "reproducible": false,
                "https://mobyproject.org/buildkit@v1#metadata": {"layers": {}},
            },
        });
        assert_eq!(max, expected);
        let min = encode(text.as_bytes(), SLSA_V1, Mode::Min).expect("a predicate");
        assert!(min.get("metadata").is_none() && min.get("buildConfig").is_none());
        assert_eq!(encode(b"{", SLSA_V1, Mode::Min), None);
    }
}
