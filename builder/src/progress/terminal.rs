//! Progress for a terminal: one block of lines, drawn again and again over itself.
//!
//! ```text
//! [+] Building 1.3s (5/9)
//!  => [internal] load build definition from Dockerfile          0.0s
//!  => => transferring dockerfile: 237B                          0.0s
//!  => [base 4/4] RUN make                                       1.2s
//!  => => # cc -c main.c
//! ```
//!
//! 1. What began is listed in order, complete steps in one colour, failed and cancelled ones in others.
//! 2. Steps that work and write get a small terminal of their own, so that their progress bars show as they
//!    would; its text is what is left after emulation, so none of its control characters reach the user's.
//! 3. If the window is too low, the oldest lines that are complete go first; working steps stay.
//!
//! The text of a frame is made here; `screen` writes it. Colours can be set by `BUILDKIT_COLORS`.
use super::failure::failures;
use super::model::{Model, Step};
use super::text::{clip, plain_line, plain_name, width};
use crate::units::{show_bytes, show_rate};
use solver::progress::Event;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::time::SystemTime;

/// The least height of a step's own terminal.
const MIN_LOG_LINES: usize = 1;
/// Narrower than this nothing useful can be shown.
const MIN_NAME_WIDTH: usize = 12;
/// Columns left free right of a step's own terminal.
const LOG_MARGIN: usize = 10;

/// Escape sequences (without `ESC[` and `m`) per state; empty for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Colours {
    run: String,
    cancel: String,
    error: String,
    warning: String,
    faint: String,
}

impl Colours {
    /// No colours at all.
    pub fn none() -> Colours {
        let none = String::new();
        Colours {
            run: none.clone(),
            cancel: none.clone(),
            error: none.clone(),
            warning: none.clone(),
            faint: none,
        }
    }

    /// Blue, yellow, red; changed by a text such as `run=green:error=255,0,0`.
    pub fn with(changes: &str) -> Colours {
        let mut colours = Colours {
            run: "34".into(),
            cancel: "33".into(),
            error: "31".into(),
            warning: "33".into(),
            faint: "2".into(),
        };
        for change in changes.split(':') {
            let Some((field, value)) = change.split_once('=') else {
                continue;
            };
            let Some(sequence) = colour(value) else { continue };
            match field {
                "run" => colours.run = sequence,
                "cancel" => colours.cancel = sequence,
                "error" => colours.error = sequence,
                "warning" | "warn" => colours.warning = sequence,
                _ => {}
            }
        }
        colours
    }
}

fn colour(value: &str) -> Option<String> {
    let names = [
        "black", "red", "green", "yellow", "blue", "magenta", "cyan", "white",
    ];
    if let Some(at) = names.iter().position(|name| name.eq_ignore_ascii_case(value)) {
        return Some((30 + at).to_string());
    }
    let parts: Result<Vec<u8>, _> = value.split(',').map(str::parse::<u8>).collect();
    match parts.ok()?.as_slice() {
        [red, green, blue] => Some(format!("38;2;{red};{green};{blue}")),
        _ => None,
    }
}

/// The terminal display. Gives text back; whoever drives it writes it out.
pub(super) struct Terminal {
    model: Model,
    logs: HashMap<usize, vt100::Parser>,
    colours: Colours,
    log_lines: usize,
    drawn: usize,
}

/// One line of the list.
struct Row {
    name: String,
    status: String,
    seconds: f64,
    is_done: bool,
    colour: Tint,
    /// The step whose own terminal may be shown below.
    owner: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tint {
    None,
    Run,
    Cancel,
    Error,
    Warning,
}

impl Terminal {
    /// A display with these colours and at most this many lines of output a step.
    pub(super) fn new(colours: Colours, log_lines: usize) -> Terminal {
        Terminal {
            model: Model::default(),
            logs: HashMap::new(),
            colours,
            log_lines,
            drawn: 0,
        }
    }

    /// What is known so far.
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// Takes in events; `columns` is the window's width.
    pub(super) fn update(&mut self, events: &[Event], now: SystemTime, columns: usize) {
        for event in events {
            let Some(index) = self.model.apply(event, now) else {
                continue;
            };
            if let Event::Log(log) = event {
                let size = self.log_size(columns);
                let parser = self
                    .logs
                    .entry(index)
                    .or_insert_with(|| vt100::Parser::new(size.0, size.1, 0));
                // A terminal in raw mode does not return the carriage at a line end; a user's does.
                for line in log.data.split_inclusive(|&byte| byte == b'\n') {
                    parser.process(line.strip_suffix(b"\n").unwrap_or(line));
                    if line.ends_with(b"\n") {
                        parser.process(b"\r\n");
                    }
                }
            }
            let step = self.model.step_mut(index);
            // The plain display prints every line; this one shows the last ones only.
            step.output.lines.clear();
            if step.times.is_completed() {
                self.logs.remove(&index);
            }
        }
    }

