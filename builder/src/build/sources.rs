//! The sources a build may use, and what it uses instead of some: BuildKit's source policies, applied.
//!
//! ```text
//! definition, image to resolve ─▶ each source ─▶ Guard::decide ─┬─ as it is
//!                                                              ├─ another source: the definition is made anew
//!                                                              └─ no: the build ends
//! ```
//!
//! The rules of one policy are gone through in order. The last of `ALLOW` and `DENY` that matches wins; the first
//! `CONVERT` that changes something ends the round, and all policies are asked about the new source. Where several policies
//! are given, none of them may deny.
//!
//! Differs: a rule that is none (no selector, a bad expression) is refused when the policy comes in, BuildKit's says so only
//! when a source is held against it.
use api::sourcepolicy::{AttrMatch, MatchType, Policy, PolicyAction, Update};
use async_trait::async_trait;
use futures_util::future::try_join_all;
use llb::op::{Op, SourceOp};
use llb::{Definition, Error};
use oci::Platform;
use regex::{Regex, RegexBuilder};
use solver::SolveError;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rules of all policies of one build.
const MAX_RULES: usize = 10_000;
/// What one expression may take when compiled, in bytes.
const MAX_EXPRESSION: usize = 1 << 20;
/// Rounds of one source before its policies are said to go round in circles.
const MAX_ROUNDS: usize = 20;

/// Decides about the sources of a build.
#[async_trait]
pub(crate) trait Guard: Send + Sync {
    /// The source to use in the place of one: the same, or another.
    ///
    /// # Errors
    /// It may not be used.
    async fn decide(&self, source: SourceOp, platform: Option<&Platform>) -> Result<SourceOp, Denied>;
}

/// The address a step may ask instead of `address`, or none for the very one.
///
/// # Errors
/// It may not be asked, or what it is to be is no address.
pub(crate) async fn judge_request(guard: &dyn Guard, address: &str) -> Result<Option<String>, String> {
    let source = SourceOp {
        identifier: address.to_owned(),
        attrs: BTreeMap::default(),
    };
    let decided = guard
        .decide(source, None)
        .await
        .map_err(|denied| denied.to_string())?;
    if !decided.attrs.is_empty() {
        return Err(format!(
            "{address}: a request can be sent elsewhere, but has no attributes to change"
        ));
    }
    Ok((decided.identifier != address).then_some(decided.identifier))
}

/// A definition with the sources a guard wants.
///
/// # Errors
/// A source may not be used, or the definition is none.
pub(crate) async fn guarded(guard: &dyn Guard, definition: &Definition) -> Result<Definition, Denied> {
    let graph = definition.to_graph().map_err(Denied::no_definition)?;
    let sources = graph.vertices.iter().filter_map(|vertex| match &vertex.op {
        Op::Source(source) => Some((vertex, source)),
        _ => None,
    });
    let decided = try_join_all(sources.map(async |(vertex, source)| {
        let wanted = guard.decide(source.clone(), vertex.platform.as_ref()).await?;
        Ok::<_, Denied>((*source != wanted).then_some((vertex.digest, wanted)))
    }));
    let others: BTreeMap<_, _> = decided.await?.into_iter().flatten().collect();
    if others.is_empty() {
        return Ok(definition.clone());
    }
    definition.with_sources(&others).map_err(Denied::no_definition)
}

/// A source that may not be used, or of which that cannot be told.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct Denied {
    /// What it is, and why.
    pub(crate) message: String,
    /// What a client that decides says about it.
    pub(crate) words: Vec<String>,
}

impl Denied {
    /// Without words of a client.
    pub(crate) fn new(message: impl Into<String>) -> Denied {
        Denied {
            message: message.into(),
            words: Vec::new(),
        }
    }

    fn no_definition(error: Error) -> Denied {
        Denied::new(SolveError::Definition(Arc::new(error)).to_string())
    }
}

/// A policy that cannot be kept to.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("source policy: {0}")]
pub struct PolicyError(String);

/// The rules of some policies, checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    policies: Vec<Arc<[Rule]>>,
}

