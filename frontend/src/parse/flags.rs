//! `--name[=value]` of an instruction, checked against those it knows.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::suggest;

/// What may stand behind a flag.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// `true`, `false` or nothing, once.
    Bool,
    /// A text, once.
    Text,
    /// A text, any number of times.
    Texts,
}

/// The flags an instruction was given.
pub(super) struct Flags(BTreeMap<String, Vec<String>>);

impl Flags {
    pub(super) fn parse(given: &[String], known: &[(&'static str, Takes)]) -> Result<Self, Error> {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for flag in given {
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag.as_str(), None),
            };
            let bare = name.strip_prefix("--").unwrap_or(name);
            let Some((_, takes)) = known.iter().find(|(known, _)| *known == bare) else {
                let near = suggest::nearest(bare, known.iter().map(|(name, _)| *name));
                return Err(Error::invalid(format!("unknown flag: {name}")).suggesting(near));
            };
            let missing = || Error::invalid(format!("missing a value on flag: --{bare}"));
            let value = match (takes, value) {
                (Takes::Bool, None) => "true".to_owned(),
                (_, None) | (Takes::Bool, Some("")) => return Err(missing()),
                (Takes::Bool, Some(value)) => match value.to_lowercase().as_str() {
                    lower @ ("true" | "false") => lower.to_owned(),
                    _ => {
                        return Err(Error::invalid(format!(
                            "expecting boolean value for flag --{bare}, not: {value}"
                        )));
                    }
                },
                (_, Some(value)) => value.to_owned(),
            };
            let values = found.entry(bare.to_owned()).or_default();
            if !values.is_empty() && *takes != Takes::Texts {
                return Err(Error::invalid(format!("duplicate flag specified: --{bare}")));
            }
            values.push(value);
        }
        Ok(Self(found))
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.0
            .get(name)
            .and_then(|values| values.first())
            .cloned()
            .unwrap_or_default()
    }

    /// As [`Flags::text`], which takes a flag without text for none.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        Some(self.0.get(name)?.first()?.as_str())
    }

    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        self.0.get(name).cloned().unwrap_or_default()
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.0
            .get(name)
            .and_then(|values| values.first())
            .map(|value| value == "true")
    }
}
