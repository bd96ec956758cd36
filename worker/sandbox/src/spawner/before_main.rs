//! Lets a test program be a spawner: the loader calls this before the test harness starts.

/// Called by the loader, after the standard library has learned its arguments.
extern "C" fn enter() {
    super::spawner_main();
}

crate::sys::before_main!(enter);
