//! What every key store must do. Each implementation calls [`run`] from a test.

use std::time::{Duration, SystemTime};

use oci::Digest;

use crate::key::{KeyId, Link, Record, ResultId};
use crate::store::{Batch, KeyStore};

/// Runs every case, each on a new empty store made by `open`.
///
/// # Panics
/// When the store does not do what it must; the message says what.
pub fn run<S: KeyStore>(open: impl Fn() -> S) {
    nothing_is_known_at_first(&open());
    results_come_newest_first(&open());
    a_record_filed_again_is_renewed(&open());
    links_lead_only_where_they_were_laid(&open());
    links_are_found_backwards(&open());
    saving_twice_changes_nothing(&open());
    releasing_takes_the_branch_with_it(&open());
    releasing_keeps_what_leads_elsewhere(&open());
    one_result_under_several_keys(&open());
}

/// Files two keys in a row with one result at the end, and names the result.
///
/// # Panics
/// When the store fails.
pub fn fill_and_name_result(store: &impl KeyStore) -> ResultId {
    let (from, to) = (key("from"), key("to"));
    save(store, &[(from, link(0, None), to)], &[(to, record("result", 1))]);
    ResultId::new("result")
}

fn key(name: &str) -> KeyId {
    KeyId::from_digest(Digest::of(name.as_bytes()))
}

fn link(input: u32, selector: Option<&str>) -> Link {
    Link {
        input,
        output: 0,
        digest: Digest::of(b"op"),
        selector: selector.map(|text| Digest::of(text.as_bytes())),
    }
}

fn record(result: &str, seconds: u64) -> Record {
    // Whole microseconds: a store need not keep more.
    let created =
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds) + Duration::from_micros(7);
    Record {
        result: ResultId::new(result),
        created,
    }
}

fn save(store: &impl KeyStore, links: &[(KeyId, Link, KeyId)], records: &[(KeyId, Record)]) {
    store
        .save(&Batch {
            links: links.to_vec(),
            records: records.to_vec(),
        })
        .expect("save a batch");
}

fn query(store: &impl KeyStore, from: KeyId, link: Link) -> Vec<KeyId> {
    store.query(&from, &link).expect("query a link")
}

fn results(store: &impl KeyStore, key: KeyId) -> Vec<Record> {
    store.results(&key).expect("read the results of a key")
}

fn exists(store: &impl KeyStore, key: KeyId) -> bool {
    store.exists(&key).expect("ask for a key")
}

fn nothing_is_known_at_first(store: &impl KeyStore) {
    assert!(!exists(store, key("a")), "an empty store knows no key");
    assert!(
        results(store, key("a")).is_empty(),
        "an unknown key has no results"
    );
    assert!(
        query(store, key("a"), link(0, None)).is_empty(),
        "an unknown key leads nowhere"
    );
    assert!(
        store.links_to(&key("a")).expect("links back").is_empty(),
        "nothing leads to an unknown key"
    );
    store
        .release(&ResultId::new("unknown"))
        .expect("releasing an unknown result is no error");
    save(store, &[], &[]);
}

fn results_come_newest_first(store: &impl KeyStore) {
    for (result, seconds) in [("middle", 2), ("oldest", 1), ("newest", 3)] {
        save(store, &[], &[(key("a"), record(result, seconds))]);
    }
    let expected = vec![record("newest", 3), record("middle", 2), record("oldest", 1)];
    assert_eq!(
        results(store, key("a")),
        expected,
        "results come newest first, with their times"
    );
    assert!(exists(store, key("a")), "a key with a record exists");
}

fn a_record_filed_again_is_renewed(store: &impl KeyStore) {
    save(
        store,
        &[],
        &[(key("a"), record("one", 1)), (key("a"), record("two", 2))],
    );
    save(store, &[], &[(key("a"), record("one", 3))]);
    assert_eq!(
        results(store, key("a")),
        vec![record("one", 3), record("two", 2)],
        "filed again means renewed"
    );
    save(store, &[], &[(key("a"), record("three", 3))]);
    assert_eq!(
        results(store, key("a"))[0],
        record("three", 3),
        "of equally new records the last filed comes first"
    );
}

