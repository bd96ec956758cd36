//! Which context and Dockerfile a command line means.
use super::*;

fn look(context: &str, file: Option<&str>, stdin: &[u8]) -> Result<Found> {
    find(context, file, Cursor::new(stdin.to_vec()))
}

fn folder(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in files {
        std::fs::write(folder.path().join(file), "FROM scratch\n").expect("written");
    }
    folder
}

#[test]
fn a_folder_has_its_dockerfile() {
    for (files, expected) in [
        (&["Dockerfile", "dockerfile"][..], Some("Dockerfile")),
        (&["dockerfile"][..], Some("dockerfile")),
        (&["Containerfile"][..], None),
    ] {
        let folder = folder(files);
        let found = look(&folder.path().display().to_string(), None, b"").ok();
        let expected = expected.map(|name| DockerfileSource::File {
            directory: folder.path().to_owned(),
            name: name.to_owned(),
        });
        assert_eq!(found.map(|found| found.dockerfile), expected, "{files:?}");
    }
}

#[test]
fn a_missing_dockerfile_names_the_one_nearby() {
    let folder = folder(&["Containerfile"]);
    let error = look(&folder.path().display().to_string(), None, b"")
        .err()
        .expect("missing");
    assert!(error.hint.expect("a hint").contains("Containerfile"));
}

#[test]
fn stdin_holds_a_dockerfile_or_an_archive() {
    let found = look("-", None, b"FROM scratch\n").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(found.context, ContextSource::Empty);
    assert_eq!(
        found.dockerfile,
        DockerfileSource::Text(b"FROM scratch\n".to_vec())
    );

    let mut tar = vec![0u8; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    for archive in [tar, b"\x1f\x8b rest".to_vec()] {
        let found = look("-", Some("sub/Dockerfile"), &archive).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.context, ContextSource::StdinTar);
        assert_eq!(
            found.dockerfile,
            DockerfileSource::InContext("sub/Dockerfile".into())
        );
        let mut whole = Vec::new();
        found
            .stdin
            .expect("a stream")
            .read_to_end(&mut whole)
            .expect("read");
        assert_eq!(whole, archive);
    }
    assert!(look("-", None, b"").is_err());
    assert!(look("-", Some("-"), b"x").is_err());
    assert!(look("-", Some("Dockerfile"), b"FROM scratch").is_err());
}

#[test]
fn the_dockerfile_may_come_on_stdin_for_any_context() {
    let folder = folder(&[]);
    for context in [
        folder.path().display().to_string(),
        "https://example.com/x.git#main".to_owned(),
    ] {
        let found = look(&context, Some("-"), b"FROM a").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.dockerfile, DockerfileSource::Text(b"FROM a".to_vec()));
    }
}

#[test]
fn addresses_are_told_from_folders() {
    for (text, expected) in [
        ("https://github.com/a/b.git#main:sub", true),
        ("git@github.com:a/b.git", true),
        ("ssh://git@host/x", true),
        ("github.com/a/b", true),
        ("./github.com", false),
        ("some/dir", false),
        ("a@b", false),
        ("@:x", false),
    ] {
        assert_eq!(is_remote(text), expected, "{text}");
    }
}

#[test]
fn named_contexts() {
    let folder = folder(&[]);
    let path = folder.path().display().to_string();
    let (digest, latest) = (oci::Digest::of(b"x"), oci::Digest::of(b"latest"));
    let entry = |digest: oci::Digest, tag: &str| {
        let mut found = oci::Descriptor::new(oci::OCI_MANIFEST, digest, 1);
        found
            .annotations
            .insert("org.opencontainers.image.ref.name".into(), tag.into());
        found
    };
    let index = oci::Index::new(oci::OCI_INDEX, vec![entry(digest, "v1"), entry(latest, "latest")]);
    std::fs::write(folder.path().join("index.json"), index.to_json()).expect("written");
    let layout = |tag: Option<&str>, digest| NamedContext::OciLayout {
        path: folder.path().to_owned(),
        tag: tag.map(str::to_owned),
        digest,
    };
    for (value, expected) in [
        (
            format!("src={path}"),
            Some(("src", NamedContext::Directory(folder.path().to_owned()))),
        ),
        (
            format!("busybox=oci-layout://{path}"),
            Some(("busybox", layout(None, latest))),
        ),
        (
            format!("docker.io/library/busybox:latest=oci-layout://{path}:v1"),
            Some(("busybox", layout(Some("v1"), digest))),
        ),
        (
            format!("a/b:2=oci-layout://{path}:v1@{digest}"),
            Some(("a/b:2", layout(Some("v1"), digest))),
        ),
        (
            "alpine=docker-image://alpine:3.20".into(),
            Some((
                "alpine",
                NamedContext::Remote("docker-image://alpine:3.20".into()),
            )),
        ),
        (format!("x=oci-layout://{path}:v9"), None),
        ("src=/no/such/folder".into(), None),
        ("src=target:x".into(), None),
        ("src".into(), None),
        ("UPPER CASE=.".into(), None),
    ] {
        let found = named(&value).ok();
        assert_eq!(
            found,
            expected.map(|(name, context)| (name.to_owned(), context)),
            "{value}"
        );
    }
}
