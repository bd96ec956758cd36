//! Why a Dockerfile cannot be built: what is wrong, where, and what may have been meant.

use std::fmt;
use std::sync::Arc;

use llb::Range;
use llb::state::SourceMap;

use crate::gateway::GatewayError;
use crate::options::OptionsError;

/// A mistake, with the lines it is in.
#[derive(Debug)]
pub struct Error {
    /// What is wrong.
    pub kind: Box<ErrorKind>,
    /// Which lines of the Dockerfile; empty when it is not about any.
    pub ranges: Vec<Range>,
    /// The Dockerfile, once it is known.
    pub source_map: Option<Arc<SourceMap>>,
    /// What may have been meant, or what to do.
    pub hint: Option<String>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.kind, f)
    }
}

impl std::error::Error for Error {
    /// What is behind the kind, which is this error itself.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.kind)
    }
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    /// Something in the Dockerfile.
    #[error("{0}")]
    Invalid(String),
    /// Something in the request.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The Dockerfile is not there.
    #[error("there is no {filename} in {place}")]
    NoDockerfile {
        /// Its name.
        filename: String,
        /// Where it was looked for.
        place: String,
    },
    /// The target is not there.
    #[error("target stage {target:?} could not be found")]
    UnknownTarget {
        /// Its name.
        target: String,
    },
    /// A base image that cannot be had.
    #[error("{written}: failed to resolve source metadata for {reference}")]
    Image {
        /// Its name, as written.
        written: String,
        /// What it means.
        reference: String,
        /// Why.
        source: GatewayError,
    },
    /// A file that cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// Which.
        what: String,
        /// Why.
        source: GatewayError,
    },
    /// A frontend image that would have to be run.
    #[error("the Dockerfile asks for the frontend image {image:?}; this builder reads Dockerfiles itself")]
    FrontendImage {
        /// Its name.
        image: String,
        /// All that stands behind `syntax=`.
        line: String,
    },
    /// Triggers name images, whose triggers name images, and so on.
    #[error("base images name each other without end in their ONBUILD triggers")]
    Endless,
    /// Lint warnings, and `check=error=true`.
    #[error("lint violation found for rules: {}", rules.join(", "))]
    Checks {
        /// Which rules.
        rules: Vec<&'static str>,
    },
    /// A graph that cannot be written.
    #[error(transparent)]
    Llb(#[from] llb::Error),
}

impl Error {
    /// Something wrong in the Dockerfile.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        ErrorKind::Invalid(text.into()).into()
    }

    /// Adds the lines, unless nearer ones are known.
    #[must_use]
    pub(crate) fn at(mut self, ranges: &[Range]) -> Self {
        if self.ranges.is_empty() {
            self.ranges = ranges.to_vec();
        }
        self
    }

    /// Says which word may have been meant, as BuildKit says it: in the message itself.
    #[must_use]
    pub(crate) fn suggesting(mut self, near: Option<&str>) -> Self {
        if let (ErrorKind::Invalid(text), Some(near)) = (&mut *self.kind, near) {
            text.push_str(&format!(" (did you mean {near}?)"));
        }
        self
    }

    /// Says on which line an instruction is wrong in itself.
    #[must_use]
    pub(crate) fn on_line(mut self, line: i32) -> Self {
        if let ErrorKind::Invalid(text) = &mut *self.kind {
            *text = format!("dockerfile parse error on line {line}: {text}");
        }
        self
    }

    /// Adds what may have been meant.
    #[must_use]
    pub(crate) fn hinting(mut self, hint: Option<String>) -> Self {
        self.hint = self.hint.or(hint);
        self
    }

    /// Adds the Dockerfile.
    #[must_use]
    pub(crate) fn in_file(mut self, map: &Arc<SourceMap>) -> Self {
        self.source_map.get_or_insert_with(|| Arc::clone(map));
        self
    }
}

impl<E: Into<ErrorKind>> From<E> for Error {
    fn from(kind: E) -> Self {
        Self {
            kind: Box::new(kind.into()),
            ranges: Vec::new(),
            source_map: None,
            hint: None,
        }
    }
}
