//! What each step of a build waited for, and the chain of steps that decided how long it took.
//!
//! ```text
//! events ─▶ Timeline: steps with their times and inputs ─▶ critical path, backwards from the step that ended last
//! ```
//!
//! A step was held up by the input that ended last before it worked. Steps outside the graph (loading the Dockerfile,
//! exporting) have no inputs: they were held up by whatever ended last before they began.
use crate::progress::{Intervals, plain_name};
use oci::Digest;
use solver::progress::Event;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// Clock readings of different threads may be this far out of order.
const SLACK: Duration = Duration::from_millis(2);

/// All steps that worked, in the order in which they were announced.
#[derive(Debug, Default)]
pub struct Timeline {
    steps: Vec<TimedStep>,
    by_digest: HashMap<Digest, usize>,
}

/// One step.
#[derive(Debug)]
pub struct TimedStep {
    /// Its name, harmless to a terminal.
    pub name: String,
    /// The steps whose results it used, by their place in [`Timeline::steps`].
    pub inputs: Vec<usize>,
    /// Served by the cache.
    pub is_cached: bool,
    /// Why it failed.
    pub error: Option<String>,
    input_digests: Vec<Digest>,
    times: Intervals,
}

impl Timeline {
    /// Takes in an event.
    pub fn apply(&mut self, event: &Event) {
        let Event::Vertex(event) = event else {
            return;
        };
        let index = *self.by_digest.entry(event.vertex.digest).or_insert_with(|| {
            self.steps.push(TimedStep {
                name: plain_name(&event.vertex.name),
                inputs: Vec::new(),
                is_cached: false,
                error: None,
                input_digests: event.vertex.inputs.clone(),
                times: Intervals::default(),
            });
            self.steps.len() - 1
        });
        let step = &mut self.steps[index];
        if let Some(started) = event.started {
            step.times.set(started, event.completed);
            step.is_cached = event.cached;
            step.error.clone_from(&event.error);
        }
    }

    /// Joins inputs to steps once all events are in; steps that never began are left out.
    pub fn finish(mut self) -> Timeline {
        let kept: Vec<bool> = self.steps.iter().map(|step| step.times.is_started()).collect();
        let mut places = Vec::with_capacity(kept.len());
        let mut next = 0;
        for is_kept in &kept {
            places.push(is_kept.then_some(next));
            next += usize::from(*is_kept);
        }
        let by_digest = std::mem::take(&mut self.by_digest);
        for step in &mut self.steps {
            let inputs = step
                .input_digests
                .iter()
                .filter_map(|digest| by_digest.get(digest));
            step.inputs = inputs.filter_map(|index| places[*index]).collect();
            step.inputs.sort_unstable();
            step.inputs.dedup();
        }
        let mut keep = kept.into_iter();
        self.steps.retain(|_| keep.next().unwrap_or(false));
        self
    }

    /// The steps.
    pub fn steps(&self) -> &[TimedStep] {
        &self.steps
    }

    /// When the first step began and the last one ended; `None` without steps.
    pub fn span(&self) -> Option<(SystemTime, SystemTime)> {
        let all = || self.steps.iter().flat_map(TimedStep::times);
        let begin = all().map(|(start, _)| start).min()?;
        Some((begin, all().map(|(_, end)| end).max()?))
    }

    /// The steps that decided how long the build took, the first one first.
    pub fn critical_path(&self) -> Vec<usize> {
        let last = (0..self.steps.len()).max_by_key(|index| self.steps[*index].end());
        let mut path = Vec::new();
        let mut is_on_path = vec![false; self.steps.len()];
        let mut next = last;
        while let Some(index) = next.filter(|index| !is_on_path[*index]) {
            is_on_path[index] = true;
            path.push(index);
            next = self.held_up_by(index, &is_on_path);
        }
        path.reverse();
        path
    }

