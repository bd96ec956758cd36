//! Attributes, as clients send them, to [`Options`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use llb::LinuxResources;
use llb::op::{HostIp, NetMode, Ulimit};
use oci::Platform;

use super::{NoCache, Options};
use crate::gateway::ResolveMode;

/// An attribute that cannot be obeyed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// A value that makes no sense.
    #[error("invalid {name} {value:?}: {reason}")]
    Invalid {
        /// Which attribute.
        name: String,
        /// What it says.
        value: String,
        /// What it should be.
        reason: String,
    },
    /// An attribute that means nothing to this frontend.
    #[error("unknown option {name:?}")]
    Unknown {
        /// Which.
        name: String,
    },
    /// Two that cannot both be.
    #[error("several platforms were asked for, and multi-platform=false")]
    SeveralPlatforms,
}

impl Options {
    /// Reads the attributes of a request. Build arguments that steer the build itself
    /// (`BUILDKIT_SYNTAX` and the like) are obeyed and stay build arguments, as they always did.
    ///
    /// # Errors
    /// For values that make no sense and for attributes nobody knows.
    pub fn from_attributes(attributes: &BTreeMap<String, String>) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        // Some clients choose under which name the address of a remote context is given.
        let context_key = attributes.get("contextkey").map_or("context", String::as_str);
        options.context = attributes
            .get(context_key)
            .filter(|context| !context.is_empty())
            .cloned();
        for (name, value) in attributes.iter().filter(|(name, _)| *name != context_key) {
            match name.split_once(':') {
                Some((prefix, rest)) => options.prefixed(name, prefix, rest, value)?,
                None => options.plain(name, value)?,
            }
        }
        options.steering_args()?;
        if options.multi_platform == Some(false) && options.platforms.len() > 1 {
            return Err(OptionsError::SeveralPlatforms);
        }
        Ok(options)
    }

    fn prefixed(&mut self, name: &str, prefix: &str, rest: &str, value: &str) -> Result<(), OptionsError> {
        let (key, value) = (rest.to_owned(), value.to_owned());
        match prefix {
            "build-arg" => self.build_args.insert(key, value),
            "label" => self.labels.insert(key, value),
            "context" => self.named_contexts.insert(key, value),
            "local-sessionid" => self.local_sessions.insert(key, value),
            "sharedkey" => match rest.strip_prefix("localdir:") {
                Some(context) => self.shared_keys.insert(context.to_owned(), value),
                None => None,
            },
            // Answered by whoever runs the frontend, not by the frontend itself.
            "attest" | "vcs" | "input-metadata" => None,
            _ => {
                return Err(OptionsError::Unknown {
                    name: name.to_owned(),
                });
            }
        };
        Ok(())
    }

    fn plain(&mut self, name: &str, value: &str) -> Result<(), OptionsError> {
        let text = value.to_owned();
        match name {
            "target" => self.target = Some(text).filter(|target| !target.is_empty()),
            "filename" => self.filename = text,
            "contextsubdir" => self.context_subdir = Some(text),
            "contextkey" => {}
            "dockerfilekey" => {
                self.dockerfile_name = text;
                self.force_local_dockerfile = true;
            }
            "platform" => self.platforms = platforms(value)?,
            "multi-platform" if value.is_empty() => {}
            "multi-platform" => self.multi_platform = Some(boolean(name, value)?),
            "no-cache" if value.is_empty() => self.no_cache = NoCache::All,
            "no-cache" => self.no_cache = NoCache::Stages(value.split(',').map(str::to_owned).collect()),
            "image-resolve-mode" => {
                self.resolve_mode = match value {
                    "" | "default" => ResolveMode::Default,
                    "pull" => ResolveMode::Pull,
                    "local" => ResolveMode::Local,
                    _ => return Err(invalid(name, value, "it must be default, pull or local")),
                }
            }
            "force-network-mode" => {
                self.network = match value {
                    "" | "sandbox" => NetMode::Sandbox,
                    "host" => NetMode::Host,
                    "none" => NetMode::None,
                    _ => return Err(invalid(name, value, "it must be sandbox, host or none")),
                }
            }
            "add-hosts" => self.extra_hosts = hosts(name, value)?,
            "ulimit" => self.ulimits = ulimits(name, value)?,
            "shm-size" if value.is_empty() => {}
            "shm-size" => self.shm_size = number(name, value)?,
            "cgroup-parent" => self.cgroup_parent = text,
            "hostname" => self.hostname = text,
            "memory" | "memswap" | "cpushares" | "cpuperiod" | "cpuquota" | "cpusetcpus" | "cpusetmems" => {
                self.resource(name, value)?;
            }
            "cmdline" => self.is_forwarded = true,
            "source" => self.image = Some(text).filter(|image| !image.is_empty()),
            // Answered by whoever runs the frontend, not by the frontend itself.
            "requestid" | "cache-imports" | "cache-from" | "frontend.caps" => {}
            _ => {
                return Err(OptionsError::Unknown {
                    name: name.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn resource(&mut self, name: &str, value: &str) -> Result<(), OptionsError> {
        if value.is_empty() {
            return Ok(());
        }
        let resources = self.resources.get_or_insert_with(LinuxResources::default);
        let positive = || match number::<i64>(name, value)? {
            found if found > 0 => Ok(found),
            _ => Err(invalid(name, value, "it must be above 0")),
        };
        match name {
            "memory" => resources.memory = positive()?,
            "memswap" => {
                resources.memory_swap = match number::<i64>(name, value)? {
                    found if found == -1 || found > 0 => found,
                    _ => return Err(invalid(name, value, "it must be above 0, or -1 for no limit")),
                }
            }
            "cpushares" => resources.cpu_shares = positive()?.unsigned_abs(),
            "cpuperiod" => resources.cpu_period = positive()?.unsigned_abs(),
            "cpuquota" => resources.cpu_quota = positive()?,
            "cpusetcpus" => resources.cpuset_cpus = cpuset(name, value)?,
            _ => resources.cpuset_mems = cpuset(name, value)?,
        }
        Ok(())
    }

    /// Build arguments that steer the build itself.
    fn steering_args(&mut self) -> Result<(), OptionsError> {
        let arg = |name: &str| {
            self.build_args
                .get(name)
                .filter(|value| !value.is_empty())
                .cloned()
        };
        let multi_platform = arg("BUILDKIT_MULTI_PLATFORM");
        let hostname = arg("BUILDKIT_SANDBOX_HOSTNAME");
        let keep_git_dir = arg("BUILDKIT_CONTEXT_KEEP_GIT_DIR");
        self.cache_mount_namespace = arg("BUILDKIT_CACHE_MOUNT_NS").unwrap_or_default();
        self.check = self.build_args.get("BUILDKIT_DOCKERFILE_CHECK").cloned();
        self.syntax = arg("BUILDKIT_SYNTAX");
        if let Some(value) = multi_platform {
            self.multi_platform = Some(boolean("build-arg:BUILDKIT_MULTI_PLATFORM", &value)?);
        }
        if let Some(hostname) = hostname {
            self.hostname = hostname;
        }
        self.keep_git_dir = keep_git_dir.and_then(|value| go_bool(&value));
        Ok(())
    }
}

fn invalid(name: &str, value: &str, reason: impl Into<String>) -> OptionsError {
    OptionsError::Invalid {
        name: name.to_owned(),
        value: value.to_owned(),
        reason: reason.into(),
    }
}

/// The words Go takes for a boolean.
pub(crate) fn go_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn boolean(name: &str, value: &str) -> Result<bool, OptionsError> {
    go_bool(value).ok_or_else(|| invalid(name, value, "it must be true or false"))
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, OptionsError> {
    value
        .parse()
        .map_err(|_| invalid(name, value, "it must be a number"))
}

fn platforms(value: &str) -> Result<Vec<Platform>, OptionsError> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let one =
        |text: &str| Platform::parse(text).map_err(|error| invalid("platform", value, error.to_string()));
    value.split(',').map(one).collect()
}

fn hosts(name: &str, value: &str) -> Result<Vec<HostIp>, OptionsError> {
    let one = |field: String| {
        let field = field.to_lowercase();
        let (host, ip) = field
            .split_once('=')
            .ok_or_else(|| invalid(name, &field, "it must be name=address"))?;
        let address: IpAddr = ip.parse().map_err(|_| invalid(name, ip, "it is no IP address"))?;
        Ok(HostIp {
            host: host.to_owned(),
            ip: go_ip(address),
        })
    };
    let fields = csv(value).map_err(|error| invalid(name, value, &error))?;
    fields.into_iter().map(one).collect()
}

/// The address as Go prints it: IPv4 inside IPv6 as IPv4.
fn go_ip(address: IpAddr) -> String {
    match address {
        IpAddr::V6(v6) => v6
            .to_ipv4_mapped()
            .map_or_else(|| v6.to_string(), |v4| v4.to_string()),
        IpAddr::V4(v4) => v4.to_string(),
    }
}

/// Resource limits by the names Docker knows.
const ULIMITS: &[&str] = &[
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

fn ulimits(name: &str, value: &str) -> Result<Vec<Ulimit>, OptionsError> {
    let one = |field: String| {
        let error = |reason| invalid(name, &field, reason);
        let (limit, values) = field
            .split_once('=')
            .ok_or_else(|| error("it must be name=soft[:hard]"))?;
        if !ULIMITS.contains(&limit) {
            return Err(error("there is no such limit"));
        }
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard): (i64, i64) = (number(name, soft)?, number(name, hard)?);
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(error("the soft limit is above the hard one"));
        }
        Ok(Ulimit {
            name: limit.to_owned(),
            soft,
            hard,
        })
    };
    let fields = csv(value).map_err(|error| invalid(name, value, &error))?;
    fields.into_iter().map(one).collect()
}

fn cpuset(name: &str, value: &str) -> Result<String, OptionsError> {
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    let is_range = |part: &str| match part.split_once('-') {
        Some((from, to)) => {
            matches!((from.parse::<u32>(), to.parse::<u32>()), (Ok(from), Ok(to)) if from <= to)
        }
        None => is_number(part),
    };
    if value.split(',').all(is_range) {
        return Ok(value.to_owned());
    }
    Err(invalid(name, value, "it must be numbers and ranges: 0-3,5"))
}

/// The fields of one line of comma-separated values (RFC 4180); quotes may hold commas, where they begin a field.
///
/// # Errors
/// A quote where none may be, in the words of Go's `encoding/csv`.
pub fn csv(line: &str) -> Result<Vec<String>, String> {
    let wrong = |rest: &str, what: &str| {
        let column = line.len() - rest.len() + 1;
        format!("parse error on line 1, column {column}: {what}")
    };
    let (mut fields, mut rest) = (Vec::new(), line);
    while !line.is_empty() {
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let end = rest.find(',').unwrap_or(rest.len());
            if let Some(at) = rest[..end].find('"') {
                return Err(wrong(&rest[at..], "bare \" in non-quoted field"));
            }
            fields.push(rest[..end].to_owned());
            match rest[end..].strip_prefix(',') {
                Some(behind) => rest = behind,
                None => break,
            }
            continue;
        };
        let mut field = String::new();
        let behind = loop {
            let Some(at) = quoted.find('"') else {
                return Err(wrong(quoted, "extraneous or missing \" in quoted-field"));
            };
            field.push_str(&quoted[..at]);
            let behind = &quoted[at + 1..];
            match behind.strip_prefix('"') {
                Some(more) => {
                    field.push('"');
                    quoted = more;
                }
                None => break behind,
            }
        };
        fields.push(field);
        match behind.strip_prefix(',') {
            Some(more) => rest = more,
            None if behind.is_empty() => break,
            None => {
                let quote = &line[line.len() - behind.len() - 1..];
                return Err(wrong(quote, "extraneous or missing \" in quoted-field"));
            }
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{NoCache, Options, csv};

    fn parse(attributes: &[(&str, &str)]) -> Result<Options, String> {
        let map: BTreeMap<String, String> = attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Options::from_attributes(&map).map_err(|error| error.to_string())
    }

    #[test]
    fn attributes_become_options() {
        let options = parse(&[
            ("build-arg:BUILDKIT_CACHE_MOUNT_NS", "ns"),
            ("no-cache", "a,b"),
            ("platform", "linux/amd64,linux/arm64"),
            ("add-hosts", "Db=10.0.0.1,v6=::1"),
            ("ulimit", "nofile=10:20,core=-1"),
            ("memory", "1024"),
        ])
        .expect("fine");
        assert_eq!(options.no_cache, NoCache::Stages(vec!["a".into(), "b".into()]));
        assert_eq!(options.cache_mount_namespace, "ns");
        assert!(options.is_multi_platform());
        assert_eq!(
            (
                options.extra_hosts[0].host.as_str(),
                options.extra_hosts[0].ip.as_str()
            ),
            ("db", "10.0.0.1")
        );
        assert_eq!(
            (
                options.ulimits[0].soft,
                options.ulimits[0].hard,
                options.ulimits[1].hard
            ),
            (10, 20, -1)
        );
        assert_eq!(options.resources.map(|resources| resources.memory), Some(1024));
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused() {
        for (name, value, expected) in [
            ("tarket", "x", "unknown option \"tarket\""),
            ("foo:bar", "x", "unknown option \"foo:bar\""),
            ("platform", "a/b/c/d", "os/arch"),
            ("force-network-mode", "bridge", "sandbox, host or none"),
            ("add-hosts", "db", "name=address"),
            ("add-hosts", "db=nowhere", "no IP address"),
            ("ulimit", "files=1", "no such limit"),
            ("ulimit", "nofile=9:1", "above the hard one"),
            ("memory", "0", "above 0"),
            ("cpusetcpus", "3-1", "numbers and ranges"),
            ("shm-size", "lots", "must be a number"),
            ("multi-platform", "maybe", "true or false"),
        ] {
            let error = parse(&[(name, value)]).expect_err(name);
            assert!(error.contains(expected), "{error}");
        }
        assert!(
            parse(&[
                ("platform", "linux/amd64,linux/arm64"),
                ("multi-platform", "false")
            ])
            .is_err()
        );
    }

    #[test]
    fn quotes_hold_commas() {
        let fields = |line: &str| csv(line).expect(line);
        assert_eq!(fields(r#"a,"b,""c""",d"#), ["a", "b,\"c\"", "d"]);
        assert_eq!(fields(",,"), ["", "", ""]);
        assert_eq!(fields(r#""""#), [""]);
        assert!(fields("").is_empty());
        for (line, expected) in [
            (r#"a"b"#, "column 2: bare \" in non-quoted field"),
            (r#"x,a"b"#, "column 4: bare"),
            (r#""a"b"#, "column 3: extraneous or missing"),
            (r#""a"#, "extraneous or missing"),
        ] {
            assert!(csv(line).expect_err(line).contains(expected), "{line}");
        }
    }
}
