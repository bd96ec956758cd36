//! A build's times as bars in a terminal: one line a step, the critical path marked.
//!
//! ```text
//!      0.0s                                  4.2s
//!   ▸  ████                                        0.4s  [internal] load metadata for …
//!   ▸      ██████████████████████████████████      3.6s  [build 2/3] RUN make
//!          ███                                     0.3s  [2/2] COPY …
//! ```
use super::timing::Timeline;
use crate::progress::{clip, width};
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// Columns of the chart where the terminal gives no better number.
const LEAST_CHART: usize = 20;
const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// Draws the steps that took any time within `columns`; `all` draws those of the cache as well.
pub fn bars(timeline: &Timeline, columns: usize, all: bool) -> String {
    let Some((begin, end)) = timeline.span() else {
        return "no steps\n".into();
    };
    let path = timeline.critical_path();
    let chart = (columns / 2).saturating_sub(14).max(LEAST_CHART);
    let names = columns.saturating_sub(chart + 15).max(20);
    let whole = end.duration_since(begin).unwrap_or_default();
    let mut text = String::new();
    let total = seconds(whole);
    let _ = writeln!(
        text,
        "     0s{}{total}",
        " ".repeat(chart.saturating_sub(2 + width(&total)))
    );
    let mut order: Vec<usize> = (0..timeline.steps().len()).collect();
    order.sort_by_key(|index| timeline.steps()[*index].times().first().copied());
    let mut hidden = 0;
    for index in order {
        let step = &timeline.steps()[index];
        if step.is_cached && !all && !path.contains(&index) {
            hidden += 1;
            continue;
        }
        let sign = if path.contains(&index) { "▸" } else { " " };
        let line = bar(&step.times(), begin, whole, chart);
        let took = if step.is_cached {
            "cached".to_owned()
        } else {
            seconds(step.took())
        };
        let failed = if step.error.is_some() { "✗ " } else { "" };
        let name = clip(&step.name, names);
        let _ = writeln!(text, "  {sign}  {line} {took:>7}  {failed}{name}");
    }
    if hidden > 0 {
        let _ = writeln!(
            text,
            "     {hidden} cached steps are not shown (--all shows them)"
        );
    }
    let decided: Duration = path.iter().map(|index| timeline.steps()[*index].took()).sum();
    let share = if whole.is_zero() {
        0.0
    } else {
        100.0 * decided.as_secs_f64() / whole.as_secs_f64()
    };
    let _ = writeln!(
        text,
        "critical path (▸): {} steps, {} of {} ({:.0} %)",
        path.len(),
        seconds(decided),
        total,
        share.min(100.0)
    );
    text
}

/// `0.4s`, `65.0s`; milliseconds below a tenth of a second.
pub(super) fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        short if short < 0.1 => format!("{:.1}ms", short * 1000.0),
        long => format!("{long:.1}s"),
    }
}

fn bar(times: &[(SystemTime, SystemTime)], begin: SystemTime, whole: Duration, chart: usize) -> String {
    // In eighths of a column.
    let scale = |time: SystemTime| {
        let part =
            time.duration_since(begin).unwrap_or_default().as_secs_f64() / whole.as_secs_f64().max(1e-9);
        (part.min(1.0) * (chart * 8) as f64).round() as usize
    };
    let mut cells = vec![0u8; chart];
    for (start, end) in times {
        let (from, to) = (scale(*start), scale(*end));
        // Whatever worked is seen.
        let to = to.max(from + 1).min(chart * 8);
        let from = from.min(to - 1);
        for (column, cell) in cells.iter_mut().enumerate() {
            let overlap = to.min(column * 8 + 8).saturating_sub(from.max(column * 8));
            *cell = (*cell + overlap as u8).min(8);
        }
    }
    let cells = cells.into_iter().map(|filled| match filled {
        0 => ' ',
        8 => '█',
        some => EIGHTHS[usize::from(some) - 1],
    });
    cells.collect()
}

#[cfg(test)]
mod tests {
    use super::super::timing::tests::{at, timeline};
    use super::*;

    #[test]
    fn a_chart() {
        let built = timeline(&[
            ("load", &[], 0, 100),
            ("old", &[], 100, 100),
            ("slow", &["load"], 100, 900),
            ("side", &["load"], 100, 300),
            ("export", &["slow"], 900, 1000),
        ]);
        let drawn = bars(&built, 68, false);
        let expected = "     0s              1.0s
  ▸  ██                      0.1s  load
       ████                  0.2s  side
  ▸    ████████████████      0.8s  slow
  ▸                    ██    0.1s  export
     1 cached steps are not shown (--all shows them)
critical path (▸): 3 steps, 1.0s of 1.0s (100 %)
";
        assert_eq!(drawn, expected);
        assert!(bars(&built, 68, true).contains("cached  old"));
    }

    #[test]
    fn the_shortest_step_is_seen_and_nothing_leaves_the_chart() {
        let whole = Duration::from_secs(1000);
        for (from, to) in [
            (0, 0),
            (0, 1),
            (999_999, 1_000_000),
            (1_000_000, 1_000_000),
            (5, 2_000_000),
        ] {
            let line = bar(&[(at(from), at(to))], at(0), whole, 20);
            assert_eq!(line.chars().count(), 20);
            assert!(!line.trim().is_empty(), "{from} {to}");
        }
        assert_eq!(
            bar(&[(at(0), at(0))], at(0), Duration::ZERO, 20).chars().count(),
            20
        );
    }

    #[test]
    fn nothing_to_draw() {
        assert_eq!(bars(&timeline(&[]), 80, false), "no steps\n");
    }
}
