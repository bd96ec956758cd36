//! Our errors as gRPC status, with the details clients print: which lines of which file, which vertex.
//!
//! The trailer `grpc-status-details-bin` holds a `google.rpc.Status` whose details are JSON in `Any`, as BuildKit sends
//! them. A status that came from a client with its details passes through untouched.
use crate::build::caches::ExportError as CacheExportError;
use crate::build::{BuildError, Denied, EntryError};
use api::rpc;
use prost::Message;
use prost_types::Any;
use serde_json::{Value, json};
use solver::{Blame, SolveError};
use tonic::{Code, Status};

const SOURCE: &str = "github.com/moby/buildkit/errdefs.Source+json";
const VERTEX: &str = "github.com/moby/buildkit/errdefs.Vertex+json";
const SOLVE: &str = "github.com/moby/buildkit/errdefs.Solve+json";
const EXIT: &str = "github.com/moby/buildkit/gatewayapi.ExitMessage+json";
const FRONTEND_CAP: &str = "github.com/moby/buildkit/errdefs.FrontendCap+json";
const DENIED: &str = "github.com/moby/buildkit/policysession.DecisionResponse+json";
const SUBREQUEST: &str = "github.com/moby/buildkit/errdefs.Subrequest+json";

/// What our own client makes of it beside: whose move it is, and the hint.
pub(crate) const ADVICE: &str = "builder.errors.Advice+json";

/// Why a build failed, as it goes over the wire.
#[derive(Clone, Debug)]
pub(super) struct Failure(pub(super) rpc::Status);

impl Failure {
    /// A failure without details.
    pub(super) fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure(rpc::Status {
            code: code.into(),
            message: message.into(),
            details: Vec::new(),
        })
    }

    /// The build was called off.
    pub(super) fn canceled() -> Failure {
        Failure::new(Code::Cancelled, "context canceled")
    }

    /// Whether somebody called it off.
    pub(super) fn is_canceled(&self) -> bool {
        self.0.code == i32::from(Code::Cancelled)
    }

    /// A definition with a source that may not be used.
    pub(super) fn loading(denied: &Denied) -> Failure {
        let message = format!("failed to load LLB: error evaluating the source policy: {denied}");
        Failure::denied(message, denied)
    }

    /// A source that may not be looked at.
    pub(super) fn resolving(denied: &Denied) -> Failure {
        Failure::denied(format!("could not resolve image due to policy: {denied}"), denied)
    }

    fn denied(message: String, denied: &Denied) -> Failure {
        let mut failure = Failure::new(Code::Unknown, message);
        failure.0.details.extend(words(denied));
        failure
    }

    /// A request for a subrequest the frontend does not have.
    pub(super) fn no_subrequest(name: &str) -> Failure {
        let mut failure = Failure::new(Code::Unimplemented, format!("unsupported request {name:?}"));
        failure
            .0
            .details
            .push(detail(SUBREQUEST, &json!({ "name": name })));
        failure
    }

    /// A frontend that does not say it can do what it is asked to.
    pub(super) fn no_frontend_cap(name: &str) -> Failure {
        let mut failure = Failure::new(
            Code::Unimplemented,
            format!("unsupported frontend capability {name}"),
        );
        failure
            .0
            .details
            .push(detail(FRONTEND_CAP, &json!({ "name": name })));
        failure
    }

    /// Adds what a client needs to look into a failed step.
    pub(super) fn add_solve(&mut self, value: &Value) {
        self.0.details.push(detail(SOLVE, value));
    }

    /// The same for the history.
    pub(super) fn record(&self) -> crate::history::Failure {
        crate::history::Failure {
            code: self.0.code,
            message: self.0.message.clone(),
        }
    }
}

