//! Progress on the wire and back: events of the solver as `StatusResponse` messages of the control API.
//!
//! ```text
//! daemon: solver events ─▶ encode ─▶ Status stream, history log ─▶ decode ─▶ display of a client
//! ```
//!
//! Decoding believes nothing: a digest that is none, a time out of range or bytes that are no text make the part be left
//! out or mended, never an error, as nothing but a display depends on them.
use api::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use llb::{Position, Range, SourceFile};
use oci::Digest;
use solver::progress::{
    Event, LogEvent, OutputStream, Status, StatusEvent, VertexEvent, VertexInfo, Warning, WarningEvent,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Events as one message.
pub fn encode(events: &[Event]) -> StatusResponse {
    let mut response = StatusResponse::default();
    for event in events {
        match event {
            Event::Vertex(event) => response.vertexes.push(vertex(event)),
            Event::Status(event) => response.statuses.push(status(event)),
            Event::Log(event) => response.logs.push(VertexLog {
                vertex: event.vertex.to_string(),
                timestamp: Some(event.timestamp.into()),
                stream: event.stream.number(),
                msg: bytes_of(&event.data),
            }),
            Event::Warning(event) => response.warnings.push(warning(event)),
        }
    }
    response
}

/// A message as events; what names no vertex is left out.
pub fn decode(response: StatusResponse) -> Vec<Event> {
    let vertices = response.vertexes.into_iter().filter_map(decode_vertex);
    let statuses = response.statuses.into_iter().filter_map(decode_status);
    let logs = response.logs.into_iter().filter_map(|log| {
        Some(Event::Log(LogEvent {
            vertex: Digest::parse(&log.vertex).ok()?,
            stream: if log.stream == 2 {
                OutputStream::Stderr
            } else {
                OutputStream::Stdout
            },
            data: Arc::from(&log.msg[..]),
            timestamp: log.timestamp.and_then(time).unwrap_or(SystemTime::UNIX_EPOCH),
        }))
    });
    let warnings = response.warnings.into_iter().filter_map(decode_warning);
    vertices.chain(statuses).chain(logs).chain(warnings).collect()
}

fn bytes_of(data: &[u8]) -> prost::bytes::Bytes {
    prost::bytes::Bytes::copy_from_slice(data)
}

fn vertex(event: &VertexEvent) -> Vertex {
    let info = &event.vertex;
    Vertex {
        digest: info.digest.to_string(),
        inputs: info.inputs.iter().map(ToString::to_string).collect(),
        name: info.name.clone(),
        cached: event.cached,
        started: event.started.map(Into::into),
        completed: event.completed.map(Into::into),
        error: event.error.clone().unwrap_or_default(),
        progress_group: info.group.as_ref().map(|group| llb::proto::ProgressGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            weak: group.weak,
        }),
    }
}

fn decode_vertex(vertex: Vertex) -> Option<Event> {
    let group = vertex.progress_group.map(|group| llb::ProgressGroup {
        id: group.id,
        name: group.name,
        weak: group.weak,
    });
    let info = VertexInfo {
        digest: Digest::parse(&vertex.digest).ok()?,
        inputs: vertex
            .inputs
            .iter()
            .filter_map(|input| Digest::parse(input).ok())
            .collect(),
        name: vertex.name,
        group,
    };
    Some(Event::Vertex(VertexEvent {
        vertex: Arc::new(info),
        started: vertex.started.and_then(time),
        completed: vertex.completed.and_then(time),
        cached: vertex.cached,
        error: Some(vertex.error).filter(|error| !error.is_empty()),
    }))
}

fn status(event: &StatusEvent) -> VertexStatus {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    VertexStatus {
        id: event.status.id.clone(),
        vertex: event.vertex.to_string(),
        name: event.status.name.clone(),
        current: number(event.status.current),
        total: number(event.status.total),
        timestamp: Some(event.timestamp.into()),
        started: event.status.started.map(Into::into),
        completed: event.status.completed.map(Into::into),
    }
}

fn decode_status(status: VertexStatus) -> Option<Event> {
    let number = |value: i64| u64::try_from(value).unwrap_or_default();
    Some(Event::Status(StatusEvent {
        vertex: Digest::parse(&status.vertex).ok()?,
        timestamp: status.timestamp.and_then(time).unwrap_or(SystemTime::UNIX_EPOCH),
        status: Status {
            id: status.id,
            name: status.name,
            current: number(status.current),
            total: number(status.total),
            started: status.started.and_then(time),
            completed: status.completed.and_then(time),
        },
    }))
}

fn warning(event: &WarningEvent) -> VertexWarning {
    let warning = &event.warning;
    VertexWarning {
        vertex: event.vertex.to_string(),
        level: warning.level,
        short: bytes_of(warning.short.as_bytes()),
        detail: warning
            .detail
            .iter()
            .map(|line| bytes_of(line.as_bytes()))
            .collect(),
        url: warning.url.clone(),
        info: warning.source.as_ref().map(|file| llb::proto::SourceInfo {
            filename: file.filename.clone(),
            data: file.data.clone(),
            language: file.language.clone(),
            definition: None,
        }),
        ranges: warning.ranges.iter().map(range).collect(),
    }
}

/// A range as the wire has it.
pub(crate) fn range(range: &Range) -> llb::proto::Range {
    let position = |position: Position| llb::proto::Position {
        line: position.line,
        character: position.character,
    };
    llb::proto::Range {
        start: Some(position(range.start)),
        end: Some(position(range.end)),
    }
}

fn decode_warning(warning: VertexWarning) -> Option<Event> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let position = |position: Option<llb::proto::Position>| {
        position.map_or_else(Position::default, |position| Position {
            line: position.line,
            character: position.character,
        })
    };
    Some(Event::Warning(WarningEvent {
        vertex: Digest::parse(&warning.vertex).ok()?,
        warning: Warning {
            level: warning.level,
            short: text(&warning.short),
            detail: warning.detail.iter().map(|line| text(line)).collect(),
            url: warning.url,
            source: warning.info.map(|info| SourceFile {
                filename: info.filename,
                data: info.data,
                language: info.language,
                definition: None,
            }),
            ranges: warning
                .ranges
                .into_iter()
                .map(|range| Range {
                    start: position(range.start),
                    end: position(range.end),
                })
                .collect(),
        },
    }))
}

/// A wire time; `None` for one no clock can show.
pub(crate) fn time(stamp: prost_types::Timestamp) -> Option<SystemTime> {
    let nanos = u32::try_from(stamp.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)?;
    let seconds = u64::try_from(stamp.seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::super::recorded;
    use super::*;

    #[test]
    fn events_come_back_as_they_went() {
        let recording = "
            0 announce a [1/2] RUN make
            1 start a
            2 status a transferring context: 237/1000
            3 log a hello\\n
            4 warn a look out
            5 done a
            6 announce b [2/2] COPY
            7 fail b exit code: 1
        ";
        for (_, event) in recorded::events(recording) {
            assert_eq!(decode(encode(std::slice::from_ref(&event))), [event]);
        }
    }

    #[test]
    fn nonsense_is_left_out() {
        let mut response = StatusResponse::default();
        response.vertexes.push(Vertex {
            digest: "no digest".into(),
            ..Vertex::default()
        });
        response.logs.push(VertexLog::default());
        assert!(decode(response).is_empty());
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
            assert_eq!(
                time(prost_types::Timestamp { seconds, nanos }).filter(|_| seconds != i64::MAX),
                None
            );
        }
    }
}
