//! Completes an image config: diff ids, one history entry per layer, times.
//!
//! The frontend says which instructions made layers and which did not; the layers say when. An entry
//! without a time takes that of the nearest one before it, or of the first layer that is new. Nothing is
//! later than `SOURCE_DATE_EPOCH`, if it is set.

use std::time::SystemTime;

use cache::{ImmutableRef, LayerBlob};
use jiff::Timestamp;
use oci::{DiffId, History, ImageConfig};
use serde_json::Value;

/// The history comment on layers the frontend said nothing about.
const COMMENT: &str = "buildkit.exporter.image.v0";

/// How a layer came about.
pub(super) struct Made {
    created: String,
    by: String,
}

impl Made {
    /// The same of all layers of a ref; `blobs` are theirs.
    pub(super) fn of_layers(of: Option<&ImmutableRef>, blobs: &[LayerBlob]) -> Vec<Made> {
        let mut made: Vec<Made> = blobs
            .iter()
            .map(|blob| Made {
                created: text(blob.created),
                by: String::new(),
            })
            .collect();
        let mut next = of;
        while let Some(one) = next {
            // Of refs with the same layers, the lowest is the one that made the last of them.
            let last = one.layers().len().checked_sub(1).and_then(|at| made.get_mut(at));
            if let Some(layer) = last {
                layer.by.clone_from(&one.info().description);
            }
            next = one.parent();
        }
        made
    }
}

/// Fills in what only the exporter knows.
pub(super) fn complete(
    config: &mut ImageConfig,
    layers: &[Made],
    diff_ids: Vec<DiffId>,
    epoch: Option<i64>,
    base: &[History],
) {
    fit_history(&mut config.history, layers);
    fill_times(&mut config.history);
    let epoch = epoch.and_then(|seconds| Timestamp::from_second(seconds).ok());
    if let Some(epoch) = epoch {
        // What the base image says of itself stays as it is.
        let same = config
            .history
            .iter()
            .zip(base)
            .take_while(|(entry, base)| entry == base)
            .count();
        for entry in &mut config.history[same..] {
            if entry
                .created
                .as_ref()
                .is_some_and(|created| created.parse::<Timestamp>().is_ok_and(|t| t > epoch))
            {
                entry.created = Some(epoch.to_string());
            }
        }
        let is_later = |created: &String| created.parse::<Timestamp>().is_ok_and(|time| time > epoch);
        if config.created.as_ref().is_some_and(is_later) {
            config.created = Some(epoch.to_string());
        }
    }
    if config.created.is_none() {
        config.created = config
            .history
            .iter()
            .rev()
            .find_map(|entry| entry.created.clone());
    }
    config.rootfs.kind = "layers".to_owned();
    config.rootfs.diff_ids = diff_ids;
    // BuildKit writes both keys even where there is nothing to say.
    if config.created.is_none() {
        config.extra.insert("created".to_owned(), Value::Null);
    }
    if config.history.is_empty() {
        config.extra.insert("history".to_owned(), Value::Null);
    }
}

fn text(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_string()
}

/// As many entries with a layer as there are layers, each with its time.
fn fit_history(history: &mut Vec<History>, made: &[Made]) {
    let has_layer = |entry: &&mut History| !entry.empty_layer;
    let named = history.iter_mut().filter(has_layer).count();
    for entry in history.iter_mut().filter(has_layer).skip(made.len()) {
        entry.empty_layer = true;
    }
    history.extend(made.iter().skip(named).map(|layer| History {
        created: Some(layer.created.clone()),
        created_by: layer.by.clone(),
        comment: COMMENT.to_owned(),
        ..History::default()
    }));
    for (entry, layer) in history.iter_mut().filter(has_layer).zip(made) {
        entry.created.get_or_insert_with(|| layer.created.clone());
    }
}

fn fill_times(history: &mut [History]) {
    let first_open = history
        .iter()
        .position(|entry| entry.created.is_none())
        .unwrap_or(history.len());
    let after = history[first_open..]
        .iter()
        .find_map(|entry| entry.created.clone());
    let before = history[..first_open]
        .iter()
        .rev()
        .find_map(|entry| entry.created.clone());
    let mut last = after.or(before);
    for entry in &mut history[first_open..] {
        match &entry.created {
            Some(created) => last = Some(created.clone()),
            None => entry.created = last.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(layer: bool, created: Option<&str>) -> History {
        History {
            created: created.map(str::to_owned),
            empty_layer: !layer,
            ..History::default()
        }
    }

    fn made(times: &[&str]) -> Vec<Made> {
        let of = |time: &&str| Made {
            created: (*time).to_owned(),
            by: format!("[1/1] {time}"),
        };
        times.iter().map(of).collect()
    }

    fn times(history: &[History]) -> Vec<Option<&str>> {
        history.iter().map(|entry| entry.created.as_deref()).collect()
    }

    #[test]
    fn an_image_of_nothing_says_so_as_buildkit_does() {
        let mut config = ImageConfig::default();
        complete(&mut config, &[], Vec::new(), Some(1_700_000_000), &[]);
        let json: Value = serde_json::from_slice(&config.to_json()).expect("JSON");
        assert_eq!(json.get("created"), Some(&Value::Null));
        assert_eq!(json.get("history"), Some(&Value::Null));
        assert_eq!(json["rootfs"]["diff_ids"], Value::Null);
        let again = ImageConfig::parse(&config.to_json()).expect("readable");
        assert_eq!((again.created, again.history.len()), (None, 0));
    }

    #[test]
    fn entries_without_a_time_take_that_of_a_layer() {
        let mut history = vec![
            entry(true, Some("base")),
            entry(false, None),
            entry(true, None),
            entry(false, None),
            entry(true, None),
        ];
        fit_history(&mut history, &made(&["x", "one", "two"]));
        fill_times(&mut history);
        assert_eq!(
            times(&history),
            [Some("base"), Some("one"), Some("one"), Some("one"), Some("two")]
        );
    }

    #[test]
    fn there_is_an_entry_per_layer_and_no_more() {
        let mut history = vec![entry(true, None)];
        fit_history(&mut history, &made(&["one", "two"]));
        assert_eq!(times(&history), [Some("one"), Some("two")]);
        assert_eq!(history[1].comment, COMMENT);
        assert_eq!(history[1].created_by, "[1/1] two");
        let mut history = vec![entry(true, Some("a")), entry(true, Some("b"))];
        fit_history(&mut history, &made(&["one"]));
        // The first are believed, as in BuildKit.
        let empty: Vec<bool> = history.iter().map(|entry| entry.empty_layer).collect();
        assert_eq!(empty, [false, true]);
    }
}
