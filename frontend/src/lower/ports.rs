//! EXPOSE: `[ip:][host:]port[-port][/protocol]` to `port/protocol`.

use std::net::IpAddr;

use crate::lower::format::quote;

/// What an EXPOSE word says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    /// `port/protocol`, one for each port of a range.
    pub(crate) exposed: Vec<String>,
    /// Whether the protocol is not written in lower case.
    pub(crate) has_upper_case: bool,
    /// Whether an address or a host port is given, which means nothing here.
    pub(crate) has_host: bool,
}

/// Reads one word of EXPOSE; the error says what is wrong with it.
pub(crate) fn parse(word: &str) -> Result<Ports, String> {
    let parts: Vec<&str> = word.split(':').collect();
    let (ip, host, container) = match parts.as_slice() {
        [container] => (String::new(), "", *container),
        [host, container] => (String::new(), *host, *container),
        [ip @ .., host, container] => (ip.join(":"), *host, *container),
        [] => (String::new(), "", ""),
    };
    let (range, protocol) = container.split_once('/').unwrap_or((container, ""));
    if range.is_empty() {
        return Err(format!("invalid port: {}: no port specified", quote(word)));
    }
    let lower = if protocol.is_empty() {
        "tcp".to_owned()
    } else {
        protocol.to_lowercase()
    };
    if !matches!(lower.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!(
            "invalid port: {}: invalid proto: {protocol}",
            quote(word)
        ));
    }
    let address = ip
        .strip_prefix('[')
        .and_then(|ip| ip.strip_suffix(']'))
        .unwrap_or(&ip);
    if !ip.is_empty() && address.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address: {address}"));
    }
    let (start, end) = self::range(range).ok_or_else(|| format!("invalid containerPort: {range}"))?;
    if !host.is_empty() {
        let (from, to) = self::range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
        if end - start != to - from && end != start {
            return Err(format!(
                "invalid ranges specified for container and host Ports: {range} and {host}"
            ));
        }
    }
    Ok(Ports {
        exposed: (start..=end).map(|port| format!("{port}/{lower}")).collect(),
        has_upper_case: protocol != protocol.to_lowercase(),
        has_host: !ip.is_empty() || !host.is_empty(),
    })
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end): (u16, u16) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn ports() {
        for (word, expected) in [
            ("80", Ok(vec!["80/tcp"])),
            ("53/UDP", Ok(vec!["53/udp"])),
            ("8000-8002", Ok(vec!["8000/tcp", "8001/tcp", "8002/tcp"])),
            ("8080:80", Ok(vec!["80/tcp"])),
            ("[::1]:1:2", Ok(vec!["2/tcp"])),
            ("127.0.0.1::2", Ok(vec!["2/tcp"])),
            ("", Err("no port specified")),
            ("http", Err("invalid containerPort: http")),
            ("90-80", Err("invalid containerPort: 90-80")),
            ("1/icmp", Err("invalid proto: icmp")),
            ("x:1:2", Err("invalid IP")),
            ("1-2:3-9", Err("invalid ranges specified")),
            ("70000", Err("invalid containerPort")),
        ] {
            match (parse(word), expected) {
                (Ok(ports), Ok(expected)) => assert_eq!(ports.exposed, expected),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{word}: {error}"),
                (found, expected) => panic!("{word}: {found:?}, not {expected:?}"),
            }
        }
    }
}
