//! What was built, given out: as an image in the store or a registry, an archive, a directory.
//!
//! ```text
//! results, configs ─ layers ─▶ packed layers ─ config ─▶ manifests ─▶ index ─┬─▶ named in the store ─▶ pushed
//!                                                                           └─▶ archive: oci, docker
//! results ─ files ─▶ directory, tar
//! ```
//!
//! 1. `attrs` reads the exporter's attributes, named as BuildKit names them; an unknown one is refused.
//! 2. `config` completes the image config: diff ids, history, times.
//! 3. `image` packs layers and writes manifests into the content store.
//! 4. `attest` adds what is stated about them.
//! 5. `push`, `archive`, `files` bring it to where it was asked for.

mod attrs;
mod config;
mod sbom;
mod attest;
mod image;
mod push;
mod archive;
mod files;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use cache::{CacheError, ImmutableRef};
use oci::{Descriptor, Digest, Platform};
use solver::progress::Sink;
use solver::{Blame, ExportedKey, OpError};

pub use self::attest::{Attestation, IN_TOTO, PREDICATE_TYPE, Predicate, Subject};
use crate::worker::{Session, Worker};

/// Which exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Into the builder's own image store, and pushed if asked for.
    Image,
    /// An OCI archive or layout.
    Oci,
    /// An archive for Docker.
    Docker,
    /// The result's files in a directory.
    Local,
    /// The result's files in a tar.
    Tar,
}

/// Where a directory or stream of bytes goes.
pub enum Dest {
    /// Into this directory, made if it is not there.
    Dir(PathBuf),
    /// Into `out` of a folder aside, which stays as long as anything writes into it.
    Aside(Arc<cache::Aside>),
    /// Here.
    Writer(Box<dyn Write + Send>),
    /// Blob by blob into a store of the caller's; whoever has it writes what names them.
    Caller,
}

/// One output.
pub struct Request {
    /// Which exporter.
    pub kind: Kind,
    /// Its attributes, without `type` and `dest`.
    pub attrs: BTreeMap<String, String>,
    /// Where to; an image needs none.
    pub dest: Option<Dest>,
}

/// What was built for one platform.
#[derive(Clone, Debug)]
pub struct PlatformResult {
    /// `os/arch[/variant]`.
    pub id: String,
    /// The platform.
    pub platform: Platform,
    /// The files; `None` is scratch.
    pub result: Option<ImmutableRef>,
    /// The image config, as JSON, without diff ids and times.
    pub config: Vec<u8>,
    /// The config of the base image, as JSON.
    pub base_config: Option<Vec<u8>>,
    /// `SOURCE_DATE_EPOCH`, seconds since 1970.
    pub epoch: Option<i64>,
    /// What is stated about it.
    pub attestations: Vec<Attestation>,
    /// The keys of the result, for a cache inside the image (`--cache-to type=inline`).
    pub inline_cache: Option<Arc<Vec<ExportedKey<ImmutableRef>>>>,
}

/// What was built.
#[derive(Clone, Debug)]
pub struct Source {
    /// Per platform.
    pub platforms: Vec<PlatformResult>,
    /// Whether an index is made even of one platform.
    pub is_index: bool,
}

/// One image that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `os/arch[/variant]`.
    pub platform: String,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Bytes of layers and config, as they are stored.
    pub size: u64,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// What an output gave.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// The answer, by BuildKit's keys.
    pub response: BTreeMap<String, String>,
    /// The images that were made; none of an output of files.
    pub images: Vec<Image>,
}

/// Why an output was not given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    #[error("attribute {name}={value:?} of the output: {reason}")]
    Attribute {
        name: String,
        value: String,
        reason: String,
    },
    #[error("unknown attribute {name:?} of the output{hint}")]
    UnknownAttribute { name: String, hint: String },
    #[error("the output needs a destination (dest=…)")]
    NoDestination,
    #[error("image config of {platform}: {reason}")]
    Config { platform: String, reason: String },
    #[error("cannot export attestations with \"oci-mediatypes=false\"")]
    NoAttestations,
    #[error("the statement {kind}: {source}")]
    Predicate { kind: String, source: OpError },
    #[error("two statements would be written to {0}")]
    SameFile(String),
    #[error("{action}: {source}")]
    Write { action: String, source: std::io::Error },
    #[error(transparent)]
    Session(#[from] session::SessionError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Layer(#[from] cache::layer::LayerError),
    #[error(transparent)]
    Tree(#[from] tree::Error),
    #[error(transparent)]
    Registry(#[from] registry::RegistryError),
    #[error("a thread of the export ended early")]
    Thread,
}

impl From<ExportError> for OpError {
    fn from(error: ExportError) -> OpError {
        let blame = match &error {
            ExportError::Attribute { .. }
            | ExportError::UnknownAttribute { .. }
            | ExportError::NoAttestations
            | ExportError::SameFile(_)
            | ExportError::NoDestination => Blame::User,
            ExportError::Predicate { source, .. } => source.blame(),
            ExportError::Config { .. } | ExportError::Thread => Blame::Internal,
            ExportError::Registry(error) if !error.is_temporary() => Blame::User,
            _ => Blame::Environment,
        };
        match error {
            // As it is, so that whoever looks for it finds it.
            ExportError::Cache(error) => OpError::new(blame, error),
            error => OpError::new(blame, error),
        }
    }
}

/// Gives what was built to one output.
///
/// # Errors
/// An attribute is wrong, a layer cannot be packed, or the destination takes nothing.
pub async fn export(
    worker: &Worker,
    session: &Session,
    request: Request,
    source: &Source,
    sink: &Sink,
) -> Result<Done, OpError> {
    Ok(give(worker, session, request, source, sink).await?)
}

async fn give(
    worker: &Worker,
    session: &Session,
    request: Request,
    source: &Source,
    sink: &Sink,
) -> Result<Done, ExportError> {
    let Request { kind, attrs, dest } = request;
    let mut attrs = attrs::Attrs::parse(kind, attrs)?;
    if !attrs.types_given && attest::are_wanted(&source.platforms, &attrs) {
        // Docker's media types know no statements.
        (attrs.is_oci, attrs.is_artifact) = (true, true);
    }
    match kind {
        Kind::Local | Kind::Tar => {
            let dest = dest.ok_or(ExportError::NoDestination)?;
            files::give(worker, source, &attrs, dest, sink).await?;
            Ok(Done::default())
        }
        Kind::Image => {
            let built = image::build(worker, source, &attrs, sink).await?;
            if attrs.store {
                built.name(worker, &attrs, sink).await?;
            }
            if attrs.push {
                push::push(worker, session, &built, &attrs, sink).await?;
            }
            Ok(built.done(&attrs))
        }
        Kind::Oci | Kind::Docker => {
            let dest = dest.ok_or(ExportError::NoDestination)?;
            let mut built = image::build(worker, source, &attrs, sink).await?;
            built.stamp(source, &attrs);
            let done = built.done(&attrs);
            match dest {
                Dest::Caller => archive::give_blobs(worker, session, &built, sink).await?,
                dest => archive::give(worker, built, &attrs, kind == Kind::Docker, dest, sink).await?,
            }
            Ok(done)
        }
    }
}

/// Runs work that blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExportError> + Send + 'static,
) -> Result<T, ExportError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ExportError::Thread)?
}
