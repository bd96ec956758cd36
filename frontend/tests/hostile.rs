//! Dockerfiles nobody means well with: each is refused, quickly, and nothing panics.

use async_trait::async_trait;
use frontend::{FileRequest, Gateway, GatewayError, ImageRequest, Options, ResolvedImage, Warning, build};
use llb::Definition;
use oci::Digest;

struct OneFile(Vec<u8>);

#[async_trait]
impl Gateway for OneFile {
    async fn read_files(
        &self,
        _: &Definition,
        files: &[FileRequest],
    ) -> Result<Vec<Option<Vec<u8>>>, GatewayError> {
        Ok(files
            .iter()
            .map(|file| (file.path == "Dockerfile").then(|| self.0.clone()))
            .collect())
    }

    async fn resolve_image(&self, request: &ImageRequest) -> Result<ResolvedImage, GatewayError> {
        let config = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        Ok(ResolvedImage {
            reference: request.reference.clone(),
            digest: Digest::of(b"x"),
            config: config.into(),
        })
    }

    async fn source_time(&self, _: &Definition, _: &str) -> Result<Option<i64>, GatewayError> {
        Ok(None)
    }

    fn warn(&self, _: Warning) {}
}

async fn message(file: Vec<u8>) -> Option<String> {
    build(&OneFile(file), &Options::default())
        .await
        .err()
        .map(|error| error.to_string())
}

#[tokio::test]
async fn hostile_dockerfiles_are_refused() {
    let doubling = format!(
        "FROM scratch\nENV A=0123456789abcdef\n{}",
        "ENV A=$A$A\n".repeat(40)
    );
    let history = format!(
        "FROM scratch\nENV A={}\n{}",
        "a".repeat(60_000),
        "ENV B=$A$A$A$A$A$A$A$A$A$A$A$A$A$A$A$A\n".repeat(900)
    );
    let nested = format!("FROM scratch\nENV A={}\n", "${B:-".repeat(10_000));
    let arrays = format!("FROM scratch\nCMD {}\n", "[".repeat(60_000));
    let many = format!("FROM scratch\n{}", "ENV A=b\n".repeat(10_001));
    let stages = "FROM scratch\n".repeat(5_001);
    let docs = format!("FROM scratch\nCOPY {} /\n", "<<A ".repeat(10_000));
    for (name, file, expected) in [
        ("doubling", doubling, "more than 1048576 bytes"),
        ("history", history, "bytes together"),
        ("nested", nested, "nested deeper"),
        ("arrays", arrays, ""),
        ("many", many, "10002 instructions"),
        ("stages", stages, "5001 stages"),
        ("heredocs", docs, "unterminated heredoc"),
        (
            "a long line",
            format!("FROM scratch\n# {}\n", "x".repeat(70_000)),
            "max allowed size of 65535",
        ),
        ("empty", String::new(), "cannot be empty"),
        (
            "an agent at a place with a NUL",
            "FROM scratch\nRUN --mount=type=ssh,target=/a\0b x\n".into(),
            "NUL character",
        ),
        (
            "a secret at a place with a NUL",
            "FROM scratch\nRUN --mount=type=secret,id=a,target=/a\0b x\n".into(),
            "NUL character",
        ),
        (
            "a group above the limit",
            "FROM scratch\nCOPY --chown=1:4294967295 a /b\n".into(),
            "no user or group number",
        ),
        (
            "another frontend",
            "# syntax=evil/image\nFROM scratch\n".into(),
            "frontend image",
        ),
    ] {
        let found = message(file.into_bytes()).await.unwrap_or_default();
        assert!(found.contains(expected), "{name}: {found}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_text_do_no_harm() {
    for file in [
        b"\xff\xfe\x00".to_vec(),
        b"FROM scratch\nRUN <<\xff\n".to_vec(),
        b"FROM \xc3\x28\n".to_vec(),
        vec![0; 5000],
    ] {
        let _ = message(file).await;
    }
    // Every prefix of a file with a bit of everything.
    let file = "# escape=`\nFROM a AS b\nRUN --mount=type=cache,target=/x <<-\"E F\" c`\n\n d ${e:-'f'}\n\tE F\nCOPY --from=b [\"g\", \"h\"]\nENV i=\"j k\" l=m`\n";
    for end in 0..file.len() {
        let _ = message(file.as_bytes()[..end].to_vec()).await;
    }
}
