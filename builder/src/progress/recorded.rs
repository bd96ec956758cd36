//! Recorded builds for the displays' tests: one event a line, times in milliseconds.
//!
//! ```text
//! 0    announce a [internal] load
//! 0    start a
//! 10   status a transferring context: 237/0        (done: 237/0!)
//! 10   log b hello\n
//! 20   done a        | cached a | fail a message | warn a text
//! ```
use oci::Digest;
use solver::progress::{
    Event, LogEvent, OutputStream, Status, StatusEvent, VertexEvent, VertexInfo, Warning, WarningEvent,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The time `millis` after the recording's start.
pub(super) fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + Duration::from_millis(millis)
}

/// The events of a recording, each with its time.
pub(super) fn events(recording: &str) -> Vec<(SystemTime, Event)> {
    let mut vertices: HashMap<String, (Arc<VertexInfo>, Option<SystemTime>)> = HashMap::new();
    let mut statuses: HashMap<String, SystemTime> = HashMap::new();
    let lines = recording.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let mut words = line.splitn(4, ' ').map(str::trim);
            let now = at(words.next().expect("a time").parse().expect("a number"));
            let verb = words.next().expect("a verb");
            let id = words.next().expect("a vertex").to_owned();
            let rest = words.next().unwrap_or_default();
            if verb == "announce" {
                let info = VertexInfo {
                    digest: Digest::of(id.as_bytes()),
                    inputs: vec![],
                    name: rest.into(),
                    group: None,
                };
                vertices.insert(id.clone(), (Arc::new(info), None));
            }
            let (vertex, started) = vertices.get_mut(&id).expect("announced before");
            let state = |started, completed, cached, error| {
                Event::Vertex(VertexEvent {
                    vertex: vertex.clone(),
                    started,
                    completed,
                    cached,
                    error,
                })
            };
            let event = match verb {
                "announce" => state(None, None, false, None),
                "start" => {
                    *started = Some(now);
                    state(Some(now), None, false, None)
                }
                "done" => state(*started, Some(now), false, None),
                "cached" => state(Some(now), Some(now), true, None),
                "fail" => state(*started, Some(now), false, Some(rest.into())),
                "log" => Event::Log(LogEvent {
                    vertex: vertex.digest,
                    stream: OutputStream::Stdout,
                    data: rest
                        .replace("\\n", "\n")
                        .replace("\\e", "\u{1b}")
                        .replace("\\r", "\r")
                        .into_bytes()
                        .into(),
                    timestamp: now,
                }),
                "status" => Event::Status(status(vertex.digest, rest, now, &mut statuses)),
                "warn" => Event::Warning(WarningEvent {
                    vertex: vertex.digest,
                    warning: Warning {
                        short: rest.into(),
                        ..Warning::default()
                    },
                }),
                other => panic!("unknown verb {other}"),
            };
            (now, event)
        })
        .collect()
}

fn status(
    vertex: Digest,
    text: &str,
    now: SystemTime,
    begun: &mut HashMap<String, SystemTime>,
) -> StatusEvent {
    let (id, numbers) = text.rsplit_once(' ').expect("an id and numbers");
    let is_done = numbers.ends_with('!');
    let (current, total) = numbers
        .trim_end_matches('!')
        .split_once('/')
        .expect("current/total");
    let started = *begun.entry(id.to_owned()).or_insert(now);
    StatusEvent {
        vertex,
        timestamp: now,
        status: Status {
            id: id.into(),
            current: current.parse().expect("a number"),
            total: total.parse().expect("a number"),
            started: Some(started),
            completed: is_done.then_some(now),
            ..Status::default()
        },
    }
}
