//! What an SBOM says of files, with the layer of the image each of them is in.

use cache::view::View;
use oci::Descriptor;
use serde_json::{Value, json};
use tree::RootPath;

/// Who added the layers.
const CREATOR: &str = concat!("Tool: builder-", env!("CARGO_PKG_VERSION"));

/// Adds to each file of an SPDX document that has no comment in which layer it is, and who says so. What is no such
/// document stays as it is.
pub(super) fn add_layers(document: &mut Value, view: &View, layers: &[Descriptor]) {
    if document.get("spdxVersion").and_then(Value::as_str).is_none() || view.layers().len() != layers.len() {
        return;
    }
    let files = document.get_mut("files").and_then(Value::as_array_mut);
    for file in files.into_iter().flatten().filter_map(Value::as_object_mut) {
        let has_comment = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        if file.get("comment").is_some_and(has_comment) {
            continue;
        }
        let name = file.get("fileName").and_then(Value::as_str);
        let layer = name.and_then(|name| layer_of(view, layers, name));
        if let Some(layer) = layer {
            let comment = format!("layerID: {}", layer.digest);
            file.insert("comment".to_owned(), Value::from(comment));
        }
    }
    if let Some(document) = document.as_object_mut() {
        let info = document.entry("creationInfo").or_insert_with(|| json!({}));
        if let Some(info) = info.as_object_mut() {
            let creators = info.entry("creators").or_insert_with(|| json!([]));
            if let Some(creators) = creators.as_array_mut() {
                creators.push(Value::from(CREATOR));
            }
        }
    }
}

/// The highest layer that has a file of this name; what was removed again is in the layer that brought it.
fn layer_of<'a>(view: &View, layers: &'a [Descriptor], name: &str) -> Option<&'a Descriptor> {
    let path = RootPath::clean(name).ok()?;
    let mut both = view.layers().iter().zip(layers).rev();
    let has_it = |tree: &cache::layer::TreeIndex| {
        tree.find(&path)
            .is_some_and(|index| !tree.get(index).is_whiteout())
    };
    both.find(|(layer, _)| has_it(&layer.tree))
        .map(|(_, descriptor)| descriptor)
}
