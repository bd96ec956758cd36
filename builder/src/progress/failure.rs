//! The last lines of each failed step, shown below everything else.
use super::model::Model;
use super::text::{plain_line, plain_name};
use std::fmt::Write;

/// A block per failed step: its name and the end of its output; empty if none failed.
pub(super) fn failures(model: &Model, colour: bool) -> String {
    let mut out = String::new();
    for index in model.visible() {
        let step = model.step(index);
        // What failed without a word is told by the error itself.
        if !step.is_failed() || step.output.last_lines().next().is_none() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(out, "------\n > {}:", plain_name(&step.name));
        for (seconds, line) in step.output.last_lines() {
            let _ = writeln!(out, "{} {}", since_start(*seconds), plain_line(line, colour));
        }
        out.push_str("------\n");
    }
    out
}

/// Seconds since a step began, in five columns or so.
pub(super) fn since_start(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.3}"),
        s if s < 100.0 => format!("{s:.2}"),
        s => format!("{s:.1}"),
    }
}
