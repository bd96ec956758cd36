//! What of a directory is listed: include and exclude patterns, and where looking inside is pointless.
//!
//! An entry is listed if an include pattern takes it (or there is none) and no exclude pattern shuts it out. A directory
//! that is not listed itself is still looked into when something beneath it could be, and is then listed as a parent.

use crate::{Filter, MatchInfo, PatternError, PatternSet, Root, RootPath, Visit, follow::follow};

/// What of a directory is wanted: the filter of a context.
#[derive(Debug)]
pub struct ContextFilter {
    include: Option<PatternSet>,
    exclude: Option<PatternSet>,
    /// Literal beginnings of the patterns that could take something in.
    includes: Vec<String>,
    /// Literal beginnings of the exceptions to the exclude patterns.
    exceptions: Vec<String>,
}

/// What a directory matched.
#[derive(Debug, Default)]
pub struct Matched {
    include: MatchInfo,
    exclude: MatchInfo,
}

impl ContextFilter {
    /// The filter of include and exclude patterns, and of paths that are wanted with the links along them.
    ///
    /// # Errors
    /// A pattern cannot be read.
    pub fn of(
        root: &Root,
        include_patterns: &[String],
        exclude_patterns: &[String],
        follow_paths: &[String],
    ) -> Result<ContextFilter, PatternError> {
        let mut include = (!include_patterns.is_empty()).then(|| include_patterns.to_vec());
        if !follow_paths.is_empty() {
            include = match follow(root, follow_paths) {
                Some(followed) => Some(include.unwrap_or_default().into_iter().chain(followed).collect()),
                None => include,
            };
        }
        ContextFilter::new(include.as_deref(), exclude_patterns)
    }

    /// Reads patterns; no include pattern takes everything.
    fn new(include: Option<&[String]>, exclude: &[String]) -> Result<ContextFilter, PatternError> {
        let set = |patterns: &[String]| {
            (!patterns.is_empty())
                .then(|| PatternSet::new(patterns))
                .transpose()
        };
        let include = include.unwrap_or_default();
        let negated = |pattern: &&String| pattern.trim_start().starts_with('!');
        Ok(ContextFilter {
            include: set(include)?,
            exclude: set(exclude)?,
            includes: include
                .iter()
                .filter(|pattern| !negated(pattern))
                .map(|text| beginning(text))
                .collect(),
            exceptions: exclude
                .iter()
                .filter(negated)
                .map(|text| beginning(text))
                .collect(),
        })
    }
}

/// The components of a pattern before the first that is not literal; empty if there are none.
fn beginning(pattern: &str) -> String {
    let pattern = pattern.trim().trim_start_matches('!');
    let literal = |part: &&str| !part.contains(['*', '?', '[', ']', '\\', '^']);
    let parts: Vec<&str> = pattern
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .take_while(literal)
        .take_while(|part| *part != "..")
        .collect();
    parts.join("/")
}

/// Whether a pattern that begins with `beginning` could match something beneath `dir`.
fn could_match_beneath(beginning: &str, dir: &str) -> bool {
    let inside = |outer: &str, inner: &str| {
        outer.is_empty()
            || inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    inside(beginning, dir) || inside(dir, beginning)
}

impl Filter for ContextFilter {
    type State = Matched;

    fn visit(&self, path: &RootPath, is_dir: bool, parent: &Matched) -> Visit<Matched> {
        let text = String::from_utf8_lossy(path.as_bytes());
        let mut visit = Visit {
            include: true,
            descend: is_dir,
            state: Matched::default(),
        };
        if let Some(include) = &self.include {
            let (matched, info) = include.matches_using_parent(&text, &parent.include);
            visit.state.include = info;
            if !matched {
                visit.include = false;
                visit.descend &= self
                    .includes
                    .iter()
                    .any(|beginning| could_match_beneath(beginning, &text));
            }
        }
        if let Some(exclude) = &self.exclude {
            let (matched, info) = exclude.matches_using_parent(&text, &parent.exclude);
            visit.state.exclude = info;
            if matched {
                visit.include = false;
                visit.descend &= self
                    .exceptions
                    .iter()
                    .any(|beginning| could_match_beneath(beginning, &text));
            }
        }
        visit
    }
}
