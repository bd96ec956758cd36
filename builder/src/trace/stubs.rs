//! A trace as BuildKit keeps it (`application/vnd.buildkit.otlp.json.v0`): one JSON object a span, as Go's OpenTelemetry
//! names the fields, one after the other.
use crate::history::Stamp;
use api::trace::any_value::Value as Any;
use api::trace::{AnyValue, InstrumentationScope, KeyValue, ResourceSpans, Span};
use serde_json::{Value, json};
use std::time::{Duration, UNIX_EPOCH};

/// Writes all of them.
pub(crate) fn write(traces: impl Iterator<Item = ResourceSpans>) -> Vec<u8> {
    let mut text = Vec::new();
    for trace in traces {
        let resource = attributes(
            trace
                .resource
                .as_ref()
                .map_or(&[], |resource| &resource.attributes),
        );
        for scope in &trace.scope_spans {
            let library = library(scope.scope.as_ref(), &scope.schema_url);
            for span in &scope.spans {
                let one = stub(span, &resource, &library, &scope.spans);
                text.extend_from_slice(format!("{one:#}\n").as_bytes());
            }
        }
    }
    text
}

fn stub(span: &Span, resource: &Value, library: &Value, others: &[Span]) -> Value {
    let children = others
        .iter()
        .filter(|other| other.parent_span_id == span.span_id)
        .count();
    let code = match span.status.as_ref().map_or(0, |status| status.code) {
        1 => "Ok",
        2 => "Error",
        _ => "Unset",
    };
    let events = span.events.iter().map(|event| {
        json!({
            "Name": event.name,
            "Attributes": attributes(&event.attributes),
            "DroppedAttributeCount": event.dropped_attributes_count,
            "Time": time(event.time_unix_nano),
        })
    });
    let links = span.links.iter().map(|link| {
        json!({
            "SpanContext": context(&link.trace_id, &link.span_id, link.flags),
            "Attributes": attributes(&link.attributes),
            "DroppedAttributeCount": link.dropped_attributes_count,
        })
    });
    let parent = match span.parent_span_id.is_empty() {
        true => context(&[], &[], 0),
        false => context(&span.trace_id, &span.parent_span_id, span.flags),
    };
    json!({
        "Name": span.name,
        "SpanContext": context(&span.trace_id, &span.span_id, span.flags),
        "Parent": parent,
        "SpanKind": span.kind,
        "StartTime": time(span.start_time_unix_nano),
        "EndTime": time(span.end_time_unix_nano),
        "Attributes": attributes(&span.attributes),
        "Events": list(events.collect()),
        "Links": list(links.collect()),
        "Status": {
            "Code": code,
            "Description": span.status.as_ref().map_or("", |status| &status.message),
        },
        "DroppedAttributes": span.dropped_attributes_count,
        "DroppedEvents": span.dropped_events_count,
        "DroppedLinks": span.dropped_links_count,
        "ChildSpanCount": children,
        "Resource": resource,
        "InstrumentationLibrary": library,
    })
}

fn context(trace: &[u8], span: &[u8], flags: u32) -> Value {
    json!({
        "TraceID": hex::<16>(trace),
        "SpanID": hex::<8>(span),
        "TraceFlags": format!("{:02x}", flags & 1),
        "TraceState": "",
        "Remote": false,
    })
}

/// Of exactly so many bytes, whatever a client sent.
fn hex<const N: usize>(bytes: &[u8]) -> String {
    let padded = bytes.iter().copied().chain(std::iter::repeat(0)).take(N);
    padded.map(|byte| format!("{byte:02x}")).collect()
}

fn time(nanos: u64) -> String {
    Stamp::from(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string()
}

fn library(scope: Option<&InstrumentationScope>, schema: &str) -> Value {
    json!({
        "Name": scope.map_or("", |scope| &scope.name),
        "Version": scope.map_or("", |scope| &scope.version),
        "SchemaURL": schema,
        "Attributes": null,
    })
}

/// Empty lists are null in Go.
fn list(values: Vec<Value>) -> Value {
    match values.is_empty() {
        true => Value::Null,
        false => Value::Array(values),
    }
}

fn attributes(pairs: &[KeyValue]) -> Value {
    let one = |pair: &KeyValue| {
        let (kind, value) = value(pair.value.as_ref()?)?;
        Some(json!({ "Key": pair.key, "Value": { "Type": kind, "Value": value } }))
    };
    list(pairs.iter().filter_map(one).collect())
}

/// Readers know no bytes and no tables; lists are of texts.
fn value(value: &AnyValue) -> Option<(&'static str, Value)> {
    Some(match value.value.as_ref()? {
        Any::StringValue(text) => ("STRING", json!(text)),
        Any::BoolValue(value) => ("BOOL", json!(value)),
        Any::IntValue(number) => ("INT64", json!(number)),
        Any::DoubleValue(number) if number.is_finite() => ("FLOAT64", json!(number)),
        Any::DoubleValue(number) => ("STRING", json!(number.to_string())),
        Any::ArrayValue(list) => {
            let text = |value: &AnyValue| match value.value.as_ref()? {
                Any::StringValue(text) => Some(text.clone()),
                Any::BoolValue(value) => Some(value.to_string()),
                Any::IntValue(number) => Some(number.to_string()),
                Any::DoubleValue(number) => Some(number.to_string()),
                Any::ArrayValue(_) | Any::KvlistValue(_) | Any::BytesValue(_) => None,
            };
            let texts: Vec<String> = list.values.iter().filter_map(text).collect();
            ("STRINGSLICE", json!(texts))
        }
        Any::KvlistValue(_) | Any::BytesValue(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::trace::{ArrayValue, ScopeSpans};

    #[test]
    fn hostile_spans_are_written_as_readers_can_read_them() {
        let pair = |key: &str, value: Option<Any>| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value }),
        };
        let span = Span {
            trace_id: vec![1, 2].into(),
            span_id: vec![255; 40].into(),
            name: "a \"b\"".to_owned(),
            start_time_unix_nano: u64::MAX,
            kind: 77,
            attributes: vec![
                pair("nan", Some(Any::DoubleValue(f64::NAN))),
                pair("list", Some(Any::ArrayValue(ArrayValue::default()))),
                pair("bytes", Some(Any::BytesValue(vec![1].into()))),
                pair("none", None),
            ],
            ..Span::default()
        };
        let trace = ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: vec![span.clone(), span],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        };
        let text = write([trace].into_iter());
        let stubs: Vec<Value> = serde_json::Deserializer::from_slice(&text)
            .into_iter()
            .collect::<Result<_, _>>()
            .expect("objects");
        assert_eq!(stubs.len(), 2);
        let one = &stubs[0];
        assert_eq!(one["SpanContext"]["TraceID"], "01020000000000000000000000000000");
        assert_eq!(one["SpanContext"]["SpanID"], "ffffffffffffffff");
        assert_eq!(one["Parent"]["SpanID"], "0000000000000000");
        assert_eq!(one["Attributes"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            (&one["Resource"], &one["Status"]["Code"]),
            (&Value::Null, &json!("Unset"))
        );
    }
}
