//! PAX records of an archive's extended headers, taken apart strictly: what is malformed is an error.
//!
//! ```text
//! "30 mtime=1700000000.123456789\n" "16 path=dir/f\n"  ─▶ what overrides the next header's fields
//! ```
//!
//! Rules as in POSIX pax and Go's reader: an empty value leaves the header's own; global records have no effect.

use std::collections::BTreeMap;

use tree::Timestamp;

/// The most bytes one extended header, long name or long link may have.
pub(super) const MAX_BYTES: u64 = 1024 * 1024;

/// What extended headers say of the next entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.*`: the file has holes that are not in the archive.
    pub(super) sparse: bool,
}

/// Reads the records of one extended header.
///
/// # Errors
/// What is malformed, in words.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Overrides, String> {
    let mut found = Overrides::default();
    while !bytes.is_empty() {
        let (key, value, rest) = next_record(bytes)?;
        bytes = rest;
        if !value.is_empty() {
            found.take(key, value)?;
        }
    }
    Ok(found)
}

/// Key, value, and what follows the record.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn next_record(bytes: &[u8]) -> Result<Record<'_>, String> {
    let malformed = || "malformed PAX record".to_owned();
    let space = bytes
        .iter()
        .take(20)
        .position(|&byte| byte == b' ')
        .ok_or_else(malformed)?;
    let length = usize::try_from(number(&bytes[..space])?).map_err(|_| malformed())?;
    if length < 5 || length > bytes.len() || length <= space + 1 || bytes[length - 1] != b'\n' {
        return Err(malformed());
    }
    let record = &bytes[space + 1..length - 1];
    let equals = record
        .iter()
        .position(|&byte| byte == b'=')
        .ok_or_else(malformed)?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    if key.is_empty() || key.contains(&0) || (is_text && value.contains(&0)) {
        return Err(malformed());
    }
    Ok((key, value, &bytes[length..]))
}

impl Overrides {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                } else if key.starts_with(b"GNU.sparse.") {
                    self.sparse = true;
                }
            }
        }
        Ok(())
    }

    /// Whether the archive stored a file's holes apart.
    pub(super) fn is_sparse(&self) -> bool {
        self.sparse
    }
}

fn number(text: &[u8]) -> Result<u64, String> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let parsed = digits
        .then(|| std::str::from_utf8(text).ok()?.parse().ok())
        .flatten();
    parsed.ok_or_else(|| format!("PAX number {:?} is none", String::from_utf8_lossy(text)))
}

/// Seconds since 1970, with a sign and a fraction where there are any.
fn time(text: &[u8]) -> Result<Timestamp, String> {
    let bad = || format!("PAX time {:?} is none", String::from_utf8_lossy(text));
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match digits.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let secs = i64::try_from(number(whole).map_err(|_| bad())?).map_err(|_| bad())?;
    let nanos = fraction
        .iter()
        .chain(&[b'0'; 9])
        .take(9)
        .fold(0_u32, |sum, &digit| sum * 10 + u32::from(digit - b'0'));
    Ok(match (negative, nanos) {
        (false, _) => Timestamp { secs, nanos },
        (true, 0) => Timestamp {
            secs: -secs,
            nanos: 0,
        },
        (true, _) => Timestamp {
            secs: -secs - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_override_fields() {
        let found = parse(b"14 path=a/bcd\n13 size=1234\n22 mtime=-1.250000000\n9 uid=70\n9 gid=\n")
            .expect_err("gid");
        assert_eq!(found, "malformed PAX record");
        let found =
            parse(b"14 path=a/bcd\n13 size=1234\n18 mtime=-1.25000\n10 uid=70\n7 gid=\n").expect("whole");
        assert_eq!(found.path.as_deref(), Some(&b"a/bcd"[..]));
        assert_eq!((found.size, found.uid, found.gid), (Some(1234), Some(70), None));
        assert_eq!(
            found.mtime,
            Some(Timestamp {
                secs: -2,
                nanos: 750_000_000
            })
        );
    }

    #[test]
    fn malformed_records_are_errors() {
        for bad in [
            &b"99 path=a\n"[..],
            b"9 path=a",
            b"path=a\n",
            b"-9 path=a\n",
            b"+10 path=a\n",
            b"10 path=a\0\n",
            b"8 path\nxx",
            b"6 =abc\n",
            b"12 size=0x10\n",
            b"12 size=-100\n",
            b"33 size=999999999999999999999999\n",
            b"14 mtime=1.2.3\n",
            b"0 \n",
        ] {
            assert!(parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
