//! The source policy of the command line: a JSON file named by `EXPERIMENTAL_BUILDKIT_SOURCE_POLICY`, as buildx reads it.
//!
//! ```text
//! {"version": 1, "rules": [{"action": "CONVERT",
//!                           "selector": {"identifier": "docker-image://docker.io/*", "match_type": "WILDCARD"},
//!                           "updates": {"identifier": "docker-image://mirror.example/$1"}}]}
//! ```
//!
//! Differs: a field nobody knows is refused, as it may have been meant to deny something; and the file is JSON, never the
//! encoded message buildx takes beside.
use super::values::UsageError;
use crate::build::Rules;
use crate::config::Environment;
use api::sourcepolicy::{AttrConstraint, AttrMatch, MatchType, Policy, PolicyAction, Rule, Selector, Update};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The variable that names the file.
const VARIABLE: &str = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";

/// The policy the environment names; `None` if it names none.
pub(super) fn of(environment: &Environment) -> Result<Option<Policy>, UsageError> {
    let Some(path) = environment.text(VARIABLE).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let wrong = |error: &dyn std::fmt::Display| UsageError::new(format!("{VARIABLE}: {path}: {error}"));
    let text = std::fs::read(path).map_err(|error| wrong(&error))?;
    let policy = parse(&text).map_err(|error| wrong(&error))?;
    Rules::new(std::slice::from_ref(&policy)).map_err(|error| wrong(&error))?;
    Ok(Some(policy))
}

fn parse(text: &[u8]) -> Result<Policy, String> {
    let file: File = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let rules = file.rules.into_iter().map(FileRule::wire);
    Ok(Policy {
        version: file.version,
        rules: rules.collect::<Result<_, _>>()?,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    version: i64,
    #[serde(default)]
    rules: Vec<FileRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    #[serde(default)]
    action: Name,
    selector: Option<FileSelector>,
    updates: Option<FileUpdate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSelector {
    #[serde(default)]
    identifier: String,
    #[serde(default, alias = "matchType")]
    match_type: Name,
    #[serde(default)]
    constraints: Vec<FileConstraint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConstraint {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    condition: Name,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileUpdate {
    #[serde(default)]
    identifier: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// A value of an enum, by name or number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Number(i32),
}

impl Default for Name {
    fn default() -> Name {
        Name::Number(0)
    }
}

impl Name {
    fn number(&self, what: &str, find: impl Fn(&str) -> Option<i32>) -> Result<i32, String> {
        match self {
            Name::Number(number) => Ok(*number),
            Name::Text(text) => find(text).ok_or_else(|| format!("unknown {what} {text:?}")),
        }
    }
}

impl FileRule {
    fn wire(self) -> Result<Rule, String> {
        Ok(Rule {
            action: self
                .action
                .number("action", |text| PolicyAction::from_str_name(text).map(i32::from))?,
            selector: self.selector.map(FileSelector::wire).transpose()?,
            updates: self.updates.map(|update| Update {
                identifier: update.identifier,
                attrs: update.attrs,
            }),
        })
    }
}

impl FileSelector {
    fn wire(self) -> Result<Selector, String> {
        let constraint = |one: FileConstraint| {
            let condition = one
                .condition
                .number("condition", |text| AttrMatch::from_str_name(text).map(i32::from))?;
            Ok::<_, String>(AttrConstraint {
                key: one.key,
                value: one.value,
                condition,
            })
        };
        Ok(Selector {
            identifier: self.identifier,
            match_type: self
                .match_type
                .number("match type", |text| MatchType::from_str_name(text).map(i32::from))?,
            constraints: self
                .constraints
                .into_iter()
                .map(constraint)
                .collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use api::sourcepolicy::{MatchType, PolicyAction};

    #[test]
    fn names_and_numbers() {
        let text = br#"{"version": 1, "rules": [
            {"action": "CONVERT", "selector": {"identifier": "a", "match_type": "REGEX"}, "updates": {"identifier": "b"}},
            {"action": 1, "selector": {"identifier": "a", "constraints": [{"key": "k", "condition": "NOTEQUAL"}]}},
            {"selector": {"identifier": "a"}}]}"#;
        let policy = parse(text).expect("a policy");
        let actions: Vec<_> = policy.rules.iter().map(|rule| rule.action()).collect();
        assert_eq!(
            actions,
            [PolicyAction::Convert, PolicyAction::Deny, PolicyAction::Allow]
        );
        let selector = policy.rules[0].selector.as_ref().expect("one");
        assert_eq!(selector.match_type(), MatchType::Regex);
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        for (text, word) in [
            (r#"{"rules": [{"action": "REJECT"}]}"#, "REJECT"),
            (r#"{"rules": [{"action": "DENY", "selektor": {}}]}"#, "selektor"),
            ("[", "EOF"),
        ] {
            let why = parse(text.as_bytes()).expect_err("refused");
            assert!(why.contains(word), "{why}");
        }
    }
}
