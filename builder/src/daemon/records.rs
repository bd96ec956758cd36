//! What the history keeps of a daemon's builds.
use super::result::Solved;
use super::run::Request;
use crate::history::{self, Record, Steps};
use oci::{Descriptor, Digest};
use solver::progress::Event;
use std::collections::{BTreeMap, HashMap};

/// The record of a build that begins.
pub(super) fn record(request: &Request) -> Record {
    let mut record = Record::new(&request.id);
    record.frontend.clone_from(&request.frontend);
    record.attributes.clone_from(&request.attributes);
    record.exporters = request
        .exporters
        .iter()
        .map(|exporter| history::Exporter {
            kind: exporter.kind.clone(),
            attributes: exporter.attributes.clone(),
        })
        .collect();
    record
}

/// A result's metadata as text, for the record; what is no text is left out.
pub(super) fn metadata(solved: &Solved) -> BTreeMap<String, String> {
    let text = solved.metadata.iter().filter_map(|(key, value)| {
        let value = std::str::from_utf8(value).ok()?;
        Some((key.clone(), value.to_owned()))
    });
    text.collect()
}

/// Adds what is known at the end.
pub(super) fn complete(
    record: &mut Record,
    steps: Steps,
    metadata: BTreeMap<String, String>,
    given: Vec<(u32, Descriptor)>,
) {
    record.steps = steps;
    record.response = metadata;
    for (number, descriptor) in given {
        record.results.entry(number).or_default().descriptor = Some(descriptor);
    }
}

/// Counts steps as events pass.
#[derive(Debug, Default)]
pub(super) struct Counts {
    seen: HashMap<Digest, (bool, bool)>,
    warnings: u32,
}

impl Counts {
    pub(super) fn take(&mut self, events: &[Event]) {
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

    pub(super) fn steps(&self) -> Steps {
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
