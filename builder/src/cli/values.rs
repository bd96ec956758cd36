//! The values of single flags: text in, checked values out. Every error names the flag and the text.
use crate::config::Environment;
use crate::request::{Entitlements, HostAddress, NetworkMode, Ulimit};
use session::{KeyError, Keyring, Secret, SecretSource, SshSource};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A mistake on the command line; the program ends with the exit code for those.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct UsageError {
    /// What is wrong, naming the flag.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl UsageError {
    pub(super) fn new(message: impl Into<String>) -> UsageError {
        UsageError {
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> UsageError {
        self.hint = Some(hint.into());
        self
    }
}

impl From<String> for UsageError {
    fn from(message: String) -> UsageError {
        UsageError::new(message)
    }
}

type Result<T> = std::result::Result<T, UsageError>;

/// Fields of a line of comma separated values; quotes as in CSV files.
pub(super) fn fields(flag: &str, text: &str) -> Result<Vec<String>> {
    let wrong = |what: &str| UsageError::new(format!("{flag} {text}: {what}"));
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let field;
        if let Some(quoted) = rest.strip_prefix('"') {
            let (value, after) = quoted_field(quoted).ok_or_else(|| wrong("a quote is not closed"))?;
            field = value;
            rest = after;
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(wrong("text follows a closing quote"));
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            if rest[..end].contains('"') {
                return Err(wrong("a quote stands inside a value; quote the whole field"));
            }
            field = rest[..end].to_owned();
            rest = &rest[end..];
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}

/// The text up to the closing quote, two quotes standing for one, and what follows.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        value.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, rest)),
        }
    }
}

/// `key=value` fields of a line; keys in lower case.
pub(super) fn pairs(flag: &str, text: &str) -> Result<Vec<(String, String)>> {
    fields(flag, text)?
        .into_iter()
        .map(|field| match field.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_ascii_lowercase(), value.to_owned())),
            None => Err(UsageError::new(format!(
                "{flag} {text}: {field:?} is not of the form key=value"
            ))),
        })
        .collect()
}

/// `--label`: a key alone has an empty value.
pub(super) fn labels(values: &[String]) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for value in values {
        let (key, text) = value.split_once('=').unwrap_or((value, ""));
        if key.is_empty() {
            return Err(UsageError::new(format!("--label {value}: the key is empty")));
        }
        labels.insert(key.to_owned(), text.to_owned());
    }
    Ok(labels)
}

/// `--build-arg`: a name alone takes the environment's value, or is left out if there is none.
pub(super) fn build_args(values: &[String], environment: &Environment) -> Result<BTreeMap<String, String>> {
    let mut args = BTreeMap::new();
    for value in values {
        let (name, text) = match value.split_once('=') {
            Some((name, text)) => (name, Some(text)),
            None => (value.as_str(), environment.text(value)),
        };
        if name.is_empty() {
            return Err(UsageError::new(format!("--build-arg {value}: the name is empty")));
        }
        if let Some(text) = text {
            args.insert(name.to_owned(), text.to_owned());
        }
    }
    Ok(args)
}

/// `--add-host name:ip`, `name=ip`, `name:[v6]`, `name=host-gateway`.
pub(super) fn add_host(value: &str) -> Result<(String, HostAddress)> {
    let wrong = || {
        UsageError::new(format!("--add-host {value}: not of the form name:ip"))
            .hint("for example --add-host db:10.0.0.7 or --add-host db=2001:db8::7")
    };
    let (name, address) = value
        .split_once('=')
        .or_else(|| value.split_once(':'))
        .ok_or_else(wrong)?;
    let address = address.trim();
    if name.is_empty() {
        return Err(wrong());
    }
    if address == "host-gateway" {
        return Ok((name.to_owned(), HostAddress::Gateway));
    }
    let bare = address
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(address);
    let ip: IpAddr = bare.parse().map_err(|_| {
        UsageError::new(format!(
            "--add-host {value}: {address:?} is neither an IP address nor host-gateway"
        ))
    })?;
    Ok((name.to_owned(), HostAddress::Ip(ip)))
}

/// `--network`.
pub(super) fn network(value: &str) -> Result<NetworkMode> {
    match value {
        "" | "default" | "sandbox" => Ok(NetworkMode::Sandbox),
        "host" => Ok(NetworkMode::Host),
        "none" => Ok(NetworkMode::None),
        _ => Err(UsageError::new(format!(
            "--network={value}: unknown; known are default, host and none"
        ))),
    }
}

/// `--allow`.
pub(super) fn entitlements(values: &[String]) -> Result<Entitlements> {
    let mut allowed = Entitlements::default();
    // Names of devices may have commas of their own.
    let others = values.iter().filter(|value| device(value).is_none());
    for value in others.flat_map(|value| value.split(',')) {
        match value.trim() {
            "network.host" => allowed.network_host = true,
            "security.insecure" => allowed.security_insecure = true,
            "device" => {}
            // What buildx asks before it deletes or reads files of the client is not asked here.
            _ if value.starts_with("buildx.local.") || value.starts_with("fs") => {
                return Err(UsageError::new(format!(
                    "--allow {value}: belongs to buildx; there is nothing to allow here"
                )));
            }
            _ => {
                return Err(UsageError::new(format!(
                    "--allow {value}: unknown; known are network.host, security.insecure and device[=NAME]"
                )));
            }
        }
    }
    Ok(allowed)
}

