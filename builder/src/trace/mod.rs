//! Traces: a span for each build and each of its steps, as they are kept with the build's record and sent to a collector.
//!
//! ```text
//! events ─▶ trail (steps as they are) ─┐
//! traceparent ─▶ context ──────────────┴─▶ spans ─┬─▶ stubs ─▶ a blob of the history
//!                                                 └─▶ exporter ─▶ OTLP, grpc or http
//! ```
//!
//! Both doors make them: `daemon/traces` adds what clients send of their own, `client/recorder` has nobody to wait for.
mod trail;
mod context;
mod spans;
mod stubs;
mod exporter;

pub(crate) use context::TraceContext;
pub(crate) use exporter::Exporter;
pub(crate) use spans::Ended;
pub(crate) use stubs::write as write_stubs;
pub(crate) use trail::{StepTrail, Trail};

/// How a trace is kept.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.buildkit.otlp.json.v0";
