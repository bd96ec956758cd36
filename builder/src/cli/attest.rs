//! `--attest`, `--provenance` and `--sbom`: what is to be stated about the result.
//!
//! `--provenance=mode=max` is `--attest=type=provenance,mode=max`; `false` or `disabled=true` takes it back. Of several
//! of one kind the last counts.
//!
//! Differs: buildx asks for a provenance in mode `min` by itself where a daemon can state one. It holds when the build began
//! and ended, so that the same build, even wholly from the cache or with `SOURCE_DATE_EPOCH`, has another digest each time.
//! Here nothing is stated that was not asked for; buildx as a client of our daemon asks as ever.
use super::build_flags::{BuildFlags, go_bool};
use super::values::{UsageError, fields};
use std::collections::BTreeMap;

/// What each kind of statement is asked with, by kind.
pub(super) fn attests(flags: &BuildFlags) -> Result<BTreeMap<String, String>, UsageError> {
    let short = |kind: &str, value: &Option<String>| {
        let value = value.as_deref().filter(|value| !value.is_empty())?;
        let flag = format!("--{kind}={value}");
        let full = match go_bool(value) {
            Ok(is_on) => format!("type={kind},disabled={}", !is_on),
            Err(_) => format!("type={kind},{value}"),
        };
        Some((flag, full))
    };
    let mut attests = BTreeMap::new();
    let given = flags
        .attest
        .iter()
        .map(|value| (format!("--attest={value}"), value.clone()));
    let given = given
        .chain(short("provenance", &flags.provenance))
        .chain(short("sbom", &flags.sbom));
    for (flag, value) in given {
        let (kind, value) = one(&flag, &value)?;
        match value {
            Some(value) => attests.insert(kind, value),
            None => attests.remove(&kind),
        };
    }
    Ok(attests)
}

/// The kind, and what it is asked with; `None` if it is not to be stated.
fn one(flag: &str, value: &str) -> Result<(String, Option<String>), UsageError> {
    let wrong = |what: &str| UsageError::new(format!("{flag}: {what}"));
    let (mut kind, mut is_off, mut rest) = (String::new(), false, Vec::new());
    for field in fields(flag, value)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| wrong(&format!("{field:?} is not key=value")))?;
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => kind = value.to_owned(),
            "disabled" => is_off = go_bool(value).map_err(|error| wrong(&error))?,
            _ => rest.push(quoted(&field)),
        }
    }
    match kind.as_str() {
        "provenance" | "sbom" => Ok((kind, (!is_off).then(|| rest.join(",")))),
        "" => Err(wrong("the type is missing").hint("say type=provenance or type=sbom")),
        other => Err(wrong(&format!("unknown attestation type {other:?}"))
            .hint("there are type=provenance and type=sbom")),
    }
}

/// A field as one of comma-separated values.
fn quoted(field: &str) -> String {
    if field.contains([',', '"']) {
        return format!("\"{}\"", field.replace('"', "\"\""));
    }
    field.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(attest: &[&str], provenance: Option<&str>, sbom: Option<&str>) -> Result<Vec<String>, String> {
        let flags = BuildFlags {
            attest: attest.iter().map(|&text| text.to_owned()).collect(),
            provenance: provenance.map(str::to_owned),
            sbom: sbom.map(str::to_owned),
            ..BuildFlags::default()
        };
        let found = attests(&flags).map_err(|error| error.message)?;
        Ok(found
            .iter()
            .map(|(kind, value)| format!("{kind}:{value}"))
            .collect())
    }

    #[test]
    fn short_and_long_forms_mean_the_same() {
        let ok = |list: &[&str]| Ok(list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[], None, None), ok(&[]));
        assert_eq!(of(&[], Some("true"), Some("false")), ok(&["provenance:"]));
        assert_eq!(
            of(&["type=sbom,generator=a/b"], Some("mode=max,version=v0.2"), None),
            ok(&["provenance:mode=max,version=v0.2", "sbom:generator=a/b"])
        );
        assert_eq!(of(&["type=provenance,mode=max"], Some("false"), None), ok(&[]));
        assert_eq!(of(&["type=provenance,disabled=true"], None, None), ok(&[]));
        assert_eq!(
            of(&["type=provenance,\"builder-id=a,b\""], None, None),
            ok(&["provenance:\"builder-id=a,b\""])
        );
    }

    #[test]
    fn mistakes_name_the_flag() {
        for (value, expected) in [
            ("mode=max", "--attest=mode=max: the type is missing"),
            ("type=vex", "--attest=type=vex: unknown attestation type \"vex\""),
            ("type=sbom,x", "--attest=type=sbom,x: \"x\" is not key=value"),
            (
                "type=sbom,disabled=maybe",
                "--attest=type=sbom,disabled=maybe: \"maybe\" is neither true nor false",
            ),
        ] {
            assert_eq!(of(&[value], None, None).expect_err("refused"), expected);
        }
    }
}
