use super::*;

fn history(limits: Limits) -> (tempfile::TempDir, History) {
    let root = tempfile::tempdir().expect("a folder");
    let history = History::new(root.path(), limits);
    (root, history)
}

fn ids(history: &History) -> Vec<String> {
    let records = history.list().expect("it can be listed");
    records.into_iter().map(|record| record.id).collect()
}

fn built(history: &History, id: &str) -> Record {
    let running = history.begin(Record::new(id)).expect("a new id");
    running.log().append(id.as_bytes());
    running.finish(None).expect("it can be written")
}

#[test]
fn a_build_from_beginning_to_end() {
    let (_root, history) = history(Limits::default());
    let mut changes = history.changes();
    assert!(ids(&history).is_empty());
    let running = history.begin(Record::new("abc")).expect("a new id");
    assert!(matches!(
        history.begin(Record::new("abc")),
        Err(HistoryError::Exists(_))
    ));
    assert_eq!(history.find("abc").expect("it runs").completed, None);
    assert!(matches!(history.remove("abc"), Err(HistoryError::Running(_))));
    running.update(|record| record.steps.total = 3);
    running.log().append(b"shown");
    let record = running.finish(None).expect("it can be written");
    assert_eq!(history.find("abc").expect("it is kept"), record);
    assert_eq!(record.steps.total, 3);
    let log = record.log.as_ref().expect("it has a log");
    assert_eq!(log.size, 9);
    assert!(history.open_blob(&log.digest).expect("readable").is_some());
    history.remove("abc").expect("it is over");
    assert!(history.open_blob(&log.digest).expect("readable").is_none());
    assert!(matches!(history.find("abc"), Err(HistoryError::Unknown(_))));
    let heard: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok())
        .map(|change| change.kind)
        .collect();
    assert_eq!(
        heard,
        [ChangeKind::Started, ChangeKind::Complete, ChangeKind::Deleted]
    );
    let left = |part: &str| history.files(part).expect("readable").len();
    assert_eq!((left("running"), left("records"), left("blobs")), (0, 0, 0));
}

#[test]
fn ids_of_strangers_stay_inside() {
    let (root, history) = history(Limits::default());
    for id in ["../../escape", "a/b", &"x".repeat(500), "UPPER", "\0"] {
        built(&history, id);
        assert_eq!(history.find(id).expect("it is kept").id, id);
    }
    let outside = fs::read_dir(root.path()).expect("readable").count();
    assert_eq!(outside, 1);
}

#[test]
fn a_dropped_build_is_cancelled_a_killed_one_failed() {
    let (_root, history) = history(Limits::default());
    drop(history.begin(Record::new("dropped")).expect("a new id"));
    assert_eq!(
        history.find("dropped").expect("kept").outcome(),
        super::super::Outcome::Canceled
    );
    let running = history.begin(Record::new("killed")).expect("a new id");
    // What a kill leaves: the files, and a lock that is free.
    flock(&running._lock, FlockOperation::Unlock).expect("it was held");
    std::mem::forget(running);
    let record = history.find("killed").expect("kept");
    assert_eq!(record.outcome(), super::super::Outcome::Failed);
    assert!(record.log.is_some() && record.completed.is_some());
    assert!(history.files("running").expect("readable").is_empty());
}

#[test]
fn both_limits_must_be_passed() {
    let limits = Limits {
        max_age: Duration::from_secs(100),
        max_entries: 2,
    };
    let (_root, history) = history(limits);
    for id in ["one", "two", "three", "four"] {
        built(&history, id);
    }
    history
        .change("one", |record| record.is_pinned = true)
        .expect("it is over");
    assert_eq!(history.sweep(Stamp::now()).expect("swept"), 0);
    let later = Stamp::from(SystemTime::now() + Duration::from_secs(200));
    assert_eq!(history.sweep(later).expect("swept"), 1);
    let mut left = ids(&history);
    left.sort();
    assert_eq!(left, ["four", "one", "three"]);
}

#[test]
fn a_log_two_builds_share_goes_with_the_last() {
    let (_root, history) = history(Limits::default());
    for id in ["a", "b"] {
        let running = history.begin(Record::new(id)).expect("a new id");
        running.log().append(b"the same");
        running.finish(None).expect("written");
    }
    let log = history.find("a").expect("kept").log.expect("it has a log");
    history.remove("a").expect("it is over");
    assert!(history.open_blob(&log.digest).expect("readable").is_some());
    history.remove("b").expect("it is over");
    assert!(history.open_blob(&log.digest).expect("readable").is_none());
}

#[test]
fn beginnings_of_ids_and_the_newest() {
    let (_root, history) = history(Limits::default());
    assert!(matches!(history.find(""), Err(HistoryError::Unknown(_))));
    for id in ["abc1", "abd2"] {
        built(&history, id);
    }
    assert_eq!(history.find("abc").expect("the only one").id, "abc1");
    assert!(matches!(history.find("ab"), Err(HistoryError::Several(_))));
    assert_eq!(history.find("").expect("the newest").id, "abd2");
    assert_eq!(history.find("^1").expect("the one before").id, "abc1");
}

#[test]
fn a_damaged_record_hides_no_other() {
    let (_root, history) = history(Limits::default());
    built(&history, "good");
    fs::write(history.record("bad"), b"{").expect("written");
    assert_eq!(ids(&history), ["good"]);
}