/// An error and its causes in one line, each said once: a client shows nothing but the message.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let sentence = next.to_string();
        if !text.contains(&sentence) {
            text = format!("{text}: {sentence}");
        }
        cause = next.source();
    }
    text
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Failure {
        let code = match &error {
            BuildError::Cancelled { .. } | BuildError::Solve(SolveError::Canceled) => Code::Cancelled,
            _ => Code::Unknown,
        };
        let message = match &error {
            BuildError::Cancelled { .. } | BuildError::Solve(SolveError::Canceled) => {
                "context canceled".to_owned()
            }
            BuildError::NotAllowed { entitlement, .. } => {
                format!("failed to load LLB: {entitlement} is not allowed")
            }
            error => with_causes(error),
        };
        let hint = error.hint();
        // Other clients show nothing but the message.
        let message = match &hint {
            Some(hint) if !message.contains(hint.as_str()) => format!("{message} ({hint})"),
            _ => message,
        };
        let blame = match error.blame() {
            Blame::User => "user",
            Blame::Environment => "environment",
            Blame::Internal => "internal",
        };
        let mut failure = Failure::new(code, message);
        failure
            .0
            .details
            .push(detail(ADVICE, &json!({ "blame": blame, "hint": hint })));
        failure.0.details.extend(denial(&error).and_then(words));
        for lines in error.lines() {
            let ranges: Vec<Value> = lines
                .ranges
                .iter()
                .map(|range| json!({"start": {"line": range.start()}, "end": {"line": range.end()}}))
                .collect();
            let info = json!({
                "filename": lines.filename,
                "data": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &lines.data),
                "language": "Dockerfile",
            });
            failure
                .0
                .details
                .push(detail(SOURCE, &json!({"info": info, "ranges": ranges})));
        }
        if let BuildError::Solve(SolveError::Vertex { error: vertex, .. }) = &error {
            failure
                .0
                .details
                .push(detail(VERTEX, &json!({"digest": vertex.digest.to_string()})));
            if let Some(code) = exit_code(&error.to_string()) {
                failure.0.details.push(detail(EXIT, &json!({ "Code": code })));
            }
        }
        failure
    }
}

impl From<EntryError> for Failure {
    fn from(error: EntryError) -> Failure {
        let code = match &error {
            EntryError::Later(_) => Code::Unimplemented,
            _ => Code::InvalidArgument,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<CacheExportError> for Failure {
    fn from(error: CacheExportError) -> Failure {
        let reason = error.to_string();
        BuildError::CacheExport {
            reason,
            blame: error.blame,
        }
        .into()
    }
}

impl From<SolveError> for Failure {
    fn from(error: SolveError) -> Failure {
        BuildError::from(error).into()
    }
}

impl From<frontend::Error> for Failure {
    fn from(error: frontend::Error) -> Failure {
        BuildError::from(error).into()
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        let code = Code::from_i32(failure.0.code);
        let details = failure.0.encode_to_vec();
        Status::with_details(code, failure.0.message, details.into())
    }
}

impl From<rpc::Status> for Failure {
    fn from(status: rpc::Status) -> Failure {
        Failure(status)
    }
}

/// What a client that decides says about its no.
fn words(denied: &Denied) -> Option<Any> {
    let words: Vec<Value> = denied
        .words
        .iter()
        .map(|word| json!({ "message": word }))
        .collect();
    let value = json!({ "action": "DENY", "denyMessages": words });
    (!words.is_empty()).then(|| detail(DENIED, &value))
}

/// A denial among an error's causes.
fn denial(error: &BuildError) -> Option<&Denied> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(denied) = this.downcast_ref::<Denied>() {
            return Some(denied);
        }
        let inner = this.downcast_ref::<frontend::GatewayError>();
        if let Some(denied) = inner.and_then(|inner| inner.0.downcast_ref::<Denied>()) {
            return Some(denied);
        }
        cause = this.source();
    }
    None
}

fn detail(kind: &str, value: &Value) -> Any {
    Any {
        type_url: kind.to_owned(),
        value: value.to_string().into_bytes(),
    }
}

/// The exit code a failed RUN names at the end of its message.
fn exit_code(message: &str) -> Option<u32> {
    let (_, code) = message.rsplit_once("did not complete successfully: exit code: ")?;
    code.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_travel_in_the_status() {
        let failure = Failure::no_subrequest("frontend.unknown");
        let status = Status::from(failure);
        assert_eq!(status.code(), Code::Unimplemented);
        let inner = rpc::Status::decode(status.details()).expect("an rpc status");
        assert_eq!(inner.message, status.message());
        assert_eq!(inner.details[0].type_url, SUBREQUEST);
        assert_eq!(inner.details[0].value, br#"{"name":"frontend.unknown"}"#);
    }

    #[test]
    fn exit_codes() {
        let text = |end: &str| format!("process \"/bin/sh -c x\" did not complete successfully: {end}");
        assert_eq!(exit_code(&text("exit code: 7")), Some(7));
        assert_eq!(exit_code(&text("killed")), None);
        assert_eq!(exit_code("exit code: 7"), None);
    }
}
