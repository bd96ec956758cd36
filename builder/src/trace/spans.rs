//! The spans of a build that has ended: one for the build, and within it one for each step that did anything.
use super::context::{TraceContext, random};
use super::trail::StepTrail;
use api::trace::any_value::Value;
use api::trace::span::SpanKind;
use api::trace::span_status::StatusCode;
use api::trace::{
    AnyValue, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans, Span, SpanStatus,
};
use bytes::Bytes;
use std::time::{SystemTime, UNIX_EPOCH};

/// A build that has ended.
pub(crate) struct Ended<'a> {
    /// Its id.
    pub(crate) id: &'a str,
    /// Who was asked for it.
    pub(crate) frontend: &'a str,
    /// Whether it was a call of a daemon.
    pub(crate) is_call: bool,
    /// Its place in a trace.
    pub(crate) context: TraceContext,
    /// When it began.
    pub(crate) begun: SystemTime,
    /// Why it has no result, if it has none.
    pub(crate) error: Option<&'a str>,
    /// Its steps.
    pub(crate) steps: &'a [StepTrail],
}

impl Ended<'_> {
    /// As one program's spans; `resource` is what it says of itself.
    pub(crate) fn spans(&self, resource: &[(String, String)]) -> ResourceSpans {
        let scope = InstrumentationScope {
            name: "builder".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let steps = self.steps.iter().filter_map(|step| self.step(step));
        let scope_spans = ScopeSpans {
            scope: Some(scope),
            spans: std::iter::once(self.build()).chain(steps).collect(),
            ..ScopeSpans::default()
        };
        let attributes = resource.iter().map(|(key, value)| text(key, value)).collect();
        ResourceSpans {
            resource: Some(Resource {
                attributes,
                ..Resource::default()
            }),
            scope_spans: vec![scope_spans],
            ..ResourceSpans::default()
        }
    }

    fn build(&self) -> Span {
        let parent = self.context.parent.map(|parent| Bytes::copy_from_slice(&parent));
        let (name, kind) = match self.is_call {
            true => ("moby.buildkit.v1.Control/Solve", SpanKind::Server),
            false => ("build", SpanKind::Internal),
        };
        let call = [
            text("rpc.system", "grpc"),
            text("rpc.service", "moby.buildkit.v1.Control"),
            text("rpc.method", "Solve"),
        ];
        let own = [
            text("builder.build.id", self.id),
            text("builder.build.frontend", self.frontend),
        ];
        Span {
            span_id: Bytes::copy_from_slice(&self.context.span),
            parent_span_id: parent.unwrap_or_default(),
            kind: kind.into(),
            attributes: call.into_iter().filter(|_| self.is_call).chain(own).collect(),
            ..self.span(name, (self.begun, SystemTime::now()), self.error)
        }
    }

    /// A step that never began is none.
    fn step(&self, step: &StepTrail) -> Option<Span> {
        let started = step.started?;
        let completed = step.completed.unwrap_or_else(SystemTime::now);
        Some(Span {
            span_id: Bytes::copy_from_slice(&random::<8>()),
            parent_span_id: Bytes::copy_from_slice(&self.context.span),
            kind: SpanKind::Internal.into(),
            attributes: vec![
                text("vertex", &step.vertex.digest.to_string()),
                KeyValue {
                    key: "builder.step.cached".to_owned(),
                    value: Some(AnyValue {
                        value: Some(Value::BoolValue(step.is_cached)),
                    }),
                },
            ],
            ..self.span(&step.vertex.name, (started, completed), step.error.as_deref())
        })
    }

    fn span(&self, name: &str, (start, end): (SystemTime, SystemTime), error: Option<&str>) -> Span {
        Span {
            trace_id: Bytes::copy_from_slice(&self.context.trace),
            name: name.to_owned(),
            start_time_unix_nano: nanos(start),
            end_time_unix_nano: nanos(end),
            status: error.map(|error| SpanStatus {
                message: error.to_owned(),
                code: StatusCode::Error.into(),
            }),
            flags: u32::from(self.context.is_sampled),
            ..Span::default()
        }
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.to_owned())),
        }),
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
