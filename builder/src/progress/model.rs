//! What each step of a build has shown so far.
//!
//! ```text
//! Event ─▶ Model::apply ─▶ steps, in the order in which they began; what is new is marked for the displays
//! ```
//!
//! A step is a vertex, or a progress group with all its members. A group of weak members only stays hidden
//! until a member that is not weak begins.
//!
//! Memory: a step keeps its last lines of output and what no display has taken yet, both bounded.
use super::intervals::Intervals;
use oci::Digest;
use solver::progress::{Event, LogEvent, Status, StatusEvent, VertexEvent, Warning};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::SystemTime;

/// Lines kept of each step for showing after a failure.
pub(super) const TAIL_LINES: usize = 10;
/// Bytes of a line that are kept; a line without an end must not fill the memory.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// All steps.
#[derive(Debug, Default)]
pub struct Model {
    steps: Vec<Step>,
    by_digest: HashMap<Digest, usize>,
    by_group: HashMap<String, usize>,
    /// Steps that began, in the order in which they did.
    order: Vec<usize>,
    began: Option<SystemTime>,
}

/// One step.
#[derive(Debug, Default)]
pub struct Step {
    /// Its name, as it came.
    pub name: String,
    /// When it worked.
    pub times: Intervals,
    /// Served by the cache.
    pub cached: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Parts of its work, in the order in which they began.
    pub statuses: Vec<StatusLine>,
    /// What the user should know.
    pub warnings: Vec<Warning>,
    /// Its output.
    pub output: Output,
    /// Something is new since a display last took it.
    pub is_fresh: bool,
    /// How many news since it was last in front (plain display).
    pub news: u64,
    /// When the first of these came.
    pub news_since: Option<SystemTime>,
    /// Not shown: a group of which only weak members began.
    pub is_hidden: bool,
    members: BTreeMap<Digest, Member>,
}

/// A vertex of a group.
#[derive(Debug, Default)]
struct Member {
    cached: bool,
    is_weak: bool,
    error: Option<String>,
}

/// One part of a step's work.
#[derive(Debug, Clone)]
pub struct StatusLine {
    /// What was last reported.
    pub status: Status,
    /// When.
    pub timestamp: SystemTime,
    /// New since a display last took it.
    pub is_fresh: bool,
}

/// The output of a step, cut into lines.
#[derive(Debug, Default)]
pub struct Output {
    /// Whole lines nobody has taken yet, each with the seconds since the step's start.
    pub lines: VecDeque<(f64, Vec<u8>)>,
    /// The line that has no end yet.
    pub partial: Option<(f64, Vec<u8>)>,
    /// The last lines.
    pub tail: VecDeque<(f64, Vec<u8>)>,
    /// Bytes in all.
    pub bytes: u64,
}

impl Model {
    /// Takes in an event that came at `now`; answers the step it changed.
    pub fn apply(&mut self, event: &Event, now: SystemTime) -> Option<usize> {
        let (index, is_news) = match event {
            Event::Vertex(event) => self.vertex(event),
            Event::Status(event) => (*self.by_digest.get(&event.vertex)?, self.status(event)),
            Event::Log(event) => (*self.by_digest.get(&event.vertex)?, self.log(event)),
            Event::Warning(event) => {
                let index = *self.by_digest.get(&event.vertex)?;
                self.steps[index].warnings.push(event.warning.clone());
                (index, true)
            }
        };
        if is_news {
            self.steps[index].mark(now);
        }
        Some(index)
    }

    /// A step by its index.
    pub fn step(&self, index: usize) -> &Step {
        &self.steps[index]
    }

    /// A step by its index, for the display that takes what is new.
    pub fn step_mut(&mut self, index: usize) -> &mut Step {
        &mut self.steps[index]
    }

    /// The steps to show, in the order in which they began.
    pub fn visible(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.order
            .iter()
            .copied()
            .filter(|&index| !self.steps[index].is_hidden)
    }

    /// How many steps are complete, and how many there are.
    pub fn counts(&self) -> (usize, usize) {
        let shown = self.steps.iter().filter(|step| !step.is_hidden);
        shown.fold((0, 0), |(done, all), step| {
            (done + usize::from(step.times.is_completed()), all + 1)
        })
    }

    /// When the first step began.
    pub fn began(&self) -> Option<SystemTime> {
        self.began
    }

