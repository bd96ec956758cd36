use super::*;
use api::sourcepolicy::{AttrConstraint, Rule, Selector};

const BUSYBOX: &str = "docker-image://docker.io/library/busybox:1.36";

fn selects(name: &str, kind: MatchType) -> Selector {
    Selector {
        identifier: name.into(),
        match_type: kind.into(),
        constraints: Vec::new(),
    }
}

fn rule(action: PolicyAction, selector: Selector, update: Option<&str>) -> Rule {
    Rule {
        action: action.into(),
        selector: Some(selector),
        updates: update.map(|identifier| Update {
            identifier: identifier.into(),
            ..Update::default()
        }),
    }
}

fn policy(rules: Vec<Rule>) -> Policy {
    Policy { version: 1, rules }
}

fn apply(policies: &[Policy], name: &str) -> Result<String, String> {
    let source = SourceOp {
        identifier: name.into(),
        ..SourceOp::default()
    };
    let rules = Rules::new(policies).expect("good rules");
    let made = rules.apply(source).map_err(|denied| denied.message);
    made.map(|source| source.identifier)
}

#[test]
fn the_last_of_allow_and_deny_wins() {
    use PolicyAction::{Allow, Deny};
    let one = |action| rule(action, selects(BUSYBOX, MatchType::Exact), None);
    let denied = Err(format!(
        "source {BUSYBOX:?} denied by policy: source denied by policy"
    ));
    assert_eq!(apply(&[policy(vec![one(Allow), one(Deny)])], BUSYBOX), denied);
    assert!(apply(&[policy(vec![one(Deny), one(Allow)])], BUSYBOX).is_ok());
    // Of several policies, none may deny.
    assert_eq!(
        apply(&[policy(vec![one(Deny)]), policy(vec![one(Allow)])], BUSYBOX),
        denied
    );
    assert!(apply(&[policy(vec![one(Deny)])], "docker-image://other").is_ok());
}

#[test]
fn selectors() {
    let all = [
        (MatchType::Wildcard, "*", true),
        (
            MatchType::Wildcard,
            "docker-image://docker.io/library/busybox:*",
            true,
        ),
        (MatchType::Wildcard, "docker-image://docker.io/*/busybox:*", true),
        (
            MatchType::Wildcard,
            "docker-image://docker.io/library/busy",
            false,
        ),
        (
            MatchType::Wildcard,
            "docker-image://docker.io/library/busybox:1.3.",
            false,
        ),
        (MatchType::Exact, BUSYBOX, true),
        (MatchType::Exact, "*", false),
        (MatchType::Regex, "library/busy.*", true),
        (MatchType::Regex, "^library/busy.*", false),
        (MatchType::Regex, BUSYBOX, true),
    ];
    for (kind, name, is_meant) in all {
        let denied = apply(
            &[policy(vec![rule(PolicyAction::Deny, selects(name, kind), None)])],
            BUSYBOX,
        );
        assert_eq!(denied.is_err(), is_meant, "{kind:?} {name}");
    }
}

#[test]
fn conversions() {
    use MatchType::{Exact, Regex, Wildcard};
    let all = [
        (
            Wildcard,
            "docker-image://docker.io/library/*",
            "docker-image://mirror/${1}-x",
            "docker-image://mirror/busybox:1.36-x",
        ),
        (
            Wildcard,
            "docker-image://*/library/*",
            "docker-image://$2@$1",
            "docker-image://busybox:1.36@docker.io",
        ),
        (Exact, BUSYBOX, "docker-image://other", "docker-image://other"),
        (
            Regex,
            r"docker\.io/(\w+)/",
            "host/${1}/",
            "docker-image://host/library/busybox:1.36",
        ),
        (Wildcard, "docker-image://*", "", BUSYBOX),
    ];
    for (kind, name, update, wanted) in all {
        let rules = vec![rule(PolicyAction::Convert, selects(name, kind), Some(update))];
        assert_eq!(
            apply(&[policy(rules)], BUSYBOX).as_deref(),
            Ok(wanted),
            "{name} {update}"
        );
    }
}

