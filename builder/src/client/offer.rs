//! What this process offers a build: directories, layouts, secrets, agents, credentials, stdin.
use crate::build::BuildError;
use crate::config::{Config, DockerCredentials};
use crate::request::{
    BuildRequest, ContextSource, DockerfileSource, LOCAL_CONTEXT, LOCAL_DOCKERFILE, NamedContext,
    STDIN_UPLOAD, layout_store,
};
use session::{LocalCaller, LocalOptions, SessionId};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use tempfile::TempDir;

/// A caller, and the temporary folders it offers, which go when this goes.
pub(super) struct Offer {
    pub(super) caller: Arc<LocalCaller>,
    _folders: Vec<TempDir>,
}

/// Offers all that the request names.
pub(super) fn offer(
    config: &Config,
    id: SessionId,
    request: &BuildRequest,
    stdin: Option<Box<dyn Read + Send>>,
) -> Result<Offer, BuildError> {
    let mut folders = Vec::new();
    let mut options = LocalOptions {
        secrets: request.secrets.clone(),
        ssh: request.ssh.clone(),
        stores: super::caches::stores(request),
        credentials: Some(Arc::new(DockerCredentials::of(&config.environment))),
        tokens: super::tokens::source(config)?,
        ..LocalOptions::default()
    };
    match &request.context {
        ContextSource::Directory(path) => {
            options.dirs.insert(LOCAL_CONTEXT.into(), path.clone());
        }
        ContextSource::Empty => {
            let folder = temporary()?;
            options
                .dirs
                .insert(LOCAL_CONTEXT.into(), folder.path().to_owned());
            folders.push(folder);
        }
        ContextSource::Remote(_) | ContextSource::StdinTar => {}
    }
    match &request.dockerfile {
        DockerfileSource::File { directory, .. } => {
            options.dirs.insert(LOCAL_DOCKERFILE.into(), directory.clone());
        }
        DockerfileSource::Text(text) => {
            let folder = temporary()?;
            std::fs::write(folder.path().join("Dockerfile"), text).map_err(aside)?;
            options
                .dirs
                .insert(LOCAL_DOCKERFILE.into(), folder.path().to_owned());
            folders.push(folder);
        }
        DockerfileSource::Address(address) => {
            // Both doors fetch it before they come here.
            return Err(BuildError::Machine {
                doing: format!("fetch {address}"),
                reason: "it was not fetched before the build".into(),
            });
        }
        // Daemons look for it beneath a name of its own, wherever it lies.
        DockerfileSource::InContext(_) => {
            if let ContextSource::Directory(path) = &request.context {
                options.dirs.insert(LOCAL_DOCKERFILE.into(), path.clone());
            }
        }
    }
    for (name, context) in &request.named_contexts {
        match context {
            NamedContext::Directory(path) => {
                options
                    .dirs
                    .insert(crate::request::local_name(name), path.clone());
            }
            NamedContext::OciLayout { path, .. } => {
                options.oci_layouts.insert(layout_store(name), path.clone());
            }
            NamedContext::Remote(_) => {}
        }
    }
    if let Some(stdin) = stdin {
        let stream: session::Upload = Box::new(as_async(stdin));
        options.uploads = BTreeMap::from([(STDIN_UPLOAD.to_owned(), stream)]);
    }
    Ok(Offer {
        caller: Arc::new(LocalCaller::new(id, options)),
        _folders: folders,
    })
}

fn temporary() -> Result<TempDir, BuildError> {
    tempfile::Builder::new()
        .prefix("builder-")
        .tempdir()
        .map_err(aside)
}

fn aside(error: std::io::Error) -> BuildError {
    BuildError::Machine {
        doing: "put the Dockerfile of stdin aside".into(),
        reason: error.to_string(),
    }
}

/// A blocking stream as an async one: a thread reads, a pipe of this size lies between.
fn as_async(mut from: Box<dyn Read + Send>) -> impl tokio::io::AsyncRead + Send + Unpin {
    const PIPE_BYTES: usize = 1 << 20;
    const CHUNK_BYTES: usize = 64 << 10;
    let (reader, writer) = tokio::io::duplex(PIPE_BYTES);
    let mut writer = tokio_util::io::SyncIoBridge::new(writer);
    tokio::task::spawn_blocking(move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(bytes) => {
                    if std::io::Write::write_all(&mut writer, &chunk[..bytes]).is_err() {
                        // Nobody reads any more: the build has ended.
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "read stdin");
                    break;
                }
            }
        }
        let _ = writer.shutdown();
    });
    reader
}
