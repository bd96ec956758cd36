//! Every folder of `fixtures/scenarios` against the real program.
use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// How many cases run at the same time.
const AT_ONCE: usize = 3;

#[test]
fn every_scenario_comes_out_as_it_says() {
    let wanted = std::env::var("SCENARIO").unwrap_or_default();
    let mut cases = tests::all_scenarios().expect("the folders can be listed");
    assert!(cases.len() >= 60, "there are only {} scenarios", cases.len());
    cases.retain(|case| case.name.contains(&wanted));
    assert!(!cases.is_empty(), "no scenario is called {wanted:?}");
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match case.run() {
                        Ok(None) => println!("ok      {}", case.name),
                        Ok(Some(reason)) => println!("skipped {}: {reason}", case.name),
                        Err(error) => {
                            println!("FAILED  {}: {error:#}", case.name);
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
