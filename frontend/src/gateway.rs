//! The one place where the frontend asks the world: files of contexts, configs of base images, warnings.
//!
//! ```text
//! frontend ─▶ Gateway { read_files, resolve_image, source_time, warn } ─▶ session, registry
//! ```
//!
//! Questions that do not depend on each other are asked together; everything after the answers is a
//! function from values to values.

use async_trait::async_trait;
use llb::{Definition, Location};
use oci::{Digest, Platform};

/// What a frontend may ask.
#[async_trait]
pub trait Gateway: Send + Sync {
    /// Reads files of one result, all at once; `None` for one that is not there (or is no file).
    ///
    /// # Errors
    /// When the definition cannot be solved or a file that is there cannot be read.
    async fn read_files(
        &self,
        from: &Definition,
        files: &[FileRequest],
    ) -> Result<Vec<Option<Vec<u8>>>, GatewayError>;

    /// Finds out which image a reference means, and its config.
    ///
    /// # Errors
    /// When there is no such image, or none for the platform.
    async fn resolve_image(&self, request: &ImageRequest) -> Result<ResolvedImage, GatewayError>;

    /// When a source was made, in seconds since 1970: the committer's time of a git commit, `Last-Modified` of an
    /// HTTP file or else the newest file of the archive that it is. `None` when the source has no time.
    ///
    /// # Errors
    /// When there is no such source, or it cannot be reached.
    async fn source_time(&self, source: &Definition, log_name: &str) -> Result<Option<i64>, GatewayError>;

    /// Shows a warning to the user.
    fn warn(&self, warning: Warning);
}

/// A question that could not be answered; says why.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct GatewayError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

impl GatewayError {
    /// Wraps any error, or a text.
    pub fn new(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

/// One file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRequest {
    /// Path from the root of the result.
    pub path: String,
    /// At most so many bytes from its beginning; `None` is all of it (up to the gateway's own limit).
    pub limit: Option<u64>,
}

impl FileRequest {
    /// All of a file.
    pub fn whole(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            limit: None,
        }
    }
}

/// A base image to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// Full reference.
    pub reference: String,
    /// For which platform.
    pub platform: Platform,
    /// Whether a copy at hand will do.
    pub mode: ResolveMode,
    /// Where to look.
    pub place: ImagePlace,
    /// The name progress shows while it is looked for.
    pub log_name: String,
}

/// Where an image is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImagePlace {
    /// In registries (and in the builder's own store).
    Registry,
    /// In an OCI layout the client has, under this name.
    OciLayout {
        /// Name of the layout.
        store: String,
    },
}

/// Whether a copy at hand will do (`image-resolve-mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResolveMode {
    /// As the builder thinks best.
    #[default]
    Default,
    /// Always ask the registry (`--pull`).
    Pull,
    /// Prefer a local copy.
    Local,
}

/// An image that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The reference to use from here on; usually the one that was asked for.
    pub reference: String,
    /// What the reference means: the digest of the manifest or index.
    pub digest: Digest,
    /// The image config for the platform, as JSON.
    pub config: Vec<u8>,
}

/// Something that is not wrong but should be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Name of the lint rule (`StageNameCasing`).
    pub rule: &'static str,
    /// What is said, with the rule and line: as BuildKit users know it.
    pub message: String,
    /// What the rule is about.
    pub detail: String,
    /// Where to read more.
    pub url: String,
    /// Which lines, in the Dockerfile (`Warning::source`).
    pub location: Location,
    /// Name and contents of the file.
    pub source: std::sync::Arc<llb::state::SourceMap>,
    /// The vertex that loaded the file; warnings are shown under it.
    pub vertex: Option<Digest>,
}
