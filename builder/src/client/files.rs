//! The files a build writes beside its outputs: `--iidfile` and `--metadata-file`.
use crate::build::{BuildError, Outcome};
use crate::request::BuildRequest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use std::path::Path;

/// Writes what the request asks for, each file aside first and then renamed.
/// `provenance` is added to the metadata.
pub(super) fn write(
    request: &BuildRequest,
    build: &str,
    outcome: &Outcome,
    provenance: Map<String, Value>,
) -> Result<(), BuildError> {
    if let Some(path) = &request.image_id_file {
        write_file(path, outcome.image_id().unwrap_or_default().as_bytes())?;
    }
    if let Some(path) = &request.metadata_file {
        let mut text = serde_json::to_vec_pretty(&metadata(build, outcome, provenance)).unwrap_or_default();
        text.push(b'\n');
        write_file(path, &text)?;
    }
    Ok(())
}

/// The exporters' answers; descriptors, which are base64 of JSON, as JSON.
fn metadata(build: &str, outcome: &Outcome, provenance: Map<String, Value>) -> Value {
    let mut object = provenance;
    object.insert(
        "buildx.build.ref".into(),
        Value::String(format!("builder/builder/{build}")),
    );
    for (key, value) in &outcome.response {
        let json = STANDARD
            .decode(value)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let value = json
            .filter(Value::is_object)
            .unwrap_or_else(|| Value::String(value.clone()));
        object.insert(key.clone(), value);
    }
    Value::Object(object)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        std::io::Write::write_all(&mut file, bytes)?;
        // What a file made by a shell would have.
        std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    });
    written.map_err(|error| BuildError::Machine {
        doing: format!("write {}", path.display()),
        reason: error.to_string(),
    })
}
