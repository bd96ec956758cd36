//! Recorded builds against the exact text they must give.
use super::super::recorded::{at, events};
use super::*;

/// Prints after every event, as a fast reader would see it.
fn show(recording: &str) -> String {
    let mut plain = Plain::new(false);
    let mut out = String::new();
    let mut last = at(0);
    for (now, event) in events(recording) {
        plain.update(&[event], now);
        out.push_str(&plain.print(now));
        last = now;
    }
    out.push_str(&plain.finish(last));
    out
}

#[test]
fn steps_one_after_the_other() {
    let recording = "
        0 announce a [internal] load build definition from Dockerfile
        0 announce b [base 1/2] FROM busybox
        0 announce c [base 2/2] RUN echo hello
        0 start a
        5 status a transferring dockerfile: 237/0!
        10 done a
        20 cached b
        30 start c
        84 log c hello\\nworld\\n
        130 done c
    ";
    let expected = "\
#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 237B done
#1 DONE 0.0s

#2 [base 1/2] FROM busybox
#2 CACHED

#3 [base 2/2] RUN echo hello
#3 0.054 hello
#3 0.054 world
#3 DONE 0.1s
";
    assert_eq!(show(recording), expected);
}

#[test]
fn leaving_a_step_that_is_not_complete_says_so() {
    let recording = "
        0 announce a first
        0 announce b second
        0 start a
        1 start b
        10 log a one\\n
        20 done b
        30 log a two\\n
        40 done a
    ";
    let expected = "\
#1 first
#1 0.010 one
#1 ...

#2 second
#2 DONE 0.0s

#1 first
#1 0.030 two
#1 DONE 0.0s
";
    assert_eq!(show(recording), expected);
}

#[test]
fn a_line_that_grows_is_continued_without_a_prefix() {
    let recording = "
        0 announce a step
        0 start a
        10 log a ha
        20 log a lf and half\\nrest
        30 done a
    ";
    let expected = "#1 step\n#1 0.010 half and half\n#1 0.020 rest\n#1 DONE 0.0s\n";
    assert_eq!(show(recording), expected);
}

#[test]
fn a_status_is_printed_again_only_when_it_has_moved() {
    let recording = "
        0 announce a pull
        0 start a
        0 status a sha256:ab 0/1000000
        10 status a sha256:ab 10000/1000000
        20 status a sha256:ab 100000/1000000
        1000 status a sha256:ab 1000000/1000000!
        1000 done a
    ";
    let expected = "\
#1 pull
#1 sha256:ab 0B / 1.00MB
#1 sha256:ab 100.00kB / 1.00MB 0.0s
#1 sha256:ab 1.00MB / 1.00MB 1.0s 1.00MB/s done
#1 DONE 1.0s
";
    assert_eq!(show(recording), expected);
}

#[test]
fn failures_are_repeated_below_and_cancelled_steps_are_not() {
    let recording = "
        0 announce a [2/2] RUN exit 7
        0 announce b [other 1/1] RUN sleep 9
        0 start a
        0 start b
        58 log a \\e]0;evil\\nfail\\n
        60 fail a process did not complete: exit code: 7
        61 fail b context canceled
    ";
    let text = show(recording);
    let expected_end = "\
------
 > [2/2] RUN exit 7:
0.058 \\u{1b}]0;evil
0.058 fail
------
";
    assert!(
        text.contains("#1 ERROR: process did not complete: exit code: 7\n"),
        "{text}"
    );
    assert!(text.contains(" CANCELED\n"), "{text}");
    assert!(text.ends_with(expected_end), "{text}");
    assert_eq!(text.matches("------").count(), 2, "{text}");
}

#[test]
fn a_warning_stands_with_its_step() {
    let recording = "
        0 announce a [internal] load build definition from Dockerfile
        0 start a
        1 warn a FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)
        2 done a
    ";
    let text = show(recording);
    assert!(
        text.contains("#1 WARN: FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)\n"),
        "{text}"
    );
}

#[test]
fn a_step_that_waits_long_comes_to_the_front() {
    let recording = "
        0 announce a loud
        0 announce b shy
        0 start a
        1 start b
        2 log a x\\n
        3 log b y\\n
        9000 log a x\\n
        11000 log a x\\n
        11001 done a
        11002 done b
    ";
    let text = show(recording);
    let shy = text.find("y\n").expect("shown");
    let done = text.find("DONE").expect("shown");
    assert!(shy < done, "{text}");
}

#[test]
fn whatever_order_the_events_come_in_nothing_is_lost_or_printed_twice() {
    let mut recording = String::from("0 announce a one\n0 announce b two\n0 start a\n0 start b\n");
    for n in 0..200 {
        let (step, millis) = (if n % 3 == 0 { "a" } else { "b" }, n * 100);
        recording.push_str(&format!("{millis} log {step} line-{n}.\\n\n"));
    }
    recording.push_str("20000 done a\n20000 done b\n");
    let text = show(&recording);
    for n in 0..200 {
        assert_eq!(text.matches(&format!(" line-{n}.\n")).count(), 1, "line {n}");
    }
}
