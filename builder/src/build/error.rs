//! Why a build gave nothing, with all a person needs to mend it.
use super::attest::{AskedError, ClaimError, ScanError};
use super::sources::{Denied, PolicyError};
use solver::{Blame, OpError, SolveError};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Why a build gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A mistake in the Dockerfile, or a base image that cannot be had.
    #[error(transparent)]
    Frontend(#[from] frontend::Error),
    /// A step failed.
    #[error(transparent)]
    Solve(#[from] SolveError),
    /// A step wants what the command line did not allow.
    #[error("{entitlement} is not allowed, but {step:?} asks for it")]
    NotAllowed {
        /// `network.host` or `security.insecure`.
        entitlement: &'static str,
        /// The step's name.
        step: String,
    },
    /// A source may not be used.
    #[error("error evaluating the source policy: {0}")]
    Denied(#[from] Denied),
    /// The rules about sources are none.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The options make no sense to the frontend.
    #[error(transparent)]
    Options(#[from] frontend::OptionsError),
    /// What is to be stated about the build makes no sense.
    #[error(transparent)]
    Attestations(#[from] AskedError),
    /// What is in the result cannot be found out.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// What a scanner wrote cannot be read.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// It cannot be stated.
    #[error(transparent)]
    Statement(OpError),
    /// A cache entry of the request makes no sense.
    #[error(transparent)]
    Cache(#[from] super::EntryError),
    /// What was built could not be given to other machines.
    #[error("{reason}")]
    CacheExport {
        /// The whole chain of causes.
        reason: String,
        /// Whose move it is.
        blame: Blame,
    },
    /// A result could not be given out.
    #[error("export as {output}: {reason}")]
    Export {
        /// The output's type.
        output: String,
        /// The whole chain of causes.
        reason: String,
        /// Whose move it is.
        blame: Blame,
    },
    /// The store could not be opened, or refused.
    #[error("open the store in {}: {reason}", root.display())]
    Store {
        /// Where it is.
        root: PathBuf,
        /// Why.
        reason: String,
    },
    /// Something of this machine did not work.
    #[error("{doing}: {reason}")]
    Machine {
        /// What was attempted.
        doing: String,
        /// Why it failed.
        reason: String,
    },
    /// A daemon was asked, and could not be reached or did not build it.
    #[error("{message}")]
    Remote {
        /// What it says.
        message: String,
        /// The lines it is about.
        lines: Vec<Lines>,
        /// Whose move it is.
        blame: Blame,
        /// What to do about it, where it says so.
        hint: Option<String>,
    },
    /// `--call` with something the frontend does not know.
    #[error("unsupported request {0:?}")]
    NoQuestion(String),
    /// Ctrl-C or SIGTERM.
    #[error("cancelled")]
    Cancelled {
        /// The signal.
        signal: i32,
    },
}

/// Lines of a file an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lines {
    /// The file's name.
    pub filename: String,
    /// Its contents.
    pub data: Vec<u8>,
    /// The lines, counted from 1.
    pub ranges: Vec<RangeInclusive<usize>>,
}

impl BuildError {
    /// Whose move it is.
    pub fn blame(&self) -> Blame {
        match self {
            BuildError::Frontend(error) => blame_of_frontend(error),
            BuildError::Solve(error) => error.blame(),
            BuildError::NotAllowed { .. }
            | BuildError::Options(_)
            | BuildError::Attestations(_)
            | BuildError::Claim(_)
            | BuildError::Denied(_)
            | BuildError::Policy(_)
            | BuildError::NoQuestion(_)
            | BuildError::Cache(_)
            | BuildError::Cancelled { .. } => Blame::User,
            BuildError::Statement(error) => error.blame(),
            BuildError::Scan(ScanError::Image { source, .. }) => {
                super::bridge::blame_of(source).unwrap_or(Blame::User)
            }
            BuildError::Scan(_) => Blame::User,
            BuildError::Export { blame, .. }
            | BuildError::CacheExport { blame, .. }
            | BuildError::Remote { blame, .. } => *blame,
            BuildError::Store { .. } | BuildError::Machine { .. } => Blame::Environment,
        }
    }

    /// The lines of the Dockerfile it is about.
    pub fn lines(&self) -> Vec<Lines> {
        match self {
            BuildError::Solve(SolveError::Vertex { places, .. }) => {
                places.iter().map(lines_of_place).collect()
            }
            BuildError::Frontend(error) => lines_of_frontend(error),
            BuildError::Remote { lines, .. } => lines.clone(),
            _ => Vec::new(),
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            BuildError::NotAllowed { entitlement, .. } => {
                Some(format!("if you trust this Dockerfile, add --allow {entitlement}"))
            }
            BuildError::NoQuestion(_) => {
                Some("ask for check, outline, targets or subrequests.describe".to_owned())
            }
            BuildError::Frontend(error) => error.hint.clone(),
            BuildError::Solve(error) => hint_of_step(&error.to_string()),
            BuildError::Remote { message, hint, .. } => hint.clone().or_else(|| hint_of_step(message)),
            _ => None,
        }
    }
}

fn lines_of_place(place: &solver::Place) -> Lines {
    let line = |number: i32| usize::try_from(number).unwrap_or_default();
    Lines {
        filename: place.file.filename.clone(),
        data: place.file.data.clone(),
        ranges: place
            .location
            .ranges
            .iter()
            .map(|range| line(range.start.line)..=line(range.end.line))
            .collect(),
    }
}

/// Hints for failures everybody meets once.
fn hint_of_step(text: &str) -> Option<String> {
    const HINTS: [(&str, &str); 7] = [
        (
            "exit code: 127",
            "a command was not found: is it installed in this stage, and on PATH?",
        ),
        (
            "exit code: 126",
            "a file could not be executed: is it marked executable (COPY --chmod=0755)?",
        ),
        (
            "exit code: 137",
            "the step was killed, most likely for lack of memory",
        ),
        (
            "become user",
            "without root there is one user only, unless there are newuidmap (package uidmap) and a range of ids for you in \
             /etc/subuid and /etc/subgid; builder doctor says more",
        ),
        (
            "requested by the build but not allowed",
            "if you trust this Dockerfile, add --allow device, or --allow device=NAME for one",
        ),
        ("secret", "offer it with --secret id=ID,src=FILE"),
        (
            "ssh",
            "forward an agent with --ssh default, or a key with --ssh default=KEYFILE",
        ),
    ];
    let found = HINTS.iter().find(|(sign, _)| match *sign {
        // A file that is not found stands in quotes, and may be called secret.
        "secret" | "ssh" => {
            text.contains(sign) && text.contains("not found") && !text.ends_with("\": not found")
        }
        "requested by the build but not allowed" => text.contains(sign),
        "become user" => text.contains("become user") && text.ends_with("(os error 22)"),
        sign => text.ends_with(sign),
    });
    found.map(|(_, hint)| (*hint).to_owned())
}

fn blame_of_frontend(error: &frontend::Error) -> Blame {
    use frontend::ErrorKind;
    match error.kind.as_ref() {
        ErrorKind::Image { source, .. } | ErrorKind::Read { source, .. } => {
            // Whoever answered the question knows whose move it is.
            super::bridge::blame_of(source).unwrap_or(Blame::User)
        }
        ErrorKind::Llb(_) => Blame::Internal,
        _ => Blame::User,
    }
}

fn lines_of_frontend(error: &frontend::Error) -> Vec<Lines> {
    let Some(map) = &error.source_map else {
        return Vec::new();
    };
    let line = |number: i32| usize::try_from(number).unwrap_or_default();
    let ranges: Vec<_> = error
        .ranges
        .iter()
        .map(|range| line(range.start.line)..=line(range.end.line))
        .collect();
    if ranges.is_empty() {
        return Vec::new();
    }
    vec![Lines {
        filename: map.filename.clone(),
        data: map.data.clone(),
        ranges,
    }]
}

#[cfg(test)]
mod tests {
    use super::hint_of_step;

    #[test]
    fn a_file_called_secret_is_no_secret() {
        assert!(hint_of_step("secret token: not found").is_some_and(|hint| hint.contains("--secret")));
        for name in ["secret", "ssh", "dir/secret.txt"] {
            let text = format!("failed to calculate checksum of ref a::b: \"/{name}\": not found");
            assert_eq!(hint_of_step(&text), None);
        }
    }
}
