//! The cache config: which keys lead to which keys, and to which layers.
//!
//! | field | is |
//! |---|---|
//! | `layers[].parent` | the layer beneath; -1 for none. Go leaves out a zero, so nothing said means layer 0 |
//! | `records[].digest` | the root key of the op's digest and output; of content, of the content and -1 |
//! | `records[].inputs[i][]` | the records that input `i` may be known by, with the part of it that matters |
//! | `records[].layers[]` | a result: its topmost layer |
//! | `records[].chains[]` | a result: all its layers, for images whose layers lie in another order |
use super::RemoteCacheError;
use oci::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::time::SystemTime;

/// The media type of a cache config.
pub const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";

/// A cache config; fields in the order Go's encoder prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheConfig {
    /// Every layer some result has.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub layers: Vec<CacheLayer>,
    /// The keys.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub records: Vec<CacheRecord>,
}

/// A layer on top of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLayer {
    /// The packed layer.
    pub blob: Digest,
    /// The layer beneath; -1 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parent: i64,
}

/// A key, with how it is reached and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// Results by their topmost layer.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub layers: Vec<CacheResult>,
    /// Results by all their layers.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub chains: Vec<Chain>,
    /// The root key of the op's digest and output.
    pub digest: Digest,
    /// Per input, the records it may be known by.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub inputs: Vec<Vec<CacheInput>>,
}

/// A result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheResult {
    /// Its topmost layer.
    pub layer: i64,
    /// When it was made.
    #[serde(rename = "createdAt", default)]
    pub created: Time,
}

/// A result whose layers are listed, the lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Its layers.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<i64>,
    /// When it was made.
    #[serde(rename = "createdAt", default)]
    pub created: Time,
}

/// One key an input may be known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheInput {
    /// The part of it that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Digest>,
    /// The record of the key.
    pub link: i64,
}

impl CacheConfig {
    /// Reads a config; what its indexes mean is checked where they are used.
    ///
    /// # Errors
    /// The bytes are no cache config.
    pub fn parse(bytes: &[u8]) -> Result<CacheConfig, RemoteCacheError> {
        serde_json::from_slice(bytes).map_err(|error| RemoteCacheError::invalid("the cache config", error))
    }

    /// The records alone, as an image config holds them.
    ///
    /// # Errors
    /// The bytes are no list of records.
    pub fn parse_records(bytes: &[u8]) -> Result<Vec<CacheRecord>, RemoteCacheError> {
        let records: Option<Vec<CacheRecord>> = serde_json::from_slice(bytes)
            .map_err(|error| RemoteCacheError::invalid("the cache in the image config", error))?;
        Ok(records.unwrap_or_default())
    }

    /// The bytes BuildKit would write.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        oci::go_json(self, false)
    }
}

/// When a result was made, as RFC 3339; times before 1970 (Go's zero) are 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub SystemTime);

impl Default for Time {
    fn default() -> Time {
        Time(SystemTime::UNIX_EPOCH)
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = jiff::Timestamp::try_from(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        time.fmt(f)
    }
}

impl std::str::FromStr for Time {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Time, jiff::Error> {
        let time: jiff::Timestamp = text.parse()?;
        Ok(Time(time.max(jiff::Timestamp::UNIX_EPOCH).into()))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|error| D::Error::custom(format!("{text:?} is no time: {error}")))
    }
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_buildkit_wrote_is_written_again_byte_by_byte() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let text = format!(
            concat!(
                r#"{{"layers":[{{"blob":"sha256:{a}","parent":-1}},{{"blob":"sha256:{b}"}}],"#,
                r#""records":[{{"digest":"sha256:{a}"}},"#,
                r#"{{"layers":[{{"layer":1,"createdAt":"2026-11-20T22:13:20.120000005Z"}}],"digest":"sha256:{b}","#,
                r#""inputs":[[{{"link":0}},{{"selector":"sha256:{a}","link":0}}]]}}]}}"#
            ),
            a = a,
            b = b
        );
        let config = CacheConfig::parse(text.as_bytes()).expect("a config");
        assert_eq!(config.layers[1].parent, 0);
        assert_eq!(String::from_utf8_lossy(&config.to_json()), text);
    }

    #[test]
    fn go_writes_null_and_leaves_out() {
        let text = format!(
            r#"{{"layers":null,"records":[{{"digest":"sha256:{}","chains":[{{"layers":[0],"createdAt":"0001-01-01T00:00:00Z"}}]}}]}}"#,
            "a".repeat(64)
        );
        let config = CacheConfig::parse(text.as_bytes()).expect("a config");
        assert!(config.layers.is_empty());
        assert_eq!(config.records[0].chains[0].created, Time::default());
        for wrong in [
            "",
            r#"{"records":[{"digest":"random:aa"}]}"#,
            r#"{"records":[{}]}"#,
        ] {
            assert!(CacheConfig::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
