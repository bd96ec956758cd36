//! Merge and diff: file systems made of file systems.

use crate::state::{Constraints, Spec, State};

/// Lays states over each other, later ones on top. Scratch adds nothing and is left out; one state is itself.
pub fn merge(states: &[State], constraints: Constraints) -> State {
    let filled: Vec<State> = states
        .iter()
        .filter(|state| !state.is_scratch())
        .cloned()
        .collect();
    match filled.as_slice() {
        [] => State::scratch(),
        [only] => only.clone(),
        _ => State::output_of(Spec::Merge(filled), constraints),
    }
}

/// What `upper` adds to `lower`; over scratch that is all of `upper`.
pub fn diff(lower: &State, upper: &State, constraints: Constraints) -> State {
    if lower.is_scratch() {
        return upper.clone();
    }
    State::output_of(
        Spec::Diff {
            lower: lower.clone(),
            upper: upper.clone(),
        },
        constraints,
    )
}
