//! What a failed step leaves, so that its client may look into it.
//!
//! ```text
//! SolveError ─▶ explain ─┬─▶ Failure with a Solve detail: the op, ids of what it found and of what it left
//!                        └─▶ LeftBehind of the build ─▶ find ─▶ NewContainer mounts it
//! ```
//!
//! Results are held as long as the build; what the failed step wrote goes with them.
use super::builds::Build;
use super::errors::Failure;
use crate::build::attest::protojson;
use cache::ImmutableRef;
use llb::Definition;
use oci::Digest;
use parking_lot::Mutex;
use prost::Message;
use serde_json::{Map, Value, json};
use solver::{SolveError, VertexError};
use std::collections::HashMap;
use worker::{Left, Subject};

/// Results one build may hold for this.
const MAX_RESULTS: usize = 10_000;
/// The largest description of an op that travels with an error, in bytes: it goes where headers go.
const MAX_OP_BYTES: usize = 256 << 10;

/// Results of a build's failed steps, by the id its client was told.
#[derive(Default)]
pub(super) struct LeftBehind(Mutex<HashMap<String, ImmutableRef>>);

impl LeftBehind {
    /// A result by its id.
    pub(super) fn find(&self, id: &str) -> Option<ImmutableRef> {
        self.0.lock().get(id).cloned()
    }

    /// Lets go of all, when the build has ended: a client may still hold a line to it.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    /// How many it holds.
    pub(super) fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Holds results; their ids, empty for those that are none.
    fn keep(&self, results: &[Option<ImmutableRef>]) -> Vec<String> {
        let mut held = self.0.lock();
        let mut id_of = |result: &ImmutableRef| {
            let id = format!("left-{}", result.id()?);
            let has_room = held.len() < MAX_RESULTS || held.contains_key(&id);
            has_room.then(|| {
                held.entry(id.clone()).or_insert_with(|| result.clone());
                id
            })
        };
        let ids = results.iter();
        ids.map(|result| result.as_ref().and_then(&mut id_of).unwrap_or_default())
            .collect()
    }
}

/// Why a definition has no result, with what its client needs to look into it.
pub(super) fn explain(build: &Build, error: SolveError, definition: &Definition) -> Failure {
    let detail = match &error {
        SolveError::Vertex { error, .. } => detail(&build.left, error, definition),
        SolveError::Definition(_) | SolveError::Canceled => None,
    };
    let mut failure = Failure::from(error);
    if let Some(detail) = detail {
        failure.add_solve(&detail);
    }
    failure
}

/// `errdefs.Solve`; `None` where the op cannot be told, as clients rely on it.
fn detail(held: &LeftBehind, error: &VertexError, definition: &Definition) -> Option<Value> {
    let bytes = definition
        .ops
        .iter()
        .find(|bytes| Digest::of(bytes) == error.digest)?;
    if bytes.len() > MAX_OP_BYTES {
        tracing::debug!(vertex = %error.digest, "the failed op is too large to go with its error");
        return None;
    }
    let op = llb::proto::Op::decode(bytes.as_slice()).ok()?;
    let mut detail = Map::new();
    detail.insert("op".to_owned(), protojson(&op));
    let metadata = definition.metadata.get(&error.digest);
    let described = metadata.filter(|metadata| !metadata.description.is_empty());
    detail.extend(described.map(|metadata| ("description".to_owned(), json!(metadata.description))));
    if let Some(left) = error.cause.left::<Left>() {
        detail.insert("inputIDs".to_owned(), json!(held.keep(&left.inputs)));
        detail.insert("mountIDs".to_owned(), json!(held.keep(&left.mounts)));
        let subject = left.subject.map(|subject| match subject {
            Subject::FileAction(index) => ("file".to_owned(), json!({ "index": index })),
            Subject::Content(index) => ("cache".to_owned(), json!({ "index": index })),
        });
        detail.extend(subject);
    }
    Some(Value::Object(detail))
}
