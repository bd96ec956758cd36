//! A build as one HTML page that needs nothing else: what it was, its graph, its times.
//!
//! ```text
//! Record, Timeline ─▶ head: name, outcome, counts
//!                     graph: a column per depth, boxes joined by curves (SVG)
//!                     times: a bar per step over one axis (SVG)
//! ```
//!
//! No script, no address: the page may be mailed. Every text of the build is escaped.
use super::Stamp;
use super::bars::seconds;
use super::record::{Outcome, Record};
use super::timing::{TimedStep, Timeline};
use crate::progress::clip;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// Steps drawn at most; a page with more would not be looked at.
const MAX_STEPS: usize = 2000;
const BOX_WIDTH: usize = 250;
const BOX_HEIGHT: usize = 40;
const GAP_X: usize = 60;
const GAP_Y: usize = 14;
const ROW: usize = 22;
const NAMES_WIDTH: usize = 420;
const CHART_WIDTH: usize = 760;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2024; --soft: #6b7280; --line: #c9ced6; --paper: #fff; --ran: #3b82f6;
  --cached: #9ca3af; --failed: #dc2626; --path: #d97706; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --soft: #9ca3af; --line: #374151; --paper: #111418; } }
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: var(--ink); background: var(--paper); }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, dl { color: var(--soft); margin: .2rem 0; } .scroll { overflow-x: auto; }
svg { font: 12px system-ui, sans-serif; } text { fill: var(--ink); } .soft { fill: var(--soft); }
rect.box { fill: var(--paper); stroke: var(--line); } .path rect.box { stroke: var(--path); stroke-width: 2; }
path.edge { fill: none; stroke: var(--line); } path.edge.path { stroke: var(--path); stroke-width: 2; }
.ran { fill: var(--ran); } .cached { fill: var(--cached); } .failed { fill: var(--failed); }
.path .mark { fill: var(--path); } .axis { stroke: var(--line); }
pre { background: color-mix(in srgb, var(--failed) 12%, transparent); padding: .7rem; overflow-x: auto; }
";

/// Draws the page.
pub fn page(record: &Record, timeline: &Timeline) -> String {
    let name = record.name();
    let title = if name.is_empty() { &record.id } else { &name };
    let mut html = String::with_capacity(16 << 10);
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\n<style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n",
        escape(title)
    );
    head(&mut html, record);
    let path = timeline.critical_path();
    let is_on_path: Vec<bool> = (0..timeline.steps().len())
        .map(|index| path.contains(&index))
        .collect();
    graph(&mut html, timeline, &is_on_path);
    times(&mut html, timeline, &is_on_path);
    html.push_str("</body></html>\n");
    html
}

fn head(html: &mut String, record: &Record) {
    let outcome = match record.outcome() {
        Outcome::Running => "running",
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Canceled => "canceled",
    };
    let steps = record.steps;
    let _ = writeln!(
        html,
        "<p>{outcome} · began {} · took {} · {} steps, {} from the cache · build {}</p>",
        record.created,
        seconds(record.duration(Stamp::now())),
        steps.total,
        steps.cached,
        escape(&record.id)
    );
    if let Some(error) = &record.error {
        let _ = writeln!(html, "<pre>{}</pre>", escape(&error.message));
    }
}

/// How many steps must come before each one.
fn depths(timeline: &Timeline) -> Vec<usize> {
    let steps = timeline.steps();
    let mut depths = vec![None; steps.len()];
    for root in 0..steps.len() {
        // By hand, as a graph may be deeper than a thread's stack.
        let mut open = vec![root];
        while let Some(&index) = open.last() {
            if depths[index].is_some() {
                open.pop();
                continue;
            }
            let waiting: Vec<usize> = steps[index]
                .inputs
                .iter()
                .copied()
                .filter(|input| depths[*input].is_none() && !open.contains(input))
                .collect();
            if waiting.is_empty() {
                let deepest = steps[index]
                    .inputs
                    .iter()
                    .filter_map(|input| depths[*input])
                    .max();
                depths[index] = Some(deepest.map_or(0, |depth: usize| depth + 1));
                open.pop();
            } else {
                open.extend(waiting);
            }
        }
    }
    depths.into_iter().map(Option::unwrap_or_default).collect()
}

fn graph(html: &mut String, timeline: &Timeline, is_on_path: &[bool]) {
    let steps = timeline.steps();
    if steps.is_empty() || steps.len() > MAX_STEPS {
        return;
    }
    let depths = depths(timeline);
    let mut rows: Vec<usize> = vec![0; depths.iter().max().map_or(0, |deepest| deepest + 1)];
    let places: Vec<(usize, usize)> = depths
        .iter()
        .map(|depth| {
            let row = rows[*depth];
            rows[*depth] += 1;
            (depth * (BOX_WIDTH + GAP_X) + 4, row * (BOX_HEIGHT + GAP_Y) + 4)
        })
        .collect();
    let wide = rows.len() * (BOX_WIDTH + GAP_X);
    let high = rows.iter().max().unwrap_or(&0) * (BOX_HEIGHT + GAP_Y) + 8;
    let _ = writeln!(
        html,
        "<h2>Graph</h2><p>The critical path is marked: nothing else decided how long the build took.</p>\n<div class=\"scroll\"><svg width=\"{wide}\" height=\"{high}\">"
    );
    for (index, step) in steps.iter().enumerate() {
        for input in &step.inputs {
            let (from, to) = (places[*input], places[index]);
            let (x1, y1) = (from.0 + BOX_WIDTH, from.1 + BOX_HEIGHT / 2);
            let (x2, y2) = (to.0, to.1 + BOX_HEIGHT / 2);
            let middle = (x1 + x2) / 2;
            let class = if is_on_path[index] && is_on_path[*input] {
                "edge path"
            } else {
                "edge"
            };
            let _ = writeln!(
                html,
                "<path class=\"{class}\" d=\"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}\"/>"
            );
        }
    }
    for (index, step) in steps.iter().enumerate() {
        let (x, y) = places[index];
        let group = if is_on_path[index] { " class=\"path\"" } else { "" };
        let _ = writeln!(
            html,
            "<g{group}><title>{}</title><rect class=\"box\" x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"5\"/><rect class=\"{}\" x=\"{x}\" y=\"{y}\" width=\"4\" height=\"{BOX_HEIGHT}\"/><text x=\"{}\" y=\"{}\">{}</text><text class=\"soft\" x=\"{}\" y=\"{}\">{}</text></g>",
            escape(&step.name),
            class(step),
            x + 12,
            y + 17,
            escape(clip(&step.name, 34)),
            x + 12,
            y + 33,
            took(step),
        );
    }
    html.push_str("</svg></div>\n");
}

