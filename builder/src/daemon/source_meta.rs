//! `ResolveSourceMeta`: what a reference or an address means now, without building anything.
//!
//! ```text
//! SourceOp ─▶ policy ─┬─ docker-image, oci-layout ─▶ Bridge::resolve_image ─┬─▶ ResolveSourceMetaResponse
//!                     └─ git, http ─▶ a step ─▶ worker::source_metadata ────┘
//! ```
use super::builds::Build;
use crate::build::{Bridge, Engine, Guard, Scope};
use api::gateway::checksum_request::ChecksumAlgo;
use api::gateway::{
    AttestationChain as WireChain, Blob, ChecksumRequest, ChecksumResponse, Descriptor as WireDescriptor,
    ResolveSourceGitResponse, ResolveSourceHttpResponse, ResolveSourceImageResponse,
    ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use llb::op::SourceOp;
use oci::{Platform, Reference};
use std::sync::Arc;
use tonic::Status;
use worker::{Algorithm, AttestationChain, Extras, SourceMetadata};

/// The most bytes behind a file whose checksum is asked for.
const MAX_SUFFIX: usize = 4 << 10;

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
            let request = asked.http.and_then(|http| http.checksum_request);
            let extras = Extras {
                git_objects: asked.git.is_some_and(|git| git.return_object),
                checksum: request.map(checksum).transpose()?,
            };
            return self.address(op, &asked.log_name, extras).await;
        }
        let image = asked.image.unwrap_or_default();
        // As with BuildKit, a layout of the client is not asked for attestations.
        let wants_chain = image.attestation_chain || !image.resolve_attestations.is_empty();
        let chain = match wants_chain && op.scheme() == "docker-image" {
            true => {
                let platform = platform.clone().unwrap_or_else(Platform::host);
                self.chain(&op, &platform, &asked.resolve_mode, &image.resolve_attestations)
                    .await?
            }
            false => None,
        };
        let (digest, config) = match (&chain, image.no_config) {
            (Some(chain), true) => (chain.root, Vec::new()),
            _ => {
                let found = self
                    .image(&op, platform, &asked.resolve_mode, asked.log_name)
                    .await?;
                let config = if image.no_config { Vec::new() } else { found.config };
                (found.digest, config)
            }
        };
        if let Some(chain) = chain.as_ref().filter(|chain| chain.root != digest) {
            let root = chain.root;
            let message =
                format!("attestation chain root digest {root} does not match image digest {digest}");
            return Err(Status::unknown(message));
        }
        Ok(ResolveSourceMetaResponse {
            source: Some(wire(op)),
            image: Some(ResolveSourceImageResponse {
                digest: digest.to_string(),
                config: config.into(),
                attestation_chain: chain.map(chain_wire),
            }),
            ..ResolveSourceMetaResponse::default()
        })
    }

    /// What is attested of an image.
    async fn chain(
        &self,
        op: &SourceOp,
        platform: &Platform,
        mode: &str,
        predicates: &[String],
    ) -> Result<Option<AttestationChain>, Status> {
        let reference = Reference::parse_normalized(op.rest());
        let reference = reference.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mode = match resolve_mode(mode)? {
            frontend::ResolveMode::Default => worker::ResolveMode::Default,
            frontend::ResolveMode::Pull => worker::ResolveMode::Pull,
            frontend::ResolveMode::Local => worker::ResolveMode::Local,
        };
        let name = format!("resolve attestations of {reference}");
        let step = self.build.job.step(&format!("{name} {platform}"), &name);
        let (worker, session) = (&self.engine.worker, &self.build.session);
        let found = worker
            .attestation_chain(session, &reference, platform, mode, predicates, step.sink())
            .await;
        step.finish(found.as_ref().err().map(ToString::to_string));
        found.map_err(|error| Status::unknown(error.to_string()))
    }

    /// Which image a source means, and its config.
    pub(super) async fn image(
        &self,
        op: &SourceOp,
        platform: Option<Platform>,
        mode: &str,
        log_name: String,
    ) -> Result<frontend::ResolvedImage, Status> {
        let mode = resolve_mode(mode)?;
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

    /// What a git ref or an address means.
    async fn address(
        &self,
        op: SourceOp,
        log_name: &str,
        extras: Extras,
    ) -> Result<ResolveSourceMetaResponse, Status> {
        let scheme = op.scheme();
        if !matches!(scheme, "git" | "http" | "https") {
            return Err(Status::unimplemented(format!(
                "resolving metadata of a {scheme} source is not supported"
            )));
        }
        let suffix = extras.checksum.as_ref().map(|(_, suffix)| suffix.clone());
        let name = match log_name {
            "" => format!("resolve {}", op.identifier),
            name => name.to_owned(),
        };
        let step = self.build.job.step(&format!("{name} {}", op.identifier), name);
        let context = self.build.job.context(&step);
        let found = self.engine.worker.source_metadata(&op, extras, &context).await;
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
                    checksum: http.checksum.to_string(),
                    filename: http.filename,
                    last_modified: http.last_modified.map(Into::into),
                    checksum_response: http.wanted.map(|wanted| ChecksumResponse {
                        digest: wanted.to_string(),
                        suffix: suffix.unwrap_or_default().into(),
                    }),
                });
            }
            None => {}
        }
        Ok(answer)
    }
}

fn resolve_mode(mode: &str) -> Result<frontend::ResolveMode, Status> {
    match mode {
        "" | "default" => Ok(frontend::ResolveMode::Default),
        "pull" => Ok(frontend::ResolveMode::Pull),
        "local" => Ok(frontend::ResolveMode::Local),
        other => Err(Status::invalid_argument(format!("invalid resolve mode: {other}"))),
    }
}

/// Which checksum of a file is asked for.
fn checksum(asked: ChecksumRequest) -> Result<(Algorithm, Vec<u8>), Status> {
    if asked.suffix.len() > MAX_SUFFIX {
        let limit = format!("http checksum request suffix exceeds max size {MAX_SUFFIX}");
        return Err(Status::invalid_argument(limit));
    }
    let algorithm = match ChecksumAlgo::try_from(asked.algo) {
        Ok(ChecksumAlgo::Sha256) => Algorithm::Sha256,
        Ok(ChecksumAlgo::Sha384) => Algorithm::Sha384,
        Ok(ChecksumAlgo::Sha512) => Algorithm::Sha512,
        Err(_) => {
            let message = format!("unsupported checksum algorithm {}", asked.algo);
            return Err(Status::invalid_argument(message));
        }
    };
    Ok((algorithm, asked.suffix.to_vec()))
}

fn chain_wire(chain: AttestationChain) -> WireChain {
    let blobs = chain.blobs.into_iter().map(|(digest, (descriptor, data))| {
        let descriptor = WireDescriptor {
            media_type: descriptor.media_type,
            digest: descriptor.digest.to_string(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            annotations: descriptor.annotations,
        };
        let blob = Blob {
            descriptor: Some(descriptor),
            data: data.into(),
        };
        (digest.to_string(), blob)
    });
    WireChain {
        root: chain.root.to_string(),
        image_manifest: chain.image.to_string(),
        attestation_manifest: chain
            .attestation
            .map(|digest| digest.to_string())
            .unwrap_or_default(),
        signature_manifests: chain.signatures.iter().map(ToString::to_string).collect(),
        blobs: blobs.collect(),
    }
}

/// A source as it goes over the wire.
pub(super) fn wire(op: SourceOp) -> llb::proto::SourceOp {
    llb::proto::SourceOp {
        identifier: op.identifier,
        attrs: op.attrs,
    }
}
