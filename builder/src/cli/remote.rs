//! `--addr` and its certificates: which daemon a command is for, if any.
//!
//! The first of `--addr`, `$BUILDER_HOST` and `$BUILDKIT_HOST` that says something counts; without any, the command
//! works in this very process.
use super::values::UsageError;
use crate::client::{Address, Remote, TlsFiles};
use crate::config::Environment;
use clap::Args;
use std::path::PathBuf;

const DAEMON: &str = "Daemon";

/// Flags that name a daemon.
#[derive(Debug, Clone, Default, Args)]
pub struct RemoteFlags {
    /// Use this daemon: unix://PATH, tcp://HOST:PORT, ssh://[USER@]HOST[:PORT][/SOCKET] or docker-container://NAME
    /// [default: $BUILDER_HOST, $BUILDKIT_HOST, or none: build in this process]
    #[arg(long, value_name = "ADDRESS", help_heading = DAEMON, verbatim_doc_comment)]
    pub addr: Option<String>,
    /// Who must have signed the daemon's certificate (PEM)
    #[arg(long, value_name = "FILE", help_heading = DAEMON)]
    pub tlscacert: Option<PathBuf>,
    /// Our certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tlskey", help_heading = DAEMON)]
    pub tlscert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tlscert", help_heading = DAEMON)]
    pub tlskey: Option<PathBuf>,
    /// The name in the daemon's certificate, if it is not the address's
    #[arg(long, value_name = "NAME", help_heading = DAEMON)]
    pub tlsservername: Option<String>,
    /// A folder with ca.pem, cert.pem and key.pem
    #[arg(long, value_name = "DIR", conflicts_with_all = ["tlscacert", "tlscert", "tlskey"], help_heading = DAEMON)]
    pub tlsdir: Option<PathBuf>,
}

impl RemoteFlags {
    /// The daemon that is meant, if any.
    pub(super) fn find(&self, environment: &Environment) -> Result<Option<Remote>, UsageError> {
        let given = |name: &'static str| {
            let value = environment.text(name).filter(|value| !value.is_empty())?;
            Some((name, value))
        };
        let flag = self.addr.as_deref().filter(|addr| !addr.is_empty());
        let named = flag
            .map(|addr| ("--addr", addr))
            .or_else(|| given("BUILDER_HOST"))
            .or_else(|| given("BUILDKIT_HOST"));
        let tls = self.tls()?;
        let Some((source, text)) = named else {
            return match tls {
                Some(_) => Err(
                    UsageError::new("certificates are for a daemon, but none is named").hint("add --addr"),
                ),
                None => Ok(None),
            };
        };
        let address = Address::parse(text).map_err(|error| UsageError::new(format!("{source}: {error}")))?;
        if tls.is_some() && !matches!(address, Address::Tcp(_)) {
            return Err(UsageError::new(format!(
                "certificates are for tcp:// only, not for {text}"
            )));
        }
        Ok(Some(Remote { address, tls }))
    }

    fn tls(&self) -> Result<Option<TlsFiles>, UsageError> {
        if let Some(folder) = &self.tlsdir {
            let identity = (folder.join("cert.pem"), folder.join("key.pem"));
            return Ok(Some(TlsFiles {
                ca: folder.join("ca.pem"),
                identity: identity.0.exists().then_some(identity),
                server_name: self.tlsservername.clone(),
            }));
        }
        let identity = self.tlscert.clone().zip(self.tlskey.clone());
        match &self.tlscacert {
            Some(ca) => Ok(Some(TlsFiles {
                ca: ca.clone(),
                identity,
                server_name: self.tlsservername.clone(),
            })),
            None if identity.is_some() || self.tlsservername.is_some() => Err(UsageError::new(
                "TLS needs --tlscacert: who must have signed the daemon's certificate",
            )),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_comes_before_the_environment() {
        let both = Environment::of(&[("BUILDER_HOST", "tcp://a:1"), ("BUILDKIT_HOST", "tcp://b:2")]);
        let second = Environment::of(&[("BUILDER_HOST", ""), ("BUILDKIT_HOST", "tcp://b:2")]);
        let none = Environment::of(&[]);
        let flag = |addr: Option<&str>| RemoteFlags {
            addr: addr.map(str::to_owned),
            ..RemoteFlags::default()
        };
        for (flags, environment, expected) in [
            (flag(Some("unix:///x")), &both, Some("unix:///x")),
            (flag(None), &both, Some("tcp://a:1")),
            (flag(None), &second, Some("tcp://b:2")),
            (flag(None), &none, None),
        ] {
            let found = flags.find(environment).expect("good addresses");
            assert_eq!(
                found.map(|remote| remote.address.to_string()).as_deref(),
                expected
            );
        }
        let error = flag(Some("nowhere"))
            .find(&none)
            .expect_err("no address")
            .to_string();
        assert!(error.starts_with("--addr: address \"nowhere\""), "{error}");
    }

    #[test]
    fn certificates_need_a_daemon_and_an_authority() {
        let none = Environment::of(&[]);
        let flags = RemoteFlags {
            tlscacert: Some("ca.pem".into()),
            ..RemoteFlags::default()
        };
        assert!(flags.find(&none).is_err(), "no daemon");
        let flags = RemoteFlags {
            addr: Some("tcp://a:1".into()),
            tlsservername: Some("a".into()),
            ..RemoteFlags::default()
        };
        assert!(flags.find(&none).is_err(), "no authority");
    }
}
