//! Sizes and durations as `buildkitd.toml` has them: `512000000`, `"512MB"`, `"10%"`; `172800`, `"48h"`.
use crate::units;
use std::time::Duration;

/// Bytes, or a part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// So many bytes.
    Bytes(u64),
    /// So much of the disk the store is on, in percent.
    Percent(u64),
}

impl Space {
    /// Bytes on a disk of this size; a part of it is rounded up to gigabytes, as in BuildKit.
    pub fn bytes(self, disk: u64) -> u64 {
        match self {
            Space::Bytes(bytes) => bytes,
            Space::Percent(part) => {
                let share = u128::from(disk) * u128::from(part) / 100;
                let rounded = ((share >> 30) + 1).saturating_mul(1_000_000_000);
                u64::try_from(rounded).unwrap_or(u64::MAX)
            }
        }
    }
}

pub(super) fn bytes(number: i64) -> Result<Space, String> {
    u64::try_from(number)
        .map(Space::Bytes)
        .map_err(|_| "must not be negative".to_owned())
}

pub(super) fn space(text: &str) -> Result<Space, String> {
    match text.strip_suffix('%') {
        Some(part) => match part.parse() {
            Ok(part @ 0..=100) => Ok(Space::Percent(part)),
            _ => Err(format!("{text:?} is not a part of the disk, such as 10%")),
        },
        None => units::parse_bytes(text).map(Space::Bytes),
    }
}

/// A duration with units, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => units::parse_duration(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("512MB", Some(Space::Bytes(512 << 20))),
            ("10%", Some(Space::Percent(10))),
            ("0", Some(Space::Bytes(0))),
            ("1.5g", Some(Space::Bytes(3 << 29))),
            ("101%", None),
            ("-1%", None),
            ("lots", None),
            ("", None),
        ] {
            assert_eq!(space(text).ok(), expected, "{text}");
        }
        assert_eq!(Space::Percent(10).bytes(100 << 30), 11_000_000_000);
        assert_eq!(Space::Percent(100).bytes(u64::MAX), 17_179_869_184_000_000_000);
    }

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("172800", Some(172_800.0)),
            ("48h", Some(172_800.0)),
            ("1h30m", Some(5400.0)),
            ("1.5s", Some(1.5)),
            ("250ms", Some(0.25)),
            ("", None),
            ("h", None),
            ("3 days", None),
            ("1h-3s", None),
            ("9999999999999999999999h", None),
        ] {
            assert_eq!(
                duration(text).ok().map(|found| found.as_secs_f64()),
                seconds,
                "{text}"
            );
        }
    }
}
