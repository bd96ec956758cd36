//! Which statements are asked for, as `docker buildx` writes it:
//! `attest:provenance=mode=min,inline-only=true`, `attest:sbom=generator=IMAGE`.

use std::collections::BTreeMap;

use oci::Reference;

/// Attributes that begin so ask for a statement.
const PREFIX: &str = "attest:";
/// Build arguments that do.
const ARGUMENT: &str = "build-arg:BUILDKIT_ATTEST_";
/// The scanner where none is named.
const SCANNER: &str = "docker/buildkit-syft-scanner:stable-1";

/// The statements to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// How the result was made.
    pub(crate) provenance: Option<Provenance>,
    /// What is in it.
    pub(crate) sbom: Option<Sbom>,
}

/// How much is said of how a result was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Provenance {
    pub(crate) version: Version,
    /// All there is: build arguments, steps, lines of the Dockerfile.
    pub(crate) is_max: bool,
    pub(crate) is_inline_only: bool,
    pub(crate) is_reproducible: bool,
    /// Fails the build where a source is not known by digest.
    pub(crate) needs_materials: bool,
    pub(crate) builder_id: String,
    /// The file it is written to beside files.
    pub(crate) file: String,
}

impl Default for Provenance {
    /// As the history keeps it of every build.
    fn default() -> Provenance {
        Provenance {
            version: Version::V1,
            is_max: true,
            is_inline_only: false,
            is_reproducible: false,
            needs_materials: false,
            builder_id: String::new(),
            file: "provenance.json".to_owned(),
        }
    }
}

/// The version of SLSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V02,
    V1,
}

/// Who says what is in a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sbom {
    /// The scanner's image.
    pub(crate) scanner: Reference,
    /// What the scanner is told beside, as `BUILDKIT_SCAN_<name>`.
    pub(crate) parameters: BTreeMap<String, String>,
}

/// Why it cannot be read what is asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskedError {
    /// There is no such statement.
    #[error("unknown attestation type {0:?}")]
    Kind(String),
    /// It is no list of values.
    #[error("failed to parse {kind}: {reason}")]
    Csv {
        /// Which statement.
        kind: String,
        /// Why not.
        reason: String,
    },
    /// A value it cannot have.
    #[error("attestation {kind}: {name}={value:?}: {reason}")]
    Value {
        /// Which statement.
        kind: &'static str,
        /// Which value.
        name: String,
        /// What it was.
        value: String,
        /// Why not.
        reason: String,
    },
}

impl Asked {
    /// What the attributes of a request ask for.
    pub(crate) fn parse(attributes: &BTreeMap<String, String>) -> Result<Asked, AskedError> {
        let mut asked = Asked::default();
        for (name, value) in attributes {
            let kind = name.strip_prefix(PREFIX).or_else(|| name.strip_prefix(ARGUMENT));
            let Some(kind) = kind.map(str::to_ascii_lowercase) else {
                continue;
            };
            let fields = fields(&kind, value)?;
            match kind.as_str() {
                "provenance" => asked.provenance = Some(provenance(fields)?),
                "sbom" => asked.sbom = Some(sbom(fields)?),
                _ => return Err(AskedError::Kind(kind)),
            }
        }
        Ok(asked)
    }
}

fn fields(kind: &str, value: &str) -> Result<Vec<(String, String)>, AskedError> {
    let csv = frontend::csv(value).map_err(|reason| AskedError::Csv {
        kind: kind.to_owned(),
        reason,
    })?;
    let pairs = csv.iter().map(|field| {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        (name.to_owned(), value.to_owned())
    });
    Ok(pairs.collect())
}

