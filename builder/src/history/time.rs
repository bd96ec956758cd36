//! A point in time, kept and shown as RFC 3339 in UTC, to the nanosecond.
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;
use std::time::{Duration, SystemTime};

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(SystemTime);

impl Stamp {
    /// The present.
    pub fn now() -> Stamp {
        Stamp(SystemTime::now())
    }

    /// The same for the rest of the program.
    pub fn system_time(self) -> SystemTime {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Stamp) -> Duration {
        self.0.duration_since(earlier.0).unwrap_or_default()
    }

    /// Reads RFC 3339.
    pub fn parse(text: &str) -> Option<Stamp> {
        let time: jiff::Timestamp = text.parse().ok()?;
        Some(Stamp(time.into()))
    }
}

impl From<SystemTime> for Stamp {
    fn from(time: SystemTime) -> Stamp {
        Stamp(time)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::try_from(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => f.write_str("an impossible time"),
        }
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Stamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        Stamp::parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no RFC 3339 time")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let time = Stamp(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 120_000_005));
        let text = serde_json::to_string(&time).expect("a stamp is text");
        assert_eq!(text, "\"2023-11-14T22:13:20.120000005Z\"");
        assert_eq!(serde_json::from_str::<Stamp>(&text).expect("its own text"), time);
        assert!(serde_json::from_str::<Stamp>("\"yesterday\"").is_err());
    }
}
