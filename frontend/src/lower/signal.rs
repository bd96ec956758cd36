//! Names of signals, for STOPSIGNAL.

const NAMES: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Whether a text names a signal: a number but 0, or a name with or without `SIG`.
pub(crate) fn is_known(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix: &str, limit: u32| {
        let offset = name
            .strip_prefix(prefix)
            .filter(|offset| offset.bytes().all(|b| b.is_ascii_digit()));
        offset
            .and_then(|offset| offset.parse::<u32>().ok())
            .is_some_and(|offset| (1..=limit).contains(&offset))
    };
    NAMES.contains(&name) || real_time("RTMIN+", 15) || real_time("RTMAX-", 14)
}

#[cfg(test)]
mod tests {
    use super::is_known;

    #[test]
    fn signals() {
        for (text, expected) in [
            ("SIGTERM", true),
            ("kill", true),
            ("9", true),
            ("0", false),
            ("SIGRTMIN+3", true),
            ("RTMAX-15", false),
            ("NOPE", false),
        ] {
            assert_eq!(is_known(text), expected, "{text}");
        }
    }
}