fn provenance(fields: Vec<(String, String)>) -> Result<Provenance, AskedError> {
    let mut asked = Provenance::default();
    for (name, value) in fields {
        let wrong = |reason: &str| AskedError::Value {
            kind: "provenance",
            name: name.clone(),
            value: value.clone(),
            reason: reason.to_owned(),
        };
        let flag = || boolean(&value).ok_or_else(|| wrong("it is true or false"));
        match name.as_str() {
            "mode" => {
                asked.is_max = match value.as_str() {
                    "max" | "full" => true,
                    "min" => false,
                    _ => return Err(wrong("invalid mode, it is min or max")),
                }
            }
            "version" => {
                asked.version = match value.as_str() {
                    "v1" => Version::V1,
                    "v0.2" => Version::V02,
                    _ => return Err(wrong("invalid provenance SLSA version, it is v1 or v0.2")),
                }
            }
            "inline-only" => asked.is_inline_only = flag()?,
            "reproducible" => asked.is_reproducible = flag()?,
            "complete-materials" => asked.needs_materials = flag()?,
            "builder-id" => asked.builder_id = value,
            "filename" => asked.file = value,
            "capture-usage" if flag()? => return Err(wrong("the use of resources is not measured")),
            "capture-usage" => {}
            // buildx says once more what it is.
            "type" => {}
            _ => return Err(wrong("there is no such attribute")),
        }
    }
    Ok(asked)
}

fn sbom(fields: Vec<(String, String)>) -> Result<Sbom, AskedError> {
    let mut scanner = SCANNER.to_owned();
    let mut parameters = BTreeMap::new();
    for (name, value) in fields {
        match name.as_str() {
            "generator" => scanner = value,
            // buildx says once more what it is.
            "type" => {}
            _ => {
                parameters.insert(name, value);
            }
        }
    }
    let parsed = Reference::parse_normalized(&scanner).map_err(|error| AskedError::Value {
        kind: "sbom",
        name: "generator".to_owned(),
        value: scanner.clone(),
        reason: error.to_string(),
    })?;
    Ok(Sbom {
        scanner: parsed.with_default_tag(),
        parameters,
    })
}

/// As Go reads a boolean.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &[(&str, &str)]) -> Result<Asked, String> {
        let given = given
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Asked::parse(&given).map_err(|error| error.to_string())
    }

    #[test]
    fn buildx_asks_for_the_least_by_itself() {
        let asked = parse(&[
            ("attest:provenance", "mode=min,inline-only=true"),
            ("build-arg:A", "1"),
        ]);
        let expected = Provenance {
            is_max: false,
            is_inline_only: true,
            ..Provenance::default()
        };
        assert_eq!(asked.expect("fine").provenance, Some(expected));
        assert_eq!(parse(&[("build-arg:A", "1")]), Ok(Asked::default()));
    }

    #[test]
    fn a_build_argument_asks_as_well() {
        let asked = parse(&[(
            "build-arg:BUILDKIT_ATTEST_SBOM",
            "generator=localhost:5000/scan,DEBUG=1",
        )]);
        let sbom = asked.expect("fine").sbom.expect("asked for");
        assert_eq!(sbom.scanner.to_string(), "localhost:5000/scan:latest");
        assert_eq!(sbom.parameters, [("DEBUG".to_owned(), "1".to_owned())].into());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (name, value, expected) in [
            ("attest:signature", "", "unknown attestation type \"signature\""),
            (
                "attest:provenance",
                "mode=most",
                "attestation provenance: mode=\"most\": invalid mode, it is min or max",
            ),
            (
                "attest:provenance",
                "version=v2",
                "attestation provenance: version=\"v2\": invalid provenance SLSA version, it is v1 or v0.2",
            ),
            (
                "attest:provenance",
                "reproducible=maybe",
                "attestation provenance: reproducible=\"maybe\": it is true or false",
            ),
            (
                "attest:provenance",
                "colour=red",
                "attestation provenance: colour=\"red\": there is no such attribute",
            ),
        ] {
            assert_eq!(parse(&[(name, value)]).expect_err("refused"), expected);
        }
        assert!(parse(&[("attest:sbom", "generator=")]).is_err());
        assert!(parse(&[("attest:sbom", "generator=a\"b")]).is_err());
    }
}