fn times(html: &mut String, timeline: &Timeline, is_on_path: &[bool]) {
    let Some((begin, end)) = timeline.span() else {
        return;
    };
    let whole = end.duration_since(begin).unwrap_or_default();
    let mut order: Vec<usize> = (0..timeline.steps().len().min(MAX_STEPS)).collect();
    order.sort_by_key(|index| timeline.steps()[*index].times().first().copied());
    let (wide, high) = (NAMES_WIDTH + CHART_WIDTH + 90, (order.len() + 1) * ROW + 8);
    let _ = writeln!(
        html,
        "<h2>Times</h2>\n<div class=\"scroll\"><svg width=\"{wide}\" height=\"{high}\">"
    );
    for quarter in 0..=4u32 {
        let x = NAMES_WIDTH + CHART_WIDTH * quarter as usize / 4;
        let _ = writeln!(
            html,
            "<line class=\"axis\" x1=\"{x}\" y1=\"{ROW}\" x2=\"{x}\" y2=\"{high}\"/><text class=\"soft\" x=\"{x}\" y=\"14\">{}</text>",
            seconds(whole * quarter / 4)
        );
    }
    for (row, index) in order.into_iter().enumerate() {
        let step = &timeline.steps()[index];
        let y = (row + 1) * ROW;
        let group = if is_on_path[index] { " class=\"path\"" } else { "" };
        let _ = write!(
            html,
            "<g{group}><title>{}</title><circle class=\"mark\" cx=\"5\" cy=\"{}\" r=\"{}\"/><text x=\"16\" y=\"{}\">{}</text>",
            escape(&step.name),
            y + ROW / 2,
            if is_on_path[index] { 3 } else { 0 },
            y + 15,
            escape(clip(&step.name, 58)),
        );
        let mut right = NAMES_WIDTH;
        for (from, to) in step.times() {
            let (x, width) = stretch(from, to, begin, whole);
            right = right.max((x + width) as usize);
            let _ = write!(
                html,
                "<rect class=\"{}\" x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\"/>",
                class(step),
                y + 4,
                ROW - 8
            );
        }
        let _ = writeln!(
            html,
            "<text class=\"soft\" x=\"{}\" y=\"{}\">{}</text></g>",
            right + 6,
            y + 15,
            took(step)
        );
    }
    html.push_str("</svg></div>\n");
}

/// Where a stretch of time begins on the chart and how wide it is; never too narrow to be seen.
fn stretch(from: SystemTime, to: SystemTime, begin: SystemTime, whole: Duration) -> (f64, f64) {
    let scale = CHART_WIDTH as f64 / whole.as_secs_f64().max(1e-9);
    let x = from.duration_since(begin).unwrap_or_default().as_secs_f64() * scale;
    let width = to.duration_since(from).unwrap_or_default().as_secs_f64() * scale;
    let x = x.min(CHART_WIDTH as f64 - 1.5);
    (NAMES_WIDTH as f64 + x, width.clamp(1.5, CHART_WIDTH as f64 - x))
}

fn class(step: &TimedStep) -> &'static str {
    match (&step.error, step.is_cached) {
        (Some(_), _) => "failed",
        (None, true) => "cached",
        (None, false) => "ran",
    }
}

fn took(step: &TimedStep) -> String {
    match step.is_cached {
        true => "cached".into(),
        false => seconds(step.took()),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::timing::tests::timeline;
    use super::*;

    #[test]
    fn a_page_names_every_step_and_escapes_it() {
        let built = timeline(&[
            ("RUN echo '<script>alert(1)</script>' && \"x\"", &[], 0, 50),
            ("side", &[], 0, 20),
            ("COPY . .", &["side"], 50, 60),
        ]);
        let mut record = Record::new("abc");
        record.attributes.insert("target".into(), "a<b".into());
        let html = page(&record, &built);
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;"));
        assert!(html.contains("(a&lt;b)") && html.contains("COPY . ."));
        assert_eq!(html.matches("class=\"edge").count(), 1);
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
        assert!(!html.contains("http"), "the page needs nothing from elsewhere");
    }

    #[test]
    fn depth_is_the_longest_way() {
        let built = timeline(&[
            ("a", &[], 0, 1),
            ("b", &["a"], 1, 2),
            ("c", &["a", "b"], 2, 3),
            ("d", &["c", "a"], 3, 4),
        ]);
        assert_eq!(depths(&built), [0, 1, 2, 3]);
    }

    #[test]
    fn a_build_without_steps_is_a_page_too() {
        assert!(page(&Record::new("abc"), &timeline(&[])).contains("abc"));
    }
}
