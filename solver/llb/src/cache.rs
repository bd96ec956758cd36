//! The cache key of an op: which digest names what it does, and how each input takes part.
//!
//! ```text
//! Vertex ─▶ op_key ─▶ OpKey { digest, text, deps: [selector, content] } ─▶ solver, worker
//! ```
//!
//! | enters the key | does not |
//! |---|---|
//! | arguments, environment, directory, user, host name, network, security, limits of the process | names, locations, cgroup limits of the metadata |
//! | names of extra hosts | their addresses |
//! | ids of secrets and ssh agents, as mounts | their values |
//! | destinations of mounts | selectors (they go to the input's dep), ids and sharing of caches that are not the default |
//! | everything a file action says; of a copy from an input only the base name of the source | the rest of the source path (it goes to the input's dep) |
//! | the platform of an exec | the platform of anything else; proxies |
//!
//! The digest is the SHA-256 of JSON as Go writes it, so that keys equal BuildKit's to the byte.
//! Sources have no key here: theirs depends on what they resolve to ([`source_key`] and its kin are for
//! the worker that resolved them).

pub(crate) mod json;
mod exec;
mod file;
mod selector;

use oci::{Digest, Platform};

use crate::definition::Vertex;
use crate::error::Error;
use crate::op::Op;
use json::Object;

pub use selector::{PathSelector, content_digest};

/// The cache key of an op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpKey {
    /// Names what the op does.
    pub digest: Digest,
    /// What was hashed: JSON, for explaining a miss.
    pub text: String,
    /// One for each input of the vertex.
    pub deps: Vec<Dep>,
}

/// How one input takes part in the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dep {
    /// Which part of the input is used; joined to the input's definition key.
    pub selector: Option<Digest>,
    /// The paths whose content may stand in for the definition key; `None` means it may not. Their
    /// digests are joined by [`content_digest`].
    pub content: Option<Vec<PathSelector>>,
}

/// The cache key of a vertex; `None` for sources. `default` is the platform of a vertex that names none.
///
/// # Errors
/// When a mount demands a content key where that would be unsafe.
pub fn op_key(vertex: &Vertex, default: &Platform) -> Result<Option<OpKey>, Error> {
    let mut deps = vec![Dep::default(); vertex.inputs.len()];
    let text = match &vertex.op {
        Op::Source(_) => return Ok(None),
        Op::Exec(op) => {
            exec::deps(vertex.digest, op, &mut deps)?;
            exec::text(
                op,
                &vertex.platform.as_ref().unwrap_or(default).clone().normalize(),
            )
        }
        Op::File(op) => {
            file::deps(op, &mut deps);
            file::text(op, vertex.inputs.len())
        }
        Op::Merge(op) => {
            let inputs = op
                .inputs
                .iter()
                .map(|i| Object::default().signed("input", index(*i)).finish());
            typed(
                "buildkit.merge.v0",
                "Merge",
                Object::default().array("inputs", inputs),
            )
        }
        Op::Diff(op) => {
            let side = |i| Object::default().signed("input", index(i)).finish();
            let body = Object::default()
                .raw("lower", side(op.lower))
                .raw("upper", side(op.upper));
            typed("buildkit.diff.v0", "Diff", body)
        }
        Op::Passthrough(op) => {
            let outputs = op.outputs.iter().map(u32::to_string);
            typed(
                "buildkit.passthrough.v0",
                "Passthrough",
                Object::default().text("id", &op.id).array("outputs", outputs),
            )
        }
        Op::Build(op) if op.definition.is_some() => {
            return Err(Error::Key {
                op: vertex.digest,
                reason: "a build op takes its definition from an input, not from itself".to_owned(),
            });
        }
        Op::Build(op) => {
            let inputs = op.inputs.iter().fold(Object::default(), |inputs, (name, input)| {
                inputs.raw(name, Object::default().signed("input", index(*input)).finish())
            });
            let attrs = op.attrs.iter().fold(Object::default(), |attrs, (key, value)| {
                attrs.raw(key, json::string(value))
            });
            let body = Object::default()
                .signed("builder", index(op.builder))
                .object("inputs", (!op.inputs.is_empty()).then_some(inputs))
                .object("attrs", (!op.attrs.is_empty()).then_some(attrs));
            typed("buildkit.build.v0", "Exec", body)
        }
    };
    Ok(Some(OpKey {
        digest: Digest::of(text.as_bytes()),
        text,
        deps,
    }))
}

/// The digest of a source, from the key its kind of source has for it.
pub fn source_key(key: &str) -> Digest {
    Digest::of(format!("buildkit.source.v0:{key}").as_bytes())
}

/// The first key of an image source: its manifest (or index entry) for one platform.
pub fn image_manifest_key(manifest: &Digest, platform: &Platform, layer_limit: Option<u32>) -> Digest {
    let limit = layer_limit.map(|limit| limit.to_string());
    let mut object = Object::default()
        .raw("Digest", json::string(&manifest.to_string()))
        .raw("OS", json::string(&platform.os))
        .raw("Arch", json::string(&platform.architecture));
    object = object
        .text("Variant", platform.variant.as_deref().unwrap_or_default())
        .text("OSVersion", platform.os_version.as_deref().unwrap_or_default())
        .array(
            "OSFeatures",
            platform.os_features.iter().map(|feature| json::string(feature)),
        );
    if let Some(limit) = limit {
        object = object.raw("Limit", limit);
    }
    Digest::of(object.finish().as_bytes())
}

fn typed(kind: &str, name: &str, body: Object) -> String {
    Object::default()
        .raw("Type", json::string(kind))
        .raw(name, body.finish())
        .finish()
}

fn index(position: Option<u32>) -> i64 {
    position.map_or(-1, i64::from)
}
