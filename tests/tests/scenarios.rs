//! Every folder of `fixtures/scenarios` against the real program.
use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// How many cases run at the same time.
const AT_ONCE: usize = 3;

#[test]
fn every_scenario_comes_out_as_it_says() {
    each("", tests::Scenario::run);
}

#[test]
fn every_scenario_comes_out_the_same_on_a_daemon() {
    each(" on a daemon", tests::Scenario::run_on_daemon);
}

#[expect(
    clippy::print_stdout,
    reason = "which case came out how is what the test shows"
)]
fn each(way: &str, run: fn(&tests::Scenario) -> anyhow::Result<Option<String>>) {
    let wanted = std::env::var("SCENARIO").unwrap_or_default();
    let mut cases = tests::all_scenarios().expect("the folders can be listed");
    assert!(cases.len() >= 250, "there are only {} scenarios", cases.len());
    cases.retain(|case| case.name.contains(&wanted));
    assert!(!cases.is_empty(), "no scenario is called {wanted:?}");
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match run(case) {
                        Ok(None) => println!("ok      {}{way}", case.name),
                        Ok(Some(reason)) => println!("skipped {}: {reason}", case.name),
                        Err(error) => {
                            println!("FAILED  {}{way}: {error:#}", case.name);
                            failed.lock().expect("no panic holds it").push(case.name.clone());
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic holds it");
    assert!(
        failed.is_empty(),
        "{} of {} scenarios failed: {failed:#?}",
        failed.len(),
        cases.len()
    );
}
