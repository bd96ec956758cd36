//! What the history keeps of a daemon's builds.
use super::result::Solved;
use super::run::Request;
use crate::history::{self, Record};
use std::collections::BTreeMap;

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
