//! Dockerfiles changed at random: nothing panics, and what is refused says where in the file.
//!
//! The same changes every time (a fixed seed). A change that breaks something becomes a case of `hostile.rs`.

use std::path::Path;

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
        let content = |file: &FileRequest| match file.path.as_str() {
            "Dockerfile" => Some(self.0.clone()),
            ".dockerignore" => Some(b"*.log\n!keep.log\n".to_vec()),
            _ => None,
        };
        Ok(files.iter().map(content).collect())
    }

    async fn resolve_image(&self, request: &ImageRequest) -> Result<ResolvedImage, GatewayError> {
        let config = br#"{"architecture":"amd64","os":"linux","config":{"OnBuild":["RUN x"]},"rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":"x"}]}"#;
        Ok(ResolvedImage {
            reference: request.reference.clone(),
            digest: Digest::of(b"x"),
            config: config.to_vec(),
        })
    }

    async fn source_time(&self, _: &Definition, _: &str) -> Result<Option<i64>, GatewayError> {
        Ok(None)
    }

    fn warn(&self, warning: Warning) {
        assert!(!warning.message.is_empty());
    }
}

/// Numbers that look random and are the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// Pieces of syntax that are put where they do not belong.
const PIECES: &[&[u8]] = &[
    b"\\",
    b"`",
    b"\"",
    b"'",
    b"$",
    b"${",
    b"}",
    b"${A:-",
    b"<<EOF",
    b"<<-'X Y'",
    b"\n",
    b"\r\n",
    b"\t",
    b"#",
    b"--",
    b"--mount=",
    b"--from=",
    b"[",
    b"]",
    b"[\"a\",",
    b"=",
    b"ONBUILD ",
    b"FROM ",
    b"FROM scratch AS a\n",
    b"COPY --from=a / /\n",
    b"EOF\n",
    b"\xff",
    b"\0",
    b"\xc3",
    b"RUN --mount=type=cache,target=/x,id=$A ",
    b"ENV A=$A$A\n",
    b"# escape=`\n",
    b"*",
    b"../",
    b"/./",
    b"%",
    b"${A//",
    b"${A%%",
    b"0",
    b"-1",
];

fn changed(file: &[u8], others: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut out = file.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(out.len() + 1);
        match numbers.below(5) {
            0 => drop(out.splice(at..at, PIECES[numbers.below(PIECES.len())].iter().copied())),
            1 => out.truncate(at),
            2 if at < out.len() => out[at] = numbers.below(256) as u8,
            3 => {
                let end = (at + numbers.below(20)).min(out.len());
                out.drain(at..end);
            }
            _ => {
                let other = &others[numbers.below(others.len())];
                let from = numbers.below(other.len());
                let piece = &other[from..(from + numbers.below(60)).min(other.len())];
                out.splice(at..at, piece.iter().copied());
            }
        }
    }
    out
}

#[tokio::test]
async fn changed_dockerfiles_never_panic() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dockerfiles");
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(&root)
        .expect("fixtures")
        .filter_map(|entry| {
            let path = entry.expect("an entry").path();
            Some((
                path.display().to_string(),
                std::fs::read(path.join("Dockerfile")).ok()?,
            ))
        })
        .collect();
    files.sort();
    let files: Vec<Vec<u8>> = files.into_iter().map(|(_, file)| file).collect();
    let mut numbers = Numbers(0x5eed_cafe_f00d_1234);
    let (mut built, mut refused) = (0, 0);
    for round in 0..40 {
        for file in &files {
            let file = changed(file, &files, &mut numbers);
            let lines = file.split(|byte| *byte == b'\n').count();
            match build(&OneFile(file), &Options::default()).await {
                Ok(answer) => {
                    built += 1;
                    for platform in &answer.platforms {
                        platform.definition.to_graph().expect("what is made is valid");
                    }
                }
                Err(error) => {
                    refused += 1;
                    let text = error.to_string();
                    assert!(!text.is_empty() && text.len() < 1 << 20, "round {round}");
                    let last = error.ranges.last().map_or(0, |range| range.end.line);
                    assert!(
                        usize::try_from(last).expect("a line") <= lines,
                        "round {round}: line {last} of {lines}"
                    );
                }
            }
        }
    }
    assert!(built > 300 && refused > 300, "{built} built, {refused} refused");
}
