//! Progress for log files: numbered steps, each line with its step's number.
//!
//! ```text
//! #1 [internal] load build definition from Dockerfile
//! #1 transferring dockerfile: 237B done
//! #1 DONE 0.0s
//!
//! #10 [base 4/4] RUN echo hello
//! #10 0.054 hello
//! #10 DONE 0.1s
//! ```
//!
//! Steps are numbered in the order in which they are first printed. One step is in front; another takes its
//! place when the one in front is complete, when it has waited too long, or when it has much more to say.
//! Leaving a step that is not complete prints `#N ...`.
use super::failure::{failures, since_start};
use super::model::{Model, Step};
use super::text::{plain_line, plain_name};
use crate::units::show_bytes;
use solver::progress::Event;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// How long a step stays in front at least while others talk as much.
const ANTI_FLICKER: Duration = Duration::from_secs(5);
/// How long news may wait behind the step in front.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// After how long a status line is printed again,
const MIN_TIME: Duration = Duration::from_secs(5);
/// or after how much of its work.
const MIN_PROGRESS: f64 = 0.05;

/// The plain display. Gives text back; whoever drives it writes it out.
#[derive(Debug, Default)]
pub(super) struct Plain {
    model: Model,
    numbers: HashMap<usize, usize>,
    front: Option<usize>,
    fresh: BTreeSet<usize>,
    printed: HashMap<(usize, String), (u64, SystemTime)>,
    /// Bytes of the unfinished line that are on screen already.
    partial: Option<(usize, usize)>,
    warned: HashMap<usize, usize>,
    colour: bool,
    out: String,
    is_first: bool,
}

impl Plain {
    /// A display that keeps colours of the output if asked to.
    pub(super) fn new(colour: bool) -> Plain {
        Plain {
            colour,
            is_first: true,
            ..Plain::default()
        }
    }

    /// What is known so far.
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// Takes in events.
    pub(super) fn update(&mut self, events: &[Event], now: SystemTime) {
        for event in events {
            if let Some(index) = self.model.apply(event, now) {
                self.fresh.insert(index);
            }
        }
        self.fresh.retain(|&index| self.model.step(index).is_fresh);
    }

    /// What is to be printed now.
    pub(super) fn print(&mut self, now: SystemTime) -> String {
        let is_shown = |index: &usize| !self.model.step(*index).is_hidden;
        let (done, open): (Vec<usize>, Vec<usize>) = self
            .fresh
            .iter()
            .copied()
            .filter(is_shown)
            .partition(|&index| self.model.step(index).times.is_completed());
        let front = self.front;
        self.print_done(front, done);
        match open.is_empty() {
            true => self.print_any(front, now),
            false => self.print_open(front, open, now),
        }
        std::mem::take(&mut self.out)
    }

    /// What is to be printed at the end: the rest, and the output of failed steps.
    pub(super) fn finish(&mut self, now: SystemTime) -> String {
        let mut text = self.print(now);
        let rest: Vec<usize> = self
            .fresh
            .iter()
            .copied()
            .filter(|&i| !self.model.step(i).is_hidden)
            .collect();
        for index in rest {
            self.print_step(index, now);
        }
        text.push_str(&std::mem::take(&mut self.out));
        text.push_str(&failures(&self.model, self.colour));
        text
    }

    fn print_done(&mut self, front: Option<usize>, mut done: Vec<usize>) {
        let end = |index: usize, model: &Model| model.step(index).times.ended();
        done.sort_by_key(|&index| (Some(index) != front, end(index, &self.model), index));
        for index in done {
            let now = end(index, &self.model).unwrap_or(SystemTime::UNIX_EPOCH);
            self.print_step(index, now);
        }
    }

    /// Nothing new of steps that are still working: keep the front, or put any of them there.
    fn print_any(&mut self, front: Option<usize>, now: SystemTime) {
        let is_open = |index: usize| {
            let times = &self.model.step(index).times;
            times.is_started() && !times.is_completed()
        };
        if self.front.is_some() || front.is_some_and(is_open) {
            return;
        }
        let open = self.model.visible().find(|&index| is_open(index));
        if let Some(index) = open {
            self.print_step(index, now);
        }
    }

    fn print_open(&mut self, front: Option<usize>, mut open: Vec<usize>, now: SystemTime) {
        let front = front.filter(|_| self.front.is_some());
        if let Some(index) = front.filter(|index| open.contains(index)) {
            self.print_step(index, now);
        }
        if let Some(index) = front.filter(|index| !open.contains(index)) {
            open.push(index);
        }
        let waits = |index: usize| {
            let since = self.model.step(index).news_since.unwrap_or(now);
            now.duration_since(since).unwrap_or_default()
        };
        let speed = |index: usize| self.model.step(index).news as f64 / waits(index).as_secs_f64().max(0.001);
        let fastest = open
            .iter()
            .copied()
            .max_by(|&a, &b| speed(a).total_cmp(&speed(b)));
        let late = open
            .iter()
            .copied()
            .find(|&index| Some(index) != front && waits(index) > MAX_DELAY);
        let next = match (front, late) {
            (None, _) => late.or(fastest),
            (Some(_), Some(late)) => Some(late),
            (Some(front), None) => {
                let all: f64 = open.iter().map(|&index| speed(index)).sum();
                let share = if all > 0.0 { speed(front) / all } else { 1.0 };
                let patience = ANTI_FLICKER.as_secs_f64() / (1.0 - share).max(1e-9);
                fastest.filter(|&index| index != front && patience < waits(front).as_secs_f64())
            }
        };
        if let Some(index) = next {
            self.print_step(index, now);
        }
    }