#[derive(Debug)]
struct Rule {
    action: Action,
    identifier: String,
    /// `None`: the identifier as it stands, and nothing else.
    expression: Option<Regex>,
    is_expression: bool,
    constraints: Vec<Constraint>,
}

#[derive(Debug)]
enum Action {
    Allow,
    Deny,
    Convert(Update),
}

#[derive(Debug)]
struct Constraint {
    key: String,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Rules {
    /// The rules of policies as they came.
    ///
    /// # Errors
    /// The first rule that is none.
    pub(crate) fn new(policies: &[Policy]) -> Result<Rules, PolicyError> {
        let count: usize = policies.iter().map(|policy| policy.rules.len()).sum();
        if count > MAX_RULES {
            return Err(PolicyError(format!("{count} rules are more than {MAX_RULES}")));
        }
        let policies = policies.iter().filter(|policy| !policy.rules.is_empty());
        let policies = policies.map(|policy| policy.rules.iter().map(rule).collect());
        Ok(Rules {
            policies: policies.collect::<Result<_, _>>()?,
        })
    }

    /// These and then those.
    pub(crate) fn and(&self, others: Rules) -> Rules {
        let policies = self.policies.iter().cloned().chain(others.policies);
        Rules {
            policies: policies.collect(),
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The source to use in the place of one.
    ///
    /// # Errors
    /// It is denied, or changed without end.
    pub(crate) fn apply(&self, mut source: SourceOp) -> Result<SourceOp, Denied> {
        for _ in 0..=MAX_ROUNDS {
            match self.round(&source)? {
                None => return Ok(source),
                Some(other) => source = other,
            }
        }
        Err(Denied::new(
            "too many mutations on a single source: too many operations",
        ))
    }

    /// What the first rule that changes the source makes of it.
    fn round(&self, source: &SourceOp) -> Result<Option<SourceOp>, Denied> {
        for policy in &self.policies {
            let mut is_denied = false;
            for rule in policy.iter().filter(|rule| rule.matches(source)) {
                match &rule.action {
                    Action::Allow => is_denied = false,
                    Action::Deny => is_denied = true,
                    Action::Convert(update) => {
                        let other = rule.convert(source, update);
                        if other != *source {
                            return Ok(Some(other));
                        }
                    }
                }
            }
            if is_denied {
                let name = &source.identifier;
                let message = format!("source {name:?} denied by policy: source denied by policy");
                return Err(Denied::new(message));
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Guard for Rules {
    async fn decide(&self, source: SourceOp, _: Option<&Platform>) -> Result<SourceOp, Denied> {
        let asked = normalized(source.clone());
        let answer = self.apply(asked.clone())?;
        Ok(if answer == asked { source } else { answer })
    }
}

/// A source as policies know it: git repositories by host and path, however they are reached.
pub(crate) fn normalized(mut source: SourceOp) -> SourceOp {
    if source.scheme() == "git"
        && let Some(url) = source.attrs.get(llb::attr::GIT_FULL_URL)
    {
        let fragment = source.identifier.split_once('#').map(|(_, fragment)| fragment);
        let place = git_place(url);
        source.identifier = match fragment {
            Some(fragment) => format!("git://{place}#{fragment}"),
            None => format!("git://{place}"),
        };
    }
    source
}

/// `https://user@host/a/b.git` and `git@host:a/b.git` as `host/a/b.git`.
fn git_place(url: &str) -> String {
    let (rest, is_url) = match url.split_once("://") {
        Some((_, rest)) => (rest, true),
        None => (url, false),
    };
    let rest = rest.split(['#', '?']).next().unwrap_or_default();
    let end = rest.find('/').unwrap_or(rest.len());
    let rest = match rest[..end].rfind('@') {
        Some(at) => &rest[at + 1..],
        None => rest,
    };
    if is_url {
        return rest.to_owned();
    }
    match rest.split_once(':') {
        Some((host, path)) => format!("{host}/{}", path.trim_start_matches('/')),
        None => rest.to_owned(),
    }
}

fn rule(wire: &api::sourcepolicy::Rule) -> Result<Rule, PolicyError> {
    let selector = wire
        .selector
        .as_ref()
        .ok_or_else(|| PolicyError("a rule without a selector".into()))?;
    let name = &selector.identifier;
    let expression = match MatchType::try_from(selector.match_type) {
        Ok(MatchType::Exact) => None,
        Ok(MatchType::Wildcard) if name.contains("**") => {
            return Err(PolicyError(format!("invalid wildcard {name:?}: \"**\"")));
        }
        Ok(MatchType::Wildcard) => {
            let parts: Vec<_> = name.split('*').map(regex::escape).collect();
            Some(expression(&format!("^{}$", parts.join("(.*)")))?)
        }
        Ok(MatchType::Regex) => Some(expression(name)?),
        Err(_) => {
            return Err(PolicyError(format!(
                "unknown match type {} for {name:?}",
                selector.match_type
            )));
        }
    };
    let action = match (PolicyAction::try_from(wire.action), &wire.updates) {
        (Ok(PolicyAction::Allow), _) => Action::Allow,
        (Ok(PolicyAction::Deny), _) => Action::Deny,
        (Ok(PolicyAction::Convert), Some(update)) => Action::Convert(update.clone()),
        (Ok(PolicyAction::Convert), None) => {
            return Err(PolicyError(format!("{name:?} is converted into nothing")));
        }
        (Err(_), _) => {
            return Err(PolicyError(format!(
                "unknown action {} for {name:?}",
                wire.action
            )));
        }
    };
    Ok(Rule {
        action,
        identifier: name.clone(),
        expression,
        is_expression: selector.match_type == MatchType::Regex as i32,
        constraints: selector
            .constraints
            .iter()
            .map(constraint)
            .collect::<Result<_, _>>()?,
    })
}

fn constraint(wire: &api::sourcepolicy::AttrConstraint) -> Result<Constraint, PolicyError> {
    let value = wire.value.clone();
    let test = match AttrMatch::try_from(wire.condition) {
        Ok(AttrMatch::Equal) => Test::Equal(value),
        Ok(AttrMatch::Notequal) => Test::NotEqual(value),
        Ok(AttrMatch::Matches) => Test::Matches(expression(&value)?),
        Err(_) => {
            return Err(PolicyError(format!(
                "unknown condition {} of attribute {:?}",
                wire.condition, wire.key
            )));
        }
    };
    Ok(Constraint {
        key: wire.key.clone(),
        test,
    })
}

fn expression(text: &str) -> Result<Regex, PolicyError> {
    let built = RegexBuilder::new(text).size_limit(MAX_EXPRESSION).build();
    built.map_err(|error| PolicyError(format!("expression {text:?}: {error}")))
}

impl Rule {
    fn matches(&self, source: &SourceOp) -> bool {
        let attribute = |key: &str| source.attrs.get(key).map_or("", String::as_str);
        let holds = self.constraints.iter().all(|one| match &one.test {
            Test::Equal(value) => attribute(&one.key) == value,
            Test::NotEqual(value) => attribute(&one.key) != value,
            Test::Matches(expression) => expression.is_match(attribute(&one.key)),
        });
        holds
            && (self.identifier == source.identifier
                || self
                    .expression
                    .as_ref()
                    .is_some_and(|expression| expression.is_match(&source.identifier)))
    }

    fn convert(&self, source: &SourceOp, update: &Update) -> SourceOp {
        let (name, template) = (&source.identifier, update.identifier.as_str());
        let identifier = match &self.expression {
            // Differs: BuildKit takes the selector for the new identifier, with its wildcards as they stand.
            _ if template.is_empty() => name.clone(),
            None => template.to_owned(),
            Some(expression) if self.is_expression => expression.replace_all(name, template).into_owned(),
            Some(expression) => match expression.captures(name) {
                None => name.clone(),
                Some(captures) => {
                    let mut made = String::new();
                    captures.expand(template, &mut made);
                    made
                }
            },
        };
        let mut attrs = source.attrs.clone();
        attrs.extend(update.attrs.clone());
        SourceOp {
            identifier: if identifier.is_empty() {
                name.clone()
            } else {
                identifier
            },
            attrs,
        }
    }
}

#[cfg(test)]
mod tests;
