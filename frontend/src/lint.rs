//! Findings: what is not wrong but should be otherwise.
//!
//! ```text
//! parse, stages, lower ─▶ Lint::report ─▶ (skipped? experimental?) ─▶ findings ─▶ Gateway::warn
//! ```
//!
//! `# check=skip=A,B;error=true;experimental=all` at the head of the file configures all of it, the same in a
//! comment above an instruction that instruction; `BUILDKIT_DOCKERFILE_CHECK` stands in for the head.

mod catalogue;

use std::cell::RefCell;
use std::rc::Rc;

use llb::Range;

use crate::error::{Error, ErrorKind};
use crate::lower::format::quote;
use crate::options::go_bool;

pub(crate) use catalogue::Rule;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) rule: Rule,
    pub(crate) ranges: Vec<Range>,
    pub(crate) text: String,
}

/// Which rules count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Config {
    skip: Names,
    experimental: Names,
    is_error: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    some: Vec<String>,
}

impl Names {
    fn has(&self, name: &str) -> bool {
        self.all || self.some.iter().any(|known| known == name)
    }

    fn extend(&mut self, other: Self) {
        self.all |= other.all;
        self.some.extend(other.some);
    }
}

/// Collects findings. Clones share what they collect.
#[derive(Clone, Debug)]
pub(crate) struct Lint {
    config: Option<Config>,
    findings: Rc<RefCell<Vec<Finding>>>,
}

impl Lint {
    /// Configured by the value of `# check=`.
    pub(crate) fn new(check: &str) -> Result<Self, Error> {
        let config = parse(check)
            .map_err(|reason| Error::invalid(format!("failed to parse check options: {reason}")))?;
        Ok(Self {
            config: Some(config),
            findings: Rc::default(),
        })
    }

    /// Finds nothing.
    pub(crate) fn silent() -> Self {
        Self {
            config: None,
            findings: Rc::default(),
        }
    }

    /// As configured by the comments above an instruction.
    #[must_use]
    pub(crate) fn for_comments(&self, comments: &[String]) -> Self {
        let mut lint = self.clone();
        let Some(config) = &mut lint.config else {
            return lint;
        };
        let check = comments.iter().find_map(|comment| {
            let (name, value) = comment.split_once('=')?;
            name.trim().eq_ignore_ascii_case("check").then(|| value.trim())
        });
        if let Some(Ok(more)) = check.map(|value| parse(value.split(' ').next().unwrap_or_default())) {
            config.skip.extend(more.skip);
            config.experimental.extend(more.experimental);
        }
        lint
    }

    /// Notes a finding, unless its rule is skipped.
    pub(crate) fn report(&self, rule: Rule, ranges: &[Range], text: &str) {
        let Some(config) = &self.config else { return };
        let is_wanted = if rule.is_experimental() {
            config.experimental.has(rule.name())
        } else {
            !config.skip.has(rule.name())
        };
        if is_wanted {
            self.findings.borrow_mut().push(Finding {
                rule,
                ranges: ranges.to_vec(),
                text: text.to_owned(),
            });
        }
    }

    /// Everything found so far.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.findings.borrow().clone()
    }

    /// Fails when something was found and findings are to be errors.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.config.as_ref().is_some_and(|config| config.is_error) {
            return Ok(());
        }
        let mut rules: Vec<&'static str> = self
            .findings
            .borrow()
            .iter()
            .map(|finding| finding.rule.name())
            .collect();
        rules.sort_unstable();
        rules.dedup();
        if rules.is_empty() {
            Ok(())
        } else {
            Err(ErrorKind::Checks { rules }.into())
        }
    }
}

fn parse(check: &str) -> Result<Config, String> {
    let mut config = Config::default();
    for part in check.trim().splitn(3, ';').filter(|_| !check.trim().is_empty()) {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("invalid check option {}", quote(part)))?;
        let value = value.trim();
        let names = || match value {
            "all" => Names {
                all: true,
                some: Vec::new(),
            },
            _ => Names {
                all: false,
                some: value.split(',').map(|name| name.trim().to_owned()).collect(),
            },
        };
        match key.trim() {
            "skip" => config.skip = names(),
            "experimental" => config.experimental = names(),
            "error" => config.is_error = go_bool(value).ok_or_else(|| {
                let (part, value) = (quote(part), quote(value));
                format!(
                    "failed to parse check option {part}: strconv.ParseBool: parsing {value}: invalid syntax"
                )
            })?,
            key => return Err(format!("invalid check option {}", quote(key))),
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::{Lint, Rule};

    #[test]
    fn rules_are_skipped_for_the_file_and_for_one_instruction() {
        let lint = Lint::new("skip=StageNameCasing;error=true").expect("fine");
        lint.report(Rule::StageNameCasing, &[], "skipped");
        lint.report(Rule::InvalidDefinitionDescription, &[], "experimental");
        assert!(lint.check().is_ok());
        let one = lint.for_comments(&["check=skip=FromAsCasing".to_owned()]);
        one.report(Rule::FromAsCasing, &[], "skipped here");
        one.report(Rule::UndefinedVar, &[], "found");
        assert_eq!(lint.findings().len(), 1);
        assert!(
            lint.check()
                .expect_err("an error")
                .to_string()
                .contains("UndefinedVar")
        );
        for bad in ["skip", "nope=1", "error=maybe"] {
            assert!(Lint::new(bad).is_err(), "{bad}");
        }
    }
}
