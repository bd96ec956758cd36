//! Patterns against what Docker's matcher and Go's `filepath.Match` say (`fixtures/patterns.tsv`), and their laws.
use proptest::prelude::*;
use tree::{MatchInfo, PatternSet, go_match};

/// `m` or `p`, pattern (several, joined by ` ; `), path, `true`, `false` or `err`.
const CASES: &str = include_str!("../../../fixtures/patterns.tsv");

#[test]
fn every_case_comes_out_as_in_go() {
    let mut wrong = Vec::new();
    for case in CASES.lines() {
        let [kind, pattern, path, expected] = case.split('\t').collect::<Vec<_>>()[..] else {
            panic!("not a case: {case:?}");
        };
        let found = match kind {
            "m" => go_match(pattern, path).map_err(drop),
            _ => {
                let patterns: Vec<&str> = pattern.split(" ; ").collect();
                let set = PatternSet::new(&patterns);
                set.map(|set| set.matches(path)).map_err(drop)
            }
        };
        let found = found.map_or("err".to_owned(), |found| found.to_string());
        if found != expected {
            wrong.push(format!("{case}: {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} of them: {wrong:#?}", wrong.len());
    assert!(CASES.lines().count() > 500, "the table is whole");
}

#[test]
fn hostile_patterns_end() {
    // Each star could begin anywhere: tried one inside the other, this would never end.
    let pattern = "*a".repeat(2_000);
    let name = format!("{}b", "a".repeat(20_000));
    assert!(!go_match(&pattern, &name).expect("it is one"));
    let deep = format!("{}x", "**/".repeat(200));
    let set = PatternSet::new(&[&deep]).expect("it is one");
    assert!(!set.matches(&format!("{}y", "a/".repeat(500))));
    assert!(set.matches(&format!("{}x", "a/".repeat(500))));
    // Repetitions of repetitions would make an expression without end.
    assert!(PatternSet::new(&["?{1000}{1000}"]).is_err());
    assert!(
        PatternSet::new(&["a{1000}*".repeat(5_000)]).is_err(),
        "too large to be compiled"
    );
}

fn name() -> impl Strategy<Value = String> {
    "[a-zé.*?\\[\\]!|{}+$^ -]{1,6}".prop_filter("a name", |name| {
        !matches!(name.as_str(), "." | "..") && name.trim() == name && !name.starts_with('!')
    })
}

fn plain() -> impl Strategy<Value = String> {
    prop::collection::vec("[a-z]{1,3}", 1..5).prop_map(|parts| parts.join("/"))
}

fn escaped(name: &str) -> String {
    let one = |character: char| match character.is_ascii_alphanumeric() || !character.is_ascii() {
        true => vec![character],
        false => vec!['\\', character],
    };
    name.chars().flat_map(one).collect()
}

proptest! {
    #[test]
    fn an_escaped_name_matches_itself_and_nothing_else(name in name(), other in name()) {
        let pattern = escaped(&name);
        prop_assert!(go_match(&pattern, &name).expect("no class, no loose escape"));
        prop_assert_eq!(go_match(&pattern, &other).expect("the same"), name == other);
        let set = PatternSet::new(&[&pattern]).expect("the same");
        prop_assert!(set.matches(&name));
        prop_assert_eq!(set.matches(&other), name == other);
    }

    #[test]
    fn what_matches_a_directory_matches_all_beneath(dir in plain(), below in plain()) {
        let set = PatternSet::new(&[&dir]).expect("plain");
        prop_assert!(set.matches(&dir));
        let path = format!("{dir}/{below}");
        prop_assert!(set.matches(&path));
    }

    #[test]
    fn stars_stop_at_slashes_and_double_stars_do_not(path in plain()) {
        prop_assert_eq!(go_match("*", &path).expect("a star"), !path.contains('/'));
        let last = path.rsplit('/').next().expect("there is one");
        let anywhere = format!("**/{last}");
        prop_assert!(PatternSet::new(&[&anywhere]).expect("plain").matches(&path));
        prop_assert!(PatternSet::new(&["**"]).expect("plain").matches(&path));
    }

    #[test]
    fn an_exception_undoes_what_comes_before_it_only(path in plain()) {
        let exception = format!("!{path}");
        let undone = PatternSet::new(&["**", &exception]).expect("plain");
        prop_assert!(!undone.matches(&path));
        let redone = PatternSet::new(&["**", &exception, &path]).expect("plain");
        prop_assert!(redone.matches(&path));
        let alone = PatternSet::new(&[&exception]).expect("plain");
        prop_assert!(!alone.matches(&path));
    }

    /// Walking down with what each directory matched says the same as asking for a path at once. (With exceptions it need
    /// not, here and in Docker's matcher: one that undoes nothing in a directory is not remembered.)
    #[test]
    fn walking_and_asking_agree(
        patterns in prop::collection::vec("(\\*\\*/)?[ab*?]{1,3}(/[ab*]{1,2})?(/\\*\\*)?", 1..5),
        path in prop::collection::vec("[ab]{1,2}", 1..5),
    ) {
        let Ok(set) = PatternSet::new(&patterns) else { return Ok(()) };
        let mut known = MatchInfo::default();
        let mut walked = false;
        for depth in 1..=path.len() {
            (walked, known) = set.matches_using_parent(&path[..depth].join("/"), &known);
        }
        prop_assert_eq!(walked, set.matches(&path.join("/")), "{:?} {:?}", patterns, path);
    }
}
