//! Sizes and durations as people write and read them.
//!
//! Sizes are read like Docker reads them (`64m`, `1.5GB`: powers of 1024) and shown like BuildKit shows them
//! (`1.23MB`: powers of 1000).

/// Bytes of a size such as `64m`, `1.5 GiB` or `1024`; units are powers of 1024.
///
/// # Errors
/// A sentence that says what is wrong with the text.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let value: f64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a size, such as 64m or 2g"))?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        "p" | "pb" | "pib" => 1 << 50,
        other => {
            return Err(format!(
                "{text:?} has an unknown unit {other:?}; known are b, k, m, g, t, p"
            ));
        }
    };
    let bytes = value * factor as f64;
    if bytes >= u64::MAX as f64 {
        return Err(format!("{text:?} is too large"));
    }
    Ok(bytes as u64)
}

/// A size for people: `0B`, `237B`, `1.23kB`, `45.60MB`.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes}B"),
        _ => format!("{value:.2}{}", UNITS[unit]),
    }
}

/// A rate for people: `12.30MB/s`; nothing for times too short to tell.
pub fn show_rate(bytes: u64, seconds: f64) -> Option<String> {
    (seconds >= 0.05 && bytes > 0).then(|| format!("{}/s", show_bytes((bytes as f64 / seconds) as u64)))
}

/// Seconds of a duration such as `24h`, `1h30m`, `90s`, `7d`.
///
/// # Errors
/// A sentence that says what is wrong with the text.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("{text:?} is not a duration, such as 24h, 90m or 7d");
    let mut rest = text.trim();
    let mut seconds = 0f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let value: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let units = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len() - digits);
        seconds += value
            * match &rest[digits..digits + units] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                "w" => 604_800.0,
                _ => return Err(wrong()),
            };
        rest = &rest[digits + units..];
    }
    std::time::Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, expected) in [
            ("64m", Ok(64 << 20)),
            ("1.5g", Ok(3 << 29)),
            ("1024", Ok(1024)),
            ("2 GiB", Ok(2 << 30)),
            ("0", Ok(0)),
        ] {
            assert_eq!(parse_bytes(text), expected, "{text}");
        }
        for text in ["", "m", "-1", "12x", "1e400", "99999999999p", "1.2.3"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_as_buildkit_shows_them() {
        for (bytes, expected) in [(0, "0B"), (237, "237B"), (1000, "1.00kB"), (1_234_567, "1.23MB")] {
            assert_eq!(show_bytes(bytes), expected);
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1h30m").map(|d| d.as_secs()), Ok(5400));
        assert_eq!(parse_duration("7d").map(|d| d.as_secs()), Ok(604_800));
        for text in ["", "h", "10", "10y", "s5", "1h x"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
