//! The spans of a build that has ended: one for the build, and within it one for each step that did anything.
use super::context::{TraceContext, random};
use crate::daemon::observe::metrics::Ending;
use crate::daemon::observe::trail::StepTrail;
use api::trace::any_value::Value;
use api::trace::span::SpanKind;
use api::trace::span_status::StatusCode;
use api::trace::{
    AnyValue, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans, Span, SpanStatus,
};
use bytes::Bytes;
use std::time::{SystemTime, UNIX_EPOCH};

/// A build that has ended.
pub(in crate::daemon) struct Ended<'a> {
    /// Its id.
    pub(in crate::daemon) id: &'a str,
    /// Who was asked for it.
    pub(in crate::daemon) frontend: &'a str,
    /// Its place in a trace.
    pub(in crate::daemon) context: TraceContext,
    /// When it began.
    pub(in crate::daemon) begun: SystemTime,
    /// How it ended.
    pub(in crate::daemon) ending: Ending,
    /// Why, if it failed.
    pub(in crate::daemon) error: Option<&'a str>,
    /// Its steps.
    pub(in crate::daemon) steps: &'a [StepTrail],
}

impl Ended<'_> {
    pub(super) fn spans(&self, resource: &[(String, String)]) -> ResourceSpans {
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
        Span {
            span_id: Bytes::copy_from_slice(&self.context.span),
            parent_span_id: parent.unwrap_or_default(),
            kind: SpanKind::Server.into(),
            attributes: vec![
                text("rpc.system", "grpc"),
                text("rpc.service", "moby.buildkit.v1.Control"),
                text("rpc.method", "Solve"),
                text("builder.build.id", self.id),
                text("builder.build.frontend", self.frontend),
            ],
            ..self.span(
                "moby.buildkit.v1.Control/Solve",
                (self.begun, SystemTime::now()),
                match self.ending {
                    Ending::Done => None,
                    Ending::Failed | Ending::Canceled => Some(self.error.unwrap_or("canceled")),
                },
            )
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