    fn vertex(&mut self, event: &VertexEvent) -> (usize, bool) {
        let index = self.index_of(event);
        if let Some(started) = event.started {
            self.began = Some(self.began.map_or(started, |began| began.min(started)));
        }
        let step = &mut self.steps[index];
        let was_started = step.times.is_started();
        let mut is_news = match event.started {
            Some(started) => step.times.set(started, event.completed),
            None => false,
        };
        if event.vertex.group.is_some() {
            is_news |= step.member(event);
        } else if event.started.is_some() || !was_started {
            is_news |= step.cached != event.cached || step.error != event.error;
            step.cached = event.cached;
            step.error.clone_from(&event.error);
        }
        if step.times.is_started() && !was_started {
            self.order.push(index);
        }
        (index, is_news)
    }

    fn index_of(&mut self, event: &VertexEvent) -> usize {
        if let Some(&index) = self.by_digest.get(&event.vertex.digest) {
            return index;
        }
        let known = event
            .vertex
            .group
            .as_ref()
            .and_then(|group| self.by_group.get(&group.id).copied());
        let index = known.unwrap_or(self.steps.len());
        if known.is_none() {
            let group = event.vertex.group.as_ref();
            let name = group.map_or(&event.vertex.name, |group| &group.name);
            self.steps.push(Step {
                name: name.clone(),
                is_hidden: group.is_some(),
                ..Step::default()
            });
            if let Some(group) = group {
                self.by_group.insert(group.id.clone(), index);
            }
        }
        self.by_digest.insert(event.vertex.digest, index);
        index
    }

    fn status(&mut self, event: &StatusEvent) -> bool {
        let Some(&index) = self.by_digest.get(&event.vertex) else {
            return false;
        };
        let lines = &mut self.steps[index].statuses;
        let line = StatusLine {
            status: event.status.clone(),
            timestamp: event.timestamp,
            is_fresh: true,
        };
        match lines.iter_mut().find(|line| line.status.id == event.status.id) {
            Some(known) => *known = line,
            None => lines.push(line),
        }
        true
    }

    fn log(&mut self, event: &LogEvent) -> bool {
        let Some(&index) = self.by_digest.get(&event.vertex) else {
            return false;
        };
        let step = &mut self.steps[index];
        let start = step.times.latest_start().unwrap_or(event.timestamp);
        let seconds = event
            .timestamp
            .duration_since(start)
            .unwrap_or_default()
            .as_secs_f64();
        step.output.write(&event.data, seconds);
        true
    }
}

impl Step {
    /// A step that stopped because the build was cancelled, not by its own fault.
    pub fn is_canceled(&self) -> bool {
        self.error
            .as_deref()
            .is_some_and(|error| error.ends_with("context canceled"))
    }

    /// A step that failed by itself.
    pub fn is_failed(&self) -> bool {
        self.error.is_some() && !self.is_canceled()
    }

    fn mark(&mut self, now: SystemTime) {
        self.is_fresh = true;
        if self.news == 0 {
            self.news_since = Some(now);
        }
        self.news += 1;
    }

    /// Notes the state of one vertex of the group; true if that is news.
    fn member(&mut self, event: &VertexEvent) -> bool {
        let is_weak = event.vertex.group.as_ref().is_some_and(|group| group.weak);
        let member = Member {
            cached: event.cached,
            is_weak,
            error: event.error.clone(),
        };
        self.members.insert(event.vertex.digest, member);
        let before = (self.cached, self.error.clone(), self.is_hidden);
        self.cached = self.members.values().all(|member| member.cached);
        self.error = self.members.values().find_map(|member| member.error.clone());
        if (event.started.is_some() && !is_weak)
            || self.members.values().any(|m| m.error.is_some() && m.is_weak)
        {
            self.is_hidden = false;
        }
        before != (self.cached, self.error.clone(), self.is_hidden)
    }
}

impl Output {
    fn write(&mut self, data: &[u8], seconds: f64) {
        self.bytes += data.len() as u64;
        for piece in data.split_inclusive(|&byte| byte == b'\n') {
            let (time, line) = self.partial.get_or_insert_with(|| (seconds, Vec::new()));
            let room = MAX_LINE_BYTES.saturating_sub(line.len());
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            line.extend_from_slice(&text[..text.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = (*time, std::mem::take(line));
                self.partial = None;
                self.finish(line);
            }
        }
    }

    fn finish(&mut self, line: (f64, Vec<u8>)) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.clone());
        self.lines.push_back(line);
    }

    /// The last lines, the unfinished one included.
    pub fn last_lines(&self) -> impl Iterator<Item = &(f64, Vec<u8>)> {
        let all = self.tail.len() + usize::from(self.partial.is_some());
        self.tail
            .iter()
            .chain(&self.partial)
            .skip(all.saturating_sub(TAIL_LINES))
    }
}