    /// The step whose end let this one work.
    fn held_up_by(&self, index: usize, passed: &[bool]) -> Option<usize> {
        let step = &self.steps[index];
        let begin = step.work().0;
        let is_before = |other: &usize| {
            !passed[*other]
                && self.steps[*other].end() <= begin + SLACK
                && self.steps[*other].work().0 <= begin
        };
        let latest = |candidates: &mut dyn Iterator<Item = usize>| {
            candidates
                .filter(is_before)
                .max_by_key(|other| self.steps[*other].end())
        };
        match step.inputs.is_empty() {
            false => latest(&mut step.inputs.iter().copied()),
            true => None,
        }
        .or_else(|| latest(&mut (0..self.steps.len())))
    }
}

impl TimedStep {
    /// When it worked: beginnings and ends, in order.
    pub fn times(&self) -> Vec<(SystemTime, SystemTime)> {
        // What is open ends where it began: the build is over, so nothing is known of it.
        self.times.merged(SystemTime::UNIX_EPOCH)
    }

    /// How long it worked in all.
    pub fn took(&self) -> Duration {
        let times = self.times();
        times
            .iter()
            .map(|(start, end)| end.duration_since(*start).unwrap_or_default())
            .sum()
    }

    /// The last stretch in which it worked.
    fn work(&self) -> (SystemTime, SystemTime) {
        let never = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
        self.times().last().copied().unwrap_or(never)
    }

    fn end(&self) -> SystemTime {
        self.work().1
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use solver::progress::{VertexEvent, VertexInfo};
    use std::sync::Arc;

    pub(crate) fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1000) + Duration::from_millis(millis)
    }

    /// A timeline of `(name, inputs, begin, end)`; a begin and an end of 0 mean cached at once.
    pub(crate) fn timeline(steps: &[(&str, &[&str], u64, u64)]) -> Timeline {
        let mut timeline = Timeline::default();
        let digest = |name: &str| Digest::of(name.as_bytes());
        for (name, inputs, begin, end) in steps {
            let vertex = Arc::new(VertexInfo {
                digest: digest(name),
                inputs: inputs.iter().map(|input| digest(input)).collect(),
                name: (*name).into(),
                group: None,
            });
            timeline.apply(&Event::Vertex(VertexEvent {
                vertex,
                started: Some(at(*begin)),
                completed: Some(at(*end)),
                cached: begin == end,
                error: None,
            }));
        }
        timeline.finish()
    }

    fn names(timeline: &Timeline) -> Vec<&str> {
        let path = timeline.critical_path();
        path.into_iter()
            .map(|index| timeline.steps()[index].name.as_str())
            .collect()
    }

    #[test]
    fn the_path_follows_what_ended_last() {
        let built = timeline(&[
            ("load", &[], 0, 10),
            ("base", &[], 12, 50),
            ("context", &[], 12, 20),
            ("slow", &["base"], 50, 400),
            ("quick", &["base", "context"], 50, 80),
            ("join", &["slow", "quick"], 400, 420),
            ("export", &[], 421, 500),
        ]);
        assert_eq!(names(&built), ["load", "base", "slow", "join", "export"]);
        assert_eq!(built.span(), Some((at(0), at(500))));
    }

    #[test]
    fn no_steps_no_path() {
        let none = timeline(&[]);
        assert!(names(&none).is_empty() && none.span().is_none());
    }

    #[test]
    fn steps_that_never_began_are_left_out() {
        let mut timeline = Timeline::default();
        for name in ["never", "ran"] {
            let vertex = Arc::new(VertexInfo {
                digest: Digest::of(name.as_bytes()),
                inputs: vec![Digest::of(b"never")],
                name: name.into(),
                group: None,
            });
            timeline.apply(&Event::Vertex(VertexEvent {
                vertex,
                started: (name == "ran").then(|| at(0)),
                completed: (name == "ran").then(|| at(5)),
                cached: false,
                error: None,
            }));
        }
        let timeline = timeline.finish();
        assert_eq!(names(&timeline), ["ran"]);
        assert!(timeline.steps()[0].inputs.is_empty());
    }
}