#[test]
fn what_was_converted_is_asked_about_again() {
    let to = |from: &str, to: &str| rule(PolicyAction::Convert, selects(from, MatchType::Exact), Some(to));
    let no = |name: &str| rule(PolicyAction::Deny, selects(name, MatchType::Exact), None);
    let chain = [policy(vec![to("a://1", "a://2"), to("a://2", "a://3")])];
    assert_eq!(apply(&chain, "a://1").as_deref(), Ok("a://3"));
    let circle = [policy(vec![to("a://1", "a://2"), to("a://2", "a://1")])];
    assert!(apply(&circle, "a://1").is_err_and(|why| why.contains("too many mutations")));
    let denied = [policy(vec![to("a://1", "a://2")]), policy(vec![no("a://2")])];
    assert!(apply(&denied, "a://1").is_err_and(|why| why.contains("a://2")));
    // The name that is no more may be denied.
    let replaced = [policy(vec![no("a://1"), to("a://1", "a://2")])];
    assert_eq!(apply(&replaced, "a://1").as_deref(), Ok("a://2"));
}

#[test]
fn attributes() {
    let source = SourceOp {
        identifier: "https://example.com/foo".into(),
        attrs: [("http.checksum".to_owned(), "sha256:12".to_owned())].into(),
    };
    let denied = |key: &str, value: &str, condition: AttrMatch| {
        let mut selector = selects("*", MatchType::Wildcard);
        selector.constraints.push(AttrConstraint {
            key: key.into(),
            value: value.into(),
            condition: condition.into(),
        });
        let rules = Rules::new(&[policy(vec![rule(PolicyAction::Deny, selector, None)])]).expect("good");
        rules.apply(source.clone()).is_err()
    };
    assert!(denied("http.checksum", "sha256:12", AttrMatch::Equal));
    assert!(!denied("http.checksum", "sha256:1", AttrMatch::Equal));
    assert!(denied("http.checksum", "sha256:1", AttrMatch::Notequal));
    assert!(denied("http.checksum", r"\d+$", AttrMatch::Matches));
    assert!(!denied("http.checksum", "^12", AttrMatch::Matches));
    // One that is not there is empty.
    assert!(denied("http.perm", "", AttrMatch::Equal));

    let mut pins = rule(
        PolicyAction::Convert,
        selects("https://*", MatchType::Wildcard),
        Some(""),
    );
    if let Some(update) = &mut pins.updates {
        update.attrs.insert("http.checksum".into(), "sha256:34".into());
    }
    let rules = Rules::new(&[policy(vec![pins])]).expect("good");
    let made = rules.apply(source.clone()).expect("allowed");
    assert_eq!(made.identifier, source.identifier);
    assert_eq!(made.attrs["http.checksum"], "sha256:34");
}

#[test]
fn rules_that_are_none_are_refused() {
    let of = |rule: Rule| {
        Rules::new(&[policy(vec![rule])])
            .expect_err("refused")
            .to_string()
    };
    let selector = || selects("a://*", MatchType::Wildcard);
    assert!(of(Rule::default()).contains("without a selector"));
    assert!(of(rule(PolicyAction::Convert, selector(), None)).contains("into nothing"));
    assert!(
        of(rule(
            PolicyAction::Deny,
            selects("a**", MatchType::Wildcard),
            None
        ))
        .contains("**")
    );
    assert!(of(rule(PolicyAction::Deny, selects("(", MatchType::Regex), None)).contains("expression"));
    assert!(
        of(rule(
            PolicyAction::Deny,
            selects("(\\w{999}){999}", MatchType::Regex),
            None
        ))
        .contains("size")
    );
    let unknown = Rule {
        action: 9,
        ..rule(PolicyAction::Deny, selector(), None)
    };
    assert!(of(unknown).contains("unknown action 9"));
    let many = policy(vec![rule(PolicyAction::Deny, selector(), None); MAX_RULES + 1]);
    assert!(Rules::new(&[many]).is_err());
}

#[test]
fn git_repositories_are_known_by_host_and_path() {
    let of = |identifier: &str, url: &str| {
        let source = SourceOp {
            identifier: identifier.into(),
            attrs: [(llb::attr::GIT_FULL_URL.to_owned(), url.to_owned())].into(),
        };
        normalized(source).identifier
    };
    for url in [
        "https://github.com/a/b.git",
        "https://user:word@github.com/a/b.git",
        "git@github.com:a/b.git",
        "ssh://git@github.com/a/b.git",
    ] {
        assert_eq!(
            of("git://x#main:dir", url),
            "git://github.com/a/b.git#main:dir",
            "{url}"
        );
    }
    assert_eq!(of("git://x", "http://h:81/r@1"), "git://h:81/r@1");
}
