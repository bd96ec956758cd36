//! Holds a vertex's output to a size and a rate, and keeps the end of what was left out.
//!
//! ```text
//! bytes ─▶ within the limits? ─ yes ─▶ shown
//!                └─ no ─▶ one notice, then into the tail ─ failed ─▶ shown after all
//! ```

use std::collections::VecDeque;
use std::time::SystemTime;

/// How much of its output a vertex may show, per stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes in all; `None` is without limit.
    pub size: Option<u64>,
    /// Bytes per second, averaged since the vertex started; `None` is without limit.
    pub rate: Option<u64>,
}

impl Default for LogLimits {
    /// 2 MiB in all, 200 KiB per second.
    fn default() -> Self {
        Self {
            size: Some(2 << 20),
            rate: Some(200 << 10),
        }
    }
}

/// How much of what was left out is kept for showing after a failure.
const TAIL_BYTES: usize = 256 << 10;

/// One stream of one vertex.
pub(super) struct Limiter {
    limits: LogLimits,
    shown: u64,
    is_clipped: bool,
    tail: VecDeque<u8>,
}

impl Limiter {
    pub(super) fn new(limits: LogLimits) -> Self {
        Self {
            limits,
            shown: 0,
            is_clipped: false,
            tail: VecDeque::new(),
        }
    }

    /// What to show instead of `data`; empty for nothing.
    pub(super) fn pass(&mut self, data: &[u8], started: SystemTime, now: SystemTime) -> Vec<u8> {
        let after = self.shown.saturating_add(data.len() as u64);
        let notice = match self.exceeded(after, started, now) {
            None => {
                self.is_clipped = false;
                self.tail.clear();
                self.shown = after;
                return data.to_vec();
            }
            Some(notice) => notice,
        };
        self.keep(data);
        if std::mem::replace(&mut self.is_clipped, true) {
            Vec::new()
        } else {
            notice.into_bytes()
        }
    }

    fn exceeded(&self, bytes: u64, started: SystemTime, now: SystemTime) -> Option<String> {
        if let Some(size) = self.limits.size
            && bytes > size
        {
            return Some(format!("[output clipped, log limit {} reached]\n", human(size)));
        }
        // The first second is free, or a burst at the start would be cut at once.
        let seconds = now
            .duration_since(started)
            .unwrap_or_default()
            .as_secs_f64()
            .max(1.0);
        if let Some(rate) = self.limits.rate
            && bytes as f64 / seconds > rate as f64
        {
            return Some(format!("[output clipped, log limit {}/s reached]\n", human(rate)));
        }
        None
    }

    fn keep(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(TAIL_BYTES)..];
        let excess = (self.tail.len() + data.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        self.tail.extend(data);
    }

    /// The end of what was left out, if the output was being left out last.
    pub(super) fn take_tail(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.tail).into()
    }
}

fn human(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
        b => format!("{b}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn output_is_cut_at_the_size_once() {
        let mut limiter = Limiter::new(LogLimits {
            size: Some(1024),
            rate: None,
        });
        assert_eq!(limiter.pass(&[1; 1000], START, START), vec![1; 1000]);
        assert_eq!(
            limiter.pass(&[2; 100], START, START),
            b"[output clipped, log limit 1KiB reached]\n"
        );
        assert_eq!(limiter.pass(&[3; 100], START, START), b"");
        let expected: Vec<u8> = [[2; 100], [3; 100]].concat();
        assert_eq!(limiter.take_tail(), expected);
    }

    #[test]
    fn output_is_cut_at_the_rate_and_goes_on_when_slower() {
        let mut limiter = Limiter::new(LogLimits {
            size: None,
            rate: Some(100),
        });
        assert_eq!(limiter.pass(&[1; 100], START, START), vec![1; 100]);
        assert_eq!(
            limiter.pass(&[2; 1], START, START),
            b"[output clipped, log limit 100B/s reached]\n"
        );
        let later = START + Duration::from_secs(2);
        assert_eq!(limiter.pass(&[3; 50], START, later), vec![3; 50]);
        assert_eq!(
            limiter.take_tail(),
            b"",
            "what was left out is old news once output goes on"
        );
    }

    #[test]
    fn the_tail_is_bounded() {
        let mut limiter = Limiter::new(LogLimits {
            size: Some(0),
            rate: None,
        });
        limiter.pass(&vec![1; TAIL_BYTES], START, START);
        limiter.pass(&[2; 10], START, START);
        limiter.pass(&vec![3; TAIL_BYTES - 5], START, START);
        let tail = limiter.take_tail();
        assert_eq!(tail.len(), TAIL_BYTES);
        assert_eq!(tail[..5], [2; 5]);
    }
}