    fn print_step(&mut self, index: usize, now: SystemTime) {
        let next = self.numbers.len() + 1;
        let number = *self.numbers.entry(index).or_insert(next);
        if self.front != Some(index) {
            self.leave();
            if !std::mem::replace(&mut self.is_first, false) {
                self.out.push('\n');
            }
            let name = plain_name(&self.model.step(index).name);
            self.line(number, &name);
        }
        self.front = Some(index);
        let has_open_status = self.print_statuses(index, number);
        self.print_warnings(index, number);
        self.print_output(index, number);
        let step = self.model.step_mut(index);
        step.is_fresh = false;
        self.fresh.remove(&index);
        if step.times.is_completed() && !has_open_status {
            step.news = 0;
            let end = ending(step, now);
            self.end_partial();
            self.line(number, &end);
            self.front = None;
        }
    }

    /// Takes the step in front away from there.
    fn leave(&mut self) {
        let Some(index) = self.front.take() else { return };
        self.end_partial();
        self.model.step_mut(index).news = 0;
        let number = self.numbers[&index];
        self.line(number, "...");
    }

    fn print_statuses(&mut self, index: usize, number: usize) -> bool {
        let mut lines = Vec::new();
        let mut is_open = false;
        for line in &mut self.model.step_mut(index).statuses {
            is_open |= line.status.completed.is_none();
            if !std::mem::replace(&mut line.is_fresh, false) {
                continue;
            }
            let key = (index, line.status.id.clone());
            if let Some((current, time)) = self.printed.get(&key)
                && line.status.completed.is_none()
            {
                let done = line.status.current.saturating_sub(*current) as f64;
                let share = if line.status.total > 0 {
                    done / line.status.total as f64
                } else {
                    0.0
                };
                let waited = line.timestamp.duration_since(*time).unwrap_or_default();
                if share < MIN_PROGRESS && waited < MIN_TIME {
                    continue;
                }
            }
            self.printed.insert(key, (line.status.current, line.timestamp));
            lines.push(status_text(&line.status, line.timestamp));
        }
        for line in lines {
            self.end_partial();
            self.line(number, &line);
        }
        is_open && !self.model.step(index).times.is_completed()
    }

    fn print_warnings(&mut self, index: usize, number: usize) {
        let shown = self.warned.entry(index).or_default();
        let news: Vec<String> = self.model.step(index).warnings[*shown..]
            .iter()
            .map(|warning| plain_name(&warning.short))
            .collect();
        *shown += news.len();
        for short in news {
            self.end_partial();
            self.line(number, &format!("WARN: {short}"));
        }
    }

    fn print_output(&mut self, index: usize, number: usize) {
        let colour = self.colour;
        let mut begun = self
            .partial
            .take()
            .filter(|(owner, _)| *owner == index)
            .map(|(_, bytes)| bytes);
        let output = &mut self.model.step_mut(index).output;
        let lines: Vec<_> = output.lines.drain(..).collect();
        let partial = output.partial.clone();
        for (seconds, line) in lines {
            match begun.take() {
                Some(bytes) => {
                    let rest = plain_line(line.get(bytes..).unwrap_or_default(), colour);
                    let _ = writeln!(self.out, "{rest}");
                }
                None => self.line(
                    number,
                    &format!("{} {}", since_start(seconds), plain_line(&line, colour)),
                ),
            }
        }
        if let Some((seconds, line)) = partial {
            match begun {
                Some(bytes) => self
                    .out
                    .push_str(&plain_line(line.get(bytes..).unwrap_or_default(), colour)),
                None => {
                    let _ = write!(
                        self.out,
                        "#{number} {} {}",
                        since_start(seconds),
                        plain_line(&line, colour)
                    );
                }
            }
            self.partial = Some((index, line.len()));
        }
    }

    /// Ends the unfinished line on screen; its rest will stand on a line of its own.
    fn end_partial(&mut self) {
        if let Some((index, bytes)) = self.partial.take() {
            self.out.push('\n');
            if let Some((_, line)) = &mut self.model.step_mut(index).output.partial {
                line.drain(..bytes.min(line.len()));
                if line.is_empty() {
                    self.model.step_mut(index).output.partial = None;
                }
            }
        }
    }

    fn line(&mut self, number: usize, text: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "#{number} {text}");
    }
}

/// `transferring context: 1.23MB / 4.56MB 1.2s done`
fn status_text(status: &solver::progress::Status, timestamp: SystemTime) -> String {
    let mut text = plain_name(&status.id);
    if status.total != 0 {
        let _ = write!(
            text,
            " {} / {}",
            show_bytes(status.current),
            show_bytes(status.total)
        );
    } else if status.current != 0 {
        let _ = write!(text, " {}", show_bytes(status.current));
    }
    let end = status.completed.unwrap_or(timestamp);
    let took = status
        .started
        .and_then(|start| end.duration_since(start).ok())
        .unwrap_or_default()
        .as_secs_f64();
    if took > 0.01 {
        let _ = write!(text, " {took:.1}s");
    }
    if status.completed.is_some() {
        if let Some(rate) = crate::units::show_rate(status.current, took) {
            let _ = write!(text, " {rate}");
        }
        text.push_str(" done");
    }
    text
}

fn ending(step: &Step, now: SystemTime) -> String {
    match &step.error {
        Some(_) if step.is_canceled() => "CANCELED".to_owned(),
        Some(error) => format!("ERROR: {}", plain_name(error)),
        None if step.cached => "CACHED".to_owned(),
        None => format!("DONE {:.1}s", step.times.total(now).as_secs_f64()),
    }
}

#[cfg(test)]
mod tests;