    /// A frame over the one before, for a window of this size.
    pub(super) fn frame(&mut self, now: SystemTime, columns: usize, rows: usize) -> String {
        self.draw(now, columns, rows, false)
    }

    /// The last frame, all of it, and the output of failed steps.
    pub(super) fn finish(&mut self, now: SystemTime, columns: usize, rows: usize) -> String {
        let mut text = self.draw(now, columns, rows, true);
        text.push_str(&failures(&self.model, self.colours != Colours::none()));
        text
    }

    fn draw(&mut self, now: SystemTime, columns: usize, height: usize, is_last: bool) -> String {
        let columns = columns.max(20);
        let mut rows = self.rows(now);
        let shown = self.choose_logs(&rows, height, columns);
        if !is_last {
            let taken: usize = shown.values().map(Vec::len).sum();
            rows = fit(rows, height.saturating_sub(2 + taken));
        }
        let mut lines = vec![self.header(now, columns, is_last)];
        for row in &rows {
            let Some(line) = self.line(row, columns) else {
                continue;
            };
            lines.push(line);
            for text in row
                .owner
                .and_then(|owner| shown.get(&owner))
                .into_iter()
                .flatten()
            {
                lines.push(self.paint(Tint::None, &format!(" => => # {text}"), true));
            }
        }
        let mut out = String::from("\u{1b}[?25l");
        if self.drawn > 0 {
            // Writing to a String cannot fail.
            let _ = write!(out, "\u{1b}[{}A", self.drawn);
        }
        out.push('\r');
        for line in &lines {
            let _ = write!(out, "{line}\u{1b}[K\r\n");
        }
        out.push_str("\u{1b}[J\u{1b}[?25h");
        self.drawn = lines.len();
        out
    }

    fn header(&self, now: SystemTime, columns: usize, is_last: bool) -> String {
        let took = self
            .model
            .began()
            .and_then(|began| now.duration_since(began).ok())
            .unwrap_or_default();
        let (done, all) = self.model.counts();
        let end = if is_last && done > 0 && done == all {
            " FINISHED"
        } else {
            ""
        };
        clip(
            &format!("[+] Building {:.1}s ({done}/{all}){end}", took.as_secs_f64()),
            columns - 1,
        )
        .to_owned()
    }

    fn rows(&self, now: SystemTime) -> Vec<Row> {
        let mut rows = Vec::new();
        for index in self.model.visible() {
            let step = self.model.step(index);
            rows.push(step_row(step, index, now));
            rows.extend(step.statuses.iter().map(|line| status_row(line, now)));
            rows.extend(step.warnings.iter().map(|warning| Row {
                name: format!("WARN: {}", plain_name(&warning.short)),
                status: String::new(),
                seconds: 0.0,
                is_done: true,
                colour: Tint::Warning,
                owner: None,
            }));
        }
        rows
    }

    /// The lines of output to show, by step: those that wrote most first, as long as there is room.
    fn choose_logs(&mut self, rows: &[Row], height: usize, columns: usize) -> BTreeMap<usize, Vec<String>> {
        let open = rows.iter().filter(|row| !row.is_done).count();
        let mut free = height.saturating_sub(2 + open);
        let mut talking: Vec<usize> = rows
            .iter()
            .filter(|row| !row.is_done)
            .filter_map(|row| row.owner)
            .filter(|i| self.logs.contains_key(i))
            .collect();
        talking.sort_by_key(|&index| std::cmp::Reverse(self.model.step(index).output.bytes));
        let size = self.log_size(columns);
        let lines = self
            .log_lines
            .min(height.saturating_sub(MIN_LOG_LINES + 1))
            .max(MIN_LOG_LINES);
        let mut shown = BTreeMap::new();
        for index in talking {
            if free <= lines + 3 {
                break;
            }
            let Some(parser) = self.logs.get_mut(&index) else {
                continue;
            };
            if parser.screen().size() != size {
                parser.screen_mut().set_size(size.0, size.1);
            }
            let text: Vec<String> = parser
                .screen()
                .rows(0, size.1)
                .map(|row| plain_line(row.trim_end().as_bytes(), false))
                .filter(|row| !row.is_empty())
                .collect();
            free -= lines + 3;
            shown.insert(index, text);
        }
        shown
    }

