//! A trace for Jaeger's page, as `docker buildx history trace` prints it.
use super::Stamp;
use serde_json::{Map, Value, json};
use std::time::UNIX_EPOCH;

/// From the spans of a record's trace; nothing if there is none among them.
pub fn jaeger(trace: &[u8]) -> Option<Value> {
    let spans = serde_json::Deserializer::from_slice(trace).into_iter::<Value>();
    let spans: Vec<Value> = spans.map_while(Result::ok).collect();
    let id = spans.first()?["SpanContext"]["TraceID"].clone();
    let mut processes: Map<String, Value> = Map::new();
    let spans: Vec<Value> = spans.iter().map(|span| one(span, &mut processes)).collect();
    Some(json!({
        "data": [{"traceID": id, "spans": spans, "processes": processes, "warnings": null}],
    }))
}

fn one(span: &Value, processes: &mut Map<String, Value>) -> Value {
    let (start, end) = (micros(&span["StartTime"]), micros(&span["EndTime"]));
    let parent = &span["Parent"];
    let has_parent = parent["SpanID"]
        .as_str()
        .is_some_and(|id| !id.trim_matches('0').is_empty());
    let references = match has_parent {
        true => json!([{"refType": "CHILD_OF", "traceID": parent["TraceID"], "spanID": parent["SpanID"]}]),
        false => json!([]),
    };
    let mut tags = tags(&span["Attributes"]);
    if matches!(span["Status"]["Code"].as_str(), Some("Error")) {
        tags.push(json!({"key": "error", "type": "bool", "value": true}));
        tags.push(json!({"key": "otel.status_description", "type": "string", "value": span["Status"]["Description"]}));
    }
    let events = span["Events"].as_array().into_iter().flatten().map(|event| {
        let mut fields = vec![json!({"key": "event", "type": "string", "value": event["Name"]})];
        fields.extend(self::tags(&event["Attributes"]));
        json!({"timestamp": micros(&event["Time"]), "fields": fields})
    });
    json!({
        "traceID": span["SpanContext"]["TraceID"],
        "spanID": span["SpanContext"]["SpanID"],
        "flags": u8::from(span["SpanContext"]["TraceFlags"] == "01"),
        "operationName": span["Name"],
        "references": references,
        "startTime": start,
        "duration": end.saturating_sub(start),
        "tags": tags,
        "logs": events.collect::<Vec<_>>(),
        "processID": process(&span["Resource"], processes),
        "warnings": null,
    })
}

/// Spans of one program share its entry.
fn process(resource: &Value, processes: &mut Map<String, Value>) -> String {
    let all = tags(resource);
    let (name, tags): (Vec<Value>, Vec<Value>) =
        all.into_iter().partition(|tag| tag["key"] == "service.name");
    let name = name.first().map_or(json!("unknown"), |tag| tag["value"].clone());
    let entry = json!({"serviceName": name, "tags": tags});
    if let Some((id, _)) = processes.iter().find(|(_, known)| **known == entry) {
        return id.clone();
    }
    let id = format!("p{}", processes.len() + 1);
    processes.insert(id.clone(), entry);
    id
}

fn tags(attributes: &Value) -> Vec<Value> {
    let one = |pair: &Value| {
        let value = &pair["Value"]["Value"];
        let (kind, value) = match pair["Value"]["Type"].as_str() {
            Some("BOOL") => ("bool", value.clone()),
            Some("INT64") => ("int64", value.clone()),
            Some("FLOAT64") => ("float64", value.clone()),
            Some("STRING") => ("string", value.clone()),
            _ => ("string", json!(value.to_string())),
        };
        json!({"key": pair["Key"], "type": kind, "value": value})
    };
    attributes.as_array().into_iter().flatten().map(one).collect()
}

fn micros(time: &Value) -> u64 {
    let stamp = time.as_str().and_then(Stamp::parse);
    let since = stamp.and_then(|stamp| stamp.system_time().duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_become_a_page() {
        let span = |id: &str, parent: &str| {
            json!({
                "Name": id,
                "SpanContext": {"TraceID": "t", "SpanID": id, "TraceFlags": "01"},
                "Parent": {"TraceID": "t", "SpanID": parent},
                "StartTime": "2026-01-01T00:00:00Z",
                "EndTime": "2026-01-01T00:00:00.5Z",
                "Attributes": [{"Key": "a", "Value": {"Type": "INT64", "Value": 3}}],
                "Status": {"Code": "Error", "Description": "no"},
                "Resource": [{"Key": "service.name", "Value": {"Type": "STRING", "Value": "builder"}}],
            })
        };
        let text = format!("{}\n{}\n", span("a", "0000"), span("b", "a"));
        let page = jaeger(text.as_bytes()).expect("spans");
        let trace = &page["data"][0];
        assert_eq!(
            trace["processes"],
            json!({"p1": {"serviceName": "builder", "tags": []}})
        );
        let (a, b) = (&trace["spans"][0], &trace["spans"][1]);
        assert_eq!((&a["duration"], &a["references"]), (&json!(500_000), &json!([])));
        assert_eq!(b["references"][0]["spanID"], "a");
        assert_eq!(b["tags"][1]["key"], "error");
        assert_eq!(jaeger(b"{"), None);
    }
}
