//! `ResolveSourceMeta`: what a reference or an address means now, without building anything.
//!
//! ```text
//! SourceOp ─▶ policy ─┬─ docker-image, oci-layout ─▶ Bridge::resolve_image ─┬─▶ ResolveSourceMetaResponse
//!                     └─ git, http ─▶ a step ─▶ worker::source_metadata ────┘
//! ```
use super::builds::Build;
use crate::build::{Bridge, Engine, Guard, Scope};
use api::gateway::{
    ResolveSourceGitResponse, ResolveSourceHttpResponse, ResolveSourceImageResponse,
    ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use llb::op::SourceOp;
use oci::Platform;
use std::sync::Arc;
use tonic::Status;
use worker::SourceMetadata;

/// Who asks about sources.
pub(super) struct Asker<'a> {
    pub(super) engine: &'a Engine,
    pub(super) build: &'a Build,
    /// Remembers what was looked at.
    pub(super) scope: &'a Arc<Scope>,
}

impl Asker<'_> {
    /// What is known of a source. A file of a URL is fetched.
    pub(super) async fn resolve(
        &self,
        asked: ResolveSourceMetaRequest,
        guard: Option<Arc<dyn Guard>>,
    ) -> Result<ResolveSourceMetaResponse, Status> {
        let source = asked
            .source
            .ok_or_else(|| Status::invalid_argument("no source"))?;
        let op = SourceOp {
            identifier: source.identifier,
            attrs: source.attrs,
        };
        let platform = asked.platform.map(super::gateway::platform_of);
        let op = match &guard {
            None => op,
            Some(guard) => guard
                .decide(op, platform.as_ref())
                .await
                .map_err(|denied| super::errors::Failure::resolving(&denied))?,
        };
        if !matches!(op.scheme(), "docker-image" | "oci-layout") {
            if asked.http.is_some_and(|http| http.checksum_request.is_some()) {
                return Err(Status::unimplemented(
                    "checksums of a http source beside SHA-256 are not supported yet",
                ));
            }
            let with_objects = asked.git.is_some_and(|git| git.return_object);
            return self.address(op, &asked.log_name, with_objects).await;
        }
        let image = asked.image.unwrap_or_default();
        if image.attestation_chain || !image.resolve_attestations.is_empty() {
            return Err(Status::unimplemented(
                "resolving attestations of an image is not supported yet",
            ));
        }
        let found = self
            .image(&op, platform, &asked.resolve_mode, asked.log_name)
            .await?;
        let config = if image.no_config { Vec::new() } else { found.config };
        Ok(ResolveSourceMetaResponse {
            source: Some(wire(op)),
            image: Some(ResolveSourceImageResponse {
                digest: found.digest.to_string(),
                config: config.into(),
                ..ResolveSourceImageResponse::default()
            }),
            ..ResolveSourceMetaResponse::default()
        })
    }

    /// Which image a source means, and its config.
    pub(super) async fn image(
        &self,
        op: &SourceOp,
        platform: Option<Platform>,
        mode: &str,
        log_name: String,
    ) -> Result<frontend::ResolvedImage, Status> {
        let mode = match mode {
            "" | "default" => frontend::ResolveMode::Default,
            "pull" => frontend::ResolveMode::Pull,
            "local" => frontend::ResolveMode::Local,
            other => return Err(Status::invalid_argument(format!("invalid resolve mode: {other}"))),
        };
        let (reference, place) = crate::build::image_of(op).ok_or_else(|| {
            let message = format!("{} is no image, but a config is asked for", op.identifier);
            Status::invalid_argument(message)
        })?;
        let log_name = match log_name.is_empty() {
            true => format!("resolve image config for {reference}"),
            false => log_name,
        };
        let question = frontend::ImageRequest {
            reference,
            platform: platform.unwrap_or_else(Platform::host),
            mode,
            place,
            log_name,
        };
        let bridge = Bridge {
            engine: self.engine,
            job: &self.build.job,
            session: self.build.session.clone(),
            definition_step: String::new(),
            scope: self.scope.clone(),
            guard: None,
        };
        let found = frontend::Gateway::resolve_image(&bridge, &question).await;
        found.map_err(|error| Status::unknown(error.to_string()))
    }

    /// What a git ref or an address means, and what the objects of a commit hold if `with_objects`.
    async fn address(
        &self,
        op: SourceOp,
        log_name: &str,
        with_objects: bool,
    ) -> Result<ResolveSourceMetaResponse, Status> {
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
        let step = self.build.job.step(&format!("{name} {}", op.identifier), name);
        let context = self.build.job.context(&step);
        let found = self
            .engine
            .worker
            .source_metadata(&op, with_objects, &context)
            .await;
        step.finish(found.as_ref().err().map(ToString::to_string));
        let mut answer = ResolveSourceMetaResponse {
            source: Some(wire(op)),
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
}

/// A source as it goes over the wire.
pub(super) fn wire(op: SourceOp) -> llb::proto::SourceOp {
    llb::proto::SourceOp {
        identifier: op.identifier,
        attrs: op.attrs,
    }
}
