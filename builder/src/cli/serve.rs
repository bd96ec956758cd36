//! `serve` and `dial-stdio`: the daemon, and a way to it for ssh.
use super::args::{DialStdioArgs, Global, ServeArgs};
use super::exit::ExitStatus;
use super::values::UsageError;
use crate::client::{self, Signals};
use crate::config::Config;
use crate::daemon::{self, Address, Service, TlsFiles};
use crate::history::Limits;
use crate::request::Entitlements;
use anyhow::{Context, Result};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

/// Serves until a signal comes.
pub(super) fn run(global: &Global, args: ServeArgs) -> Result<ExitStatus> {
    let config = Config::load(global.root.clone())?;
    let service = service(&config, &args)?;
    let runtime = client::runtime()?;
    let served = runtime.block_on(async {
        let signals = Signals::listen().context("listen for signals")?;
        let engine = client::open(&config, args.oci_runtime.clone())?;
        let (ready, told) = oneshot::channel();
        let addresses = service.addresses.clone();
        tokio::spawn(async move {
            if told.await.is_ok() {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                super::note(&format!("serving at {}", addresses.join(", ")));
            }
        });
        let token = signals.token().clone();
        daemon::serve(engine, service, ready, token)
            .await
            .map_err(anyhow::Error::from)
    })?;
    if served.canceled > 0 {
        super::note(&format!("{} builds were called off", served.canceled));
    }
    Ok(ExitStatus::DONE)
}

fn service(config: &Config, args: &ServeArgs) -> Result<Service> {
    let mut addresses = Vec::new();
    for text in &args.addr {
        addresses.push(Address::parse(text).map_err(|error| UsageError::new(format!("--addr: {error}")))?);
    }
    if addresses.is_empty() {
        let socket = config.environment.default_socket();
        let socket = socket.ok_or_else(|| {
            UsageError::new("XDG_RUNTIME_DIR is not set").hint("say where to listen with --addr unix://PATH")
        })?;
        addresses.push(Address::Unix(socket));
    }
    let mut allowed = Entitlements::default();
    for name in &args.allow_insecure_entitlement {
        match name.as_str() {
            "network.host" => allowed.network_host = true,
            "security.insecure" => allowed.security_insecure = true,
            other => {
                let error = UsageError::new(format!("--allow-insecure-entitlement {other}: unknown"));
                return Err(error.hint("known are network.host and security.insecure").into());
            }
        }
    }
    let tls = match (&args.tlscert, &args.tlskey, &args.tlscacert) {
        (Some(cert), Some(key), Some(client_ca)) => Some(TlsFiles {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: client_ca.clone(),
        }),
        _ => None,
    };
    let group = args.group.as_deref().map(group_id).transpose()?;
    Ok(Service {
        addresses,
        tls,
        allows_open_tcp: args.insecure_tcp,
        group,
        allowed,
        history: Limits::default(),
    })
}

/// The number of a group.
fn group_id(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group").context("read /etc/group")?;
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    });
    found.ok_or_else(|| UsageError::new(format!("--group {name}: there is no such group")).into())
}

/// Connects stdin and stdout to the daemon's socket, until either end closes.
pub(super) fn dial(global: &Global, args: &DialStdioArgs) -> Result<ExitStatus> {
    let config = Config::load(global.root.clone())?;
    let path = match &args.addr {
        Some(text) => match Address::parse(text)
            .map_err(|error| UsageError::new(format!("--addr: {error}")))?
        {
            Address::Unix(path) => path,
            other => {
                return Err(
                    UsageError::new(format!("--addr {other}: dial-stdio connects to unix sockets")).into(),
                );
            }
        },
        None => config
            .environment
            .default_socket()
            .ok_or_else(|| UsageError::new("say where the daemon is with --addr unix://PATH"))?,
    };
    client::runtime()?.block_on(async {
        let stream = tokio::net::UnixStream::connect(&path).await;
        let stream = stream.with_context(|| format!("connect to the daemon at {}", path.display()))?;
        let (mut from, mut to) = stream.into_split();
        let (mut stdin, mut stdout) = (tokio::io::stdin(), tokio::io::stdout());
        let sent = async {
            tokio::io::copy(&mut stdin, &mut to).await?;
            to.shutdown().await
        };
        let received = async {
            tokio::io::copy(&mut from, &mut stdout).await?;
            stdout.flush().await
        };
        // The daemon's end decides: what it still has to say is passed on after stdin has ended.
        tokio::pin!(sent, received);
        tokio::select! {
            done = &mut received => done?,
            done = &mut sent => {
                done?;
                received.await?;
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(ExitStatus::DONE)
}