    fn log_size(&self, columns: usize) -> (u16, u16) {
        let fits = |value: usize| u16::try_from(value).unwrap_or(u16::MAX).max(1);
        (fits(self.log_lines), fits(columns.saturating_sub(LOG_MARGIN)))
    }

    fn line(&self, row: &Row, columns: usize) -> Option<String> {
        const PREFIX: &str = " => ";
        let seconds = if row.seconds < 0.05 { 0.0 } else { row.seconds };
        let timer = format!(" {seconds:3.1}s");
        let mut room = columns.saturating_sub(PREFIX.len() + timer.len() + 1);
        let shows_status = !row.status.is_empty() && room > 20 + row.status.len();
        if shows_status {
            room -= row.status.len() + 1;
        }
        if room < MIN_NAME_WIDTH {
            return None;
        }
        let mut left = format!("{PREFIX}{}", clip(&row.name, room));
        if shows_status {
            left.push(' ');
            left.push_str(&row.status);
        }
        let padding = (columns - 1).saturating_sub(width(&left) + timer.len());
        Some(self.paint(
            row.colour,
            &format!("{left}{}{timer}", " ".repeat(padding)),
            false,
        ))
    }

    fn paint(&self, tint: Tint, text: &str, faint: bool) -> String {
        let sequence = match tint {
            Tint::None if faint => &self.colours.faint,
            Tint::None => return text.to_owned(),
            Tint::Run => &self.colours.run,
            Tint::Cancel => &self.colours.cancel,
            Tint::Error => &self.colours.error,
            Tint::Warning => &self.colours.warning,
        };
        if sequence.is_empty() {
            text.to_owned()
        } else {
            format!("\u{1b}[{sequence}m{text}\u{1b}[0m")
        }
    }
}

fn step_row(step: &Step, index: usize, now: SystemTime) -> Row {
    let name = plain_name(&step.name);
    let is_done = step.times.is_completed();
    let (name, tint) = match &step.error {
        Some(_) if step.is_canceled() => (format!("CANCELED {name}"), Tint::Cancel),
        Some(_) => (format!("ERROR {name}"), Tint::Error),
        None if step.cached => (format!("CACHED {name}"), Tint::Run),
        None => (name, Tint::Run),
    };
    Row {
        name,
        status: String::new(),
        seconds: step.times.total(now).as_secs_f64(),
        is_done,
        colour: if is_done { tint } else { Tint::None },
        owner: Some(index),
    }
}

fn status_row(line: &super::model::StatusLine, now: SystemTime) -> Row {
    let status = &line.status;
    let end = status.completed.unwrap_or(now);
    let seconds = status
        .started
        .and_then(|start| end.duration_since(start).ok())
        .unwrap_or_default()
        .as_secs_f64();
    let mut text = match (status.total, status.current) {
        (0, 0) => String::new(),
        (0, current) => show_bytes(current),
        (total, current) => format!("{} / {}", show_bytes(current), show_bytes(total)),
    };
    if status.completed.is_none()
        && let Some(rate) = show_rate(status.current, seconds)
    {
        text = format!("{text} {rate}");
    }
    let is_done = status.completed.is_some();
    Row {
        name: format!("=> {}", plain_name(&status.id)),
        status: text,
        seconds,
        is_done,
        colour: if is_done { Tint::Run } else { Tint::None },
        owner: None,
    }
}

/// The rows that fit: the newest, and above them those that are still working instead of complete ones.
fn fit(mut rows: Vec<Row>, limit: usize) -> Vec<Row> {
    if rows.len() <= limit {
        return rows;
    }
    let newest = rows.split_off(rows.len() - limit);
    let mut kept: Vec<Row> = rows.into_iter().filter(|row| !row.is_done).collect();
    let mut to_drop = kept.len();
    let mut below: Vec<Row> = Vec::with_capacity(newest.len());
    for row in newest {
        if to_drop > 0 && row.is_done {
            to_drop -= 1;
        } else {
            below.push(row);
        }
    }
    let surplus = (kept.len() + below.len()).saturating_sub(limit);
    kept.drain(..surplus.min(kept.len()));
    kept.extend(below);
    kept
}

#[cfg(test)]
mod tests;