/// What stands behind `device=` in `--allow`; nothing behind `device` alone.
fn device(value: &str) -> Option<&str> {
    match value.trim().strip_prefix("device")? {
        "" => Some(""),
        rest => rest.strip_prefix('='),
    }
}

/// The devices of `--allow`.
pub(super) fn devices(values: &[String]) -> Result<Vec<String>> {
    let mut devices: Vec<String> = values
        .iter()
        .filter_map(|value| device(value))
        .map(str::to_owned)
        .collect();
    let among_others = |value: &&String| value.split(',').any(|word| word.trim() == "device");
    if devices.is_empty() && values.iter().find(among_others).is_some() {
        devices.push(String::new());
    }
    for name in &devices {
        worker::DeviceGrants::default()
            .add(name)
            .map_err(|error| UsageError::new(format!("--allow device={name}: {error}")))?;
    }
    Ok(devices)
}

/// Names of limits the kernel knows.
const ULIMITS: [&str; 16] = [
    "as",
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

/// `--ulimit name=soft[:hard]`.
pub(super) fn ulimit(value: &str) -> Result<Ulimit> {
    let wrong = |what: &str| UsageError::new(format!("--ulimit {value}: {what}"));
    let (name, limits) = value
        .split_once('=')
        .ok_or_else(|| wrong("not of the form name=soft[:hard]"))?;
    if !ULIMITS.contains(&name) {
        return Err(wrong("unknown name").hint(format!("known are {}", ULIMITS.join(", "))));
    }
    let number = |text: &str| match text.parse::<i64>() {
        Ok(limit) if limit >= -1 => Ok(limit),
        _ => Err(wrong("a limit is a number, or -1 for none")),
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(limits)?, number(limits)?),
    };
    if hard != -1 && (soft > hard || soft == -1) {
        return Err(wrong("the soft limit is above the hard one"));
    }
    Ok(Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    })
}

/// `--resource` and the old flags of the same meaning: the frontend's attribute and its value.
pub(super) fn resource(flag: &str, name: &str, value: &str) -> Result<(String, String)> {
    let wrong = |what: String| UsageError::new(format!("{flag} {name}={value}: {what}"));
    let number = || {
        value
            .parse::<i64>()
            .map(|n| n.to_string())
            .map_err(|_| wrong("not a number".into()))
    };
    let (attr, text) = match name {
        "memory" => (
            "memory",
            crate::units::parse_bytes(value).map_err(wrong)?.to_string(),
        ),
        "memory-swap" if value == "-1" => ("memswap", "-1".to_owned()),
        "memory-swap" => (
            "memswap",
            crate::units::parse_bytes(value).map_err(wrong)?.to_string(),
        ),
        "cpu-shares" => ("cpushares", number()?),
        "cpu-period" => ("cpuperiod", number()?),
        "cpu-quota" => ("cpuquota", number()?),
        "cpuset-cpus" => ("cpusetcpus", value.to_owned()),
        "cpuset-mems" => ("cpusetmems", value.to_owned()),
        _ => {
            return Err(wrong("unknown name".into()).hint(
                "known are memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus and cpuset-mems",
            ));
        }
    };
    Ok((attr.to_owned(), text))
}

/// `--secret id=…[,src=FILE][,env=NAME][,type=file|env]`.
pub(super) fn secret(value: &str, environment: &Environment) -> Result<(String, SecretSource)> {
    let wrong = |what: &str| UsageError::new(format!("--secret {value}: {what}"));
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for (key, text) in pairs("--secret", value)? {
        match key.as_str() {
            "id" => id = Some(text),
            "src" | "source" => file = Some(text),
            "env" => variable = Some(text),
            "type" if text == "file" || text == "env" => kind = Some(text),
            "type" => return Err(wrong("the type is neither file nor env")),
            other => {
                return Err(wrong(&format!("unknown key {other:?}")).hint("known are id, src, env and type"));
            }
        }
    }
    let id = id
        .filter(|id| !id.is_empty())
        .ok_or_else(|| wrong("the id is missing"))?;
    if kind.as_deref() == Some("env") && variable.is_none() {
        variable = file.take();
    }
    let from_environment = |name: &str| match environment.bytes(name) {
        Some(bytes) => Ok(SecretSource::Value(Secret::new(bytes))),
        None => Err(wrong(&format!("the variable {name} is not set"))),
    };
    let source = match (file, variable) {
        (Some(_), Some(_)) => return Err(wrong("both a file and a variable are named")),
        (None, Some(name)) => from_environment(&name)?,
        (None, None) if kind.as_deref() != Some("file") && environment.bytes(&id).is_some() => {
            from_environment(&id)?
        }
        (file, None) => {
            let path = file.unwrap_or_else(|| id.clone());
            let path = absolute("--secret", &expand_home(&path, environment))?;
            if let Err(error) = std::fs::metadata(&path) {
                return Err(wrong(&format!("{}: {error}", path.display())));
            }
            SecretSource::File(path)
        }
    };
    Ok((id, source))
}

