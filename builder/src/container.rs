//! What `builder run` runs: an image's configuration and the command line, as a description for the sandbox.
//!
//! ```text
//! ImageConfig + Wanted + accounts of the image ─▶ Spec (without its root)
//! ```
//!
//! Plain values in, a plain value out; accounts are looked up in the image, never on this machine.
use cache::view::{Account, Group};
use oci::ImageConfig;
use sandbox::Spec;
use sandbox::spec::{Mount, MountFlags, Network, Source, User};
use std::path::PathBuf;

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The command; empty for the image's.
    pub command: Vec<String>,
    /// `NAME=value`, over the image's.
    pub env: Vec<String>,
    /// Instead of the image's entry point; `Some("")` for none.
    pub entrypoint: Option<String>,
    /// `user[:group]` instead of the image's.
    pub user: Option<String>,
    /// Instead of the image's.
    pub workdir: Option<String>,
    /// What is bound.
    pub volumes: Vec<Volume>,
    /// The host name inside.
    pub hostname: Option<String>,
    /// Whether there is a terminal.
    pub has_terminal: bool,
}

/// One `--volume`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// A folder or file of this machine, absolute.
    pub source: PathBuf,
    /// Where it appears, absolute.
    pub target: String,
    /// Whether writing is refused.
    pub is_readonly: bool,
}

