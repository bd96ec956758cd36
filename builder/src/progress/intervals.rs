//! The times in which a step worked; overlapping ones count once.
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// Intervals by their start; the same start again replaces its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals(BTreeMap<SystemTime, Option<SystemTime>>);

impl Intervals {
    /// Notes an interval, open if it has no end; true if that is news.
    pub fn set(&mut self, started: SystemTime, completed: Option<SystemTime>) -> bool {
        self.0.insert(started, completed) != Some(completed)
    }

    /// True once anything began.
    pub fn is_started(&self) -> bool {
        !self.0.is_empty()
    }

    /// True if something began and nothing is open.
    pub fn is_completed(&self) -> bool {
        self.is_started() && self.0.values().all(Option::is_some)
    }

    /// When the latest interval began.
    pub fn latest_start(&self) -> Option<SystemTime> {
        self.merged(SystemTime::UNIX_EPOCH)
            .last()
            .map(|(start, _)| *start)
    }

    /// When the last one ended; `None` while one is open.
    pub fn ended(&self) -> Option<SystemTime> {
        if !self.is_completed() {
            return None;
        }
        self.0.values().flatten().max().copied()
    }

    /// The time worked until `now`.
    pub fn total(&self, now: SystemTime) -> Duration {
        self.merged(now)
            .iter()
            .map(|(start, end)| end.duration_since(*start).unwrap_or_default())
            .sum()
    }

    /// The intervals in order, joined where they touch; what is open ends `now`.
    pub fn merged(&self, now: SystemTime) -> Vec<(SystemTime, SystemTime)> {
        let mut merged: Vec<(SystemTime, SystemTime)> = Vec::new();
        for (&start, &end) in &self.0 {
            let end = end.unwrap_or(now.max(start));
            match merged.last_mut() {
                Some((_, last)) if *last >= start => *last = (*last).max(end),
                _ => merged.push((start, end)),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn times_add_up_and_overlaps_count_once() {
        let mut times = Intervals::default();
        assert!(!times.is_started() && !times.is_completed());
        assert!(times.set(at(0), None));
        assert!(!times.set(at(0), None));
        assert_eq!(times.total(at(3)), Duration::from_secs(3));
        assert!(times.set(at(0), Some(at(2))));
        times.set(at(1), Some(at(4)));
        times.set(at(10), Some(at(11)));
        assert_eq!(times.total(at(99)), Duration::from_secs(5));
        assert_eq!(times.latest_start(), Some(at(10)));
        assert_eq!(times.ended(), Some(at(11)));
    }

    #[test]
    fn a_clock_that_goes_back_is_no_panic() {
        let mut times = Intervals::default();
        times.set(at(5), Some(at(3)));
        assert_eq!(times.total(at(1)), Duration::ZERO);
    }
}
