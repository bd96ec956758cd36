//! What a step sees of the network: its files `/etc/hosts` and `/etc/resolv.conf`.
//!
//! | from | into |
//! |---|---|
//! | the daemon's `[dns]`, else the machine's `resolv.conf` (systemd-resolved's own where the stub is listed) | `/etc/resolv.conf`, without loopback servers unless the step uses the machine's network |
//! | `--add-host` and the step's host name | `/etc/hosts` |
use llb::op::HostIp;
use std::{fmt::Write as _, fs, net::IpAddr};

/// Servers for a machine that names none a step could reach, as BuildKit has them.
const FALLBACK_SERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];
/// systemd-resolved's stub, which only the machine itself can reach.
const STUB: &str = "127.0.0.53";

/// The step's `/etc/hosts`.
pub(crate) fn hosts(hostname: &str, extra: &[HostIp]) -> Vec<u8> {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for host in extra {
        let _ = writeln!(text, "{}\t{}", host.ip, host.host);
    }
    text.into_bytes()
}

/// Name servers of steps; what is empty is taken from the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of servers.
    pub nameservers: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
    /// Domains that are searched.
    pub search_domains: Vec<String>,
}

impl Dns {
    /// A machine's `resolv.conf` with these instead of its own.
    fn over(&self, text: &str) -> String {
        let groups = [
            ("nameserver", &self.nameservers),
            ("search", &self.search_domains),
            ("options", &self.options),
        ];
        let is_replaced = |line: &&str| {
            let word = line.split_whitespace().next().unwrap_or_default();
            let word = if word == "domain" { "search" } else { word };
            groups
                .iter()
                .any(|(name, values)| *name == word && !values.is_empty())
        };
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| !is_replaced(line))
            .map(str::to_owned)
            .collect();
        lines.extend(
            self.nameservers
                .iter()
                .map(|server| format!("nameserver {server}")),
        );
        let of_one_line = groups.iter().skip(1).filter(|(_, values)| !values.is_empty());
        lines.extend(of_one_line.map(|(name, values)| format!("{name} {}", values.join(" "))));
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// The step's `/etc/resolv.conf`.
pub(crate) fn resolv_conf(dns: &Dns, is_host_network: bool) -> Vec<u8> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut text = read("/etc/resolv.conf");
    let servers: Vec<&str> = text.lines().filter_map(server).collect();
    if servers == [STUB] && !is_host_network {
        text = read("/run/systemd/resolve/resolv.conf");
    }
    filtered(&dns.over(&text), is_host_network).into_bytes()
}

fn server(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver"))
        .then(|| words.next())
        .flatten()
}

fn filtered(text: &str, is_host_network: bool) -> String {
    let is_reachable = |line: &&str| match server(line) {
        Some(server) if !is_host_network => !server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        _ => true,
    };
    let mut kept: Vec<&str> = text.lines().filter(is_reachable).collect();
    let fallback: Vec<String> = FALLBACK_SERVERS
        .iter()
        .map(|server| format!("nameserver {server}"))
        .collect();
    if !kept.iter().any(|line| server(line).is_some()) {
        kept.extend(fallback.iter().map(String::as_str));
    }
    kept.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_takes_the_place_of_the_machines() {
        let machine = "# made by hand\nnameserver 10.0.0.1\ndomain lan\noptions ndots:2\n";
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (dns, expected) in [
            (Dns::default(), machine.to_owned()),
            (
                Dns {
                    nameservers: words(&["1.1.1.1", "9.9.9.9"]),
                    ..Dns::default()
                },
                "# made by hand\ndomain lan\noptions ndots:2\nnameserver 1.1.1.1\nnameserver 9.9.9.9\n"
                    .to_owned(),
            ),
            (
                Dns {
                    options: words(&["edns0"]),
                    search_domains: words(&["a.b", "c"]),
                    ..Dns::default()
                },
                "# made by hand\nnameserver 10.0.0.1\nsearch a.b c\noptions edns0\n".to_owned(),
            ),
        ] {
            assert_eq!(dns.over(machine), expected);
        }
    }

    #[test]
    fn servers_a_step_cannot_reach_are_left_out() {
        for (text, is_host, expected) in [
            (
                "nameserver 10.0.0.1\nsearch x\n",
                false,
                "nameserver 10.0.0.1\nsearch x\n",
            ),
            (
                "nameserver 127.0.0.1\nnameserver 1.1.1.1\n",
                false,
                "nameserver 1.1.1.1\n",
            ),
            ("nameserver 127.0.0.1\n", true, "nameserver 127.0.0.1\n"),
            (
                "search x\n",
                false,
                "search x\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n",
            ),
            (
                "nameserver ::1\n",
                false,
                "nameserver 8.8.8.8\nnameserver 8.8.4.4\n",
            ),
        ] {
            assert_eq!(filtered(text, is_host), expected, "{text:?}");
        }
    }

    #[test]
    fn hosts_name_the_step_and_what_was_added() {
        let extra = [HostIp {
            host: "db".into(),
            ip: "10.0.0.2".into(),
        }];
        let text = String::from_utf8(hosts("me", &extra)).expect("text");
        assert_eq!(
            text,
            "127.0.0.1\tlocalhost me\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.2\tdb\n"
        );
    }
}
