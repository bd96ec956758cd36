//! Sources as statements name them: URI and digests.

use serde_json::{Value, json};

use super::capture::{Capture, ImageSource, masked};
use oci::Reference;

/// All materials of a result, in BuildKit's order: images, blobs, git, http.
pub(super) fn materials(capture: &Capture) -> Vec<Value> {
    let images = capture.images.iter().map(image);
    let git = capture
        .git
        .iter()
        .map(|(address, commit)| json!({"uri": address, "digest": commit_digest(commit)}));
    let http = capture
        .http
        .iter()
        .map(|(address, digest)| json!({"uri": address, "digest": digest_set(digest)}));
    let blobs = capture.blobs.iter().map(blob);
    images.chain(blobs).chain(git).chain(http).collect()
}

fn image(image: &ImageSource) -> Value {
    let kind = if image.is_local { "oci" } else { "docker" };
    let uri = match Reference::parse_normalized(&image.reference) {
        Ok(reference) => reference.package_url(kind, image.platform.as_ref()),
        // It was resolved under this name; no statement is better off without it.
        Err(_) => format!("pkg:{kind}/{}", image.reference),
    };
    json!({"uri": uri, "digest": digest_set(&image.digest)})
}

fn blob(((reference, is_local), digest): (&(String, bool), &String)) -> Value {
    let named = image(&ImageSource {
        reference: reference.clone(),
        platform: None,
        digest: digest.clone(),
        is_local: *is_local,
    });
    let uri = named["uri"].as_str().unwrap_or_default();
    let sign = if uri.contains('?') { '&' } else { '?' };
    json!({"uri": format!("{uri}{sign}ref_type=blob"), "digest": named["digest"]})
}

fn digest_set(digest: &str) -> Value {
    let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
    json!({algorithm: hex})
}

fn commit_digest(commit: &str) -> Value {
    let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
    json!({algorithm: commit})
}

/// Where the context came from, with the digest it was found to be.
pub(super) fn config_source(context: &str, capture: &Capture) -> Value {
    let git = frontend::git_address(context).and_then(|(address, subdir)| {
        let address = masked(&address);
        let commit = capture.git.get(&address)?;
        let uri = match subdir.as_str() {
            "" => address,
            subdir if address.contains('#') => format!("{address}:{subdir}"),
            subdir => format!("{address}#:{subdir}"),
        };
        Some(json!({"uri": uri, "digest": commit_digest(commit)}))
    });
    let http = || {
        let digest = capture.http.get(&masked(context))?;
        Some(json!({"uri": masked(context), "digest": digest_set(digest)}))
    };
    git.or_else(http)
        .unwrap_or_else(|| json!({"uri": masked(context)}))
}
