//! The steps of a build as they are now, followed from what it shows.
use oci::Digest;
use parking_lot::Mutex;
use solver::progress::{Event, VertexInfo};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct StepTrail {
    /// Which one.
    pub(crate) vertex: Arc<VertexInfo>,
    /// When it began first.
    pub(crate) started: Option<SystemTime>,
    /// When it ended last; nothing while it runs.
    pub(crate) completed: Option<SystemTime>,
    /// Whether the cache had it.
    pub(crate) is_cached: bool,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// What it is doing.
    pub(crate) doing: Option<String>,
}

impl StepTrail {
    /// In one word.
    pub(crate) fn state(&self) -> &'static str {
        match (&self.error, self.is_cached, self.started, self.completed) {
            (Some(_), ..) => "failed",
            (None, true, ..) => "cached",
            (None, false, Some(_), None) => "running",
            (None, false, _, Some(_)) => "done",
            (None, false, None, None) => "waiting",
        }
    }
}

/// All steps of a build, in the order they were announced.
#[derive(Debug, Default)]
pub(crate) struct Trail(Mutex<Steps>);

#[derive(Debug, Default)]
struct Steps {
    all: Vec<StepTrail>,
    places: HashMap<Digest, usize>,
}

impl Trail {
    /// Takes in what happened.
    pub(crate) fn take(&self, events: &[Event]) {
        let mut steps = self.0.lock();
        for event in events {
            match event {
                Event::Vertex(event) => {
                    let step = steps.step(&event.vertex);
                    if let Some(started) = event.started {
                        step.started = Some(step.started.map_or(started, |first| first.min(started)));
                        step.completed = event.completed;
                    }
                    step.completed = event
                        .completed
                        .or(step.completed.filter(|_| event.started.is_none()));
                    step.is_cached |= event.cached;
                    if event.error.is_some() {
                        step.error.clone_from(&event.error);
                    }
                }
                Event::Status(event) => {
                    let place = steps.places.get(&event.vertex).copied();
                    if let Some(step) = place.and_then(|place| steps.all.get_mut(place)) {
                        let is_over = event.status.completed.is_some();
                        step.doing = (!is_over).then(|| event.status.id.clone());
                    }
                }
                Event::Log(_) | Event::Warning(_) => {}
            }
        }
    }

    /// As they are now.
    pub(crate) fn steps(&self) -> Vec<StepTrail> {
        self.0.lock().all.clone()
    }
}

impl Steps {
    fn step(&mut self, vertex: &Arc<VertexInfo>) -> &mut StepTrail {
        let next = self.all.len();
        let place = *self.places.entry(vertex.digest).or_insert(next);
        if place == next {
            self.all.push(StepTrail {
                vertex: vertex.clone(),
                started: None,
                completed: None,
                is_cached: false,
                error: None,
                doing: None,
            });
        }
        &mut self.all[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use solver::progress::{Status, StatusEvent, VertexEvent};
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn event(started: Option<u64>, completed: Option<u64>) -> VertexEvent {
        let vertex = VertexInfo {
            digest: Digest::of(b"a"),
            inputs: Vec::new(),
            name: "a".into(),
            group: None,
        };
        VertexEvent {
            vertex: Arc::new(vertex),
            started: started.map(at),
            completed: completed.map(at),
            cached: false,
            error: None,
        }
    }

    #[test]
    fn a_step_is_followed_through_its_intervals() {
        let trail = Trail::default();
        let state = || trail.steps()[0].state();
        trail.take(&[Event::Vertex(event(None, None))]);
        assert_eq!(state(), "waiting");
        trail.take(&[Event::Vertex(event(Some(3), None))]);
        assert_eq!(state(), "running");
        let status = StatusEvent {
            vertex: Digest::of(b"a"),
            timestamp: at(4),
            status: Status {
                id: "extracting".into(),
                ..Status::default()
            },
        };
        trail.take(&[Event::Status(status)]);
        assert_eq!(trail.steps()[0].doing.as_deref(), Some("extracting"));
        trail.take(&[Event::Vertex(event(Some(3), Some(5)))]);
        assert_eq!(state(), "done");
        trail.take(&[Event::Vertex(event(Some(6), None))]);
        assert_eq!(state(), "running");
        let failed = VertexEvent {
            error: Some("no".into()),
            ..event(Some(6), Some(8))
        };
        trail.take(&[Event::Vertex(failed)]);
        let steps = trail.steps();
        assert_eq!((steps.len(), steps[0].state()), (1, "failed"));
        assert_eq!((steps[0].started, steps[0].completed), (Some(at(3)), Some(at(8))));
    }
}