/// `--ssh default|ID[=SOCKET|KEY[,KEY]…][,raw=true]`.
pub(super) fn ssh(value: &str, environment: &Environment) -> Result<(String, SshSource)> {
    let wrong = |what: String| UsageError::new(format!("--ssh {value}: {what}"));
    let (id, sources) = value.split_once('=').unwrap_or((value, ""));
    if id.is_empty() {
        return Err(wrong("the id is missing".into()));
    }
    let (mut paths, mut raw) = (Vec::new(), false);
    for field in fields("--ssh", sources)?
        .into_iter()
        .filter(|field| !field.is_empty())
    {
        match field.strip_prefix("raw=") {
            Some("true" | "1") => raw = true,
            Some("false" | "0") => raw = false,
            Some(other) => return Err(wrong(format!("raw={other} is neither true nor false"))),
            None => paths.push(absolute("--ssh", &expand_home(&field, environment))?),
        }
    }
    if paths.is_empty() {
        paths.push(environment.path("SSH_AUTH_SOCK").ok_or_else(|| {
            wrong("SSH_AUTH_SOCK is not set".into()).hint("start one with: eval $(ssh-agent) && ssh-add")
        })?);
    }
    let (mut socket, mut keys) = (None, Keyring::default());
    for path in paths {
        let kind = std::fs::metadata(&path).map_err(|error| wrong(format!("{}: {error}", path.display())))?;
        if kind.file_type().is_socket() {
            if socket.replace(path).is_some() {
                return Err(wrong(
                    "only one agent's socket can be forwarded under an id".into(),
                ));
            }
            continue;
        }
        keys.add(&path).map_err(|error| {
            let refused = wrong(format!("{}: {error}", path.display()));
            match error {
                KeyError::Passphrase => refused.hint(format!(
                    "load it into an agent, which asks for it: eval $(ssh-agent) && ssh-add {}",
                    path.display()
                )),
                _ => refused,
            }
        })?;
    }
    let source = match (socket, keys.is_empty()) {
        (Some(path), true) => SshSource::Socket { path, raw },
        (Some(_), false) => {
            return Err(wrong(
                "keys and an agent's socket cannot be mixed under an id".into(),
            ));
        }
        (None, _) if raw => return Err(wrong("raw=true is for an agent's socket".into())),
        (None, _) => SshSource::Keys(Arc::new(keys)),
    };
    Ok((id.to_owned(), source))
}

/// A path made absolute against the working directory.
pub(super) fn absolute(flag: &str, path: &str) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| UsageError::new(format!("{flag} {path}: {error}")))
}

fn expand_home(path: &str, environment: &Environment) -> String {
    match (path.strip_prefix("~/"), environment.path("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest).to_string_lossy().into_owned(),
        _ => path.to_owned(),
    }
}

/// `--annotation [TYPES[[PLATFORM]]:]KEY=VALUE` as attributes of exporters.
pub(super) fn annotation(value: &str) -> Result<Vec<(String, String)>> {
    const TYPES: [&str; 4] = ["index", "index-descriptor", "manifest", "manifest-descriptor"];
    let wrong = |what: &str| UsageError::new(format!("--annotation {value}: {what}"));
    let (key, text) = value
        .split_once('=')
        .ok_or_else(|| wrong("not of the form key=value"))?;
    let head = key.split_once(':').filter(|(types, _)| {
        let plain = types
            .split(',')
            .next()
            .unwrap_or_default()
            .split('[')
            .next()
            .unwrap_or_default();
        TYPES.contains(&plain)
    });
    let (types, key) = head.unwrap_or(("manifest", key));
    if key.is_empty() {
        return Err(wrong("the key is empty"));
    }
    types
        .split(',')
        .map(|kind| {
            let (kind, platform) = match kind.split_once('[') {
                Some((kind, rest)) => (
                    kind,
                    Some(
                        rest.strip_suffix(']')
                            .ok_or_else(|| wrong("a bracket is not closed"))?,
                    ),
                ),
                None => (kind, None),
            };
            if !TYPES.contains(&kind) {
                return Err(
                    wrong(&format!("unknown type {kind:?}")).hint(format!("known are {}", TYPES.join(", ")))
                );
            }
            if platform.is_some() && kind == "index" {
                return Err(wrong("an index has no platform"));
            }
            let platform = platform
                .map(|platform| format!("[{platform}]"))
                .unwrap_or_default();
            Ok((format!("annotation-{kind}{platform}.{key}"), text.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests;
