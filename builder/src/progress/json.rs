//! Progress for programs: one JSON object per batch of events, with BuildKit's keys.
//!
//! ```text
//! {"vertexes":[{digest,inputs,name,started,completed,cached,error,progressGroup}],
//!  "statuses":[{id,vertex,name,total,current,timestamp,started,completed}],
//!  "logs":[{vertex,stream,data(base64),timestamp}],
//!  "warnings":[{vertex,level,short(base64),detail,url,sourceInfo,range}]}
//! ```
//!
//! Keys without a value are left out. Within a batch each kind keeps its order.
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use solver::progress::{Event, LogEvent, StatusEvent, VertexEvent, WarningEvent};
use std::time::SystemTime;

/// One line of JSON for a batch; empty for an empty batch.
pub(super) fn line(events: &[Event]) -> String {
    let mut lists: [(&str, Vec<Value>); 4] = [
        ("vertexes", vec![]),
        ("statuses", vec![]),
        ("logs", vec![]),
        ("warnings", vec![]),
    ];
    for event in events {
        match event {
            Event::Vertex(event) => lists[0].1.push(vertex(event)),
            Event::Status(event) => lists[1].1.push(status(event)),
            Event::Log(event) => lists[2].1.push(log(event)),
            Event::Warning(event) => lists[3].1.push(warning(event)),
        }
    }
    let object: Map<String, Value> = lists
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(key, list)| (key.to_owned(), Value::Array(list)))
        .collect();
    if object.is_empty() {
        String::new()
    } else {
        format!("{}\n", Value::Object(object))
    }
}

fn vertex(event: &VertexEvent) -> Value {
    let info = &event.vertex;
    let group = info.group.as_ref().map(|group| {
        compact([
            ("id", text(&group.id)),
            ("name", text(&group.name)),
            ("weak", group.weak.then_some(Value::Bool(true))),
        ])
    });
    let inputs: Vec<Value> = info
        .inputs
        .iter()
        .map(|input| Value::String(input.to_string()))
        .collect();
    compact([
        ("digest", Some(json!(info.digest.to_string()))),
        ("inputs", (!inputs.is_empty()).then_some(Value::Array(inputs))),
        ("name", text(&info.name)),
        ("started", time(event.started)),
        ("completed", time(event.completed)),
        ("cached", event.cached.then_some(Value::Bool(true))),
        ("error", event.error.as_deref().and_then(text)),
        ("progressGroup", group),
    ])
}

fn status(event: &StatusEvent) -> Value {
    let status = &event.status;
    compact([
        ("id", Some(json!(status.id))),
        ("vertex", Some(json!(event.vertex.to_string()))),
        ("name", text(&status.name)),
        ("total", (status.total != 0).then(|| json!(status.total))),
        ("current", Some(json!(status.current))),
        ("timestamp", time(Some(event.timestamp))),
        ("started", time(status.started)),
        ("completed", time(status.completed)),
    ])
}

fn log(event: &LogEvent) -> Value {
    compact([
        ("vertex", Some(json!(event.vertex.to_string()))),
        ("stream", Some(json!(event.stream.number()))),
        ("data", Some(json!(STANDARD.encode(&event.data)))),
        ("timestamp", time(Some(event.timestamp))),
    ])
}

fn warning(event: &WarningEvent) -> Value {
    let warning = &event.warning;
    let detail: Vec<Value> = warning
        .detail
        .iter()
        .map(|line| json!(STANDARD.encode(line)))
        .collect();
    let source = warning.source.as_ref().map(|file| {
        compact([
            ("filename", text(&file.filename)),
            ("data", Some(json!(STANDARD.encode(&file.data)))),
            ("language", text(&file.language)),
        ])
    });
    let ranges: Vec<Value> = warning
        .ranges
        .iter()
        .map(|range| json!({"start": position(range.start), "end": position(range.end)}))
        .collect();
    compact([
        ("vertex", Some(json!(event.vertex.to_string()))),
        ("level", (warning.level != 0).then(|| json!(warning.level))),
        (
            "short",
            (!warning.short.is_empty()).then(|| json!(STANDARD.encode(&warning.short))),
        ),
        ("detail", (!detail.is_empty()).then_some(Value::Array(detail))),
        ("url", text(&warning.url)),
        ("sourceInfo", source),
        ("range", (!ranges.is_empty()).then_some(Value::Array(ranges))),
    ])
}

fn position(position: llb::Position) -> Value {
    compact([
        ("line", (position.line != 0).then(|| json!(position.line))),
        (
            "character",
            (position.character != 0).then(|| json!(position.character)),
        ),
    ])
}

fn text(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| Value::String(text.to_owned()))
}

/// RFC 3339 with nanoseconds.
fn time(time: Option<SystemTime>) -> Option<Value> {
    Some(Value::String(Timestamp::try_from(time?).ok()?.to_string()))
}

fn compact<const N: usize>(pairs: [(&str, Option<Value>); N]) -> Value {
    let pairs = pairs
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::Digest;
    use solver::progress::{OutputStream, VertexInfo};
    use std::time::Duration;

    #[test]
    fn a_batch_is_one_line_without_empty_keys() {
        let digest = Digest::of(b"a");
        let info = VertexInfo {
            digest,
            inputs: vec![],
            name: "step".into(),
            group: None,
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let events = [
            Event::Vertex(VertexEvent {
                vertex: info.into(),
                started: Some(at),
                completed: None,
                cached: false,
                error: None,
            }),
            Event::Log(LogEvent {
                vertex: digest,
                stream: OutputStream::Stderr,
                data: b"hi\n"[..].into(),
                timestamp: at,
            }),
        ];
        let expected = format!(
            concat!(
                r#"{{"vertexes":[{{"digest":"{d}","name":"step","started":"1970-01-01T00:00:01.5Z"}}],"#,
                r#""logs":[{{"vertex":"{d}","stream":2,"data":"aGkK","timestamp":"1970-01-01T00:00:01.5Z"}}]}}"#,
                "\n"
            ),
            d = digest
        );
        assert_eq!(line(&events), expected);
        assert_eq!(line(&[]), "");
    }
}
