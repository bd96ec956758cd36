//! `ResolveSourceMeta` of git and http sources: what a ref or an address means now, without building anything.
//!
//! ```text
//! SourceOp ─▶ policy ─▶ a step of the build ─▶ worker::source_metadata ─▶ ResolveSourceMetaResponse
//! ```
use super::builds::Build;
use api::gateway::{ResolveSourceGitResponse, ResolveSourceHttpResponse, ResolveSourceMetaResponse};
use std::sync::Arc;
use tonic::Status;
use worker::{SourceMetadata, Worker};

/// What is known of a source, and what the objects of a commit hold if `with_objects`. A file of a URL is fetched.
pub(super) async fn resolve(
    worker: &Arc<Worker>,
    build: &Build,
    source: llb::proto::SourceOp,
    log_name: &str,
    with_objects: bool,
) -> Result<ResolveSourceMetaResponse, Status> {
    let op = llb::op::SourceOp {
        identifier: source.identifier.clone(),
        attrs: source.attrs.clone(),
    };
    let scheme = op.scheme();
    if !matches!(scheme, "git" | "http" | "https") {
        return Err(Status::unimplemented(format!(
            "resolving metadata of a {scheme} source is not supported"
        )));
    }
    let name = match log_name {
        "" => format!("resolve {}", op.identifier),
        name => name.to_owned(),
    };
    let step = build.job.step(&format!("{name} {}", op.identifier), name);
    let context = build.job.context(&step);
    let found = worker.source_metadata(&op, with_objects, &context).await;
    step.finish(found.as_ref().err().map(ToString::to_string));
    let mut answer = ResolveSourceMetaResponse {
        source: Some(source),
        ..ResolveSourceMetaResponse::default()
    };
    match found.map_err(|error| Status::unknown(error.to_string()))? {
        Some(SourceMetadata::Git(git)) => {
            answer.git = Some(ResolveSourceGitResponse {
                checksum: git.object,
                r#ref: git.reference,
                commit_checksum: git.commit.unwrap_or_default(),
                commit_object: git.commit_object.into(),
                tag_object: git.tag_object.into(),
            });
        }
        Some(SourceMetadata::Http(http)) => {
            answer.http = Some(ResolveSourceHttpResponse {
                checksum: http.digest.to_string(),
                filename: http.filename,
                last_modified: http.last_modified.map(Into::into),
                checksum_response: None,
            });
        }
        None => {}
    }
    Ok(answer)
}
