//! Any bytes as a Dockerfile: refused with lines that are there, or built to a valid definition.
#![no_main]

use async_trait::async_trait;
use frontend::{FileRequest, Gateway, GatewayError, ImageRequest, Options, ResolvedImage, Warning, build};
use futures_util::FutureExt as _;
use libfuzzer_sys::fuzz_target;
use llb::Definition;
use oci::Digest;

/// The Dockerfile, and a registry where every image exists.
struct OneFile<'a>(&'a [u8]);

#[async_trait]
impl Gateway for OneFile<'_> {
    async fn read_files(
        &self,
        _: &Definition,
        files: &[FileRequest],
    ) -> Result<Vec<Option<Vec<u8>>>, GatewayError> {
        Ok(files
            .iter()
            .map(|file| (file.path == "Dockerfile").then(|| self.0.to_vec()))
            .collect())
    }

    async fn resolve_image(&self, request: &ImageRequest) -> Result<ResolvedImage, GatewayError> {
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"history":[{}]}"#;
        Ok(ResolvedImage {
            reference: request.reference.clone(),
            digest: Digest::of(b"x"),
            config: config.to_vec(),
        })
    }

    async fn source_time(&self, _: &Definition, _: &str) -> Result<Option<i64>, GatewayError> {
        Ok(None)
    }

    fn warn(&self, _: Warning) {}
}

fuzz_target!(|bytes: &[u8]| {
    let gateway = OneFile(bytes);
    let options = Options::default();
    let answer = build(&gateway, &options)
        .now_or_never()
        .expect("nothing here waits");
    match answer {
        Ok(answer) => {
            for platform in &answer.platforms {
                platform.definition.to_graph().expect("what is made is valid");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
