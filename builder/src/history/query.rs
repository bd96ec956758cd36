//! Which records: the filters of `buildx history ls --filter` and of `ListenBuildHistory`.
//!
//! Filters are alternatives; within one, parts between commas must all hold:
//!
//! | part | holds if |
//! |---|---|
//! | `ref=X` `status=X` `repository=X` (also `==`, `!=`, `~=` with a regular expression) | the field is so |
//! | `startedAt>X` `completedAt<=X` (`>` `>=` `<` `<=`) | the time is so; X is RFC 3339, or an age such as `2h` |
//! | `duration>X` | it took so long |
//!
//! `status` is one of running, completed, error, canceled.
use super::{Record, Stamp};
use crate::units::parse_duration;
use std::time::Duration;

/// Filters and a limit.
#[derive(Debug, Default)]
pub struct Query {
    alternatives: Vec<Vec<Part>>,
    /// The newest so many; 0 means all.
    pub limit: usize,
}

#[derive(Debug)]
enum Part {
    Field(Field, Test),
    Time(TimeField, Order, Stamp),
    Duration(Order, Duration),
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Ref,
    Status,
    Repository,
}

#[derive(Debug)]
enum Test {
    Present,
    Is(String),
    IsNot(String),
    Matches(regex::Regex),
}

#[derive(Clone, Copy, Debug)]
enum TimeField {
    Started,
    Completed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    AtLeast,
    AtMost,
    More,
    Less,
}

/// A filter that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The key is unknown.
    #[error(
        "unknown history filter {0:?}: known are ref, status, repository, startedAt, completedAt and duration"
    )]
    Key(String),
    /// The text is no time.
    #[error("invalid time {0}")]
    Time(String),
    /// The text is no duration.
    #[error("invalid duration {0}")]
    Duration(String),
    /// The regular expression is wrong or too large.
    #[error("invalid regular expression {0:?}")]
    Pattern(String),
}

impl Query {
    /// Reads filters; ages count back from `now`.
    ///
    /// # Errors
    /// [`QueryError`], which names the part.
    pub fn parse(filters: &[String], limit: usize, now: Stamp) -> Result<Query, QueryError> {
        let alternatives = filters.iter().map(|filter| {
            let parts = filter.split(',').map(|part| Part::parse(part.trim(), now));
            parts.collect::<Result<Vec<_>, _>>()
        });
        Ok(Query {
            alternatives: alternatives.collect::<Result<_, _>>()?,
            limit,
        })
    }

    /// Whether a record is meant.
    pub fn matches(&self, record: &Record) -> bool {
        self.alternatives.is_empty()
            || self
                .alternatives
                .iter()
                .any(|parts| parts.iter().all(|part| part.matches(record)))
    }

    /// The records that are meant, cut to the limit (the newest).
    pub fn choose(&self, records: Vec<Record>) -> Vec<Record> {
        let mut chosen: Vec<Record> = records
            .into_iter()
            .filter(|record| self.matches(record))
            .collect();
        if self.limit > 0 {
            chosen.sort_by_key(|record| std::cmp::Reverse(record.created));
            chosen.truncate(self.limit);
        }
        chosen
    }
}

impl Part {
    fn parse(text: &str, now: Stamp) -> Result<Part, QueryError> {
        const ORDERS: [(&str, Order); 4] = [
            (">=", Order::AtLeast),
            ("<=", Order::AtMost),
            (">", Order::More),
            ("<", Order::Less),
        ];
        let ordered = ORDERS
            .iter()
            .find_map(|(sign, order)| text.split_once(sign).map(|(key, value)| (key, *order, value)));
        if let Some((key, order, value)) = ordered {
            let field = match key {
                "startedAt" => TimeField::Started,
                "completedAt" => TimeField::Completed,
                "duration" => {
                    let wanted = parse_duration(value).map_err(|_| QueryError::Duration(value.into()))?;
                    return Ok(Part::Duration(order, wanted));
                }
                other => return Err(QueryError::Key(other.into())),
            };
            return Ok(Part::Time(field, order, time(value, now)?));
        }
        let (key, test) = if let Some((key, value)) = text.split_once("!=") {
            (key, Test::IsNot(value.into()))
        } else if let Some((key, value)) = text.split_once("~=") {
            let pattern = regex::RegexBuilder::new(value).size_limit(1 << 20).build();
            (
                key,
                Test::Matches(pattern.map_err(|_| QueryError::Pattern(value.into()))?),
            )
        } else if let Some((key, value)) = text.split_once('=') {
            (key, Test::Is(value.strip_prefix('=').unwrap_or(value).into()))
        } else {
            (text, Test::Present)
        };
        let field = match key {
            "ref" => Field::Ref,
            "status" => Field::Status,
            "repository" => Field::Repository,
            other => return Err(QueryError::Key(other.into())),
        };
        Ok(Part::Field(field, test))
    }

