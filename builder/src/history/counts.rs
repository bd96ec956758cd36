//! How many steps a build had, counted as its events pass.
use super::Steps;
use oci::Digest;
use solver::progress::Event;
use std::collections::HashMap;

/// Counts steps as events pass.
#[derive(Debug, Default)]
pub struct Counts {
    seen: HashMap<Digest, (bool, bool)>,
    warnings: u32,
}

impl Counts {
    /// Takes in what happened.
    pub fn take(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Vertex(event) => {
                    let state = self.seen.entry(event.vertex.digest).or_default();
                    state.0 |= event.cached;
                    state.1 |= event.completed.is_some();
                }
                Event::Warning(_) => self.warnings += 1,
                Event::Status(_) | Event::Log(_) => {}
            }
        }
    }

    /// What there was so far.
    pub fn steps(&self) -> Steps {
        let count = |of: &dyn Fn(&(bool, bool)) -> bool| {
            u32::try_from(self.seen.values().filter(|state| of(state)).count()).unwrap_or(u32::MAX)
        };
        Steps {
            total: count(&|_| true),
            cached: count(&|state| state.0),
            completed: count(&|state| state.1),
            warnings: self.warnings,
        }
    }
}