/// Why an image cannot be run so.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ContainerError {
    /// Neither the image nor the command line says what.
    #[error("the image has no command of its own; give one")]
    NoCommand,
    /// No such account in the image.
    #[error("the image has no {what} {name:?}")]
    Unknown {
        /// User or group.
        what: &'static str,
        /// Its name.
        name: String,
    },
}

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The description of the process.
///
/// # Errors
/// [`ContainerError`].
pub fn describe(
    image: &ImageConfig,
    wanted: &Wanted,
    accounts: &[Account],
    groups: &[Group],
    network: Network,
) -> Result<Spec, ContainerError> {
    let config = &image.config;
    let args = arguments(config.entrypoint.clone(), config.cmd.clone(), wanted);
    if args.is_empty() {
        return Err(ContainerError::NoCommand);
    }
    let named = wanted.user.as_deref().unwrap_or(&config.user);
    let (user, home) = user(named, accounts, groups)?;
    let hostname = wanted.hostname.clone().unwrap_or_else(|| "builder".into());
    let mut env: Vec<String> = vec![
        DEFAULT_PATH.into(),
        format!("HOSTNAME={hostname}"),
        format!("HOME={home}"),
    ];
    if wanted.has_terminal {
        env.push("TERM=xterm".into());
    }
    for pair in config.env.iter().chain(&wanted.env) {
        set(&mut env, pair);
    }
    let cwd = wanted
        .workdir
        .clone()
        .or_else(|| Some(config.working_dir.clone()).filter(|dir| !dir.is_empty()));
    let mounts = wanted.volumes.iter().map(|volume| Mount {
        target: volume.target.clone(),
        source: Source::Bind {
            path: volume.source.clone(),
            subpath: String::new(),
        },
        readonly: volume.is_readonly,
        flags: MountFlags::default(),
    });
    Ok(Spec {
        mounts: mounts.collect(),
        args,
        env,
        cwd: cwd.unwrap_or_else(|| "/".into()),
        user,
        hosts: Some(format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost\n").into_bytes()),
        hostname,
        network,
        ..Spec::default()
    })
}

/// As Docker has it: an entry point of the command line drops the image's command.
fn arguments(entrypoint: Vec<String>, cmd: Vec<String>, wanted: &Wanted) -> Vec<String> {
    let (mut args, cmd) = match &wanted.entrypoint {
        Some(program) if program.is_empty() => (Vec::new(), Vec::new()),
        Some(program) => (vec![program.clone()], Vec::new()),
        None => (entrypoint, cmd),
    };
    args.extend(if wanted.command.is_empty() {
        cmd
    } else {
        wanted.command.clone()
    });
    args
}

/// Sets `NAME=value` in a list, over an earlier value.
fn set(env: &mut Vec<String>, pair: &str) {
    let name = pair.split('=').next().unwrap_or(pair);
    match env.iter_mut().find(|known| known.split('=').next() == Some(name)) {
        Some(known) => *known = pair.to_owned(),
        None => env.push(pair.to_owned()),
    }
}

/// The numbers of `user[:group]`, and the user's home.
fn user(named: &str, accounts: &[Account], groups: &[Group]) -> Result<(User, String), ContainerError> {
    let (name, group) = match named.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (named, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let account = accounts
        .iter()
        .find(|account| account.name == name || Some(account.uid) == number);
    let uid = match (account, number) {
        (Some(account), _) => account.uid,
        (None, Some(number)) => number,
        (None, None) => {
            return Err(ContainerError::Unknown {
                what: "user",
                name: name.to_owned(),
            });
        }
    };
    let gid = match group {
        None => account.map_or(0, |account| account.gid),
        Some(group) => match groups.iter().find(|known| known.name == group) {
            Some(known) => known.gid,
            None => group.parse().map_err(|_| ContainerError::Unknown {
                what: "group",
                name: group.to_owned(),
            })?,
        },
    };
    // A group that is named replaces all others.
    let further = account.filter(|_| group.is_none()).map(|account| {
        let is_member = |group: &&Group| group.members.contains(&account.name);
        groups.iter().filter(is_member).map(|group| group.gid).collect()
    });
    let home = account.map_or_else(|| "/".to_owned(), |account| account.home.clone());
    Ok((
        User {
            uid,
            gid,
            groups: further.unwrap_or_default(),
        },
        home,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        let json = br#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/e"],"Cmd":["c"],"Env":["A=1","PATH=/x"],"User":"app"}}"#;
        ImageConfig::parse(json).expect("valid")
    }

    fn accounts() -> (Vec<Account>, Vec<Group>) {
        let app = Account {
            name: "app".into(),
            uid: 10,
            gid: 20,
            home: "/home/app".into(),
        };
        let wheel = Group {
            name: "wheel".into(),
            gid: 30,
            members: vec!["app".into()],
        };
        (vec![app], vec![wheel])
    }

    fn described(wanted: &Wanted) -> Result<Spec, ContainerError> {
        let (accounts, groups) = accounts();
        describe(&image(), wanted, &accounts, &groups, Network::None)
    }

    #[test]
    fn commands_are_put_together_as_docker_does() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (entrypoint, command, expected) in [
            (None, &[][..], &["/e", "c"][..]),
            (None, &["d"], &["/e", "d"]),
            (Some("/f"), &[], &["/f"]),
            (Some("/f"), &["d"], &["/f", "d"]),
            (Some(""), &["d"], &["d"]),
        ] {
            let wanted = Wanted {
                entrypoint: entrypoint.map(str::to_owned),
                command: words(command),
                ..Wanted::default()
            };
            assert_eq!(described(&wanted).expect("valid").args, words(expected));
        }
        let nothing = Wanted {
            entrypoint: Some(String::new()),
            ..Wanted::default()
        };
        assert_eq!(described(&nothing), Err(ContainerError::NoCommand));
    }

    #[test]
    fn users_come_from_the_image() {
        let of = |user: Option<&str>| {
            described(&Wanted {
                user: user.map(str::to_owned),
                ..Wanted::default()
            })
            .map(|spec| (spec.user.uid, spec.user.gid, spec.user.groups))
        };
        assert_eq!(of(None), Ok((10, 20, vec![30])));
        assert_eq!(of(Some("10")), Ok((10, 20, vec![30])));
        assert_eq!(of(Some("app:wheel")), Ok((10, 30, vec![])));
        assert_eq!(of(Some("77:88")), Ok((77, 88, vec![])));
        assert!(of(Some("nobody-here")).is_err());
        assert!(of(Some("app:nobody-here")).is_err());
    }

    #[test]
    fn variables_of_the_command_line_win() {
        let spec = described(&Wanted {
            env: vec!["A=2".into()],
            ..Wanted::default()
        })
        .expect("valid");
        assert!(spec.env.contains(&"A=2".to_owned()) && !spec.env.contains(&"A=1".to_owned()));
        assert!(spec.env.contains(&"PATH=/x".to_owned()) && spec.env.contains(&"HOME=/home/app".to_owned()));
    }
}