fn links_lead_only_where_they_were_laid(store: &impl KeyStore) {
    let (a, b, c) = (key("a"), key("b"), key("c"));
    save(
        store,
        &[
            (a, link(0, None), b),
            (a, link(0, None), c),
            (a, link(1, Some("s")), b),
        ],
        &[],
    );
    let mut both = vec![b, c];
    both.sort();
    assert_eq!(
        query(store, a, link(0, None)),
        both,
        "a link may lead to several keys, in order of id"
    );
    assert_eq!(query(store, a, link(1, Some("s"))), vec![b]);
    let others = [
        ("another input", link(2, None)),
        ("another selector", link(0, Some("s"))),
        ("no selector", link(1, None)),
        (
            "another output",
            Link {
                output: 1,
                ..link(0, None)
            },
        ),
        (
            "content output",
            Link {
                output: -1,
                ..link(0, None)
            },
        ),
        (
            "another op",
            Link {
                digest: Digest::of(b"other"),
                ..link(0, None)
            },
        ),
    ];
    for (what, other) in others {
        assert!(query(store, a, other).is_empty(), "{what} must not match");
    }
    assert!(
        query(store, b, link(0, None)).is_empty(),
        "links have a direction"
    );
    assert!(exists(store, a) && exists(store, b), "both ends of a link exist");
}

fn links_are_found_backwards(store: &impl KeyStore) {
    let (a, b, c) = (key("a"), key("b"), key("c"));
    save(store, &[(a, link(0, None), c), (b, link(1, Some("s")), c)], &[]);
    let mut expected = vec![(a, link(0, None)), (b, link(1, Some("s")))];
    expected.sort();
    let mut found = store.links_to(&c).expect("links back");
    found.sort();
    assert_eq!(found, expected, "every link to a key is found from its far end");
}

fn saving_twice_changes_nothing(store: &impl KeyStore) {
    for _ in 0..2 {
        save(
            store,
            &[(key("a"), link(0, None), key("b"))],
            &[(key("b"), record("r", 1))],
        );
    }
    assert_eq!(query(store, key("a"), link(0, None)), vec![key("b")]);
    assert_eq!(results(store, key("b")), vec![record("r", 1)]);
}

fn releasing_takes_the_branch_with_it(store: &impl KeyStore) {
    let (a, b, c) = (key("a"), key("b"), key("c"));
    save(
        store,
        &[(a, link(0, None), b), (b, link(0, None), c)],
        &[(c, record("r", 1))],
    );
    store.release(&ResultId::new("r")).expect("release");
    for (name, key) in [("a", a), ("b", b), ("c", c)] {
        assert!(
            !exists(store, key),
            "key {name} led to nothing but the released result"
        );
    }
    assert!(
        query(store, a, link(0, None)).is_empty(),
        "links of a removed key are gone"
    );
}

fn releasing_keeps_what_leads_elsewhere(store: &impl KeyStore) {
    let (a, b, c, d) = (key("a"), key("b"), key("c"), key("d"));
    let links = [
        (a, link(0, None), b),
        (b, link(0, None), c),
        (a, link(1, None), d),
    ];
    save(
        store,
        &links,
        &[
            (b, record("kept", 1)),
            (c, record("r", 1)),
            (d, record("r", 1)),
            (d, record("other", 2)),
        ],
    );
    store.release(&ResultId::new("r")).expect("release");
    assert!(!exists(store, c), "a key with nothing left goes");
    assert_eq!(
        results(store, b),
        vec![record("kept", 1)],
        "a key with another record stays"
    );
    assert_eq!(
        results(store, d),
        vec![record("other", 2)],
        "only the released record goes"
    );
    assert_eq!(
        query(store, a, link(0, None)),
        vec![b],
        "links to keys that stay are kept"
    );
    assert!(
        query(store, b, link(0, None)).is_empty(),
        "links to keys that went are gone"
    );
}

fn one_result_under_several_keys(store: &impl KeyStore) {
    save(
        store,
        &[],
        &[(key("a"), record("r", 1)), (key("b"), record("r", 1))],
    );
    store.release(&ResultId::new("r")).expect("release");
    assert!(
        results(store, key("a")).is_empty() && results(store, key("b")).is_empty(),
        "released under every key"
    );
}