    fn matches(&self, record: &Record) -> bool {
        match self {
            Part::Field(field, test) => {
                let value = match field {
                    Field::Ref => Some(record.id.clone()),
                    Field::Status => Some(record.outcome().word().to_owned()),
                    Field::Repository => record.repository(),
                };
                match test {
                    Test::Present => value.is_some(),
                    Test::Is(wanted) => value.is_some_and(|value| value == *wanted),
                    Test::IsNot(wanted) => value.is_none_or(|value| value != *wanted),
                    Test::Matches(pattern) => value.is_some_and(|value| pattern.is_match(&value)),
                }
            }
            Part::Time(field, order, wanted) => {
                let epoch = Stamp::from(std::time::SystemTime::UNIX_EPOCH);
                let value = match field {
                    TimeField::Started => record.created,
                    TimeField::Completed => record.completed.unwrap_or(epoch),
                };
                order.holds(&value, wanted)
            }
            Part::Duration(order, wanted) => {
                let took = record
                    .completed
                    .map(|end| end.since(record.created))
                    .unwrap_or_default();
                order.holds(&took, wanted)
            }
        }
    }
}

impl Order {
    fn holds<T: PartialOrd>(self, value: &T, wanted: &T) -> bool {
        match self {
            Order::AtLeast => value >= wanted,
            Order::AtMost => value <= wanted,
            Order::More => value > wanted,
            Order::Less => value < wanted,
        }
    }
}

/// A time, or an age before `now`.
fn time(text: &str, now: Stamp) -> Result<Stamp, QueryError> {
    if let Ok(age) = parse_duration(text) {
        let then = now.system_time().checked_sub(age);
        return then.map(Stamp::from).ok_or_else(|| QueryError::Time(text.into()));
    }
    Stamp::parse(text).ok_or_else(|| QueryError::Time(text.into()))
}

#[cfg(test)]
mod tests {
    use super::super::Failure;
    use super::*;

    fn record() -> Record {
        let mut record = Record::new("abc");
        record.created = Stamp::parse("2026-01-02T10:00:00Z").expect("a time");
        record.completed = Stamp::parse("2026-01-02T10:01:30Z");
        record
            .attributes
            .insert("vcs:source".into(), "https://example.com/a".into());
        record
    }

    #[test]
    fn filters() {
        let now = Stamp::parse("2026-01-02T12:00:00Z").expect("a time");
        for (filters, expected) in [
            (&[][..], true),
            (&["ref=abc"], true),
            (&["ref==abc"], true),
            (&["ref=ab"], false),
            (&["ref~=^ab"], true),
            (&["status=completed"], true),
            (&["status=error"], false),
            (&["status!=error"], true),
            (&["status=error", "ref=abc"], true),
            (&["status=error,ref=abc"], false),
            (&["repository=https://example.com/a"], true),
            (&["repository"], true),
            (&["startedAt>3h"], true),
            (&["startedAt>1h"], false),
            (&["startedAt<=2026-01-02T10:00:00Z"], true),
            (&["completedAt>=2026-01-02T10:01:30Z,duration>1m"], true),
            (&["duration>=90s"], true),
            (&["duration<90s"], false),
        ] {
            let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
            let query = Query::parse(&filters, 0, now).expect("valid");
            assert_eq!(query.matches(&record()), expected, "{filters:?}");
        }
        for (filter, expected) in [
            ("colour=red", QueryError::Key("colour".into())),
            ("size>1", QueryError::Key("size".into())),
            ("startedAt>soon", QueryError::Time("soon".into())),
            ("duration>x", QueryError::Duration("x".into())),
            ("ref~=(", QueryError::Pattern("(".into())),
        ] {
            assert_eq!(
                Query::parse(&[filter.into()], 0, now).expect_err(filter),
                expected
            );
        }
    }

    #[test]
    fn a_failed_build_is_error_a_called_off_one_canceled() {
        let mut record = record();
        let status = |word: &str| Query::parse(&[format!("status={word}")], 0, Stamp::now()).expect("valid");
        record.error = Some(Failure {
            code: 2,
            message: "exit code: 1".into(),
        });
        assert!(status("error").matches(&record));
        record.error = Some(Failure {
            code: 1,
            message: "context canceled".into(),
        });
        assert!(status("canceled").matches(&record) && !status("error").matches(&record));
    }

    #[test]
    fn the_limit_keeps_the_newest() {
        let mut old = record();
        old.created = Stamp::parse("2025-01-01T00:00:00Z").expect("a time");
        old.id = "old".into();
        let query = Query::parse(&[], 1, Stamp::now()).expect("valid");
        let ids: Vec<_> = query
            .choose(vec![old, record()])
            .into_iter()
            .map(|r| r.id)
            .collect();
        assert_eq!(ids, ["abc"]);
    }
}
